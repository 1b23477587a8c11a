"""Rewards in processes of their own, sums of rewards, and what is said when one hangs or dies."""

import os
import signal
import time

import pytest
import torch

from bpgo.config import RewardConfig, build_config
from bpgo.files import read_log
from bpgo.rewards import RewardError, load_reward, load_rewards, submit, total
from bpgo.rewards.worker import Worker
from bpgo.trainer import Trainer

PROMPTS = ["a red circle", "a large blue square"]


@pytest.fixture(scope="module")
def worker(clip_folder):
    worker = Worker("clip", str(clip_folder), scale=2.0)
    yield worker
    worker.close()


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_it_scores_as_the_reward_here(worker, clip_folder, pixels):
    here = load_reward("clip", clip_folder)(pixels, PROMPTS)
    torch.testing.assert_close(worker(pixels, PROMPTS), 2 * here, atol=1e-6, rtol=0)


def test_answers_come_to_those_who_asked(worker, pixels):
    expected = [worker(pixels[i : i + 1], PROMPTS[:1]) for i in range(2)]
    answers = [worker.submit(pixels[i : i + 1], PROMPTS[:1]) for i in range(2)]
    assert [answer().item() for answer in answers] == [e.item() for e in expected]
    worker.submit(pixels, PROMPTS)  # of an iteration that was interrupted: nobody asks for it
    assert worker(pixels[:1], PROMPTS[:1]).item() == expected[0].item()


def test_an_error_of_the_reward_is_raised_here_and_the_process_goes_on(worker, pixels):
    with pytest.raises(
        RewardError, match="reward 'clip' raised ValueError: this reward takes pictures"
    ):
        worker(pixels[None], PROMPTS[:1])
    with pytest.raises(RewardError, match="2 pictures for 1 prompts"):
        worker(pixels, PROMPTS[:1])
    assert worker(pixels, PROMPTS).isfinite().all()


def test_memory_that_runs_out_there_is_told_as_that(monkeypatch):
    """Not as the reward's own failure: the trainer names what to change for a MemoryError."""
    import bpgo.rewards.worker as elsewhere

    def large(pixels, prompts):
        raise MemoryError("no room")

    class Pipe:  # what _serve reads, and what it sends
        sent, asked = [], [(0, torch.zeros(1, 3, 8, 8), ["a"])]
        send = sent.append

        def recv(self):
            if not self.asked:
                raise EOFError
            return self.asked.pop()

    monkeypatch.setattr(elsewhere, "load_reward", lambda *given: large)
    elsewhere._serve(Pipe(), "clip", None, "cpu", 1.0)
    assert Pipe.sent[0] == (None, None)
    assert [(number, type(error), str(error)) for number, error in Pipe.sent[1:]] == [
        (0, MemoryError, "no room")
    ]


def test_an_error_of_loading_is_raised_here(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nowhere' is no folder"):
        Worker("clip", "nowhere")
    with pytest.raises(ValueError, match="unknown reward 'clipp', did you mean 'clip'"):
        Worker("clipp", None)


def test_a_reward_that_hangs_is_ended(clip_folder, pixels):
    worker = Worker("clip", str(clip_folder))
    worker.time_limit = 0.2
    os.kill(worker.process.pid, signal.SIGSTOP)  # it hangs
    began = time.monotonic()
    with pytest.raises(
        RewardError,
        match=r"reward 'clip' gave no answer in 0\.2 s and was ended: .* raise its time_limit",
    ):
        worker(pixels, PROMPTS)
    assert time.monotonic() - began < 300  # the default limit is 600 s
    assert not worker.process.is_alive()
    with pytest.raises(RewardError, match="has ended with exit code -9"):
        worker(pixels, PROMPTS)


def test_a_reward_that_dies_is_said_to_have_died(clip_folder, pixels):
    worker = Worker("clip", str(clip_folder))
    worker.process.kill()
    with pytest.raises(
        RewardError,
        match=r"the process of reward 'clip' has ended with exit code -9: out of memory?",
    ):
        worker(pixels, PROMPTS)


def test_a_sum_is_the_sum_and_its_parts_are_named(clip_folder, image_reward_folder, pixels):
    clip, other = (
        RewardConfig(name="clip", path=str(clip_folder), scale=3.0),
        RewardConfig(name="image_reward", path=str(image_reward_folder)),
    )
    again = RewardConfig(name="clip", path=str(clip_folder), process=True)
    rewards = load_rewards([clip, other, again])
    a, b = (
        load_reward("clip", clip_folder)(pixels, PROMPTS),
        load_reward("image_reward", image_reward_folder)(pixels, PROMPTS),
    )
    found = submit(rewards, pixels, PROMPTS)()
    assert list(found) == ["clip", "image_reward", "clip-2"]
    for name, expected in {"clip": 3 * a, "image_reward": b, "clip-2": a}.items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(total(rewards)(pixels, PROMPTS), 4 * a + b, atol=1e-5, rtol=0)
    rewards["clip-2"].close()


def test_samples_are_scored_while_the_next_are_made(tiny_folder, clip_folder, tmp_path):
    """Each micro-batch is handed over as soon as it is decoded, and nothing waits for scores before the last is."""
    config = build_config(
        {
            "generator": {"path": str(tiny_folder), "height": 16, "width": 16},
            "prompts": "given",
            "groups": 2,
            "group_size": 4,
            "sampling": {"steps": 3, "micro_batch": 2},
            "evaluation": {"samples": 1, "steps": 2},
            "reward": {"name": "clip", "path": str(clip_folder), "process": True},
        }
    )
    trainer, order = Trainer(config, tmp_path, prompts=PROMPTS, progress=False), []
    decode, worker = trainer.policy.decode, trainer.rewards["clip"]
    submit, answer = worker.submit, worker._answer

    def noted(what, call):
        return lambda *given: order.append(what) or call(*given)

    trainer.policy.decode, worker.submit = noted("decode", decode), noted("submit", submit)
    worker._answer = noted("answer", answer)
    trainer.step()
    assert order == ["decode", "submit"] * 4 + ["answer"] * 4
    worker.close()


def test_a_run_whose_reward_hangs_ends_and_keeps_its_state(
    tiny_folder, clip_folder, tmp_path, monkeypatch, capsys
):
    """`python -m bpgo train` with a reward that stops in the second iteration: exit code 2 and the remedy; the same command goes on."""
    from bpgo.__main__ import main

    submit, calls = Worker.submit, []

    def stopping(worker, *given):
        calls.append(worker)
        if (
            len(calls) == 5
        ):  # after the trial, two of the evaluation before training, and one of the first iteration
            worker.time_limit = 0.5  # a new process takes longer to begin
            os.kill(worker.process.pid, signal.SIGSTOP)
        return submit(worker, *given)

    monkeypatch.setattr(Worker, "submit", stopping)
    (tmp_path / "words.txt").write_text("\n".join(PROMPTS))
    size = [
        f"generator.path={tiny_folder}",
        "generator.height=16",
        "generator.width=16",
        "sampling.steps=3",
        "evaluation.steps=2",
    ]
    few = [
        "groups=2",
        "group_size=2",
        "optimiser.updates=1",
        "iterations=3",
        f"prompts={tmp_path / 'words.txt'}",
    ]
    reward = [f"reward.path={clip_folder}", "reward.process=true"]
    alone = ["evaluation.prompts=null", "evaluation.held_out=null", "evaluation.metrics=[]"]
    command = ["train", "t2i-tiny", "--output", str(tmp_path / "run"), *size, *few, *reward, *alone]
    assert main(command) == 2
    assert (
        "bpgo train: reward 'clip' gave no answer in 0.5 s and was ended" in capsys.readouterr().err
    )
    assert not calls[-1].process.is_alive()
    assert [place.name for place in (tmp_path / "run").glob("checkpoint-*")] == [
        "checkpoint-000001"
    ]
    assert main(command) == 0
    assert [row["iteration"] for row in read_log(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_a_run_may_train_on_a_sum_that_is_scored_elsewhere(
    tiny_folder, clip_folder, image_reward_folder, tmp_path
):
    parts = [{"name": "clip", "path": str(clip_folder), "scale": 0.5, "process": True}]
    parts += [{"name": "image_reward", "path": str(image_reward_folder)}]
    tree = {
        "generator": {"path": str(tiny_folder), "height": 16, "width": 16},
        "prompts": "given",
        "groups": 2,
        "group_size": 2,
        "sampling": {"steps": 3, "micro_batch": 2},
        "evaluation": {"samples": 1, "steps": 2, "held_out": parts[1:] * 2},
    }
    seen = []
    for reward in (parts, [part | {"process": False} for part in parts]):
        trainer = Trainer(
            build_config(tree | {"reward": reward}),
            tmp_path / str(len(seen)),
            prompts=PROMPTS,
            progress=False,
        )
        seen.append(trainer.step())
    assert seen[0] == pytest.approx(seen[1], abs=1e-5)
    assert seen[0]["reward"] == pytest.approx(
        seen[0]["reward/clip"] + seen[0]["reward/image_reward"], abs=1e-5
    )
    assert set(trainer.evaluate().scores) == {"reward", "image_reward", "image_reward-2"}
