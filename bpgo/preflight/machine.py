"""What this machine has: memory, disk space and the rate of its matrix products."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch


def has_gpu() -> bool:
    """Whether training uses a GPU with memory of its own. Apple's GPUs share the RAM."""
    return torch.cuda.is_available()


def device_memory() -> int:
    """Memory of this process's GPU, or of the machine if it has no GPU."""
    return torch.cuda.mem_get_info()[1] if has_gpu() else ram()


def ram() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(place: Path) -> int:
    """Free space on the disk of a folder, which need not exist yet."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def hub_cache() -> Path:
    """The folder into which the hub's files are downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def matmul_rate(half: bool) -> float:
    """Operations per second of a square matrix product, the best of three. half: in bfloat16."""
    device = str(torch.accelerator.current_accelerator() or "cpu")
    n = 512 if device == "cpu" else 8192
    a = torch.ones(n, n, device=device, dtype=torch.bfloat16 if half else torch.float32)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def format_bytes(count: float) -> str:
    """A number of bytes as text, such as "1.4 MB": powers of 1000, one decimal."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"
