"""Where checkpoints are found, and how files are written so that a kill never leaves half of one."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

SHIPPED = Path(__file__).parent / "checkpoints"
FILE_TYPES = (".txt", ".json", ".jsonl", ".yaml", ".yml", ".safetensors")  # never the end of a hub id, which may have dots


def resolve(path_or_hub_id: str | Path) -> Path | str:
    """A folder or file that exists, else a checkpoint shipped with the package (`tiny-flux`), else a hub id (`owner/name`).

    Raises FileNotFoundError, with the shipped names, for anything that can be none of these.
    """
    path = Path(path_or_hub_id).expanduser()
    for candidate in (path, SHIPPED / path):
        if candidate.exists():
            return candidate
    text = str(path_or_hub_id)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and path.suffix not in FILE_TYPES:
        return text
    shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir())) if SHIPPED.is_dir() else "none"
    raise FileNotFoundError(f"{text!r} is no folder or file here, no hub id (owner/name), and not shipped ({shipped})")


def check_safetensors(folder: Path) -> None:
    """Raise ValueError naming the first .safetensors file below `folder` that is truncated or not one."""
    for file in sorted(Path(folder).rglob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            header = stream.read(length) if length < size else b""
        try:
            ends = [tensor["data_offsets"][1] for name, tensor in json.loads(header).items() if name != "__metadata__"]
        except ValueError:
            ends = [size]
        if 8 + length + max(ends, default=0) != size:
            raise ValueError(f"{file} is truncated or damaged ({size} bytes): copy or make it again")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file beside its place and move it there; on an error (disk full, read-only) the old file stays."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
