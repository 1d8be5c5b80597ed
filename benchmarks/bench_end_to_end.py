"""Images per second from pixels to records: ours against the reference way, on random models of the real classes.

One process, one thread, interleaved rounds, compared round by round. The decoder is random and is made to say one
caption; Segment Anything costs of one prefill of 640 tokens what ViT-H costs of a 7B model's. The reference way is
`reference_way.py`. Then the seconds of each stage of ours. Writes JSON and CSV.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from bench_capture import decoder  # noqa: E402
from measure import interleaved, machine, quiet, ratios, synchronize, write_results  # noqa: E402

RELEASED, PER_PHRASE, SINGLE, BATCHED = "released", "set per phrase", "ours, one by one", "ours, in batches"
PROMPT = "Describe the image in detail."
CAPTION = (
    "The image features a red umbrella and a blue star on the left side of the picture. A cat is next to the cup of "
    "coffee, and there are several people in the middle, an astronaut among them."
)
SIDE = 640  # of the square pictures, in pixels


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=("llava", "llava_next"), default=["llava", "llava_next"])
    parser.add_argument("--images", type=int, default=4, help="pictures in a round (default: 4)")
    parser.add_argument("--layers", type=int, default=6, help="decoder layers (default: 6)")
    parser.add_argument("--width", type=int, default=384, help="width of the decoder (default: 384)")
    parser.add_argument("--heads", type=int, default=6, help="attention heads (default: 6)")
    parser.add_argument("--sam-side", type=int, default=512, help="pixels that the segmenter sees (default: 512)")
    parser.add_argument("--sam-width", type=int, default=256, help="width of its encoder (default: 256)")
    parser.add_argument("--sam-depth", type=int, default=8, help="blocks of its encoder (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved rounds (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, ... (default: float32)")
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "bench")
    return parser.parse_args()


class Parts:
    """The models, the pictures and a folder for what is written."""

    def __init__(self, case: str, folder: Path, options: argparse.Namespace):
        import numpy as np
        import tiny_models
        import torch
        from PIL import Image
        from segment_anything import SamPredictor

        from core import load_lmm, load_nlp
        from core.masks import Segmenter
        from core.sam import build_sam

        size = {"llava": {"image_size": 336}, "llava_next": {"tile": 336}}[case]
        builder = {"llava": tiny_models.tiny_llava, "llava_next": tiny_models.tiny_llava_next}[case]
        directory = builder(folder / case, text=decoder(options), **size)
        load = {"device": options.device, "dtype": getattr(torch, options.dtype), "geometry": "pad"}
        self.lmm, self.eager = load_lmm(directory, **load), load_lmm(directory, **load)
        self.eager.model.set_attn_implementation("eager")
        torch.manual_seed(0)
        side, width, depth = options.sam_side, options.sam_width, options.sam_depth
        sam = build_sam(image_size=side, width=width, depth=depth, heads=8, prompt_width=128).to(options.device)
        self.segmenter, self.predictor = Segmenter(sam), SamPredictor(sam)
        self.nlp, self.folder = load_nlp("embedded"), folder
        coarse = np.random.default_rng(0).integers(0, 256, (options.images, 9, 9, 3), dtype=np.uint8)
        self.pictures = [Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for each in coarse]
        self.text = f"{self.lmm.family.placeholder}\n{PROMPT}"
        self.said = self.lmm.processor.tokenizer(CAPTION, add_special_tokens=False).input_ids
        self.start = self.lmm.prompt_length(self.pictures[0], self.text)

    def saying(self) -> dict[str, Any]:
        """Options of `generate` with which the model says the caption; the prompts of all pictures are as long."""
        said = lambda sample, ids: [self.said[len(ids) - self.start]]  # noqa: E731
        return {"prefix_allowed_tokens_fn": said, "do_sample": False, "pad_token_id": 0}

    def ours(self, batch_size: int | str) -> Callable[[], Any]:
        from core import RunStore, ground_dataset

        def run() -> Any:
            shutil.rmtree(self.folder / "ours", ignore_errors=True)
            store = RunStore(self.folder / "ours", {"what": "a benchmark"})
            items = [(str(number), picture) for number, picture in enumerate(self.pictures)]
            run = {"max_new_tokens": len(self.said), "generation_options": self.saying(), "progress": False}
            parts = {"lmm": self.lmm, "segmenter": self.segmenter, "nlp": self.nlp, "store": store}
            ground_dataset(items, self.text, batch_size=batch_size, **parts, **run)
            return store

        return run

    def reference(self, *, per_phrase: bool) -> Callable[[], Any]:
        from reference_way import reference_grounding

        parts = {"lmm": self.eager, "predictor": self.predictor, "nlp": self.nlp}

        def run() -> list[dict[str, Any]]:
            options = self.saying() | {"max_new_tokens": len(self.said)}
            return [
                reference_grounding(
                    picture, self.text, output=self.folder / "one.json", per_phrase=per_phrase, **parts, **options
                )
                for picture in self.pictures
            ]

        return run


def check(parts: Parts, batched: Any, released: list[dict[str, Any]]) -> dict[str, Any]:
    """Both ways say the same, ground the same phrases and point at the same pixels (up to float32's last bits)."""
    records = [batched.read(str(number)) for number in range(len(parts.pictures))]
    apart, agreeing = [], []
    for record, other in zip(records, released, strict=True):
        if record.generation.text != other["caption"] or [p.text for p in record.phrases] != other["phrases"]:
            raise SystemExit(f"the two ways ground other phrases: {other['phrases']}")
        for point, (x, y) in zip(record.points.tolist(), other["points"], strict=True):
            apart.append(max(abs(point[0] - 0.5 - x), abs(point[1] - 0.5 - y)))
        agreeing += [
            mask[0]["counts"] == code["counts"] for mask, code in zip(record.masks, other["pred_masks"], strict=True)
        ]
    return {
        "visual_tokens": records[0].generation.attention.shape[1],
        "answer_tokens": len(records[0].generation.token_ids),
        "phrases": len(records[0].phrases),
        "points_alike": sum(distance == 0 for distance in apart) / len(apart),
        "masks_alike": sum(agreeing) / len(agreeing),
    }


def stages(parts: Parts, device: str) -> dict[str, float]:
    """Seconds of each stage of ours for one picture, alone; on a CPU those of the process, so that other work on the
    machine does not count.
    """
    from core import RunStore
    from core.phrases import find_phrases
    from core.pipeline import ground, phrase_maps
    from core.points import prompt_points
    from core.rle import encode_rle

    picture, options, seconds = parts.pictures[0], parts.saying(), {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        clock = time.process_time if device == "cpu" else time.perf_counter
        synchronize(device)
        start = clock()
        result = run()
        synchronize(device)
        seconds[name] = clock() - start
        return result

    tokens = len(parts.said)
    timed("prefill", lambda: parts.lmm.generate(picture, parts.text, max_new_tokens=1, **options))
    said = timed("decode", lambda: parts.lmm.generate(picture, parts.text, max_new_tokens=tokens, **options))
    seconds["decode"] -= seconds["prefill"]
    phrases = timed("phrases", lambda: find_phrases(said.text, said.token_spans, parts.nlp))
    maps = timed("maps", lambda: phrase_maps(said, phrases))
    points = timed("points", lambda: prompt_points(maps, said.view(), said.image_size))
    parts.segmenter.set_image(parts.pictures[-1])
    timed("SAM encoder", lambda: parts.segmenter.set_image(picture))
    masks = timed("SAM decoder and upsampling", lambda: list(parts.segmenter.predict_in_parts(points, choice="last")))
    timed("run-length codes", lambda: [encode_rle(mask) for part in masks for kept in part.masks for mask in kept])
    grounding = ground(said, picture, segmenter=parts.segmenter, nlp=parts.nlp)
    store = RunStore(parts.folder / "written", {"what": "a benchmark"})
    timed("record", lambda: store.write("one", grounding))
    return seconds


def measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        parts, kept = Parts(case, Path(folder), options), {}
        ways = {
            RELEASED: parts.reference(per_phrase=False),
            PER_PHRASE: parts.reference(per_phrase=True),
            SINGLE: parts.ours(1),
            BATCHED: parts.ours("auto"),
        }
        runs = {name: lambda name=name: kept.__setitem__(name, ways[name]()) for name in ways}
        seconds = interleaved(runs, rounds=options.repeats, device=options.device)
        result = check(parts, kept[BATCHED], kept[RELEASED])
        result["stages"] = stages(parts, options.device)
    rows = {}
    for name in ways:
        rows[name] = {"images_per_second": options.images / median(seconds[name]["wall"]), "seconds": seconds[name]}
        for other in (RELEASED, PER_PHRASE):
            rows[name][f"times {other}"] = ratios(seconds[other], seconds[name])
    return result | {"rows": rows}


def show(case: str, result: dict[str, Any]) -> None:
    """Two tables on standard output."""
    print(
        f"\n{case}: {result['visual_tokens']} visual tokens, {result['answer_tokens']} answer tokens, "
        f"{result['phrases']} phrases; {result['points_alike']:.0%} of the points and {result['masks_alike']:.0%} of "
        "the masks are the reference's"
    )
    print(f"{'way':<20}{'images/s':>10}{'x ' + RELEASED:>36}{'x ' + PER_PHRASE:>36}")
    for name, row in result["rows"].items():
        cells = "".join(
            "{ratio:.2f} ({ratio_low:.2f} to {ratio_high:.2f}), CPU {cpu_ratio:.2f}".format(
                **row[f"times {other}"]
            ).rjust(36)
            for other in (RELEASED, PER_PHRASE)
        )
        print(f"{name:<20}{row['images_per_second']:>10.3f}{cells}")
    whole = sum(result["stages"].values())
    print("ours, one picture: " + ", ".join(f"{name} {s / whole:.1%}" for name, s in result["stages"].items()))


def main() -> None:
    """Measure, print, and write `end_to_end.json` and `end_to_end.csv`."""
    options = parse()
    quiet(options.threads)
    results = {}
    for case in options.cases:
        results[case] = measure(case, options)
        show(case, results[case])
    settings = {name: str(value) for name, value in vars(options).items()}
    about = {"settings": settings, "machine": machine(options.device), "results": results}
    compared = [(kind, other) for other in (RELEASED, PER_PHRASE) for kind in ("ratio", "cpu_ratio")]
    header = ("case", "visual_tokens", "phrases", "way", "images_per_second", *map(" ".join, compared))
    rows = [
        (
            *(case, result["visual_tokens"], result["phrases"], name, row["images_per_second"]),
            *(row[f"times {other}"][kind] for kind, other in compared),
        )
        for case, result in results.items()
        for name, row in result["rows"].items()
    ]
    write_results(options.output, "end_to_end", about, header, rows)


if __name__ == "__main__":
    main()
