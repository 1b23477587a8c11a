"""VideoAlign against transformers and peft, on a tiny random model in the published layout."""

import hashlib
import json
import shutil

import pytest
import torch

from bpgo.config import read_config
from bpgo.rewards import RewardError, load_reward, load_rewards, video_align
from bpgo.rewards.video_align import NORMS, PUBLISHED, SPECIAL, VideoReward
from bpgo.rewards.video_align_form import FORM
from tests.rewards.layouts import Code
from tests.rewards.qwen import PROMPTS, TOKENS, byte_videos, pil_patches, qwen_tokenizer
from tests.rewards.qwen_folders import (
    MEANS,
    WEIGHTS,
    peft_model,
    published_state,
    settings,
    write_video_align,
)

NAMES = ("video_align", "video_align_vq", "video_align_mq", "video_align_ta")


@pytest.fixture(scope="module")
def tokenizer():
    return qwen_tokenizer(*SPECIAL)


@pytest.fixture(scope="module")
def peft(tokenizer):
    return peft_model(tokenizer, 1)


@pytest.fixture(scope="module")
def folder(tokenizer, peft, tmp_path_factory):
    return write_video_align(tmp_path_factory.mktemp("align") / "VideoReward", tokenizer, peft)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


# ------------------------------------------------------------------------------------- the scores


@torch.no_grad()
def published_scores(peft, tokenizer, frames, prompt, norms, flat=True):
    """Overall, VQ, MQ and TA of one video (T, 3, H, W), by peft's model.

    transformers makes the patches, and the ids are put together by hand. flat: rotary positions
    0, 1, 2, ... instead of Qwen2-VL's 3-D ones.
    """
    model = peft.base_model.model
    patches, grid = pil_patches(frames, 14)
    start, end, see, seen, pad = tokenizer.convert_tokens_to_ids(TOKENS)

    def words(text):
        return tokenizer(text)["input_ids"]

    row = [start, *words("system\nYou are a helpful assistant."), end, *words("\n")]
    row += [start, *words("user\n"), see, *[pad] * int(grid.prod() // 4), seen]
    row += [*words(FORM.replace("{text_prompt}", prompt)), end, *words("\n")]
    row += [start, *words("assistant\n")]
    ids = torch.tensor([row])
    if flat:
        positions = torch.arange(ids.shape[1]).view(1, 1, -1).expand(3, 1, -1)
        place = {"position_ids": positions}
    else:
        place = {"mm_token_type_ids": (ids == pad).int() * 2}
    out = model.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=patches,
        video_grid_thw=grid,
        **place,
    )
    raw = model.rm_head(out.last_hidden_state)[0]
    scores = []
    for i, token in enumerate(SPECIAL):
        (at,) = (ids[0] == tokenizer.convert_tokens_to_ids(token)).nonzero()
        mean, std = norms[f"{token[2:4]}_mean"], norms[f"{token[2:4]}_std"]
        scores.append((raw[at, i % raw.shape[1]].item() - mean) / std)
    return torch.tensor([sum(scores), *scores])


FRAMES = [0, 3, 5, 8]  # of 9
PIXELS = (9, 308, 336)  # need no resizing


def test_rewards_are_the_published_scores(peft, tokenizer, folder):
    pixels, rows = byte_videos(*PIXELS), []
    for video, prompt in zip(pixels, PROMPTS, strict=True):
        rows.append(published_scores(peft, tokenizer, video[FRAMES], prompt, MEANS))
    expected = torch.stack(rows)
    assert expected.std(0).min() > 1e-3
    for column, name in enumerate(NAMES):
        came = load_reward(name, folder)(pixels, PROMPTS)
        torch.testing.assert_close(came, expected[:, column], atol=1e-5, rtol=1e-5)
    turned = published_scores(peft, tokenizer, pixels[0, FRAMES], PROMPTS[0], MEANS, flat=False)
    assert (turned - expected[0]).abs().min() > 1e-3  # 3-D positions give other scores


def test_a_head_with_one_output_per_dimension(tokenizer, copy):
    """As VideoAlign's train.sh trains it. Without inference_config, mean and std are published."""
    peft, pixels = peft_model(tokenizer, 3), byte_videos(*PIXELS, batch=1)
    torch.save(published_state(peft), copy / WEIGHTS)
    made = settings(output_dim=3)
    del made["inference_config"]
    (copy / "model_config.json").write_text(json.dumps(made))
    expected = published_scores(peft, tokenizer, pixels[0, FRAMES], PROMPTS[0], NORMS)
    came = torch.cat([load_reward(name, copy)(pixels, PROMPTS[:1]) for name in NAMES])
    torch.testing.assert_close(came, expected, atol=1e-5, rtol=1e-5)


def test_a_video_s_reward_does_not_depend_on_its_batch(folder):
    """At sides that are resized, with prompts of different lengths that are padded."""
    pixels, reward = byte_videos(9, 100, 180), load_reward("video_align", folder)
    came = reward(pixels, PROMPTS)
    alone = torch.cat([reward(pixels[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, came, atol=1e-5, rtol=1e-5)
    assert came.dtype == reward(pixels.bfloat16(), PROMPTS).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES[1:])
def test_only_text_alignment_depends_on_the_prompt(folder, name):
    pixels, reward = byte_videos(9, 100, 180), load_reward(name, folder)
    others = ["a shape", "a red circle", PROMPTS[1]]
    change = (reward(pixels, PROMPTS) - reward(pixels, others)).abs().max()
    assert change > 1e-3 if name == "video_align_ta" else change < 1e-5


SEEN = [  # frames, fps, how many are seen
    (81, 16, 10),
    (81, 24, 6),
    (49, 16, 6),
    (33, 16, 4),
    (17, 16, 4),
    (5, 16, 4),
    (3, 16, 2),
    (2, 16, 2),
]


@pytest.mark.parametrize(("count", "fps", "number"), SEEN)
def test_two_frames_per_second_are_seen(count, fps, number):
    came = video_align.frame_indices(count, fps).tolist()
    assert came == [round(i * (count - 1) / (number - 1)) for i in range(number)]


def test_fps_decides_which_frames_are_seen(peft, tokenizer, folder):
    pixels = byte_videos(33, *PIXELS[1:], batch=1)
    frames = pixels[0, [0, 5, 9, 14, 18, 23, 27, 32]]  # 33 / 8 * 2 = 8.25 frames
    expected = published_scores(peft, tokenizer, frames, PROMPTS[0], MEANS)
    for column, name in enumerate(NAMES):
        came = load_reward(name, folder, fps=8.0)(pixels, PROMPTS[:1])
        torch.testing.assert_close(came, expected[column : column + 1], atol=1e-5, rtol=1e-5)


def test_a_preset_sets_fps_and_rate(folder):
    """8 frames of 33 are seen both at 2 of 8 per second and at 4 of 16."""
    pixels = byte_videos(33, 56, 84, batch=2)
    expected = load_reward("video_align", folder, fps=8.0)(pixels, PROMPTS[:2])
    other = load_reward("video_align", folder)(pixels, PROMPTS[:2])
    assert (other - expected).abs().min() > 1e-3
    for options in ("{fps: 8}", "{fps: 16, rate: 4}"):
        given = [f"reward.path={folder}", "reward.name=video_align", f"reward.options={options}"]
        (reward,) = load_rewards(read_config("t2v-tiny", given).reward).values()
        assert torch.equal(reward(pixels, PROMPTS[:2]), expected)


@pytest.mark.parametrize("option", ["fps", "rate"])
@pytest.mark.parametrize("value", [0, -2.0, float("nan"), float("inf"), "8", True, [8]])
def test_frames_per_second_that_are_no_positive_number_are_refused(folder, option, value):
    message = f"option {option} must be a positive number of frames per second, not"
    with pytest.raises(ValueError, match=message):
        load_reward("video_align_mq", folder, **{option: value})


def test_the_published_form_and_size():
    """FORM is that of KwaiVGI/VideoAlign's prompt_template.py.

    Qwen2-VL-2B with 151,660 tokens has 2,208,561,664 numbers.
    """
    digest = hashlib.sha256(FORM.encode()).hexdigest()
    assert digest == "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"
    with torch.device("meta"):
        model = VideoReward(PUBLISHED, 151660, 1, 151656, [151657, 151658, 151659])
    assert sum(p.numel() for p in model.backbone.parameters()) == 2_208_561_664
    assert model.rm_head.weight.shape == (1, 1536)


def test_what_cannot_be_scored_is_refused(folder):
    reward, pixels = load_reward("video_align", folder), byte_videos(9, 28, 28)
    with pytest.raises(RewardError, match=r"takes videos \(batch, frames, 3, height, width\)"):
        reward(pixels[:, 0], PROMPTS)
    with pytest.raises(RewardError, match="sees pairs of frames, but this video has 1"):
        reward(pixels[:, :1], PROMPTS)
    message = r"contain special tokens .* remove them: prompt 3, 'good <\|MQ_reward\|>'"
    with pytest.raises(RewardError, match=message):
        reward(pixels, [*PROMPTS[:2], "good <|MQ_reward|>"])


# ---------------------------------------------------------------------------------------- loading


def test_both_formats_of_torch_save_load(peft, copy):
    pixels = byte_videos(9, 56, 84)
    as_zip = load_reward("video_align", copy)(pixels, PROMPTS)
    torch.save(published_state(peft), copy / WEIGHTS, _use_new_zipfile_serialization=False)
    came = load_reward("video_align", copy)(pixels, PROMPTS)
    torch.testing.assert_close(came, as_zip, atol=1e-5, rtol=1e-5)
    content = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.pth is damaged.*download it again"):
        load_reward("video_align", copy)


def test_a_damaged_model_pth_is_refused(copy):
    content = (copy / WEIGHTS).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    cut = [content[: len(content) // 2], content[:1000], b""]
    for damaged in [*cut, b"no checkpoint", pointer]:
        (copy / WEIGHTS).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.pth is damaged.*download it again"):
            load_reward("video_align", copy)


def test_code_in_model_pth_is_refused_and_not_run(peft, copy, capsys):
    message = r"model\.pth is damaged, or contains more than tensors \(code in it is not run\)"
    for content in (published_state(peft) | {"code": Code()}, Code(), [1, 2], torch.zeros(3)):
        torch.save(content, copy / WEIGHTS)
        with pytest.raises(ValueError, match=message):
            load_reward("video_align", copy)
    assert "ran" not in capsys.readouterr().out


LORA = "base_model.model.model.layers.1.mlp.up_proj"
NO_LORA = rf"model\.pth has an incomplete LoRA of {LORA}\.base_layer\.weight: download it again"
NO_MODEL = r"is not a complete VideoReward: .*such as "
LACKING = {
    f"{LORA}.lora_A.default.weight": NO_LORA,
    f"{LORA}.lora_B.default.weight": NO_LORA,
    f"{LORA}.base_layer.weight": NO_MODEL + r"backbone\.language_model\.layers\.1\.mlp\.up_proj",
    "base_model.model.rm_head.weight": NO_MODEL + r"rm_head\.weight",
    "base_model.model.visual.merger.ln_q.bias": NO_MODEL + r"backbone\.visual\.merger\.ln_q\.bias",
}


@pytest.mark.parametrize(("name", "message"), LACKING.items())
def test_a_missing_tensor_is_named(peft, copy, name, message):
    state = published_state(peft)
    del state[name]
    torch.save(state, copy / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        load_reward("video_align", copy)


def test_a_misshapen_lora_is_refused_and_the_language_model_s_head_is_not_needed(peft, copy):
    state = published_state(peft)
    torch.save(state | {f"{LORA}.lora_A.default.weight": torch.zeros(3, 32)}, copy / WEIGHTS)
    with pytest.raises(ValueError, match=NO_LORA):
        load_reward("video_align", copy)
    heads = [name for name in state if "lm_head" in name]
    assert heads
    for name in heads:
        del state[name]
    torch.save(state, copy / WEIGHTS)
    assert load_reward("video_align", copy)


UNUSABLE = [  # the contents of model_config.json, and the message
    ("{", r"model_config\.json, line 1: not valid JSON"),
    ("[]", r"model_config\.json is not a config of video_align: it holds a list"),
    ('{"data_config": {}}', r"does not belong to a VideoReward \(KeyError\('model_config'\)\)"),
    (settings(lora_r=0), r"does not belong to a VideoReward \(ZeroDivisionError"),
    (settings(prompt_template_type="simple"), "has prompt_template_type 'simple': .* only 'detai"),
    (settings(sample_type="multi_pts"), "has sample_type 'multi_pts': .* supports only 'uniform'"),
    (settings(num_frames=8), "has num_frames 8: video_align supports only None"),
    (settings(use_special_tokens=False), "has use_special_tokens False: .* supports only True"),
    (
        settings(output_dim=3),
        r"1 have another shape, such as rm_head\.weight \(\(1, 32\), not \(3, 32",
    ),
    (settings(fps="two"), "has settings that are not numbers"),
]


@pytest.mark.parametrize(("content", "message"), UNUSABLE)
def test_an_unusable_model_config_is_refused(content, message, copy):
    text = content if isinstance(content, str) else json.dumps(content)
    (copy / "model_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_reward("video_align", copy)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_the_lora_s_scale(tmp_path, rslora, scale):
    (tmp_path / "model_config.json").write_text(json.dumps(settings(use_rslora=rslora)))
    assert video_align.read_settings(tmp_path / "model_config.json")[2] == scale


def test_the_special_tokens_are_added_to_a_tokenizer_without_them(folder, copy):
    pixels = byte_videos(9, 100, 180)
    qwen_tokenizer().save_pretrained(copy / "checkpoint-11352/tokenizer")
    came, expected = (
        load_reward("video_align", place)(pixels, PROMPTS) for place in (copy, folder)
    )
    torch.testing.assert_close(came, expected, atol=1e-5, rtol=1e-5)


def test_another_tokenizer_is_refused(copy, clip_folder):
    words = copy / "checkpoint-11352/tokenizer"
    qwen_tokenizer("<|one_more|>").save_pretrained(words)
    message = r"1 have .* such as backbone\.language_model\.embed_tokens\.weight"
    with pytest.raises(ValueError, match=message):
        load_reward("video_align", copy)
    shutil.rmtree(words)
    shutil.copytree(clip_folder, words)
    message = r"has no token <\|video_pad\|>, so it is not a Qwen2-VL tokenizer: download the one"
    with pytest.raises(ValueError, match=message):
        load_reward("video_align", copy)


def test_missing_files_are_named(copy, tmp_path, clip_folder):
    message = r"has no checkpoint-<step>/model\.pth, as KwaiVGI/VideoReward has"
    for place in (clip_folder, tmp_path):
        with pytest.raises(FileNotFoundError, match=message):
            load_reward("video_align", place)
    words = copy / "checkpoint-11352/tokenizer"
    shutil.move(words, tmp_path / "away")
    message = r"tokenizer has no tokenizer\.json or .* There is no such folder"
    with pytest.raises(FileNotFoundError, match=message):
        load_reward("video_align", copy)
    shutil.move(tmp_path / "away", words)
    (copy / "model_config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no model_config\.json\. .* It has checkpoint"
    ):
        load_reward("video_align", copy)


def test_the_newest_checkpoint_is_read(folder, copy):
    pixels = byte_videos(9, 100, 180)
    for step in ("checkpoint-900", "checkpoint-last"):
        (copy / step).mkdir()
        torch.save({}, copy / step / "model.pth")  # it would be refused
    came, expected = (
        load_reward("video_align_ta", place)(pixels, PROMPTS) for place in (copy, folder)
    )
    torch.testing.assert_close(came, expected, atol=1e-5, rtol=1e-5)


def test_a_hub_id_downloads_the_published_files(folder, monkeypatch):
    asked = []

    def download(hub_id, allow_patterns):
        asked.append((hub_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_reward("video_align_ta")(byte_videos(9, 100, 180), PROMPTS).shape == (3,)
    patterns = ["*config.json", "checkpoint-*/model.pth", "checkpoint-*/tokenizer/*"]
    assert asked == [("KwaiVGI/VideoReward", patterns)]
