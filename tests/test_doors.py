"""An objective, prior, schedule, reward, generator or metric from outside the package takes one
file and no edit, and one from inside takes one line in the registry."""

import itertools
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bpgo.__main__ import main
from bpgo.config import ConfigError, read_config
from bpgo.files import SHIPPED, read_log
from bpgo.generators import load_generator
from bpgo.generators.flux import FluxPolicy
from bpgo.registry import TABLES, check_name
from bpgo.rewards import load_reward
from tests import small_runs as runs

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = Path(__file__).resolve().parent.parent / "reproduce" / "site" / "examples"
PROMPTS = ["a red circle on the left", "a blue square on the right", "a green cross"]
SMALL = ["iterations=4", "checkpoint_every=2", "groups=2", "group_size=2", "optimiser.updates=1"]
SMALL += ["sampling.steps=4", "evaluation.samples=1", "evaluation.steps=2"]

# The file that a user would write, and the overrides that name what is in it.
OBJECTIVE = ["objective.name=own_objective:batch_std", "objective.options.floor=0.05"]
PRIOR = ["prior.name=own_prior:RunningMedian", "prior.options.window=3"]
SCHEDULE = ["sampling.schedule=own_schedule:PROPORTIONAL"]
METRIC = ["evaluation.metrics=own_reward:colour"]
CLASS = "{name: own_reward:Symmetry, path: tiny-reward, options: {axis: horizontal}}"
REWARD = [f"reward=[{{name: own_reward:colour, process: true}}, {CLASS}]"]
GENERATOR = ["generator.policy=own_generator:HalfLight", "generator.options.width=16"]
LIT = ["reward={name: own_generator:lit}"]
DOORS = {
    "objective": ("own_objective", OBJECTIVE),
    "prior": ("own_prior", PRIOR),
    "schedule": ("own_schedule", SCHEDULE),
    "reward and metric": ("own_reward", [*REWARD, *METRIC]),
    "generator": ("own_generator", [*GENERATOR, *LIT]),
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """The override that names a file of three prompts."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return f"prompts={file}"


@pytest.fixture
def folder(tmp_path):
    """An empty folder."""
    return tmp_path / "work"


def copy_examples(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(EXAMPLES / f"{name}.py", folder)


def kill_in_update(number):
    """Kill the process in iteration `number`, between the update of the prior and the gradient."""
    from bpgo.trainer import Trainer

    original, calls = Trainer.update, itertools.count(1)

    def update(trainer, *given):
        if next(calls) == number:
            runs.kill()
        return original(trainer, *given)

    Trainer.update = update


def assert_same_files(folder, expected):
    """Every file of two runs has the same bytes. Only times may differ."""
    names = {file.relative_to(run) for run in (folder, expected) for file in run.rglob("*")}
    for name in names - {Path("timing.jsonl")}:
        a, b = folder / name, expected / name
        assert a.is_file() == b.is_file() and a.is_dir() == b.is_dir(), name
        assert a.is_dir() or a.read_bytes() == b.read_bytes(), name


# ------------------------------------------------------------------------- from the command line


@pytest.mark.parametrize("door", DOORS)
def test_one_file_is_enough_and_survives_a_kill(door, folder, prompts):
    name, overrides = DOORS[door]
    copy_examples(folder, name)

    def train(output, *disturbances):
        command = ["train", "t2i-tiny", "--output", output, *SMALL, prompts, *overrides]
        return runs.run(command, folder.parent / "log", partial(os.chdir, folder), *disturbances)

    assert train("killed", partial(kill_in_update, 3))[0] == -9
    assert [row["iteration"] for row in read_log(folder / "killed" / "metrics.jsonl")] == [1, 2]
    for output in ("killed", "undisturbed"):
        code, printed = train(output)
        assert code == 0, printed
    assert_same_files(folder / "killed", folder / "undisturbed")
    rows = read_log(folder / "undisturbed" / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["first_log_ratio"] == 0.0
    assert all(row["grad_norm"] > 0 for row in rows)


def test_all_of_them_work_together_in_two_processes(folder, prompts):
    copy_examples(folder, *(name for name, _ in DOORS.values()))
    overrides = [*OBJECTIVE, *PRIOR, *SCHEDULE, *METRIC, *REWARD, *GENERATOR]
    command = ["train", "t2i-tiny", *SMALL, prompts, *overrides, "--output"]
    start, log = partial(os.chdir, folder), folder.parent / "log"
    for code, printed in runs.run_together(2, [*command, "two"], log, start):
        assert code == 0, printed
    code, printed = runs.run([*command, "one"], log, start)
    assert code == 0, printed
    for name in ("metrics", "evaluations"):
        two, one = (read_log(folder / run / f"{name}.jsonl") for run in ("two", "one"))
        for row, expected in zip(two, one, strict=True):
            for differs in (
                "scores",
                "gradient_accumulation",
            ):  # each process has a part of the rows
                row.pop(differs, None), expected.pop(differs, None)
            assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)


# ----------------------------------------------------------------------- wrong names and options


@pytest.fixture
def here(folder, monkeypatch):
    """All examples in a folder that is the current one. Their modules are forgotten afterwards."""
    copy_examples(folder, *(name for name, _ in DOORS.values()))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    yield folder
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


WRONG = [
    ("objective.name=grop", "unknown objective 'grop': did you mean 'grpo'?"),
    ("prior.name=runing_mean", "unknown prior 'runing_mean': did you mean 'running_mean'?"),
    ("sampling.schedule=flow_grpo", "unknown schedule 'flow_grpo': did you mean 'flow-grpo'?"),
    ("reward.name=clp", "unknown reward 'clp': did you mean 'clip'?"),
    ("generator.policy=FluxPipe", "unknown generator 'FluxPipe': did you mean 'FluxPipeline'?"),
    ("evaluation.metrics=shape", "unknown metric 'shape': did you mean 'shapes'?"),
    ("objective.name=own_objective:batch_sd", "did you mean 'batch_std'?"),
    ("objective.name=own_objectiv:batch_std", "there is no module 'own_objectiv'"),
    ("prior.name=own_prior:RuningMedian", "did you mean 'RunningMedian'?"),
    ("sampling.schedule=own_schedule:PROPORTIONL", "did you mean 'PROPORTIONAL'?"),
    ("reward={name: own_reward:color}", "did you mean 'colour'?"),
    ("generator.policy=own_generator:HalfLite", "did you mean 'HalfLight'?"),
    ("evaluation.metrics=own_reward:color", "did you mean 'colour'?"),
    ("objective.options.flor=1", "has no option 'flor': did you mean 'floor'?"),
    ("objective.options.alpha=1", "'alpha' already has a value, so it cannot be an option too"),
    ("prior.options.windw=1", "has no option 'windw': did you mean 'window'?"),
    ("generator.options.widht=1", "has no option 'widht': did you mean 'width'?"),
    ("reward={name: own_reward:Symmetry, path: x, options: {ax: 1}}", "did you mean 'axis'?"),
    ("reward={name: own_reward:Symmetry}", "needs 'path': set it in its options"),
    ("reward={name: own_reward:colour, path: x}", "takes no path and no options"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[wrong for wrong, _ in WRONG])
def test_a_wrong_name_or_option_is_refused_before_anything_is_written(
    here, prompts, capsys, wrong, message
):
    key = wrong.partition("=")[0]
    right = [*OBJECTIVE, *PRIOR, *SCHEDULE, *METRIC, *GENERATOR, *LIT]
    right = [override for override in right if override.partition("=")[0] != key]
    command = ["train", "t2i-tiny", "--output", "run", *SMALL, prompts, *right, wrong]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not any(here.glob("run/*"))


def test_a_metric_of_another_shape_is_refused_before_anything_is_written(here, prompts, capsys):
    Path("own_metric.py").write_text("def mean(pixels, prompts):\n    return pixels.mean()\n")
    right = [*GENERATOR, *LIT, "evaluation.metrics=own_metric:mean"]
    assert main(["train", "t2i-tiny", "--output", "run", *SMALL, prompts, *right]) == 2
    expected = "metric 'own_metric:mean' returned torch.Size([]) for one sample"
    assert expected in capsys.readouterr().err
    assert not any(here.glob("run/*"))


# -------------------------------------------------------------------------- the forms of a door


def test_a_subclass_of_a_policy_is_loaded_like_it(here):
    code = "from bpgo.generators.flux import FluxPolicy\nclass Own(FluxPolicy):\n    pass\n"
    Path("own_flux.py").write_text(code)
    policy = load_generator("tiny-flux", "own_flux:Own", height=16)
    assert isinstance(policy, FluxPolicy) and type(policy).__name__ == "Own"
    assert policy.latent_shape()[1] == 4
    with pytest.raises(ValueError, match="no option 'heigth': did you mean 'height'"):
        load_generator("tiny-flux", "own_flux:Own", heigth=16)


def test_a_reward_class_gets_its_path_and_options_and_no_gradients(here):
    horizontal, vertical = (
        load_reward("own_reward:Symmetry", "tiny-reward", axis=axis, scale=2.0)
        for axis in ("horizontal", "vertical")
    )
    pixels = torch.ones(2, 3, 32, 32)
    pixels[:, 1:, 4:12, 12:20] = 0.0  # a red square at the top, in the middle
    pixels[1, :, 20:] = 0.0
    pixels.requires_grad_()
    values = horizontal(pixels, PROMPTS[:2])
    assert values.shape == (2,) and not values.requires_grad
    assert (values < 1.99).all()
    torch.testing.assert_close(vertical(pixels, PROMPTS[:2]), torch.tensor([2.0, 2.0]))


# ------------------------------------------------------------------------------- from the inside

INSIDE = {
    "objective": ("batch_std", "own_objective:batch_std"),
    "prior": ("running_median", "own_prior:RunningMedian"),
    "schedule": ("proportional", "own_schedule:PROPORTIONAL"),
    "reward": ("brightness", "tests.test_doors:load_brightness"),
    "generator": ("OtherPipeline", "tests.test_doors:OtherPolicy"),
    "metric": ("colour", "own_reward:colour"),
}
NAMED = ["objective.name=batch_std", "prior.name=running_median", "sampling.schedule=proportional"]
NAMED += ["reward={name: brightness, path: tiny-reward}", "evaluation.metrics=colour"]
REGISTER = """
from bpgo.registry import TABLES
for kind, (name, place) in {inside}.items():
    TABLES[kind][name] = place
from bpgo.__main__ import main
main(["settings"])
"""


def load_brightness(path):
    """A reward as the package's own are loaded."""
    return torch.nn.Identity(), lambda pixels, prompts: pixels.mean((1, 2, 3))


class OtherPolicy:
    """A policy as the package's own are loaded."""

    def __init__(self, pipeline, height=None):
        self.height = height

    @classmethod
    def load(cls, path, dtype="float32", device="cpu", **options):
        return cls(SimpleNamespace(path=path), **options)


def register_inside():
    """The one edit: a line in each table of the registry."""
    for kind, (name, place) in INSIDE.items():
        TABLES[kind][name] = place


@pytest.fixture
def registered(monkeypatch):
    for kind, (name, place) in INSIDE.items():
        monkeypatch.setitem(TABLES[kind], name, place)


def test_every_kind_of_the_registry_is_tested_here():
    assert INSIDE.keys() == TABLES.keys()


def test_one_line_makes_a_config_valid(registered):
    config = read_config("t2i-tiny", [*NAMED, "generator.policy=OtherPipeline"])
    assert config.objective.name == "batch_std"
    for kind, (name, _) in INSIDE.items():
        with pytest.raises(ValueError, match=f"did you mean '{name}'"):
            check_name(kind, f"{name}_")
    with pytest.raises(ConfigError, match=r"objective\.name: .*did you mean 'batch_std'"):
        read_config("t2i-tiny", ["objective.name=batch_sdt"])


def test_one_line_makes_the_policy_of_a_pipeline(registered, tmp_path):
    index = (SHIPPED / "tiny-flux" / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index.replace("FluxPipeline", "OtherPipeline"))
    assert load_generator(str(tmp_path), height=8).height == 8


def test_one_line_is_listed_by_bpgo_settings():
    code = REGISTER.format(inside=INSIDE)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for name, _ in INSIDE.values():
        assert f" {name} |" in done.stdout


def test_one_line_makes_it_train(folder, prompts):
    copy_examples(folder, "own_objective", "own_prior", "own_schedule", "own_reward")
    command = ["train", "t2i-tiny", "--output", "run", *SMALL[1:], prompts, *NAMED, "iterations=1"]
    start, log = partial(os.chdir, folder), folder.parent / "log"
    code, printed = runs.run(command, log, start, register_inside)
    assert code == 0, printed
    assert {"reward", "colour"} <= read_log(folder / "run" / "evaluations.jsonl")[0].keys()
