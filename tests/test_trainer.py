"""The loop: exactly on-policy at first, bit for bit after a kill, and never half-written, whatever goes wrong."""

import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bpgo import checkpoint, rewards, update
from bpgo.__main__ import main
from bpgo.config import ConfigError, build_config
from bpgo.evaluation import evaluate
from bpgo.files import SHIPPED
from bpgo.generators.flux import FluxPolicy
from bpgo.reference import reference_rewards
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from bpgo.trainer import Trainer, read_log
from tests import small_runs as runs

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["a red circle", "a large blue square", "a shape", "a small cross at the top"]


def redness(pixels, prompts):
    """A reward without weights."""
    return 10 * (pixels[:, 0] - pixels[:, 2]).mean((1, 2))


def merged(tree, changes):
    return {
        k: merged(tree.get(k, {}), v) if isinstance(v, dict) else v
        for k, v in (tree | changes).items()
    }


@pytest.fixture(scope="module")
def tree(tiny_folder):
    return {
        "generator": {"path": str(tiny_folder), "height": 32, "width": 32},
        "reward": {"name": "redness"},
        "prompts": "given",
        "groups": 2,
        "group_size": 3,
        "iterations": 2,
        "sampling": {"steps": 4, "shift": 1.0, "schedule": "flow-grpo", "noise_level": 0.7},
        "optimiser": {"learning_rate": 1e-3},
        "evaluation": {"samples": 2, "steps": 2},
    }


@pytest.fixture
def make(tree, tmp_path):
    """A trainer in a folder of its own; sections of the config as keywords."""
    numbers = itertools.count()

    def make(reward=redness, prompts=PROMPTS, metrics=None, output=None, **changes):
        folder = output or tmp_path / f"run{next(numbers)}"
        return Trainer(
            build_config(merged(tree, changes)),
            folder,
            reward=reward,
            prompts=prompts,
            metrics=metrics,
            progress=False,
        )

    return make


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


def all_equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------- invariant 1: on-policy at first


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="whole"),
        pytest.param({"sampling": {"micro_batch": 5}}, id="micro-batch 5"),
        pytest.param({"sampling": {"micro_batch": 24}}, id="micro-batch 24"),
        pytest.param(
            {"sampling": {"micro_batch": 1, "schedule": "dance-grpo", "noise_level": 0.3}},
            id="micro-batch 1, dance-grpo",
        ),
        pytest.param({"sampling": {"schedule": "cps", "window": 2}}, id="cps, window"),
        pytest.param({"generator": {"gradient_checkpointing": True}}, id="gradient checkpointing"),
        pytest.param({"generator": {"lora_rank": 2}}, id="lora"),
        pytest.param(
            {"generator": {"lora_rank": 2, "dtype": "bfloat16"}}, id="lora, bfloat16 weights"
        ),
        pytest.param(
            {"optimiser": {"updates": 2}, "sampling": {"micro_batch": 5}}, id="two updates"
        ),
    ],
)
def test_the_first_importance_ratio_is_exactly_one(make, changes):
    trainer = make(group_size=6, **changes)
    start = weights(trainer)
    for _ in range(2):
        assert trainer.step()["first_log_ratio"] == 0.0
    assert not all_equal(start, weights(trainer))


def test_adapters_are_trained_in_float32_over_bfloat16_weights(make):
    trainer = make(
        generator={"lora_rank": 2, "dtype": "bfloat16"}, optimiser={"ema_decay": 0.5}, iterations=1
    )
    trainer.train()
    frozen = [p for p in trainer.policy.modules["transformer"].parameters() if not p.requires_grad]
    moments = [value for state in trainer.optimiser.state.values() for value in state.values()]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    for tensors in (trainer.parameters.values(), trainer.ema.values(), moments):
        assert {t.dtype for t in tensors} == {torch.float32}
    tensors, _ = checkpoint.load_state(trainer.output / "checkpoint-000001")
    exported = load_file(trainer.output / "final" / "pytorch_lora_weights.safetensors")
    assert {t.dtype for name, t in (tensors | exported).items() if name != "rng"} == {torch.float32}


def test_the_first_importance_ratio_is_exactly_one_under_autocast(make):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # accelerate has one precision a process
    try:
        trainer = make(precision="bf16")
        seen = [trainer.step() for _ in range(2)]
        full = FluxPolicy.load(trainer.config.generator.path, height=32, width=32)
        x, cond = torch.randn(1, 4, 8, 8), full.encode(PROMPTS[:1])
        with torch.no_grad():
            difference = trainer.policy.velocity(x, 0.5, cond) - full.velocity(x, 0.5, cond)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert [metrics["first_log_ratio"] for metrics in seen] == [0.0, 0.0]
    assert difference.abs().max() > 1e-4  # it did run in half precision, after two updates at that


def test_a_ratio_that_is_not_one_is_seen(make):
    """The control of the tests above: weights that move between rollout and update do show."""
    trainer = make()
    collect = trainer.collect

    def collect_and_move(finished):
        found = collect(finished)
        with torch.no_grad():
            for p in trainer.parameters.values():
                p.mul_(1.01)
        return found

    trainer.collect = collect_and_move
    assert trainer.step()["first_log_ratio"] > 1e-5


# ------------------------------------------------------------------------ invariant 6: a killed run is the undisturbed one


@pytest.fixture(scope="module")
def preset(tree, clip_folder, tmp_path_factory):
    """A preset file that keeps every kind of state: averaged weights, a running mean, evaluations on the way."""
    folder = tmp_path_factory.mktemp("preset")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    changes = {
        "prompts": str(folder / "prompts.txt"),
        "reward": {"name": "test", "path": str(clip_folder)},
        "iterations": 4,
        "checkpoint_every": 2,
        "evaluation": {"every": 2},
        "optimiser": {"ema_decay": 0.5},
    }
    file = folder / "preset.yaml"
    file.write_text(yaml.safe_dump(merged(tree, changes)))
    return file


@pytest.fixture(scope="module")
def train(preset, tmp_path_factory):
    """Train the preset in a process of its own: (exit code, what it wrote)."""
    log = tmp_path_factory.mktemp("logs") / "log"

    def train(output, *disturbances, overrides=()):
        return runs.run(["train", preset, "--output", output, *overrides], log, *disturbances)

    return train


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    """The folder of a run that nothing happened to. Copy it before you change it."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, said = train(folder)
    assert code == 0, said
    return folder


def assert_same_run(folder, expected):
    """Weights, averages, optimiser, generator and prior, every logged number, and the exported pipeline: bit for bit."""
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (folder / name).read_text() == (expected / name).read_text()
    assert [row["iteration"] for row in read_log(folder / "timing.jsonl")] == [1, 2, 3, 4]
    (tensors, state), (others, other) = (
        checkpoint.load_state(f / "checkpoint-000004") for f in (folder, expected)
    )
    assert state == other
    assert {name.split("/")[0] for name in tensors} == {"weights", "ema", "optimiser", "rng"}
    assert all_equal(tensors, others)
    part = Path("final", "transformer", "diffusion_pytorch_model.safetensors")
    assert (folder / part).read_bytes() == (expected / part).read_bytes()
    assert not list(folder.glob(".*")), "something half-written was left"


def test_killed_at_every_kind_of_moment_it_ends_as_the_undisturbed_run(
    train, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    in_reward = [
        partial(runs.reward, runs.kill, call) for call in (4, 8)
    ]  # calls: evaluation (two), 1, 2, evaluation, 3, 4
    rename = partial(runs.before, "rename")
    moments = [
        (in_reward[0], []),  # in the second iteration
        (partial(runs.half_written, "checkpoint-000002"), []),
        (partial(runs.before, "fsync", "checkpoint-000002"), []),
        (partial(rename, "checkpoint-000002"), []),
        (in_reward[1], ["checkpoint-000002"]),  # in the fourth
        (partial(runs.half_written, "checkpoint-000004"), ["checkpoint-000002"]),
        (partial(rename, "checkpoint-000004"), ["checkpoint-000002"]),
        (runs.half_saved, ["checkpoint-000002", "checkpoint-000004"]),
        (partial(rename, ".final.partial"), ["checkpoint-000002", "checkpoint-000004"]),
    ]
    for moment, expected in moments:
        code, said = train(folder, moment)
        assert code == -signal.SIGKILL, said
        assert [place.name for place in checkpoint.checkpoints(folder)] == expected
        for place in checkpoint.checkpoints(folder):
            checkpoint.load_state(place)
        assert not (folder / "final").exists()
    code, said = train(folder)
    assert code == 0, said
    assert_same_run(folder, undisturbed)


def test_a_run_may_be_extended_and_is_then_the_longer_run(train, undisturbed, tmp_path):
    folder = tmp_path / "run"
    assert train(folder, overrides=["iterations=2"])[0] == 0
    assert (folder / "final").exists()
    assert [row["iteration"] for row in read_log(folder / "evaluations.jsonl")] == [0, 2]
    code, said = train(folder)
    assert code == 0, said
    assert_same_run(folder, undisturbed)


def test_an_extended_run_that_is_killed_at_its_end_does_not_keep_the_shorter_runs_export(
    train, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    train(folder, overrides=["iterations=2"])
    assert train(folder, runs.half_saved)[0] == -signal.SIGKILL
    assert train(folder)[0] == 0
    assert_same_run(folder, undisturbed)


def test_a_finished_run_is_left_as_it_is(train, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    assert train(folder)[0] == 0
    files = [path.relative_to(undisturbed) for path in undisturbed.rglob("*") if path.is_file()]
    assert [
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file()
    ].sort() == files.sort()
    for file in files:
        assert (folder / file).read_bytes() == (undisturbed / file).read_bytes(), file


@pytest.mark.slow
def test_the_command_line_killed_from_outside(preset, tmp_path):
    """`python -m bpgo train`, killed somewhere in the middle, then run again; against the same without a kill."""
    overrides = ["reward.name=clip"]
    command = [sys.executable, "-m", "bpgo", "train", preset, *overrides, "--output"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "whole"], env=environment, check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, tmp_path / "run"], env=environment, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_text().count("\n") >= 3
    ):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, tmp_path / "run"], env=environment, check=True, capture_output=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# ---------------------------------------------------------------------------------------- what is refused, and what is kept


@pytest.fixture
def bpgo_train(preset, monkeypatch, capsys):
    """The command line in this process: (exit code, its message)."""
    monkeypatch.setitem(rewards.REWARDS, "test", None)  # put back afterwards

    def bpgo_train(output, *overrides, reward=(None, None)):
        runs.reward(*reward)
        capsys.readouterr()
        code = main(["train", str(preset), *overrides, "--output", str(output)])
        message = capsys.readouterr().err.rpartition("bpgo train: ")[2]
        assert "Traceback" not in message
        return code, message

    return bpgo_train


def test_a_resume_with_another_config_is_refused_by_its_keys(bpgo_train, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    code, message = bpgo_train(
        folder, "optimiser.learning_rate=0.5", "objective.name=ras", "iterations=6"
    )
    assert code == 2
    assert "objective.name: 'bpgo' -> 'ras'" in message
    assert "optimiser.learning_rate: 0.001 -> 0.5" in message
    assert "iterations" not in message
    assert (folder / "config.json").read_bytes() == (undisturbed / "config.json").read_bytes()
    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_a_run_that_failed_to_start_does_not_bar_its_folder(bpgo_train, tmp_path):
    code, message = bpgo_train(tmp_path / "run", "generator.path=tiny-fluks")
    assert (code, "tiny-flux" in message) == (2, True)
    assert bpgo_train(tmp_path / "run", "iterations=1")[0] == 0


def nan_at_the_second(values):
    return torch.where(torch.arange(len(values)) == 1, torch.nan, values)


FAILURES = {
    "nan": (nan_at_the_second, "returned nan for prompt"),
    "infinity": (lambda values: values / 0, "inf for prompt"),
    "shape": (lambda values: values[:-1], r"returned shape (5,) for 6 pictures"),
    "two dimensions": (lambda values: values[:, None], r"returned shape (6, 1) for 6 pictures"),
    "ValueError": (lambda values: int("no number"), "raised ValueError: invalid literal"),
    "ZeroDivisionError": (lambda values: 1 / 0, "raised ZeroDivisionError: division by zero"),
    "no number": (lambda values: None, "raised "),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_reward_that_fails_leaves_the_state_before_it(
    bpgo_train, train, undisturbed, tmp_path, kind
):
    act, says = FAILURES[kind]
    folder = tmp_path / "run"
    code, message = bpgo_train(
        folder, reward=(act, 7)
    )  # calls: evaluation (two), 1, 2, evaluation, 3
    assert code == 2
    assert message.startswith("reward 'test'")
    assert says in message
    assert message.count("reward 'test'") == 1
    found, expected = (
        checkpoint.load_state(f / "checkpoint-000002") for f in (folder, undisturbed)
    )
    assert all_equal(found[0], expected[0])
    assert len(read_log(folder / "metrics.jsonl")) == 2


def test_after_a_reward_that_failed_between_checkpoints_the_run_goes_on_as_if_it_had_not(
    bpgo_train, train, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    code, message = bpgo_train(folder, reward=(nan_at_the_second, 4))
    assert (code, "nan" in message) == (2, True)
    assert [place.name for place in checkpoint.checkpoints(folder)] == ["checkpoint-000001"]
    code, said = train(folder)
    assert code == 0, said
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["group_size=1"], id="G=1"),
        pytest.param(["groups=5"], id="more groups than prompts"),
        pytest.param(["prompts={empty}"], id="no prompts"),
        pytest.param(["prompts=nowhere.txt"], id="no prompt file"),
        pytest.param(["prompts={keyless}"], id="JSON lines without prompts"),
        pytest.param(["prompts={broken}"], id="broken JSON lines"),
        pytest.param(["prompts={unknown}"], id="unknown words"),
        pytest.param(["evaluation.prompts={unknown}"], id="unknown words in evaluation"),
        pytest.param(["reward.name=clipp"], id="unknown reward"),
        pytest.param(["reward.name=clip", "reward.path=nowhere"], id="no reward weights"),
        pytest.param(["generator.height=30"], id="size"),
        pytest.param(["sampling.window=9"], id="window"),
    ],
)
def test_bad_input_is_refused_at_the_door_and_writes_nothing(bpgo_train, tmp_path, overrides):
    says = {
        "group_size": "group_size = 1: Input should be greater than or equal to 2",
        "groups": "there are only 4",
        "prompts={empty}": "has no prompts",
        "prompts=nowhere.txt": "no prompt file 'nowhere.txt'|'nowhere.txt' is no folder or file",
        "prompts={keyless}": 'is not JSON lines with the key "prompt"',
        "prompts={broken}": "is not JSON lines",
        "prompts={unknown}": "mauve",
        "evaluation.prompts={unknown}": "mauve",
        "reward.name=clipp": "did you mean 'clip'",
        "reward.name=clip": "'nowhere' is no folder",
        "generator": "multiples of 8",
        "sampling": "a window of 9",
    }
    expected = says.get(overrides[0]) or says[overrides[0].partition(".")[0].partition("=")[0]]
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "unknown.txt").write_text("\n".join([*PROMPTS, "a mauve circle"]))
    (tmp_path / "keyless.jsonl").write_text('{"text": "a shape"}\n')
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a shape"\n')
    files = {path.stem: path for path in tmp_path.iterdir()}
    code, message = bpgo_train(
        tmp_path / "run", *(override.format(**files) for override in overrides)
    )
    assert code == 2
    assert any(part in message for part in expected.split("|")), message
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped", "no tensors", "no state", "empty state"])
def test_a_damaged_newest_checkpoint_is_refused_and_the_one_before_goes_on(
    bpgo_train, undisturbed, tmp_path, damage
):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(folder / "final")
    newest = folder / "checkpoint-000004"
    data = (newest / "state.safetensors").read_bytes()
    if damage == "cut":
        (newest / "state.safetensors").write_bytes(data[:-1000])
    elif damage == "flipped":
        (newest / "state.safetensors").write_bytes(
            data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:]
        )
    elif damage == "empty state":
        (newest / "state.json").write_text("")
    else:
        (newest / {"no tensors": "state.safetensors", "no state": "state.json"}[damage]).unlink()
    code, message = bpgo_train(folder)
    assert code == 2
    assert "checkpoint-000004" in message
    assert ("is damaged" in message) or ("is missing" in message)
    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    if damage == "cut":
        shutil.rmtree(newest)
        assert bpgo_train(folder)[0] == 0
        assert_same_run(folder, undisturbed)


def test_a_full_disk_leaves_the_last_checkpoint_whole(train, undisturbed, tmp_path):
    folder = tmp_path / "run"
    assert (
        train(folder, runs.half_saved, overrides=["iterations=2"])[0] == -signal.SIGKILL
    )  # so there is checkpoint 2
    code, said = train(folder, partial(runs.largest_file, 5_000_000))  # a checkpoint has 17 MB
    assert code == 2, said
    assert "checkpoint-000004" in said.rpartition("bpgo train: ")[2]
    assert [place.name for place in checkpoint.checkpoints(folder)] == ["checkpoint-000002"]
    checkpoint.load_state(folder / "checkpoint-000002")
    assert not list(folder.glob(".checkpoint*"))
    # now it is the line of a log that does not fit: half of it is written
    size = (
        folder / "metrics.jsonl"
    ).stat().st_size - 20  # of four lines; every other file is smaller
    code, said = train(folder, partial(runs.largest_file, size))
    assert code == 2, said
    assert "File too large" in said.rpartition("bpgo train: ")[2]
    assert not (folder / "metrics.jsonl").read_text().endswith("\n")
    code, said = train(folder)
    assert code == 0, said
    assert_same_run(folder, undisturbed)


def test_a_disk_too_full_for_the_export_leaves_none(train, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(folder / "final")
    code, said = train(folder, partial(runs.largest_file, 1_000_000))
    assert code == 2, said
    assert "final" in said.rpartition("bpgo train: ")[2]
    assert not (folder / "final").exists()
    assert train(folder)[0] == 0
    assert_same_run(folder, undisturbed)


def test_a_folder_that_may_not_be_written_to_is_refused_and_left_as_it_is(preset, undisturbed):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to other users
        place = Path(place)
        place.chmod(0o755)
        tree = yaml.safe_load(preset.read_text()) | {"prompts": f"{place}/prompts.txt"}
        (place / "prompts.txt").write_text("\n".join(PROMPTS))
        (place / "preset.yaml").write_text(yaml.safe_dump(tree))
        folder = shutil.copytree(undisturbed, place / "run")
        shutil.rmtree(folder / "final")
        rights = stat.S_IMODE(folder.stat().st_mode)
        folder.chmod(0o555)
        command = ["train", place / "preset.yaml", "--output", folder]
        code, said = runs.run(command, place / "log", *([runs.nobody] if os.getuid() == 0 else []))
        folder.chmod(rights)
        assert code == 2, said
        message = said.rpartition("bpgo train: ")[2]
        assert f"cannot write to the output folder {folder}: Permission denied" in message
        assert {p.name for p in folder.iterdir()} == {p.name for p in undisturbed.iterdir()} - {
            "final"
        }
        assert (folder / "metrics.jsonl").read_bytes() == (
            undisturbed / "metrics.jsonl"
        ).read_bytes()


def test_a_file_in_the_place_of_the_output_folder_is_refused(bpgo_train, tmp_path):
    (tmp_path / "run").write_text("mine")
    code, message = bpgo_train(tmp_path / "run")
    assert code == 2
    assert "cannot write to the output folder" in message
    assert (tmp_path / "run").read_text() == "mine"


# -------------------------------------------------------------------------- invariant 7: what plain diffusers makes of it


def pixels_of(pipeline, x, prompts, sigmas):
    return pipeline(
        prompt=prompts,
        height=32,
        width=32,
        sigmas=sigmas[:-1].tolist(),
        num_inference_steps=len(sigmas) - 1,
        guidance_scale=3.5,
        latents=pipeline._pack_latents(x, *x.shape),
        max_sequence_length=16,
        output_type="pt",
    ).images


@pytest.mark.parametrize("lora", [False, True])
def test_the_export_makes_the_same_pictures_in_plain_diffusers(make, tiny_folder, lora):
    from diffusers import FluxPipeline

    changes = {"generator": {"lora_rank": 2, "lora_alpha": 7.0}} if lora else {}
    metrics = {"blueness": lambda pixels, prompts: pixels[:, 2].mean((1, 2))}
    trainer = make(optimiser={"ema_decay": 0.5, "learning_rate": 1e-2}, metrics=metrics, **changes)
    trainer.train()
    final = trainer.output / "final"
    pipeline = FluxPipeline.from_pretrained(tiny_folder if lora else final, dtype=torch.float32)
    x, sigmas, prompts = torch.randn(2, 4, 8, 8), sigma_grid(4), PROMPTS[:2]
    untrained = FluxPipeline.from_pretrained(tiny_folder, dtype=torch.float32)
    if lora:
        pipeline.load_lora_weights(final)
        assert not (final / "model_index.json").exists()
    with trainer.averaged_weights():
        ours = trainer.policy.decode(
            integrate(trainer.policy, x, trainer.policy.encode(prompts), sigmas)
        )
    torch.testing.assert_close(pixels_of(pipeline, x, prompts, sigmas), ours, atol=1e-5, rtol=0)
    assert (
        pixels_of(untrained, x, prompts, sigmas) - ours
    ).abs().max() > 1e-3  # there was something to save
    card = (final / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["base_model"], header["tags"]) == (
        str(tiny_folder),
        ["bpgo", "grpo", "lora" if lora else "full-weights"],
    )
    assert ("Low-rank adapters (rank 2, alpha 7," in card, "load_lora_weights" in card) == (
        lora,
        lora,
    )
    o, kind = trainer.config.objective, trainer.config.prior.name
    assert (
        f"- Objective: bpgo (alpha {o.alpha:g}, beta {o.beta:g}, lambda {o.lam:g}, k" in card
        and f"), prior {kind};" in card
    )
    assert (
        "- Reward: 1 redness." in card
        and "- Prompts: given; 2 iterations of 2 groups of 3, seed 0." in card
    )
    first, last = read_log(trainer.output / "evaluations.jsonl")
    for name in ("reward", "blueness"):
        (row,) = [line.split() for line in card.splitlines() if line.split()[:1] == [name]]
        assert row == [name, f"{first[name]:.4f}", f"{last[name]:.4f}"]


# ---------------------------------------------------------------------------------------------- the parts of an iteration


def test_without_ras_and_crt_bpgo_is_grpo_bit_for_bit(make):
    # the learning rate is high enough that a second epoch is off-policy and clipped
    options = {"optimiser": {"epochs": 2, "learning_rate": 1e-2}, "iterations": 2}
    both = []
    for objective in ({"name": "grpo"}, {"name": "bpgo", "alpha": 0.0, "beta": 0.0}):
        trainer = make(objective=objective, **options)
        trainer.train()
        both.append(trainer)
    grpo, bpgo = both
    assert all_equal(weights(grpo), weights(bpgo))
    assert (grpo.output / "evaluations.jsonl").read_bytes() == (
        bpgo.output / "evaluations.jsonl"
    ).read_bytes()
    logs = [read_log(trainer.output / "metrics.jsonl") for trainer in both]
    same = (
        "reward",
        "reward_std",
        "loss",
        "clip_up",
        "clip_down",
        "approx_kl",
        "grad_norm",
        "weight_min",
        "weight_max",
    )
    assert [[row[name] for name in same] for row in logs[0]] == [
        [row[name] for name in same] for row in logs[1]
    ]


def test_the_objectives_do_differ(make):
    moved = {}
    for name in ("grpo", "ras", "crt", "bpgo", "teleboost"):
        trainer = make(
            objective={"name": name, "kappa": 3.0}, prior={"name": "constant", "value": 0.3}
        )
        trainer.step()
        moved[name] = torch.cat([p.flatten() for p in weights(trainer).values()])
    for a, b in itertools.combinations(moved, 2):
        assert not torch.equal(moved[a], moved[b]), (a, b)


def test_more_updates_and_epochs_leave_the_old_policy_and_are_clipped(make):
    trainer = make(
        optimiser={"updates": 2, "epochs": 2, "learning_rate": 3e-3}, objective={"clip_range": 1e-4}
    )
    metrics = trainer.step()
    assert metrics["first_log_ratio"] == 0.0
    assert metrics["clip_up"] > 0
    assert metrics["clip_down"] > 0
    assert metrics["approx_kl"] > 0
    steps = {int(trainer.optimiser.state[p]["step"]) for p in trainer.parameters.values()}
    assert steps == {4}


def test_one_update_is_not_clipped(make):
    metrics = make().step()
    assert [metrics[name] for name in ("clip_up", "clip_down", "approx_kl")] == [0, 0, 0]


def test_the_gradient_is_the_paper_s_whatever_the_micro_batch(make):
    """6 rows by 6, 4 and 2 (across groups), and 1; against equation 5 at ratio 1, written anew with torch's own Normal."""
    trainer = make(objective={"name": "bpgo", "alpha": 0.4, "k": 0.7, "lam": 2.0, "beta": 0.3})
    prompts, plan, cond, rollout = trainer.collect()
    scores = torch.arange(6.0).view(2, 3) ** 2 / 10
    advantages, _ = trainer.weigh(prompts, scores)

    def standardised(r):
        return (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True)

    prior = scores.mean()
    weight = 1 + 0.4 * (2 * torch.sigmoid(0.7 * (scores.mean(1, keepdim=True) - prior)) - 1)
    transformed = (2.0 * (scores - prior) + (scores > prior)) * scores.exp()
    effective = (weight * standardised(scores) + 0.3 * standardised(transformed)).flatten()
    rows = {name: value.repeat_interleave(3, 0) for name, value in cond.items()}
    densities = []
    for n, i in enumerate(plan.trained):
        s, sigma, dt, x = (
            plan.noise[i],
            plan.sigmas[i],
            plan.sigmas[i + 1] - plan.sigmas[i],
            rollout.x[n],
        )
        v = trainer.policy.velocity(x, sigma, rows)
        mean = x + v * dt + s**2 / (2 * sigma) * (x + (1 - sigma) * v) * dt
        densities.append(
            torch.distributions.Normal(mean, s * (-dt) ** 0.5)
            .log_prob(rollout.x_next[n])
            .flatten(1)
            .mean(1)
        )
    loss = -(effective * torch.stack(densities)).mean()
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(trainer.parameters.values()))]
    )

    start, gradients = weights(trainer), []
    for cuts in ([0, 6], [0, 4, 6], [0, 1, 2, 3, 4, 5, 6]):
        plain = torch.optim.SGD(
            trainer.parameters.values(), lr=1.0
        )  # one step of it is minus the gradient
        batches = [[slice(a, b) for a, b in itertools.pairwise(cuts)]]
        update.update_policy(
            trainer.policy,
            trainer.accelerator,
            plain,
            rollout,
            plan,
            cond,
            advantages,
            batches,
            1e-3,
            float("inf"),
        )
        gradients.append(
            torch.cat([(start[name] - p).flatten() for name, p in weights(trainer).items()])
        )
        with torch.no_grad():
            for name, p in trainer.parameters.items():
                p.copy_(start[name])
    assert expected.norm() > 1e-3
    for gradient in gradients:
        assert (gradient - expected).norm() < 1e-3 * expected.norm()


def test_an_interrupted_update_leaves_nothing_in_the_next(make):
    clean, interrupted = make(), make()
    for p in interrupted.parameters.values():
        p.grad = torch.ones_like(p)
    assert clean.step() == interrupted.step()
    assert all_equal(weights(clean), weights(interrupted))


def test_gradient_checkpointing_does_not_change_the_gradient(make):
    plain, saving = (
        make(generator={"gradient_checkpointing": flag}).step() for flag in (False, True)
    )
    assert saving["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)
    assert saving["loss"] == plain["loss"]


@pytest.mark.slow
def test_compiled_transformers_take_the_same_step(make):
    eager, compiled = (
        make(generator={"compile": flag}, optimiser={"learning_rate": 1e-4})
        for flag in (False, True)
    )
    expected, found = eager.step(), compiled.step()
    assert found["first_log_ratio"] == pytest.approx(0, abs=1e-5)
    for name in ("reward", "grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3)
    for name, p in weights(compiled).items():
        assert p.isfinite().all()
        assert (
            (p - weights(eager)[name]).abs().max() <= 2.1e-4
        )  # at most a step in the other direction, where a gradient is nearly zero


def test_averaged_weights_are_their_closed_form(make):
    decay = 0.6
    trainer = make(optimiser={"ema_decay": decay})
    seen = [weights(trainer)]
    for _ in range(3):
        trainer.step()
        seen.append(weights(trainer))
    for name, average in trainer.ema.items():
        expected = decay**3 * seen[0][name] + (1 - decay) * sum(
            decay ** (3 - i) * seen[i][name] for i in (1, 2, 3)
        )
        torch.testing.assert_close(average, expected, atol=1e-6, rtol=1e-5)
        assert not average.requires_grad  # else the graph of the whole run would be kept
    with pytest.raises(ZeroDivisionError), trainer.averaged_weights():
        assert all_equal(weights(trainer), trainer.ema)
        1 / 0
    assert all_equal(weights(trainer), seen[-1])


def test_a_window_carries_all_the_noise_and_is_what_is_trained(make):
    trainer = make(sampling={"window": 2, "steps": 6})
    for _ in range(3):
        _, plan, _, rollout = trainer.collect()
        assert len(plan.trained) == len(rollout.x) == 2
        assert plan.trained[1] == plan.trained[0] + 1
        assert [i for i, noise in enumerate(plan.noise) if noise] == list(plan.trained)
        trainer.iteration += 1


@pytest.mark.parametrize("shared", [True, False])
def test_a_group_may_start_from_one_noise(make, shared):
    trainer = make(sampling={"shared_noise": shared, "trained_share": 1.0})
    _, plan, _, rollout = trainer.collect()
    assert plan.trained[0] == 0
    first, second = rollout.x[0].view(2, 3, -1)
    assert torch.equal(first[0], first[1]) is shared
    assert torch.equal(first[0], first[2]) is shared
    assert not torch.equal(first[0], second[0])
    ends = rollout.latents.view(2, 3, -1)
    assert not torch.equal(ends[0, 0], ends[0, 1])


def test_a_seed_makes_the_run_and_another_seed_another(make):
    first, again, other = (make(seed=seed).step() for seed in (0, 0, 1))
    assert first == again
    assert first["reward"] != other["reward"]


def test_a_gradient_that_is_not_finite_leaves_the_weights(make, monkeypatch):
    trainer = make()
    start, loss = weights(trainer), update.surrogate_loss
    monkeypatch.setattr(update, "surrogate_loss", lambda *given: loss(*given) * float("nan"))
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        trainer.step()
    assert all_equal(start, weights(trainer))


def test_the_settings_that_cannot_be_are_refused(make, tree):
    with pytest.raises(ConfigError, match=r"group_size = 1: .* greater than or equal to 2"):
        build_config(merged(tree, {"group_size": 1}))
    with pytest.raises(ValueError, match=r"groups=2 .* only 1"):
        make(prompts=["a shape"])
    with pytest.raises(ValueError, match=r"groups=2 .* only 0"):
        make(prompts=[])


# ------------------------------------------------------------------------------------------------- priors in a training run


def test_the_running_mean_is_the_mean_of_the_past(make):
    trainer = make(prior={"name": "running_mean", "momentum": 0.75})
    log = [trainer.step() for _ in range(3)]
    rewards = [row["reward"] for row in log]
    second = rewards[0]
    third = 0.75 * second + 0.25 * rewards[1]
    assert [row["prior"] for row in log] == pytest.approx([rewards[0], second, third], rel=1e-6)


def test_a_constant_prior_is_that_constant(make):
    trainer = make(prior={"name": "constant", "value": 0.625})
    assert [trainer.step()["prior"] for _ in range(2)] == [0.625, 0.625]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """How often a policy is asked for a velocity, with a cache of reference rewards of the test's own."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    counter, velocity = SimpleNamespace(count=0), FluxPolicy.velocity

    def counted(self, *given):
        counter.count += 1
        return velocity(self, *given)

    monkeypatch.setattr(FluxPolicy, "velocity", counted)
    return counter


@pytest.mark.parametrize("kind", ["sft", "sft_per_prompt"])
def test_an_sft_prior_is_the_mean_reward_of_the_start_and_is_kept(make, calls, kind):
    options = {"prior": {"name": kind, "samples": 3}, "iterations": 1}
    trainer = make(**options)
    assert calls.count > 0
    e, shift = trainer.config.evaluation, trainer.config.sampling.shift
    found = (
        evaluate(trainer.policy, trainer.prompts, {"reward": trainer.reward}, 3, e.steps, shift)
        .scores["reward"]
        .mean(1)
    )
    expected = dict(zip(trainer.prompts, found.tolist(), strict=True))
    drawn = trainer.collect()[0]
    asked = [expected[p] for p in drawn] if kind == "sft_per_prompt" else list(expected.values())
    assert trainer.step()["prior"] == pytest.approx(sum(asked) / len(asked), rel=1e-5)

    calls.count = 0
    again = make(**options)  # from the starting weights again
    assert calls.count == 0
    assert again.prior(drawn, torch.zeros(2, 3)) == pytest.approx(
        torch.as_tensor(trainer.prior(drawn, torch.zeros(2, 3)))
    )


def test_reference_rewards_are_computed_anew_for_other_weights_rewards_and_prompts(make, calls):
    trainer = make(prior={"name": "sft", "samples": 1})
    before = reference_rewards(trainer.config, trainer.policy, trainer.reward, trainer.prompts)

    def asks(reward=trainer.reward, prompts=trainer.prompts):
        calls.count = 0
        return reference_rewards(trainer.config, trainer.policy, reward, prompts), calls.count > 0

    assert asks() == (before, False)
    other, asked = asks(reward=lambda pixels, prompts: -redness(pixels, prompts))
    assert (asked, other == before) == (True, False)
    assert asks(prompts=trainer.prompts[:2])[1]
    with torch.no_grad():
        next(iter(trainer.parameters.values())).view(-1)[0] += 1e-3
    assert asks()[1]


def test_a_prior_of_the_start_survives_a_resume(make, calls, tmp_path):
    options = {
        "prior": {"name": "sft", "samples": 2},
        "output": tmp_path / "run",
        "checkpoint_every": 1,
        "iterations": 3,
    }
    trainer = make(**options)
    trainer.step()
    trainer.save_checkpoint()
    value = trainer.prior.value
    shutil.rmtree(tmp_path / "cache")
    calls.count = 0
    again = make(**options)
    assert (again.iteration, again.prior.value) == (1, value)
    assert again.step()["prior"] == pytest.approx(value, rel=1e-6)


# ----------------------------------------------------------------------------------------------- evaluation and what is logged


def test_evaluations_are_the_same_pictures_whatever_the_seed(make):
    first, second = (make(seed=seed, group_size=2 + seed).evaluate() for seed in (0, 1))
    torch.testing.assert_close(first.pixels, second.pixels, atol=1e-5, rtol=0)
    assert first.pixels.shape == (4, 2, 3, 32, 32)
    assert first.scores["reward"].shape == (4, 2)


def test_evaluations_are_logged_with_every_score_and_what_is_not_defined(make):
    def sometimes(pixels, prompts):
        return torch.tensor([float("nan") if p == "a shape" else 1.5 for p in prompts])

    trainer = make(metrics={"sometimes": sometimes}, evaluation={"every": 1}, iterations=2)
    trainer.train()
    rows = read_log(trainer.output / "evaluations.jsonl")
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert rows[0]["sometimes"] == 1.5
    expected = [[None, None] if p == "a shape" else [1.5, 1.5] for p in trainer.prompts]
    assert [row["scores"]["sometimes"] for row in rows] == [expected] * 3
    assert rows[0]["reward"] == pytest.approx(
        sum(sum(row) for row in rows[0]["scores"]["reward"]) / 8, rel=1e-5
    )


def test_a_measure_that_is_defined_nowhere_is_logged_as_json(make):
    trainer = make(
        metrics={"nowhere": lambda pixels, prompts: torch.full((len(prompts),), torch.nan)},
        iterations=1,
    )
    trainer.train()
    for line in (trainer.output / "evaluations.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
        assert row["nowhere"] is None


def test_held_out_rewards_are_evaluated(make, image_reward_folder):
    trainer = make(
        evaluation={"held_out": {"name": "image_reward", "path": str(image_reward_folder)}}
    )
    found = trainer.evaluate()
    assert set(found.scores) == {"reward", "held_out"}
    assert found.scores["held_out"].isfinite().all()


def test_a_tracker_writes_beside_the_metrics(make):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make(tracker="tensorboard", iterations=1)
    trainer.train()
    (events,) = trainer.output.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent)).Reload()
    assert {"reward", "evaluation/reward", "grad_norm"} <= set(read.Tags()["scalars"])
    (logged,) = read.Scalars("reward")
    assert logged.value == pytest.approx(
        read_log(trainer.output / "metrics.jsonl")[0]["reward"], rel=1e-6
    )


def test_the_shipped_preset_trains(tmp_path):
    """One iteration of what the README trains, with everything it measures."""
    small = [
        "iterations=1",
        "group_size=2",
        "sampling.steps=4",
        "evaluation.samples=1",
        "evaluation.steps=2",
    ]
    code = main(["train", "t2i-tiny", "--output", str(tmp_path / "run"), *small])
    assert code == 0
    first, last = read_log(tmp_path / "run" / "evaluations.jsonl")
    assert {"reward", "held_out", "accuracy", "distance"} <= first.keys()
    assert (first["iteration"], last["iteration"]) == (0, 1)
    assert len(first["scores"]["accuracy"]) == sum(
        1 for _ in (SHIPPED / "prompts" / "evaluation.jsonl").open()
    )
