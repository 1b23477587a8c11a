"""Rewards against transformers' own processors and models, and what a reward may not return."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bpgo.rewards import REWARDS, RewardError, checked, load_reward
from bpgo.rewards.clip import MEAN, STD
from bpgo.rewards.preprocess import centre_crop

PROMPTS = ["a red circle", "a small crimson box at the top", "a shape"]
SIZES = [
    (32, 32),
    (48, 100),
    (100, 48),
    (37, 41),
    (64, 64),
    (20, 24),
    (90, 33),
]  # height, width; 48 x 100 does not divide evenly


def pictures(height, width, levels=(0, 256)):
    """Three random uint8 pictures, as the tensors that rewards take and as PIL has them."""
    levels = np.random.default_rng(height * 1000 + width).integers(
        *levels, (3, height, width, 3), dtype=np.uint8
    )
    return torch.from_numpy(levels).permute(0, 3, 1, 2) / 255, [
        Image.fromarray(picture) for picture in levels
    ]


@pytest.fixture(scope="module")
def hugging_face(clip_folder):
    """CLIPModel and CLIPProcessor (with the PIL backend, whatever is installed) of the folder."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    processor = CLIPProcessor(
        CLIPImageProcessorPil.from_pretrained(clip_folder),
        CLIPTokenizer.from_pretrained(clip_folder),
    )
    return CLIPModel.from_pretrained(clip_folder).eval(), processor


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_prepared_as_clip_s_own_processor_does(hugging_face, size):
    """PIL rounds to 1/255 after each of its two passes: up to 1.5/255 of difference, divided by the std of 0.26. Without
    a resize there is no rounding. (PIL also clips after each pass, so noise is kept away from black and white here.)"""
    pixels, images = pictures(*size, levels=(80, 176))
    theirs = hugging_face[1](images=images, return_tensors="pt")["pixel_values"]
    ours = centre_crop(pixels, 32, MEAN, STD)
    assert ours.shape == theirs.shape == (3, 3, 32, 32)
    torch.testing.assert_close(
        ours, theirs, atol=1e-5 if size == (32, 32) else 1.5 / 255 / 0.26, rtol=0
    )


@pytest.mark.parametrize("name", ["clip", "pickscore"])
@pytest.mark.parametrize("size", SIZES[:3])
def test_clip_rewards_are_transformers_own_numbers(hugging_face, clip_folder, name, size):
    """To 1e-6 where nothing is resized; the rounding of PIL (above) moves a cosine by less than 2e-3."""
    model, processor = hugging_face
    pixels, images = pictures(*size)
    with torch.no_grad():
        out = model(**processor(text=PROMPTS, images=images, padding=True, return_tensors="pt"))
    cosine = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
    scale = model.logit_scale.exp().item() if name == "pickscore" else 1.0
    if name == "pickscore":
        torch.testing.assert_close(
            scale * cosine, out.logits_per_image.diagonal(), atol=1e-5, rtol=0
        )
    values = load_reward(name, clip_folder)(pixels, PROMPTS)
    assert (values.shape, values.dtype) == ((3,), torch.float32)
    torch.testing.assert_close(
        values, scale * cosine, atol=(1e-6 if size == (32, 32) else 2e-3) * scale, rtol=0
    )


@pytest.mark.parametrize("name", ["clip", "image_reward"])
def test_a_reward_does_not_depend_on_its_batch(name, clip_folder, image_reward_folder):
    reward = load_reward(name, clip_folder if name == "clip" else image_reward_folder)
    pixels = pictures(32, 32)[0] * torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1, 1)
    together = reward(pixels, PROMPTS)
    alone = torch.cat([reward(pixels[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not torch.allclose(together, reward(pixels.flip(0), PROMPTS), atol=1e-3)
    assert not torch.allclose(together, reward(pixels, PROMPTS[::-1]), atol=1e-3)


def test_image_reward_is_blip_and_a_linear_head(image_reward_folder):
    """BlipForImageTextRetrieval's encoders, then the head, mean and std of the folder, by hand."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, BlipConfig, BlipForImageTextRetrieval

    config = json.loads((image_reward_folder / "config.json").read_text())
    weights = load_file(image_reward_folder / "model.safetensors")
    text = config["text"] | {"encoder_hidden_size": config["vision"]["hidden_size"]}
    blip = BlipForImageTextRetrieval(
        BlipConfig(text_config=text, vision_config=config["vision"] | {"layer_norm_eps": 1e-6})
    ).eval()
    for part, prefix in ((blip.vision_model, "vision."), (blip.text_encoder, "text.")):
        part.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
    ids = AutoTokenizer.from_pretrained(image_reward_folder)(
        PROMPTS, padding=True, return_tensors="pt"
    )
    pixels, _ = pictures(32, 32)
    normalised = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        seen = blip.vision_model(normalised).last_hidden_state
        read = blip.text_encoder(
            ids.input_ids, attention_mask=ids.attention_mask, encoder_hidden_states=seen
        ).last_hidden_state
    score = read[:, 0].numpy()
    for layer in range(len(config["head"])):
        score = (
            score @ weights[f"head.{layer}.weight"].numpy().T
            + weights[f"head.{layer}.bias"].numpy()
        )
    expected = (score[:, 0] - 0.25) / 2.0
    came = load_reward("image_reward", image_reward_folder)(pixels, PROMPTS)
    np.testing.assert_allclose(came.numpy(), expected, atol=1e-5)
    assert np.ptp(expected) > 1e-4


# ------------------------------------------------------------------------------------------ what a reward may not return


def answer(values):
    return lambda pixels, prompts: values


def test_good_values_come_back_as_float32():
    pixels = torch.zeros(2, 3, 8, 8)
    for values in (
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor([1, 2]),
        [1, 2.0],
        np.array([1.0, 2.0]),
    ):
        came = checked(answer(values), "mine", pixels, ["a", "b"])
        assert (came.dtype, came.tolist()) == (torch.float32, [1.0, 2.0])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            torch.tensor([1.0, float("nan"), 0.0]),
            r"returned nan for prompt 'b' \(1 of 3 not finite\)",
        ),
        (
            torch.tensor([float("inf"), float("nan"), 0.0]),
            r"returned inf for prompt 'a' \(2 of 3 not finite\)",
        ),
        (torch.tensor([1e300, 0, 0], dtype=torch.float64), r"returned inf for prompt 'a'"),
        (torch.zeros(2), r"returned shape \(2,\) for 3 pictures; it must be \(3,\)"),
        (torch.zeros(3, 1), r"returned shape \(3, 1\) for 3 pictures"),
        (0.5, r"returned shape \(\) for 3 pictures"),
        (None, r"raised \w+Error"),
        (["x", "y", "z"], r"raised \w+Error"),
    ],
)
def test_anything_but_one_finite_number_a_picture_is_refused(values, says):
    with pytest.raises(RewardError, match=rf"^reward 'mine' {says}"):
        checked(answer(values), "mine", torch.zeros(3, 3, 8, 8), ["a", "b", "c"])


@pytest.mark.parametrize(
    "error",
    [
        ValueError,
        RuntimeError,
        KeyError,
        ZeroDivisionError,
        AttributeError,
        AssertionError,
        OSError,
    ],
)
def test_a_reward_that_raises_is_named(error):
    def broken(pixels, prompts):
        raise error("the reason")

    with pytest.raises(
        RewardError, match=rf"^reward 'mine' raised {error.__name__}: .*the reason"
    ) as refused:
        checked(broken, "mine", torch.zeros(1, 3, 8, 8), ["a"])
    assert isinstance(refused.value.__cause__, error)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
    MemoryError("no room"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_in_a_reward_is_told_with_what_to_change(error):
    """By the trainer, which knows its settings; the reward adds its name and its own setting."""
    from bpgo.config import read_config
    from bpgo.setup import memory_explained

    def large(pixels, prompts):
        raise error

    with pytest.raises(
        MemoryError,
        match=r"^out of memory: try sampling\.micro_batch below 48, .*gradient_checkpointing=true",
    ) as told:
        with memory_explained(read_config("t2i-tiny")):
            checked(large, "mine", torch.zeros(1, 3, 8, 8), ["a"])
    first = str(error).splitlines()[0]
    assert f"reward 'mine' (reward.device puts it elsewhere, such as cpu): {first})" in str(
        told.value
    )


def test_an_interrupt_is_no_failure_of_the_reward():
    def interrupted(pixels, prompts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(interrupted, "mine", torch.zeros(1, 3, 8, 8), ["a"])


def test_as_many_prompts_as_pictures(clip_folder):
    with pytest.raises(RewardError, match="reward 'clip': 3 pictures for 2 prompts"):
        load_reward("clip", clip_folder)(torch.zeros(3, 3, 32, 32), ["a", "b"])


def test_a_reward_within_a_reward_is_named_once(image_reward_folder):
    reward = load_reward("image_reward", image_reward_folder)
    with pytest.raises(RewardError) as refused:
        checked(reward, "outer", torch.full((1, 3, 32, 32), torch.nan), ["a shape"])
    assert str(refused.value).startswith("reward 'image_reward' returned nan")


def test_words_that_the_reward_cannot_read_are_named(image_reward_folder):
    with pytest.raises(
        RewardError, match="'a mauve shape' has words that the text encoder does not know: mauve"
    ):
        load_reward("image_reward", image_reward_folder)(
            torch.zeros(1, 3, 32, 32), ["a mauve shape"]
        )


# --------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("name", "near"),
    [("clipp", "clip"), ("pick_score", "pickscore"), ("imagereward", "image_reward")],
)
def test_an_unknown_reward_is_refused_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"unknown reward {name!r}, did you mean {near!r}"):
        load_reward(name)


def test_an_unknown_reward_far_from_all_is_refused_with_all():
    with pytest.raises(ValueError, match="there are " + ", ".join(REWARDS)):
        load_reward("zzzz")


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="tiny-reward"):
        load_reward("clip", "tiny-rewards")
    with pytest.raises(FileNotFoundError, match="'image_grid' needs a folder of weights"):
        load_reward("image_grid")
    for name in ("clip", "image_reward"):
        with pytest.raises(OSError):  # an empty folder
            load_reward(name, tmp_path)


@pytest.mark.parametrize("name", ["clip", "image_reward"])
@pytest.mark.parametrize("left", [0.5, 0.999, 0])
def test_truncated_weights_are_refused_by_file(
    clip_folder, image_reward_folder, tmp_path, name, left
):
    folder = shutil.copytree(
        clip_folder if name == "clip" else image_reward_folder, tmp_path / "cut"
    )
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(left * weights.stat().st_size)])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        load_reward(name, folder)


def test_the_folder_of_another_reward_is_refused(clip_folder, image_reward_folder):
    with pytest.raises(
        ValueError, match=r"holds no whole CLIPModel: \d+ of its tensors are missing"
    ):
        load_reward("clip", image_reward_folder)
    with pytest.raises(ValueError, match=r"is no image_reward folder: its config\.json lacks head"):
        load_reward("image_reward", clip_folder)


# ------------------------------------------------------------------------------------------------------- what is shipped


@pytest.mark.parametrize(
    ("name", "folder"), [("clip", "tiny-reward"), ("image_reward", "tiny-held-out")]
)
def test_the_shipped_rewards_prefer_the_picture_that_a_caption_was_made_for(name, folder):
    import random

    from bpgo.worlds.shapes.captions import sample_wording
    from bpgo.worlds.shapes.scenes import sample_pictures, sample_scenes

    generator, rng = torch.Generator().manual_seed(5), random.Random(5)
    scenes = sample_scenes(200, generator)
    pixels, captions = (
        sample_pictures(scenes, generator),
        [sample_wording(scene, rng) for scene in scenes],
    )
    reward = load_reward(name, folder)
    right, wrong = reward(pixels, captions), reward(pixels.roll(1, 0), captions)
    assert (right > wrong).float().mean() > 0.9
