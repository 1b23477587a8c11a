"""Training runs in processes of their own, for the tests that kill them, fill their disk or take their rights away.

A fork server imports torch and diffusers once, so a run costs what it trains. Every run is `python -m bpgo`'s own `main`, on one thread.
"""

import importlib
import itertools
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

HEAVY = [
    "torch",
    "accelerate",
    "peft",
    "tqdm.auto",
    "diffusers.training_utils",
    "diffusers.pipelines.flux.pipeline_flux",
    "diffusers.pipelines.wan.pipeline_wan",
    "diffusers.pipelines.wan.pipeline_wan_i2v",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5",
    "transformers.models.umt5.modeling_umt5",
    "bpgo.trainer",
]
LIMIT = 180  # seconds


def run(arguments, log, *disturbances):
    """`python -m bpgo ARGUMENTS` in a process of its own, disturbed. Returns its exit code (minus the signal) and what it wrote."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(HEAVY)
    process = server.Process(target=_main, args=(list(map(str, arguments)), str(log), disturbances))
    process.start()
    process.join()
    return process.exitcode, Path(log).read_text()


def together(count, arguments, log, *disturbances):
    """`python -m bpgo ARGUMENTS` in `count` processes that train together. Returns the exit code and the words of each.

    If any fails, the words of all are printed: what one process says is often only that another has gone. What has not ended after LIMIT
    seconds is killed.
    """
    from torch.distributed import TCPStore

    store = TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )  # where they meet, at a port that is held from the start
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(HEAVY)
    logs = [Path(f"{log}-{rank}") for rank in range(count)]
    ranks = [partial(rank_of, rank, count, store.port) for rank in range(count)]
    processes = [
        server.Process(
            target=_main, args=(list(map(str, arguments)), str(file), (rank, *disturbances))
        )
        for rank, file in zip(ranks, logs, strict=True)
    ]
    for process in processes:
        process.start()
    ends = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, ends - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    found = [
        (process.exitcode, file.read_text()) for process, file in zip(processes, logs, strict=True)
    ]
    if any(code for code, _ in found):
        print(
            "".join(
                f"--- process {rank} ended with {code} and said:\n{said}\n"
                for rank, (code, said) in enumerate(found)
            )
        )
    assert not late, f"{len(late)} of {count} processes did not end in {LIMIT} seconds"
    return found


def rank_of(rank, count, port):
    """What `accelerate launch` sets for process number `rank` of `count`, on CPUs. They meet at the launcher's store, as torchrun's do."""
    if count > 1:
        names = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_PORT": port,
        }
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "ACCELERATE_USE_CPU": "true",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        os.environ |= {
            "GLOO_SOCKET_IFNAME": "lo"
        }  # not the network of a container, whose name may lead anywhere


def _main(arguments, log, disturbances):
    out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    import torch

    from bpgo.__main__ import main

    for name in ("bpgo.trainer", "encodings.utf_8_sig"):  # while it may still read everything
        importlib.import_module(name)
    torch.set_num_threads(1)
    reward()
    for disturb in disturbances:
        disturb()
    sys.exit(main(arguments))


# --------------------------------------------------------------------------------------------------------- disturbances


def reward(act=None, call=None):
    """Make `reward.name=test` a CLIP reward with a little noise of torch's own generator, so that its state counts too.

    For a folder of VideoCLIP it is a reward of videos. At its call number `call`, evaluations counted, it does `act(values)`; call 0 is
    the trial before the run.
    """
    import torch

    from bpgo.rewards import REWARDS, clip, video_clip_xl

    def load(path):
        videos = "frames" in json.loads((Path(path) / "config.json").read_text())
        model, score = (video_clip_xl if videos else clip).load(path)
        calls = itertools.count()

        def noisy(pixels, prompts):
            values = score(pixels, prompts) + 1e-3 * torch.rand(len(prompts))
            return act(values) if next(calls) == call else values

        return model, noisy

    REWARDS["test"] = (load, {}, None)


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
    from diffusers import AutoencoderKL, AutoencoderKLWan

    AutoencoderKL.save_pretrained = AutoencoderKLWan.save_pretrained = kill


def largest_file(size):
    """A disk that takes no file above `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def nobody():
    """A user without rights."""
    os.setgid(65534)
    os.setuid(65534)
