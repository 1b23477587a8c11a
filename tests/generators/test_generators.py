"""Loading a generator: which policy it gets, and which folders are refused."""

import json
import shutil

import pytest

from bpgo.generators import load_generator
from bpgo.generators.flux import FluxPolicy
from bpgo.generators.wan import WanPolicy


def test_the_pipeline_s_class_decides_the_policy(tiny_folder, wan_folder, wan_i2v_folder):
    assert isinstance(load_generator(tiny_folder), FluxPolicy)
    for folder, takes_images in ((wan_folder, False), (wan_i2v_folder, True)):
        policy = load_generator(folder, height=16, width=16, frames=5)
        assert isinstance(policy, WanPolicy)
        assert policy.takes_images is takes_images


def test_an_option_that_a_policy_does_not_have_is_refused(tiny_folder):
    with pytest.raises(ValueError, match=r"\(FluxPipeline\) has no option 'frames'"):
        load_generator(tiny_folder, frames=5)


def test_a_missing_folder_is_refused_with_what_is_shipped(tmp_path):
    with pytest.raises(FileNotFoundError, match="tiny-flux"):
        load_generator("tiny-fluks")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_generator(str(tmp_path / "nowhere"))


def test_a_folder_that_is_not_a_pipeline_is_refused(tmp_path):
    message = r"not a diffusers pipeline: it has no model_index\.json"
    with pytest.raises(FileNotFoundError, match=message):
        load_generator(tmp_path)


def test_another_pipeline_class_is_refused_by_name(tmp_path):
    index = {"_class_name": "StableDiffusionPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    message = r"is a StableDiffusionPipeline, .*there are policies for FluxPipeline, WanPipeline"
    with pytest.raises(ValueError, match=message):
        load_generator(tmp_path)


@pytest.mark.parametrize("index", ["", "{}", "[]", '{"_class_name": '])
def test_a_damaged_model_index_is_refused(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model_index\.json is damaged"):
        load_generator(tmp_path)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_2"])
@pytest.mark.parametrize("left", [0.5, 0.999, 0])
def test_truncated_weights_are_refused_by_file(tiny_folder, tmp_path, part, left):
    folder = shutil.copytree(tiny_folder, tmp_path / "cut")
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[: int(left * weights.stat().st_size)])
    with pytest.raises(ValueError, match=rf"{part}/{weights.stem}.* is truncated or damaged"):
        load_generator(folder)


def test_missing_weights_are_refused_by_file(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "cut")
    (weights,) = (folder / "transformer").glob("*.safetensors")
    weights.unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        load_generator(folder)
