"""Two processes against one, with full copies of the weights (DDP) and with shards (FSDP2)."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bpgo import checkpoint
from bpgo.distributed import (
    full_number,
    full_weights,
    gather_rows,
    gather_tensor,
    place_like,
    sharded,
)
from bpgo.files import read_log
from tests import small_runs as runs
from tests.small_trainers import TASKS, merged, write_prompts

pytestmark = pytest.mark.usefixtures("shared_cache")
ACCELERATE = Path(__file__).parent.parent / "reproduce" / "accelerate"


@pytest.fixture(scope="module")
def presets(trees, clip_folder, video_reward_folder, tmp_path_factory):
    """A preset of each task: 4 groups of 2 in two updates, with averaged weights."""
    folder, presets = tmp_path_factory.mktemp("presets"), {}
    small = {"height": 16, "width": 16}
    of_task = {
        "t2i": {"generator": small, "prior": {"name": "sft", "samples": 1}},
        "t2v": {"generator": small | {"guidance": 1.0}, "prior": {"name": "sft", "samples": 1}},
        "i2v": {"generator": small | {"guidance": 1.0}, "prior": {"name": "first_frame"}},
    }
    clip = {"name": "clip", "path": str(clip_folder)}
    video = {"name": "video_clip_xl", "path": str(video_reward_folder)}
    for task in TASKS:
        prompts = write_prompts(folder / f"{task}{'.jsonl' if task == 'i2v' else '.txt'}", task)
        changes = {
            "prompts": str(prompts),
            "reward": clip if task == "t2i" else video,
            "groups": 4,
            "group_size": 2,
            "sampling": {"shift": 3.0, "micro_batch": 2, "window": 3},
            "optimiser": {"updates": 2, "ema_decay": 0.5, "max_grad_norm": 1e9},
            "objective": {"name": "bpgo", "kappa": 1.0},
            "evaluation": {"samples": 1},
        }
        presets[task] = folder / f"{task}.yaml"
        tree = merged(merged(trees[task], changes), of_task[task])
        presets[task].write_text(yaml.safe_dump(tree))
    return presets


def train(count, preset, folder, *disturbances, overrides=()):
    """Train a preset in `count` processes. Returns its folder."""
    command = ["train", preset, "--output", folder, *overrides]
    found = runs.run_together(count, command, folder.with_suffix(".log"), *disturbances)
    assert not any(code for code, _ in found), "see what each process printed"
    return folder


HOW = {"one": (1,), "two": (2,), "shards": (2, runs.use_fsdp)}


def state_of(folder, iteration):
    return checkpoint.load_state(folder / f"checkpoint-{iteration:06d}")[0]


def largest_moment(state):
    moments = [v.abs().max() for name, v in state.items() if name.startswith("optimiser/exp_avg/")]
    return max(moments)


def assert_close(state, expected, moments, weights=None):
    """Two states are equal up to rounding.

    The first moments of Adam, which are sums of gradients, differ by at most this fraction of their
    largest value, and the weights, if asked, by at most this much.
    """
    assert state.keys() == expected.keys()
    scale = largest_moment(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        if name.startswith("optimiser/exp_avg/"):
            distance = (state[name] - value).abs().max()
            assert distance <= moments * scale, name
        elif name.startswith(("weights/", "ema/")) and weights is not None:
            assert (state[name] - value).abs().max() <= weights, name


# ------------------------------------------------------------------------------- one step

LORA = ["generator.lora_rank=2", "generator.dtype=bfloat16"]
CASES = {
    "t2i": ("t2i", []),
    "t2v": ("t2v", []),
    "i2v": ("i2v", []),
    "t2i, LoRA": ("t2i", LORA),
    "i2v, LoRA": ("i2v", LORA),
}


@pytest.fixture(scope="module")
def one_iteration(presets, tmp_path_factory):
    """The folders of runs with one process, two processes and two shards, by case."""
    folder, found = tmp_path_factory.mktemp("once"), {}

    def one_iteration(case):
        if case not in found:
            task, overrides = CASES[case]
            # Where a gradient is near Adam's eps, rounding decides which part of the learning rate
            # a weight moves. At 1e-4 that is below 1e-6.
            once = ["iterations=1", "optimiser.updates=1", "optimiser.learning_rate=1e-4"]
            found[case] = {}
            for name, (count, *how) in HOW.items():
                place = folder / f"{case} {name}"
                how += [check_that_gradients_are_shards] if name == "shards" else []
                found[case][name] = train(
                    count, presets[task], place, *how, overrides=[*once, *overrides]
                )
        return found[case]

    return one_iteration


def check_that_gradients_are_shards():
    """After every backward pass there are gradients, and they are sharded."""
    from accelerate import Accelerator
    from torch.distributed.tensor import DTensor

    from bpgo.trainer import Trainer

    prepare, backward, trainers = Trainer._prepare_training, Accelerator.backward, []

    def remembering(self):
        trainers.append(self)
        prepare(self)

    def checked(self, loss, **named):
        backward(self, loss, **named)
        gradients = [p.grad for p in trainers[0].parameters.values() if p.grad is not None]
        assert gradients
        assert all(isinstance(gradient, DTensor) for gradient in gradients)

    Trainer._prepare_training, Accelerator.backward = remembering, checked


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_step_of_one(one_iteration, case):
    """The gradients, the weights after the step, and all that is logged are equal to rounding."""
    folders = one_iteration(case)
    expected = state_of(folders["one"], 1)
    assert {v.dtype for name, v in expected.items() if name != "rng"} == {torch.float32}
    for name in ("two", "shards"):
        assert_close(state_of(folders[name], 1), expected, 1e-6, weights=1e-6)
        for log in ("metrics.jsonl", "evaluations.jsonl"):
            rows, others = read_log(folders["one"] / log), read_log(folders[name] / log)
            assert len(rows) == (1 if log == "metrics.jsonl" else 2)
            for row, other in zip(rows, others, strict=True):
                row.pop("scores", None)
                other.pop("scores", None)
                assert other == pytest.approx(row, rel=1e-3, abs=1e-5)


def test_shards_are_exported_in_full(one_iteration):
    from diffusers import DiffusionPipeline

    folder = one_iteration("i2v")["shards"]
    state = state_of(folder, 1)
    pipeline = DiffusionPipeline.from_pretrained(folder / "final")
    for part in ("transformer", "transformer_2"):
        exported = getattr(pipeline, part).state_dict()
        assert len(exported) > 10
        for name, value in exported.items():
            assert torch.equal(value, state[f"ema/{part}.{name}"]), name


def test_adapters_of_shards_are_exported_in_full(one_iteration):
    folder = one_iteration("i2v, LoRA")["shards"]
    expected = {
        name.replace(".default.", "."): value
        for name, value in state_of(folder, 1).items()
        if name.startswith("ema/")
    }
    exported = {}
    places = {"transformer": "final", "transformer_2": "final/transformer_2"}
    for part, place in places.items():
        for name, value in load_file(folder / place / "pytorch_lora_weights.safetensors").items():
            exported[f"ema/{part}.{name.removeprefix('transformer.')}"] = value
    assert exported.keys() == expected.keys()
    assert len(exported) > 10
    for name, value in expected.items():
        assert torch.equal(value, exported[name]), name


# ------------------------------------------------------------------------------- longer runs


def test_further_updates_are_those_of_one_process(presets, tmp_path):
    """More than rounding is allowed.

    In the first update Adam moves weights by the sign of their gradients, some of which are nearly
    zero, and the second starts there.
    """
    folders = {
        name: train(count, presets["t2i"], tmp_path / name, *how, overrides=["iterations=1"])
        for name, (count, *how) in HOW.items()
    }
    expected = state_of(folders["one"], 1)
    for name in ("two", "shards"):
        assert_close(state_of(folders[name], 1), expected, 1e-4)


def test_a_run_can_be_resumed_with_another_number_of_processes(presets, tmp_path, monkeypatch):
    """One process, then two shards, then one: weights, moments, averages and samples carry over."""
    each = ["checkpoint_every=1", "optimiser.updates=1", "optimiser.learning_rate=1e-4"]
    preset = presets["t2v"]
    undisturbed = train(1, preset, tmp_path / "one", overrides=["iterations=3", *each])
    folder = train(1, preset, tmp_path / "several", overrides=["iterations=1", *each])
    # With an empty cache, the shards are used for the prior before their weights are restored.
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    train(2, preset, folder, runs.use_fsdp, overrides=["iterations=2", *each])
    found, expected = state_of(folder, 2), state_of(undisturbed, 2)
    assert_close(found, expected, 1e-4)
    for kind in ("weights/", "ema/"):
        # A step is 1e-4, and rounding decides its sign where a gradient is nearly zero.
        names = [name for name in expected if name.startswith(kind)]
        distances = [(found[name] - expected[name]).abs().flatten() for name in names]
        assert torch.cat(distances).mean() < 1e-6
    for name in expected:
        if name == "rng" or name.startswith("optimiser/step/"):
            assert torch.equal(found[name], expected[name]), name
    train(1, preset, folder, overrides=["iterations=3", *each])
    logs = [read_log(run / "metrics.jsonl") for run in (undisturbed, folder)]
    assert len(logs[0]) == 3
    for row, other in zip(*logs, strict=True):
        assert other["reward"] == pytest.approx(row["reward"], abs=1e-3)
    assert (folder / "final" / "model_index.json").is_file()


def test_averaged_weights_of_shards_are_evaluated_and_then_taken_back(presets, tmp_path):
    """This includes the outermost weights, which FSDP treats differently."""
    overrides = [
        "evaluation.every=1",
        "optimiser.updates=1",
        "optimiser.ema_decay=0.9",
        "optimiser.learning_rate=1e-2",
    ]
    one, shards = (
        train(count, presets["t2v"], tmp_path / name, *how, overrides=overrides)
        for name, (count, *how) in HOW.items()
        if name != "two"
    )
    for log, count in (("metrics.jsonl", 2), ("evaluations.jsonl", 3)):
        rows, others = read_log(one / log), read_log(shards / log)
        assert len(rows) == count
        for row, other in zip(rows, others, strict=True):
            assert other["reward"] == pytest.approx(row["reward"], abs=2e-5)


@pytest.mark.parametrize("adapters", [[], ["generator.lora_rank=2"]], ids=["weights", "LoRA"])
def test_the_divergence_from_the_starting_model_is_that_of_one_process(presets, tmp_path, adapters):
    """In the second iteration, whose weights differ by rounding alone. In the first it is 0."""
    overrides = ["objective.kl=1", "optimiser.updates=1", "optimiser.learning_rate=1e-4", *adapters]
    rows = {}
    for name, (count, *how) in HOW.items():
        folder = train(count, presets["t2i"], tmp_path / name, *how, overrides=overrides)
        rows[name] = read_log(folder / "metrics.jsonl")
        assert [row["gradient_accumulation"] for row in rows[name]] == [4, 4]
    assert rows["one"][1]["kl"] > 0
    for name in ("two", "shards"):
        assert rows[name][0]["kl"] == rows["one"][0]["kl"] == 0
        assert rows[name][1]["kl"] == pytest.approx(rows["one"][1]["kl"], rel=0.01)
        assert rows[name][1]["loss"] == pytest.approx(rows["one"][1]["loss"], rel=0.01, abs=1e-5)


def test_a_ratio_that_is_not_one_in_any_process_is_noticed(presets, tmp_path):
    folder = train(2, presets["t2i"], tmp_path / "run", move_log_prob, overrides=["iterations=1"])
    (row,) = read_log(folder / "metrics.jsonl")
    assert row["first_log_ratio"] == pytest.approx(0.01, abs=1e-4)


def move_log_prob():
    """Change the log-probabilities of process 1, which writes no log."""
    from bpgo import trainer

    sample_groups = trainer.sample_groups

    def moved(*given):
        for part in sample_groups(*given):
            part.log_prob.sub_(0.01 * float(os.environ["RANK"]))
            yield part

    trainer.sample_groups = moved


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["ddp", "fsdp2"])
def test_the_shipped_configurations_launch_two_processes(presets, tmp_path, launch):
    """With accelerate's own launcher, as in the README. The numbers are those of one process."""
    train = ["-m", "bpgo", "train", presets["t2i"], "iterations=1", "optimiser.updates=1"]
    configuration = ["--config_file", ACCELERATE / f"{launch}.yaml"]
    launcher = ["-m", "accelerate.commands.launch", *configuration]
    launcher += ["--num_processes", "2", "--main_process_port", "0"]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for name, how in (("one", []), ("two", launcher)):
        command = [sys.executable, *how, *train, "--output", tmp_path / name]
        done = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (row,), (other,) = (read_log(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert other == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert (tmp_path / "two" / "final" / "model_index.json").is_file()


# ------------------------------------------------------------------------------ in one process


def test_weights_are_sharded_with_fsdp_and_several_processes(monkeypatch):
    one, two = (SimpleNamespace(num_processes=count) for count in (1, 2))
    assert not sharded(two)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not sharded(one)
    with pytest.raises(ValueError, match="set fsdp_version: 2"):
        sharded(two)
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert sharded(two)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ValueError, match="set fsdp_cpu_ram_efficient_loading: false"):
        sharded(two)


def test_without_shards_tensors_stay_as_they_are():
    tensor = torch.nn.Parameter(torch.arange(6.0).view(3, 2))
    assert full_number(tensor) is tensor
    gathered = gather_tensor(tensor)
    assert torch.equal(gathered, tensor)
    assert not gathered.requires_grad
    assert torch.equal(place_like(gathered, tensor), tensor)
    module = torch.nn.Linear(2, 3)
    with full_weights([module]):
        assert module.state_dict().keys() == {"weight", "bias"}
        assert type(module) is torch.nn.Linear


def test_rows_are_gathered_in_the_order_of_their_index():
    tables = {"a": torch.tensor([[20.0], [0.0], [10.0], [0.0]])}
    found = gather_rows([2, 0, 1, 0], tables)  # a row that is repeated counts once
    assert found["a"].tolist() == [[0.0], [10.0], [20.0]]
