"""The traceback of an unexpected error, in a file."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from pathlib import Path

from bpgo import __version__
from bpgo.files import write_atomic


def write_error_log(error: BaseException, run: Path | None = None) -> Path:
    """Write the traceback of an error to a file, and return its path.

    run: the folder of a run, whose file is `error.log`, or `error-rank1.log` and so on for further
    processes. Without a run, or if its folder cannot be written to, the file is a temporary one.
    """
    head = f"bpgo {__version__}, Python {platform.python_version()}\n{' '.join(sys.argv)}\n\n"
    text = head + "".join(traceback.format_exception(error))
    if run is not None and run.is_dir():
        rank = os.environ.get("RANK", "0")
        file = run / ("error.log" if rank == "0" else f"error-rank{rank}.log")
        try:
            write_atomic(file, text)
            return file
        except OSError:
            pass  # the disk may be full; the temporary folder is often on another one
    handle, name = tempfile.mkstemp(prefix="bpgo-error-", suffix=".log")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)
    return Path(name)
