"""Video rewards against the published forward restated in plain torch, and the grid that makes a picture of a video."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bpgo.rewards import REWARDS, RewardError, checked, load_reward, video_clip_xl
from bpgo.rewards.image_grid import grid, square
from bpgo.rewards.video_clip_xl import MEAN, PUBLISHED, STD, VideoCLIP, load, preprocess
from bpgo.worlds.pretrain import architectures as tiny

PROMPTS = ["a red circle", "a small crimson box at the top", "a shape"]
WIDTH, TEXT_WIDTH, HEADS, LAYERS, JOINT, FRAMES, LENGTH, SIDE, PATCH = (
    48,
    32,
    3,
    2,
    24,
    8,
    40,
    32,
    8,
)
LONG = " ".join(
    PROMPTS[i % 2] for i in range(8)
)  # more than 20 tokens: it reaches the second table of positions


def config(tokenizer, **changes):
    """A tiny VideoCLIP read at the end token of `tokenizer`."""
    start, *_, end = tokenizer("a")["input_ids"]
    ends = {"bos_token_id": start, "eos_token_id": end}
    vision = dict(
        image_size=SIDE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_attention_heads=HEADS,
    )
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_attention_heads=2,
        **ends,
    )
    return {
        "vision": vision | {"num_hidden_layers": LAYERS},
        "text": text | {"num_hidden_layers": LAYERS, "pad_token_id": 0},
        "projection_dim": JOINT,
        "frames": FRAMES,
        "max_length": LENGTH,
    } | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of our layout with random weights, and a tokenizer of whole words."""
    folder, tokenizer = tmp_path_factory.mktemp("video"), tiny.bert_tokenizer()
    torch.manual_seed(3)
    model = VideoCLIP(config(tokenizer))
    for name, p in model.named_parameters():  # also the temporal positions, which begin at zero
        p.data = torch.randn_like(p) * 0.3 + ("norm" in name and name.endswith("weight"))
    (folder / "config.json").write_text(json.dumps(model.config))
    save_file(model.state_dict(), folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


def videos(frames, height=SIDE, width=SIDE, batch=3):
    """Noise around a level for each frame, so that no two frames and no two videos are alike."""
    generator = torch.Generator().manual_seed(frames * 100 + height)
    levels = torch.rand(batch, frames, 3, 1, 1, generator=generator)
    return (levels + 0.3 * torch.randn(batch, frames, 3, height, width, generator=generator)).clamp(
        0, 1
    )


# ------------------------------------------------------------------------- the published layout, written and read on its own


def random(shapes, generator):
    """A random tensor for each shape; the weights of layer norms lie around 1."""
    return {
        k: torch.randn(s, generator=generator) * 0.3 + ("ln_" in k and "weight" in k)
        for k, s in shapes.items()
    }


def blocks(width, layers, generator):
    """Random tensors of a transformer under OpenAI CLIP's names."""
    shapes = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
    }
    return {
        f"transformer.resblocks.{i}.{k}": v
        for i in range(layers)
        for k, v in random(shapes, generator).items()
    }


@pytest.fixture(scope="module")
def tokenizer():
    """Made once: which id a word gets differs from call to call."""
    return tiny.clip_tokenizer()


@pytest.fixture(scope="module")
def published(tokenizer):
    """A state dict as VideoCLIP-XL.bin has it, of tiny sizes."""
    g, words = torch.Generator().manual_seed(4), len(tokenizer)
    vision = {
        "class_embedding": (WIDTH,),
        "positional_embedding": ((SIDE // PATCH) ** 2 + 1, WIDTH),
        "temporal_positional_embedding": (1, FRAMES, WIDTH),
        "proj": (WIDTH, JOINT),
        "conv1.weight": (WIDTH, 3, 1, PATCH, PATCH),
        "ln_pre.weight": (WIDTH,),
        "ln_pre.bias": (WIDTH,),
        "ln_post.weight": (WIDTH,),
        "ln_post.bias": (WIDTH,),
    }
    text = {
        "positional_embedding": (LENGTH, TEXT_WIDTH),
        "positional_embedding_res": (LENGTH, TEXT_WIDTH),
        "text_projection": (TEXT_WIDTH, JOINT),
        "logit_scale": (),
        "token_embedding.weight": (words, TEXT_WIDTH),
        "ln_final.weight": (TEXT_WIDTH,),
        "ln_final.bias": (TEXT_WIDTH,),
    }
    state = {"vision_model.temp": torch.tensor(0.01)}
    for prefix, shapes, width in (
        ("vision_model.vision_encoder.", vision, WIDTH),
        ("text_model.", text, TEXT_WIDTH),
    ):
        state |= {prefix + k: v for k, v in (random(shapes, g) | blocks(width, LAYERS, g)).items()}
    return state


@pytest.fixture
def published_folder(published, tokenizer, tmp_path, monkeypatch):
    """The published layout on disk; the published architecture is the tiny one while the test runs."""
    monkeypatch.setattr(video_clip_xl, "PUBLISHED", config(tokenizer))
    torch.save(published, tmp_path / "VideoCLIP-XL.bin")
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def transformer(x, state, heads, mask=None):
    """Pre-norm blocks with QuickGELU and nn.MultiheadAttention; x (length, batch, width) as there."""
    for i in range(LAYERS):
        at = {
            k.removeprefix(f"transformer.resblocks.{i}."): v
            for k, v in state.items()
            if k.startswith(f"transformer.resblocks.{i}.")
        }
        attention = nn.MultiheadAttention(x.shape[-1], heads)
        attention.load_state_dict(
            {k.removeprefix("attn."): v for k, v in at.items() if k.startswith("attn.")}
        )
        y = nn.functional.layer_norm(x, x.shape[-1:], at["ln_1.weight"], at["ln_1.bias"])
        x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = (
            nn.functional.layer_norm(x, x.shape[-1:], at["ln_2.weight"], at["ln_2.bias"])
            @ at["mlp.c_fc.weight"].T
            + at["mlp.c_fc.bias"]
        )
        x = x + (y * torch.sigmoid(1.702 * y)) @ at["mlp.c_proj.weight"].T + at["mlp.c_proj.bias"]
    return x


def part(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def embed_video(frames, state, order="n t"):
    """(B, T, 3, S, S) normalised -> (B, JOINT); the tokens place by place (`n t`) or frame by frame (`t n`)."""
    x = nn.functional.conv3d(
        frames.transpose(1, 2), state["conv1.weight"], stride=(1, PATCH, PATCH)
    )
    x = torch.einsum("bdtyx->btyxd", x).flatten(2, 3) + state["positional_embedding"][1:]
    x = x + state["temporal_positional_embedding"][0][:, None]
    x = (x.transpose(1, 2) if order == "n t" else x).flatten(1, 2)
    first = (state["class_embedding"] + state["positional_embedding"][0]).expand(len(x), 1, -1)
    x = nn.functional.layer_norm(
        torch.cat([first, x], 1), (WIDTH,), state["ln_pre.weight"], state["ln_pre.bias"]
    )
    x = transformer(x.transpose(0, 1), state, HEADS)[0]
    return (
        nn.functional.layer_norm(x, (WIDTH,), state["ln_post.weight"], state["ln_post.bias"])
        @ state["proj"]
    )


def embed_text(ids, state, end):
    """(B, LENGTH) token ids, zeros after the end token -> (B, JOINT). (Upstream finds the end as the highest id, which it is there.)"""
    early = (torch.arange(LENGTH) < 20)[:, None]
    x = (
        state["token_embedding.weight"][ids]
        + state["positional_embedding"] * early
        + state["positional_embedding_res"] * ~early
    )
    x = transformer(
        x.transpose(0, 1), state, 2, torch.full((LENGTH, LENGTH), -math.inf).triu(1)
    ).transpose(0, 1)
    x = nn.functional.layer_norm(x, (TEXT_WIDTH,), state["ln_final.weight"], state["ln_final.bias"])
    return x[torch.arange(len(x)), ids.eq(end).int().argmax(-1)] @ state["text_projection"]


def token_ids(prompts, tokenizer):
    """Start, words, end, as Long-CLIP's own tokenizer gives them: cut with the end kept, zeros after it."""
    start, end = tokenizer.convert_tokens_to_ids(["<|startoftext|>", "<|endoftext|>"])
    ids = torch.zeros(len(prompts), LENGTH, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        words = [start, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize(prompt)), end][:LENGTH]
        ids[i, : len(words)] = torch.tensor([*words[:-1], end])
    return ids


def normalised(frames):
    return (frames - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)


@torch.no_grad()
def test_the_published_forward(published, published_folder, tokenizer):
    """Upstream's order of tokens and, since attention knows no order beyond the embeddings, the other one."""
    pixels, prompts = videos(17), [PROMPTS[0], PROMPTS[1], LONG]
    ids = token_ids(prompts, tokenizer)
    assert ids.eq(tokenizer.eos_token_id).nonzero().tolist() == [[0, 4], [1, 8], [2, LENGTH - 1]]
    seen = normalised(torch.stack([pixels[:, i] for i in (0, 2, 4, 6, 8, 10, 12, 14)], 1))
    vision, text = part(published, "vision_model.vision_encoder."), part(published, "text_model.")
    read = embed_text(ids, text, tokenizer.eos_token_id)
    came = load_reward("video_clip_xl", published_folder)(pixels, prompts)
    for order in ("n t", "t n"):
        expected = nn.functional.cosine_similarity(embed_video(seen, vision, order), read)
        torch.testing.assert_close(came, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01
    torch.testing.assert_close(
        load_reward("video_clip_xl", published_folder / "VideoCLIP-XL.bin")(pixels, prompts), came
    )


def test_published_tensors_are_each_used_where_they_belong(published, published_folder):
    """The two scalars and the unused halves of the two tables of text positions change nothing; the used halves do."""
    reward = load_reward("video_clip_xl", published_folder)(videos(8), [LONG] * 3)
    first, second = "text_model.positional_embedding", "text_model.positional_embedding_res"
    halves = [
        (first, slice(20, None), True),
        (first, slice(20), False),
        (second, slice(20), True),
        (second, slice(20, None), False),
        ("vision_model.temp", ..., True),
        ("text_model.logit_scale", ..., True),
    ]
    for name, places, same in halves:
        changed = {k: v.clone() for k, v in published.items()}
        changed[name][places] += torch.randn(changed[name][places].shape)
        torch.save(changed, published_folder / "VideoCLIP-XL.bin")
        assert (
            torch.equal(
                load_reward("video_clip_xl", published_folder)(videos(8), [LONG] * 3), reward
            )
            is same
        ), name


def test_the_published_size():
    """427,756,032 numbers: with the second table of positions (unused twice 20 + 228 rows) and the two scalars, 1.711 GB of float32."""
    with torch.device("meta"):
        model = VideoCLIP(PUBLISHED)
    assert sum(p.numel() for p in model.parameters()) == 427_756_032
    assert (
        model.temporal.shape,
        model.text.text_model.embeddings.position_embedding.weight.shape,
    ) == ((1, 8, 1024), (248, 768))


class Code:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


def test_a_published_file_that_is_not_whole_is_refused(published, published_folder, capsys):
    file = published_folder / "VideoCLIP-XL.bin"
    whole = file.read_bytes()
    for name, called in {
        "vision_model.vision_encoder.temporal_positional_embedding": "temporal",
        "text_model.positional_embedding_res": "text.text_model.embeddings.position_embedding.weight",
        "text_model.positional_embedding": "text.text_model.embeddings.position_embedding.weight",
        "text_model.transformer.resblocks.1.attn.in_proj_bias": "text.text_model.encoder.layers.1.self_attn.k_proj.bias",
    }.items():
        torch.save({k: v for k, v in published.items() if k != name}, file)
        with pytest.raises(
            ValueError,
            match=rf"holds no whole VideoCLIP: \d tensors are missing, .* such as {called}$",
        ):
            load_reward("video_clip_xl", published_folder)
    for broken in (
        whole[: len(whole) // 2],
        whole[:1000],
        b"",
        b"no checkpoint",
        b"version https://git-lfs.github.com/spec/v1\n",
    ):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"VideoCLIP-XL\.bin is damaged"):
            load_reward("video_clip_xl", published_folder)
    for content in (published | {"code": Code()}, Code(), [1, 2], torch.zeros(3)):
        torch.save(content, file)
        with pytest.raises(
            ValueError,
            match=r"VideoCLIP-XL\.bin is damaged, or holds more than tensors \(code in it is not run\)",
        ):
            load_reward("video_clip_xl", published_folder)
    assert "ran" not in capsys.readouterr().out


def test_both_formats_of_torch_save_load_alike(published, published_folder):
    zipped = load_reward("video_clip_xl", published_folder)(videos(9), PROMPTS)
    torch.save(
        published, published_folder / "VideoCLIP-XL.bin", _use_new_zipfile_serialization=False
    )
    assert torch.equal(load_reward("video_clip_xl", published_folder)(videos(9), PROMPTS), zipped)
    whole = (published_folder / "VideoCLIP-XL.bin").read_bytes()
    (published_folder / "VideoCLIP-XL.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"VideoCLIP-XL\.bin is damaged.*download it again"):
        load_reward("video_clip_xl", published_folder)


def test_a_hub_id_downloads_the_one_file_and_clip_s_tokenizer(
    published_folder, tokenizer, monkeypatch
):
    import huggingface_hub
    import transformers

    alone, asked = published_folder / "cache", []
    alone.mkdir()
    shutil.move(published_folder / "VideoCLIP-XL.bin", alone)

    def download(repository, name):
        asked.append((repository, name))
        return str(alone / name)

    class Tokenizers:
        def from_pretrained(place):
            asked.append(place)
            return tokenizer

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(transformers, "AutoTokenizer", Tokenizers)
    assert load_reward("video_clip_xl")(videos(8), PROMPTS).shape == (3,)
    assert asked == [
        ("alibaba-pai/VideoCLIP-XL", "VideoCLIP-XL.bin"),
        "openai/clip-vit-large-patch14",
    ]


# --------------------------------------------------------------------------------------------------- which pixels are seen


@pytest.mark.parametrize(
    ("count", "seen"),
    [
        (81, range(0, 80, 10)),
        (9, range(8)),
        (8, range(8)),
        (15, range(8)),
        (16, range(0, 16, 2)),
        (49, range(0, 48, 6)),
    ],
)
def test_frames_are_chosen_as_upstream_does(count, seen):
    pixels = (torch.arange(count) / count).view(1, count, 1, 1, 1).expand(2, count, 3, 4, 4)
    came = preprocess(pixels, 8, 4) * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(
        3, 1, 1
    )
    assert came.shape == (2, 8, 3, 4, 4)
    assert (came * count).round().long()[1, :, 2, 3, 3].tolist() == list(seen)


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (48, 100), (90, 33), (20, 24), (480 // 4, 832 // 4)]
)
def test_frames_are_stretched_as_cv2_does(height, width):
    """cv2's INTER_LINEAR, one output pixel after the other: centre at (i + 0.5) n / S - 0.5, edges repeated, no antialias."""
    pixels = videos(8, height, width, batch=1)

    def weights(size):
        matrix = torch.zeros(SIDE, size, dtype=torch.float64)
        for i in range(SIDE):
            place = (i + 0.5) * size / SIDE - 0.5
            low = math.floor(place)
            for j, share in ((low, 1 - (place - low)), (low + 1, place - low)):
                matrix[i, min(max(j, 0), size - 1)] += share
        return matrix

    expected = torch.einsum(
        "yh,btchw,xw->btcyx", weights(height), pixels.double(), weights(width)
    ).float()
    torch.testing.assert_close(preprocess(pixels, 8, SIDE), normalised(expected), atol=2e-5, rtol=0)


def test_what_is_no_video_is_refused(folder):
    reward = load_reward("video_clip_xl", folder)
    with pytest.raises(
        RewardError,
        match=r"takes videos \(batch, frames, 3, height, width\) in \[0, 1\], not \(3, 3, 32, 32\)",
    ):
        reward(torch.zeros(3, 3, 32, 32), PROMPTS)
    with pytest.raises(RewardError, match=r"not \(3, 3, 9, 32, 32\)"):  # channels first
        reward(torch.zeros(3, 3, 9, 32, 32), PROMPTS)
    for few in (0, 1, 7):
        with pytest.raises(
            RewardError, match=f"sees 8 frames of a video and these have {few}: sample at least 8"
        ):
            reward(torch.zeros(3, few, 3, 32, 32), PROMPTS)
    with pytest.raises(RewardError, match="3 videos for 2 prompts"):
        reward(torch.zeros(3, 8, 3, 32, 32), PROMPTS[:2])
    with pytest.raises(ValueError, match="sees 8 frames of a video, 9 were given"):
        load(folder)[0].embed_video(torch.zeros(1, 9, 3, SIDE, SIDE))


# -------------------------------------------------------------------------------------------------- what moves the reward


def test_the_order_of_frames_matters_through_the_temporal_positions(folder, tmp_path):
    reward, pixels = load_reward("video_clip_xl", folder), videos(8)
    values = reward(pixels, PROMPTS)
    assert (values - reward(pixels.flip(1), PROMPTS)).abs().max() > 1e-2
    still = shutil.copytree(folder, tmp_path / "still")
    weights = load_file(still / "model.safetensors")
    save_file(
        weights | {"temporal": torch.zeros_like(weights["temporal"])}, still / "model.safetensors"
    )
    reward = load_reward("video_clip_xl", still)
    torch.testing.assert_close(
        reward(pixels, PROMPTS), reward(pixels.flip(1), PROMPTS), atol=1e-5, rtol=0
    )
    assert (reward(pixels, PROMPTS) - values).abs().max() > 1e-2


def test_a_video_s_reward_is_its_own_and_float32(folder):
    reward, pixels = load_reward("video_clip_xl", folder), videos(9)
    prompts = [PROMPTS[2], PROMPTS[1], LONG]  # short, longer and cut
    together = reward(pixels, prompts)
    assert (together.shape, together.dtype, together.abs().max() <= 1) == (
        (3,),
        torch.float32,
        True,
    )
    assert torch.equal(together, reward(pixels, prompts))
    assert torch.equal(together, load_reward("video_clip_xl", folder)(pixels, prompts))
    alone = torch.cat([reward(pixels[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not torch.allclose(together, reward(pixels, prompts[::-1]), atol=1e-4)
    assert reward(pixels.bfloat16(), prompts).dtype == torch.float32
    torch.testing.assert_close(reward(pixels.double(), prompts), together, atol=1e-5, rtol=0)
    assert not reward(pixels.requires_grad_(), prompts).requires_grad


def test_embeddings_are_of_length_one_and_can_be_trained(folder):
    model = VideoCLIP(json.loads((folder / "config.json").read_text()))
    frames, ids = torch.randn(2, FRAMES, 3, SIDE, SIDE), torch.tensor([[2, 7, 3], [2, 8, 3]])
    video, text = model.embed_video(frames), model.embed_text(ids, torch.ones_like(ids))
    assert video.shape == text.shape == (2, JOINT)
    torch.testing.assert_close(torch.cat([video, text]).norm(dim=-1), torch.ones(4))
    cosines = model(frames, ids, torch.ones_like(ids))
    torch.testing.assert_close(cosines, (video @ text.T).diagonal())
    cosines.sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without and model.temporal.grad.abs().min() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_reward_runs_on_the_device_it_is_loaded_on(folder):
    pixels = videos(9)
    here, there = load_reward("video_clip_xl", folder), load_reward("video_clip_xl", folder, "cuda")
    torch.testing.assert_close(
        there(pixels.cuda(), PROMPTS).cpu(), here(pixels, PROMPTS), atol=1e-3, rtol=0
    )
    assert there(pixels, PROMPTS).device == pixels.device


def test_unknown_words_are_refused(folder):
    with pytest.raises(
        RewardError, match="'a mauve shape' has words that the text encoder does not know: mauve"
    ):
        load_reward("video_clip_xl", folder)(videos(8), ["a mauve shape"] * 3)


# --------------------------------------------------------------------------------------------------------------- loading


def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path, clip_folder):
    with pytest.raises(
        ValueError,
        match=r"is no video_clip_xl folder: its config\.json lacks frames, max_length, text, vision",
    ):
        load_reward("video_clip_xl", clip_folder)
    with pytest.raises(FileNotFoundError):
        load_reward("video_clip_xl", tmp_path)
    cut = shutil.copytree(folder, tmp_path / "cut")
    weights = load_file(cut / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "temporal"}, cut / "model.safetensors")
    with pytest.raises(
        ValueError, match="1 tensors are missing, unknown or misshapen, such as temporal"
    ):
        load_reward("video_clip_xl", cut)
    save_file(weights | {"temporal": torch.zeros(1, 4, WIDTH)}, cut / "model.safetensors")
    with pytest.raises(
        ValueError, match="1 tensors are missing, unknown or misshapen, such as temporal"
    ):
        load_reward("video_clip_xl", cut)
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        load_reward("video_clip_xl", cut)


def test_a_tokenizer_without_the_end_that_the_encoder_reads_is_refused(folder, tmp_path):
    """The state at a missing end token would be that of the first token, the same for every prompt."""
    other = shutil.copytree(folder, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    settings["text"]["eos_token_id"] = 9
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="ends no prompt with token 9"):
        load_reward("video_clip_xl", other)


NEAR = {
    "video_clip": "video_clip_xl",
    "videoclip-xl": "video_clip_xl",
    "imagegrid": "image_grid",
    "image-grid": "image_grid",
}


@pytest.mark.parametrize(("name", "near"), NEAR.items())
def test_the_video_rewards_are_listed(name, near):
    assert {"video_clip_xl", "image_grid"} <= REWARDS.keys()
    with pytest.raises(ValueError, match=f"did you mean {near!r}"):
        load_reward(name)


def test_image_grid_needs_weights():
    with pytest.raises(FileNotFoundError, match="'image_grid' needs a folder of weights"):
        load_reward("image_grid")


# --------------------------------------------------------------------------------------------------------- the image grid


SHAPES = {
    1: (1, 1),
    2: (1, 2),
    3: (2, 2),
    5: (2, 3),
    7: (3, 3),
    9: (3, 3),
    10: (3, 4),
    13: (4, 4),
    81: (9, 9),
}


@pytest.mark.parametrize(("count", "shape"), SHAPES.items())
def test_the_grid_is_read_row_by_row(count, shape):
    rows, columns = shape
    pixels = videos(count, 4, 6, batch=2)
    picture = grid(pixels)
    assert picture.shape == (2, 3, rows * 4, columns * 6)
    for place in range(rows * columns):
        y, x = place // columns * 4, place % columns * 6
        cell = picture[:, :, y : y + 4, x : x + 6]
        assert torch.equal(cell, pixels[:, place] if place < count else torch.zeros_like(cell))


def test_a_grid_is_made_square_with_black():
    for height, width in ((4, 7), (7, 4), (5, 5)):
        picture = torch.rand(2, 3, height, width)
        came = square(picture)
        side = max(height, width)
        assert came.shape == (2, 3, side, side)
        top, left = (side - height) // 2, (side - width) // 2
        assert torch.equal(came[..., top : top + height, left : left + width], picture)
        torch.testing.assert_close(came.sum(), picture.sum())


def test_image_grid_is_image_reward_of_the_grid(image_reward_folder):
    reward, pictures = (
        load_reward("image_grid", image_reward_folder),
        load_reward("image_reward", image_reward_folder),
    )
    for count, across in ((9, 3), (1, 1)):
        pixels = videos(count)
        rows = [
            torch.cat([pixels[:, r * across + c] for c in range(across)], dim=-1)
            for r in range(across)
        ]
        assert torch.equal(reward(pixels, PROMPTS), pictures(torch.cat(rows, dim=-2), PROMPTS))
    pixels = videos(
        5
    )  # 2 x 3: a centre crop of the grid itself would cut the outer columns in half
    changed = pixels.clone()
    changed[:, 3, :, :, :8] = 1 - changed[:, 3, :, :, :8]
    assert (reward(pixels, PROMPTS) - reward(changed, PROMPTS)).abs().min() > 1e-3
    assert reward(pixels.bfloat16(), PROMPTS).dtype == torch.float32


def test_image_grid_refuses_pictures(image_reward_folder):
    reward = load_reward("image_grid", image_reward_folder)
    for shape in ((3, 3, 32, 32), (3, 3, 9, 32, 32), (3, 0, 3, 32, 32)):
        with pytest.raises(
            RewardError, match=r"image_grid takes videos \(batch, frames, 3, height, width\)"
        ):
            reward(torch.zeros(shape), PROMPTS)


# ------------------------------------------------------------------------------------------------- whatever a reward raises


class Custom(Exception):
    pass


@pytest.mark.parametrize(
    "error", [Custom, StopIteration, SyntaxError, EOFError, ImportError, Exception]
)
def test_any_exception_of_a_reward_is_named(error):
    def broken(pixels, prompts):
        raise error("the reason")

    with pytest.raises(
        RewardError, match=rf"^reward 'mine' raised {error.__name__}: the reason"
    ) as refused:
        checked(broken, "mine", torch.zeros(1, 9, 3, 8, 8), ["a"])
    assert isinstance(refused.value.__cause__, error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exit_is_no_failure_of_the_reward(error):
    def leaves(pixels, prompts):
        raise error

    with pytest.raises(error):
        checked(leaves, "mine", torch.zeros(1, 9, 3, 8, 8), ["a"])
