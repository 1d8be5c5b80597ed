"""Lines about tokens: which positions are visual, what their grids hold, the first token, the answer's characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from PIL import ImageOps
from torch import Tensor

from core.batch import encode
from core.decoding import answer_ids
from core.doctor.findings import Finding
from core.doctor.places import SIZES, inner_cells, plain_picture
from core.doctor.subject import Subject
from core.errors import GroundingError
from core.geometry import View
from core.spans import decode_with_spans

WORDS = "A red cup, ça et là: 2 × 3 cats 🐈."  # with characters that tokenizers write in several pieces
NOTHING = 1e-4  # of the median change: less, and a token did not see the picture


def check_span(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """The visual positions are those where the model itself puts something in, and miss none that sees the picture.

    Other tokens may have embeddings of their own, too (Ovis 2's indicators), but they are the same for every picture.
    """
    batch = subject.batch
    told("what the model puts at its visual positions")
    ids, entered = batch.inputs["input_ids"][0], subject.language_inputs(batch)
    other = encode(subject.family, [ImageOps.invert(subject.pictures[0])], [subject.texts[0]], many=False)
    table = subject.model.get_input_embeddings()
    known = ids.clamp(max=table.num_embeddings - 1)
    with torch.no_grad():
        words = table(known.to(table.weight.device)).float().cpu()
    scale = words.norm(dim=-1).clamp(min=1e-6)
    sees = (entered - subject.language_inputs(other)).norm(dim=-1) > NOTHING * scale
    filled = ((entered - words).norm(dim=-1) > 0.05 * scale) | sees
    ours = batch.columns[0].cpu()
    filled_here = torch.zeros_like(filled)
    filled_here[ours] = filled[ours]
    found = (sees | filled_here).nonzero()[:, 0]
    same = torch.equal(found, ours)
    seen = f"{len(ours)} positions hold the image token; the model puts features at " + (
        "exactly these" if same else f"{len(found)}, from {_ends(found)} instead of {_ends(ours)}"
    )
    yield Finding("visual positions", "pass" if same else "fail", seen)


def _ends(positions: Tensor) -> str:
    return f"{int(positions[0])} to {int(positions[-1])}" if len(positions) else "none"


def check_grids(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """Every cell of every grid is one visual token, and no token is two cells."""
    told("the grids of visual tokens")
    problems, shapes = [], []
    for size in SIZES:
        _, batch = subject.features(plain_picture(size))
        count, views = len(batch.columns[0]), batch.views[0]
        problems += _problems(views, count, size)
        used = sum(view.index.numel() for view in views)
        told_views = " and ".join(f"{view.name} {view.shape[0]} x {view.shape[1]}" for view in views)
        shapes.append(f"{told_views} of {count} tokens" + (f", {count - used} in no grid" if used < count else ""))
    status = "fail" if problems else "pass"
    yield Finding("grids", status, "; ".join(dict.fromkeys(problems or shapes)))


def _problems(views: tuple[View, ...], count: int, size: tuple[int, int]) -> list[str]:
    found = []
    for view in views:
        low, high = int(view.index.min()), int(view.index.max())
        if low < 0 or high >= count:
            found.append(f"view {view.name} counts cells from {low} to {high}, but there are {count} tokens")
        x0, y0, x1, y1 = view.box
        if x1 <= 0 or y1 <= 0 or x0 >= size[1] or y0 >= size[0]:
            found.append(f"view {view.name} covers {view.box}, nothing of a picture of {size[1]} x {size[0]} pixels")
    every = torch.cat([view.index.flatten() for view in views])
    if len(every.unique()) < len(every):
        found.append(f"{len(every) - len(every.unique())} tokens are two cells at once")
    names = [view.name for view in views]
    if len(set(names)) < len(names):
        found.append(f"two views have one name: {', '.join(names)}")
    return found


def check_cells(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """What is a cell changes when the whole picture changes; newline and separator slots do not."""
    blind, inside, others, moving = [], 0, 0, 0
    for size in SIZES:
        told(f"two pictures of {size[1]} x {size[0]} pixels")
        picture = plain_picture(size)
        before, batch = subject.features(picture)
        change = (subject.features(ImageOps.invert(picture))[0] - before).norm(dim=-1)
        sees = change > NOTHING * change.median()
        outside = torch.ones(len(change), dtype=torch.bool)
        for view in batch.views[0]:
            _refuse_outside(view, len(change))
            outside[view.index.flatten()] = False
            rows, columns = inner_cells(view, size)
            cells = sees[view.index][rows][:, columns]
            inside += cells.numel()
            blind += [view.name] * int((~cells).sum())
        others += int(outside.sum())
        moving += int((outside & sees).sum())
    seen = f"{inside - len(blind)} of {inside} cells on two pictures change with the picture"
    seen += f" ({', '.join(dict.fromkeys(blind))})" if blind else ""
    if others:
        seen += f"; of {others} tokens in no grid {moving} do"
    yield Finding("cells see the picture", "fail" if blind else "pass", seen)


def _refuse_outside(view: View, count: int) -> None:
    if int(view.index.max()) >= count or int(view.index.min()) < 0:
        raise GroundingError(f"view {view.name} has cells outside the {count} visual tokens")


def check_first_token(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """The beginning-of-sequence token stands where the checkpoint's template or processor writes it, and once."""
    told("the first token")
    tokenizer, text = subject.family.processor.tokenizer, subject.texts[0]
    bos, ids = tokenizer.bos_token_id, subject.batch.prompt_ids[0]
    if bos is None:
        yield Finding("first token", "pass", "this tokenizer has no beginning-of-sequence token")
        return
    found = int((ids == bos).sum())
    written = text.count(tokenizer.bos_token)
    expected = written or _written_by_processor(subject, bos)
    source = "the prompt's text has" if written else "the processor by itself writes"
    seen = f"the prompt holds {tokenizer.bos_token!r} {_times(found)}; {source} it {_times(expected)}"
    yield Finding("first token", "pass" if found == expected else "fail", seen)


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def _written_by_processor(subject: Subject, bos: int) -> int:
    prepared = subject.family.prepare(subject.pictures[0])
    inputs = subject.family.processor(images=[[prepared.image]], text=[subject.texts[0]], return_tensors="pt")
    return int((inputs["input_ids"] == bos).sum())


def check_characters(subject: Subject, told: Callable[[str], None]) -> Iterator[Finding]:
    """Prompt and answer are the model's own sequence, and each token's characters put the answer's text together."""
    told("a few tokens of an answer")
    said, reference = subject.said, subject.reference
    prompt = torch.equal(reference.sequence[: reference.prompt], said.prompt_ids)
    problems = [] if prompt else ["the prompt is not the one that transformers continued"]
    tokenizer = subject.family.processor.tokenizer
    given = answer_ids(WORDS, subject.family)
    answers = [(said.token_ids, said.text, said.token_spans), (given, *decode_with_spans(tokenizer, given.tolist()))]
    for ids, text, spans in answers:
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if text != whole or not _covers(spans, len(text)):
            problems.append(f"the tokens' characters do not put {whole!r} together again")
    lengths = f"{len(said.token_ids)} and {len(given)}"
    seen = f"a prompt of {reference.prompt} tokens; answers of {lengths} tokens are put together again"
    yield Finding("prompt and characters", "fail" if problems else "pass", "; ".join(problems) or seen)


def _covers(spans: Tensor, length: int) -> bool:
    """Whether spans [t, 2] run from 0 to the length in order, without a gap."""
    end = 0
    for start, stop in spans.tolist():
        if start > end or stop < start or stop > length:
            return False
        end = max(end, stop)
    return end == length
