"""Training runs in separate processes, for tests that kill a run, fill its disk or take away its
rights.

A fork server imports torch and diffusers once, so each run costs only its training. Every run calls
the `main` of `bpgo`, on one thread.
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

import torch

from bpgo import checkpoint
from bpgo.registry import TABLES

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
    "bpgo.generators.flux",
    "bpgo.generators.wan",
    "bpgo.rewards.clip",
    "bpgo.rewards.video_clip_xl",
    "tests.small_runs",
]
LIMIT = 180  # seconds


def run(arguments, log, *disturbances):
    """`bpgo ARGUMENTS` in a separate process, after these disturbances.

    Returns its exit code (minus the signal that ended it) and what it printed.
    """
    process = _start(arguments, log, disturbances)
    process.join()
    return process.exitcode, Path(log).read_text()


def run_together(count, arguments, log, *disturbances):
    """`bpgo ARGUMENTS` in `count` processes that train together.

    Returns the exit code and the output of each. If any fails, the output of all is printed,
    because one process often says only that another has gone. Processes that have not ended after
    LIMIT seconds are killed.
    """
    from torch.distributed import TCPStore

    # The processes meet at this store, whose port is taken from the start.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs = [Path(f"{log}-{rank}") for rank in range(count)]
    processes = []
    for rank, file in enumerate(logs):
        launched = partial(launch, rank, count, store.port)
        processes.append(_start(arguments, file, (launched, *disturbances)))
    deadline = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    codes, outputs = [p.exitcode for p in processes], [file.read_text() for file in logs]
    if any(codes):
        for rank, (code, output) in enumerate(zip(codes, outputs, strict=True)):
            print(f"--- process {rank} ended with {code} and printed:\n{output}")
    assert not late, f"{len(late)} of {count} processes did not end in {LIMIT} seconds"
    return list(zip(codes, outputs, strict=True))


def _start(arguments, log, disturbances):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(HEAVY)
    given = (list(map(str, arguments)), str(log), disturbances, os.environ.get("BPGO_CACHE"))
    process = server.Process(target=_main, args=given)
    process.start()
    return process


def _main(arguments, log, disturbances, cache):
    out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if cache is not None:  # the fork server has the environment that it was started in
        os.environ["BPGO_CACHE"] = cache
    from bpgo.__main__ import main

    # A disturbed process may no longer be allowed to read these.
    for name in ("bpgo.trainer", "encodings.utf_8_sig"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    # A reward's worker blocks signals while it starts, also in the fork server if that starts then.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    register_reward()
    for disturb in disturbances:
        disturb()
    sys.exit(main(arguments))


def launch(rank, count, port):
    """Set what `accelerate launch` sets for process `rank` of `count` on CPUs."""
    if count == 1:
        return
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",  # a container's own network may not resolve its name
    }
    os.environ |= {name: str(value) for name, value in names.items()}


# ------------------------------------------------------------------------------ the test reward

_disturbance = (None, None)  # (act, call) of the next test reward that is loaded


def register_reward(act=None, call=None):
    """Let `reward.name=test` stand for `load_test_reward`.

    At its call number `call` the reward returns `act(values)`. Calls are counted from the trial
    before training, which is number 0, and include those of evaluations.
    """
    global _disturbance
    _disturbance = (act, call)
    TABLES["reward"]["test"] = "tests.small_runs:load_test_reward"


def load_test_reward(path):
    """A CLIP or VideoCLIP reward with a little noise from torch's generator.

    The state of the generator therefore matters to the run.
    """
    from bpgo.rewards import clip, video_clip_xl

    videos = "frames" in json.loads((Path(path) / "config.json").read_text())
    model, score = (video_clip_xl if videos else clip).load(path)
    act, call = _disturbance
    calls = itertools.count()

    def noisy(pixels, prompts):
        values = score(pixels, prompts) + 1e-3 * torch.rand(len(prompts))
        return act(values) if next(calls) == call else values

    return model, noisy


# -------------------------------------------------------------------------------- disturbances


def use_fsdp():
    """Set what `accelerate launch` sets for reproduce/accelerate/fsdp2.yaml."""
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def send(number, values=None):
    """Send this process a signal, as Ctrl-C (SIGINT) or a scheduler (SIGTERM) does."""
    os.kill(os.getpid(), number)
    return values


def send_after_the_update(number, iteration):
    """Send this process a signal when the policy of an iteration has been trained."""
    from bpgo import trainer

    original, updates = trainer.update_average, itertools.count(1)

    def update_average(*given):
        if next(updates) == iteration:
            send(number)
        original(*given)

    trainer.update_average = update_average


def send_while_writing(number, part):
    """Send this process a signal while it writes the checkpoint `part`."""
    original = checkpoint.save_file

    def save_file(tensors, file):
        if part in str(file):
            send(number)
        original(tensors, file)

    checkpoint.save_file = save_file


def start(arguments, log):
    """Start `bpgo ARGUMENTS` in a separate process, and return it."""
    return _start(arguments, log, ())


def kill_before(name, part):
    """Kill the process just before os.fsync or Path.rename is called on a path that has `part`."""
    owner = {"fsync": os, "rename": Path}[name]
    original = getattr(owner, name)

    def call(first, *arguments, **named):
        place = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        if part in place:
            kill()
        return original(first, *arguments, **named)

    setattr(owner, name, call)


def kill_while_writing(part):
    """Kill the process when half of the tensors of the checkpoint `part` are on disk."""
    original = checkpoint.save_file

    def save_file(tensors, file):
        original(tensors, file)
        if part in str(file):
            os.truncate(file, os.path.getsize(file) // 2)
            kill()

    checkpoint.save_file = save_file


def kill_in_export():
    """Kill the process when it is about to save the autoencoder of the final pipeline."""
    from diffusers import AutoencoderKL, AutoencoderKLWan

    AutoencoderKL.save_pretrained = AutoencoderKLWan.save_pretrained = kill


def limit_file_size(size):
    """Let the disk refuse every file larger than `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def drop_rights():
    """Become a user without rights."""
    os.setgid(65534)
    os.setuid(65534)
