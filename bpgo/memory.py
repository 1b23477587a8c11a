"""Out-of-memory errors that name the settings to change."""

from __future__ import annotations

import os
from contextlib import contextmanager

import torch

from bpgo.batching import micro_batch_size
from bpgo.config import Config, named_rewards


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is an out-of-memory error. On the CPU and MPS, torch raises a RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    messages = ("can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in messages)


@contextmanager
def memory_explained(config: Config):
    """Raise MemoryError that says which settings to change if memory runs out in this context."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MemoryError(f"out of memory ({reason}). {advice(config)}") from error


def advice(config: Config) -> str:
    """What to change: settings that a resumed run accepts, and others, which need another run."""
    here, elsewhere = _where_things_are(config), _smaller_calls(config)
    sentences = []
    if here:
        sentences.append(f"Resume the run with {' or '.join(here)}.")
    sentences.append(
        f"{'Or c' if here else 'C'}ontinue in a new folder with other settings: "
        f"`bpgo branch RUN --at N --output NEW key=value`, where key=value is "
        f"{' or '.join(elsewhere)}."
    )
    if not config.generator.lora_rank:
        sentences.append("Or start a new run with generator.lora_rank=32.")
    return " ".join(sentences)


def _where_things_are(config: Config) -> list[str]:
    """Settings that save memory and do not change the mathematics of the run."""
    g, found = config.generator, []
    for name in ("gradient_checkpointing", "vae_tiling"):
        if not getattr(g, name):
            found.append(f"generator.{name}=true")
    if not torch.cuda.is_available():  # then the CPU and the device share their memory
        return found
    if not g.offload and _processes() == 1:
        found.append("generator.offload=true")
    for key, reward in named_rewards(config):
        if reward.device is None:
            found.append(f"{key}.device=cpu")
    return found


def _smaller_calls(config: Config) -> list[str]:
    """Settings that make a model call smaller."""
    g, found = config.generator, []
    size = micro_batch_size(config, _processes())
    if size > 1:
        found.append(f"sampling.micro_batch={size // 2}")
    names = ("height", "width", "frames") if g.frames else ("height", "width")
    return [*found, f"a smaller {', '.join(f'generator.{name}' for name in names)}"]


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
