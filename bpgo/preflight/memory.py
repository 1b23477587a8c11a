"""What a config needs: bytes on a device by part, bytes on the CPU, and floating-point operations of an iteration. No model is loaded.

The bytes of activations are KEPT, WORKING and FORWARD times tokens and widths: fits to what the blocks of diffusers 0.42 held alive on
the CPU with torch 2.13 (attention by SDPA: nothing grows with the square of the tokens). CUDA's kernels differ, its allocator wants spare.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from bpgo.config import Config
from bpgo.preflight.published import Pipeline

# bytes a layer holds for the backward pass, a token and unit of width. Wan: of width, of feed-forward, of text; FLUX: double, single block
KEPT = {
    ("wan", False, False): (81, 9, 12),
    ("wan", True, False): (55.5, 4.5, 11.3),
    ("wan", False, True): (69.7, 3.8, 9.3),
    ("wan", True, True): (49.4, 2.3, 11.1),
    ("flux", False, False): (100, 82),
    ("flux", True, False): (54.4, 48.4),
    ("flux", False, True): (57.8, 50.2),
    ("flux", True, True): (37, 32.9),
}
# bytes that the one layer at work holds beside that; the key is (architecture, whether LoRA, whether bfloat16)
WORKING = {
    ("wan", False, False): (26, 0, 32),
    ("wan", True, False): (9.7, 6.1, 9.1),
    ("wan", False, True): (18.8, 0.6, 18.1),
    ("wan", True, True): (19.8, 0, 10.1),
    ("flux", False, False): 31,
    ("flux", True, False): 50.8,
    ("flux", False, True): 21.3,
    ("flux", True, True): 30.4,
}
# bytes that a layer at work holds without gradients; the key is (architecture, whether bfloat16)
FORWARD = {
    ("wan", False): (17.8, 7.7, 15.3),
    ("wan", True): (19, 1.4, 19.6),
    ("flux", False): 65,
    ("flux", True): 38,
}
DECODE = {
    "flux": 6.0,
    "wan": 52.0,
}  # numbers that decoding holds, a pixel (of a frame) and channel of the widest-resolution layer


class Sizes(NamedTuple):
    """latent: numbers of one sample. tokens, text: of one sample in the transformer. copies: 2 with classifier-free guidance.

    frame: pixels of one; frames: of one sample; tile: pixels of what is decoded at a time.
    """

    kind: str
    latent: int
    tokens: int
    text: int
    copies: int
    width: int
    ffn: int
    frame: int
    frames: int
    tile: int


def sizes(config: Config, p: Pipeline) -> Sizes:
    """What one sample is to the transformer."""
    g, t = config.generator, p.transformer
    width, text = (
        t["num_attention_heads"] * t["attention_head_dim"],
        g.max_sequence_length or p.text,
    )
    if p.class_name == "FluxPipeline":
        height, wide = g.height or p.vae["sample_size"], g.width or p.vae["sample_size"]
        latent = (
            t["in_channels"] // 4 * height * wide // 4 ** (len(p.vae["block_out_channels"]) - 1)
        )
        tile = min(height * wide, p.vae["sample_size"] ** 2) if g.vae_tiling else height * wide
        return Sizes(
            "flux",
            latent,
            latent // t["in_channels"],
            text,
            1,
            width,
            4 * width,
            height * wide,
            1,
            tile,
        )
    height, wide, frames = g.height or 480, g.width or 832, g.frames or 81
    places = (
        ((frames - 1) // p.vae["scale_factor_temporal"] + 1)
        * height
        * wide
        // p.vae["scale_factor_spatial"] ** 2
    )
    copies = 2 if (5.0 if g.guidance is None else g.guidance) > 1 else 1
    tile = min(height * wide, 256**2) if g.vae_tiling else height * wide  # AutoencoderKLWan's tiles
    return Sizes(
        "wan",
        p.vae["z_dim"] * places,
        places // math.prod(t["patch_size"]),
        text,
        copies,
        width,
        t["ffn_dim"],
        height * wide,
        frames,
        tile,
    )


def steps(config: Config) -> tuple[int, int]:
    """How many steps a rollout makes, and how many of them are trained."""
    s = config.sampling
    return s.steps, s.window or max(1, round(s.trained_share * (s.steps - 1)))


def rows(config: Config, processes: int) -> tuple[int, int]:
    """Samples an iteration of one process, and of one model call."""
    whole = config.groups * config.group_size // processes
    an_update = whole // config.optimiser.updates
    size = min(config.sampling.micro_batch or an_update, an_update)
    return whole, next(n for n in range(size, 0, -1) if an_update % n == 0)


def adapters(config: Config, p: Pipeline) -> int:
    """Parameters of one transformer's LoRA: rank x (in + out) of each attention projection, all of them width x width."""
    t, width = (
        p.transformer,
        p.transformer["num_attention_heads"] * p.transformer["attention_head_dim"],
    )
    layers = (
        t["num_layers"] * 8 + t.get("num_single_layers", 0) * 3
    )  # a full block has eight, FLUX's single one three
    return config.generator.lora_rank * 2 * width * layers


def update_activations(config: Config, p: Pipeline, batch: int) -> int:
    """Bytes of the forward and backward pass of one micro-batch beyond weights and gradients."""
    s, t, g = sizes(config, p), p.transformer, config.generator
    lora, half = (
        g.lora_rank > 0,
        config.precision == "bf16" or (g.lora_rank > 0 and g.dtype != "float32"),
    )
    count, kept, working = batch * s.copies, KEPT[s.kind, lora, half], WORKING[s.kind, lora, half]
    if s.kind == "flux":
        unit, blocks = (
            count * (s.tokens + s.text) * s.width,
            (t["num_layers"], t["num_single_layers"]),
        )
        every = unit * sum(layers * each for layers, each in zip(blocks, kept, strict=True))
        one, busy = (
            unit * (kept[1] if blocks[1] else kept[0]),
            unit * working,
        )  # the last block is when most is held
    else:
        units = count * s.tokens * s.width, count * s.tokens * s.ffn, count * s.text * s.width
        one, busy = (
            sum(a * b for a, b in zip(units, each, strict=True)) for each in (kept, working)
        )
        unit, blocks, every = units[0], (t["num_layers"],), one * t["num_layers"]
    stream = sum(blocks) * unit * (2 if half else 4)  # what checkpointing keeps: each block's input
    # autocast's copies of float32 weights: of trained ones it keeps all until the pass ends, of frozen ones what the backward pass needs
    casts = (
        2 * p.parts["transformer"].parameters if half and (not lora or g.dtype == "float32") else 0
    )
    if not g.gradient_checkpointing:
        return round(every + busy + casts)
    one_cast = casts / sum(blocks)
    return round(
        stream
        + max(one + busy + one_cast, _forward(s, batch, half) + (one_cast if lora else casts))
    )


def _forward(s: Sizes, batch: int, half: bool) -> float:
    count, each = batch * s.copies, FORWARD[s.kind, half]
    if s.kind == "flux":
        return count * (s.tokens + s.text) * s.width * each
    return count * (
        s.tokens * s.width * each[0] + s.tokens * s.ffn * each[1] + s.text * s.width * each[2]
    )


def sampling_activations(config: Config, p: Pipeline, batch: int) -> int:
    """Bytes of one model call without gradients beyond the weights, and of the noise that is drawn beforehand."""
    s, g = sizes(config, p), config.generator
    half = config.precision == "bf16" or g.dtype != "float32"
    casts = (
        2 * p.parts["transformer"].parameters
        if config.precision == "bf16" and not g.lora_rank
        else 0
    )
    return round(_forward(s, batch, half) + casts + 4 * batch * s.latent * steps(config)[0])


def decoding(config: Config, p: Pipeline, batch: int) -> int:
    """Bytes of decoding one micro-batch beyond the weights: inside the decoder, or of three copies of its pixels."""
    s = sizes(config, p)
    channels = p.vae["block_out_channels"][0] if s.kind == "flux" else p.vae["base_dim"]
    width = (
        4 if s.kind == "wan" or config.generator.dtype == "float32" else 2
    )  # Wan's stays float32
    return round(
        batch * max(DECODE[s.kind] * channels * s.tile * width, 3 * 3 * 4 * s.frame * s.frames)
    )


def memory(
    config: Config,
    p: Pipeline,
    rewards: int,
    prompts: int,
    processes: int = 1,
    sharded: bool = False,
) -> tuple[dict, dict, dict]:
    """Bytes of one process: (what is always on its device, what each phase adds to that, what the CPU holds), by part.

    rewards: bytes of the rewards that share the device. prompts: whose conditions are kept. sharded: by FSDP2 over the processes, with
    gradients exchanged in every backward pass; else every process has all. A device must hold the first and the largest of the second.
    Saving adds nothing: it gathers one tensor at a time, less than the gathered blocks, onto the CPU of the main process. Not counted
    there: the text encoders, which it alone keeps of several.
    """
    g, s, half = config.generator, sizes(config, p), 4 if config.generator.dtype == "float32" else 2
    whole, batch = rows(config, processes)
    experts = [name for name in p.parts if name.startswith("transformer")]
    lora, shards = g.lora_rank > 0, processes if sharded else 1
    encoded = (
        g.offload or processes > 1
    )  # all prompts at the start, after which the encoders leave the device
    blocks = (
        p.transformer["num_layers"] + p.transformer.get("num_single_layers", 0) // 2
    )  # FLUX's single blocks are half the size
    trained = len(experts) * (adapters(config, p) if lora else p.parts["transformer"].parameters)
    held = {
        name: (part.parameters - part.islands) * half + part.islands * 4
        for name, part in p.parts.items()
    }
    held["vae"] = p.parts["vae"].parameters * (
        4 if s.kind == "wan" else half
    )  # Wan's stays float32
    frozen = {name: held[name] if lora else 0 for name in experts}
    encoders = sum(size for name, size in held.items() if name.startswith("text_encoder"))
    buffers = 4 * whole * s.latent * (2 * steps(config)[1] + 1)
    wide = p.transformer.get("joint_attention_dim") or p.transformer.get("text_dim", 4096)
    of_prompt = s.text * wide * half * s.copies + (
        s.latent * 4 * 5 // 4 if p.class_name == "WanImageToVideoPipeline" else 0
    )
    always = {
        "trained weights": 4 * trained // shards,
        "gradients": 4 * trained // shards,
        "AdamW's moments": 8 * trained // shards,
        "averaged weights": 4 * trained // shards if config.optimiser.ema_decay else 0,
        "buckets of DDP": 4 * trained if processes > 1 and not sharded else 0,
        "gathered blocks": 2
        * (held["transformer"] if lora else 4 * p.parts["transformer"].parameters)
        // blocks
        if sharded
        else 0,
        "rewards": rewards,
        "conditions": of_prompt * (config.groups if encoded else prompts),
    }
    parts = {
        "encode": encoders,
        "sample": max(frozen.values()),
        "decode": held["vae"],
        "update": max(frozen.values()),
    }
    if not g.offload:
        always |= {
            "frozen transformers": sum(frozen.values()) // shards,
            "text encoders": 0 if encoded else encoders,
            "autoencoder": held["vae"],
            "rollout": buffers,
        }
        parts = dict.fromkeys(parts, 0) | ({"encode": encoders} if encoded else {})
    work = {
        "encode": 0,
        "sample": sampling_activations(config, p, batch),
        "decode": decoding(config, p, batch),
        "update": update_activations(config, p, batch),
    }
    host = (
        {"parked weights": sum(frozen.values()) + encoders + held["vae"], "rollout": buffers}
        if g.offload
        else {}
    )
    host |= (
        {"loading": sum(held[name] if lora else 4 * p.parts[name].parameters for name in experts)}
        if sharded
        else {}
    )
    return always, {name: parts[name] + work[name] for name in parts}, host


def flops(config: Config, p: Pipeline, processes: int = 1) -> float:
    """Floating-point operations of one iteration of one process: the transformer's, in rollout and updates.

    A trained step costs three passes, two if the weights are frozen (LoRA: no gradients of them), one more with checkpointing. Decoding,
    rewards and text encoders are not counted.
    """
    g, (made, trained) = config.generator, steps(config)
    passes = made + trained * config.optimiser.epochs * (
        3 - (g.lora_rank > 0) + g.gradient_checkpointing
    )
    return _pass(config, p) * rows(config, processes)[0] * passes


def flops_beside(
    config: Config, p: Pipeline, training: int, evaluation: int, processes: int = 1
) -> float:
    """Floating-point operations of the transformer in a whole run that are not its iterations', of all processes: evaluations and prior.

    training, evaluation: how many prompts there are of each. Processes share the evaluations, and each samples for an SFT prior, which
    is then kept: another run with it costs nothing more.
    """
    e = config.evaluation
    times = -(-config.iterations // (e.every or config.iterations)) + 1
    reference = (
        training * config.prior.samples * processes if config.prior.name.startswith("sft") else 0
    )
    return _pass(config, p) * e.steps * (times * evaluation * e.samples + reference)


def _pass(config: Config, p: Pipeline) -> float:
    """Operations of one sample's way through the transformer: 2 x weights x tokens, and 4 L^2 d a layer for attention."""
    s, t = sizes(config, p), p.transformer
    d, n = s.width, s.tokens
    if s.kind == "flux":
        n += s.text
        layer, layers = 24 * d * d * n + 4 * n * n * d, t["num_layers"] + t["num_single_layers"]
    else:
        matrices = (
            6 * d * d + 2 * d * s.ffn
        )  # of a token: self-attention's four, cross-attention's query and output, feed-forward's two
        layer, layers = (
            2 * n * matrices + 4 * s.text * d * d + 4 * n * (n + s.text) * d,
            t["num_layers"],
        )
    return float(layer * layers * s.copies)
