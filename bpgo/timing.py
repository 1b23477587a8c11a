"""Wall-clock time by named block."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager


class Clock:
    """Seconds spent in named blocks.

        clock = Clock()
        with clock("sample"):
            with clock("decode"):  # not counted as part of "sample"
                ...
        clock.seconds  # {"decode": ..., "sample": ...}

    The time of a nested block counts for that block only. Work that is still queued on a GPU
    counts for the block that waits for it.
    """

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._nested = 0.0  # seconds of the blocks inside the current one

    @contextmanager
    def __call__(self, name: str):
        start, outer_nested, self._nested = time.perf_counter(), self._nested, 0.0
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] += elapsed - self._nested
            self._nested = outer_nested + elapsed
