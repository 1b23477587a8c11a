"""Preflight lists a problem exactly if training refuses the run before its first step."""

import json
from pathlib import Path

import pytest
from PIL import Image

from bpgo.config import read_config
from bpgo.preflight import preflight
from bpgo.trainer import Trainer

OWN = """
import torch

def score(pixels, prompts):
    return pixels.flatten(1).mean(1)

def graded(pixels, prompts, answer):
    return pixels.flatten(1).mean(1)

class Judge:
    def __init__(self, path, strictness=1.0):
        pass

    def __call__(self, pixels, prompts, answer):
        return pixels.flatten(1).mean(1)

def half(rewards, prior):
    raise ValueError("half is not finished")

class Policy:
    def __init__(self, path, colour):
        pass
"""
REFUSED = {  # by preset, the overrides of runs that cannot start
    "t2i-tiny": [
        ["sampling.window=8"],
        ["sampling.window=2", "sampling.window_range=[6, 9]"],
        ["objective.options.flor=1"],
        ["objective.options.alpha=1"],
        ["objective.name=own_door:nothing"],
        ["objective.name=own_door:half"],
        ["objective.name=own_nowhere:half"],
        ["prior.options.windw=1"],
        ["prior.name=own_door:score"],
        ["prior.name=first_frame"],
        ["sampling.schedule=own_door:OWN"],
        ["reward.options.fps=2"],
        ["reward.name=image_grid", "reward.path=null"],
        ["reward.name=image_grid", "reward.path=tiny-video-held-out"],
        ["reward.device=cuda:63"],
        ["evaluation.held_out.device=cuda:63"],
        ["reward={name: own_door:score, path: tiny-reward}"],
        ["reward={name: own_door:Judge}"],
        ["reward={name: own_door:Judge, path: x, options: {strict: 2}}"],
        ["evaluation.held_out={name: own_door:nothing}"],
        ["evaluation.metrics=own_door:nothing"],
        ["evaluation.metrics=clips"],
        ["evaluation.metrics=own_door:graded"],
        ["reward={name: own_door:Judge, path: x}"],
        ["reward={name: own_door:graded}", "evaluation.prompts={answers}"],
        ["generator.height=30"],
        ["generator.height=64", "generator.width=32", "evaluation.metrics=shapes"],
        ["generator.frames=9"],
        ["generator.negative_prompt=blue"],
        ["generator.options.widht=1"],
        ["generator.policy=own_door:Policy"],
        ["generator.policy=own_nowhere:Policy"],
        ["generator.path=tiny-fluks"],
        ["generator.path=tiny-reward"],
        ["groups=10000"],
        ["prompts={mauve}"],
        ["prompts={blank}"],
        ["prompts={images}"],
        ["evaluation.prompts={mauve}"],
        ["evaluation.prompts=nowhere.txt"],
    ],
    "t2v-tiny": [
        ["generator.frames=10"],
        ["generator.frames=1"],
        ["generator.frames=5", "evaluation.metrics=clips"],
        ["generator.width=36"],
        ["generator.guidance_2=2.0"],
        ["prompts={images}"],
        ["reward.name=clip", "reward.path=tiny-reward"],
        ["evaluation.metrics=shapes"],
        ["generator.negative_prompt=a mauve thing"],
        ["generator.policy=FluxPipeline"],
    ],
    "i2v-tiny": [
        ["prompts=prompts/clip-train.jsonl"],
        ["evaluation.prompts=prompts/clip-evaluation.jsonl"],
        ["generator.height=64"],
        ["prompts={images}"],
        ["evaluation.held_out={name: pickscore, path: tiny-reward}"],
    ],
}
ACCEPTED = {
    "t2i-tiny": [
        [],
        ["sampling.window=7"],
        ["generator.policy=FluxPipeline", "generator.offload=true"],
        ["reward={name: own_door:score}"],
        ["reward={name: own_door:graded}", "prompts={answers}", "evaluation.prompts=null"],
        ["evaluation.held_out={name: own_door:graded}", "evaluation.prompts={answers}"],
    ],
    "t2v-tiny": [["generator.height=16", "generator.frames=5"]],
    "i2v-tiny": [["prior.name=first_frame"]],
}


def cases(by_preset):
    return [
        pytest.param(preset, overrides, id=f"{preset} {' '.join(overrides)}")
        for preset, lists in by_preset.items()
        for overrides in lists
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a module of the user and prompt files, by the names that overrides use."""
    folder = tmp_path_factory.mktemp("door")
    (folder / "own_door.py").write_text(OWN)
    shapes = ["a red circle", "a blue square", "a green cross", "a shape"] * 3
    (folder / "mauve.txt").write_text("\n".join([*shapes, "a mauve circle"]))
    (folder / "blank.txt").write_text("\n \n")
    answered = [json.dumps({"prompt": text, "answer": "yes"}) for text in shapes]
    (folder / "answers.jsonl").write_text("\n".join(answered))
    Image.new("RGB", (16, 16)).save(folder / "small.png")
    rows = [json.dumps({"prompt": text, "image": "small.png"}) for text in shapes]
    (folder / "images.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def config_of(files, monkeypatch):
    """The config of a preset with overrides, and without what takes time and is not at stake."""
    monkeypatch.syspath_prepend(files)
    monkeypatch.chdir(files)
    places = {file.stem: file for file in Path(files).iterdir()}

    def config_of(preset, overrides):
        given = list(overrides)
        for name, file in places.items():
            given = [override.replace(f"={{{name}}}", f"={file}") for override in given]
        for default in (
            "prior.name=running_mean",
            "evaluation.held_out=[]",
            "evaluation.metrics=[]",
        ):
            key = default.partition("=")[0].removesuffix(".name")
            if not any(override.startswith(key) for override in overrides):
                given.append(default)
        return read_config(preset, given)

    return config_of


def refuses(config, output):
    """What training says before its first step, or None."""
    try:
        Trainer(config, output, progress=False)
    except (ValueError, TypeError, OSError, AttributeError) as error:
        return error
    return None


@pytest.mark.parametrize(("preset", "overrides"), cases(REFUSED))
def test_what_training_refuses_is_listed(config_of, tmp_path, preset, overrides):
    config = config_of(preset, overrides)
    assert refuses(config, tmp_path / "run") is not None
    report = preflight(config, rate=1e12)
    assert report.missing, "preflight calls the run complete"


@pytest.mark.parametrize(("preset", "overrides"), cases(ACCEPTED))
def test_what_training_accepts_is_complete(config_of, tmp_path, preset, overrides):
    config = config_of(preset, overrides)
    assert refuses(config, tmp_path / "run") is None
    assert preflight(config, rate=1e12).missing == []
