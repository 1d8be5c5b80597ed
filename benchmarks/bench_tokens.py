"""What reading the maps costs as pictures get more visual tokens: time and memory grow with t * k, not with k squared.

LLaVA with a random decoder and one picture of 24 x 24, 54 x 54 and 126 x 126 patches. The time is that of reading the
rows alone, inside one generation; the memory that of the maps. Eager attention's maps, which it would hold at once,
are counted, not computed. Writes JSON and CSV.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from bench_capture import decoder  # noqa: E402
from measure import MIB, machine, quiet, write_results  # noqa: E402

COLUMNS = ("visual_tokens", "new_tokens", "prefill_s", "step_s", "reading_s", "reading_us_per_step", "ns_per_value")
MEMORY = ("maps_mib", "eager_prefill_mib")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--grids", type=int, nargs="+", default=[24, 54, 126], help="patches a side (default: 24 54 126)"
    )
    parser.add_argument("--layers", type=int, default=2, help="decoder layers (default: 2)")
    parser.add_argument("--width", type=int, default=128, help="width of the decoder (default: 128)")
    parser.add_argument("--heads", type=int, default=4, help="attention heads (default: 4)")
    parser.add_argument("--new-tokens", type=int, default=65, help="tokens to generate (default: 65)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds after a first one (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "bench")
    return parser.parse_args()


@contextmanager
def reading_time() -> Iterator[list[float]]:
    """CPU seconds that the recorder spends inside the context."""
    from core.capture import RowRecorder

    spent, kept = [0.0], {name: getattr(RowRecorder, name) for name in ("observe", "finish")}

    def timed(run: Any) -> Any:
        def wrapper(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            result = run(*args, **options)
            spent[0] += time.process_time() - start
            return result

        return wrapper

    for name, run in kept.items():
        setattr(RowRecorder, name, timed(run))
    try:
        yield spent
    finally:
        for name, run in kept.items():
            setattr(RowRecorder, name, run)


def measure(grid: int, options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of one generation: of the prefill, of a step behind it, and of reading the maps."""
    from PIL import Image
    from tiny_models import tiny_llava

    from core import load_lmm

    text = decoder(options) | {"max_position_embeddings": grid * grid + 1024}
    with tempfile.TemporaryDirectory() as folder:
        lmm = load_lmm(tiny_llava(Path(folder), image_size=14 * grid, text=text), device="cpu", dtype="float32")
    picture, prompt = Image.new("RGB", (336, 336), (90, 120, 60)), f"{lmm.family.placeholder}\nWhat is it?"
    found: dict[str, list[float]] = {"prefill_s": [], "step_s": [], "reading_s": []}
    for turn in range(options.repeats + 1):
        spent = {}
        for tokens in (1, options.new_tokens):
            start = time.process_time()
            with reading_time() as reading:
                said = lmm.generate(picture, prompt, max_new_tokens=tokens, min_new_tokens=tokens)
            spent[tokens] = time.process_time() - start - reading[0], reading[0]
        if turn:
            found["prefill_s"].append(spent[1][0])
            found["step_s"].append((spent[options.new_tokens][0] - spent[1][0]) / (options.new_tokens - 1))
            found["reading_s"].append(spent[options.new_tokens][1])
    k, t = said.attention.shape[1], len(said.token_ids)
    row = {"visual_tokens": k, "new_tokens": t} | {name: median(values) for name, values in found.items()}
    row["reading_us_per_step"] = 1e6 * row["reading_s"] / t
    row["ns_per_value"] = 1e9 * row["reading_s"] / (t * k * options.layers * options.heads)
    row["maps_mib"] = said.attention.nbytes / MIB
    row["eager_prefill_mib"] = 4 * options.layers * options.heads * len(said.prompt_ids) ** 2 / MIB
    return row


def main() -> None:
    """Measure, print, and write `tokens.json` and `tokens.csv`."""
    options = parse()
    quiet(options.threads)
    columns = (*COLUMNS, *MEMORY)
    print("".join(f"{name:>21}" for name in columns))
    rows = []
    for grid in options.grids:
        rows.append(measure(grid, options))
        print("".join(f"{rows[-1][name]:>21.4g}" for name in columns))
    settings = {name: str(value) for name, value in vars(options).items()}
    about = {"settings": settings, "machine": machine("cpu"), "rows": rows}
    write_results(options.output, "tokens", about, columns, [[row[name] for name in columns] for row in rows])


if __name__ == "__main__":
    main()
