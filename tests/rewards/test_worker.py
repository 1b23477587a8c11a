"""Rewards in processes of their own: sums with others, and what is said if one hangs or dies."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml

import bpgo.rewards.worker as worker_module
from bpgo.__main__ import main
from bpgo.config import RewardConfig, build_config
from bpgo.files import read_log
from bpgo.prompt_files import read_prompts
from bpgo.prompts import Prompt
from bpgo.rewards import RewardError, collect, load_reward, load_rewards, submit, total
from bpgo.rewards.retry import RetryWarning
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

    def start(name="clip", path=clip_folder, **given):
        path = str(path) if name.startswith("clip") else None
        workers.append(Worker(name, path_or_hub_id=path, **given))
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
    with pytest.raises(RewardError, match=r"pixels must be in \[0, 1\]"):
        worker(2 * pixels - 1, PROMPTS)
    for wrong, message in ((pixels.numpy(), "not ndarray"), (pixels[:1], "1 images for 2 prompts")):
        with pytest.raises(RewardError, match=f"reward 'clip': .*{message}"):
            worker(wrong, PROMPTS)
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
    message = r"reward 'clip' did not answer within 0\.2 s .*, reward\.time_limit may be raised"
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


OWN = "tests.rewards.own_rewards:"


def test_a_reward_that_does_not_finish_loading_is_ended(start, monkeypatch):
    monkeypatch.setattr(worker_module, "LOADING_LIMIT", 0.5)
    message = r"did not load within 0\.5 s and its process was ended: .*reward\.time_limit"
    with pytest.raises(RewardError, match=message):
        start(f"{OWN}Endless", time_limit=0.1)


def test_loading_may_take_longer_than_a_call(start, pixels):
    assert start(time_limit=0.01).process.is_alive()


@pytest.mark.parametrize(
    ("how", "message"),
    [("death", r"ended with exit code -9"), ("hang", r"did not answer within 2 s")],
)
def test_a_process_that_ends_is_started_again_if_retries_are_left(
    start, pixels, tmp_path, monkeypatch, how, message
):
    monkeypatch.setattr("bpgo.rewards.retry.FIRST_PAUSE", 0.01)
    given = {"counter": str(tmp_path / "calls"), "failures": 1, "how": how}
    worker = start(f"{OWN}Unreliable", retries=1, time_limit=2, **given)
    first = worker.process.pid
    with pytest.warns(RetryWarning, match=message):
        values = worker(pixels, PROMPTS)
    torch.testing.assert_close(values, pixels.mean((1, 2, 3)))
    assert worker.process.pid != first
    again = worker(pixels, PROMPTS)
    assert torch.equal(again, values)


def test_an_error_in_the_process_is_repeated_in_the_same_process(
    start, pixels, tmp_path, monkeypatch
):
    monkeypatch.setattr("bpgo.rewards.retry.FIRST_PAUSE", 0.01)
    worker = start(f"{OWN}Unreliable", retries=1, counter=str(tmp_path / "calls"))
    first = worker.process.pid
    with pytest.warns(RetryWarning, match="raised ConnectionError: 503 server busy"):
        values = worker(pixels, PROMPTS)
    torch.testing.assert_close(values, pixels.mean((1, 2, 3)))
    assert worker.process.pid == first


def test_calls_that_wait_behind_the_last_failure_fail_at_once(start, pixels, tmp_path, monkeypatch):
    monkeypatch.setattr("bpgo.rewards.retry.FIRST_PAUSE", 0.01)
    given = {"counter": str(tmp_path / "calls"), "failures": 99, "how": "death"}
    worker = start(f"{OWN}Unreliable", retries=1, **given)
    with pytest.warns(RetryWarning) as told:
        for answer in [worker.submit(pixels, PROMPTS) for _ in range(3)]:
            with pytest.raises(
                RewardError, match=r"exit code -9 .*rerun the same command to resume"
            ):
                answer.result()
    assert len(told) == 1
    assert len((tmp_path / "calls").read_text()) == 2


def test_what_the_caller_changes_after_a_call_does_not_reach_it(start):
    worker, pixels = start(f"{OWN}exact"), torch.ones(1, 3, 8, 8)
    prompts = [Prompt("2", columns={"answer": 2})]
    answers = []
    for _ in range(5):
        answers.append(worker.submit(pixels.fill_(1.0), prompts))
        pixels.fill_(0.0)
    assert [answer.result().item() for answer in answers] == [2] * 5


def test_pixels_that_require_gradients_are_scored(start, pixels):
    """torch refuses to send a tensor that has a gradient function to another process."""
    worker = start()
    scores = worker(pixels.clone().requires_grad_() * 1, PROMPTS)
    torch.testing.assert_close(scores, worker(pixels, PROMPTS), atol=1e-6, rtol=0)


def test_columns_of_the_prompts_reach_the_process(start, tmp_path):
    file = tmp_path / "questions.csv"
    file.write_text("prompt,answer\nhow many?,2\nand now?,3\n")
    prompts = read_prompts(str(file))
    pixels = torch.stack([torch.full((3, 8, 8), x) for x in (0.5, 1.0)])
    for reward in (load_reward(f"{OWN}exact"), start(f"{OWN}exact"), start(f"{OWN}Exact")):
        assert reward(pixels, prompts).tolist() == [1.0, 3.0]
        with pytest.raises(
            RewardError, match=r"takes the column 'answer' .* its further columns: n"
        ):
            reward(pixels, PROMPTS)


def test_options_may_have_the_names_of_settings_of_the_process(quick_processes, pixels):
    options = {"retries": 1, "time_limit": 2.5}
    for process in (False, True):
        config = RewardConfig(name=f"{OWN}Server", options=options, process=process)
        (reward,) = load_rewards([config]).values()
        assert reward(pixels, PROMPTS).tolist() == [3.5, 3.5]
    reward.close()
    config = RewardConfig(name=f"{OWN}Server", options=options | {"scale": 2.0})
    with pytest.raises(ValueError, match="'scale' cannot be one of its options"):
        load_rewards([config])


# ----------------------------------------------------------------------------------------- signals


def test_the_process_ignores_ctrl_c_and_sigterm(start, pixels):
    """Both are sent to all processes of a run, which then completes what it is doing."""
    worker = start()
    before = worker(pixels, PROMPTS)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.process.pid, number)
    assert torch.equal(worker(pixels, PROMPTS), before)


def test_the_process_ignores_signals_from_its_start():
    with worker_module._signals_blocked():
        starting = subprocess.Popen(["sleep", "100"])
    for number in (signal.SIGINT, signal.SIGTERM):
        starting.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        starting.wait(0.2)
    starting.kill()
    starting.wait()


def score_with_a_reward_that_hangs(note):
    """In a process of its own: start a reward and a call, and wait for the scores."""
    torch.multiprocessing.get_context = lambda method: multiprocessing.get_context("fork")
    Worker(f"{OWN}hangs")(torch.zeros(1, 3, 8, 8), [note])


def leave_a_reward_running(note):
    torch.multiprocessing.get_context = lambda method: multiprocessing.get_context("fork")
    Worker(f"{OWN}hangs").submit(torch.zeros(1, 3, 8, 8), [note])
    wait_for(lambda: os.path.exists(note) and open(note).read())


def wait_for(happened, seconds=60):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.02)


def has_ended(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize("run", [score_with_a_reward_that_hangs, leave_a_reward_running])
def test_the_process_ends_with_the_run_even_during_a_call(run, tmp_path, quick_processes):
    """Whether the run is killed or ends, and although the reward ignores SIGTERM."""
    note = tmp_path / "note"
    parent = torch.multiprocessing.get_context("spawn").Process(target=run, args=(str(note),))
    parent.start()
    wait_for(lambda: note.exists() and note.read_text())
    reward = int(note.read_text())
    if run is score_with_a_reward_that_hangs:
        assert not has_ended(reward)
        parent.kill()
    parent.join(60)
    assert parent.exitcode == (-signal.SIGKILL if run is score_with_a_reward_that_hangs else 0)
    wait_for(lambda: has_ended(reward))


# ----------------------------------------------------------------------------------------- scripts


def test_a_reward_of_a_notebook_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    with pytest.raises(
        RewardError, match=r"set reward\.name=own_reward:colour, or set reward\.proce"
    ):
        Worker("__main__:colour")


def test_a_script_from_standard_input_is_refused_with_a_remedy(monkeypatch):
    main = types.ModuleType("__main__")
    main.__file__ = "<stdin>"  # what Python sets for `python - < script.py`
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(RewardError, match=r"not a file \(<stdin>\).*save it as a file"):
        Worker("clip")


def test_a_script_without_a_main_guard_gets_a_hint(tmp_path):
    script = tmp_path / "script.py"
    code = f"from bpgo.rewards.worker import Worker\nWorker('{OWN}dtype_is_float32')\n"
    script.write_text(code)
    paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, str(script)]
    failed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert f"It imports {script}, which has no main guard" in last
    assert 'below a line `if __name__ == "__main__":`' in last


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
