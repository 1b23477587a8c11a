"""VideoCLIP-XL at a tiny size: its published layout, and its forward restated in plain torch."""

import math

import torch
from torch import nn

PROMPTS = ["a red circle", "a small crimson box at the top", "a shape"]
# More than 20 tokens, so that it reaches the second table of positions.
LONG = " ".join(PROMPTS[i % 2] for i in range(8))
WIDTH, TEXT_WIDTH, HEADS, LAYERS, JOINT = 48, 32, 3, 2, 24
FRAMES, LENGTH, SIDE, PATCH = 8, 40, 32, 8
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def noisy_videos(frames, height=SIDE, width=SIDE, batch=3):
    """Noise around one level per frame, so that no two frames and no two videos are alike."""
    generator = torch.Generator().manual_seed(frames * 100 + height)
    levels = torch.rand(batch, frames, 3, 1, 1, generator=generator)
    noise = 0.3 * torch.randn(batch, frames, 3, height, width, generator=generator)
    return (levels + noise).clamp(0, 1)


def config_for(tokenizer):
    """The config of a tiny VideoCLIP that is read at the end token of `tokenizer`."""
    start, *_, end = tokenizer("a")["input_ids"]
    vision = dict(
        image_size=SIDE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
    )
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=0,
    )
    return {
        "vision": vision,
        "text": text,
        "projection_dim": JOINT,
        "frames": FRAMES,
        "max_length": LENGTH,
    }


# --------------------------------------------------------------------------- the published layout


def random_state(tokens):
    """A state dict as in VideoCLIP-XL.bin, with this many tokens."""
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
        "token_embedding.weight": (tokens, TEXT_WIDTH),
        "ln_final.weight": (TEXT_WIDTH,),
        "ln_final.bias": (TEXT_WIDTH,),
    }
    generator = torch.Generator().manual_seed(4)
    state = {"vision_model.temp": torch.tensor(0.01)}
    encoders = (("vision_model.vision_encoder.", vision, WIDTH), ("text_model.", text, TEXT_WIDTH))
    for prefix, shapes, width in encoders:
        for name, shape in (shapes | block_shapes(width)).items():
            centre = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            state[prefix + name] = torch.randn(shape, generator=generator) * 0.3 + centre
    return state


def block_shapes(width):
    """The shapes of a transformer's blocks under the names of OpenAI's CLIP."""
    block = {
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
    shapes = {}
    for i in range(LAYERS):
        for name, shape in block.items():
            shapes[f"transformer.resblocks.{i}.{name}"] = shape
    return shapes


# -------------------------------------------------------------------------- the published forward


def normalised(frames):
    return (frames - MEAN) / STD


def part(state, prefix):
    """The tensors under a prefix, without it."""
    found = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] = tensor
    return found


def norm(x, state, name):
    return nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def transformer(x, state, heads, mask=None):
    """Pre-norm blocks with QuickGELU and nn.MultiheadAttention; x (length, batch, width)."""
    for i in range(LAYERS):
        at = part(state, f"transformer.resblocks.{i}.")
        attention = nn.MultiheadAttention(x.shape[-1], heads)
        attention.load_state_dict(part(at, "attn."))
        y = norm(x, at, "ln_1")
        x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = norm(x, at, "ln_2") @ at["mlp.c_fc.weight"].T + at["mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y)
        x = x + y @ at["mlp.c_proj.weight"].T + at["mlp.c_proj.bias"]
    return x


def embed_video(frames, state, order="n t"):
    """(B, T, 3, S, S) normalised -> (B, JOINT).

    order: of the tokens, place by place (`n t`) or frame by frame (`t n`).
    """
    stride = (1, PATCH, PATCH)
    x = nn.functional.conv3d(frames.transpose(1, 2), state["conv1.weight"], stride=stride)
    x = torch.einsum("bdtyx->btyxd", x).flatten(2, 3) + state["positional_embedding"][1:]
    x = x + state["temporal_positional_embedding"][0][:, None]
    x = (x.transpose(1, 2) if order == "n t" else x).flatten(1, 2)
    first = (state["class_embedding"] + state["positional_embedding"][0]).expand(len(x), 1, -1)
    x = norm(torch.cat([first, x], 1), state, "ln_pre")
    x = transformer(x.transpose(0, 1), state, HEADS)[0]
    return norm(x, state, "ln_post") @ state["proj"]


def embed_text(ids, state, end):
    """(B, LENGTH) token ids, zeros after the end token, -> (B, JOINT).

    Upstream finds the end as the highest id, which it is there.
    """
    early = (torch.arange(LENGTH) < 20)[:, None]
    positions = torch.where(early, state["positional_embedding"], state["positional_embedding_res"])
    x = state["token_embedding.weight"][ids] + positions
    causal = torch.full((LENGTH, LENGTH), -math.inf).triu(1)
    x = transformer(x.transpose(0, 1), state, 2, causal).transpose(0, 1)
    places = ids.eq(end).int().argmax(-1)
    return norm(x, state, "ln_final")[torch.arange(len(x)), places] @ state["text_projection"]


def token_ids(prompts, tokenizer):
    """Start, words, end, as Long-CLIP's tokenizer gives them: cut with the end kept, then zeros."""
    start, end = tokenizer.convert_tokens_to_ids(["<|startoftext|>", "<|endoftext|>"])
    ids = torch.zeros(len(prompts), LENGTH, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        words = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(prompt))
        row = [start, *words, end][:LENGTH]
        ids[i, : len(row)] = torch.tensor([*row[:-1], end])
    return ids
