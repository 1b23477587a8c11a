"""The stages of `bpgo pretrain`: the table, what is refused, and a short run of all of them."""

import inspect
import json
from importlib import import_module

import pytest
import torch

from bpgo.__main__ import main
from bpgo.files import SHIPPED
from bpgo.generators import load_generator
from bpgo.rewards import load_reward
from bpgo.worlds import pretrain
from bpgo.worlds.pretrain.shapes_generator import PASSES
from bpgo.worlds.pretrain.stages import DEFAULT, DIGITS, STAGES

FOLDERS = {path.name for path in SHIPPED.iterdir()}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_names_a_function_of_a_folder_and_a_scale(stage):
    module, name = STAGES[stage].function.split(":")
    function = getattr(import_module(f"bpgo.worlds.pretrain.{module}"), name)
    output, scale = inspect.signature(function).parameters
    assert output == "output"
    assert scale in ("scale", "_")
    assert function.__doc__


def test_the_default_stages_and_those_of_digits_are_all_stages():
    assert {*DEFAULT, *DIGITS} == STAGES.keys()
    assert not {*DEFAULT} & {*DIGITS}
    assert DEFAULT.count("refine") == len(PASSES) - 1
    assert len(DEFAULT) == len({*DEFAULT}) + DEFAULT.count("refine") - 1


def test_only_the_passes_over_flux_share_a_seed():
    seeds = [stage.seed for name, stage in STAGES.items() if name != "refine"]
    assert len(set(seeds)) == len(seeds)


def test_an_unknown_stage_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["pretrain", "prompts", "fluks", "--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "unknown stage 'fluks': known stages are autoencoder, flux, refine" in message
    assert not list(tmp_path.iterdir())


def test_stages_run_in_the_order_given_from_their_seeds(tmp_path, monkeypatch):
    calls = []
    drawn = {}
    for name, stage in STAGES.items():
        module, function = stage.function.split(":")

        def run(output, scale, name=name):
            calls.append((name, output, scale))
            drawn[name] = torch.rand(1).item()

        monkeypatch.setattr(import_module(f"bpgo.worlds.pretrain.{module}"), function, run)
    pretrain.pretrain(["reward", "digits", "wan"], tmp_path, 0.5)
    assert calls == [(name, tmp_path, 0.5) for name in ("reward", *DIGITS, "wan")]
    for name, value in drawn.items():
        torch.manual_seed(STAGES[name].seed)
        assert value == torch.rand(1).item()
    calls.clear()
    pretrain.pretrain([], tmp_path)
    assert [name for name, _, _ in calls] == DEFAULT


@pytest.mark.slow
def test_the_default_stages_run_end_to_end(tmp_path):
    assert main(["pretrain", "--output", str(tmp_path), "--scale", "0"]) == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {name for name in FOLDERS if "digits" not in name}
    for folder in made - {"prompts"}:
        assert json.loads((tmp_path / folder / "card.json").read_text())["metrics"]
    rewards = (
        ("tiny-flux", {}, "clip", "tiny-reward"),
        ("tiny-flux", {}, "image_reward", "tiny-held-out"),
        ("tiny-wan", {"frames": 9}, "video_clip_xl", "tiny-video-reward"),
        ("tiny-wan-image", {"frames": 9}, "image_grid", "tiny-video-held-out"),
    )
    for generator, frames, name, folder in rewards:
        check_reward(tmp_path, generator, frames, name, folder, ["a shape", "a red circle"])
    assert main(["pretrain", "refine", "--output", str(tmp_path), "--scale", "0"]) == 2


@pytest.mark.slow
def test_the_stages_of_digits_run_end_to_end(tmp_path):
    assert main(["pretrain", "digits", "--output", str(tmp_path), "--scale", "0"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {n for n in FOLDERS if "digits" in n}
    generator, captions = "tiny-digits-flux", ["a four", "a digit"]
    check_reward(tmp_path, generator, {}, "clip", "tiny-digits-reward", captions)
    check_reward(tmp_path, generator, {}, "image_reward", "tiny-digits-held-out", captions)


def check_reward(output, generator, frames, name, folder, captions):
    """The generator and the reward load, and the reward scores what the generator decodes."""
    policy = load_generator(output / generator, height=32, width=32, **frames)
    pixels = policy.decode(torch.randn(2, *policy.latent_shape()))
    assert load_reward(name, output / folder)(pixels, captions).isfinite().all()
