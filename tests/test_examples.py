"""The page on extending the package: its examples train, and its commands are valid."""

import re
import runpy
import shlex
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bpgo import ras_weights, read_config
from bpgo.checkpoint import CheckpointError, checkpoints, load_state
from bpgo.files import SHIPPED, read_log
from bpgo.prompt_files import read_prompts
from bpgo.registry import TABLES, find
from bpgo.rewards import load_reward
from bpgo.sde import noise_levels

pytestmark = pytest.mark.usefixtures("one_thread")

SITE = Path(__file__).resolve().parent.parent / "reproduce" / "site"
EXAMPLES = sorted((SITE / "examples").glob("*.py"))
OWN = [file for file in EXAMPLES if file.stem.startswith("own_")]
PAGE = (SITE / "extend.md").read_text()


@pytest.fixture
def example(monkeypatch, tmp_path):
    """`example(name)` is the module of an example, which trains on four prompts."""
    file = tmp_path / "prompts.txt"
    words = ("a red circle", "a large blue square", "a green cross", "a small red square")
    file.write_text("\n".join(words))
    monkeypatch.syspath_prepend(SITE / "examples")

    def load(name):
        module = import_module(name)
        few = [f"prompts={file}", "evaluation.samples=1", "evaluation.steps=2"]
        if name != "own_generator":
            monkeypatch.setattr(module, "SMALL", [*module.SMALL, *few])
        return module

    yield load
    for file in OWN:
        sys.modules.pop(file.stem, None)


def weights_changed(output):
    """Whether the exported FLUX has other weights than the shipped one."""
    part = Path("transformer", "diffusion_pytorch_model.safetensors")
    before, after = load_file(SHIPPED / "tiny-flux" / part), load_file(output / "final" / part)
    return any(not torch.equal(before[name].float(), after[name]) for name in before)


def settings(output):
    return read_config(output / "config.json")  # JSON is YAML


# ------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_short_and_shown_on_a_page(file):
    assert 20 <= len(file.read_text().splitlines()) <= 90
    pages = "".join(page.read_text() for page in SITE.glob("*.md"))
    assert f"{{literalinclude}} examples/{file.name}" in pages


def test_the_page_shows_what_there_is():
    shown = re.findall(r"examples/(\w+)\.py\n:(pyobject|start-at): (?:def )?(\w+)\n", PAGE)
    assert len(shown) == PAGE.count("{literalinclude}")
    for name, _, attribute in shown:
        assert re.search(
            rf"^(def|class) {attribute}\b", (SITE / "examples" / f"{name}.py").read_text(), re.M
        )
    assert "```python" not in PAGE, "code of the page is in the examples, which are tested"


def commands():
    """Every `bpgo train` of the page and of the docstrings of the examples."""
    found = re.findall(r"^\$ bpgo train (.*)$", PAGE, re.M)
    for file in OWN:
        docstring = file.read_text().split('"""')[1].replace("\\\\\n", "")
        found += re.findall(r"^    bpgo train (.*)$", docstring, re.M)
    return found


@pytest.mark.parametrize("command", commands())
def test_a_command_names_what_there_is(command, example):
    preset, *rest = shlex.split(command)
    config = read_config(preset, [item for item in rest if "=" in item])
    assert rest[:2] == ["--output", rest[1]]
    names = {"objective": config.objective.name, "prior": config.prior.name}
    names |= {"schedule": config.sampling.schedule, "generator": config.generator.policy}
    assert ":" in repr([names, config.reward, config.evaluation.metrics])
    for kind, name in names.items():
        assert name is None or find(kind, name)
    assert all(find("reward", reward.name) for reward in config.reward)
    assert all(find("metric", name) for name in config.evaluation.metrics)


def test_every_example_and_every_door_has_a_command():
    text = " ".join(commands())
    for file in OWN:
        assert f"{file.stem}:" in text
    assert len(re.findall(r"^\| .* \| no edit \| one line \|$", PAGE, re.M)) == len(TABLES)


# -------------------------------------------------------------------------------- as objects


def test_the_objective(example, tmp_path):
    own = example("own_objective")
    r = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    found = own.batch_std(r, 0.5, alpha=0.5, k=2.0)
    centred = r - r.mean(1, keepdim=True)
    expected = ras_weights(r, 0.5, 0.5, 2.0)[:, None] * centred / r.std()
    assert torch.allclose(found.main, expected, atol=1e-6)
    wide = own.batch_std(r, 0.5, alpha=0.5, k=2.0, floor=1.0)
    assert torch.allclose(wide.main, expected * r.std(), atol=1e-6)
    own.main(tmp_path / "run")
    assert settings(tmp_path / "run").objective.name == "own_objective:batch_std"
    assert settings(tmp_path / "run").objective.options == {"floor": 0.05}
    assert weights_changed(tmp_path / "run")


def test_the_prior_is_asked_and_resumed(example, tmp_path):
    own = example("own_prior")
    own.main(tmp_path / "complete")
    rows = read_log(tmp_path / "complete" / "metrics.jsonl")
    means = load_state(checkpoints(tmp_path / "complete")[-1])[1]["prior"]["means"]
    assert len(means) == 12
    expected = [np.median(means[: max(4, n)]) for n in (0, 4, 8)]
    assert [row["prior"] for row in rows] == pytest.approx(expected)
    assert rows[2]["reward"] == pytest.approx(np.mean(means[8:]))
    own.main(tmp_path / "resumed", iterations=2)
    own.main(tmp_path / "resumed", iterations=3)
    assert read_log(tmp_path / "resumed" / "metrics.jsonl") == rows
    assert weights_changed(tmp_path / "complete")
    with pytest.raises(CheckpointError, match=r"own_prior:RunningMedian.*-> 'running_mean'"):
        again = read_config(tmp_path / "resumed" / "config.json", ["prior.name=running_mean"])
        own.bpgo.Trainer(again, tmp_path / "resumed")


def test_the_schedule(example, tmp_path, capsys):
    own = example("own_schedule")
    sigmas = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    assert noise_levels(own.PROPORTIONAL, sigmas, 0.4, range(4)) == pytest.approx(
        [0.4, 0.3, 0.2, 0]
    )
    own.main(tmp_path / "run")
    assert settings(tmp_path / "run").sampling.schedule == "own_schedule:PROPORTIONAL"
    assert "noise of each step: 0.700 0.525 0.350 0.175" in capsys.readouterr().out
    assert weights_changed(tmp_path / "run")


def test_the_schedule_is_found_in_a_script(example, tmp_path, monkeypatch):
    """As `python own_schedule.py` does, and as a notebook does."""
    monkeypatch.setitem(sys.modules, "__main__", example("own_schedule"))
    names = runpy.run_path(str(SITE / "examples" / "own_schedule.py"))
    assert names["PROPORTIONAL"].step is find("schedule", "__main__:PROPORTIONAL").step


def test_the_reward(example, tmp_path):
    own = example("own_reward")
    pixels = torch.zeros(3, 3, 4, 4)
    pixels[:, :, :, :2] = torch.tensor(own.COLOURS["red"])[:, None, None]
    prompts = ["a red circle", "a blue circle", "a circle"]
    assert own.colour(pixels, prompts).tolist() == [0.5, 0.0, 0.0]
    own.main(tmp_path / "run", iterations=2)
    rows = read_log(tmp_path / "run" / "evaluations.jsonl")
    assert all({"reward", "symmetry"} <= row.keys() for row in rows)
    assert settings(tmp_path / "run").reward[0].name == "own_reward:colour"
    assert weights_changed(tmp_path / "run")


def test_the_reward_that_asks_for_a_column_of_the_prompt_file(example, tmp_path):
    own = example("own_reward")
    (tmp_path / "p.csv").write_text("prompt,target\na circle,red\na square,blue\n")
    prompts = read_prompts(str(tmp_path / "p.csv"))
    pixels = torch.zeros(2, 3, 4, 4)
    pixels[:, :, :, :2] = torch.tensor(own.COLOURS["red"])[:, None, None]
    reward = load_reward("own_reward:target_colour")
    assert reward(pixels, prompts).tolist() == [0.5, 0.0]
    with pytest.raises(ValueError, match=r"'target'.*'a shape'"):
        reward(pixels, [*prompts[:1], "a shape"])


def test_the_reward_with_weights_compares_an_image_with_its_mirror_image(example):
    symmetry = example("own_reward").Symmetry("tiny-reward", axis="horizontal")
    noise = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    half = noise[:, :, :16]
    same = torch.cat([half, half.flip(-2)], -2)  # equal to its mirror image
    assert torch.allclose(symmetry(same, ["a", "b"]), torch.ones(2), atol=1e-5)
    vision = symmetry.model.vision_model
    a, b = (vision(x).pooler_output.double() for x in (noise, noise.flip(-2)))
    expected = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    assert torch.allclose(symmetry(noise, ["a", "b"]).double(), expected, atol=1e-5)


def test_the_generator_learns_and_is_saved(example, tmp_path):
    own = example("own_generator")
    own.main(tmp_path)
    rows = read_log(tmp_path / "evaluations.jsonl")
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.02
    assert read_log(tmp_path / "metrics.jsonl")[0]["first_log_ratio"] == 0.0
    torch.manual_seed(0)
    start = own.HalfLight(width=64).net.state_dict()
    end = load_file(tmp_path / "final" / "net.safetensors")
    assert start.keys() == end.keys()
    assert all(not torch.equal(start[name], end[name]) for name in start)
    for refused in ({"prompts": [""]}, {"prompts": ["left"], "images": [None]}):
        with pytest.raises(ValueError, match="empty or have images"):
            own.HalfLight().check(**refused)


def test_the_generator_saves_into_a_folder_that_may_exist(example, tmp_path):
    policy = example("own_generator").HalfLight(width=16)
    for _ in range(2):
        policy.save(tmp_path / "a" / "b", lora=False)
    assert (
        load_file(tmp_path / "a" / "b" / "net.safetensors").keys() == policy.net.state_dict().keys()
    )
