"""Image rewards against the published formulas, restated in plain torch (in float64) on tiny random models in the published layouts."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import conv2d, gelu, layer_norm, linear, normalize

from bpgo.rewards import REWARDS, RewardError, hpsv2, image_reward, load_reward
from bpgo.worlds.pretrain import architectures as tiny

PROMPTS = ["a red circle", "a small crimson box at the top", "a shape"]
LONG = " ".join(PROMPTS[i % 2] for i in range(8))  # it is cut
SIZES = [(32, 32), (48, 100), (90, 37), (20, 24)]  # the same side, both ways too long, too small
FILES = {
    "clip": "pytorch_model.bin",
    "pickscore": "pytorch_model.bin",
    "hpsv2": "HPS_v2.1_compressed.pt",
    "hpsv2.0": "HPS_v2_compressed.pt",
    "image_reward": "ImageReward.pt",
}
HEADS, SIDE, PATCH, LENGTH = 16, 32, 8, 14
# patch, side, vision width, layers, inner width; words, text width, layers, inner width, positions; joint width
TINY = (PATCH, SIDE, 48, 2, 80, None, 32, 3, 72, LENGTH, 24)
VIT_H = (14, 224, 1280, 32, 5120, 49408, 1024, 24, 4096, 77, 1024)
MEAN, STD = (
    torch.tensor([0.48145466, 0.4578275, 0.40821073]),
    torch.tensor([0.26862954, 0.26130258, 0.27577711]),
)


# --------------------------------------------------------------------------- the published layouts, on disk or without memory


def linears(prefix, **sizes):
    """The shapes of linear layers: name=(out, in)."""
    return {
        f"{prefix}{k}.{kind}": size[:n]
        for k, size in sizes.items()
        for kind, n in (("weight", 2), ("bias", 1))
    }


def norms(prefix, width, *names):
    return {f"{prefix}{name}.{kind}": (width,) for name in names for kind in ("weight", "bias")}


def open_clip_shapes(
    patch, side, width, layers, inner, words, text_width, text_layers, text_inner, length, joint
):
    """Names and shapes of an open_clip CLIP, as HPSv2 publishes one."""
    shapes = {
        "positional_embedding": (length, text_width),
        "text_projection": (text_width, joint),
        "logit_scale": (),
        "token_embedding.weight": (words, text_width),
        **norms("", text_width, "ln_final"),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((side // patch) ** 2 + 1, width),
        "visual.proj": (width, joint),
        "visual.conv1.weight": (width, 3, patch, patch),
        **norms("visual.", width, "ln_pre", "ln_post"),
    }
    for prefix, d, count, m in (
        ("visual.", width, layers, inner),
        ("", text_width, text_layers, text_inner),
    ):
        for i in range(count):
            block = f"{prefix}transformer.resblocks.{i}."
            shapes |= {
                f"{block}attn.in_proj_weight": (3 * d, d),
                f"{block}attn.in_proj_bias": (3 * d,),
            } | norms(block, d, "ln_1", "ln_2")
            shapes |= linears(f"{block}attn.", out_proj=(d, d)) | linears(
                f"{block}mlp.", c_fc=(m, d), c_proj=(d, m)
            )
    return shapes


def transformers_clip_shapes(
    patch, side, width, layers, inner, words, text_width, text_layers, text_inner, length, joint
):
    """Names and shapes of pytorch_model.bin of a CLIPModel, with the position_ids that older ones hold."""
    places = (side // patch) ** 2 + 1
    shapes = {
        "logit_scale": (),
        "text_projection.weight": (joint, text_width),
        "visual_projection.weight": (joint, width),
        "text_model.embeddings.token_embedding.weight": (words, text_width),
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "text_model.embeddings.position_ids": (1, length),
        "vision_model.embeddings.position_ids": (1, places),
        "text_model.embeddings.position_embedding.weight": (length, text_width),
        "vision_model.embeddings.position_embedding.weight": (places, width),
        **norms("text_model.", text_width, "final_layer_norm"),
        **norms("vision_model.", width, "pre_layrnorm", "post_layernorm"),
    }
    for prefix, d, count, m in (
        ("vision_model.", width, layers, inner),
        ("text_model.", text_width, text_layers, text_inner),
    ):
        for i in range(count):
            block = f"{prefix}encoder.layers.{i}."
            shapes |= linears(
                f"{block}self_attn.", **{f"{x}_proj": (d, d) for x in ("q", "k", "v", "out")}
            )
            shapes |= norms(block, d, "layer_norm1", "layer_norm2") | linears(
                f"{block}mlp.", fc1=(m, d), fc2=(d, m)
            )
    return shapes


def blip_shapes(patch, side, width, layers, med, head, joint=256):
    """Names and shapes of ImageReward.pt."""
    d, m = med["hidden_size"], med["intermediate_size"]
    shapes = {
        "blip.visual_encoder.cls_token": (1, 1, width),
        "blip.visual_encoder.pos_embed": (1, (side // patch) ** 2 + 1, width),
        "blip.visual_encoder.patch_embed.proj.weight": (width, 3, patch, patch),
        "blip.visual_encoder.patch_embed.proj.bias": (width,),
        **norms("blip.visual_encoder.", width, "norm"),
        "blip.text_encoder.embeddings.position_ids": (1, med["max_position_embeddings"]),
        "blip.text_encoder.embeddings.word_embeddings.weight": (med["vocab_size"], d),
        "blip.text_encoder.embeddings.position_embeddings.weight": (
            med["max_position_embeddings"],
            d,
        ),
        **norms("blip.text_encoder.embeddings.", d, "LayerNorm"),
        **linears("blip.", vision_proj=(joint, width), text_proj=(joint, d)),
    }
    for i in range(layers):
        block = f"blip.visual_encoder.blocks.{i}."
        shapes |= linears(f"{block}attn.", qkv=(3 * width, width), proj=(width, width)) | norms(
            block, width, "norm1", "norm2"
        )
        shapes |= linears(f"{block}mlp.", fc1=(4 * width, width), fc2=(width, 4 * width))
    for i in range(med["num_hidden_layers"]):
        block = f"blip.text_encoder.encoder.layer.{i}."
        for kind, seen in (("attention", d), ("crossattention", width)):
            shapes |= linears(f"{block}{kind}.self.", query=(d, d), key=(d, seen), value=(d, seen))
            shapes |= linears(f"{block}{kind}.output.", dense=(d, d)) | norms(
                f"{block}{kind}.output.", d, "LayerNorm"
            )
        shapes |= linears(f"{block}intermediate.", dense=(m, d)) | linears(
            f"{block}output.", dense=(d, m)
        )
        shapes |= norms(f"{block}output.", d, "LayerNorm")
    for place, n, out in zip((0, 2, 4, 6, 7), (d, *head), head, strict=False):
        shapes |= linears("mlp.layers.", **{str(place): (out, n)})
    return shapes


def random(shapes, seed):
    """Random tensors; the weights of layer norms lie around 1."""
    g = torch.Generator().manual_seed(seed)
    return {
        k: torch.arange(s[1])[None]
        if k.endswith("position_ids")
        else torch.randn(s, generator=g) * 0.3
        + (k.endswith("weight") and any(x in k for x in ("ln_", "norm", "Norm", "layrnorm")))
        for k, s in shapes.items()
    }


@pytest.fixture(scope="module")
def clip_tokenizer():
    """The tiny tokenizer with its two special tokens last, where CLIP has them."""
    from transformers import CLIPTokenizer

    ours = tiny.clip_tokenizer()
    special = ["<|startoftext|>", "<|endoftext|>"]
    words = [
        word for word in sorted(ours.get_vocab(), key=ours.get_vocab().get) if word not in special
    ] + special
    merges = [
        tuple(pair) for pair in json.loads(ours.backend_tokenizer.to_str())["model"]["merges"]
    ]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=LENGTH
    )


def med_config(words):
    """med_config.json with every key of the published one."""
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 56,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 40,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": words,
        "encoder_width": 32,
        "add_cross_attention": True,
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory, clip_tokenizer):
    """name -> (folder in the published layout, its state dict), all of them with random weights and a tokenizer."""
    folders = {name: tmp_path_factory.mktemp(name) for name in FILES}
    sizes = tuple(len(clip_tokenizer) if size is None else size for size in TINY)
    states = {
        name: random(
            (open_clip_shapes if "hps" in name else transformers_clip_shapes)(*sizes), seed
        )
        for seed, name in enumerate(("clip", "pickscore", "hpsv2", "hpsv2.0"))
    }
    patch, side, width, layers, inner, words, text_width, text_layers, text_inner, length, joint = (
        sizes
    )
    for name in states:
        if "hps" in name:  # float16, among other things that a training run saves
            states[name] = {k: v.half() for k, v in states[name].items()}
            torch.save(
                {"epoch": 3, "name": "tiny", "state_dict": states[name]},
                folders[name] / FILES[name],
            )
        else:  # configs of the time: the end token of 2 stands for "the highest id", and much is said twice
            act = "quick_gelu" if name == "clip" else "gelu"
            text = dict(
                hidden_size=text_width,
                intermediate_size=text_inner,
                num_hidden_layers=text_layers,
                num_attention_heads=HEADS,
                hidden_act=act,
                max_position_embeddings=length,
                vocab_size=words,
                bos_token_id=0,
                eos_token_id=2,
                pad_token_id=1,
                model_type="clip_text_model",
            )
            vision = dict(
                hidden_size=width,
                intermediate_size=inner,
                num_hidden_layers=layers,
                num_attention_heads=HEADS,
                image_size=side,
                patch_size=patch,
                hidden_act=act,
                model_type="clip_vision_model",
            )
            config = {
                "architectures": ["CLIPModel"],
                "model_type": "clip",
                "projection_dim": joint,
                "logit_scale_init_value": 2.6592,
                "text_config": text,
                "text_config_dict": text,
                "vision_config": vision,
                "vision_config_dict": vision,
                "torch_dtype": "float32",
                "transformers_version": "4.24.0.dev0",
            }
            (folders[name] / "config.json").write_text(json.dumps(config))
            processor = {
                "feature_extractor_type": "CLIPFeatureExtractor",
                "crop_size": side,
                "size": side,
                "resample": 3,
            }
            (folders[name] / "preprocessor_config.json").write_text(json.dumps(processor))
            torch.save(
                states[name],
                folders[name] / FILES[name],
                _use_new_zipfile_serialization=name != "clip",
            )
        clip_tokenizer.save_pretrained(folders[name])
    tokenizer = tiny.bert_tokenizer(tokens=40)
    med = med_config(len(tokenizer) + 2)  # two tokens that the score never reads
    states["image_reward"] = random(
        blip_shapes(patch, side, width, layers, med, (20, 12, 8, 4, 1), joint), 9
    )
    states["image_reward"]["mlp.layers.7.weight"] *= 0.3  # scores of about 1
    torch.save(states["image_reward"], folders["image_reward"] / "ImageReward.pt")
    (folders["image_reward"] / "med_config.json").write_text(json.dumps(med))
    tokenizer.save_pretrained(folders["image_reward"])
    return {name: (folders[name], states[name]) for name in FILES}


@pytest.fixture
def copied(published, tmp_path):
    """name -> a copy of its folder that a test may damage, and the file of weights in it."""

    def copy(name):
        folder = shutil.copytree(published[name][0], tmp_path / name)
        return folder, folder / FILES[name]

    return copy


def pictures(height, width, batch=3):
    """Noise around a colour for each picture, so that no two are alike."""
    g = torch.Generator().manual_seed(height * 1000 + width)
    return (
        torch.rand(batch, 3, 1, 1, generator=g)
        + 0.3 * torch.randn(batch, 3, height, width, generator=g)
    ).clamp(0, 1)


# --------------------------------------------------------------------------------------- the published formulas in plain torch


def bicubic(size, to):
    """(to, size) weights of PIL's and torch's antialiased bicubic: Keys's kernel of a = -0.5, as wide as the steps between samples."""
    matrix, step = torch.zeros(to, size, dtype=torch.float64), max(size / to, 1)
    for i in range(to):
        centre = (i + 0.5) * size / to
        for j in range(
            max(int(centre - 2 * step + 0.5), 0), min(int(centre + 2 * step + 0.5), size)
        ):
            x = abs(j + 0.5 - centre) / step
            matrix[i, j] = (
                1.5 * x**3 - 2.5 * x**2 + 1
                if x < 1
                else (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0)
            )
    return matrix / matrix.sum(1, keepdim=True)


def resized(pixels, height, width):
    return torch.einsum(
        "yh,bchw,xw->bcyx",
        bicubic(pixels.shape[2], height),
        pixels.double(),
        bicubic(pixels.shape[3], width),
    )


def normalised(pixels):
    return (pixels.double() - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


def cropped(pixels):
    """Resize(32), CenterCrop(32) and Normalize of CLIP and ImageReward; PIL cannot leave [0, 1]."""
    shortest = min(pixels.shape[2:])
    size = [int(n * SIDE / shortest) for n in pixels.shape[2:]]
    top, left = (round((n - SIDE) / 2) for n in size)
    pixels = resized(pixels, *size).clamp(0, 1) if shortest != SIDE else pixels
    return normalised(pixels[:, :, top : top + SIDE, left : left + SIDE])


def padded(pixels):
    """HPSv2's: the longest side to 32, not clamped, on black."""
    scale = SIDE / max(pixels.shape[2:])
    height, width = (round(n * scale) for n in pixels.shape[2:])
    canvas = torch.zeros(len(pixels), 3, SIDE, SIDE, dtype=torch.float64)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    canvas[:, :, top : top + height, left : left + width] = resized(pixels, height, width)
    return normalised(canvas)


def attend(q, k, v, heads, mask=0.0):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def part(state, prefix):
    return {k.removeprefix(prefix): v.double() for k, v in state.items() if k.startswith(prefix)}


def dense(x, state, name):
    return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(x, state, name, eps=1e-5):
    return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


NAMES = {  # open_clip's, which the restatement below speaks, and transformers'
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "c_fc": "fc1",
    "c_proj": "fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def as_open_clip(state):
    """A CLIPModel's state dict under open_clip's names: the reverse of what bpgo.rewards.hpsv2 does."""
    clip = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "visual.proj": state["visual_projection.weight"].T,
    }
    for theirs, ours in (("text_model.", ""), ("vision_model.", "visual.")):
        at = part(state, theirs)
        last = {
            "final_layer_norm": "ln_final",
            "pre_layrnorm": "ln_pre",
            "post_layernorm": "ln_post",
        }
        for name, tensor in at.items():
            if name.startswith("embeddings.") or (head := name.rsplit(".", 1))[0] in last:
                name = name.replace(
                    "embeddings.position_embedding.weight", "positional_embedding"
                ).removeprefix("embeddings.")
                name = name.replace("patch_embedding", "conv1")
                for new, old in ((new, old) for new, old in last.items() if name.startswith(new)):
                    name = name.replace(new, old)
                clip[ours + name] = tensor
            elif ".q_proj." in name:
                block, kind = name.split(".")[2], head[1]
                joined = torch.cat([at[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
                clip[f"{ours}transformer.resblocks.{block}.attn.in_proj_{kind}"] = joined
            elif not any(f".{x}_proj." in name for x in "kv"):
                for old, new in NAMES.items():
                    name = name.replace(new, old)
                clip[ours + name.replace("encoder.layers.", "transformer.resblocks.")] = tensor
    return clip


def transformer(x, state, act, mask=0.0):
    """open_clip's pre-norm blocks; x (batch, length, width)."""
    for i in range(1 + max(int(k.split(".")[2]) for k in state if k.startswith("transformer."))):
        at = part(state, f"transformer.resblocks.{i}.")
        q, k, v = linear(
            norm(x, at, "ln_1"), at["attn.in_proj_weight"], at["attn.in_proj_bias"]
        ).chunk(3, -1)
        x = x + dense(attend(q, k, v, HEADS, mask), at, "attn.out_proj")
        x = x + dense(act(dense(norm(x, at, "ln_2"), at, "mlp.c_fc")), at, "mlp.c_proj")
    return x


def clip_cosines(pixels, ids, state, act):
    """encode_image and encode_text of open_clip's CLIP, on normalised pixels and token ids padded with zeros."""
    vision = part(state, "visual.")
    x = conv2d(pixels, vision["conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = (
        torch.cat([vision["class_embedding"].expand(len(x), 1, -1), x], 1)
        + vision["positional_embedding"]
    )
    seen = (
        norm(transformer(norm(x, vision, "ln_pre"), vision, act)[:, 0], vision, "ln_post")
        @ vision["proj"]
    )
    text = {k: v.double() for k, v in state.items() if not k.startswith("visual.")}
    x = text["token_embedding.weight"][ids] + text["positional_embedding"]
    x = norm(
        transformer(
            x, text, act, torch.full((LENGTH, LENGTH), -math.inf, dtype=torch.float64).triu(1)
        ),
        text,
        "ln_final",
    )
    read = (
        x[torch.arange(len(x)), ids.argmax(-1)] @ text["text_projection"]
    )  # the end token has the highest id
    return (normalize(seen, dim=-1) * normalize(read, dim=-1)).sum(-1)


def clip_ids(prompts, tokenizer):
    """Start, words, end, as CLIP's own tokenizer gives them: cut with the end kept, zeros after it."""
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    ids = torch.zeros(len(prompts), LENGTH, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        words = [start, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize(prompt))][: LENGTH - 1]
        ids[i, : len(words) + 1] = torch.tensor([*words, end])
    return ids


def image_reward_scores(pixels, ids, mask, state, med, mean, std):
    """ImageReward's forward on normalised pixels: timm's ViT, BERT with cross-attention, five linear layers."""
    vision, text = part(state, "blip.visual_encoder."), part(state, "blip.text_encoder.")
    x = (
        conv2d(
            pixels, vision["patch_embed.proj.weight"], vision["patch_embed.proj.bias"], stride=PATCH
        )
        .flatten(2)
        .transpose(1, 2)
    )
    x = torch.cat([vision["cls_token"].expand(len(x), -1, -1), x], 1) + vision["pos_embed"]
    for i in range(2):
        at = part(vision, f"blocks.{i}.")
        q, k, v = dense(norm(x, at, "norm1", 1e-6), at, "attn.qkv").chunk(3, -1)
        x = x + dense(attend(q, k, v, HEADS), at, "attn.proj")
        x = x + dense(gelu(dense(norm(x, at, "norm2", 1e-6), at, "mlp.fc1")), at, "mlp.fc2")
    seen = norm(x, vision, "norm", 1e-6)
    x = (
        text["embeddings.word_embeddings.weight"][ids]
        + text["embeddings.position_embeddings.weight"][: ids.shape[1]]
    )
    x = norm(x, text, "embeddings.LayerNorm", 1e-12)
    hidden = (1.0 - mask[:, None, None].double()) * -10000.0
    for i in range(3):
        at = part(text, f"encoder.layer.{i}.")
        for kind, source, bias in (("attention", None, hidden), ("crossattention", seen, 0.0)):
            a = part(at, f"{kind}.")
            q, k, v = (
                dense(x, a, "self.query"),
                *(dense(x if source is None else source, a, f"self.{n}") for n in ("key", "value")),
            )
            x = norm(
                x + dense(attend(q, k, v, med["num_attention_heads"], bias), a, "output.dense"),
                a,
                "output.LayerNorm",
                1e-12,
            )
        x = norm(
            x + dense(gelu(dense(x, at, "intermediate.dense")), at, "output.dense"),
            at,
            "output.LayerNorm",
            1e-12,
        )
    x = x[:, 0]
    for place in (0, 2, 4, 6, 7):
        x = dense(x, part(state, "mlp."), f"layers.{place}")
    return (x[:, 0] - mean) / std


def bert_ids(prompts, tokenizer):
    """[CLS], words, [SEP], cut to 35 and padded to 35 with zeros; and the mask."""
    ids = torch.zeros(len(prompts), 35, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        words = tokenizer.convert_tokens_to_ids(["[CLS]", *prompt.split()])[:34]
        ids[i, : len(words) + 1] = torch.tensor([*words, tokenizer.convert_tokens_to_ids("[SEP]")])
    return ids, ids.ne(0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["clip", "pickscore", "hpsv2", "hpsv2.0"])
@torch.no_grad()
def test_clip_rewards_are_the_published_formula(published, clip_tokenizer, name, size):
    folder, state = published[name]
    pixels, prompts = pictures(*size, batch=4), [*PROMPTS, LONG]
    ids = clip_ids(prompts, clip_tokenizer)
    assert ids.eq(len(clip_tokenizer) - 1).nonzero().tolist() == [
        [0, 4],
        [1, 8],
        [2, 3],
        [3, LENGTH - 1],
    ]
    theirs = state if "hps" in name else as_open_clip(state)
    expected = clip_cosines(
        padded(pixels) if "hps" in name else cropped(pixels),
        ids,
        theirs,
        quick_gelu if name == "clip" else gelu,
    )
    assert expected.std() > 0.01
    if name == "pickscore":
        expected = state["logit_scale"].exp() * expected
        assert state["logit_scale"].abs() > 0.01
    came = load_reward(name, folder)(pixels, prompts)
    assert (came.shape, came.dtype) == ((4,), torch.float32)
    torch.testing.assert_close(came, expected.float(), atol=1e-5, rtol=0)
    if "hps" in name:
        torch.testing.assert_close(
            load_reward(name, folder / FILES[name])(pixels, prompts), came, atol=0, rtol=0
        )


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_image_reward_is_the_published_formula(published, size):
    from transformers import AutoTokenizer

    folder, state = published["image_reward"]
    pixels, prompts = pictures(*size, batch=4), [*PROMPTS, LONG]
    ids, mask = bert_ids(prompts, AutoTokenizer.from_pretrained(folder))
    assert mask.sum(1).tolist() == [5, 9, 4, 35] and 1 not in ids  # the third id is [UNK]
    med = json.loads((folder / "med_config.json").read_text())
    expected = image_reward_scores(
        cropped(pixels), ids, mask, state, med, 0.16717362830052426, 1.0333394966054072
    )
    assert expected.std() > 0.01
    exact = image_reward.load(folder)[0].double()(
        cropped(pixels), ids, mask
    )  # without the rounding of torch's resize in float32
    torch.testing.assert_close(exact, expected, atol=1e-10, rtol=0)
    for path in (folder, folder / "ImageReward.pt"):
        torch.testing.assert_close(
            load_reward("image_reward", path)(pixels, prompts), expected.float(), atol=1e-5, rtol=0
        )


def test_image_reward_is_the_same_in_our_layout(published, tmp_path):
    folder, state = published["image_reward"]
    weights = image_reward.rename(state)
    config = image_reward.configuration(
        weights, json.loads((folder / "med_config.json").read_text())
    )
    assert (config["vision"]["image_size"], config["head"]) == (32, [20, 12, 8, 4, 1])
    shutil.copytree(
        folder,
        tmp_path,
        dirs_exist_ok=True,
        ignore=lambda *_: ["ImageReward.pt", "med_config.json"],
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors")
    ours, theirs = (
        load_reward("image_reward", place)(pictures(48, 100), PROMPTS)
        for place in (tmp_path, folder)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FILES)
def test_a_picture_s_reward_is_its_own_and_float32(published, name):
    reward, pixels, prompts = (
        load_reward(name, published[name][0]),
        pictures(40, 50),
        [PROMPTS[2], PROMPTS[1], LONG],
    )
    together = reward(pixels, prompts)
    assert torch.equal(together, reward(pixels, prompts))
    assert torch.equal(together, load_reward(name, published[name][0])(pixels, prompts))
    alone = torch.cat([reward(pixels[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not torch.allclose(together, reward(pixels, prompts[::-1]), atol=1e-3)
    assert not torch.allclose(together, reward(pixels.flip(0), prompts), atol=1e-3)
    assert reward(pixels.bfloat16(), prompts).dtype == torch.float32
    torch.testing.assert_close(reward(pixels.double(), prompts), together, atol=1e-5, rtol=0)
    assert not reward(pixels.requires_grad_(), prompts).requires_grad
    with pytest.raises(RewardError, match=r"takes pictures \(batch, 3, height, width\)"):
        reward(torch.zeros(3, 9, 3, 32, 32), prompts)


@pytest.mark.parametrize("size", [(32, 32), (32, 20), (100, 48), (7, 32), (512, 512)])
def test_hpsv2_pads_where_clip_crops(size):
    pixels = torch.ones(1, 3, *size)
    came = hpsv2.preprocess(pixels, SIDE) * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    assert came.shape == (1, 3, SIDE, SIDE)
    height, width = (round(n * SIDE / max(size)) for n in size)
    white = came[0, 0] > 0.5
    assert (int(white.any(1).sum()), int(white.any(0).sum()), int(white.sum())) == (
        height,
        width,
        height * width,
    )
    rows, columns = white.any(1).nonzero()[0].item(), white.any(0).nonzero()[0].item()
    assert (rows, columns) == ((SIDE - height) // 2, (SIDE - width) // 2)
    torch.testing.assert_close(
        came[0, :, ~white], torch.zeros(3, int((~white).sum())), atol=1e-6, rtol=0
    )


# ------------------------------------------------------------------------------------------------------- the published sizes


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def numbers(shapes):
    return sum(
        math.prod(shape) for name, shape in shapes.items() if not name.endswith("position_ids")
    )


def test_the_published_size_of_hpsv2():
    """986,109,441 numbers, two bytes each: 1,972,218,882 of the 1,972,484,501 bytes of HPS_v2_compressed.pt."""
    from transformers import CLIPModel

    shapes = open_clip_shapes(*VIT_H)
    assert numbers(shapes) == 986_109_441
    weights = hpsv2.rename(on_meta(shapes))
    config = hpsv2.configuration(weights)
    with torch.device("meta"):
        model = CLIPModel(config)
    assert shapes_of(weights) == shapes_of(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == 986_109_441
    assert (
        config.vision_config.image_size,
        config.vision_config.hidden_act,
        config.text_config.hidden_act,
    ) == (224, "gelu", "gelu")
    assert (config.text_config.max_position_embeddings, config.text_config.eos_token_id) == (
        77,
        49407,
    )
    assert {config.vision_config.num_attention_heads, config.text_config.num_attention_heads} == {
        16
    }


def test_the_published_size_of_pickscore():
    """CLIPModel's tensors are those of pytorch_model.bin, but for the position_ids of older versions."""
    from transformers import CLIPModel

    shapes = transformers_clip_shapes(*VIT_H)
    assert numbers(shapes) == 986_109_441
    config = hpsv2.configuration(hpsv2.rename(on_meta(open_clip_shapes(*VIT_H))))
    with torch.device("meta"):
        model = CLIPModel(config)
    assert shapes_of(model.state_dict()) == {
        name: shape for name, shape in shapes.items() if not name.endswith("position_ids")
    }


def test_the_published_size_of_image_reward():
    """446,665,953 numbers of four bytes and 512 position ids of eight: 1,786,667,908 of the 1,786,880,927 bytes of ImageReward.pt."""
    med = med_config(30524) | {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "encoder_width": 768,
    }
    shapes = blip_shapes(16, 224, 1024, 24, med, (1024, 128, 64, 16, 1))
    assert numbers(shapes) == 446_665_953
    weights = image_reward.rename(on_meta(shapes))
    with torch.device("meta"):
        model = image_reward.ImageReward(image_reward.configuration(weights, med))
    assert shapes_of(weights) == shapes_of(model.state_dict())
    unused = 256 * (1024 + 1) + 256 * (768 + 1)  # the projections of BLIP's contrastive loss
    assert sum(p.numel() for p in model.parameters()) == 446_665_953 - unused
    assert [tuple(layer.weight.shape) for layer in model.head] == [
        (1024, 768),
        (128, 1024),
        (64, 128),
        (16, 64),
        (1, 16),
    ]
    assert not [m for m in model.head if not isinstance(m, nn.Linear)]
    config = model.config
    assert (config["max_length"], config["mean"], config["std"]) == (
        35,
        0.16717362830052426,
        1.0333394966054072,
    )
    assert (
        config["vision"]["image_size"],
        model.vision.config.num_attention_heads,
        model.vision.config.layer_norm_eps,
    ) == (224, 16, 1e-6)


# --------------------------------------------------------------------------------------------------------------- loading


class Code:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_torch_save_load(copied, name, zipped, published):
    folder, file = copied(name)
    content = {"state_dict": published[name][1]} if "hps" in name else published[name][1]
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    pixels = pictures(32, 32)
    assert torch.equal(
        load_reward(name, folder)(pixels, PROMPTS),
        load_reward(name, published[name][0])(pixels, PROMPTS),
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_refused_by_name(copied, published, name, zipped):
    folder, file = copied(name)
    torch.save({"state_dict": published[name][1]}, file, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    for broken in (*(whole[:n] for n in (0, 1, 20, 1000, len(whole) // 2, len(whole) - 5)), *TEXTS):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{file.name} is damaged, or .*: download it again"):
            load_reward(name, folder)


TEXTS = (
    b"no checkpoint",
    b"a red circle\n",
    b"hello",
    b"version https://git-lfs.github.com/spec/v1\n",
    "ü".encode(),
    b"r",
    bytes(99),
)


@pytest.mark.parametrize("name", FILES)
def test_code_in_a_file_is_refused_and_not_run(copied, name, capsys):
    folder, file = copied(name)
    for content in (
        {"state_dict": {}, "code": Code()},
        {"state_dict": {"code": Code()}},
        Code(),
        [1, 2],
        torch.zeros(3),
    ):
        torch.save(content, file)
        with pytest.raises(
            ValueError,
            match=rf"{file.name} is damaged, or holds more than tensors \(code in it is not run\)",
        ):
            load_reward(name, folder)
    assert "ran" not in capsys.readouterr().out


MISSING = {
    "clip": ("visual_projection.weight", "text_model.encoder.layers.1.mlp.fc2.bias", "logit_scale"),
    "pickscore": ("text_model.final_layer_norm.bias",),
    "hpsv2": (
        "text_projection",
        "visual.conv1.weight",
        "visual.positional_embedding",
        "token_embedding.weight",
        "logit_scale",
        "transformer.resblocks.0.mlp.c_fc.weight",
        "visual.transformer.resblocks.1.attn.in_proj_bias",
    ),
    "hpsv2.0": ("ln_final.bias",),
    "image_reward": (
        "blip.visual_encoder.cls_token",
        "blip.visual_encoder.pos_embed",
        "blip.visual_encoder.blocks.0.mlp.fc1.weight",
        "blip.text_encoder.encoder.layer.2.crossattention.self.key.bias",
        "mlp.layers.7.weight",
        "mlp.layers.2.bias",
    ),
}
CALLED = {
    "text_projection": "text_projection.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "transformer.resblocks.0.mlp.c_fc.weight": "text_model.encoder.layers.0.mlp.fc1.weight",
    "visual.transformer.resblocks.1.attn.in_proj_bias": "vision_model.encoder.layers.1.self_attn.k_proj.bias",
    "blip.visual_encoder.cls_token": "vision.embeddings.class_embedding",
    "blip.visual_encoder.pos_embed": "vision.embeddings.position_embedding",
    "blip.visual_encoder.blocks.0.mlp.fc1.weight": "vision.encoder.layers.0.mlp.fc1.weight",
    "blip.text_encoder.encoder.layer.2.crossattention.self.key.bias": "text.encoder.layer.2.crossattention.self.key.bias",
    "mlp.layers.7.weight": "head.4.weight",
    "mlp.layers.2.bias": "head.1.bias",
}


@pytest.mark.parametrize(
    ("name", "tensor"), [(name, tensor) for name, tensors in MISSING.items() for tensor in tensors]
)
def test_a_missing_or_misshapen_tensor_is_named(copied, published, name, tensor):
    folder, file = copied(name)
    whole, called = published[name][1], CALLED.get(tensor, tensor).replace(".", r"\.")

    def save(state):
        torch.save({"state_dict": state} if "hps" in name else state, file)

    save({k: v for k, v in whole.items() if k != tensor})
    with pytest.raises(
        ValueError, match=rf"{FILES[name]}.* holds no whole .*{called}( is missing)?$"
    ):
        load_reward(name, folder)
    save(whole | {"another": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"1 of its tensors are missing, unknown or misshapen, such as another$"
    ):
        load_reward(name, folder)


@pytest.mark.parametrize("name", ["clip", "pickscore"])
def test_safetensors_of_another_shape_are_refused(published, tmp_path, name):
    folder, state = published[name]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=lambda *_: ["pytorch_model.bin"])
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    pixels = pictures(32, 32)
    assert torch.equal(
        load_reward(name, tmp_path)(pixels, PROMPTS), load_reward(name, folder)(pixels, PROMPTS)
    )
    save_file(
        state | {"logit_scale": torch.zeros(3)},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(
        ValueError, match="1 of its tensors are missing or misshapen, such as logit_scale"
    ):
        load_reward(name, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_another_file_or_another_reward_s_folder_is_refused(published, tmp_path, name):
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes\n")
    with pytest.raises(
        ValueError,
        match=r"notes\.txt is (damaged, or|a file: this reward takes a hub id, or a folder)",
    ):
        load_reward(name, notes)
    for other in FILES.keys() - {name}:
        if {name, other} == {
            "clip",
            "pickscore",
        }:  # one architecture: only their files tell them apart
            continue
        with pytest.raises((ValueError, OSError), match=str(published[other][0])):
            load_reward(name, published[other][0])
    with pytest.raises(OSError, match=str(tmp_path)):
        load_reward(name, tmp_path)


def test_the_file_of_another_reward_is_refused(published):
    for name, other in (("hpsv2", "image_reward"), ("hpsv2", "clip")):
        with pytest.raises(ValueError, match=r"has no 'state_dict' with tensors in it"):
            load_reward(name, published[other][0] / FILES[other])
    for other in ("clip", "hpsv2"):
        with pytest.raises((ValueError, OSError), match=str(published[other][0])):
            load_reward("image_reward", published[other][0] / FILES[other])


def test_a_file_of_hpsv2_s_other_version_is_asked_for_by_name(published):
    with pytest.raises(FileNotFoundError, match=r"has no HPS_v2_compressed\.pt"):
        load_reward("hpsv2.0", published["hpsv2"][0])


@pytest.mark.parametrize("name", ["clip", "pickscore", "hpsv2", "hpsv2.0"])
def test_another_model_s_tokenizer_is_refused(copied, name):
    """Also where there is none: transformers then makes one of two tokens, to which all prompts are the same."""
    folder, _ = copied(name)
    tiny.clip_tokenizer(["a", "red"]).save_pretrained(folder)
    with pytest.raises(
        ValueError,
        match=r"tokenizer of .* (tokens for a text encoder of|ends no prompt with the last of)",
    ):
        load_reward(name, folder)
    if "hps" not in name:
        for file in folder.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(
            ValueError,
            match=r"has a tokenizer of 2 tokens for a text encoder of \d+: copy the model's own",
        ):
            load_reward(name, folder)


def test_a_med_config_that_lacks_a_size_is_refused(copied):
    folder, _ = copied("image_reward")
    med = json.loads((folder / "med_config.json").read_text())
    (folder / "med_config.json").write_text(
        json.dumps({k: v for k, v in med.items() if k != "hidden_size"})
    )
    with pytest.raises(
        ValueError,
        match=r"with med_config\.json, holds no whole ImageReward: hidden_size is missing",
    ):
        load_reward("image_reward", folder)
    (folder / "med_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"med_config\.json"):
        load_reward("image_reward", folder)


DOWNLOADS = {
    "hpsv2": ("xswu/HPSv2", ["HPS_v2.1_compressed.pt"], "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "hpsv2.0": ("xswu/HPSv2", ["HPS_v2_compressed.pt"], "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "image_reward": (
        "THUDM/ImageReward",
        ["med_config.json", "ImageReward.pt"],
        "bert-base-uncased",
    ),
}


@pytest.mark.parametrize("name", DOWNLOADS)
def test_a_hub_id_downloads_the_published_files_and_the_tokenizer(
    copied, published, name, monkeypatch
):
    import huggingface_hub
    import transformers

    hub_id, files, tokenizer = DOWNLOADS[name]
    folder, asked, whole = copied(name)[0], [], published[name][0]
    assert REWARDS[name][2] == hub_id
    for file in folder.glob("tokenizer*"):
        file.unlink()
    tokenizers = transformers.AutoTokenizer.from_pretrained

    def download(repository, file):
        asked.append((repository, file))
        return str(folder / file)

    class Tokenizers:
        def from_pretrained(place):
            asked.append(place)
            return tokenizers(whole)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(transformers, "AutoTokenizer", Tokenizers)
    reward = load_reward(name)
    assert asked == [*((hub_id, file) for file in files), tokenizer]
    monkeypatch.undo()
    assert torch.equal(
        reward(pictures(32, 32), PROMPTS), load_reward(name, whole)(pictures(32, 32), PROMPTS)
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [("hps", "hpsv2"), ("hpsv2.1", "hpsv2"), ("hps_v2", "hpsv2"), ("imagereward", "image_reward")],
)
def test_the_image_rewards_are_listed(name, near):
    with pytest.raises(ValueError, match=f"did you mean '{near}"):
        load_reward(name)
