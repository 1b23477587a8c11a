"""CLIPScore and PickScore against transformers' processor and model, and the published formula."""

import shutil
from math import floor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity, gelu

from bpgo.rewards import hpsv2, load_reward
from bpgo.rewards.clip import MEAN, STD
from bpgo.rewards.preprocess import centre_crop, floored_half, rounded_half
from bpgo.worlds.pretrain import architectures
from tests.rewards.formulas import as_open_clip, clip_cosines, clip_ids, cropped, quick_gelu
from tests.rewards.layouts import (
    CLEANED,
    LENGTH,
    LONG,
    PROMPTS,
    SIZES,
    VIT_H,
    count,
    noisy_images,
    on_meta,
    open_clip_shapes,
    shapes_of,
    transformers_clip_shapes,
)

NAMES = ["clip", "pickscore"]
# Height, width. 48 x 100 does not divide evenly.
PIL_SIZES = [(32, 32), (48, 100), (100, 48), (37, 41), (64, 64), (20, 24), (90, 33)]


def byte_images(height, width, levels=(0, 256)):
    """Three random uint8 images, as the pixels that rewards take and as PIL images."""
    rng = np.random.default_rng(height * 1000 + width)
    made = rng.integers(*levels, (3, height, width, 3), dtype=np.uint8)
    pixels = torch.from_numpy(made).permute(0, 3, 1, 2) / 255
    return pixels, [Image.fromarray(image) for image in made]


@pytest.fixture(scope="module")
def hugging_face(clip_folder):
    """CLIPModel and CLIPProcessor of a folder, the latter with the PIL backend."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    processor = CLIPProcessor(
        CLIPImageProcessorPil.from_pretrained(clip_folder),
        CLIPTokenizer.from_pretrained(clip_folder),
    )
    return CLIPModel.from_pretrained(clip_folder).eval(), processor


# ------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("size", PIL_SIZES)
def test_images_are_prepared_as_clip_s_own_processor_does(hugging_face, size):
    """PIL rounds to 1/255 after each of its two passes, if it resizes.

    That is a difference of up to 1.5/255, divided by the std of 0.26. PIL also clips after each
    pass, so the noise is kept away from black and white.
    """
    pixels, images = byte_images(*size, levels=(80, 176))
    theirs = hugging_face[1](images=images, return_tensors="pt")["pixel_values"]
    ours = centre_crop(pixels, 32, MEAN, STD, floored_half)
    assert ours.shape == theirs.shape == (3, 3, 32, 32)
    tolerance = 1e-5 if size == (32, 32) else 1.5 / 255 / 0.26
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", [*PIL_SIZES, (333, 517)])
def test_images_are_prepared_as_torchvision_does(size):
    """Its Resize and CenterCrop on PIL images, which OpenAI's CLIP and ImageReward use.

    The longer side is int(32 long / short), and the offset of the crop int(round((n - 32) / 2.0)).
    """
    pixels, images = byte_images(*size, levels=(80, 176))
    short = min(size)
    height, width = (int(32 * n / short) for n in size)
    top, left = (round((n - 32) / 2.0) for n in (height, width))
    rows = []
    for image in images:
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        rows.append(np.asarray(resized.crop((left, top, left + 32, top + 32))))
    theirs = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2) / 255
    ours = centre_crop(pixels, 32, (0, 0, 0), (1, 1, 1), rounded_half)
    torch.testing.assert_close(ours, theirs, atol=1.51 / 255, rtol=0)
    assert size != (37, 41) or left == 2  # rounded down, it would be 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", PIL_SIZES[:3])
def test_rewards_are_transformers_own_numbers(hugging_face, clip_folder, name, size):
    """The rounding of PIL moves a cosine by less than 2e-3."""
    model, processor = hugging_face
    pixels, images = byte_images(*size)
    with torch.no_grad():
        out = model(**processor(text=PROMPTS, images=images, padding=True, return_tensors="pt"))
    expected, tolerance = cosine_similarity(out.image_embeds, out.text_embeds), 2e-3
    if size == (32, 32):  # not resized
        tolerance = 1e-5
    if name == "pickscore":
        expected = out.logits_per_image.diagonal()
        tolerance *= model.logit_scale.exp().item()
    values = load_reward(name, clip_folder)(pixels, PROMPTS)
    assert (values.shape, values.dtype) == ((3,), torch.float32)
    torch.testing.assert_close(values, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_rewards_are_the_published_formula(published, clip_tokenizer, name, size):
    folder, state = published[name]
    pixels, prompts = noisy_images(*size, batch=4), [*PROMPTS, LONG]
    ids = clip_ids(prompts, clip_tokenizer)
    ends = ids.eq(len(clip_tokenizer) - 1).nonzero().tolist()
    assert ends == [[0, 4], [1, 8], [2, 3], [3, LENGTH - 1]]
    act, half = (quick_gelu, round) if name == "clip" else (gelu, floor)
    expected = clip_cosines(cropped(pixels, half), ids, as_open_clip(state), act)
    assert expected.std() > 0.01
    if name == "pickscore":
        expected = state["logit_scale"].exp() * expected
        assert state["logit_scale"].abs() > 0.01
    came = load_reward(name, folder)(pixels, prompts)
    assert (came.shape, came.dtype) == ((4,), torch.float32)
    torch.testing.assert_close(came, expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_prompts_are_cleaned_as_upstream(published, clip_tokenizer, name):
    """As in OpenAI's package clip for CLIPScore; PickScore's processor only lowers the case."""
    folder, state = published[name]
    raw = list(CLEANED)
    read = list(CLEANED.values()) if name == "clip" else raw
    ids, pixels = clip_ids(read, clip_tokenizer), noisy_images(32, 32, len(raw))
    act = quick_gelu if name == "clip" else gelu
    expected = clip_cosines(cropped(pixels), ids, as_open_clip(state), act)
    if name == "pickscore":
        expected = state["logit_scale"].exp() * expected
    came = load_reward(name, folder)(pixels, raw)
    torch.testing.assert_close(came, expected.float(), atol=1e-5, rtol=0)


def test_the_published_size_of_pickscore():
    """CLIPModel has the tensors of pytorch_model.bin, without the position_ids of older ones."""
    from transformers import CLIPModel

    shapes = transformers_clip_shapes(*VIT_H)
    assert count(shapes) == 986_109_441
    config = hpsv2.configuration(hpsv2.rename(on_meta(open_clip_shapes(*VIT_H))))
    with torch.device("meta"):
        model = CLIPModel(config)
    for name in [name for name in shapes if name.endswith("position_ids")]:
        del shapes[name]
    assert shapes_of(model.state_dict()) == shapes


# ---------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("name", NAMES)
def test_safetensors_of_another_shape_are_refused(published, tmp_path, name):
    folder, state = published[name]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=lambda *_: ["pytorch_model.bin"])
    file = tmp_path / "model.safetensors"
    save_file(state, file, metadata={"format": "pt"})
    ours, theirs = load_reward(name, tmp_path), load_reward(name, folder)
    pixels = noisy_images(32, 32)
    torch.testing.assert_close(ours(pixels, PROMPTS), theirs(pixels, PROMPTS), atol=1e-5, rtol=0)
    save_file(state | {"logit_scale": torch.zeros(3)}, file, metadata={"format": "pt"})
    message = (
        r"not a complete CLIPModel: 1 have another shape, such as logit_scale \(\(3,\), not \(\)"
    )
    with pytest.raises(ValueError, match=message):
        load_reward(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_another_model_s_tokenizer_is_refused(copied, name):
    """Also if there is none, where transformers would make one of two tokens."""
    folder, _ = copied(name)
    architectures.clip_tokenizer(["a", "red"]).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"tokenizer of .* has \d+ tokens, and the text encoder"):
        load_reward(name, folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json or vocab\.json"):
        load_reward(name, folder)
