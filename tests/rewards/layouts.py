"""The published layouts of the image rewards: names and shapes, and random tensors."""

import math

import torch

PROMPTS = ["a red circle", "a small crimson box at the top", "a shape"]
LONG = " ".join(PROMPTS[i % 2] for i in range(8))  # longer than any text encoder reads
# The same side, each way too long, too small, and three columns or rows left over.
SIZES = [(32, 32), (48, 100), (90, 37), (20, 24), (37, 41), (41, 37)]
FILES = {
    "clip": "pytorch_model.bin",
    "pickscore": "pytorch_model.bin",
    "hpsv2": "HPS_v2.1_compressed.pt",
    "hpsv2.0": "HPS_v2_compressed.pt",
    "image_reward": "ImageReward.pt",
}
# Prompts, and how basic_clean and whitespace_clean of OpenAI's CLIP clean them.
CLEANED = {
    "\u201ca box\u201d": '"a box"',  # curly quotes
    "a box&amp;b": "a box&b",
    "a &amp;lt; b": "a < b",  # unescaped twice
    "a\u00a0 \t\u3000box\n": "a box",
    "caf\u00c3\u00a9": "caf\u00e9",  # UTF-8 that was read as Latin-1
    "A \uff22\uff2f\uff38": "a box",  # full-width letters
    "\ufb01re": "fire",  # a ligature
}
HEADS, SIDE, PATCH, LENGTH = 16, 32, 8, 14
# patch, side, vision width, layers, inner width;
# tokens, text width, layers, inner width, positions; joint width
TINY = (PATCH, SIDE, 48, 2, 80, None, 32, 3, 72, LENGTH, 24)
VIT_H = (14, 224, 1280, 32, 5120, 49408, 1024, 24, 4096, 77, 1024)


def noisy_images(height, width, batch=3):
    """Noise around one colour per image, so that no two images are alike."""
    g = torch.Generator().manual_seed(height * 1000 + width)
    colours = torch.rand(batch, 3, 1, 1, generator=g)
    noise = 0.3 * torch.randn(batch, 3, height, width, generator=g)
    return (colours + noise).clamp(0, 1)


def random_tensors(shapes, seed):
    """Random tensors of these shapes; the weights of layer norms lie around 1."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        is_norm = any(part in name for part in ("ln_", "norm", "Norm", "layrnorm"))
        if name.endswith("position_ids"):
            tensors[name] = torch.arange(shape[1])[None]
        else:
            centre = 1.0 if is_norm and name.endswith("weight") else 0.0
            tensors[name] = torch.randn(shape, generator=g) * 0.3 + centre
    return tensors


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def count(shapes):
    """How many numbers there are, without position ids."""
    sizes = [math.prod(s) for name, s in shapes.items() if not name.endswith("position_ids")]
    return sum(sizes)


class Code:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


# ------------------------------------------------------------------------------- names and shapes


def linears(prefix, **sizes):
    """The shapes of linear layers: name=(out, in)."""
    shapes = {}
    for name, (out, into) in sizes.items():
        shapes[f"{prefix}{name}.weight"] = (out, into)
        shapes[f"{prefix}{name}.bias"] = (out,)
    return shapes


def norms(prefix, width, *names):
    """The shapes of layer norms."""
    shapes = {}
    for name in names:
        shapes[f"{prefix}{name}.weight"] = (width,)
        shapes[f"{prefix}{name}.bias"] = (width,)
    return shapes


def open_clip_shapes(
    patch, side, width, layers, inner, tokens, text_width, text_layers, text_inner, length, joint
):
    """Names and shapes of an open_clip CLIP, as HPSv2 publishes one."""
    shapes = {
        "positional_embedding": (length, text_width),
        "text_projection": (text_width, joint),
        "logit_scale": (),
        "token_embedding.weight": (tokens, text_width),
        **norms("", text_width, "ln_final"),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((side // patch) ** 2 + 1, width),
        "visual.proj": (width, joint),
        "visual.conv1.weight": (width, 3, patch, patch),
        **norms("visual.", width, "ln_pre", "ln_post"),
    }
    encoders = (("visual.", width, layers, inner), ("", text_width, text_layers, text_inner))
    for prefix, d, blocks, m in encoders:
        for i in range(blocks):
            block = f"{prefix}transformer.resblocks.{i}."
            shapes[f"{block}attn.in_proj_weight"] = (3 * d, d)
            shapes[f"{block}attn.in_proj_bias"] = (3 * d,)
            shapes |= norms(block, d, "ln_1", "ln_2")
            shapes |= linears(f"{block}attn.", out_proj=(d, d))
            shapes |= linears(f"{block}mlp.", c_fc=(m, d), c_proj=(d, m))
    return shapes


def transformers_clip_shapes(
    patch, side, width, layers, inner, tokens, text_width, text_layers, text_inner, length, joint
):
    """Names and shapes of a CLIPModel's pytorch_model.bin, with the position_ids of older ones."""
    places = (side // patch) ** 2 + 1
    shapes = {
        "logit_scale": (),
        "text_projection.weight": (joint, text_width),
        "visual_projection.weight": (joint, width),
        "text_model.embeddings.token_embedding.weight": (tokens, text_width),
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "text_model.embeddings.position_ids": (1, length),
        "vision_model.embeddings.position_ids": (1, places),
        "text_model.embeddings.position_embedding.weight": (length, text_width),
        "vision_model.embeddings.position_embedding.weight": (places, width),
        **norms("text_model.", text_width, "final_layer_norm"),
        **norms("vision_model.", width, "pre_layrnorm", "post_layernorm"),
    }
    encoders = (
        ("vision_model.", width, layers, inner),
        ("text_model.", text_width, text_layers, text_inner),
    )
    for prefix, d, blocks, m in encoders:
        for i in range(blocks):
            block = f"{prefix}encoder.layers.{i}."
            square = (d, d)
            shapes |= linears(f"{block}self_attn.", q_proj=square, k_proj=square, v_proj=square)
            shapes |= linears(f"{block}self_attn.", out_proj=square)
            shapes |= norms(block, d, "layer_norm1", "layer_norm2")
            shapes |= linears(f"{block}mlp.", fc1=(m, d), fc2=(d, m))
    return shapes


def blip_shapes(patch, side, width, layers, med, head, joint=256):
    """Names and shapes of ImageReward.pt. med: its med_config.json."""
    d, m, length = med["hidden_size"], med["intermediate_size"], med["max_position_embeddings"]
    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    shapes = {
        f"{vision}cls_token": (1, 1, width),
        f"{vision}pos_embed": (1, (side // patch) ** 2 + 1, width),
        f"{vision}patch_embed.proj.weight": (width, 3, patch, patch),
        f"{vision}patch_embed.proj.bias": (width,),
        **norms(vision, width, "norm"),
        f"{text}embeddings.position_ids": (1, length),
        f"{text}embeddings.word_embeddings.weight": (med["vocab_size"], d),
        f"{text}embeddings.position_embeddings.weight": (length, d),
        **norms(f"{text}embeddings.", d, "LayerNorm"),
        **linears("blip.", vision_proj=(joint, width), text_proj=(joint, d)),
    }
    for i in range(layers):
        block = f"{vision}blocks.{i}."
        shapes |= linears(f"{block}attn.", qkv=(3 * width, width), proj=(width, width))
        shapes |= norms(block, width, "norm1", "norm2")
        shapes |= linears(f"{block}mlp.", fc1=(4 * width, width), fc2=(width, 4 * width))
    for i in range(med["num_hidden_layers"]):
        block = f"{text}encoder.layer.{i}."
        for kind, seen in (("attention", d), ("crossattention", width)):
            shapes |= linears(f"{block}{kind}.self.", query=(d, d), key=(d, seen), value=(d, seen))
            shapes |= linears(f"{block}{kind}.output.", dense=(d, d))
            shapes |= norms(f"{block}{kind}.output.", d, "LayerNorm")
        shapes |= linears(f"{block}intermediate.", dense=(m, d))
        shapes |= linears(f"{block}output.", dense=(d, m))
        shapes |= norms(f"{block}output.", d, "LayerNorm")
    for place, into, out in zip((0, 2, 4, 6, 7), (d, *head), head, strict=False):
        shapes |= linears("mlp.layers.", **{str(place): (out, into)})
    return shapes


def med_config(tokens):
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
        "vocab_size": tokens,
        "encoder_width": 32,
        "add_cross_attention": True,
    }
