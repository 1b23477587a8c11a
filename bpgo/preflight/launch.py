"""How a run is started: as one process, or as several by `accelerate launch`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bpgo.distributed import check_fsdp
from bpgo.files import expand
from bpgo.text_files import ParseError, parse_yaml, read_text


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
    """Read a configuration of `accelerate launch`, such as those in reproduce/accelerate/.

    Raises FileNotFoundError, and ValueError for a file that is not such a configuration and for one
    that training refuses.
    """
    try:
        found = parse_yaml(read_text(expand(file)))
    except ParseError as error:
        raise ValueError(f"{file}, {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a configuration of `accelerate launch`")
    processes, kind = found.get("num_processes", 1), found.get("distributed_type")
    if not isinstance(processes, int) or processes < 1:
        raise ValueError(f"{file}: num_processes={processes!r} is not a number of processes")
    if kind == "FSDP" and processes > 1:
        _check_fsdp(file, found.get("fsdp_config") or {})
    return Launch(processes, sharded=kind == "FSDP")


def _check_fsdp(file: str | Path, settings: dict) -> None:
    """Raise ValueError for FSDP settings that training refuses (`distributed.check_fsdp`)."""
    version = settings.get("fsdp_version", 1)  # accelerate's default values
    loads_once = settings.get("fsdp_cpu_ram_efficient_loading", True)
    try:
        check_fsdp(str(version), str(loads_once).lower() in ("true", "yes", "on", "1"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
