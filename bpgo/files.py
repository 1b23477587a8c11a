"""Where checkpoints are found, and how files are written so that a kill never leaves half of one."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

SHIPPED = Path(__file__).parent / "checkpoints"
# never the end of a hub id, which may have dots
FILE_TYPES = (".txt", ".json", ".jsonl", ".yaml", ".yml", ".safetensors", ".bin", ".pt", ".pth")

LOGIN = "accept its terms on its page, then `hf auth login` (before huggingface_hub 1.0: `huggingface-cli login`)"
DAMAGED = (
    LookupError,
    struct.error,
    AssertionError,
    AttributeError,
)  # what torch.load also raises for a part of a file, and for text


def resolve(path_or_hub_id: str | Path) -> Path | str:
    """A folder or file that exists, else a checkpoint shipped with the package (`tiny-flux`), else a hub id (`owner/name`).

    Raises FileNotFoundError, with the shipped names, for anything that can be none of these.
    """
    path, text = Path(path_or_hub_id).expanduser(), str(path_or_hub_id)
    for candidate in (path, SHIPPED / path) if text else ():
        if candidate.exists():
            return candidate
    if (
        text.count("/") == 1
        and not text.startswith((".", "/", "~"))
        and path.suffix not in FILE_TYPES
    ):
        return text
    shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir())) if SHIPPED.is_dir() else "none"
    raise FileNotFoundError(
        f"{text!r} is no folder or file here, no hub id (owner/name), and not shipped ({shipped})"
    )


def check_safetensors(place: Path) -> None:
    """Raise ValueError naming the first .safetensors file at or below `place` that is truncated or not one."""
    from safetensors import SafetensorError, safe_open

    place = Path(place)
    for file in [place] if place.suffix == ".safetensors" else sorted(place.rglob("*.safetensors")):
        try:
            with safe_open(
                file, framework="numpy"
            ):  # reads the header, and compares its offsets with the file's size
                pass
        except SafetensorError as error:
            how = _again(file, "copy or make it again")
            raise ValueError(
                f"{file} is truncated or damaged ({file.stat().st_size} bytes): {how}"
            ) from error


def check_weights(place: Path) -> None:
    """As `check_safetensors`, and for .pt, .pth and .bin files that begin as the zip files of torch.save and do not end as one.

    What is in an older format (no zip) shows only when it is read: see `read_pt`.
    """
    place = Path(place)
    check_safetensors(place)
    for file in [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.is_file()):
        if file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
            with file.open("rb") as stream:
                if stream.read(2) == b"PK":
                    how = _again(file, "download it again")
                    raise ValueError(
                        f"{file} is damaged, or not whole ({file.stat().st_size} bytes): {how}"
                    )


def _again(file: Path, how: str) -> str:
    """The remedy. A name in the hub's cache is a link, and what it points to has to go, or it counts as downloaded."""
    return f"delete {file.resolve()} and download it again" if file.is_symlink() else how


def cached_snapshot(hub_id: str) -> Path | None:
    """The folder of a hub id in the hub's cache, whole or not; None if nothing of it was downloaded."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    ref = place / "refs" / "main"
    folder = place / "snapshots" / ref.read_text().strip() if ref.is_file() else None
    return folder if folder and folder.is_dir() else None


@contextmanager
def from_hub(hub_id: str, what: str):
    """Raise OSError that says what is loaded, its hub id and the remedy, where the hub (whose errors are all OSErrors) refuses within."""
    try:
        yield
    except OSError as error:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "fetch it with `python -m bpgo preflight PRESET --download`"
        if isinstance(error, GatedRepoError):
            remedy = f"it is gated: {LOGIN}, then {remedy}"
        elif isinstance(error, RepositoryNotFoundError):
            remedy = f"is its name right? If so, and it is private, `hf auth login`; then {remedy}"
        raise OSError(
            f"{what}: {hub_id} is neither in the hub's cache here nor could it be fetched: {remedy} ({first})"
        ) from error


def read_pt(file: Path) -> dict:
    """What a published `.pt`, `.pth` or `.bin` file names, on the CPU. Raises ValueError if it is damaged or holds code (not run)."""
    import torch

    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except (*DAMAGED, UnpicklingError, EOFError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged, or holds more than tensors (code in it is not run): download it again"
        ) from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file beside its place and move it there; on an error (disk full, read-only) the old file stays."""
    partial = path.with_name(
        f".{path.name}.{os.getpid()}.partial"
    )  # two processes may write the same
    try:
        with partial.open("wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_log(file: str | Path) -> list[dict]:
    """The rows of a run's metrics.jsonl, timing.jsonl or evaluations.jsonl."""
    return [json.loads(line) for line in Path(file).read_text().splitlines()]
