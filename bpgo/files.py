"""Finding checkpoints, checking and reading files, and writing files atomically."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

SHIPPED = Path(__file__).parent / "checkpoints"
# A name with one of these endings is a file, not a hub id, although hub ids may contain dots.
PROMPT_FILES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
FILE_TYPES = (*PROMPT_FILES, ".yaml", ".yml", ".safetensors", ".bin", ".pt", ".pth")

LOGIN = (
    "accept its terms on its page, then run `hf auth login` "
    "(before huggingface_hub 1.0: `huggingface-cli login`)"
)
CONTROL = frozenset(map(chr, [*range(32), 127]))  # characters that no sensible path contains
# What torch.load raises for a file that is truncated, contains code, or is not a torch file at all.
DAMAGED = (
    UnpicklingError,
    EOFError,
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AssertionError,
    AttributeError,
    struct.error,
)


# ---------------------------------------------------------------------------------------- finding


def expand(path: str | Path) -> Path:
    """A path as the user meant it: `~` and `~name` stand for home folders.

    Variables (`$HOME/runs`) are left as they are, because the shell replaces them. Expanding a path
    again changes nothing. Raises ValueError for an empty path, one that contains a line break or
    starts or ends with a space, and a home folder that is not known.
    """
    text = os.fspath(path)
    if not text.strip():
        raise ValueError(f"{text!r} is not a path: name a file or folder")
    if not CONTROL.isdisjoint(text):
        raise ValueError(f"the path {text!r} contains a line break or another control character")
    if text != text.strip():
        raise ValueError(f"the path {text!r} starts or ends with a space: write it without")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        home = text.partition("/")[0]
        raise ValueError(
            f"the path {text!r}: there is no home folder for {home}. Write the path in full, or "
            f"./{text} if the name of a folder starts with ~"
        )
    # Path drops a leading `./`, after which a name with ~ would be expanded the next time.
    return Path(expanded) if not str(Path(expanded)).startswith("~") else Path.cwd() / expanded


def resolve(path_or_hub_id: str | Path) -> Path | str:
    """What a name refers to: an existing path, a checkpoint shipped with the package, or a hub id.

    Returns a Path for the first two and the name itself for a hub id (`owner/name`). Raises
    FileNotFoundError, listing the shipped names, for a name that can be none of these, and
    ValueError as `expand` does.
    """
    text = str(path_or_hub_id)
    path = expand(text) if text else Path()
    if text:
        for candidate in (path, SHIPPED / path):
            if candidate.exists():
                return candidate
    is_path = text.startswith((".", "/", "~")) or path.suffix.lower() in FILE_TYPES
    if text.count("/") == 1 and not is_path:
        return text
    shipped = sorted(place.name for place in SHIPPED.iterdir()) if SHIPPED.is_dir() else []
    raise FileNotFoundError(
        f"{text!r} is not a folder or file, not a hub id (owner/name), and not shipped with bpgo "
        f"(shipped: {', '.join(shipped) or 'none'})"
    )


def cached_snapshot(hub_id: str) -> Path | None:
    """The folder of a hub id in the hub's cache, complete or not; None if there is none."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    ref = place / "refs" / "main"
    if not ref.is_file():
        return None
    folder = place / "snapshots" / ref.read_text(encoding="utf-8").strip()
    return folder if folder.is_dir() else None


@contextmanager
def from_hub(hub_id: str, what: str) -> Iterator[None]:
    """Add what is being loaded, and what to do, to an OSError in this context.

    All errors of the hub are OSErrors. what: how the message refers to it, such as "generator".
    """
    try:
        yield
    except OSError as error:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        remedy = "download it with `bpgo preflight PRESET --download`"
        if isinstance(error, GatedRepoError):
            remedy = f"it is gated: {LOGIN}, then {remedy}"
        elif isinstance(error, RepositoryNotFoundError):
            remedy = f"check its name. If it is private, run `hf auth login`, then {remedy}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"{what}: {hub_id} is not in the local hub cache and could not be downloaded: "
            f"{remedy} ({reason})"
        ) from error


# --------------------------------------------------------------------------------------- checking


def check_safetensors(place: Path) -> None:
    """Check the .safetensors file `place`, or all such files in the folder `place`.

    Raises ValueError naming the first file that is truncated or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    place = Path(place)
    for file in [place] if place.suffix == ".safetensors" else sorted(place.rglob("*.safetensors")):
        try:
            # This reads the header and compares its offsets with the size of the file.
            with safe_open(file, framework="numpy"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{file} is truncated or damaged ({file.stat().st_size} bytes): "
                f"{_remedy(file, 'copy it or make it again')}"
            ) from error


def check_weights(place: Path) -> None:
    """Check .safetensors files as above, and .pt, .pth and .bin files for truncation.

    Raises ValueError naming the first damaged file. Only the zip files of torch.save are checked;
    damage to a file of the older format is found when it is read (`read_pt`).
    """
    place = Path(place)
    check_safetensors(place)
    files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.is_file())
    for file in files:
        if file.suffix in (".pt", ".pth", ".bin") and _is_cut_zip(file):
            raise ValueError(
                f"{file} is damaged or incomplete ({file.stat().st_size} bytes): "
                f"{_remedy(file, 'download it again')}"
            )


def _is_cut_zip(file: Path) -> bool:
    """Whether a file starts like a zip file but is truncated."""
    if zipfile.is_zipfile(file):
        return False
    with file.open("rb") as stream:
        return stream.read(2) == b"PK"


def _remedy(file: Path, otherwise: str) -> str:
    """What to do about a damaged file.

    A file in the hub's cache is a link. Unless its target is deleted, it counts as downloaded.
    """
    if file.is_symlink():
        return f"delete {file.resolve()} and download it again"
    return otherwise


# ---------------------------------------------------------------------------------------- reading


def read_pt(file: Path) -> dict:
    """The contents of a published `.pt`, `.pth` or `.bin` file by name, on the CPU.

    Raises ValueError if the file is damaged or contains code (which is not run).
    """
    import torch

    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except DAMAGED as error:
        raise ValueError(
            f"{file} is damaged, or contains more than tensors (code in it is not run): "
            f"download it again"
        ) from error


def read_log(file: str | Path) -> list[dict]:
    """The rows of a run's metrics.jsonl, timing.jsonl or evaluations.jsonl.

    An incomplete last line, which the run is still writing or a kill has left, is ignored. Raises
    ValueError naming the file and the line for one that is damaged.
    """
    rows, text = [], Path(file).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(
                f"{file}, line {number} is damaged: resume the run, which moves damaged lines to "
                f"another file, or remove the line"
            ) from None
    return rows


# ---------------------------------------------------------------------------------------- writing


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file under a temporary name next to its path, then rename it.

    On an error (disk full, read-only) the old file stays as it was.
    """
    # The process id is in the name because two processes may write the same file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Write a folder under a temporary name next to its path, then rename it.

    Yields `.{name}.partial`, a new, empty folder next to `folder`. When the block ends, its files
    get the rights that the umask allows, are flushed to disk, and it replaces `folder`:

        with atomic_folder(run / "final") as partial:
            save_file(tensors, partial / "model.safetensors")

    On an error the partial folder is removed and the old folder stays as it was. A kill leaves the
    old folder or the new one, complete. A folder cannot replace another in one step, so the old one
    is first renamed to `.{name}.previous`. If the process is killed at that moment, the next write
    moves it back. Only one process may write the same folder at a time.

    Raises OSError if the files cannot be written, also for a SafetensorError.
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    previous = folder.with_name(f".{folder.name}.previous")
    _restore(previous, folder)  # a kill may have left it
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _follow_umask(partial)
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
    except SafetensorError as error:
        raise OSError(f"cannot write {folder}: {error}") from error
    finally:
        _restore(previous, folder)
        shutil.rmtree(partial, ignore_errors=True)


def _follow_umask(folder: Path) -> None:
    """Let everything in a new folder be read and written by those that the umask allows.

    safetensors writes files that only their owner can read.
    """
    allowed = folder.stat().st_mode & 0o777  # mkdir has applied the umask
    for place in folder.rglob("*"):
        if place.is_symlink():  # its target is not part of the folder
            continue
        mode = stat.S_IMODE(place.stat().st_mode)
        missing = allowed & (0o777 if place.is_dir() else 0o666) & ~mode
        if missing:
            place.chmod(mode | missing)


def _restore(previous: Path, folder: Path) -> None:
    """Move the previous folder back if there is no new one; otherwise delete it."""
    if not folder.exists() and previous.exists():
        previous.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
