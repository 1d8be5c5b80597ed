"""Ground answers that something else wrote: replayed with open weights, whose attention gives the maps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.answer_files import GivenAnswer, read_answers
from core.decoding import answer_ids
from core.errors import GroundingError
from core.run import RunSummary, ground_dataset

if TYPE_CHECKING:
    from core.lmm import LMM


def ground_answers(
    answers: str | Path | Iterable[Any],
    *,
    lmm: LMM,
    prompt: str | None = None,
    images: Any = None,
    requests: str | Path | None = None,
    **run: Any,
) -> RunSummary:
    """Ground answers of any server, engine or system, resumably.

    The answer is whatever was given; the maps, points and masks are those of the open weights beside it, which read
    the answer as if they had written it. Where the engine runs the same weights (a vLLM server, say) they are the
    model's own up to its kernels' rounding; where another model wrote the answer they show where *these* weights look
    when they hear it.

    Args:
        answers: anything `core.read_answers` reads, or its result.
        lmm: the open weights.
        prompt: what was asked, for answers whose file does not say.
        images, requests: as in `core.read_answers`.
        **run: as in `core.ground_dataset` (`segmenter`, `nlp`, `store`, `batch_size`, `options`, ...).

    Raises:
        GroundingError: as `core.read_answers` and `core.ground_dataset` do, or an answer without a prompt.

    >>> import tempfile
    >>> from core import RunStore, ground_answers, load_lmm, load_nlp
    >>> parts = {"lmm": load_lmm("embedded", device="cpu"), "segmenter": None, "nlp": load_nlp("embedded")}
    >>> store = RunStore(tempfile.mkdtemp(), {"what": "an example"})
    >>> said = [{"image": "embedded", "prompt": "What is there?", "answer": "A blue moon."}]
    >>> ground_answers(said, store=store, progress=False, **parts).grounded, store.read("embedded").phrases[0].text
    (('embedded',), 'A blue moon')
    """
    given = list(answers) if not isinstance(answers, str | Path) else []
    if not given or not all(isinstance(each, GivenAnswer) for each in given):
        given = read_answers(given or answers, images=images, requests=requests)
    return ground_dataset(
        [(each.id, each.image) for each in given],
        asked_prompts(given, prompt),
        lmm=lmm,
        answers={each.id: replayable(each, lmm) for each in given},
        **run,
    )


def asked_prompts(given: Iterable[GivenAnswer], prompt: str | None = None) -> dict[str, str]:
    """The question of each answer, by its id.

    Raises:
        GroundingError: an answer whose file does not say what was asked, and no prompt for it.
    """
    prompts = {}
    for each in given:
        asked = prompt if each.prompt is None else each.prompt
        if asked is None:
            raise GroundingError(
                f"the answer {each.id!r} does not say what was asked, which its maps depend on; give prompt="
            )
        prompts[each.id] = asked
    return prompts


def replayable(given: GivenAnswer, lmm: LMM) -> str | list[int]:
    """The answer for `LMM.replay`: its text, or the ids of one that a limit cut, which have no end of sequence."""
    if given.complete:
        return given.answer
    return answer_ids(given.answer, lmm.family, end_of_sequence=False).tolist()
