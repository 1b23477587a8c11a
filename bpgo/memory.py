"""Out-of-memory errors that name the settings to change."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from bpgo.config import Config


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is an out-of-memory error. On the CPU, torch raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def memory_explained(config: Config):
    """Raise MemoryError that says which settings to change if memory runs out in this context."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first_line = str(error).splitlines()[0]
        raise MemoryError(
            f"out of memory: try {', '.join(_remedies(config))} "
            f"(first line of the error: {first_line})"
        ) from error


def _remedies(config: Config) -> list[str]:
    """Settings that would lower the memory of this config."""
    g, remedies = config.generator, []
    per_update = config.groups * config.group_size // config.optimiser.updates
    rows = config.sampling.micro_batch or per_update
    if rows > 1:
        remedies.append(f"sampling.micro_batch below {rows}")
    for name in ("gradient_checkpointing", "vae_tiling", "offload"):
        if not getattr(g, name):
            remedies.append(f"generator.{name}=true")
    if not g.lora_rank:
        remedies.append("generator.lora_rank=32")
    remedies.append(f"a smaller generator.height, width{' or frames' if g.frames else ''}")
    return remedies
