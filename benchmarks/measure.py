"""What the benchmarks share: interleaved rounds, peak memory over idle, and where they ran."""

from __future__ import annotations

import csv
import ctypes
import gc
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

MIB = 2**20
PACKAGES = ("torch", "transformers", "diffusers", "peft")
FRESH_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc returns freed tensors at once: the peak is what was needed


def synchronize(device: str) -> None:
    """Wait for the device, where it runs on its own."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def interleaved(
    runs: Mapping[str, Callable[[], Any]], *, rounds: int, device: str, warmup: int = 1
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every run, "wall" and process "cpu", in rounds A, B, C, A, B, C...; the first rounds warm up."""
    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in runs}
    for turn in range(warmup + rounds):
        for name, run in runs.items():
            gc.collect()
            synchronize(device)
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            synchronize(device)
            if turn >= warmup:
                seconds[name]["wall"].append(time.perf_counter() - wall)
                seconds[name]["cpu"].append(time.process_time() - cpu)
    return seconds


def ratios(seconds: dict[str, list[float]], baseline: dict[str, list[float]]) -> dict[str, float]:
    """Median, smallest and largest ratio of the rounds' wall times, and the median ratio of the CPU times."""
    wall, cpu = (
        [a / b for a, b in zip(seconds[kind], baseline[kind], strict=True) if b > 0] for kind in ("wall", "cpu")
    )
    return {
        "ratio": median(wall),
        "ratio_low": min(wall),
        "ratio_high": max(wall),
        "cpu_ratio": median(cpu) if cpu else float("nan"),
    }


def peak_memory(run: Callable[[], Any], device: str) -> dict[str, int]:
    """Idle and peak bytes of one run; on a CPU of this process, best started with `FRESH_MEMORY`."""
    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated()
        run()
        return {"idle": idle, "peak": torch.cuda.max_memory_allocated()}
    if not Path("/proc/self/clear_refs").exists():  # not Linux: the peak since the start of the process
        run()
        return {"idle": 0, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    idle = status("VmRSS")
    run()
    return {"idle": idle, "peak": status("VmHWM")}


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no field {field}")


def quiet(threads: int) -> None:
    """So many CPU threads, and none of transformers' warnings and progress bars between the results."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def write_results(
    folder: Path, name: str, about: Mapping[str, Any], header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Write `name.json`, and the rows as `name.csv`; say where."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(about, indent=1))
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    print(f"\nwritten to {folder}")


def machine(device: str) -> dict[str, Any]:
    """Device, versions, and how busy the machine is: its load over the last minute, in processes."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
