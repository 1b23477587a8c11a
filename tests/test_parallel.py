"""Two processes against one, with whole copies of the weights and with shards; and what happens when one of them dies."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bpgo import checkpoint
from bpgo.evaluation import shares
from bpgo.trainer import read_log
from bpgo.worlds.pretrain import architectures as tiny
from tests import small_runs as runs

WORDS = ["a red circle", "a large blue square", "a shape", "a small cross at the top"]
TASKS = ("t2i", "t2v", "i2v")
ACCELERATE = Path(__file__).parent.parent / "reproduce" / "accelerate"


@pytest.fixture(scope="module")
def video_reward(tmp_path_factory):
    """A VideoCLIP folder of random weights."""
    from safetensors.torch import save_file

    from bpgo.rewards.video_clip_xl import VideoCLIP

    folder, tokenizer = tmp_path_factory.mktemp("models") / "video-reward", tiny.clip_tokenizer()
    folder.mkdir()
    torch.manual_seed(4)
    config = tiny.video_clip_config(tokenizer)
    config["vision"] |= {"image_size": 16}
    model = VideoCLIP(config)
    (folder / "config.json").write_text(json.dumps(model.config))
    save_file(model.state_dict(), folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def presets(tiny_folder, clip_folder, wan_folder, wan_i2v_folder, video_reward, tmp_path_factory):
    """A preset of each task: 4 groups of 2 in two updates, evaluated before and after, with averaged weights."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("presets")
    (folder / "t.txt").write_text("\n".join(WORDS))
    for i in range(4):
        Image.effect_noise((16, 16), 40 + 40 * i).convert("RGB").save(folder / f"{i}.png")
    (folder / "i2v.jsonl").write_text(
        "".join(json.dumps({"prompt": w, "image": f"{i}.png"}) + "\n" for i, w in enumerate(WORDS))
    )
    video = dict(height=16, width=16, frames=9, guidance=1.0)
    generators = {
        "t2i": {"path": str(tiny_folder), "height": 16, "width": 16},
        "t2v": {"path": str(wan_folder)} | video,
        "i2v": {"path": str(wan_i2v_folder)} | video,
    }
    for task, generator in generators.items():
        tree = {
            "generator": generator,
            "reward": {"name": "clip", "path": str(clip_folder)}
            if task == "t2i"
            else {"name": "video_clip_xl", "path": str(video_reward)},
            "prompts": str(folder / ("i2v.jsonl" if task == "i2v" else "t.txt")),
            "groups": 4,
            "group_size": 2,
            "iterations": 2,
            "sampling": {
                "steps": 4,
                "shift": 3.0,
                "schedule": "flow-grpo",
                "noise_level": 0.7,
                "micro_batch": 2,
                "window": 3,
            },
            "optimiser": {
                "learning_rate": 1e-3,
                "updates": 2,
                "ema_decay": 0.5,
                "max_grad_norm": 1e9,
            },
            "objective": {"name": "bpgo", "kappa": 1.0},
            "prior": {"name": "sft", "samples": 1} if task != "i2v" else {"kind": "first_frame"},
            "evaluation": {"samples": 1, "steps": 2},
        }
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(tree))
    return {task: folder / f"{task}.yaml" for task in TASKS}


def fsdp():
    """What `accelerate launch` sets for reproduce/accelerate/fsdp2.yaml."""
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }


def train(count, preset, folder, *disturbances, overrides=()):
    found = runs.together(
        count,
        ["train", preset, "--output", folder, *overrides],
        folder.with_suffix(".log"),
        *disturbances,
    )
    assert not any(code for code, _ in found), "see what each process said"
    return folder


def state_of(folder, iteration):
    return checkpoint.load_state(folder / f"checkpoint-{iteration:06d}")[0]


def assert_close(states, expected, tolerance, weights=None):
    """Adam's first moments, which are sums of gradients, within this share of their largest; weights within this distance."""
    scale = max(
        v.abs().max() for name, v in expected.items() if name.startswith("optimiser/exp_avg/")
    )
    for state in states:
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert state[name].dtype == value.dtype
            if name.startswith("optimiser/exp_avg/"):
                torch.testing.assert_close(
                    state[name],
                    value,
                    atol=tolerance * scale,
                    rtol=0,
                    msg=lambda m, n=name: f"{n}: {m}",
                )
            elif name.startswith(("weights/", "ema/")) and weights:
                torch.testing.assert_close(
                    state[name], value, atol=weights, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
                )


LORA = ["generator.lora_rank=2", "generator.dtype=bfloat16"]
ONCE = {
    "t2i": ("t2i", []),
    "t2v": ("t2v", []),
    "i2v": ("i2v", []),
    "t2i, LoRA": ("t2i", LORA),
    "i2v, LoRA": ("i2v", LORA),
}


@pytest.mark.parametrize("case", ONCE)
def test_any_number_of_processes_takes_the_step_of_one(presets, tmp_path, case):
    """To rounding: the first moments of Adam, which are the gradients, the weights after the step, and what is logged and evaluated.

    A weight whose gradient is near Adam's eps moves by a share of the learning rate that rounding decides: 1e-4 keeps it below 1e-6.
    """
    task, overrides = ONCE[case]
    overrides = ["iterations=1", "optimiser.updates=1", "optimiser.learning_rate=1e-4", *overrides]
    one, two, shards = (
        train(count, presets[task], tmp_path / name, *how, overrides=overrides)
        for count, name, how in ((1, "one", ()), (2, "two", ()), (2, "shards", (fsdp,)))
    )
    expected, *states = (state_of(folder, 1) for folder in (one, two, shards))
    assert {v.dtype for name, v in expected.items() if name != "rng"} == {torch.float32}
    assert_close(states, expected, 1e-6, weights=1e-6)
    for other in (two, shards):
        for log in ("metrics.jsonl", "evaluations.jsonl"):
            for a, b in zip(read_log(one / log), read_log(other / log), strict=True):
                a.pop("scores", None), b.pop("scores", None)
                assert b == pytest.approx(a, rel=1e-3, abs=1e-5)


def test_further_updates_are_those_of_one_process(presets, tmp_path):
    """To more than rounding: the second one begins at weights that Adam moved by the sign of gradients, of which some are nearly zero."""
    one, two, shards = (
        train(count, presets["t2i"], tmp_path / name, *how, overrides=["iterations=1"])
        for count, name, how in ((1, "one", ()), (2, "two", ()), (2, "shards", (fsdp,)))
    )
    expected, *states = (state_of(folder, 1) for folder in (one, two, shards))
    assert_close(states, expected, 1e-4)


def test_a_run_goes_on_with_another_number_of_processes(presets, tmp_path):
    """One process, then two shards, then one: weights, moments and averages carry over, and the samples are those of the plan."""
    each = ["checkpoint_every=1", "optimiser.updates=1", "optimiser.learning_rate=1e-4"]
    undisturbed = train(1, presets["t2v"], tmp_path / "one", overrides=["iterations=3", *each])
    folder, samples_anew = (
        tmp_path / "several",
        partial(cache_in, tmp_path / "cache"),
    )  # a forward pass before weights are restored
    train(1, presets["t2v"], folder, overrides=["iterations=1", *each])
    train(2, presets["t2v"], folder, fsdp, samples_anew, overrides=["iterations=2", *each])
    found, expected = (state_of(run, 2) for run in (folder, undisturbed))
    assert_close([found], expected, 1e-4)
    for kind in (
        "weights/",
        "ema/",
    ):  # a step is 1e-4, and its sign is rounding's where a gradient is nearly zero
        distances = torch.cat(
            [
                (found[name] - expected[name]).abs().flatten()
                for name in expected
                if name.startswith(kind)
            ]
        )
        assert distances.mean() < 1e-6
    for name in expected:
        if name == "rng" or name.startswith("optimiser/step/"):
            assert torch.equal(found[name], expected[name]), name
    train(1, presets["t2v"], folder, overrides=["iterations=3", *each])
    for a, b in zip(
        read_log(undisturbed / "metrics.jsonl"), read_log(folder / "metrics.jsonl"), strict=True
    ):
        assert b["reward"] == pytest.approx(a["reward"], abs=1e-3)
    assert (folder / "final" / "model_index.json").is_file()


def cache_in(folder):
    os.environ["BPGO_CACHE"] = str(folder)


def test_averaged_weights_of_shards_are_evaluated_and_leave_the_training(presets, tmp_path):
    """Their outermost weights too: evaluations between the iterations give, and leave, what they do in one process."""
    overrides = [
        "evaluation.every=1",
        "optimiser.updates=1",
        "optimiser.ema_decay=0.9",
        "optimiser.learning_rate=1e-2",
    ]
    one, shards = (
        train(count, presets["t2v"], tmp_path / name, *how, overrides=overrides)
        for count, name, how in ((1, "one", ()), (2, "shards", (fsdp,)))
    )
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        for a, b in zip(read_log(one / log), read_log(shards / log), strict=True):
            assert b["reward"] == pytest.approx(a["reward"], abs=2e-5)


def test_shards_are_exported_whole(presets, tmp_path):
    """And in between no process holds gradients of more than its shard."""
    from diffusers import DiffusionPipeline

    folder = train(
        2,
        presets["i2v"],
        tmp_path / "shards",
        fsdp,
        gradients_are_shards,
        overrides=["iterations=1"],
    )
    state = state_of(folder, 1)
    pipeline = DiffusionPipeline.from_pretrained(folder / "final")
    for part in ("transformer", "transformer_2"):
        for name, value in getattr(pipeline, part).state_dict().items():
            assert torch.equal(value, state[f"ema/{part}.{name}"]), name


def gradients_are_shards():
    """After every backward pass there are gradients, and they are sharded."""
    from accelerate import Accelerator
    from torch.distributed.tensor import DTensor

    from bpgo.trainer import Trainer

    prepare, backward, trainers = Trainer._prepare, Accelerator.backward, []

    def remembering(self):
        trainers.append(self)
        prepare(self)

    def checked(self, loss, **named):
        backward(self, loss, **named)
        gradients = [p.grad for p in trainers[0].parameters.values() if p.grad is not None]
        assert gradients and all(isinstance(g, DTensor) for g in gradients)

    Trainer._prepare, Accelerator.backward = remembering, checked


def test_adapters_of_shards_are_exported_whole(presets, tmp_path):
    folder = train(2, presets["i2v"], tmp_path / "shards", fsdp, overrides=["iterations=1", *LORA])
    state = {name: value for name, value in state_of(folder, 1).items() if name.startswith("ema/")}
    exported = {}
    for part, place in (
        ("transformer", folder / "final"),
        ("transformer_2", folder / "final" / "transformer_2"),
    ):
        for name, value in load_file(place / "pytorch_lora_weights.safetensors").items():
            exported[f"ema/{part}.{name.removeprefix('transformer.')}"] = value
    assert exported.keys() == {name.replace(".default.", ".") for name in state}
    assert all(
        torch.equal(value, exported[name.replace(".default.", ".")])
        for name, value in state.items()
    )


def test_a_ratio_that_is_not_one_in_any_process_is_seen(presets, tmp_path):
    folder = train(2, presets["t2i"], tmp_path / "run", other_log_prob, overrides=["iterations=1"])
    (row,) = read_log(folder / "metrics.jsonl")
    assert row["first_log_ratio"] == pytest.approx(0.01, abs=1e-4)


def other_log_prob():
    """Process 1, which writes no log, has another log-probability in its rollouts."""
    from bpgo.trainer import Trainer

    collect = Trainer.collect

    def moved(self, finished=None):
        found = collect(self, finished)
        found[3].log_prob.sub_(0.01 * float(os.environ["RANK"]))
        return found

    Trainer.collect = moved


@pytest.mark.parametrize("how", [(), (fsdp,)], ids=["copies", "shards"])
def test_a_process_that_dies_ends_the_run_with_an_error(presets, tmp_path, how):
    """Without a launcher that would end the other one: it must notice by itself."""
    dies = partial(die_in_the_second_iteration)
    found = runs.together(
        2, ["train", presets["t2i"], "--output", tmp_path / "run"], tmp_path / "log", *how, dies
    )
    (code, said), (killed, _) = found
    assert killed == -signal.SIGKILL
    assert code == 1 and "RuntimeError" in said and "by peer" in said


@pytest.mark.parametrize("how", [(), (fsdp,)], ids=["copies", "shards"])
def test_a_reward_that_fails_in_one_process_ends_all(presets, tmp_path, how):
    tree = [
        "train",
        presets["t2i"],
        "--output",
        tmp_path / "run",
        "reward.name=test",
        "prior.name=running_mean",
    ]
    (code, said), (failed, why) = runs.together(
        2, tree, tmp_path / "log", *how, nan_in_the_second_process
    )
    assert failed == 2 and "bpgo train: reward 'test' returned nan for prompt" in why
    assert code == 1 and "RuntimeError" in said and "by peer" in said


def nan_in_the_second_process():
    if os.environ["RANK"] == "1":
        runs.reward(
            lambda values: values * float("nan"), 2
        )  # calls: the trial, evaluation, then the first iteration's


def die_in_the_second_iteration():
    """Process 1 is killed as it begins the second iteration."""
    from bpgo.trainer import Trainer

    collect = Trainer.collect

    def dying(self, finished=None):
        if self.iteration == 1 and os.environ["RANK"] == "1":
            runs.kill()
        return collect(self, finished)

    Trainer.collect = dying


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["ddp", "fsdp2"])
def test_the_shipped_configurations_launch_two_processes(presets, tmp_path, launch):
    """By accelerate's own launcher, as the README says; the numbers are those of one process."""
    tree = [
        "-m",
        "bpgo",
        "train",
        presets["t2i"],
        "iterations=1",
        "optimiser.updates=1",
        "--output",
    ]
    how = [
        "--config_file",
        ACCELERATE / f"{launch}.yaml",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for command in (
        [sys.executable, *tree, tmp_path / "one"],
        [sys.executable, "-m", "accelerate.commands.launch", *how, *tree, tmp_path / "two"],
    ):
        done = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (a,), (b,) = (read_log(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert b == pytest.approx(a, rel=1e-3, abs=1e-5)
    assert (tmp_path / "two" / "final" / "model_index.json").is_file()


def test_a_configuration_that_would_leave_encoders_empty_is_refused(presets, tmp_path):
    """What accelerate's launcher sets by default, and transformers obeys."""
    for code, said in runs.together(
        2,
        ["train", presets["t2i"], "--output", tmp_path / "run"],
        tmp_path / "log",
        fsdp,
        efficient_loading,
    ):
        assert code == 2 and "set fsdp_cpu_ram_efficient_loading: false" in said


def efficient_loading():
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"


def test_groups_that_do_not_divide_are_refused(presets, tmp_path):
    found = runs.together(
        2,
        ["train", presets["t2i"], "--output", tmp_path / "run", "optimiser.updates=4"],
        tmp_path / "log",
    )
    for code, said in found:
        assert (
            code == 2
            and "groups=4 cannot be split over optimiser.updates=4 times 2 processes" in said
        )


def test_shares_hold_every_prompt_and_keep_equal_ones_together():
    prompts = ["a", "b", "a", "c", "d", "e"]
    found = shares(prompts, 2)
    assert len(found[0]) == len(found[1])
    assert set(found[0]) | set(found[1]) == set(range(6)) and not set(found[0]) & set(found[1])
    assert any({0, 2} <= set(share) for share in found)
    assert shares(prompts, 1) == [[0, 1, 2, 3, 4, 5]]
    assert [len(set(share)) for share in shares(["a"], 2)] == [
        1,
        1,
    ]  # and the second only lends a hand
