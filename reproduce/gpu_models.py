"""The published architectures with random weights, made on the device, for `gpu_bench.py`.

The conditions are random too, in place of the text encoders. A run needs those only before its
first iteration.
"""

import torch

from bpgo.generators.flux import FluxPolicy
from bpgo.generators.wan import WanPolicy
from bpgo.preflight.published import FLOAT32_LAYERS
from bpgo.preflight.sizes import pipeline_of

POLICY = "reproduce.gpu_models:random_policy"
# Values in FLUX's published config.json files on which memory does not depend.
FLUX_TRANSFORMER = {"guidance_embeds": True, "pooled_projection_dim": 768}
FLUX_VAE = {
    "layers_per_block": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
WAN_BOUNDARY = 0.9  # boundary_ratio of Wan2.2-I2V-A14B


def sizes_of(path):
    """`preflight.sizes.pipeline_of` without text encoders.

    `transformer` and `vae` have everything that diffusers needs to build them.
    """
    sizes = pipeline_of(path)
    parts = {name: p for name, p in sizes.parts.items() if not name.startswith("text_encoder")}
    if sizes.class_name != "FluxPipeline":
        return sizes._replace(parts=parts)
    transformer, vae = FLUX_TRANSFORMER | sizes.transformer, FLUX_VAE | sizes.vae
    return sizes._replace(parts=parts, transformer=transformer, vae=vae)


def random_policy(path, dtype, device, **options):
    """A policy of the pipeline at this path, as `load_generator` calls it.

    The weights are made on the GPU, if there is one, and then moved to `device`.
    """
    import diffusers

    sizes = sizes_of(path)
    is_flux = sizes.class_name == "FluxPipeline"
    dtype = getattr(torch, dtype)
    fast = "cuda" if torch.cuda.is_available() else "cpu"
    parts = {name: random_part(name, sizes, dtype, fast).to(device) for name in sizes.parts}
    tokenizer = NoTokenizer(sizes.text_tokens)
    parts |= {"tokenizer": tokenizer, "text_encoder": torch.nn.Identity()}
    if is_flux:
        parts |= {"tokenizer_2": tokenizer, "text_encoder_2": torch.nn.Identity()}
    if "transformer_2" in sizes.parts:
        parts["boundary_ratio"] = WAN_BOUNDARY
    if sizes.class_name == "WanImageToVideoPipeline":
        parts |= {"image_encoder": None, "image_processor": None}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = getattr(diffusers, sizes.class_name)(**parts, scheduler=scheduler)
    policy = (RandomFlux if is_flux else RandomWan)(pipeline, **options)
    policy.condition_dtype = dtype
    return policy


def random_part(name, sizes, dtype, device):
    """A transformer or the autoencoder with the initial weights of its class.

    They have the precisions that `from_pretrained` gives them.
    """
    import diffusers

    is_flux, is_vae = sizes.class_name == "FluxPipeline", name == "vae"
    if is_vae:
        kind = "AutoencoderKL" if is_flux else "AutoencoderKLWan"
    else:
        kind = "FluxTransformer2DModel" if is_flux else "WanTransformer3DModel"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if kind == "AutoencoderKLWan" else dtype)
    try:
        with torch.device(device):
            settings = sizes.vae if is_vae else sizes.transformer
            module = getattr(diffusers, kind).from_config(settings)
    finally:
        torch.set_default_dtype(before)
    float32_layers = FLOAT32_LAYERS.get(kind, frozenset())
    for place, weights in module.named_parameters():
        if float32_layers.intersection(place.split(".")):
            weights.data = weights.data.float()
    return module


class NoTokenizer:
    """A stand-in for a tokenizer. A policy reads only its length limit."""

    def __init__(self, model_max_length):
        self.model_max_length = model_max_length


class RandomConditions:
    """A policy without text encoders, whose `encode` returns random conditions."""

    encoders = ()
    condition_dtype = torch.float32

    def check(self, prompts, images=None):
        pass

    def draw(self, *shape):
        """Random numbers in the precision of the text encoders."""
        return torch.randn(shape, device=self.device, dtype=self.condition_dtype)


class RandomFlux(RandomConditions, FluxPolicy):
    """FLUX without text encoders."""

    def encode(self, prompts, images=None):
        count, length = len(prompts), self.max_sequence_length
        return {
            "text": self.draw(count, length, self.config.joint_attention_dim),
            "pooled": self.draw(count, self.config.pooled_projection_dim),
        }


class RandomWan(RandomConditions, WanPolicy):
    """Wan without a text encoder."""

    def encode(self, prompts, images=None):
        count, length = len(prompts), self.max_sequence_length
        cond = {"text": self.draw(count, length, self.config.text_dim)}
        if self.guidance > 1:
            cond["negative"] = self.draw(count, length, self.config.text_dim)
        if self.takes_images:
            channels, *places = self.latent_shape()
            shape = count, self.config.in_channels - channels, *places
            cond["image"] = torch.randn(shape, device=self.device)
        return cond
