"""Rewards that tests load by name, as users load their own."""

import os
import signal
import time
from pathlib import Path

import torch


def exact(pixels, prompts, answer):
    """Brightness times the column `answer`, a number or its text."""
    return pixels.mean((1, 2, 3)) * torch.tensor([float(text) for text in answer])


class Exact:
    def __call__(self, pixels, prompts, answer):
        return exact(pixels, prompts, answer)


class ExactModule(torch.nn.Module):
    def forward(self, pixels, prompts, answer):
        return exact(pixels, prompts, answer)


def dtype_is_float32(pixels, prompts):
    return [pixels.dtype == torch.float32] * len(prompts)


def device_is_meta(pixels, prompts):
    return [pixels.device.type == "meta"] * len(prompts)


class Unreliable:
    """Fails in its first `failures` calls, counted in a file because a process may end.

    how: what a failure is, one of those below.
    """

    def __init__(self, counter: str, failures: int = 1, how: str = "error"):
        self.counter, self.failures, self.how = Path(counter), failures, how

    def __call__(self, pixels, prompts):
        calls = len(self.counter.read_text()) if self.counter.exists() else 0
        self.counter.write_text("x" * (calls + 1))
        noise = torch.rand(len(prompts))
        if calls < self.failures:
            getattr(self, self.how)()
        return pixels.mean((1, 2, 3)) + 0 * noise

    def error(self):
        raise ConnectionError("503 server busy")

    def death(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self):
        time.sleep(1000)


class Endless:
    """Does not finish loading."""

    def __init__(self):
        time.sleep(1000)


def hangs(pixels, prompts):
    """Says in the file that the first prompt names which process it is, and does not answer."""
    Path(prompts[0]).write_text(str(os.getpid()))
    time.sleep(1000)


class Server:
    """Has options with the names of settings of a reward's process."""

    def __init__(self, retries: int, time_limit: float):
        self.value = retries + time_limit

    def __call__(self, pixels, prompts):
        return [self.value] * len(prompts)
