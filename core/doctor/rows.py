"""Lines about attention rows: that they are attention, eager's own, of the right position, and the same in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from core.doctor.findings import Finding
from core.doctor.subject import Subject
from core.doctor.tolerances import row_error, tolerance
from core.generation import Generation

BLIND = 0.5  # differences that large say nothing: half of the scores' spread, half of a map


def check_attention(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """Rows are shares of one, and no row sees what is said after it."""
    told("an answer, and the beginning of it")
    rows = subject.said.attention_per_head
    sums, slack = rows.sum(-1), 1 + 1e-3
    problems = []
    if not rows.isfinite().all():
        problems.append("some values are not finite")
    elif (rows < 0).any() or (sums > slack).any():
        problems.append(f"values from {float(rows.min()):.3g}, sums up to {float(sums.max()):.4g}")
    elif not (sums.mean((1, 2)) > 0).all():
        problems.append("some tokens do not look at the image at all")
    half = len(subject.replayed.token_ids) // 2
    start = subject.replay(subject.said.token_ids[:half])
    ahead = row_error(start.attention, subject.replayed.attention[:half])
    status, note = _verdict(subject, rows=ahead)
    seen = "; ".join(problems) or f"shares of one, none negative; the image gets {float(sums.mean()):.1%} on average"
    seen += f"; taking later words away changes a row by {ahead:.1g} of its sum{note}"
    yield Finding("rows are attention", "fail" if problems else status, seen)


def check_eager(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """The captured rows are those that transformers' own eager attention computes."""
    told("transformers' own eager attention")
    reference, found = subject.reference, subject.said_eagerly
    limit = tolerance(subject.model.dtype).same
    count = len(found.token_ids)
    if not torch.equal(reference.sequence[reference.prompt :][:count], found.token_ids):
        yield Finding("rows equal eager's", "fail", "the model says something else while it is captured")
        return
    shift = _shift(subject, found)
    expected = reference.shifted(count, shift)
    error = row_error(found.attention, expected.mean((1, 2)))
    heads = float((found.attention_per_head - expected).abs().max())
    seen = f"mean map to {error:.1g} of its sum (at most {limit:g}), single heads to {heads:.1g}"
    seen += f"; compared {shift:+d} rows off, see the next line" if shift else ""
    yield Finding("rows equal eager's", "pass" if error <= limit else "fail", seen)


def _shift(subject: Subject, found: Generation) -> int:
    """By how many positions the captured rows lie behind the predicting ones, judged by eager's."""
    count = len(found.token_ids)
    errors = {
        shift: row_error(found.attention, subject.reference.shifted(count, shift).mean((1, 2))) for shift in (0, -1, 1)
    }
    return min(errors, key=errors.__getitem__)


def check_row_convention(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """A token's row is that of the position which predicts it: the own row of the token before."""
    told("the own rows of the answer's tokens")
    found, replayed = subject.said_eagerly, subject.replayed
    own = subject.replay(subject.said.token_ids, row="self")
    before = row_error(replayed.attention[1:], own.attention[:-1])
    shift = _shift(subject, found)
    places = {0: "the predicting position", 1: "the token itself", -1: "one position too early"}
    seen = f"generated rows are those of {places[shift]}; a replayed row is the one before's own to {before:.1g}"
    right = shift == 0 and before <= tolerance(subject.model.dtype).same
    yield Finding("row of a token", "pass" if right else "fail", seen)


def check_replay(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """A teacher-forced pass would have said the same, and has the same maps."""
    told("the answer, replayed")
    said = subject.said
    error = row_error(subject.replayed.attention, said.attention)
    gap, choice = _choice(_sayable(subject, subject.logits()), said.token_ids)
    status, note = _verdict(subject, scores=gap, rows=error)
    seen = (
        f"the replay's scores choose {choice} generated tokens{_apart(gap, status)}; maps to {error:.1g} of their sum"
    )
    yield Finding("replay = generate", status, seen + note)


def check_kernels(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """The attention kernel that the model runs agrees with eager attention."""
    loaded = subject.family.text_model.config._attn_implementation
    told(f"scores with {loaded} and with eager attention")
    if loaded == "eager":
        yield Finding("fast attention = eager", "pass", "the model runs eager attention itself")
        return
    fast, eager = subject.logits(), subject.logits(implementation="eager")
    apart = float((fast - eager).abs().max())
    share = apart / max(float(eager.std()), 1e-12)
    gap, choice = _choice(_sayable(subject, eager), _sayable(subject, fast).argmax(-1))
    status, note = _verdict(subject, scores=max(share, gap))
    seen = (
        f"scores lie {apart:.1g} apart at most ({share:.1g} of their spread); eager chooses {choice} tokens of {loaded}"
    )
    yield Finding("fast attention = eager", status, seen + _apart(gap, status) + note)


def check_batch(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """Two pictures and prompts of different sizes, padded together, come out as one by one."""
    told("two pictures at once")
    if subject.family.processor.tokenizer.pad_token_id is None:
        yield Finding("batch = one by one", "unknown", "this tokenizer has no padding token; use batches of one")
        return
    together = subject.generate(list(subject.pictures), list(subject.texts))
    alone = [subject.said, subject.generate(subject.pictures[1], subject.texts[1])]
    flipped, gap, worst = [], 0.0, 0.0
    for number, (found, expected) in enumerate(zip(together, alone, strict=True)):
        same = _agreeing(found.token_ids, expected.token_ids)
        worst = max(worst, row_error(found.attention[: same + 1], expected.attention[: same + 1]))
        if same < len(expected.token_ids):
            scores = subject.scores(subject.pictures[number], subject.texts[number], expected.token_ids)[same]
            gap = max(gap, _gap(scores, int(expected.token_ids[same]), int(found.token_ids[same])))
            flipped.append(f"token {same} of picture {number}")
    status, note = _verdict(subject, scores=gap, rows=worst)
    seen = f"other words from {' and '.join(flipped)} on{_apart(gap, status)}" if flipped else "the same tokens"
    yield Finding("batch = one by one", status, f"{seen}; maps to {worst:.1g} of their sum{note}")


def _verdict(subject: Subject, *, scores: float = 0.0, rows: float = 0.0) -> tuple[str, str]:
    """Status of differences between two ways of computing the same, and what has to be said of it.

    Args:
        scores: difference of scores, as a share of their standard deviation.
        rows: relative difference of rows.
    """
    dtype = subject.model.dtype
    usual = tolerance(dtype)
    if scores <= usual.logits and rows <= usual.other:
        return "pass", ""
    limits = subject.limits
    allowed = f" (at most {limits.logits:.2g} of the scores' spread, {limits.other:.2g} of the maps' sum)"
    if not (scores <= limits.logits and rows <= limits.other):
        return "fail", allowed
    if max(limits.logits, limits.other) > BLIND:
        name = str(dtype).removeprefix("torch.")
        return "unknown", f"; a rounding of the decoder's inputs in {name} changes as much: examine it in float32"
    return "pass", f"; no more than a few roundings do in this model{allowed}"


def _sayable(subject: Subject, scores: Tensor) -> Tensor:
    """Scores [t, V] without the tokens that the answers were not allowed to have."""
    scores = scores.clone()
    scores[:, [token for token in subject.silenced if token < scores.shape[1]]] = -torch.inf
    return scores


def _choice(scores: Tensor, ids: Tensor) -> tuple[float, str]:
    """How far the ids lie below the ones that scores [t, V] choose, of the scores' spread; and that in words."""
    wrong = (scores.argmax(-1) != ids).nonzero()[:, 0].tolist()
    if not wrong:
        return 0.0, f"all {len(ids)}"
    gap = max(_gap(scores[i], int(scores[i].argmax()), int(ids[i])) for i in wrong)
    return gap, f"{len(ids) - len(wrong)} of {len(ids)}"


def _apart(gap: float, status: str) -> str:
    """How far apart the scores of tokens lie that were chosen differently; near enough, that is a tie."""
    if not gap:
        return ""
    tie = "a floating-point tie: " if status == "pass" else ""
    return f" ({tie}the scores of the other tokens lie {gap:.1g} of all scores' spread apart)"


def _gap(scores: Tensor, one: int, other: int) -> float:
    """How far apart two tokens' scores lie, as a share of the standard deviation of all."""
    finite = scores[scores.isfinite()]
    return float((scores[one] - scores[other]).abs() / finite.std().clamp(min=1e-12))


def _agreeing(found: Tensor, expected: Tensor) -> int:
    """How many tokens two answers have in common from the start."""
    count = min(len(found), len(expected))
    different = (found[:count] != expected[:count]).nonzero()[:, 0]
    return int(different[0]) if len(different) else count
