"""Rewards in processes of their own: sums with others, and what is said if one hangs or dies."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml

import bpgo.rewards.worker as worker_module
from bpgo.__main__ import main
from bpgo.config import RewardConfig, build_config
from bpgo.files import read_log
from bpgo.rewards import RewardError, collect, load_reward, load_rewards, submit, total
from bpgo.rewards.worker import Worker
from bpgo.trainer import Trainer
from tests.small_trainers import merged, prompts_of, redness, write_prompts

PROMPTS = ["a red circle", "a large blue square"]


@pytest.fixture(scope="module")
def worker(clip_folder):
    """A reward in a process that is started as in a run, which takes seconds."""
    worker = Worker("clip", path_or_hub_id=str(clip_folder), scale=2.0)
    yield worker
    worker.close()


@pytest.fixture
def start(clip_folder, quick_processes):
    """Start rewards in processes that are ended after the test."""
    workers = []

    def start(name="clip", path=clip_folder):
        workers.append(Worker(name, path_or_hub_id=str(path)))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------ scores


def test_it_scores_as_the_reward_here(worker, clip_folder, pixels):
    here = load_reward("clip", clip_folder)(pixels, PROMPTS)
    torch.testing.assert_close(worker(pixels, PROMPTS), 2 * here, atol=1e-5, rtol=0)


def test_every_call_gets_its_own_answer(worker, pixels):
    expected = torch.cat([worker(pixels[i : i + 1], PROMPTS[:1]) for i in range(2)])
    assert (expected[0] - expected[1]).abs() > 1e-3
    answers = [worker.submit(pixels[i : i + 1], PROMPTS[:1]) for i in range(2)]
    found = torch.cat([answer.result() for answer in answers])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    worker.submit(pixels, PROMPTS)  # of an interrupted iteration, whose scores nobody asks for
    again = worker(pixels[:1], PROMPTS[:1])
    torch.testing.assert_close(again, expected[:1], atol=1e-5, rtol=0)


def test_a_sum_of_rewards_here_and_elsewhere(
    clip_folder, image_reward_folder, pixels, quick_processes
):
    clip = RewardConfig(name="clip", path=str(clip_folder), scale=3.0)
    other = RewardConfig(name="image_reward", path=str(image_reward_folder))
    again = RewardConfig(name="clip", path=str(clip_folder), process=True)
    rewards = load_rewards([clip, other, again])
    assert isinstance(rewards["clip-2"], Worker)
    found = collect([submit(rewards, pixels, PROMPTS)])
    a = load_reward("clip", clip_folder)(pixels, PROMPTS)
    b = load_reward("image_reward", image_reward_folder)(pixels, PROMPTS)
    for name, expected in {"clip": 3 * a, "image_reward": b, "clip-2": a}.items():
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(total(rewards)(pixels, PROMPTS), 4 * a + b, atol=1e-5, rtol=0)
    rewards["clip-2"].close()


# ------------------------------------------------------------------------------------------ errors


def test_an_error_of_the_reward_is_raised_here_and_the_process_continues(worker, pixels):
    before = worker(pixels, PROMPTS)
    message = "reward 'clip' raised ValueError: this reward takes images"
    with pytest.raises(RewardError, match=message):
        worker(pixels[None], PROMPTS[:1])
    with pytest.raises(RewardError, match="2 images for 1 prompts"):
        worker(pixels, PROMPTS[:1])
    torch.testing.assert_close(worker(pixels, PROMPTS), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("error", [MemoryError("no room"), RewardError("not a number")])
def test_errors_keep_their_type(monkeypatch, error):
    """The trainer names the settings to change for a MemoryError, but not for a RewardError."""

    def failing(pixels, prompts):
        raise error

    class Pipe:
        """What the process reads, and what it sends."""

        sent, calls = [], [(torch.zeros(1, 3, 8, 8), ["a"])]
        send = sent.append

        def recv(self):
            if not self.calls:
                raise EOFError
            return self.calls.pop()

    monkeypatch.setattr(worker_module, "load_reward", lambda **given: failing)
    worker_module._serve(Pipe(), {"name": "clip"})
    assert Pipe.sent == [None, error]


def test_an_error_of_loading_is_raised_here(start):
    with pytest.raises(FileNotFoundError, match="'nowhere' is not a folder"):
        start(path="nowhere")
    with pytest.raises(ValueError, match="unknown reward 'clipp': did you mean 'clip'"):
        start("clipp")


def test_a_reward_that_hangs_is_ended(start, pixels):
    worker = start()
    worker.time_limit = 0.2
    os.kill(worker.process.pid, signal.SIGSTOP)
    started = time.monotonic()
    message = r"reward 'clip' did not answer within 0\.2 s .* or raise its time_limit"
    with pytest.raises(RewardError, match=message):
        worker(pixels, PROMPTS)
    assert time.monotonic() - started < 300  # the default limit is 600 s
    assert not worker.process.is_alive()
    with pytest.raises(RewardError, match="ended with exit code -9"):
        worker(pixels, PROMPTS)


def test_a_reward_that_dies_is_said_to_have_died(start, pixels):
    worker = start()
    worker.process.kill()
    message = r"the process of reward 'clip' ended with exit code -9 \(out of memory\?\)"
    with pytest.raises(RewardError, match=message):
        worker(pixels, PROMPTS)


# -------------------------------------------------------------------------------------------- runs


def test_samples_are_scored_while_the_next_are_drawn(make, monkeypatch):
    """Each micro-batch is submitted once it is decoded, and no score is awaited before the last."""
    trainer, events = make(sampling={"micro_batch": 2}), []  # 6 samples
    decode, last_is_decoded = trainer.policy.decode, threading.Event()

    class Elsewhere:
        """A reward that does not answer before the last micro-batch is decoded."""

        def __init__(self):
            self.threads = ThreadPoolExecutor()

        def submit(self, pixels, prompts):
            events.append("submit")
            return self.threads.submit(self, pixels, prompts)

        def __call__(self, pixels, prompts):
            assert last_is_decoded.wait(60)
            return redness(pixels, prompts)

    def noted(latents):
        events.append("decode")
        if events.count("decode") == 3:
            last_is_decoded.set()
        return decode(latents)

    monkeypatch.setattr(trainer, "rewards", {"elsewhere": Elsewhere()})
    monkeypatch.setattr(trainer.policy, "decode", noted)
    trainer.step()
    assert events == ["decode", "submit"] * 3


def test_a_run_whose_reward_hangs_ends_and_keeps_its_state(
    trees, clip_folder, tmp_path, monkeypatch, capsys, quick_processes
):
    """`bpgo train` with a reward that hangs in the second iteration has exit code 2.

    The message says what to do, and the same command resumes the run.
    """
    step, hung = Trainer.step, []

    def hang_once(trainer):
        if trainer.iteration == 1 and not hung:
            worker = trainer.rewards["clip"]
            hung.append(worker)
            worker.time_limit = 0.5
            os.kill(worker.process.pid, signal.SIGSTOP)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", hang_once)
    changes = {
        "prompts": str(write_prompts(tmp_path / "prompts.txt", "t2i")),
        "reward": {"name": "clip", "path": str(clip_folder), "process": True},
        "iterations": 3,
        "evaluation": {"samples": 1},
    }
    preset = tmp_path / "small.yaml"
    preset.write_text(yaml.safe_dump(merged(trees["t2i"], changes)))
    run = tmp_path / "run"
    command = ["train", str(preset), "--output", str(run)]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "bpgo train: reward 'clip' did not answer within 0.5 s" in message
    assert "rerun the same command to resume" in message
    assert not hung[0].process.is_alive()
    assert [place.name for place in run.glob("checkpoint-*")] == ["checkpoint-000001"]
    assert main(command) == 0
    assert [row["iteration"] for row in read_log(run / "metrics.jsonl")] == [1, 2, 3]


def test_a_run_may_train_on_a_sum_that_is_scored_elsewhere(
    trees, clip_folder, image_reward_folder, tmp_path, quick_processes
):
    clip = {"name": "clip", "path": str(clip_folder), "scale": 0.5}
    other = {"name": "image_reward", "path": str(image_reward_folder)}
    logged = []
    for process in (True, False):
        rewards = [clip | {"process": process}, other]
        changes = {"reward": rewards, "evaluation": {"samples": 1, "held_out": [other, other]}}
        config = build_config(merged(trees["t2i"], changes))
        run = tmp_path / str(process)
        trainer = Trainer(config, run, prompts=prompts_of("t2i"), progress=False)
        logged.append(trainer.step())
    assert logged[0] == pytest.approx(logged[1], rel=1e-3, abs=1e-4)
    parts = logged[0]["reward/clip"] + logged[0]["reward/image_reward"]
    assert logged[0]["reward"] == pytest.approx(parts, abs=1e-4)
    assert set(trainer.evaluate().scores) == {"reward", "image_reward", "image_reward-2"}
