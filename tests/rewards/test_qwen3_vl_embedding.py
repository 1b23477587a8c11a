"""Qwen3-VL-Embedding against transformers, on a tiny random model in the published layout."""

import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity

from bpgo.config import read_config
from bpgo.rewards import RewardError, load_reward, load_rewards, qwen3_vl_embedding
from tests.rewards.qwen import PROMPTS, TOKENS, byte_videos, pil_patches, qwen_tokenizer
from tests.rewards.qwen_folders import ending_tokenizer, write_qwen3

NAME = "qwen3_vl_embedding"
INSTRUCTION = "Represent the user's input."


@pytest.fixture(scope="module")
def tokenizer():
    return ending_tokenizer()


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    return write_qwen3(tmp_path_factory.mktemp("qwen3"), tokenizer)


@torch.no_grad()
def published_cosine(folder, tokenizer, frames, prompt, indices, fps, instruction=INSTRUCTION):
    """The cosine of one video and its prompt, by transformers' model, patches, times and tokens."""
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    whole = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model = whole.eval().model
    names = ("vision_start_token", "vision_end_token", "video_token")
    processor = SimpleNamespace(
        **dict(zip(names, TOKENS[2:], strict=True)),
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        _calculate_timestamps=partial(Qwen3VLProcessor._calculate_timestamps, None),
    )

    def embed(instruction, content, **seen):
        text = (
            f"<|im_start|>system\n{instruction}<|im_end|>\n"
            f"<|im_start|>user\n{content}<|im_end|>\n"
            f"<|im_start|>assistant\n"
        )
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        assert ids[0, -1] == tokenizer.pad_token_id
        if seen:
            seen["mm_token_type_ids"] = (ids == model.config.video_token_id).int() * 2
        return model(input_ids=ids, **seen).last_hidden_state[0, -1]

    patches, grid = pil_patches(frames[indices], 16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    metadata = [SimpleNamespace(frames_indices=list(indices), fps=fps)]
    inputs = {"video_grid_thw": grid, "video_metadata": metadata}
    content = Qwen3VLProcessor.replace_video_token(processor, inputs, 0)
    seen = embed(INSTRUCTION, content, pixel_values_videos=patches, video_grid_thw=grid)
    return cosine_similarity(seen, embed(instruction, prompt), dim=0)


PIXELS = (49, 352, 384)  # need no resizing


def test_rewards_are_the_published_cosines(tokenizer, folder):
    pixels, indices = byte_videos(*PIXELS), [0, 16, 32, 48]
    rows = []
    for video, prompt in zip(pixels, PROMPTS, strict=True):
        rows.append(published_cosine(folder, tokenizer, video, prompt, indices, 16))
    expected = torch.stack(rows)
    assert expected.std() > 1e-3
    came = load_reward(NAME, folder)(pixels, PROMPTS)
    torch.testing.assert_close(came, expected, atol=1e-5, rtol=0)


def test_the_instruction_and_fps_are_options(tokenizer, folder):
    pixels, indices = byte_videos(*PIXELS, batch=1), [0, 10, 19, 29, 38, 48]
    query = "Retrieve images or text relevant to the user's query."
    expected = published_cosine(folder, tokenizer, pixels[0], PROMPTS[0], indices, 8, query)
    came = load_reward(NAME, folder, instruction=query, fps=8.0)(pixels, PROMPTS[:1])
    torch.testing.assert_close(came[0], expected, atol=1e-5, rtol=0)


def test_a_preset_sets_fps_and_rate(folder):
    """10 frames of 81 are seen both at 1 of 8 per second and at 2 of 16."""
    pixels = byte_videos(81, 64, 64, batch=1)
    expected = load_reward(NAME, folder, rate=2.0)(pixels, PROMPTS[:1])
    assert (load_reward(NAME, folder)(pixels, PROMPTS[:1]) - expected).abs() > 1e-4
    given = [f"reward.path={folder}", f"reward.name={NAME}", "reward.options={rate: 2}"]
    (reward,) = load_rewards(read_config("t2v-tiny", given).reward).values()
    assert torch.equal(reward(pixels, PROMPTS[:1]), expected)
    assert qwen3_vl_embedding.frame_indices(81, 8.0).tolist() == (
        qwen3_vl_embedding.frame_indices(81, 16.0, 2.0).tolist()
    )
    for option, value in (("fps", 0), ("rate", "fast"), ("fps", None)):
        with pytest.raises(ValueError, match=f"option {option} must be a positive number"):
            load_reward(NAME, folder, **{option: value})


def test_a_video_s_reward_does_not_depend_on_its_batch(folder):
    """At sides that are resized, with prompts of different lengths that are padded."""
    pixels, reward = byte_videos(9, 100, 180), load_reward(NAME, folder)
    came = reward(pixels, PROMPTS)
    alone = torch.cat([reward(pixels[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, came, atol=1e-5, rtol=0)
    assert came.dtype == torch.float32
    assert (reward(pixels, PROMPTS[::-1]) - came).abs().max() > 1e-3
    assert (reward(pixels.flip(1), PROMPTS) - came).abs().max() > 1e-3


SEEN = [  # frames, fps, how many are seen
    (81, 16, 4),
    (161, 16, 10),
    (121, 24, 4),
    (49, 8, 6),
    (2000, 16, 64),
    (3, 16, 2),
    (2, 16, 2),
]


@pytest.mark.parametrize(("count", "fps", "number"), SEEN)
def test_one_frame_per_second_is_seen(count, fps, number):
    came = qwen3_vl_embedding.frame_indices(count, fps).tolist()
    assert came == torch.linspace(0, count - 1, number).round().int().tolist()


def test_times_stand_before_pairs_of_frames():
    """In the middle of the pair: (0 + 27) / 2 / 16 s and (53 + 80) / 2 / 16 s."""
    came = qwen3_vl_embedding.describe(torch.tensor([0, 27, 53, 80]), 16.0, 2)
    seen = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    assert came == f"<0.8 seconds>{seen}<4.2 seconds>{seen}"


def test_what_cannot_be_scored_is_refused(folder):
    reward, pixels = load_reward(NAME, folder), byte_videos(9, 28, 28)
    with pytest.raises(RewardError, match=r"takes videos \(batch, frames, 3, height, width\)"):
        reward(pixels[:, 0], PROMPTS)
    with pytest.raises(RewardError, match="sees pairs of frames, but this video has 1"):
        reward(pixels[:, :1], PROMPTS)
    message = r"contain special tokens .* remove them: prompt 3, '<\|video_pad\|>'"
    with pytest.raises(RewardError, match=message):
        reward(pixels, [*PROMPTS[:2], "<|video_pad|>"])


# ---------------------------------------------------------------------------------------- loading


def test_another_model_is_refused(folder, clip_folder):
    message = r"its config\.json describes a clip model, not a qwen3_vl model"
    with pytest.raises(ValueError, match=message):
        load_reward(NAME, clip_folder)
    with pytest.raises(
        ValueError, match=r"model\.safetensors is a file: qwen3_vl_embedding needs a"
    ):
        load_reward(NAME, folder / "model.safetensors")


def test_incomplete_weights_are_refused(folder, tmp_path):
    file = shutil.copytree(folder, tmp_path / "cut") / "model.safetensors"
    name = "model.visual.merger.norm.bias"
    weights = load_file(file)
    misshapen = weights | {name: torch.zeros(5)}
    del weights[name]
    message = r"not a complete Qwen3VLModel: 1 (tensors|have) .* such as .*merger\.norm\.bias"
    for wrong in (weights, misshapen):
        save_file(wrong, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            load_reward(NAME, file.parent)
    file.write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        load_reward(NAME, file.parent)
    file.unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_reward(NAME, file.parent)


def test_another_tokenizer_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    qwen_tokenizer("<|one_more|>").save_pretrained(copy)
    message = r"does not read <\|video_pad\|> as token \d+: download the tokenizer that belongs"
    with pytest.raises(ValueError, match=message):
        load_reward(NAME, copy)
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json or vocab\.json"):
        load_reward(NAME, copy)
