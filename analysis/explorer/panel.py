"""The explorer's panel: which picture, what is asked, a sentence of one's own, and what to set beside the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from core.options import PRESETS

WIDE = widgets.Layout(flex="1 1 260px", width="auto")
ROW = widgets.Layout(display="flex", flex_flow="row wrap", align_items="center", width="100%")


class Panel(widgets.VBox):
    """What is asked. Pictures that are uploaded join the list.

    Args:
        pictures: images by name.
        prompt: what stands in the question's line.
        ask, say, compare, save: called when its button is pressed.
    """

    def __init__(
        self,
        pictures: Mapping[str, Any],
        prompt: str,
        *,
        ask: Callable[[], object],
        say: Callable[[], object],
        compare: Callable[[], object],
        save: Callable[[], object],
    ):
        self.pictures = dict(pictures)
        self._picture = widgets.Dropdown(options=list(self.pictures), description="picture")
        self._upload = widgets.FileUpload(accept="image/*", description="upload")
        self._upload.observe(self._on_upload, "value")
        self._prompt = _line(prompt, "question")
        self._sentence = _line("", "or say", "a sentence of your own, grounded as if the model had said it")
        self._preset = widgets.Dropdown(options=list(PRESETS), value="reference_v2", description="compare")
        buttons = {
            "ask": _button("Ask", ask, "primary"),
            "say": _button("Ground it", say),
            "compare": _button("Set beside", compare),
            "save": _button("Save figure", save),
        }
        rows = [
            [self._picture, self._upload, self._prompt, buttons["ask"]],
            [self._sentence, buttons["say"], self._preset, buttons["compare"], buttons["save"]],
        ]
        super().__init__([widgets.Box(row, layout=ROW) for row in rows])

    @property
    def picture(self) -> Any:
        """The chosen picture."""
        return self.pictures[self._picture.value]

    @property
    def prompt(self) -> str:
        """The question."""
        return self._prompt.value

    @property
    def sentence(self) -> str:
        """The sentence of one's own."""
        return self._sentence.value

    @property
    def preset(self) -> str:
        """The preset to set beside the answer."""
        return self._preset.value

    def _on_upload(self, change: Mapping[str, Any]) -> None:
        for file in change["new"]:
            self.pictures[file["name"]] = bytes(file["content"])
            self._picture.options = list(self.pictures)
            self._picture.value = file["name"]


def _line(value: str, description: str, placeholder: str = "") -> widgets.Text:
    return widgets.Text(value, description=description, placeholder=placeholder, layout=WIDE)


def _button(description: str, act: Callable[[], object], style: str = "") -> widgets.Button:
    button = widgets.Button(description=description, button_style=style)
    button.on_click(lambda _: act())
    return button
