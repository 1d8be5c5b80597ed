"""Time from a click on a word to its picture, in the explorer's page in Chromium.

Answers of 120 tokens with random maps over so many visual tokens, each word clicked some times. Two times are read in
the page itself: until the map, the point and the mask are drawn, and until the browser has shown the frame. The size of
the page is told, too. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from browser import chromium, open_page  # noqa: E402
from measure import machine  # noqa: E402

from analysis.explorer.data import explorer_data  # noqa: E402
from analysis.explorer.page import save_html  # noqa: E402
from core.generation import Generation  # noqa: E402
from core.geometry import View  # noqa: E402
from core.options import GroundOptions  # noqa: E402
from core.phrases import Phrase  # noqa: E402
from core.pipeline import Grounding, phrase_maps, phrase_points  # noqa: E402
from core.rle import encode_rle  # noqa: E402

TOKENS, WORDS = 120, 12
GRIDS = {576: (24, 24), 2916: (54, 54), 16002: (127, 126)}  # visual tokens: LLaVA-1.5's, LLaVA-NeXT's, and many more
BUDGET = {576: 50.0, 2916: 150.0}  # milliseconds
CLICK = """async (token) => {
  const word = document.querySelector(`[data-token="${token}"]`), root = document.querySelector(".explorer");
  const began = performance.now();
  word.click();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return [Number(root.dataset.milliseconds), performance.now() - began];
}"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(1500, 2000), help="of the picture, H W in pixels")
    parser.add_argument("--clicks", type=int, default=5, help="on each of 12 words (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "bench")
    return parser.parse_args(arguments)


def answer(shape: tuple[int, int], size: tuple[int, int], seed: int) -> tuple[Grounding, Image.Image]:
    """A grounded answer of 120 words over a grid of that shape, and its picture."""
    generator = torch.Generator().manual_seed(seed)
    k = shape[0] * shape[1]
    words = [f"word{i}" for i in range(TOKENS)]
    starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])]).tolist()
    spans = [(start, start + len(word)) for start, word in zip(starts, words, strict=True)]
    view = View("image", torch.arange(k).view(shape), (0.0, 0.0, float(size[1]), float(size[0])))
    attention = torch.softmax(4 * torch.randn(TOKENS, k, generator=generator), 1) / 5
    generation = Generation(
        " ".join(words), torch.arange(TOKENS), torch.arange(k), attention, (view,), torch.tensor(spans), size
    )
    chosen = range(0, TOKENS, TOKENS // WORDS)
    phrases = tuple(Phrase(words[i], spans[i], words[i], spans[i], (i,)) for i in chosen)
    y, x = np.mgrid[: size[0], : size[1]]
    disc = torch.from_numpy(np.hypot(y - size[0] / 2, x - size[1] / 2) < min(size) / 3)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    masks = ((encode_rle(disc),),) * len(phrases)
    points = phrase_points(generation, phrases)
    scores = torch.ones(len(phrases), 1)
    maps = phrase_maps(generation, phrases)
    return Grounding(size, generation, phrases, maps, points, masks, scores, GroundOptions()), picture


def measure(browser, shape: tuple[int, int], options: argparse.Namespace) -> dict:
    """Clicks on a page for a grid of that shape."""
    grounding, picture = answer(shape, tuple(options.size), options.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = save_html([explorer_data(grounding, picture)], Path(folder, "page.html"))
        page, errors = open_page(browser, path.as_uri())
        page.wait_for_selector('.explorer[data-ready="yes"]')
        times = []
        for _ in range(options.clicks):
            for phrase, point in zip(grounding.phrases, grounding.points.tolist(), strict=True):
                times.append(page.evaluate(CLICK, phrase.tokens[0]))
                found = page.locator(".explorer").get_attribute("data-peak")
                if found != f"{point[0]:g},{point[1]:g}" or errors:
                    raise SystemExit(f"the page's point {found} is not core's {point}; {errors}")
        page.close()
        drawn, painted = zip(*times, strict=True)
        row = {"median": statistics.median(drawn), "longest": max(drawn), "first": drawn[0]}
        return row | {"shown": statistics.median(painted), "bytes": path.stat().st_size}


def main(arguments: list[str] | None = None) -> int:
    """Measure and tell."""
    options = parse(arguments)
    if options.clicks < 1 or min(options.size) < 1:
        print("give at least one click and a picture of at least one pixel", file=sys.stderr)
        return 2
    height, width = options.size
    print(f"answers of {TOKENS} tokens, a picture of {height} x {width} pixels (H x W)")
    rows = {}
    with chromium() as browser:
        for k, shape in GRIDS.items():
            rows[k] = measure(browser, shape, options)
            told = "{median:.0f} ms drawn (first click {first:.0f}, longest {longest:.0f}), {shown:.0f} ms until shown"
            print(f"{k:>6} visual tokens: {told.format(**rows[k])}; page of {rows[k]['bytes'] / 1e6:.2f} MB")
    options.output.mkdir(parents=True, exist_ok=True)
    found = {"milliseconds": rows, "machine": machine("cpu"), "size": [height, width], "tokens": TOKENS}
    (options.output / "explorer.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    late = [k for k, most in BUDGET.items() if rows[k]["median"] > most]
    if late:
        print(f"slower than {', '.join(f'{BUDGET[k]:.0f} ms at {k}' for k in late)} visual tokens", file=sys.stderr)
    return int(bool(late))


if __name__ == "__main__":
    sys.exit(main())
