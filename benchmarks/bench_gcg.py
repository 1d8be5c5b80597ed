"""Time of scoring a system's predictions for grounded conversation generation, without METEOR and CIDEr.

The set is made up: pictures of 480 x 640 pixels (H x W) with 6 true masks and 8 predicted ones each, wavy blobs as
Segment Anything draws them, some of them near a true one. What is timed is what the notebook does with a folder of
predictions: read both annotation files and every prediction, compare all phrases by the embedded word vectors and all
masks, AP50, and an interval for each metric. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from measure import machine, status  # noqa: E402

from analysis.gcg.grandf import CAPTIONS, MASKS, load_gcg  # noqa: E402
from analysis.gcg.predictions import open_predictions  # noqa: E402
from analysis.gcg.scores import METRICS, score_predictions  # noqa: E402
from core.phrases import load_nlp  # noqa: E402
from core.text_encoders import load_text_encoder  # noqa: E402
from embedded.scenes.scenes import COLOURS  # noqa: E402

SIZE, TRUE, PREDICTED = (480, 640), 6, 8
BUDGET = 120.0  # seconds for GranD-f's 5 000 images on two cores
POOL = 300  # different masks


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="images to score (default: 5000)")
    parser.add_argument("--draws", type=int, default=2000, help="of the bootstrap (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "bench")
    return parser.parse_args(arguments)


def blob(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> dict:
    """A compressed run-length code of a disc with a wavy edge."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    angle = np.arctan2(y - centre[0], x - centre[1])
    waves = sum(rng.normal(0, 0.06) * np.sin(k * angle + rng.uniform(0, 6)) for k in range(2, 9))
    inside = np.hypot(y - centre[0], x - centre[1]) < radius * (1 + waves)
    code = rle.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": list(SIZE), "counts": code["counts"].decode("ascii")}


def write_set(folder: Path, options: argparse.Namespace) -> Path:
    """Both annotation files, and the predictions in a folder of their own."""
    rng = np.random.default_rng(options.seed)
    pool = []
    for _ in range(POOL):
        centre, radius = (rng.uniform(60, SIZE[0] - 60), rng.uniform(60, SIZE[1] - 60)), rng.uniform(20, 110)
        pool.append([blob(rng, (centre[0] + shift, centre[1]), radius) for shift in (0, rng.uniform(0, radius))])
    words = [
        f"a {colour} {name}" for colour in COLOURS for name in ("star", "heart", "cloud", "anchor", "moon", "flag")
    ]
    images, captions, masks = [], [], []
    (folder / "predictions").mkdir()
    for number in range(options.images):
        key = f"sa_{number:06d}"
        chosen, labels = rng.integers(POOL, size=PREDICTED), list(rng.choice(words, PREDICTED))
        images.append({"id": key, "height": SIZE[0], "width": SIZE[1]})
        caption = f"The image shows {', '.join(labels)}."
        captions.append({"id": number + 1, "image_id": key, "caption": caption, "labels": labels[:TRUE]})
        for place in chosen[:TRUE]:
            about = {"id": len(masks) + 1, "image_id": key, "category_id": 1, "iscrowd": 0}
            masks.append(about | {"segmentation": pool[place][0]})
        found = {"caption": caption, "phrases": labels, "pred_masks": [pool[place][1] for place in chosen]}
        (folder / "predictions" / f"{key}.json").write_text(json.dumps({key: found}))
    (folder / f"val_{CAPTIONS}").write_text(json.dumps({"images": images, "annotations": captions}))
    (folder / f"val_{MASKS}").write_text(json.dumps({"images": images, "annotations": masks}))
    return folder


def measure(folder: Path, options: argparse.Namespace) -> dict:
    """Seconds of the parts and of all, and the numbers that came out."""
    encoder = load_text_encoder("spacy", nlp=load_nlp())
    marks = [time.perf_counter()]
    dataset = load_gcg(folder)
    marks.append(time.perf_counter())
    scores = score_predictions(open_predictions(folder / "predictions", dataset), encoder, captions=False)
    marks.append(time.perf_counter())
    found = {name: scores.interval(name, draws=options.draws, seed=options.seed) for name in METRICS[2:]}
    marks.append(time.perf_counter())
    parts = dict(zip(("annotations", "scores", "intervals"), np.diff(marks).tolist(), strict=True))
    return {
        "seconds": parts | {"all": marks[-1] - marks[0]},
        "peak_mib": status("VmHWM") / 2**20,
        "metrics": {name: [each.value, each.low, each.high] for name, each in found.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write `gcg.json`; 2 if there is nothing to measure."""
    options = parse(arguments)
    if options.images < 1 or options.draws < 1:
        print("give at least one image and one draw", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        result = measure(write_set(Path(folder), options), options)
    seconds = result["seconds"]
    print(f"{options.images} images, {TRUE} true and {PREDICTED} predicted masks of {SIZE[0]} x {SIZE[1]} pixels each:")
    print("  ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    print(f"5000 images at this rate: {seconds['all'] * 5000 / options.images:.0f} s (the aim: {BUDGET:.0f} s)")
    options.output.mkdir(parents=True, exist_ok=True)
    about = {"images": options.images, "draws": options.draws, "seed": options.seed, "machine": machine("cpu")}
    (options.output / "gcg.json").write_text(json.dumps(about | result, indent=1))
    print(f"written to {options.output / 'gcg.json'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
