"""VideoCLIP-XL against its published forward restated in plain torch."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bpgo.rewards import RewardError, load_reward, video_clip_xl
from bpgo.rewards.video_clip_xl import PUBLISHED, VideoCLIP, load, preprocess
from bpgo.worlds.pretrain import architectures
from tests.rewards.layouts import CLEANED, Code
from tests.rewards.video_clip_layout import (
    FRAMES,
    JOINT,
    LENGTH,
    LONG,
    MEAN,
    PROMPTS,
    SIDE,
    STD,
    WIDTH,
    config_for,
    embed_text,
    embed_video,
    noisy_videos,
    normalised,
    part,
    random_state,
    token_ids,
)

NAME = "video_clip_xl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of our layout with random weights, and a tokenizer of whole words."""
    folder, tokenizer = tmp_path_factory.mktemp("video"), architectures.bert_tokenizer()
    torch.manual_seed(3)
    model = VideoCLIP(config_for(tokenizer))
    for name, p in model.named_parameters():  # also the temporal positions, which are zeros
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        p.data = torch.randn_like(p) * 0.3 + centre
    (folder / "config.json").write_text(json.dumps(model.config))
    save_file(model.state_dict(), folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    """Made once, because the ids of the words differ from call to call."""
    return architectures.clip_tokenizer()


@pytest.fixture(scope="module")
def state(tokenizer):
    """A state dict as published, with random tensors of tiny sizes."""
    return random_state(len(tokenizer))


@pytest.fixture
def published_folder(state, tokenizer, tmp_path, monkeypatch):
    """The published layout on disk. During the test, the published config is the tiny one."""
    monkeypatch.setattr(video_clip_xl, "PUBLISHED", config_for(tokenizer))
    torch.save(state, tmp_path / "VideoCLIP-XL.bin")
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def scores(folder, prompts=PROMPTS):
    return load_reward(NAME, folder)(noisy_videos(9), prompts)


# --------------------------------------------------------------------------- the published layout


@torch.no_grad()
def test_rewards_are_the_published_forward(state, published_folder, tokenizer):
    """In upstream's order of tokens, and in another, because attention knows only embeddings."""
    pixels, prompts = noisy_videos(17), [PROMPTS[0], PROMPTS[1], LONG]
    ids, end = token_ids(prompts, tokenizer), tokenizer.eos_token_id
    assert ids.eq(end).nonzero().tolist() == [[0, 4], [1, 8], [2, LENGTH - 1]]
    seen = normalised(pixels[:, [0, 2, 4, 6, 8, 10, 12, 14]])
    vision, text = part(state, "vision_model.vision_encoder."), part(state, "text_model.")
    read = embed_text(ids, text, end)
    came = load_reward(NAME, published_folder)(pixels, prompts)
    for order in ("n t", "t n"):
        expected = nn.functional.cosine_similarity(embed_video(seen, vision, order), read)
        torch.testing.assert_close(came, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01
    by_file = load_reward(NAME, published_folder / "VideoCLIP-XL.bin")(pixels, prompts)
    torch.testing.assert_close(by_file, came, atol=1e-5, rtol=0)


def test_prompts_are_cleaned_as_in_clip(clip_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(video_clip_xl, "PUBLISHED", config_for(clip_tokenizer))
    torch.save(random_state(len(clip_tokenizer)), tmp_path / "VideoCLIP-XL.bin")
    clip_tokenizer.save_pretrained(tmp_path)
    reward, pixels = load_reward(NAME, tmp_path), noisy_videos(8, batch=1)
    for raw, cleaned in CLEANED.items():
        came, expected = reward(pixels, [raw]), reward(pixels, [cleaned])
        torch.testing.assert_close(came, expected, atol=1e-6, rtol=0)
    assert (reward(pixels, ["a < b"]) - reward(pixels, ["a & lt; b"])).abs() > 1e-3


FIRST, SECOND = "text_model.positional_embedding", "text_model.positional_embedding_res"


@pytest.mark.parametrize(
    ("name", "places", "used"),
    [
        (FIRST, slice(20, None), False),
        (FIRST, slice(20), True),
        (SECOND, slice(20), False),
        (SECOND, slice(20, None), True),
        ("vision_model.temp", ..., False),
        ("text_model.logit_scale", ..., False),
    ],
)
def test_published_tensors_are_used_where_they_belong(state, published_folder, name, places, used):
    """The two scalars are not used, nor are half of each of the two tables of text positions."""
    before = scores(published_folder, [LONG] * 3)
    changed = {key: tensor.clone() for key, tensor in state.items()}
    changed[name][places] += 1.0 + torch.rand_like(changed[name][places])
    torch.save(changed, published_folder / "VideoCLIP-XL.bin")
    difference = (scores(published_folder, [LONG] * 3) - before).abs()
    assert difference.min() > 1e-3 if used else difference.max() < 1e-5


def test_the_published_size():
    """427,756,032 numbers, 1.711 GB of float32 with what is not used.

    That is the second table of text positions and two scalars.
    """
    with torch.device("meta"):
        model = VideoCLIP(PUBLISHED)
    assert sum(p.numel() for p in model.parameters()) == 427_756_032
    assert model.temporal.shape == (1, 8, 1024)
    assert model.text.text_model.embeddings.position_embedding.weight.shape == (248, 768)


POSITIONS = "text.text_model.embeddings.position_embedding.weight"
CALLED = {
    "vision_model.vision_encoder.temporal_positional_embedding": "temporal",
    "text_model.positional_embedding_res": POSITIONS,
    "text_model.positional_embedding": POSITIONS,
    "text_model.transformer.resblocks.1.attn.in_proj_bias": (
        "text.text_model.encoder.layers.1.self_attn.k_proj.bias"
    ),
}


@pytest.mark.parametrize(("name", "called"), CALLED.items())
def test_a_missing_tensor_is_named(state, published_folder, name, called):
    lacking = {key: tensor for key, tensor in state.items() if key != name}
    torch.save(lacking, published_folder / "VideoCLIP-XL.bin")
    message = rf"is not a complete VideoCLIP: .* such as {called}( \(\(20, \d+\), .*)?\. Check"
    with pytest.raises(ValueError, match=message):
        load_reward(NAME, published_folder)


def test_a_damaged_file_is_refused(published_folder):
    file = published_folder / "VideoCLIP-XL.bin"
    content = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    cut = [content[: len(content) // 2], content[:1000], b""]
    for damaged in [*cut, b"no checkpoint", pointer]:
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"VideoCLIP-XL\.bin is damaged"):
            load_reward(NAME, published_folder)


def test_code_in_a_file_is_refused_and_not_run(state, published_folder, capsys):
    message = r"VideoCLIP-XL\.bin is damaged, or contains more than tensors \(code in it is not r"
    for content in (state | {"code": Code()}, Code(), [1, 2], torch.zeros(3)):
        torch.save(content, published_folder / "VideoCLIP-XL.bin")
        with pytest.raises(ValueError, match=message):
            load_reward(NAME, published_folder)
    assert "ran" not in capsys.readouterr().out


def test_both_formats_of_torch_save_load(state, published_folder):
    file = published_folder / "VideoCLIP-XL.bin"
    as_zip = scores(published_folder)
    torch.save(state, file, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(scores(published_folder), as_zip, atol=1e-5, rtol=0)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"VideoCLIP-XL\.bin is damaged.*download it again"):
        load_reward(NAME, published_folder)


def test_a_hub_id_downloads_the_file_and_clip_s_tokenizer(published_folder, tokenizer, monkeypatch):
    alone, asked = published_folder / "cache", []
    alone.mkdir()
    shutil.move(published_folder / "VideoCLIP-XL.bin", alone)

    def download(hub_id, name):
        asked.append((hub_id, name))
        return str(alone / name)

    class Tokenizers:
        @staticmethod
        def from_pretrained(place):
            asked.append(place)
            return tokenizer

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("transformers.AutoTokenizer", Tokenizers)
    assert load_reward(NAME)(noisy_videos(8), PROMPTS).shape == (3,)
    file = ("alibaba-pai/VideoCLIP-XL", "VideoCLIP-XL.bin")
    assert asked == [file, "openai/clip-vit-large-patch14"]


# ------------------------------------------------------------------------------------- the pixels


CHOSEN = {
    81: range(0, 80, 10),
    9: range(8),
    8: range(8),
    15: range(8),
    16: range(0, 16, 2),
    49: range(0, 48, 6),
}


@pytest.mark.parametrize(("count", "seen"), CHOSEN.items())
def test_frames_are_chosen_as_upstream_does(count, seen):
    pixels = (torch.arange(count) / count).view(1, count, 1, 1, 1).expand(2, count, 3, 4, 4)
    came = preprocess(pixels, 8, 4) * STD + MEAN
    assert came.shape == (2, 8, 3, 4, 4)
    assert (came * count).round().long()[1, :, 2, 3, 3].tolist() == list(seen)


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (48, 100), (90, 33), (20, 24), (480 // 4, 832 // 4)]
)
def test_frames_are_stretched_as_cv2_does(height, width):
    """cv2's INTER_LINEAR, one output pixel after the other.

    The centre is at (i + 0.5) n / S - 0.5, edges are repeated, and there is no antialiasing.
    """
    pixels = noisy_videos(8, height, width, batch=1)

    def weights(size):
        matrix = torch.zeros(SIDE, size, dtype=torch.float64)
        for i in range(SIDE):
            place = (i + 0.5) * size / SIDE - 0.5
            low = math.floor(place)
            for j, share in ((low, 1 - (place - low)), (low + 1, place - low)):
                matrix[i, min(max(j, 0), size - 1)] += share
        return matrix

    rows, columns = weights(height), weights(width)
    expected = torch.einsum("yh,btchw,xw->btcyx", rows, pixels.double(), columns).float()
    torch.testing.assert_close(preprocess(pixels, 8, SIDE), normalised(expected), atol=2e-5, rtol=0)


def test_what_is_not_a_video_is_refused(folder):
    reward = load_reward(NAME, folder)
    message = r"takes videos \(batch, frames, 3, height, width\) in \[0, 1\], not \(3, 3, 32, 32\)"
    with pytest.raises(RewardError, match=message):
        reward(torch.zeros(3, 3, 32, 32), PROMPTS)
    with pytest.raises(RewardError, match=r"not \(3, 3, 9, 32, 32\)"):  # channels first
        reward(torch.zeros(3, 3, 9, 32, 32), PROMPTS)
    for few in (1, 7):
        message = f"sees 8 frames of a video, but these have {few}: sample at least 8"
        with pytest.raises(RewardError, match=message):
            reward(torch.zeros(3, few, 3, 32, 32), PROMPTS)
    with pytest.raises(ValueError, match="sees 8 frames of a video, not 9: choose them with"):
        load(folder)[0].embed_video(torch.zeros(1, 9, 3, SIDE, SIDE))


# ------------------------------------------------------------------------- what changes the reward


def test_the_order_of_frames_matters_through_the_temporal_positions(folder, tmp_path):
    reward, pixels = load_reward(NAME, folder), noisy_videos(8)
    values = reward(pixels, PROMPTS)
    assert (values - reward(pixels.flip(1), PROMPTS)).abs().max() > 1e-2
    still = shutil.copytree(folder, tmp_path / "still")
    weights = load_file(still / "model.safetensors")
    weights["temporal"] = torch.zeros_like(weights["temporal"])
    save_file(weights, still / "model.safetensors")
    reward = load_reward(NAME, still)
    without, backwards = reward(pixels, PROMPTS), reward(pixels.flip(1), PROMPTS)
    torch.testing.assert_close(without, backwards, atol=1e-5, rtol=0)
    assert (without - values).abs().max() > 1e-2


def test_a_video_s_reward_does_not_depend_on_its_batch(folder):
    reward, pixels = load_reward(NAME, folder), noisy_videos(9)
    prompts = [PROMPTS[2], PROMPTS[1], LONG]  # short, longer, and too long
    together = reward(pixels, prompts)
    alone = torch.cat([reward(pixels[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (reward(pixels, prompts[::-1]) - together).abs().max() > 1e-3


def test_pixels_of_any_precision_make_float32_rewards_without_gradients(folder):
    reward, pixels = load_reward(NAME, folder), noisy_videos(9)
    expected = reward(pixels, PROMPTS)
    doubled = reward(pixels.double().requires_grad_(), PROMPTS)
    torch.testing.assert_close(doubled, expected, atol=1e-5, rtol=0)
    for came in (expected, doubled, reward(pixels.bfloat16(), PROMPTS)):
        assert (came.shape, came.dtype) == ((3,), torch.float32)
        assert not came.requires_grad


def test_embeddings_have_norm_one_and_can_be_trained(folder):
    model = VideoCLIP(json.loads((folder / "config.json").read_text()))
    torch.manual_seed(0)
    frames, ids = torch.randn(2, FRAMES, 3, SIDE, SIDE), torch.tensor([[2, 7, 3], [2, 8, 3]])
    video, text = model.embed_video(frames), model.embed_text(ids, torch.ones_like(ids))
    assert video.shape == text.shape == (2, JOINT)
    torch.testing.assert_close(torch.cat([video, text]).norm(dim=-1), torch.ones(4))
    cosines = model(frames, ids, torch.ones_like(ids))
    torch.testing.assert_close(cosines, (video * text).sum(-1))
    cosines.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert model.temporal.grad.abs().amax(-1).min() > 0  # of every frame


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_reward_runs_on_the_device_it_is_loaded_on(folder):
    pixels = noisy_videos(9)
    here, there = load_reward(NAME, folder), load_reward(NAME, folder, "cuda")
    came, expected = there(pixels.cuda(), PROMPTS), here(pixels, PROMPTS)
    torch.testing.assert_close(came.cpu(), expected, atol=1e-3, rtol=0)
    assert there(pixels, PROMPTS).device == pixels.device


# ---------------------------------------------------------------------------------------- loading


def test_unknown_words_are_refused(folder):
    message = (
        "text encoder does not know these words, so use others: prompt 1, 'a mauve shape': mauve"
    )
    with pytest.raises(RewardError, match=message):
        load_reward(NAME, folder)(noisy_videos(8), ["a mauve shape"] * 3)


def test_an_incomplete_folder_is_refused(folder, tmp_path, clip_folder):
    message = (
        r"is not of video_clip_xl: its config\.json lacks frames, max_length, text, vision \(it"
    )
    with pytest.raises(ValueError, match=message):
        load_reward(NAME, clip_folder)
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_reward(NAME, tmp_path)
    file = shutil.copytree(folder, tmp_path / "cut") / "model.safetensors"
    weights = load_file(file)
    misshapen = weights | {"temporal": torch.zeros(1, 4, WIDTH)}
    del weights["temporal"]
    for wrong in (weights, misshapen):
        save_file(wrong, file)
        message = "1 (tensors are missing|have another shape), such as temporal"
        with pytest.raises(ValueError, match=message):
            load_reward(NAME, file.parent)
    file.write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        load_reward(NAME, file.parent)


def test_a_tokenizer_without_the_end_that_the_encoder_reads_is_refused(folder, tmp_path):
    """Without it, the state of the first token would be read, which is the same for all prompts."""
    other = shutil.copytree(folder, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    settings["text"]["eos_token_id"] = 9
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="does not end prompts with token 9"):
        load_reward(NAME, other)
