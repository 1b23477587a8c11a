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


def micro_batch_size(config: Config, processes: int = 1) -> int:
    """Samples in one model call.

    This is the largest divisor of an update's rows that is at most `sampling.micro_batch`. Every
    micro-batch therefore has the same size and belongs to one update.
    """
    per_update = rows_per_process(config, processes) // config.optimiser.updates
    limit = min(config.sampling.micro_batch or per_update, per_update)
    return next(size for size in range(limit, 0, -1) if per_update % size == 0)
