"""ImageReward against BLIP in transformers and the published formula, and what it downloads."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bpgo.rewards import RewardError, image_reward, load_reward
from bpgo.rewards.clip import MEAN, STD
from bpgo.rewards.preprocess import normalise
from tests.rewards.downloads import check_downloads
from tests.rewards.formulas import bert_ids, cropped, image_reward_scores
from tests.rewards.layouts import (
    FILES,
    LONG,
    PROMPTS,
    SIZES,
    blip_shapes,
    count,
    med_config,
    noisy_images,
    on_meta,
    shapes_of,
)

PUBLISHED_MEAN, PUBLISHED_STD = 0.16717362830052426, 1.0333394966054072


# ------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_rewards_are_the_published_formula(published, size):
    from transformers import AutoTokenizer

    folder, state = published["image_reward"]
    pixels, prompts = noisy_images(*size, batch=4), [*PROMPTS, LONG]
    ids, mask = bert_ids(prompts, AutoTokenizer.from_pretrained(folder))
    assert mask.sum(1).tolist() == [5, 9, 4, 35]
    assert 1 not in ids  # the second token is [UNK]
    med = json.loads((folder / "med_config.json").read_text())
    images = cropped(pixels)
    expected = image_reward_scores(images, ids, mask, state, med, PUBLISHED_MEAN, PUBLISHED_STD)
    assert expected.std() > 0.01
    # In float64, without the rounding of torch's resize in float32.
    exact = image_reward.load(folder)[0].double()(images, ids, mask)
    torch.testing.assert_close(exact, expected, atol=1e-10, rtol=0)
    for path in (folder, folder / "ImageReward.pt"):
        came = load_reward("image_reward", path)(pixels, prompts)
        torch.testing.assert_close(came, expected.float(), atol=1e-5, rtol=0)


def test_a_folder_of_ours_is_blip_and_a_linear_head(image_reward_folder):
    """The encoders of BlipForImageTextRetrieval, then the folder's head, mean and std, by hand."""
    from transformers import AutoTokenizer, BlipConfig, BlipForImageTextRetrieval

    config = json.loads((image_reward_folder / "config.json").read_text())
    weights = load_file(image_reward_folder / "model.safetensors")
    vision = config["vision"] | {"layer_norm_eps": 1e-6}
    text = config["text"] | {"encoder_hidden_size": config["vision"]["hidden_size"]}
    blip = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision)).eval()
    for part, prefix in ((blip.vision_model, "vision."), (blip.text_encoder, "text.")):
        names = [name for name in weights if name.startswith(prefix)]
        part.load_state_dict({name.removeprefix(prefix): weights[name] for name in names})
    tokenizer = AutoTokenizer.from_pretrained(image_reward_folder)
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    pixels = noisy_images(32, 32)
    with torch.no_grad():
        seen = blip.vision_model(normalise(pixels, MEAN, STD)).last_hidden_state
        read = blip.text_encoder(
            tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=seen
        ).last_hidden_state
    score = read[:, 0].numpy()
    for layer in range(len(config["head"])):
        weight, bias = weights[f"head.{layer}.weight"], weights[f"head.{layer}.bias"]
        score = score @ weight.numpy().T + bias.numpy()
    expected = (score[:, 0] - 0.25) / 2.0
    assert np.ptp(expected) > 1e-3
    came = load_reward("image_reward", image_reward_folder)(pixels, PROMPTS)
    np.testing.assert_allclose(came.numpy(), expected, atol=1e-5)


def test_rewards_are_the_same_in_our_layout(published, tmp_path):
    folder, state = published["image_reward"]
    weights = image_reward.rename(state)
    med = json.loads((folder / "med_config.json").read_text())
    config = image_reward.configuration(weights, med)
    assert (config["vision"]["image_size"], config["head"]) == (32, [20, 12, 8, 4, 1])
    for file in folder.glob("*token*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors")
    ours, theirs = load_reward("image_reward", tmp_path), load_reward("image_reward", folder)
    pixels = noisy_images(48, 100)
    torch.testing.assert_close(ours(pixels, PROMPTS), theirs(pixels, PROMPTS), atol=1e-5, rtol=0)


def test_the_published_size():
    """446,665,953 numbers of four bytes and 512 position ids of eight.

    That is 1,786,667,908 of the 1,786,880,927 bytes of ImageReward.pt.
    """
    med = med_config(30524) | {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "encoder_width": 768,
    }
    shapes = blip_shapes(16, 224, 1024, 24, med, (1024, 128, 64, 16, 1))
    assert count(shapes) == 446_665_953
    weights = image_reward.rename(on_meta(shapes))
    with torch.device("meta"):
        model = image_reward.ImageReward(image_reward.configuration(weights, med))
    assert shapes_of(weights) == shapes_of(model.state_dict())
    unused = 256 * (1024 + 1) + 256 * (768 + 1)  # the projections of BLIP's contrastive loss
    assert sum(p.numel() for p in model.parameters()) == 446_665_953 - unused
    widths = [tuple(layer.weight.shape) for layer in model.head]
    assert widths == [(1024, 768), (128, 1024), (64, 128), (16, 64), (1, 16)]
    assert all(isinstance(layer, nn.Linear) for layer in model.head)
    config, vision = model.config, model.vision.config
    found = config["max_length"], config["mean"], config["std"]
    assert found == (35, PUBLISHED_MEAN, PUBLISHED_STD)
    assert (vision.image_size, vision.num_attention_heads) == (224, 16)
    assert vision.layer_norm_eps == 1e-6


UNKNOWN = {  # prompts, and the tokens that BERT's tokenizer makes of them
    "a \U0001f600 box": "a [UNK] box",
    "\u7ea2 circle": "[UNK] circle",
    "\u7ea2\u5706": "[UNK] [UNK]",  # each Chinese character is a word
    "a mauve box": "a m ##a ##u ##v ##e box",
}


@torch.no_grad()
def test_characters_that_the_tokenizer_does_not_know_are_scored_as_upstream(published):
    from transformers import AutoTokenizer

    folder, state = published["image_reward"]
    med, pixels = json.loads((folder / "med_config.json").read_text()), noisy_images(32, 32, 4)
    ids, mask = bert_ids(UNKNOWN.values(), AutoTokenizer.from_pretrained(folder))
    assert ids.eq(1).sum(1).tolist() == [1, 1, 2, 0]
    expected = image_reward_scores(
        cropped(pixels), ids, mask, state, med, PUBLISHED_MEAN, PUBLISHED_STD
    )
    came = load_reward("image_reward", folder)(pixels, list(UNKNOWN))
    torch.testing.assert_close(came, expected.float(), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------- loading


def test_a_med_config_that_lacks_a_size_is_refused(copied):
    folder, _ = copied("image_reward")
    file = folder / "med_config.json"
    med = json.loads(file.read_text())
    del med["hidden_size"]
    file.write_text(json.dumps(med))
    message = (
        r"is not of image_reward: its med_config\.json lacks hidden_size \(it is of a bert model"
    )
    with pytest.raises(ValueError, match=message):
        load_reward("image_reward", folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"med_config\.json"):
        load_reward("image_reward", folder)


@pytest.mark.parametrize("other", ["clip", "hpsv2"])
def test_the_file_of_another_reward_is_refused(published, other):
    with pytest.raises((ValueError, OSError), match=str(published[other][0])):
        load_reward("image_reward", published[other][0] / FILES[other])


def test_the_folder_of_another_reward_is_refused(clip_folder):
    message = (
        r"is not of image_reward: its config\.json lacks head, max_length, mean, std, text, vi"
    )
    with pytest.raises(ValueError, match=message):
        load_reward("image_reward", clip_folder)


def test_words_that_it_cannot_read_are_named(image_reward_folder):
    reward = load_reward("image_reward", image_reward_folder)
    message = "text encoder does not know these words, .* 'a mauve shape': mauve"
    with pytest.raises(RewardError, match=message):
        reward(torch.zeros(1, 3, 32, 32), ["a mauve shape"])


def test_a_hub_id_downloads_the_published_files_and_the_tokenizer(copied, published, monkeypatch):
    hub_id = "THUDM/ImageReward"
    expected = [(hub_id, "med_config.json"), (hub_id, "ImageReward.pt"), "bert-base-uncased"]
    folder, complete = copied("image_reward")[0], published["image_reward"][0]
    check_downloads("image_reward", expected, folder, complete, monkeypatch)
