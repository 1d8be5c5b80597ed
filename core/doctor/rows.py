"""Lines about attention rows: that they are attention, eager's own, of the right position, and the same in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from core.doctor.findings import Finding
from core.doctor.subject import Subject
from core.doctor.tolerances import row_error, tolerance
from core.generation import Generation


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
    if not ahead <= tolerance(subject.model.dtype).other:
        problems.append(f"rows change by {ahead:.1%} when later words are taken away")
    share = f"{float(sums.mean()):.1%}"
    seen = f"shares of one, none negative; the image gets {share} on average; later words change a row by {ahead:.1g}"
    yield Finding("rows are attention", "fail" if problems else "pass", "; ".join(problems) or seen)


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
    limits, said = tolerance(subject.model.dtype), subject.said
    error = row_error(subject.replayed.attention, said.attention)
    agreed, choice = _choice(_sayable(subject, subject.logits()), said.token_ids, limits.logits)
    seen = f"the replay's scores choose {choice} that were generated; maps to {error:.1g} of their sum"
    seen += "" if error <= limits.other else f" (at most {limits.other:g})"
    yield Finding("replay = generate", "pass" if agreed and error <= limits.other else "fail", seen)


def _sayable(subject: Subject, scores: Tensor) -> Tensor:
    """Scores [t, V] without the tokens that the answers were not allowed to have."""
    scores = scores.clone()
    scores[:, [token for token in subject.silenced if token < scores.shape[1]]] = -torch.inf
    return scores


def _choice(scores: Tensor, ids: Tensor, limit: float) -> tuple[bool, str]:
    """Whether scores [t, V] choose the ids, or others in a floating-point tie with them only; and that in words."""
    wrong = (scores.argmax(-1) != ids).nonzero()[:, 0].tolist()
    if not wrong:
        return True, f"all {len(ids)} tokens"
    gaps = [_gap(scores[i], int(ids[i])) for i in wrong]
    places = f"{len(ids) - len(wrong)} of {len(ids)} tokens"
    if max(gaps) <= limit:
        return True, f"{places}, and the others (first: number {wrong[0]}) but for a floating-point tie, the ones"
    return False, f"{places}, not number {wrong[0]} of those,"


def _gap(scores: Tensor, chosen: int) -> float:
    """How far below the best a token is, as a share of the scores' standard deviation."""
    finite = scores[scores.isfinite()]
    return float((finite.max() - scores[chosen]) / finite.std().clamp(min=1e-12))


def check_kernels(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """The attention kernel that the model runs agrees with eager attention."""
    loaded = subject.family.text_model.config._attn_implementation
    told(f"scores with {loaded} and with eager attention")
    if loaded == "eager":
        yield Finding("fast attention = eager", "pass", "the model runs eager attention itself")
        return
    limit = tolerance(subject.model.dtype).logits
    fast, eager = subject.logits(), subject.logits(implementation="eager")
    apart = float((fast - eager).abs().max())
    share = apart / max(float(eager.std()), 1e-12)
    agreed, choice = _choice(_sayable(subject, eager), _sayable(subject, fast).argmax(-1), limit)
    seen = (
        f"scores of {loaded} and eager lie {apart:.1g} apart at most ({share:.1g} of their spread, at most {limit:g}); "
    )
    seen += f"eager chooses {choice} that {loaded} chooses"
    yield Finding("fast attention = eager", "pass" if agreed and share <= limit else "fail", seen)


def check_batch(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """Two pictures and prompts of different sizes, padded together, come out as one by one."""
    told("two pictures at once")
    if subject.family.processor.tokenizer.pad_token_id is None:
        yield Finding("batch = one by one", "unknown", "this tokenizer has no padding token; use batches of one")
        return
    limits = tolerance(subject.model.dtype)
    together = subject.generate(list(subject.pictures), list(subject.texts))
    alone = [subject.said, subject.generate(subject.pictures[1], subject.texts[1])]
    ties, problems, worst = [], [], 0.0
    for number, (found, expected) in enumerate(zip(together, alone, strict=True)):
        same = _agreeing(found.token_ids, expected.token_ids)
        worst = max(worst, row_error(found.attention[: same + 1], expected.attention[: same + 1]))
        if same < len(expected.token_ids):
            text, picture = subject.texts[number], subject.pictures[number]
            gap = _gap_at(subject, picture, text, expected.token_ids, int(found.token_ids[same]), same)
            told_where = f"picture {number}, token {same}"
            (ties if gap <= limits.logits else problems).append(told_where)
    if not worst <= limits.other:
        problems.append(f"the maps differ by {worst:.1%} of their sum (at most {limits.other:.1%})")
    seen = f"the same tokens; maps to {worst:.1g} of their sum"
    if ties:
        seen = f"a floating-point tie flipped at {', '.join(ties)}; maps up to there to {worst:.1g} of their sum"
    seen = f"differs: {'; '.join(problems)}" if problems else seen
    yield Finding("batch = one by one", "fail" if problems else "pass", seen)


def _agreeing(found: Tensor, expected: Tensor) -> int:
    """How many tokens two answers have in common from the start."""
    count = min(len(found), len(expected))
    different = (found[:count] != expected[:count]).nonzero()[:, 0]
    return int(different[0]) if len(different) else count


def _gap_at(subject: Subject, picture: object, text: str, ids: Tensor, other: int, at: int) -> float:
    """How far apart the scores of the token that was said alone and of the batch's lie, of the scores' spread."""
    scores = subject.scores(picture, text, ids)[at]
    spread = scores[scores.isfinite()].std().clamp(min=1e-12)
    return float((scores[int(ids[at])] - scores[other]).abs() / spread)
