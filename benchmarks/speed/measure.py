"""Measuring: candidates in turn in one process, their peak memory, and this machine."""

import ctypes
import gc
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from recbole_rella.files import write_json
from recbole_rella.llm.products import fast_products

FOLDER = Path(__file__).parents[2] / "results" / "speed"
_PACKAGES = ("torch", "transformers", "peft", "faiss-cpu", "sentence-transformers", "recbole", "numpy")


def command(name):
    """The command that measures, as it was given; LLMs without the folders that they lie in."""

    def told(argument):
        if not argument.startswith("--llm="):
            return argument
        return "--llm=" + ",".join(Path(llm).name for llm in argument.removeprefix("--llm=").split(","))

    return " ".join([name, *map(told, sys.argv[1:])])


def machine():
    """What the figures depend on, as JSON-able values."""
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
        if cpu.is_file()
        else []
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory, GiB": round(memory / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def resident(field):
    """Resident memory of this process, MiB: VmRSS now, VmHWM at its peak since `release_memory`. Linux alone tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def release_memory():
    """What was freed goes back to the system, or nothing new would seem to be taken; and the peak starts anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _begin_memory():
    """Start counting; returns what was in use, MiB, or None where nothing counts."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    try:
        release_memory()
        return resident("VmRSS")
    except (OSError, AttributeError):
        return None


def _peak_memory():
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else resident("VmHWM")


def in_turn(candidates, repeats, results=None):
    """Call candidates A, B, C, A, B, C, ...

    Args:
        candidates (dict): name -> callable without arguments.
        repeats (int): how often each is called.
        results (dict, optional): gets what each returned last, by its name.

    Returns:
        dict: name -> {seconds: the median, all: each call's, peak_mib: the largest memory that a call took beyond what was in use
        before it, None where it cannot be told}.
    """
    seconds = {name: [] for name in candidates}
    memory = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            before = _begin_memory()
            began = time.perf_counter()
            result = call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
            if results is not None:
                results[name] = result
            del result  # which would count as memory of the next one
            if before is not None:
                memory[name].append(_peak_memory() - before)
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "all": [round(s, 4) for s in seconds[name]],
            "peak_mib": round(max(memory[name]), 1) if memory[name] else None,
        }
        for name in candidates
    }


def matrix_peak(dtype, device, size=2048, inner=1408, repeats=20):
    """The best rate of a matrix multiplication on this machine, as a linear layer does it.

    Returns:
        float: GFLOP/s.
    """
    x, w = (torch.randn(n, size, dtype=dtype, device=device) for n in (size, inner))
    best = float("inf")
    for _ in range(repeats):
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        with fast_products():
            torch.nn.functional.linear(x, w)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size * size * inner / best / 1e9


def write(name, record):
    """Write results/speed/<name>.json, whole or not at all."""
    write_json(FOLDER / f"{name}.json", record)
