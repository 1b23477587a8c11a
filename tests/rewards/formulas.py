"""The published formulas of the image rewards, restated in plain torch and in float64."""

import math

import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear, normalize

from tests.rewards.layouts import HEADS, LENGTH, PATCH, SIDE

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


# ----------------------------------------------------------------------------------------- pixels


def cropped(pixels, half=round):
    """Resize(32), CenterCrop(32) and Normalize of CLIP and ImageReward; PIL cannot leave [0, 1].

    half: how torchvision (round) or transformers (floor) rounds the offset of the crop.
    """
    shortest = min(pixels.shape[2:])
    size = [int(n * SIDE / shortest) for n in pixels.shape[2:]]
    top, left = (int(half((n - SIDE) / 2)) for n in size)
    pixels = resized(pixels, *size).clamp(0, 1) if shortest != SIDE else pixels
    return normalised(pixels[:, :, top : top + SIDE, left : left + SIDE])


def padded(pixels):
    """HPSv2: the longest side to 32, not clamped, on black."""
    scale = SIDE / max(pixels.shape[2:])
    height, width = (round(n * scale) for n in pixels.shape[2:])
    canvas = torch.zeros(len(pixels), 3, SIDE, SIDE, dtype=torch.float64)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    canvas[:, :, top : top + height, left : left + width] = resized(pixels, height, width)
    return normalised(canvas)


def normalised(pixels):
    return (pixels.double() - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


def resized(pixels, height, width):
    rows, columns = bicubic(pixels.shape[2], height), bicubic(pixels.shape[3], width)
    return torch.einsum("yh,bchw,xw->bcyx", rows, pixels.double(), columns)


def bicubic(size, to):
    """(to, size) weights of the antialiased bicubic of PIL and torch.

    Keys's kernel with a = -0.5, as wide as the steps between samples.
    """
    matrix, step = torch.zeros(to, size, dtype=torch.float64), max(size / to, 1)
    for i in range(to):
        centre = (i + 0.5) * size / to
        first = max(int(centre - 2 * step + 0.5), 0)
        last = min(int(centre + 2 * step + 0.5), size)
        for j in range(first, last):
            matrix[i, j] = keys_kernel(abs(j + 0.5 - centre) / step)
    return matrix / matrix.sum(1, keepdim=True)


def keys_kernel(x):
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    if x < 2:
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return 0.0


# ----------------------------------------------------------------------------------------- layers


def part(state, prefix):
    """The tensors under a prefix, without it."""
    found = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] = tensor.double()
    return found


def dense(x, state, name):
    return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(x, state, name, eps=1e-5):
    return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def attend(q, k, v, heads, mask=0.0):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# ------------------------------------------------------------------------------------------- CLIP


def clip_cosines(pixels, ids, state, act):
    """encode_image and encode_text of open_clip's CLIP.

    pixels: normalised. ids: of tokens, padded with zeros. state: under open_clip's names.
    """
    vision = part(state, "visual.")
    x = conv2d(pixels, vision["conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = vision["class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + vision["positional_embedding"]
    x = transformer(norm(x, vision, "ln_pre"), vision, act)
    seen = norm(x[:, 0], vision, "ln_post") @ vision["proj"]

    text = {name: t.double() for name, t in state.items() if not name.startswith("visual.")}
    causal = torch.full((LENGTH, LENGTH), -math.inf, dtype=torch.float64).triu(1)
    x = text["token_embedding.weight"][ids] + text["positional_embedding"]
    x = norm(transformer(x, text, act, causal), text, "ln_final")
    end = ids.argmax(-1)  # the end token has the highest id
    read = x[torch.arange(len(x)), end] @ text["text_projection"]
    return (normalize(seen, dim=-1) * normalize(read, dim=-1)).sum(-1)


def transformer(x, state, act, mask=0.0):
    """open_clip's pre-norm blocks; x (batch, length, width)."""
    last = max(int(name.split(".")[2]) for name in state if name.startswith("transformer."))
    for i in range(last + 1):
        at = part(state, f"transformer.resblocks.{i}.")
        y = norm(x, at, "ln_1")
        q, k, v = linear(y, at["attn.in_proj_weight"], at["attn.in_proj_bias"]).chunk(3, -1)
        x = x + dense(attend(q, k, v, HEADS, mask), at, "attn.out_proj")
        x = x + dense(act(dense(norm(x, at, "ln_2"), at, "mlp.c_fc")), at, "mlp.c_proj")
    return x


def clip_ids(prompts, tokenizer):
    """Start, words, end, as CLIP's tokenizer gives them: cut with the end kept, zeros after it."""
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    ids = torch.zeros(len(prompts), LENGTH, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        words = [start, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize(prompt))][: LENGTH - 1]
        ids[i, : len(words) + 1] = torch.tensor([*words, end])
    return ids


OPEN_CLIP_NAMES = {  # of transformers, and of open_clip
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding": "conv1",
    "embeddings.": "",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.": "attn.",
    "layer_norm": "ln_",
    "fc1": "c_fc",
    "fc2": "c_proj",
}


def as_open_clip(state):
    """A CLIPModel's state dict under open_clip's names: the inverse of `hpsv2.rename`."""
    clip = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "visual.proj": state["visual_projection.weight"].T,
    }
    for theirs, ours in (("text_model.", ""), ("vision_model.", "visual.")):
        at = part(state, theirs)
        for name, tensor in at.items():
            if any(f".{letter}_proj." in name for letter in "kv"):
                continue
            if ".q_proj." in name:
                tensor = torch.cat([at[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
                name = name.replace("q_proj.", "in_proj_")
            for new, old in OPEN_CLIP_NAMES.items():
                name = name.replace(new, old)
            clip[ours + name] = tensor
    return clip


# ------------------------------------------------------------------------------------ ImageReward


def image_reward_scores(pixels, ids, mask, state, med, mean, std):
    """ImageReward's forward: timm's ViT, BERT with cross-attention, five linear layers.

    pixels: normalised.
    """
    seen = blip_image(pixels, part(state, "blip.visual_encoder."))
    text = part(state, "blip.text_encoder.")
    words = text["embeddings.word_embeddings.weight"]
    places = text["embeddings.position_embeddings.weight"]
    x = norm(words[ids] + places[: ids.shape[1]], text, "embeddings.LayerNorm", 1e-12)
    hidden = (1.0 - mask[:, None, None].double()) * -10000.0
    for i in range(med["num_hidden_layers"]):
        x = bert_layer(x, seen, hidden, part(text, f"encoder.layer.{i}."), med)
    x = x[:, 0]
    for place in (0, 2, 4, 6, 7):
        x = dense(x, part(state, "mlp."), f"layers.{place}")
    return (x[:, 0] - mean) / std


def blip_image(pixels, vision):
    weight, bias = vision["patch_embed.proj.weight"], vision["patch_embed.proj.bias"]
    x = conv2d(pixels, weight, bias, stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([vision["cls_token"].expand(len(x), -1, -1), x], 1) + vision["pos_embed"]
    for i in range(2):
        at = part(vision, f"blocks.{i}.")
        q, k, v = dense(norm(x, at, "norm1", 1e-6), at, "attn.qkv").chunk(3, -1)
        x = x + dense(attend(q, k, v, HEADS), at, "attn.proj")
        x = x + dense(gelu(dense(norm(x, at, "norm2", 1e-6), at, "mlp.fc1")), at, "mlp.fc2")
    return norm(x, vision, "norm", 1e-6)


def bert_layer(x, seen, hidden, at, med):
    for kind, bias in (("attention", hidden), ("crossattention", 0.0)):
        a = part(at, f"{kind}.")
        source = x if kind == "attention" else seen
        q = dense(x, a, "self.query")
        k, v = dense(source, a, "self.key"), dense(source, a, "self.value")
        attended = dense(attend(q, k, v, med["num_attention_heads"], bias), a, "output.dense")
        x = norm(x + attended, a, "output.LayerNorm", 1e-12)
    inner = gelu(dense(x, at, "intermediate.dense"))
    return norm(x + dense(inner, at, "output.dense"), at, "output.LayerNorm", 1e-12)


def bert_ids(prompts, tokenizer):
    """[CLS], words, [SEP], cut to 35 and padded to 35 with zeros; and the mask."""
    ids = torch.zeros(len(prompts), 35, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        words = tokenizer.convert_tokens_to_ids(["[CLS]", *prompt.split()])[:34]
        ids[i, : len(words) + 1] = torch.tensor([*words, tokenizer.convert_tokens_to_ids("[SEP]")])
    return ids, ids.ne(0)
