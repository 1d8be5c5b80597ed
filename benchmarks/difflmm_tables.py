"""The benchmark's rows as tables for the terminal."""

from __future__ import annotations

from typing import Any

from difflmm_tasks import CLAIM, DIFFLMM, LLAVA, WHOLE
from measure import MIB

TIMES = ("task", "model", "compared with", "s", "s", "ratio", "low", "high", "CPU ratio", "peak MiB", "ratio", "paper")
FLOPS = ("GFLOP of one sample", LLAVA, DIFFLMM, "ratio", WHOLE, "ratio", "paper")
COUNTED = ("scale", "caption_tokens", "conversation_tokens", "prompt_tokens", "lora_rank", "gradient_checkpointing")
TIMED = ("weights", "dtype", "rounds", "visual_tokens", "encoding_batch", "stage_1_batch", "stage_2_batch")


def heading(result: dict[str, Any]) -> str:
    """What was measured where: settings, device, versions."""
    shown = COUNTED if result["settings"]["flops"] == "True" else (*COUNTED, *TIMED)
    settings = {name: result["settings"][name] for name in shown}
    lines = [", ".join(f"{name} {value}" for name, value in part.items()) for part in (settings, result["machine"])]
    models = f"{DIFFLMM}: SD + CLIP with the implicit captioner and PE; {LLAVA}: CLIP; one language model"
    return "\n".join([models, *lines])


def times_table(rows: list[dict[str, Any]]) -> str:
    """Seconds of the model and of what it is compared with; the rounds' ratios: median, lowest, highest."""
    lines = [
        (
            row["task"],
            row["model"],
            row["baseline"],
            f"{row['seconds']:.3f}",
            f"{row['baseline_seconds']:.3f}",
            *(f"{row[name]:.3f}" for name in ("ratio", "ratio_low", "ratio_high", "cpu_ratio")),
            f"{row['peak'] / MIB:.0f}" if "peak" in row else "",
            f"{row['peak_ratio']:.3f}" if "peak" in row else "",
            row["claim"],
        )
        for row in rows
    ]
    notes = [
        f"paper: time at most 5 % above LLaVA's ({CLAIM}). The second s is of what is compared with.",
        "peak: weights, optimiser state and the most that a run needs beyond them.",
    ]
    return "\n".join([_aligned(TIMES, lines, left=3), *notes])


def flops_table(rows: list[dict[str, Any]]) -> str:
    """Counted operations, and their ratios to LLaVA's."""
    lines = []
    for row in rows:
        cells = [row["task"]]
        for name in (LLAVA, DIFFLMM, WHOLE):
            cells.append(f"{row['flops'][name] / 1e9:,.1f}" if name in row["flops"] else "")
            if name != LLAVA:
                cells.append(f"{row['ratio'][name]:.3f}" if name in row["ratio"] else "")
        lines.append((*cells, row["claim"]))
    notes = [
        "Counted operations of one sample (2 per multiply-add), not time: decoding waits for weights, not arithmetic.",
        f"paper: its claim about time ({CLAIM}), beside the counted ratio.",
    ]
    return "\n".join([_aligned(FLOPS, lines, left=1), *notes])


def _aligned(titles: tuple[str, ...], lines: list[tuple[str, ...]], *, left: int) -> str:
    """Columns as wide as they must be, the first `left` ones aligned to the left."""
    widths = [max(len(line[place]) for line in (titles, *lines)) for place in range(len(titles))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (titles, *lines)
    )
