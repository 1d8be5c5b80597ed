"""Time and memory of generating with attention maps, against plain generation and against eager `output_attentions`.

Times are taken in one process, interleaved (plain, maps, per head, eager, plain, ...), and compared run by run, so that
other work on the machine falls on all variants alike. Memory is the peak over idle, each variant in a process of its
own. The models are random, with a tiny vocabulary, so that nothing hides the overhead. Writes JSON and CSV.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from measure import FRESH_MEMORY, MIB, peak_memory, quiet, synchronize, write_results  # noqa: E402

VARIANTS = ("plain", "maps", "per_head", "eager")
PROMPT = "Describe the image in detail."


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--layers", type=int, default=8, help="decoder layers (default: 8)")
    parser.add_argument("--width", type=int, default=512, help="width of the decoder (default: 512)")
    parser.add_argument("--heads", type=int, default=8, help="attention heads (default: 8)")
    parser.add_argument("--new-tokens", type=int, default=None, help="tokens to generate (default: 64 and 32)")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, ... (default: float32)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "bench")
    parser.add_argument("--memory-of", nargs=3, metavar=("CASE", "VARIANT", "DIRECTORY"), help=argparse.SUPPRESS)
    return parser.parse_args()


def build_llava(directory: Path, options: argparse.Namespace) -> None:
    """24 x 24 visual tokens."""
    from tiny_models import tiny_llava

    tiny_llava(directory, image_size=336, text=decoder(options))


def build_llava_next(directory: Path, options: argparse.Namespace) -> None:
    """24 x 24 in the thumbnail and 48 rows of 48 with a newline: 2928 visual tokens for a square image."""
    from tiny_models import tiny_llava_next

    tiny_llava_next(directory, tile=336, text=decoder(options))


CASES = {"llava": (build_llava, 64), "llava_next": (build_llava_next, 32)}


def decoder(options: argparse.Namespace) -> dict[str, int]:
    """The decoder's sizes; four times the width inside, as Llama has it about."""
    return {
        "hidden_size": options.width,
        "intermediate_size": 4 * options.width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.heads,
        "max_position_embeddings": 8192,
    }


def variant(name: str, directory: str, case: str, options: argparse.Namespace) -> Callable[[int], Any]:
    """A function of the number of new tokens, from image and prompt to the answer (and its maps)."""
    import torch
    from PIL import Image

    from core.lmm import load_lmm

    quiet(options.threads)
    lmm = load_lmm(directory, device=options.device, dtype=getattr(torch, options.dtype))
    if name == "eager":
        lmm.model.set_attn_implementation("eager")
    image, text = Image.new("RGB", (672, 672), (90, 120, 60)), f"{lmm.family.placeholder}\n{PROMPT}"

    def plain(new_tokens: int, **extra: Any) -> Any:
        inputs = lmm.processor(images=[image], text=[text], return_tensors="pt").to(lmm.device, lmm.model.dtype)
        output = lmm.model.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0, **extra
        )
        ids = output.sequences if extra else output
        answer = ids[0, inputs["input_ids"].shape[1] :]
        return lmm.processor.tokenizer.decode(answer), answer, inputs["input_ids"][0], output

    def eager(new_tokens: int) -> Any:
        text, answer, ids, output = plain(new_tokens, output_attentions=True, return_dict_in_generate=True)
        columns = (ids == lmm.family.image_token_id).nonzero()[:, 0]
        steps = [torch.stack([layer[0, :, -1, columns] for layer in step]).mean((0, 1)) for step in output.attentions]
        return text, answer, torch.stack(steps).float().cpu()

    def maps(new_tokens: int) -> Any:
        found = lmm.generate(
            image, text, max_new_tokens=new_tokens, min_new_tokens=new_tokens, per_head=name == "per_head"
        )
        return found.text, found.token_ids, found.attention

    return {"plain": plain, "eager": eager}.get(name, maps)


def times(case: str, directory: str, new_tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every run, wall and process CPU, and ratios to the plain run of the same round."""
    import torch

    runs = {name: variant(name, directory, case, options) for name in VARIANTS}
    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in VARIANTS}
    for turn in range(options.repeats + 1):
        results = {}
        for name, run in runs.items():
            gc.collect()
            synchronize(options.device)
            wall, cpu = time.perf_counter(), time.process_time()
            results[name] = run(new_tokens)
            synchronize(options.device)
            if turn > 0:  # the first round warms up
                seconds[name]["wall"].append(time.perf_counter() - wall)
                seconds[name]["cpu"].append(time.process_time() - cpu)
        if not torch.equal(results["plain"][1].cpu(), results["maps"][1]):
            raise SystemExit(f"{case}: the captured run generated other tokens than the plain run")
        difference = float((results["eager"][2] - results["maps"][2]).abs().max())
    k = results["maps"][2].shape[1]
    rows = {}
    for name in VARIANTS:
        ratios = {
            kind: [a / b for a, b in zip(seconds[name][kind], seconds["plain"][kind], strict=True)]
            for kind in ("wall", "cpu")
        }
        rows[name] = {f"{kind}_s": median(seconds[name][kind]) for kind in ("wall", "cpu")}
        rows[name] |= {f"{kind}_ratio": median(ratios[kind]) for kind in ("wall", "cpu")}
        rows[name]["seconds"] = seconds[name]
    return {"visual_tokens": k, "max_difference_to_eager": difference, "rows": rows}


def memory(case: str, name: str, directory: str, options: argparse.Namespace) -> dict[str, int]:
    """Idle and peak bytes of one run in this process, after a warm-up of one token."""
    run = variant(name, directory, case, options)
    run(1)
    return peak_memory(lambda: run(new_tokens_of(case, options)), options.device)


def new_tokens_of(case: str, options: argparse.Namespace) -> int:
    return options.new_tokens or CASES[case][1]


def measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Build the case's checkpoint, then measure every variant."""
    with tempfile.TemporaryDirectory() as directory:
        CASES[case][0](Path(directory), options)
        result = times(case, directory, new_tokens_of(case, options), options)
        for name, row in result["rows"].items():
            found = memory_of(case, name, directory, options)
            row |= {"idle_mib": found["idle"] / MIB, "peak_mib": found["peak"] / MIB}
            row["over_idle_mib"] = row["peak_mib"] - row["idle_mib"]
    for row in result["rows"].values():
        row["peak_ratio"] = row["peak_mib"] / result["rows"]["plain"]["peak_mib"]
        row["over_idle_ratio"] = row["over_idle_mib"] / result["rows"]["plain"]["over_idle_mib"]
    return result | {"new_tokens": new_tokens_of(case, options)}


def memory_of(case: str, name: str, directory: str, options: argparse.Namespace) -> dict[str, int]:
    """`memory` in a fresh process, where glibc returns freed tensors at once, so that the peak is what was needed."""
    command = [sys.executable, __file__, *forwarded(options), "--memory-of", case, name, directory]
    settings = os.environ | FRESH_MEMORY
    finished = subprocess.run(command, check=True, capture_output=True, text=True, env=settings)
    return json.loads(finished.stdout.splitlines()[-1])


def forwarded(options: argparse.Namespace) -> list[str]:
    names = ("layers", "width", "heads", "device", "dtype", "threads")
    given = [part for name in names for part in (f"--{name}", str(getattr(options, name)))]
    return given + (["--new-tokens", str(options.new_tokens)] if options.new_tokens else [])


COLUMNS = ("wall_s", "wall_ratio", "cpu_s", "cpu_ratio", "peak_mib", "peak_ratio", "over_idle_mib", "over_idle_ratio")


def show(case: str, result: dict[str, Any]) -> None:
    """One table on standard output."""
    print(
        f"\n{case}: {result['visual_tokens']} visual tokens, {result['new_tokens']} new tokens; "
        f"maps differ from eager by at most {result['max_difference_to_eager']:.1e}"
    )
    print("".join(f"{title:>16}" for title in ("variant", *COLUMNS)))
    for name, row in result["rows"].items():
        cells = (f"{row[c]:.3f}" if c.endswith(("_s", "ratio")) else f"{row[c]:.1f}" for c in COLUMNS)
        print("".join(f"{cell:>16}" for cell in (name, *cells)))


def main() -> None:
    """Measure, print, and write `capture.json` and `capture.csv`."""
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.memory_of:
        case, name, directory = options.memory_of
        print(json.dumps(memory(case, name, directory, options)))
        return
    results = {}
    for case in options.cases:
        results[case] = measure(case, options)
        show(case, results[case])
    settings = {name: str(value) for name, value in vars(options).items() if name != "memory_of"}
    header = ("case", "visual_tokens", "new_tokens", "variant", *COLUMNS)
    rows = [
        (case, result["visual_tokens"], result["new_tokens"], name, *(row[column] for column in COLUMNS))
        for case, result in results.items()
        for name, row in result["rows"].items()
    ]
    write_results(options.output, "capture", {"settings": settings, "results": results}, header, rows)


if __name__ == "__main__":
    main()
