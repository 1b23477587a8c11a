"""A reward in a separate process, which scores on any device while the next samples are drawn."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future

import torch.multiprocessing
from torch import Tensor

from bpgo.rewards import RewardError, load_reward


class Worker:
    """A reward that `load_reward` loads in another process. Calling it waits for the scores.

    time_limit: seconds for one call; a process that takes longer is ended. The constructor raises
    what `load_reward` raises. Calls raise errors as `checked` does, and RewardError if the process
    ends. Samples travel in shared memory (in a container, set a sufficient --shm-size).
    """

    def __init__(self, name: str, *, time_limit: float = 600.0, **given):
        context = torch.multiprocessing.get_context("spawn")
        self.name, self.time_limit = name, time_limit
        self.pipe, other = context.Pipe()
        arguments = (other, {"name": name} | given)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        other.close()  # otherwise the end of the process would not be noticed here
        self._receive()  # an error of load_reward, or None
        self.calls: queue.SimpleQueue[tuple[Future, Tensor, list[str]]] = queue.SimpleQueue()
        threading.Thread(target=self._answer_calls, daemon=True).start()

    def submit(self, pixels: Tensor, prompts: list[str]) -> Future[Tensor]:
        """Start scoring. The future gives the (B,) scores, on the device of the pixels."""
        future: Future[Tensor] = Future()
        self.calls.put((future, pixels, [str(prompt) for prompt in prompts]))
        return future

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self.submit(pixels, prompts).result()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _answer_calls(self) -> None:
        """Answer the calls in order, in a separate thread."""
        while True:
            future, pixels, prompts = self.calls.get()
            try:
                self.pipe.send((pixels.cpu(), prompts))
                future.set_result(self._receive().to(pixels.device))
            except OSError:
                future.set_exception(self._ended())
            except Exception as error:  # raised where the result is asked for
                future.set_exception(error)

    def _receive(self):
        try:
            if not self.pipe.poll(self.time_limit):
                self.close()
                raise RewardError(
                    f"reward {self.name!r} did not answer within {self.time_limit:g} s and its "
                    f"process was ended: find out what it waits for, or raise its time_limit, and "
                    f"rerun the same command to resume"
                )
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ended(self) -> RewardError:
        self.process.join(5)
        code = self.process.exitcode
        reason = " (out of memory?)" if code == -9 else ""
        return RewardError(
            f"the process of reward {self.name!r} ended with exit code {code}{reason}: "
            f"see its output, and rerun the same command to resume"
        )


def _serve(pipe, given: dict) -> None:
    """What the process runs: load the reward, then answer calls until the pipe is closed."""
    try:
        reward = load_reward(**given)
    except Exception as error:  # raised in the process that asked
        pipe.send(_portable(error))
        return
    pipe.send(None)
    while True:
        try:
            pixels, prompts = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(reward(pixels, prompts))
        except (RewardError, MemoryError) as error:
            pipe.send(_portable(error))


def _portable(error: Exception) -> Exception:
    """The error itself, or its text as a RewardError if its class may not survive pickling."""
    if type(error) in (RewardError, ValueError, TypeError, OSError, FileNotFoundError, MemoryError):
        return error
    return RewardError(f"{type(error).__name__}: {error}")
