"""What machine this is."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def describe(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return what a figure of speed depends on, as texts: the machine, its device for networks, the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = torch.device(device)
    return {
        "machine": f"{_processor()}, {cores} core{'' if cores == 1 else 's'}{_memory()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # as on Windows
        return ""
    return f", {size / 2**30:.0f} GiB of memory"


def free_memory() -> int:
    """Return how many bytes the machine, or the container that it is in, can still give to programs; 0 if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return 0
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    for group, most, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit, taken = (Path(group, name).read_text("utf-8") for name in (most, used))
            stat = dict(line.split() for line in Path(group, "memory.stat").read_text("utf-8").splitlines())
        except OSError:
            continue
        if limit.strip() != "max":  # files that were read count as taken, and are given up when memory is short
            free = min(free, int(limit) - int(taken) + int(stat.get("inactive_file", 0)))
    return max(0, free)
