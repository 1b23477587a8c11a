"""Loading rewards by name, what a reward may return and change, and whatever it raises."""

import random
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from bpgo.config import RewardConfig, read_config
from bpgo.memory import memory_explained
from bpgo.prompts import Prompt
from bpgo.registry import TABLES
from bpgo.rewards import (
    RewardError,
    check_columns,
    checked,
    collect,
    load_reward,
    load_rewards,
    published_weights,
    submit,
    total,
)
from bpgo.worlds.shapes.captions import sample_wording
from bpgo.worlds.shapes.scenes import sample_pixels, sample_scenes
from tests.rewards.layouts import PROMPTS, noisy_images

# ---------------------------------------------------------------------------------------- loading

PUBLISHED = {
    "clip": "openai/clip-vit-large-patch14",
    "pickscore": "yuvalkirstain/PickScore_v1",
    "hpsv2": "xswu/HPSv2",
    "hpsv2.0": "xswu/HPSv2",
    "image_reward": "THUDM/ImageReward",
    "image_grid": None,
    "video_clip_xl": "alibaba-pai/VideoCLIP-XL",
    "video_align": "KwaiVGI/VideoReward",
    "video_align_vq": "KwaiVGI/VideoReward",
    "video_align_mq": "KwaiVGI/VideoReward",
    "video_align_ta": "KwaiVGI/VideoReward",
    "qwen3_vl_embedding": "Qwen/Qwen3-VL-Embedding-2B",
}


def test_every_reward_has_its_published_weights():
    assert {name: published_weights(name) for name in TABLES["reward"]} == PUBLISHED


NEAREST = {
    "clipp": "clip",
    "pick_score": "pickscore",
    "hps": "hpsv2",
    "hpsv2.1": "hpsv2",
    "hps_v2": "hpsv2",
    "imagereward": "image_reward",
    "image-grid": "image_grid",
    "imagegrid": "image_grid",
    "video_clip": "video_clip_xl",
    "videoclip-xl": "video_clip_xl",
    "videoalign": "video_align",
    "video_align_qv": "video_align_vq",
    "qwen3_vl": "qwen3_vl_embedding",
}


@pytest.mark.parametrize(("name", "near"), NEAREST.items())
def test_an_unknown_reward_is_refused_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"unknown reward {name!r}: did you mean '{near}"):
        load_reward(name)


def test_an_unknown_reward_far_from_all_is_refused_with_all():
    with pytest.raises(ValueError, match="unknown reward 'zzzz': known: " + ", ".join(PUBLISHED)):
        load_reward("zzzz")


def test_an_option_that_a_reward_does_not_have_is_refused(clip_folder):
    with pytest.raises(ValueError, match="reward 'clip' has no option 'fps'"):
        load_reward("clip", clip_folder, fps=8.0)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="tiny-reward"):
        load_reward("clip", "tiny-rewards")
    with pytest.raises(FileNotFoundError, match="'image_grid' has no published weights: set"):
        load_reward("image_grid")
    for name in ("clip", "image_reward"):
        with pytest.raises(OSError, match=str(tmp_path)):  # an empty folder
            load_reward(name, tmp_path)


@pytest.mark.parametrize("name", ["clip", "image_reward"])
@pytest.mark.parametrize("left", [0.5, 0.999, 0])
def test_truncated_weights_are_refused_by_file(
    clip_folder, image_reward_folder, tmp_path, name, left
):
    source = clip_folder if name == "clip" else image_reward_folder
    weights = shutil.copytree(source, tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(left * weights.stat().st_size)])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        load_reward(name, tmp_path / "cut")


def test_the_folder_of_another_reward_is_refused(image_reward_folder):
    message = r"is not (a complete CLIPModel|of clip)"
    with pytest.raises(ValueError, match=message):
        load_reward("clip", image_reward_folder)


def test_values_are_multiplied_by_the_scale(clip_folder):
    pixels = noisy_images(32, 32)
    plain, scaled = load_reward("clip", clip_folder), load_reward("clip", clip_folder, scale=-3.0)
    expected = -3.0 * plain(pixels, PROMPTS)
    torch.testing.assert_close(scaled(pixels, PROMPTS), expected, atol=1e-5, rtol=0)


def test_a_sum_is_the_sum_and_its_parts_have_names(clip_folder, image_reward_folder):
    clip = RewardConfig(name="clip", path=str(clip_folder), scale=3.0)
    again = RewardConfig(name="clip", path=str(clip_folder))
    other = RewardConfig(name="image_reward", path=str(image_reward_folder))
    rewards, pixels = load_rewards([clip, other, again]), noisy_images(32, 32)
    found = collect([submit(rewards, pixels, PROMPTS)])
    assert list(found) == ["clip", "image_reward", "clip-2"]
    a = load_reward("clip", clip_folder)(pixels, PROMPTS)
    b = load_reward("image_reward", image_reward_folder)(pixels, PROMPTS)
    for name, expected in {"clip": 3 * a, "image_reward": b, "clip-2": a}.items():
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(total(rewards)(pixels, PROMPTS), 4 * a + b, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "folder"), [("clip", "tiny-reward"), ("image_reward", "tiny-held-out")]
)
def test_the_shipped_rewards_prefer_the_image_that_a_caption_was_made_for(name, folder):
    generator, rng = torch.Generator().manual_seed(5), random.Random(5)
    scenes = sample_scenes(200, generator)
    pixels = sample_pixels(scenes, generator)
    captions = [sample_wording(scene, rng) for scene in scenes]
    reward = load_reward(name, folder)
    right, wrong = reward(pixels, captions), reward(pixels.roll(1, 0), captions)
    assert (right > wrong).float().mean() > 0.9


# ------------------------------------------------------------------------ what a reward may return


def answer(values):
    return lambda pixels, prompts: values


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        torch.tensor([1, 2]),
        torch.tensor([1.0, 2.0], requires_grad=True),
        [1, 2.0],
        [torch.tensor(1.0), torch.tensor(2.0)],
        np.array([1.0, 2.0]),
        (np.float64(1), np.int64(2)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_good_values_come_back_as_float32(values, scale):
    came = checked(answer(values), "mine", torch.zeros(2, 3, 8, 8), ["a", "b"], scale)
    assert (came.dtype, came.tolist()) == (torch.float32, [scale, 2 * scale])
    assert not came.requires_grad


def test_truth_values_are_0_and_1():
    for values in (torch.tensor([True, False]), np.array([True, False]), [True, False]):
        came = checked(answer(values), "mine", torch.zeros(2, 3, 8, 8), ["a", "b"], 0.5)
        assert came.tolist() == [0.5, 0.0]


def test_a_reward_may_write_every_answer_into_one_tensor():
    buffer = torch.zeros(2)

    def reward(pixels, prompts):
        return buffer.copy_(pixels.mean((1, 2, 3)))

    first, second = (
        checked(reward, "mine", torch.full((2, 3, 8, 8), x), ["a", "b"]) for x in (0.0, 1.0)
    )
    assert (first.tolist(), second.tolist()) == ([0, 0], [1, 1])


# --------------------------------------------------------------------- what a reward cannot change


def careless(pixels, prompts):
    """Brightness in percent, computed in place."""
    prompts.clear()
    return pixels.mul_(100).mean((1, 2, 3))


def test_a_reward_that_changes_its_input_in_place_changes_nothing_else():
    def brightness(pixels, prompts):
        assert prompts == ["a", "b"]
        return pixels.mean((1, 2, 3))

    pixels, prompts = torch.rand(2, 3, 8, 8), ["a", "b"]
    expected = pixels.mean((1, 2, 3)).tolist()
    rewards = {
        "careless": partial(checked, careless, "careless"),
        "careful": partial(checked, brightness, "careful"),
    }
    found = collect([submit(rewards, pixels, prompts)])
    assert found["careful"].tolist() == pytest.approx(expected)
    assert found["careless"].tolist() == pytest.approx([100 * x for x in expected])
    assert pixels.mean((1, 2, 3)).tolist() == pytest.approx(expected)
    assert prompts == ["a", "b"]


def test_a_reward_does_not_change_the_gradient_mode_or_the_default_dtype():
    def reward(pixels, prompts):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        raise ZeroDivisionError

    with pytest.raises(RewardError):
        checked(reward, "mine", torch.zeros(1, 3, 8, 8), ["a"])
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_scores_carry_no_gradients_even_if_the_reward_computes_some():
    def guided(pixels, prompts):
        with torch.enable_grad():
            return pixels.requires_grad_().mean((1, 2, 3))

    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    assert not checked(guided, "mine", pixels, ["a", "b"]).requires_grad
    assert pixels.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_of_another_precision_get_the_same_scores(clip_folder, dtype):
    reward, pixels = load_reward("clip", clip_folder), noisy_images(32, 32).to(dtype)
    expected = reward(pixels.float(), PROMPTS)
    torch.testing.assert_close(reward(pixels, PROMPTS), expected, atol=1e-6, rtol=0)
    own = load_reward("tests.rewards.own_rewards:dtype_is_float32")
    assert own(pixels, PROMPTS).tolist() == [1, 1, 1]


def test_pixels_in_another_memory_layout_get_the_same_scores(clip_folder):
    reward, pixels = load_reward("clip", clip_folder), noisy_images(32, 32)
    expected = reward(pixels, PROMPTS)
    strided = torch.stack([pixels, 0 * pixels], -1)[..., 0]
    for other in (pixels.to(memory_format=torch.channels_last), strided):
        assert not other.is_contiguous()
        torch.testing.assert_close(reward(other, PROMPTS), expected, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------ your own ones

QUESTIONS = [Prompt(f"{n}", columns={"answer": n}, where=f"a.csv, line {n}") for n in (2, 3)]


@pytest.mark.parametrize("name", ["exact", "Exact", "ExactModule"])
def test_a_reward_gets_the_columns_that_it_asks_for(name):
    reward = load_reward(f"tests.rewards.own_rewards:{name}")
    assert reward(torch.ones(2, 3, 8, 8), QUESTIONS).tolist() == [2, 3]
    with pytest.raises(RewardError, match=r"takes the column 'answer' of the prompts, but .* '4'"):
        reward(torch.ones(2, 3, 8, 8), [QUESTIONS[0], "4"])


@pytest.mark.parametrize("name", ["exact", "Exact", "ExactModule"])
def test_columns_are_checked_on_all_prompts_before_a_reward_is_loaded(name):
    own = f"tests.rewards.own_rewards:{name}"
    check_columns(own, QUESTIONS)
    check_columns("clip", ["4"])
    with pytest.raises(ValueError, match=f"reward '{own}' takes the column 'answer' .*'4'"):
        check_columns(own, [*QUESTIONS, "4"])


def test_a_reward_gets_pixels_on_its_own_device():
    """`meta` stands for an accelerator. The scores come back to the pixels' device."""
    reward = load_reward("tests.rewards.own_rewards:device_is_meta", device="meta")
    scores = reward(torch.ones(2, 3, 8, 8), PROMPTS[:2])
    assert (scores.tolist(), scores.device.type) == ([1, 1], "cpu")


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor([1.0, NAN, 0.0]), r"returned nan for prompt 'b' \(1 of 3 values are not fin"),
        (torch.tensor([INFINITY, NAN, 0.0]), r"returned inf for prompt 'a' \(2 of 3 values are"),
        (torch.tensor([1e300, 0, 0], dtype=torch.float64), r"returned inf for prompt 'a'"),
        (torch.zeros(2), r"returned shape \(2,\) for 3 images; it must be \(3,\)"),
        (torch.zeros(3, 1), r"returned shape \(3, 1\) for 3 images"),
        (0.5, r"returned shape \(\) for 3 images"),
        (None, r"returned NoneType, not numbers .*; it must return \(3,\) numbers for 3 images"),
        (["x", "y", "z"], "returned list, not numbers"),
        ({"score": [1, 2, 3]}, "returned dict, not numbers"),
        ((torch.zeros(3), torch.zeros(3)), "returned tuple, not numbers"),
        (np.array([None, 1, 2]), "returned ndarray, not numbers"),
        (torch.zeros(3, dtype=torch.complex64), "returned complex numbers"),
        (torch.zeros(3).to_sparse(), "returned a torch.sparse_coo tensor"),
    ],
)
def test_anything_but_one_finite_number_per_image_is_refused(values, message):
    with pytest.raises(RewardError, match=rf"^reward 'mine' {message}"):
        checked(answer(values), "mine", torch.zeros(3, 3, 8, 8), ["a", "b", "c"])


def test_as_many_prompts_as_samples(clip_folder):
    with pytest.raises(RewardError, match="reward 'clip': 3 images for 2 prompts"):
        load_reward("clip", clip_folder)(torch.zeros(3, 3, 32, 32), ["a", "b"])
    with pytest.raises(RewardError, match="reward 'mine': 3 videos for 2 prompts"):
        checked(answer([0, 0, 0]), "mine", torch.zeros(3, 8, 3, 32, 32), ["a", "b"])


# ------------------------------------------------------------------------- whatever a reward raises


class Custom(Exception):
    pass


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
        StopIteration,
        SyntaxError,
        EOFError,
        ImportError,
        Exception,
        Custom,
    ],
)
def test_a_reward_that_raises_is_named(error):
    def broken(pixels, prompts):
        raise error("the reason")

    message = rf"^reward 'mine' raised {error.__name__}: .*the reason"
    with pytest.raises(RewardError, match=message) as refused:
        checked(broken, "mine", torch.zeros(1, 3, 8, 8), ["a"])
    assert isinstance(refused.value.__cause__, error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exit_is_not_a_failure_of_the_reward(error):
    def leaves(pixels, prompts):
        raise error

    with pytest.raises(error):
        checked(leaves, "mine", torch.zeros(1, 9, 3, 8, 8), ["a"])


def test_a_reward_within_a_reward_is_named_once():
    inner = partial(checked, answer([NAN]), "inner")
    with pytest.raises(RewardError) as refused:
        checked(inner, "outer", torch.zeros(1, 3, 32, 32), ["a shape"])
    assert str(refused.value).startswith("reward 'inner' returned nan")


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
    MemoryError("no room"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_running_out_of_memory_in_a_reward_names_what_to_change(error):
    """The trainer names its settings; the reward adds its name and its own setting."""

    def large(pixels, prompts):
        raise error

    message = r"^out of memory.*generator\.gradient_checkpointing=true"
    with pytest.raises(MemoryError, match=message) as told:
        with memory_explained(read_config("t2i-tiny")):
            checked(large, "mine", torch.zeros(1, 3, 8, 8), ["a"])
    first = str(error).splitlines()[0]
    remedy = "set reward.device to move it, for example to cpu"
    assert f"reward 'mine' ({remedy}): {first}" in str(told.value)
