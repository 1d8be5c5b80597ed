"""The explorer: ask a model about a picture, click a word, see where it looked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from analysis.explorer.data import KERNEL_OPTIONS, MAP_OPTIONS, shown_options
from analysis.explorer.following import follow
from analysis.explorer.gallery import phrase_galleries
from analysis.explorer.page import explorer_iframe, save_html
from analysis.explorer.panel import Panel
from analysis.explorer.saving import save_shown
from analysis.explorer.told import Told
from analysis.explorer.widget import ExplorerView
from core.errors import GroundingError
from core.images import load_image
from core.lmm import LMM, load_lmm
from core.masks import Segmenter, load_segmenter
from core.options import GroundOptions
from core.phrases import load_nlp
from core.pipeline import Grounding, attend_and_segment, ground
from core.streaming import AnswerStream

PROMPT = "Describe the image in detail."
FIGURES = "explored"  # folder of figures, unless another is given
SECONDS = 0.05  # between two tellings of an answer that is being written


class Explorer(widgets.VBox):
    """Ask, read, and click a word to see where the model looked when it said it.

    All that the page shows is a trait of `explorer.view`, so whatever can be clicked can be written, too.

    Args:
        model: an `LMM`, or what `core.load_lmm` takes; None to look at records alone.
        segmenter: a `Segmenter`, or what `core.load_segmenter` takes; None stops at the points.
        nlp: a spaCy pipeline, or what `core.load_nlp` takes.
        pictures: images by name, to choose from; anything `core.load_image` reads.
        prompt: what is asked unless told otherwise.
        preset, options: how answers are grounded, as in `core.GroundOptions.of`.
        generation: options of `LMM.generate`, `max_new_tokens` among them.
        loading: options of `core.load_lmm`.
        per_head: keep the maps of every head (4 bytes for each token, layer, head and visual token).
        history: answers that are kept; the oldest are dropped.

    >>> from analysis.explorer.explorer import Explorer
    >>> explorer = Explorer("embedded", loading={"device": "cpu"})
    >>> explorer.ask("embedded").generation.text[:9]
    'The image'
    >>> explorer.select("a blue moon").points.tolist()
    [[40.5, 115.5]]
    """

    def __init__(
        self,
        model: LMM | str | Path | None = "embedded",
        *,
        segmenter: Segmenter | str | None = "embedded",
        nlp: Any = "embedded",
        pictures: Mapping[str, Any] | None = None,
        prompt: str = PROMPT,
        preset: str = "paper",
        options: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
        loading: Mapping[str, Any] | None = None,
        per_head: bool = True,
        history: int = 8,
    ):
        self._loading = {"geometry": "pad"} | dict(loading or {})
        self.lmm = None if model is None else self._load(model)
        self.segmenter = load_segmenter(segmenter) if isinstance(segmenter, str) else segmenter
        self.nlp = load_nlp(nlp) if isinstance(nlp, str) else nlp
        self._options = GroundOptions.of(preset, **{"per_head": per_head} | dict(options or {}))
        self._generation = {"max_new_tokens": 512} | dict(generation or {})
        self._history, self._count, self._following = history, 0, True
        self._told: list[tuple[Told, dict[str, Any]]] = []  # the answers, and each as the page has it
        can = ["layers", "heads", *["row"] * (self.lmm is not None)]
        can += ["sam_prompt", "mask_choice"] * (self.segmenter is not None)
        self.view = ExplorerView(can=can, **shown_options(self._options))
        self.view.observe(self._follow, ["answer", "tokens", "masks", "show_gallery", *MAP_OPTIONS, *KERNEL_OPTIONS])
        buttons = {
            "ask": lambda: self._guarded(self.ask),
            "say": lambda: self._guarded(lambda: self.say(self.panel.sentence)),
            "compare": lambda: self._guarded(lambda: self.compare(self.panel.preset)),
            "save": lambda: self._guarded(self.figure),
        }
        self.panel = Panel(pictures or {"embedded scene": "embedded"}, prompt, **buttons)
        super().__init__([self.panel, self.view] if self.lmm is not None else [self.view])

    @classmethod
    def of_records(
        cls,
        records: Iterable[tuple[str, Grounding]],
        pictures: Mapping[str, Any],
        *,
        prompts: Mapping[str, str] | str = "",
        **parts: Any,
    ) -> Explorer:
        """An explorer of records: no model is needed.

        Args:
            records: record id and grounding, such as a `RunStore`.
            pictures: the image of each record by its id; records without one are left out.
            prompts: what was asked, by id or one for all.
            parts: a `segmenter` for masks of chosen words (none by default), and other arguments of `Explorer`.
        """
        explorer = cls(None, **{"segmenter": None, "nlp": None, "history": 10_000} | parts)
        for id, grounding in records:
            if id in pictures:
                asked = prompts if isinstance(prompts, str) else prompts.get(id, "")
                explorer._add(grounding, load_image(pictures[id]), asked, id, None)
        if explorer._told:
            explorer.show(0)
        return explorer

    # --- asking ---
    def ask(self, image: Any = None, prompt: str | None = None, **generation: Any) -> Grounding:
        """Let the model answer; the text is shown as it is written.

        Args:
            image: anything `core.load_image` reads; by default the picture that is chosen in the panel.
            prompt: by default the panel's.
            generation: options of `LMM.generate` that differ for this question.

        Raises:
            GroundingError: there is no model, or an image, prompt or option that cannot be used.
        """
        options = self._generation | generation
        longest = options.pop("max_new_tokens")
        stream = AnswerStream(self._model().processor.tokenizer, self._writing())
        further = {"streamer": stream} | options
        return self._answered(image, prompt, max_new_tokens=longest, generation_options=further)

    def say(self, answer: str, image: Any = None, prompt: str | None = None) -> Grounding:
        """Ground a sentence of your own, as if the model had answered with it.

        Raises:
            GroundingError: as for `ask`; or the sentence is empty.
        """
        if not answer.strip():
            raise GroundingError("there is nothing to ground; write a sentence")
        return self._answered(image, prompt, answer=answer)

    def compare(self, preset: str | None = None, *, model: LMM | str | Path | None = None, **options: Any) -> Grounding:
        """Show the same answer beside itself: grounded with another preset or other options, or by another model.

        Args:
            preset: a name in `core.PRESETS`; None takes the options of the answer.
            model: reads the same text (replay) with the same picture and prompt.
            options: fields of `core.GroundOptions` that differ.

        Raises:
            GroundingError: there is no answer yet, or another row is asked for and there is no model.
        """
        told = self.told
        keep = {"per_head": self._options.per_head}
        wanted = GroundOptions.of(told.grounding.options if preset is None else preset, **keep | options)
        lmm = told.lmm if model is None else self._load(model)
        found = self._again(told, wanted, lmm, reread=model is not None or wanted.row != told.grounding.options.row)
        named = [preset, "" if model is None else lmm.name, *(f"{name} {value}" for name, value in options.items())]
        self._add(found, told.image, told.prompt, ", ".join(filter(None, named)) or "again", lmm)
        self.show(self._place(told), beside=len(self._told) - 1)
        return found

    def show(self, answer: int, *, beside: int = -1) -> None:
        """Show one of the answers, grounded as it was made, and another one with the same text beside it.

        Raises:
            GroundingError: there is no such answer.
        """
        if not 0 <= answer < len(self._told):
            raise GroundingError(f"there is no answer {answer}; there are {len(self._told)}, counted from 0")
        chosen = shown_options(self._told[answer][0].grounding.options)
        self._set(answer=answer, beside=beside, tokens=[], place=[], **chosen)

    # --- choosing ---
    def select(self, *words: str | int) -> Grounding:
        """Choose words: a phrase or any part of the answer, or tokens by number. Several are looked at
        together; none at all chooses the phrase with the brightest map.

        Returns:
            What is shown: the words as one phrase, with their map, point and masks.

        Raises:
            GroundingError: there is no answer, or it does not say them.
        """
        words = words or self.told.brightest()
        found = [token for each in words for token in ([each] if isinstance(each, int) else self.told.find(each))]
        self.told.phrase(found)
        self._set(place=[], tokens=list(dict.fromkeys(found)))
        return self.selected()

    def look(self, x: float, y: float) -> None:
        """Choose a place, (x, y) in pixels of the picture: which words looked there?"""
        self._set(tokens=[], place=[float(x), float(y)])

    @property
    def told(self) -> Told:
        """The answer that is shown.

        Raises:
            GroundingError: nothing has been asked yet.
        """
        if not self._told:
            raise GroundingError("there is no answer yet; ask something first")
        return self._told[min(self.view.answer, len(self._told) - 1)][0]

    @property
    def shown(self) -> list[Told]:
        """The answer that is shown, and the one beside it."""
        beside = self._told[self.view.beside : self.view.beside + 1] if self.view.beside >= 0 else []
        return [self.told, *(told for told, _ in beside)]

    def options(self, told: Told | None = None) -> GroundOptions:
        """How an answer is shown: its own options with what the controls say."""
        told = self.told if told is None else told
        own = {name: getattr(self.view, name) for name in (*MAP_OPTIONS, *KERNEL_OPTIONS)}
        if told is not self.told:  # what tells two answers apart stays
            mine, theirs = (shown_options(each.grounding.options) for each in (self.told, told))
            own |= {name: theirs[name] for name in own if mine[name] != theirs[name]}
        own |= {name: own[name] or None for name in ("view", "layers", "heads")}
        return replace(told.grounding.options, **own)

    def selected(self, told: Told | None = None) -> Grounding:
        """The chosen words grounded as one phrase, as they are shown; in another answer, its tokens with the same text.

        Raises:
            GroundingError: no words are chosen, or the answer does not hold what the options need.
        """
        other = self.told if told is None else told
        tokens = other.same_words(self.told, self.view.tokens)
        return other.of_tokens(tokens, self.options(other), segmenter=self.segmenter)

    # --- keeping ---
    def figure(self, directory: str | Path = FIGURES, name: str | None = None) -> Figure:
        """Save what is shown as PNG, PDF and the drawn numbers as CSV (`<name>_heads`, too, where every head is shown).

        Args:
            directory: made if it is not there.
            name: of the files; by default the chosen words.

        Raises:
            GroundingError: nothing is chosen.
        """
        return save_shown(self, directory, name)

    def save_html(self, path: str | Path = "explorer.html", *, heads: bool = False) -> Path:
        """Write all answers as one page that needs neither kernel nor model nor network.

        Args:
            heads: keep every head's map of every phrase, as fine as fits in some megabytes.

        Raises:
            GroundingError: no answers; or heads are asked for and an answer has no maps of single ones.
        """
        return save_html(self._pages(heads), path)

    def iframe(self, *, heads: bool = False, height: int = 760) -> str:
        """The same page as a frame for `IPython.display.HTML`, which stays where a notebook is exported."""
        return explorer_iframe(self._pages(heads), height=height)

    # --- behind it ---
    def _pages(self, heads: bool) -> list[dict[str, Any]]:
        if not heads:
            return [data for _, data in self._told]
        return [data | {"galleries": phrase_galleries(told.grounding)} for told, data in self._told]

    def _load(self, model: LMM | str | Path) -> LMM:
        return model if isinstance(model, LMM) else load_lmm(model, **self._loading)

    def _model(self) -> LMM:
        if self.lmm is None:
            raise GroundingError("this explorer looks at records and has no model to ask; make one with model=...")
        return self.lmm

    def _answered(self, image: Any, prompt: str | None, **asked: Any) -> Grounding:
        lmm, prompt = self._model(), self.panel.prompt if prompt is None else prompt
        with self._busy(prompt):
            picture = load_image(self.panel.picture if image is None else image)
            parts = {"lmm": lmm, "segmenter": self.segmenter, "nlp": self.nlp, "options": self._options}
            found = attend_and_segment(picture, prompt, **parts, **asked)
        self._add(found, picture, prompt, prompt, lmm)
        self.show(len(self._told) - 1)
        return found

    def _again(self, told: Told, options: GroundOptions, lmm: LMM | None, *, reread: bool) -> Grounding:
        """The same answer grounded otherwise, from what was read of it or, with `reread`, from what a model reads."""
        with self._busy(told.prompt):
            self.view.written = told.grounding.generation.text
            generation = self._reread(told, options, lmm) if reread else told.grounding.generation
            return ground(generation, told.image, segmenter=self.segmenter, nlp=self.nlp, options=options)

    def _reread(self, told: Told, options: GroundOptions, lmm: LMM | None) -> Any:
        """The same answer, read again by a model: its tokens where it is the model that wrote them, else its text."""
        if lmm is None:
            raise GroundingError("other rows of attention need the model; this explorer looks at records alone")
        generation = told.grounding.generation
        answer = generation.token_ids if told.lmm is lmm else generation.text
        return lmm.replay(told.image, told.prompt, answer, **options.capture(given=True))

    def _add(self, grounding: Grounding, image: Any, prompt: str, title: str, lmm: LMM | None) -> None:
        self._count += 1
        told = Told(grounding, image, prompt, f"{self._count}. {title}", lmm)
        self._told = [*self._told, (told, told.data())][-self._history :]
        self._send()

    def _send(self) -> None:
        """All answers to the page, which forgets what was computed for those that stood in their places."""
        with self.view.hold_sync():
            self.view.head_maps, self.view.gallery, self.view.mask = {}, {}, {}
            self.view.answers = [data for _, data in self._told]

    def _place(self, told: Told) -> int:
        return next((i for i, (each, _) in enumerate(self._told) if each is told), 0)

    def _set(self, **traits: Any) -> None:
        """Several traits change together, and what follows from them is computed once."""
        self._following = False
        try:
            with self.view.hold_sync():
                for name, value in traits.items():
                    setattr(self.view, name, value)
        finally:
            self._following = True
        self._follow()

    def _follow(self, change: Any = None) -> None:
        if self._following and self._told and not self.view.busy:
            self._guarded(self._compute)

    def _compute(self) -> None:
        told, options = self.told, self.options()
        if options.row != told.grounding.options.row:
            self._read_rows(told, options.row)
        follow(self.view, self.told, self.options(), segmenter=self.segmenter)

    def _read_rows(self, told: Told, row: str) -> None:
        """The shown answer with the maps of other rows, in its place."""
        options = replace(told.grounding.options, row=row)
        other = replace(told, grounding=self._again(told, options, told.lmm, reread=True))
        self._told[self._place(told)] = (other, other.data())
        self._send()

    @contextmanager
    def _busy(self, prompt: str) -> Iterator[None]:
        self.view.status, self.view.written, self.view.asked, self.view.busy = "", "", prompt, True
        try:
            yield
        finally:
            self.view.busy = False

    def _guarded(self, act: Callable[[], object]) -> None:
        """An error is told in the page, and nothing that is there is lost."""
        try:
            act()
        except GroundingError as error:
            self.view.status = str(error)
        else:
            self.view.status = ""

    def _writing(self) -> Callable[[str], None]:
        """Tells the page what is written so far, some times a second."""
        last = 0.0

        def tell(text: str) -> None:
            nonlocal last
            if time.monotonic() - last > SECONDS:
                self.view.written, last = text, time.monotonic()

        return tell
