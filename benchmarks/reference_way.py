"""Attend and segment written as plainly as the paper's released code does it, to be timed against ours.

Eager attention with `output_attentions=True`, one image at a time, the maps of all phrases upsampled to the padded
square and cropped, all three masks of every point brought to the image's size, one JSON file for each image.

Source: the released code's `aas/infer_attn.py` and `aas/gcg.py` (read, not copied), which set the segmenter's image
once for each image; `per_phrase` sets it again for each phrase.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def reference_grounding(
    image: Image.Image, text: str, *, lmm: Any, predictor: Any, nlp: Any, output: Path, per_phrase: bool, **options: Any
) -> dict[str, Any]:
    """One image from pixels to a file; returns what it wrote. `lmm` lends its model and processor alone."""
    answer, spans, maps = attend(image, text, lmm, options)
    maps = maps - maps.mean(dim=0)
    phrases, points = [], []
    for chunk in nlp(answer).noun_chunks:
        start, end = chunk.root.idx, chunk.root.idx + len(chunk.root.text)
        tokens = [i for i, (first, last) in enumerate(spans) if first < end and last > start]
        if tokens and chunk.root.pos_ != "PRON":
            phrases.append(chunk.text)
            points.append(maps[tokens].mean(dim=0))
    found = peaks(torch.stack(points), image)
    pixels = np.array(image)
    if per_phrase:
        masks = []
        for point in found:
            predictor.set_image(pixels)
            masks.append(segment(point[None], predictor))
        masks = torch.cat(masks)
    else:
        predictor.set_image(pixels)
        masks = segment(found, predictor)
    record = {"caption": answer, "phrases": phrases, "points": found.tolist(), "pred_masks": [rle(m) for m in masks]}
    output.write_text(json.dumps(record, indent=2))
    return record


def attend(
    image: Image.Image, text: str, lmm: Any, options: dict[str, Any]
) -> tuple[str, list[tuple[int, int]], torch.Tensor]:
    """(answer, characters of each token, maps [t, h, w] of the view that is read by default)."""
    from core.spans import decode_with_spans

    inputs = lmm.processor(images=[image], text=[text], return_tensors="pt").to(lmm.device, lmm.model.dtype)
    with torch.inference_mode():
        output = lmm.model.generate(**inputs, output_attentions=True, return_dict_in_generate=True, **options)
    columns = (inputs["input_ids"][0] == lmm.family.image_token_id).nonzero()[:, 0]
    rows = []
    for step in output.attentions:
        row = torch.cat([layer[0, :, -1] for layer in step])[:, columns]
        rows.append(row.mean(dim=0).float().cpu())
    ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    answer, spans = decode_with_spans(lmm.processor.tokenizer, ids)
    view = lmm.family.views(inputs, 0, len(columns), lmm.family.prepare(image))[-1]
    return answer, spans.tolist(), torch.stack(rows)[:, view.index]


def peaks(maps: torch.Tensor, image: Image.Image) -> torch.Tensor:
    """int64 [p, 2]: (x, y) of the highest pixels, from whole upsampled maps."""
    side = max(image.size)
    square = torch.nn.functional.interpolate(maps[None], size=(side, side), mode="bicubic", align_corners=False)[0]
    top, left = (side - image.height) // 2, (side - image.width) // 2
    cropped = square[:, top : top + image.height, left : left + image.width]
    best = cropped.reshape(len(maps), -1).argmax(dim=1)
    return torch.stack([best % image.width, best // image.width], dim=1)


def segment(points: torch.Tensor, predictor: Any) -> torch.Tensor:
    """bool [p, H, W]: the last of the three masks of each point."""
    coords = predictor.transform.apply_coords(points.numpy().astype(float), predictor.original_size)
    masks, _, _ = predictor.predict_torch(
        point_coords=torch.tensor(coords, dtype=torch.float32, device=predictor.device)[:, None],
        point_labels=torch.ones(len(points), 1, dtype=torch.int, device=predictor.device),
        multimask_output=True,
    )
    return masks[:, -1].cpu()


def rle(mask: torch.Tensor) -> dict[str, Any]:
    from pycocotools import mask as coco

    code = coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}
