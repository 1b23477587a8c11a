"""HPSv2 against the published formula and size, and what it downloads."""

import pytest
import torch
from torch.nn.functional import gelu

from bpgo.rewards import hpsv2, load_reward
from bpgo.worlds.pretrain import architectures
from tests.rewards.downloads import check_downloads
from tests.rewards.formulas import MEAN, STD, clip_cosines, clip_ids, padded
from tests.rewards.layouts import (
    CLEANED,
    FILES,
    LONG,
    PROMPTS,
    SIDE,
    SIZES,
    VIT_H,
    count,
    noisy_images,
    on_meta,
    open_clip_shapes,
    shapes_of,
)

NAMES = ["hpsv2", "hpsv2.0"]
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_rewards_are_the_published_formula(published, clip_tokenizer, name, size):
    folder, state = published[name]
    pixels, prompts = noisy_images(*size, batch=4), [*PROMPTS, LONG]
    ids = clip_ids(prompts, clip_tokenizer)
    expected = clip_cosines(padded(pixels), ids, state, gelu)
    assert expected.std() > 0.01
    for place in (folder, folder / FILES[name]):
        came = load_reward(name, place)(pixels, prompts)
        assert (came.shape, came.dtype) == ((4,), torch.float32)
        torch.testing.assert_close(came, expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_prompts_are_cleaned_as_open_clip_does(published, clip_tokenizer, name):
    folder, state = published[name]
    pixels = noisy_images(32, 32, len(CLEANED))
    ids = clip_ids(list(CLEANED.values()), clip_tokenizer)
    expected = clip_cosines(padded(pixels), ids, state, gelu)
    came = load_reward(name, folder)(pixels, list(CLEANED))
    torch.testing.assert_close(came, expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (32, 20), (100, 48), (7, 32), (512, 512)])
def test_images_are_padded_where_clip_crops(size):
    pixels = torch.ones(1, 3, *size)
    came = hpsv2.preprocess(pixels, SIDE) * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    assert came.shape == (1, 3, SIDE, SIDE)
    height, width = (round(n * SIDE / max(size)) for n in size)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    expected = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    expected[top : top + height, left : left + width] = True
    assert torch.equal(came[0, 0] > 0.5, expected)
    black = came[0, :, ~expected]
    torch.testing.assert_close(black, torch.zeros_like(black), atol=1e-6, rtol=0)


def test_the_published_size():
    """986,109,441 numbers of two bytes, of the 1,972,484,501 bytes of HPS_v2_compressed.pt."""
    from transformers import CLIPModel

    shapes = open_clip_shapes(*VIT_H)
    assert count(shapes) == 986_109_441
    weights = hpsv2.rename(on_meta(shapes))
    config = hpsv2.configuration(weights)
    with torch.device("meta"):
        model = CLIPModel(config)
    assert shapes_of(weights) == shapes_of(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == 986_109_441
    vision, text = config.vision_config, config.text_config
    assert (vision.image_size, vision.hidden_act, text.hidden_act) == (224, "gelu", "gelu")
    assert (text.max_position_embeddings, text.eos_token_id) == (77, 49407)
    assert vision.num_attention_heads == text.num_attention_heads == 16


# ---------------------------------------------------------------------------------------- loading


def test_the_file_of_the_other_version_is_asked_for_by_name(published):
    with pytest.raises(
        FileNotFoundError, match=r"has no HPS_v2_compressed\.pt\. .* It has HPS_v2\.1_"
    ):
        load_reward("hpsv2.0", published["hpsv2"][0])


@pytest.mark.parametrize("other", ["image_reward", "clip"])
def test_the_file_of_another_reward_is_refused(published, other):
    with pytest.raises(ValueError, match=r"has no dictionary 'state_dict' of tensors"):
        load_reward("hpsv2", published[other][0] / FILES[other])


@pytest.mark.parametrize("name", NAMES)
def test_another_model_s_tokenizer_is_refused(copied, name):
    folder, _ = copied(name)
    architectures.clip_tokenizer(["a", "red"]).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"tokenizer of .* does not end prompts with the last of"):
        load_reward(name, folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_hub_id_downloads_the_published_file_and_the_tokenizer(
    copied, published, name, monkeypatch
):
    expected = [("xswu/HPSv2", FILES[name]), TOKENIZER]
    check_downloads(name, expected, copied(name)[0], published[name][0], monkeypatch)
