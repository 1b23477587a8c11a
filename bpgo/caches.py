"""Where caches are kept, also on a machine whose home folder is missing or cannot be written to."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

from bpgo.files import expand


def cache_folder() -> Path:
    """The folder of this package's cache: $BPGO_CACHE, or ~/.cache/bpgo.

    Without a home folder that can be written to, it is a temporary folder, with a warning. Raises
    OSError if $BPGO_CACHE cannot be written to.
    """
    chosen = os.environ.get("BPGO_CACHE")
    if chosen:
        folder = expand(chosen)
        if not writable(folder):
            raise OSError(f"cannot write to {folder}: set BPGO_CACHE to another folder")
        return folder
    home = _home_cache()
    if home is not None:
        return home / "bpgo"
    folder = _temporary() / "bpgo"
    warnings.warn(f"{_note(folder)} Set BPGO_CACHE to keep it elsewhere", stacklevel=2)
    return folder


def redirect_caches() -> str | None:
    """Point all caches to a temporary folder if the home folder cannot be written to.

    Call it before matplotlib, huggingface_hub and torch are imported. Variables that are set stay
    as they are, and so does a hub cache that exists. Returns what to tell the user, or None.
    """
    if _home_cache() is not None:
        return None
    folder = _temporary()
    names = {"BPGO_CACHE": "bpgo", "MPLCONFIGDIR": "matplotlib", "TRITON_CACHE_DIR": "triton"}
    if "XDG_CACHE_HOME" not in os.environ and not _has_hub_cache():
        names["HF_HOME"] = "huggingface"
    missing = [name for name in names if not os.environ.get(name)]
    if not missing:
        return None
    for name in missing:
        os.environ[name] = str(folder / names[name])
    return f"{_note(folder)} Set HOME, or {', '.join(missing)}, to keep them elsewhere"


def writable(folder: Path) -> bool:
    """Whether a folder can be written to or, if it does not exist, made."""
    while not os.path.exists(folder) and folder != folder.parent:  # Path.exists may raise
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def _home() -> Path | None:
    """The home folder; None if neither HOME nor the system's list of users says which it is."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _home_cache() -> Path | None:
    """~/.cache, or None if there is no home folder, or it cannot be written to."""
    home = _home()
    if home is None or not writable(home / ".cache"):
        return None
    return home / ".cache"


def _has_hub_cache() -> bool:
    home = _home()
    return home is not None and os.path.isdir(home / ".cache" / "huggingface")


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"bpgo-cache-{os.getuid()}"


def _note(folder: Path) -> str:
    home = _home()
    why = "there is no home folder" if home is None else f"{home} cannot be written to"
    return f"{why}, so caches are in {folder}, which may not last."
