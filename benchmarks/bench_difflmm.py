"""Cost of DiffLMM against LLaVA on the same language model: training steps, generation, visual encoding.

Ratios come from interleaved rounds of one process (LLaVA, DiffLMM, LLaVA, ...), so that other work on the machine falls
on both alike; memory on a CPU from a process of its own. Pictures and texts are random, of the real shapes; reading and
resizing files is left out. `--scale embedded` runs on a CPU in about a minute, `--scale encoder` times visual encoding
alone with SD-1.5 and CLIP ViT-L/14-336 in their true sizes, `--scale paper` everything with Vicuna-7B's on an
accelerator. `--flops` counts operations instead, without weights. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from difflmm_memory import memory_in_a_process, memory_of, over_idle, require_accelerator  # noqa: E402
from difflmm_models import SCALES, Pair, build, shipped, visual_tokens  # noqa: E402
from difflmm_tables import flops_table, heading, times_table  # noqa: E402
from measure import interleaved, machine, ratios  # noqa: E402

from core.errors import GroundingError  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, help="sizes (default: embedded; with --flops: paper)")
    parser.add_argument("--flops", action="store_true", help="count operations on the meta device, measure nothing")
    parser.add_argument("--weights", choices=("auto", "random"), default="auto", help="auto: shipped ones if any")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds after the first (default: 7)")
    parser.add_argument("--encoding-batch", type=int, default=1, help="pictures encoded at once (default: 1)")
    parser.add_argument("--stage-1-batch", type=int, help="samples of a training step (default: the scale's)")
    parser.add_argument("--stage-2-batch", type=int, help="samples of a training step (default: the scale's)")
    parser.add_argument("--caption-tokens", type=int, default=32, help="text of a sample of stage 1 (default: 32)")
    parser.add_argument("--conversation-tokens", type=int, default=256, help="the same of stage 2 (default: 256)")
    parser.add_argument("--prompt-tokens", type=int, default=48, help="text before the answer (default: 48)")
    parser.add_argument("--new-tokens", type=int, nargs="+", help="answers' lengths; 1 is the prefill alone")
    parser.add_argument("--lora-rank", type=int, help="of stage 2 (default: the scale's; the paper's 128)")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", help="cpu or cuda (default: cpu; for the paper's scale cuda)")
    parser.add_argument("--dtype", help="float32, bfloat16, ... (default: the scale's)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory, too")
    parser.add_argument("--output", type=Path, default=ROOT / "reports" / "bench", help="directory of the JSON")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    return completed(parser.parse_args(arguments))


def completed(options: argparse.Namespace) -> argparse.Namespace:
    """The options with the scale's own values where none were given."""
    options.scale = options.scale or ("paper" if options.flops else "embedded")
    options.sizes = sizes = SCALES[options.scale]
    options.device = options.device or ("cuda" if options.scale == "paper" and not options.flops else "cpu")
    usual = {
        "stage_1_batch": sizes.batches[0],
        "stage_2_batch": sizes.batches[1],
        "new_tokens": list(sizes.new_tokens),
        "lora_rank": sizes.lora_rank,
        "dtype": sizes.dtype,
    }
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("rounds", "encoding_batch", "stage_1_batch", "stage_2_batch", "lora_rank"):
        if getattr(options, name) < 1:
            raise GroundingError(f"--{name.replace('_', '-')} is at least 1, got {getattr(options, name)}")
    return options


def models(options: argparse.Namespace) -> Pair:
    """The pair to measure: the shipped models at embedded scale if there are any, else random ones."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dtype = getattr(torch, options.dtype)
    if options.scale == "embedded" and options.weights == "auto":
        found = shipped(device=options.device, dtype=dtype)
        if found is not None:
            return found
    return build(options.sizes, device=options.device, dtype=dtype)


def measure(options: argparse.Namespace, peaks: dict[str, dict[str, int]]) -> tuple[Pair, list[dict[str, Any]]]:
    """The pair, and a row for every comparison of every task; `peaks` has what was measured before."""
    from difflmm_tasks import tasks

    pair, rows = models(options), []
    for task in tasks(pair, options):
        print(f"{task.name}...", file=sys.stderr, flush=True)
        seconds = interleaved(task.runs, rounds=options.rounds, device=options.device)
        if options.memory and options.device != "cpu":
            peaks[task.name] = {name: over_idle(run, options.device) for name, run in task.runs.items()}
        for name, baseline in task.rows:
            row = {"task": task.name, "model": name, "baseline": baseline, "claim": task.claim}
            row |= {"seconds": median(seconds[name]["wall"]), "baseline_seconds": median(seconds[baseline]["wall"])}
            row |= ratios(seconds[name], seconds[baseline])
            if task.name in peaks:
                row |= memory_of(name, baseline, task.held, peaks[task.name])
            rows.append(row | {"rounds": {one: seconds[one] for one in (name, baseline)}})
    return pair, rows


def main(arguments: list[str] | None = None) -> int:
    """Measure or count, print, and write JSON; 0 if it went well, 2 if the input was at fault."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return run(parse(arguments), arguments)
    except GroundingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    import torch

    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    if options.scale == "paper" and not options.flops:
        require_accelerator(options)
    if options.memory_only:
        from difflmm_memory import memory_peaks

        print(json.dumps(memory_peaks(models(options), options)))
        return 0
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("sizes", "memory_only")}
    if options.flops:
        from difflmm_flops import count_all

        result = {"settings": settings, "machine": machine("cpu"), "rows": count_all(options)}
        table = flops_table(result["rows"])
    else:
        before = machine(options.device)  # the load before this benchmark adds to it
        separately = options.memory and options.device == "cpu"
        pair, rows = measure(options, memory_in_a_process(arguments) if separately else {})
        settings |= {"weights": pair.weights, "visual_tokens": visual_tokens(pair)}
        result = {"settings": settings, "machine": before, "rows": rows}
        table = times_table(rows)
    print(heading(result), table, sep="\n\n")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"difflmm_{options.scale}{'_flops' if options.flops else ''}.json"
    path.write_text(json.dumps(result, indent=1))
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
