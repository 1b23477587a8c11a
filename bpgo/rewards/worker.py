"""A reward in a process of its own: it scores while the next samples are made, on any device, and can be given up on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.multiprocessing
from torch import Tensor

from bpgo.rewards import Reward, RewardError, load_reward


class Worker:
    """`load_reward` with these arguments, elsewhere. Called it is a reward; `submit` does not wait for the scores.

    time_limit: seconds for one call; a process that takes longer is ended. Raises what `load_reward` raises; later as `checked`, and
    RewardError if the process dies. Samples travel in shared memory (in a container, mind its --shm-size).
    """

    def __init__(
        self,
        name: str,
        path: str | None,
        device: str = "cpu",
        scale: float = 1.0,
        time_limit: float = 600.0,
    ):
        context = torch.multiprocessing.get_context("spawn")
        self.name, self.time_limit, self.sent, self.answers = name, time_limit, 0, {}
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(other, name, path, device, scale), daemon=True
        )
        self.process.start()
        other.close()  # else its end would not be seen here
        self._receive()

    def submit(self, pixels: Tensor, prompts: list[str]) -> Callable[[], Tensor]:
        """Begin to score; call what is returned for the (B,) scores, on the pixels' device."""
        try:
            self.pipe.send((self.sent, pixels.cpu(), [str(p) for p in prompts]))
        except OSError:
            raise self._dead() from None
        self.sent += 1
        return partial(self._answer, self.sent - 1, pixels.device)

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return self.submit(pixels, prompts)()

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.kill()
        self.process.join()

    def _answer(self, number: int, device) -> Tensor:
        while (
            number not in self.answers
        ):  # those of an interrupted iteration come first, and are dropped with it
            self._receive()
        found = self.answers.pop(number)
        self.answers = {n: values for n, values in self.answers.items() if n > number}
        if isinstance(found, Exception):
            raise found
        return found.to(device)

    def _receive(self) -> None:
        try:
            if not self.pipe.poll(self.time_limit):
                self.close()
                raise RewardError(
                    f"reward {self.name!r} gave no answer in {self.time_limit:g} s and was ended: look at what it waits for, "
                    "or raise its time_limit; the same command goes on with the run"
                )
            number, found = self.pipe.recv()
        except (EOFError, OSError):
            raise self._dead() from None
        if number is None and isinstance(found, Exception):
            raise found
        if number is not None:
            self.answers[number] = found

    def _dead(self) -> RewardError:
        self.process.join(5)
        code = self.process.exitcode
        return RewardError(
            f"the process of reward {self.name!r} has ended with exit code {code}"
            + (": out of memory?" * (code == -9))
        )


def _serve(pipe, name: str, path: str | None, device: str, scale: float) -> None:
    try:
        reward: Reward = load_reward(name, path, device, scale)
        pipe.send((None, None))
    except Exception as error:  # handed to the one who asked
        pipe.send((None, error))
        return
    while True:
        try:
            number, pixels, prompts = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((number, reward(pixels, prompts)))
        except Exception as error:
            known = isinstance(error, (RewardError, MemoryError))
            pipe.send((number, error if known else RewardError(f"{type(error).__name__}: {error}")))
