"""All lines in their order, one after another, each with what its failure means."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.doctor.findings import Examination, Finding
from core.doctor.places import check_places
from core.doctor.rows import (
    check_attention,
    check_batch,
    check_eager,
    check_kernels,
    check_replay,
    check_row_convention,
)
from core.doctor.subject import MissingEvidence, Subject
from core.doctor.tokens import check_cells, check_characters, check_first_token, check_grids, check_span
from core.errors import GroundingError
from core.lmm import LMM

Check = Callable[[Subject, Callable[[str], None]], Iterator[Finding]]


@dataclass(frozen=True)
class Line:
    """One check: what runs, which lines must not have failed before it, and what its own failure means."""

    check: Check
    meaning: str
    after: tuple[str, ...] = ()


LINES: dict[str, Line] = {
    "visual positions": Line(
        check_span,
        "Maps would be read at positions that hold no image. Correct image_token_id of the adapter: it is the id "
        "whose embeddings the model replaces, which is not always the processor's image token.",
    ),
    "grids": Line(
        check_grids,
        "Maps cannot be laid on the image. Correct the index of the views that the adapter makes: each cell is the "
        "place of one token among the k visual tokens, counted from 0.",
    ),
    "cells see the picture": Line(
        check_cells,
        "Some cells are newline, separator or class tokens; rows behind them are out of step. Leave them out of the "
        "view's index (Family.grid has row_length for rows that end in a token of their own).",
        after=("grids",),
    ),
    "cell to pixel": Line(
        check_places,
        "Points and masks land elsewhere than the model looks. Correct the view's index (the order of the tokens) or "
        "its box (which pixels of the original the grid covers: crop, padding, resize).",
        after=("grids", "cells see the picture"),
    ),
    "first token": Line(
        check_first_token,
        "The model is asked with a sequence that it was not trained on: answers and maps are of another prompt. Look "
        "at the chat template and at the tokenizer's add_bos_token, or pass template=.",
    ),
    "prompt and characters": Line(
        check_characters,
        "Phrases would be joined to other tokens' maps. Look at the tokenizer's decoding (core.spans) and at inputs "
        "that change between encoding and generation.",
    ),
    "replay = generate": Line(
        check_replay,
        "Given answers are grounded with other inputs than generated ones. Correct what the adapter appends to the "
        "prompt's inputs (answer_fill for every per-token input, needs_position_ids).",
    ),
    "rows are attention": Line(
        check_attention,
        "What was recorded is not a softmax over all keys, or sees the future. Do not use the maps; look at the "
        "attention mask in replays (Family.answer_fill) and at attention that the decoder does not do by "
        "transformers' interface.",
        after=("replay = generate",),
    ),
    "rows equal eager's": Line(
        check_eager,
        "The maps are not this model's attention. Its decoder has something that core.capture does not know (scaling, "
        "soft cap, window, attention sinks): do not use the maps, and report the model.",
    ),
    "row of a token": Line(
        check_row_convention,
        "Every map belongs to the neighbouring token, so phrases get the maps of other words. Look at which rows "
        "core.lmm reads; equation 3 and head choices of published presets also depend on it.",
    ),
    "fast attention = eager": Line(
        check_kernels,
        "The fast kernel computes another model than eager attention does (a soft cap that it leaves out, a mask that "
        "it does not get). Load the model with attn_implementation='eager', or report the kernel.",
        after=("replay = generate",),
    ),
    "batch = one by one": Line(
        check_batch,
        "Answers or maps depend on what else is in the batch. Use batch_size=1, and look at padding: the processor "
        "must pad on the left, and every per-token input along with it.",
    ),
}
UNKNOWN = "Nothing is proven here, and nothing is contradicted: look at the maps of pictures that you know."
SKIPPED = "Correct the failed lines above first."


def examine(
    lmm: LMM, *, image: Any = "embedded", lines: Sequence[str] = tuple(LINES), progress: bool = True
) -> Examination:
    """Audit a model: that its maps are its own attention, of the right tokens, at the right pixels.

    Takes some twenty short passes of the decoder and some thirty of the visual tower. Eager attention is run on one
    picture and a few tokens, and of each layer's square only the rows needed are kept.

    Args:
        lmm: the model, loaded as it will be used (dtype, device, geometry, template).
        image: the picture of the conversations, anything `load_image` opens; the squares of "cell to pixel" are drawn
            on pictures of their own. A smaller one needs less memory.
        lines: names in `LINES` of those to check, all by default.
        progress: print each check as it begins.

    Raises:
        GroundingError: a line that there is not, or a picture that cannot be opened.

    Returns:
        All findings; `print` shows them as a table. Nothing is raised for a model that fails.

    >>> from core import load_lmm
    >>> from core.doctor import examine
    >>> examine(load_lmm("embedded", device="cpu"), progress=False).passed
    True
    """
    if unknown := sorted(set(lines) - set(LINES)):
        raise GroundingError(f"there is no line {', '.join(unknown)}; the lines are {', '.join(LINES)}")
    subject = Subject(lmm, image)
    findings: list[Finding] = []
    for name, line in LINES.items():
        if name not in lines:
            continue
        failed = {each.line.split(":")[0] for each in findings if each.status in ("fail", "skipped")}
        blocked = [before for before in line.after if before in failed]
        if blocked:
            findings.append(Finding(name, "skipped", f"rests on {' and '.join(blocked)}", SKIPPED))
            continue
        findings += [_explained(each, line) for each in _run(name, line, subject, progress)]
    model = {
        "name_or_path": lmm.name,
        "family": lmm.model.config.model_type,
        "dtype": str(lmm.model.dtype).removeprefix("torch."),
        "device": str(lmm.device),
        "attention": lmm.family.text_model.config._attn_implementation,
        "geometry": lmm.family.geometry,
    }
    return Examination(model, tuple(findings), tuple(subject.probes))


def _run(name: str, line: Line, subject: Subject, progress: bool) -> Iterable[Finding]:
    def told(what: str) -> None:
        if progress:
            print(f"checking {name}: {what}", file=sys.stderr, flush=True)

    try:
        return list(line.check(subject, told))
    except MissingEvidence as error:
        return [Finding(name, "skipped", str(error))]
    except Exception as error:  # an adapter or model may throw anything: for a doctor that is a finding
        return [Finding(name, "fail", f"stopped by {type(error).__name__}: {_short(error)}")]


def _explained(finding: Finding, line: Line) -> Finding:
    meaning = {"fail": line.meaning, "unknown": UNKNOWN, "skipped": SKIPPED}.get(finding.status, "")
    return replace(finding, meaning=meaning)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or "no message"
