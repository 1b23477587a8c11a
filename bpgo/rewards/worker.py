"""A reward in a separate process, which scores on any device while the next samples are drawn.

The process ignores SIGINT and SIGTERM, which Ctrl-C and batch systems send to all processes of a
run, so that the run can complete its iteration and save its state. It ends with the process that
started it, however that one ends.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.util import Finalize
from pathlib import Path
from typing import NoReturn

import torch.multiprocessing
from torch import Tensor

from bpgo.rewards import load_reward
from bpgo.rewards.checks import CallError, RewardError, check_form
from bpgo.rewards.prompt_checks import prompt_check
from bpgo.rewards.retry import retried

LOADING_LIMIT = 600.0  # seconds
REMEDY = (
    "see its output, and rerun the same command to resume. For that, reward.time_limit may be "
    "raised, and reward.retries, the number of times that a new process repeats a failed call"
)
IGNORED = {signal.SIGINT, signal.SIGTERM}


class Worker:
    """A reward that `load_reward` loads in another process. Calling it waits for the scores.

    options and given: arguments of `load_reward`; options may also be called as arguments are here.
    time_limit: seconds for one call; a process that takes longer is ended. Loading may take 600 s
    or time_limit, whichever is longer. retries: how many times a failed call is repeated (see
    `bpgo.rewards.retry.retried`), in a new process if the old one has ended. After the last failure
    of a process, later calls fail at once.

    The constructor raises what `load_reward` raises, and RewardError if the process cannot be
    started or does not load the reward. Calls raise errors as `checked` does, and CallError if the
    process ends. Samples travel in shared memory (in a container, set a sufficient --shm-size).
    """

    def __init__(
        self,
        name: str,
        *,
        time_limit: float = 600.0,
        retries: int = 0,
        options: dict | None = None,
        **given,
    ):
        _check_main(name)
        self.name, self.time_limit, self.retries = name, time_limit, retries
        self.given = {"name": name} | given | (options or {})
        self.closed = self.failed = False
        try:
            self._start()
        except CallError as error:
            raise CallError(f"{error}: {REMEDY}") from None
        self.calls: queue.SimpleQueue[tuple[Future, Tensor | None, list[str]]] = queue.SimpleQueue()
        threading.Thread(target=self._answer_calls, daemon=True).start()

    def submit(self, pixels: Tensor, prompts: list[str]) -> Future[Tensor]:
        """Start scoring. The future gives the (B,) scores, on the device of the pixels."""
        check_form(pixels, prompts, f"reward {self.name!r}")
        future: Future[Tensor] = Future()
        # A copy, because the caller may change its own before these are sent.
        self.calls.put((future, pixels.detach().clone(), list(prompts)))
        return future

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self.submit(pixels, prompts).result()

    def check_prompts(self, prompts: list[str]) -> None:
        """Raise ValueError for prompts that the reward refuses, without scoring them."""
        future: Future[None] = Future()
        self.calls.put((future, None, list(prompts)))
        future.result()

    def close(self) -> None:
        """End the process for good."""
        self.closed = True
        self._end()

    def _answer_calls(self) -> None:
        """Answer the calls in order, in a separate thread."""
        while True:
            future, pixels, prompts = self.calls.get()
            call = partial(retried, self._score, self.name, self.retries)
            try:
                if pixels is None:
                    future.set_result(call(None, prompts))
                else:
                    future.set_result(call(pixels.cpu(), prompts).to(pixels.device))
            except Exception as error:  # raised where the result is asked for
                if self.failed:
                    self.closed = True
                    if isinstance(error, CallError):
                        error = CallError(f"{error}: {REMEDY}")
                future.set_exception(error)

    def _score(self, pixels: Tensor | None, prompts: list[str]) -> Tensor | None:
        """Score once, or without pixels check the prompts.

        If the last call has failed, this one is its repetition in a new process.
        """
        if self.closed:
            raise RewardError(f"{self._ended()}: {REMEDY}")
        if self.failed:
            self._start()
        return self._exchange((pixels, prompts), self.time_limit)

    def _start(self) -> None:
        """Start the process, and wait until it has loaded the reward."""
        context = torch.multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self.given), daemon=True)
        with _signals_blocked():
            self.process.start()
            # At exit, Python would send SIGTERM, which the process ignores, and wait for its end.
            Finalize(None, self.process.kill, exitpriority=10)
        other.close()  # otherwise the end of the process would not be noticed here
        self.failed = True  # until it has loaded the reward
        self._exchange(None, max(self.time_limit, LOADING_LIMIT))
        self.failed = False

    def _exchange(self, call: tuple[Tensor | None, list[str]] | None, limit: float):
        """Send a call, or None to wait for the reward to load, and receive the answer."""
        deadline = time.monotonic() + limit
        timer = threading.Timer(limit, self.process.kill)  # ends a call that cannot be sent, too
        timer.daemon = True
        timer.start()
        try:
            if call is not None:
                self.pipe.send(call)
            if not self.pipe.poll(limit):
                raise EOFError
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.failed = True
            self._raise_why(loading=call is None, limit=limit, hangs=time.monotonic() >= deadline)
        finally:
            timer.cancel()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _raise_why(self, loading: bool, limit: float, hangs: bool) -> NoReturn:
        """Raise an error that says why there is no answer."""
        if hangs:
            self._end()
            raise CallError(
                f"reward {self.name!r} did not {'load' if loading else 'answer'} within "
                f"{limit:g} s and its process was ended"
            ) from None
        message = self._ended() + (" before it had loaded the reward" if loading else "")
        unguarded = _unguarded_script() if loading and self.process.exitcode == 1 else None
        if unguarded is None:
            raise CallError(message) from None
        raise RewardError(
            f"{message}. It imports {unguarded}, which has no main guard and so starts training "
            f'there again: put what the script does below a line `if __name__ == "__main__":`, '
            f"and leave only imports and definitions above it"
        ) from None

    def _end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _ended(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        reason = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"the process of reward {self.name!r} ended with exit code {code}{reason}"


# --------------------------------------------------------------------------- in the other process


def _serve(pipe, given: dict) -> None:
    """What the process runs: load the reward, then answer calls until the pipe is closed."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _answer(pipe, given)
    except (EOFError, OSError):  # the other end of the pipe is closed
        return


def _answer(pipe, given: dict) -> None:
    try:
        reward = load_reward(**given)
    except Exception as error:  # raised in the process that asked
        pipe.send(_portable(error))
        return
    pipe.send(None)
    while True:
        pixels, prompts = pipe.recv()
        if pixels is None:
            pipe.send(_check(reward, prompts))
            continue
        try:
            answer = reward(pixels, prompts)
        except (RewardError, MemoryError) as error:
            answer = _portable(error)
        pipe.send(answer)


def _check(reward, prompts: list[str]) -> Exception | None:
    try:
        return prompt_check(reward)(prompts)
    except Exception as error:  # from any user's code
        return _portable(error)


def _end_with_parent() -> None:
    """End this process, in the midst of a call if need be, once the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error itself, or its text as a RewardError if its class may not survive pickling."""
    kept = (RewardError, CallError, ValueError, TypeError, OSError, FileNotFoundError, MemoryError)
    if type(error) in kept:
        return error
    return RewardError(f"{type(error).__name__}: {error}")


# ----------------------------------------------------------------------------- starting processes


@contextmanager
def _signals_blocked():
    """A process that is started in this context does not get SIGINT and SIGTERM while it imports.

    It inherits that they are blocked, until `_serve` ignores them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # otherwise `start` would, and unblock both signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_main(name: str) -> None:
    """Raise RewardError if the new process cannot import what this one has as `__main__`."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None and name.startswith("__main__:"):
        attribute = name.partition(":")[2]
        raise RewardError(
            f"reward {name!r} is defined in a notebook or an interactive session, which the "
            f"reward's process cannot import: put it into a file, such as own_reward.py in the "
            f"current folder, and set reward.name=own_reward:{attribute}, or set "
            f"reward.process=false"
        )
    if file is not None and main.__spec__ is None and not Path(file).is_file():
        raise RewardError(
            f"reward {name!r}: this script is not a file ({file}), and the reward's process must "
            f"import it: save it as a file and run that, or set reward.process=false"
        )


def _unguarded_script() -> str | None:
    """The script that this process runs, if it has no main guard."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None or not Path(file).is_file():
        return None
    text = Path(file).read_text(encoding="utf-8", errors="replace")
    return None if "__name__" in text else file
