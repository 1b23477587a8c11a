"""How the samples of an iteration are divided: over processes, optimiser updates and micro-batches.

An iteration has `groups` prompts with `group_size` samples each. Its groups are split evenly over
the `updates`, and the groups of each update over the processes. An update therefore uses the same
samples for any number of processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpgo.config import Config


def check_divisible(groups: int, updates: int, processes: int = 1) -> None:
    """Raise ValueError unless the groups divide evenly over updates and processes."""
    if groups % (updates * processes):
        over = f"optimiser.updates={updates}"
        if processes > 1:
            over += f" times {processes} processes"
        raise ValueError(f"groups={groups} cannot be divided evenly over {over}")


def own_groups(groups: int, updates: int, processes: int, rank: int) -> list[int]:
    """The groups that process `rank` samples, as indices in range(groups), update by update.

    own_groups(8, updates=2, processes=2, rank=1) is [2, 3, 6, 7]: the second half of each update.
    """
    per_update = groups // updates
    share = per_update // processes
    starts = range(share * rank, groups, per_update)
    return [group for start in starts for group in range(start, start + share)]


def rows_per_process(config: Config, processes: int = 1) -> int:
    """Samples that one process draws in an iteration."""
    return config.groups // processes * config.group_size


def rows_per_update(config: Config, processes: int = 1) -> int:
    """Samples that one process uses for an optimiser step."""
    return rows_per_process(config, processes) // config.optimiser.updates


def micro_batch_size(config: Config, processes: int = 1) -> int:
    """Samples in one model call.

    This is the largest divisor of an update's rows that is at most `sampling.micro_batch`. Every
    micro-batch therefore has the same size and belongs to one update.
    """
    per_update = rows_per_update(config, processes)
    return _largest_divisor(per_update, config.sampling.micro_batch or per_update)


def small_micro_batch(config: Config, processes: int = 1) -> str | None:
    """A warning if model calls take less than half of the samples that the settings allow.

    None if they do not. With 13 samples, sampling.micro_batch=12 means 1 at a time.
    """
    rows, asked = rows_per_update(config, processes), config.sampling.micro_batch
    size = micro_batch_size(config, processes)
    if asked is None or 2 * size >= min(asked, rows):
        return None
    return (
        f"sampling.micro_batch={asked}, but a model call takes {size} of the {rows} samples that "
        f"one process uses for an update, because its size must divide them. "
        f"Set {_better_settings(config, rows, asked)}"
    )


def _better_settings(config: Config, rows: int, asked: int) -> str:
    """Settings for larger model calls: the next larger size, or the nearest group_size."""
    larger = next(size for size in range(asked + 1, rows + 1) if rows % size == 0)
    groups = rows // config.group_size
    sizes = [
        size
        for size in range(2, 2 * config.group_size)
        if 2 * _largest_divisor(groups * size, asked) > asked
    ]
    choices = f"sampling.micro_batch={larger} (more memory)"
    if not sizes:
        return choices
    nearest = min(sizes, key=lambda size: abs(size - config.group_size))
    return f"group_size={nearest}, or {choices}"


def _largest_divisor(rows: int, limit: int) -> int:
    return next(size for size in range(min(limit, rows), 0, -1) if rows % size == 0)
