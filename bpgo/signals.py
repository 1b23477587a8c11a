"""SIGINT (Ctrl-C) and SIGTERM, which end a run where its state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The process received SIGINT or SIGTERM.

    code: the usual exit code, 128 plus the number of the signal: 130 or 143. on_all_processes:
    whether every process of the run stops at the same point.
    """

    def __init__(self, number: int, on_all_processes: bool = False):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.code = 128 + number
        self.on_all_processes = on_all_processes


class Interruption:
    """Within this context, SIGINT and SIGTERM raise Interrupted at once or, if held, on release.

        with interruption:
            ...                      # may be interrupted anywhere
            interruption.hold()
            ...                      # is always completed
            interruption.release()   # raises Interrupted if a signal came in the meantime

    Python handles signals in its main thread, so the context has no effect in other threads. The
    end of the context, normal or not, also ends a hold.
    """

    def __init__(self):
        self.held, self.received = False, 0
        self._previous: dict[int, Callable | int | None] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous, self.held, self.received = {}, False, 0

    def hold(self) -> None:
        """From now on, only note a signal."""
        self.held = True

    def release(self, on_all_processes: bool = False) -> None:
        """End the hold. Raises Interrupted if a signal came during it."""
        self.held = False
        number, self.received = self.received, 0
        if number:
            raise Interrupted(number, on_all_processes)

    def share(self, accelerator) -> None:
        """Note a signal that any process of the run received. All processes must call it."""
        import torch  # not needed, and slow to import, for commands that do not train

        received = torch.tensor([self.received], device=accelerator.device)
        self.received = int(accelerator.gather(received).max())

    def _handle(self, number: int, _frame) -> None:
        if self.held:
            self.received = number
        else:
            raise Interrupted(number)
