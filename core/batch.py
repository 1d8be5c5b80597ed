"""Images and prompts as one left-padded batch of model inputs, and the same batch with answers appended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.errors import GroundingError
from core.families.base import Family, Prepared
from core.geometry import View
from core.images import load_image
from core.prompts import asked_gap, begins_with_bos, space_images


@dataclass(frozen=True, eq=False)
class Batch:
    """What the processor made of B images with their prompts.

    Attributes:
        inputs: keyword arguments of the model; `input_ids` is int64 [B, S], padded on the left.
        sizes: per sample, (H, W) of each of its original images.
        prompt_ids: per sample, int64 [s] without padding.
        columns: per sample, int64 [k], positions of the visual tokens along S.
        views: per sample.
        many: whether the caller gave lists.
    """

    inputs: dict[str, Tensor]
    sizes: tuple[tuple[tuple[int, int], ...], ...]
    prompt_ids: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    views: tuple[tuple[View, ...], ...]
    many: bool

    @property
    def length(self) -> int:
        """S, the padded length of the prompts."""
        return self.inputs["input_ids"].shape[1]

    @property
    def mask(self) -> Tensor:
        """bool [B, S]; False at padding."""
        return self.inputs["attention_mask"].bool()


def pair(image: Any, prompt: Any) -> tuple[list[list[Any]], list[str], bool]:
    """The images of each prompt, the prompts, and whether the caller gave a list of either.

    A list of images is a batch, one image for each prompt; where one of them is a list itself, its images stand in one
    prompt.

    Raises:
        GroundingError: two lists of different lengths, or a prompt that is not a text.
    """
    many = isinstance(image, list | tuple) or isinstance(prompt, list | tuple)
    images = list(image) if isinstance(image, list | tuple) else [image]
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    images = images * len(prompts) if len(images) == 1 else images
    prompts = prompts * len(images) if len(prompts) == 1 else prompts
    if len(images) != len(prompts):
        raise GroundingError(
            f"{len(images)} images and {len(prompts)} prompts; give one prompt for each, or one for all"
        )
    for text in prompts:
        if not isinstance(text, str):
            raise GroundingError(f"a prompt is a text, got {type(text).__name__}")
    groups = [list(each) if isinstance(each, list | tuple) else [each] for each in images]
    if not all(groups):
        raise GroundingError("a prompt's list of images is empty; give each prompt at least one image")
    return groups, prompts, many


def encode(family: Family, images: list[Any], texts: list[str], *, many: bool) -> Batch:
    """Process rendered prompts (each with one placeholder for each of its images) and their images: one, or a list.

    Text behind a picture is tokenised as the checkpoint says it was trained, see `core.prompts.asked_gap`. A text that
    begins with the first token is tokenised as it is; transformers does the same with chat templates that write it.

    Raises:
        GroundingError: an unreadable image, visual tokens that the family's geometry does not explain, or prompts of
            which some begin with the first token and some do not.
    """
    groups = [each if isinstance(each, list | tuple) else [each] for each in images]
    prepared = tuple(tuple(family.prepare(load_image(image)) for image in group) for group in groups)
    tokenizer = family.processor.tokenizer
    if len(texts) > 1 and tokenizer.pad_token_id is None:
        raise GroundingError(
            "this tokenizer has no padding token; give it one (tokenizer.pad_token) or one image at a time"
        )
    gap = asked_gap(tokenizer)
    begun = {begins_with_bos(text, tokenizer) for text in texts}
    if len(begun) > 1:
        raise GroundingError(f"only some prompts begin with {tokenizer.bos_token!r}; write it into all or none")
    inputs = _processed(family, prepared, texts, gap=gap, special=begun == {False})
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    columns = [((row == family.image_token_id) & real).nonzero()[:, 0] for row, real in zip(ids, mask, strict=True)]
    if all(len(group) == 1 for group in prepared):
        views = tuple(family.views(inputs, i, len(columns[i]), prepared[i][0]) for i in range(len(texts)))
    else:
        views = tuple(_views_of(family, *each) for each in zip(prepared, map(len, columns), strict=True))
    prompt_ids = tuple(row[real].clone() for row, real in zip(ids, mask, strict=True))
    sizes = tuple(tuple(one.size for one in group) for group in prepared)
    return Batch(_to_model(inputs, family), sizes, prompt_ids, tuple(columns), views, many)


def _processed(
    family: Family, prepared: Sequence[Sequence[Prepared]], texts: list[str], *, gap: str, special: bool
) -> dict[str, Tensor]:
    """What the processor makes of prompts with their images."""
    tokenizer = family.processor.tokenizer
    inputs = family.processor(
        images=[
            [one.image for one in group] for group in prepared
        ],  # some processors take a flat list for one prompt's
        text=[space_images(text, tokenizer, family.placeholder, gap=gap) for text in texts],
        add_special_tokens=special,
        **family.processor_options,
        padding=len(texts) > 1,
        padding_side="left",
        return_tensors="pt",
    )
    inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and name != "labels"}
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    return inputs


def _views_of(family: Family, group: Sequence[Prepared], count: int) -> tuple[View, ...]:
    """The views of a prompt's images, each as the family explains it alone, one after the other along the k positions.

    Raises:
        GroundingError: together the images hold another number of visual tokens than alone.
    """
    views, start = [], 0
    text = family.image_block.format(placeholder=family.placeholder)
    for number, one in enumerate(group):
        known = family.among_others(one) if len(group) > 1 else None
        if known is None:
            inputs = _processed(family, [[one]], [text], gap="", special=True)
            own = int((inputs["input_ids"][0] == family.image_token_id).sum())
            known = own, family.views(inputs, 0, own, one)
        views += [replace(view, index=view.index + start, image=number) for view in known[1]]
        start += known[0]
    if start != count:
        raise GroundingError(
            f"{len(group)} images in one prompt hold {count} visual tokens, alone they hold {start}; this model "
            "encodes several images in another way than one, which its adapter does not know: give them one at a time"
        )
    return tuple(views)


def extend(batch: Batch, answers: list[Tensor], family: Family) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """The batch with an answer int64 [t] after each prompt, padded on the left again, so that all answers end together.

    Returns:
        (inputs, columns): keyword arguments of one forward, and the visual positions in it.
    """
    mask = batch.mask.cpu()
    starts = (batch.length - mask.sum(dim=1)).tolist()
    total = max(len(prompt) + len(answer) for prompt, answer in zip(batch.prompt_ids, answers, strict=True))
    inputs = dict(batch.inputs)
    fills = {"input_ids": None} | {name: fill for name, fill in family.answer_fill.items() if name in inputs}
    for name, fill in fills.items():
        old = batch.inputs[name].cpu()
        padding = family.processor.tokenizer.pad_token_id or 0 if name == "input_ids" else 0
        new = torch.full((len(answers), total), padding, dtype=old.dtype)
        for i, answer in enumerate(answers):
            tail = answer if fill is None else torch.full_like(answer, fill)
            row = torch.cat([old[i, starts[i] :], tail.to(old.dtype)])
            new[i, total - len(row) :] = row
        inputs[name] = new.to(batch.inputs[name].device)
    if family.needs_position_ids:
        positions = inputs["attention_mask"].long().cumsum(-1) - 1
        inputs["position_ids"] = positions.clamp(min=0)
    shifts = [total - len(p) - len(a) for p, a in zip(batch.prompt_ids, answers, strict=True)]
    columns = tuple(c - start + shift for c, start, shift in zip(batch.columns, starts, shifts, strict=True))
    return inputs, columns


def _to_model(inputs: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    device, dtype = family.model.device, family.model.dtype
    return {n: v.to(device, dtype) if v.is_floating_point() else v.to(device) for n, v in inputs.items()}
