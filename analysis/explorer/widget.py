"""The explorer's widget: what is shown, as traits that a browser and code read and set alike."""

from __future__ import annotations

import anywidget
import traitlets

from analysis.explorer.data import known_options
from analysis.explorer.page import asset, script_of

_KNOWN = known_options()
_PAPER = _KNOWN["paper"]


class ExplorerView(anywidget.AnyWidget):
    """Answers with their maps, and what of them is chosen.

    Traits:
        answers: of `analysis.explorer.data.explorer_data`.
        answer, beside: places of the shown answer, and of the one shown at its side (-1: none).
        tokens: the chosen output tokens; place: (x, y) in pixels of the original, or nothing.
        normalization, aggregation, view, remove_corners, layers, heads, row, sam_prompt, mask_choice: fields of
            `core.GroundOptions`; an empty view is the last one, an empty list means all.
        opacity, masks, show_gallery: of the map; whether masks and the maps of all heads are drawn.
        busy, asked, written, status: while an answer is written: what was asked, and what is written so far; an error.
        live, can, known: a kernel computes what is asked for; the options that it can change; all values they take.
        head_maps, gallery, mask: what the kernel computed, each with the state that it was computed `for`.
    """

    _esm = script_of("widget.js")
    _css = asset("explorer.css")

    answers = traitlets.List().tag(sync=True)
    answer = traitlets.Int(0).tag(sync=True)
    beside = traitlets.Int(-1).tag(sync=True)
    tokens = traitlets.List(traitlets.Int()).tag(sync=True)
    place = traitlets.List().tag(sync=True)
    normalization = traitlets.Enum(_KNOWN["choices"]["normalization"], _PAPER["normalization"]).tag(sync=True)
    aggregation = traitlets.Enum(_KNOWN["choices"]["aggregation"], _PAPER["aggregation"]).tag(sync=True)
    row = traitlets.Enum(_KNOWN["choices"]["row"], _PAPER["row"]).tag(sync=True)
    sam_prompt = traitlets.Enum(_KNOWN["choices"]["sam_prompt"], _PAPER["sam_prompt"]).tag(sync=True)
    mask_choice = traitlets.Enum(_KNOWN["choices"]["mask_choice"], _PAPER["mask_choice"]).tag(sync=True)
    view = traitlets.Unicode("").tag(sync=True)
    remove_corners = traitlets.Bool(False).tag(sync=True)
    layers = traitlets.List(traitlets.Int()).tag(sync=True)
    heads = traitlets.List(traitlets.Int()).tag(sync=True)
    opacity = traitlets.Float(0.65, min=0.0, max=1.0).tag(sync=True)
    masks = traitlets.Bool(True).tag(sync=True)
    show_gallery = traitlets.Bool(False).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    asked = traitlets.Unicode("").tag(sync=True)
    written = traitlets.Unicode("").tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    live = traitlets.Bool(True).tag(sync=True)
    can = traitlets.List(traitlets.Unicode()).tag(sync=True)
    known = traitlets.Dict(_KNOWN).tag(sync=True)
    head_maps = traitlets.Dict().tag(sync=True)
    gallery = traitlets.Dict().tag(sync=True)
    mask = traitlets.Dict().tag(sync=True)
