"""How a run is started: as one process, or as several by `accelerate launch`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml


class Launch(NamedTuple):
    """processes: how many there are. sharded: whether FSDP2 shards the weights over them.

    Processes that do not shard the weights each have all of them (DDP).
    """

    processes: int = 1
    sharded: bool = False

    @property
    def shards(self) -> int:
        """How many parts the weights are divided into."""
        return self.processes if self.sharded else 1

    def __str__(self) -> str:
        if self.processes == 1:
            return "1 process"
        return f"{self.processes} processes" + (", sharded" if self.sharded else "")


def read_launch(file: str | Path) -> Launch:
    """Read a configuration of `accelerate launch`, such as those in reproduce/accelerate/."""
    found = yaml.safe_load(Path(file).read_text())
    processes = int(found.get("num_processes", 1))
    return Launch(processes, sharded=found.get("distributed_type") == "FSDP")
