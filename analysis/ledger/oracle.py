"""What the segmenter makes of true objects when it is prompted in their middle: the upper bound of every point."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from pycocotools import mask as rle
from scipy.ndimage import distance_transform_edt

from analysis.captured import run_folder
from analysis.ledger.ledger import true_objects
from analysis.scoring.coco import CocoDataset, annotation_mask
from analysis.settings import Settings
from core.errors import GroundingError
from core.images import load_image
from core.progress import progress_bar
from core.provenance import segmenter_identity
from core.record_folder import Record, RecordFolder


def inner_point(mask: Bool[np.ndarray, "H W"]) -> tuple[float, float]:
    """Centre (x, y) of the pixel of a mask that lies farthest from its edge, the first in row order where several do.
    The image's border is an edge.

    Raises:
        GroundingError: an empty mask.
    """
    if not mask.any():
        raise GroundingError("an empty mask has no inner point")
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), mask.shape)
    return float(column) + 0.5, float(row) + 0.5


def oracle_overlaps(
    settings: Settings, dataset: CocoDataset, *, segmenter: Any, progress: bool = True
) -> dict[int, list[float]]:
    """IoU of each true object with the segmenter's last mask at its inner point, by image; finished images are kept.

    Objects stand in the order of `analysis.ledger.ledger.true_objects`; one without a pixel has 0. An image that cannot
    be opened, or is not of its annotations' size, has none.

    Args:
        settings: of the notebook; the folder lies in `runs_dir`.
        dataset: the ground truth.
        segmenter: what `core.masks.load_segmenter` returned.
        progress: show a progress bar.
    """
    config = {"what": "oracle points", "segmenter": segmenter_identity(segmenter)}
    config |= {"data": settings.data or settings.data_name()}
    store: RecordFolder[Record] = RecordFolder(settings.shared("oracle", run_folder("oracle", config)), config)
    done = store.done()
    missing = [image for image in dataset.images if str(image.id) not in done]
    for image in progress_bar(missing, title="oracle points", shown=progress):
        masks = [annotation_mask(each, image.size) for each in true_objects(dataset, image.id)]
        try:
            store.write(str(image.id), Record({"iou": _overlaps(image, masks, segmenter)}, {}))
        except GroundingError as error:
            store.write_error(str(image.id), str(error))
    held = set(store.ids())
    return {
        image.id: store.read(str(image.id)).tensors["iou"].tolist() for image in dataset.images if str(image.id) in held
    }


def _overlaps(image: Any, masks: list[np.ndarray], segmenter: Any) -> torch.Tensor:
    found = torch.zeros(len(masks))
    seen = [number for number, mask in enumerate(masks) if mask.any()]
    if seen:
        segmenter.set_image(load_image(image.path))
        points = torch.tensor([inner_point(masks[number]) for number in seen], dtype=torch.float32)
        parts = [part.masks[:, 0].numpy() for part in segmenter.predict_in_parts(points, choice="last")]
        for number, mask in zip(seen, np.concatenate(parts), strict=True):
            codes = [rle.encode(np.asfortranarray(each.astype(np.uint8))) for each in (mask, masks[number])]
            found[number] = float(rle.iou(codes[:1], codes[1:], [0])[0, 0])
    return found
