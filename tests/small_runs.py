"""Training runs in processes of their own, for the tests that kill them, fill their disk or take their rights away.

A fork server imports torch and diffusers once, so a run costs what it trains. Every run is `python -m bpgo`'s own `main`, on one thread.
"""

import importlib
import itertools
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

HEAVY = ["torch", "accelerate", "peft", "tqdm.auto", "diffusers.training_utils", "diffusers.pipelines.flux.pipeline_flux",
         "transformers.models.clip.modeling_clip", "transformers.models.t5.modeling_t5", "bpgo.trainer"]  # fmt: skip


def run(arguments, log, *disturbances):
    """`python -m bpgo ARGUMENTS` in a process of its own, disturbed. Returns its exit code (minus the signal) and what it wrote."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(HEAVY)
    process = server.Process(target=_main, args=(list(map(str, arguments)), str(log), disturbances))
    process.start()
    process.join()
    return process.exitcode, Path(log).read_text()


def _main(arguments, log, disturbances):
    out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    import torch

    from bpgo.__main__ import main

    importlib.import_module("bpgo.trainer")  # while it may still read everything
    torch.set_num_threads(1)
    reward()
    for disturb in disturbances:
        disturb()
    sys.exit(main(arguments))


# --------------------------------------------------------------------------------------------------------- disturbances


def reward(act=None, call=None):
    """Make `reward.name=test` a CLIP reward with a little noise of torch's own generator, so that its state counts too.

    At its call number `call`, evaluations counted, it does `act(values)`.
    """
    import torch

    from bpgo.rewards import REWARDS, clip

    def load(path):
        model, score = clip.load(path)
        calls = itertools.count(1)

        def noisy(pixels, prompts):
            values = score(pixels, prompts) + 1e-3 * torch.rand(len(prompts))
            return act(values) if next(calls) == call else values

        return model, noisy

    REWARDS["test"] = (load, None)


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def before(name, part):
    """Kill the process just before os.fsync or Path.rename is called on what has `part` in its path."""
    owner = {"fsync": os, "rename": Path}[name]
    original = getattr(owner, name)

    def call(first, *arguments, **named):
        place = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        if part in place:
            kill()
        return original(first, *arguments, **named)

    setattr(owner, name, call)


def half_written(part):
    """Kill the process when half of the tensors of the checkpoint `part` are on disk."""
    from bpgo import checkpoint

    original = checkpoint.save_file

    def save_file(tensors, file):
        original(tensors, file)
        if part in str(file):
            os.truncate(file, os.path.getsize(file) // 2)
            kill()

    checkpoint.save_file = save_file


def half_saved():
    """Kill the process when one part of the final pipeline is about to be saved."""
    from diffusers import AutoencoderKL

    AutoencoderKL.save_pretrained = kill


def largest_file(size):
    """A disk that takes no file above `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def nobody():
    """A user without rights."""
    os.setgid(65534)
    os.setuid(65534)
