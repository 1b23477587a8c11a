"""Wan as a policy: text-to-video and image-to-video with classifier-free guidance.

The model is one transformer, or two experts for high and low noise.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from torch import Tensor

from bpgo.generators.lora import add_lora, save_lora
from bpgo.generators.lora_files import load_adapters
from bpgo.generators.offload import Placed
from bpgo.generators.saving import save_pipeline
from bpgo.generators.wan_checks import (
    check_guidance,
    check_parts,
    refuse_images,
    refuse_other_pipelines,
)
from bpgo.prompts import Prompt, pixels_of
from bpgo.tokenization import padded, refuse_empty, refuse_unknown_words

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
LORA_TARGETS = (*(f"attn1.{p}" for p in PROJECTIONS), *(f"attn2.{p}" for p in PROJECTIONS))


class WanPolicy(Placed):
    """A policy over a `WanPipeline` (text-to-video) or a `WanImageToVideoPipeline`.

    height, width: pixels, multiples of the autoencoder's factor times the patch. frames: 4k + 1. By
    default these are the pipeline's: 480, 832 and 81. guidance: the scale g of
    `v_u + g (v_c - v_u)`; 1 or less for v_c alone. guidance_2: that of the low-noise expert, by
    default the same. cfg_gradient: whether "both" terms of the guidance carry gradients, or only
    the "conditional" one (the values are the same). negative_prompt: the prompt of v_u.
    max_sequence_length: number of text tokens; by default that of the tokenizer, at most 512.

    Raises ValueError for other sizes, for other pipelines, and for pipelines that lack an expert.
    """

    encoders = ("text_encoder",)

    def __init__(
        self,
        pipeline,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        guidance: float = 5.0,
        guidance_2: float | None = None,
        cfg_gradient: str = "both",
        negative_prompt: str = "",
        max_sequence_length: int | None = None,
    ):
        refuse_other_pipelines(pipeline)
        check_guidance(pipeline, guidance, guidance_2, cfg_gradient)
        defaults = inspect.signature(type(pipeline).__call__).parameters
        self.height = defaults["height"].default if height is None else height
        self.width = defaults["width"].default if width is None else width
        self.frames = defaults["num_frames"].default if frames is None else frames
        self.pipeline = pipeline
        self.takes_images = type(pipeline).__name__ == "WanImageToVideoPipeline"
        self.guidance = guidance
        self.guidance_2 = guidance if guidance_2 is None else guidance_2
        self.cfg_gradient, self.negative_prompt = cfg_gradient, negative_prompt
        longest = pipeline.tokenizer.model_max_length
        self.max_sequence_length = max_sequence_length or min(512, longest)
        self.config = pipeline.transformer.config
        self.modules = {"transformer": pipeline.transformer}  # those that are trained, by name
        if pipeline.transformer_2 is not None:
            self.modules["transformer_2"] = pipeline.transformer_2
        for part in (*self.modules.values(), pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        self.latent_shape()  # checks the sizes

    @classmethod
    def load(
        cls, path, dtype: torch.dtype | str = torch.float32, device: str = "cpu", **options
    ) -> WanPolicy:
        """The policy of a folder or hub id.

        dtype: of the weights, "float32", "bfloat16" or a torch.dtype. The autoencoder, and the
        layers that the transformer names, stay float32. options: as for `WanPolicy`.
        Raises FileNotFoundError if a part that the folder's model_index.json names is missing,
        ValueError for a text encoder with an embedding of zeros.
        """
        from diffusers import DiffusionPipeline

        check_parts(Path(path))
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        dtypes = {"vae": torch.float32, "default": dtype}
        pipeline = DiffusionPipeline.from_pretrained(path, dtype=dtypes)
        policy = cls(pipeline.to(device), **options)
        if not pipeline.text_encoder.encoder.embed_tokens.weight.any():  # transformers issue 43992
            raise ValueError(
                f"{path}: the text encoder's embedding is all zeros. Install a newer transformers, "
                f"or copy text_encoder again"
            )
        return policy

    def latent_shape(
        self, height: int | None = None, width: int | None = None, frames: int | None = None
    ) -> tuple[int, int, int, int]:
        """The shape (channels, T, h, w) of one video's latent.

        Raises ValueError for a size or a number of frames that is not allowed.
        """
        height, width, frames = height or self.height, width or self.width, frames or self.frames
        space = self.pipeline.vae_scale_factor_spatial
        time = self.pipeline.vae_scale_factor_temporal
        _, patch_height, patch_width = self.config.patch_size
        for name, side, patch in (("height", height, patch_height), ("width", width, patch_width)):
            if side <= 0 or side % (space * patch):
                raise ValueError(
                    f"{name} must be a positive multiple of {space * patch} pixels, not {side}"
                )
        if frames <= 0 or (frames - 1) % time:
            raise ValueError(
                f"frames must be {time}k+1, such as {2 * time + 1} or {20 * time + 1}, not {frames}"
            )
        channels = self.pipeline.vae.config.z_dim
        return channels, (frames - 1) // time + 1, height // space, width // space

    @torch.no_grad()
    def encode(self, prompts: list[str], images=None) -> dict[str, Tensor]:
        """Encode prompts, and for image-to-video one image per prompt; one row per prompt.

        images: PIL images of width x height (converted by `bpgo.images.as_rgb`), or a float tensor
        (B, 3, H, W) in [0, 1].
        Returns `text` (B, L, D), which is zero after the end of each prompt. With guidance there is
        also `negative` (B, L, D), and for image-to-video `image` (B, 4 + C, T, h, w). Raises
        ValueError as `check` does.
        """
        self.check(prompts, images)
        cond = self.embed(prompts)
        if self.guidance > 1:
            cond["negative"] = self.embed([self.negative_prompt])["text"].expand_as(cond["text"])
        if self.takes_images:
            # One by one, because 81 frames of several videos may not fit with the transformers.
            rows = [self.condition(images[i : i + 1]) for i in range(len(images))]
            cond["image"] = torch.cat(rows)
        return cond

    def check(self, prompts: list[str], images=None) -> None:
        """Check prompts and images without encoding them, which is cheap.

        Raises ValueError for an empty list or prompt, for words that the tokenizer does not know
        (see `refuse_unknown_words`), and for images that are missing, not expected, or do not fit.
        """
        refuse_empty(prompts, clean)
        negative = Prompt(self.negative_prompt, where="the negative prompt")
        refuse_unknown_words(self.pipeline.tokenizer, [*prompts, negative], clean)
        if not self.takes_images:
            if images is not None:
                raise ValueError("this Wan is text-to-video: it takes no images")
            return
        count = 0 if images is None else len(images)
        if count != len(prompts):
            raise ValueError(
                f"image-to-video needs one image for each of the {len(prompts)} prompts, "
                f"not {count}"
            )
        refuse_images(images, self.width, self.height, prompts)

    def embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """The `text` of `encode`, without checks and with gradients, for training the encoder."""
        texts = [clean(prompt) for prompt in prompts]
        tokens = padded(self.pipeline.tokenizer, texts, self.max_sequence_length)
        self.at_work(*self.encoders)
        mask = tokens.attention_mask.to(self.device)
        out = self.pipeline.text_encoder(tokens.input_ids.to(self.device), mask)
        return {"text": out.last_hidden_state.masked_fill(mask[..., None] == 0, 0)}

    @torch.no_grad()
    def condition(self, images) -> Tensor:
        """First frames, as `encode` takes them, to (B, 4 + C, T, h, w) float32.

        The first four channels are 1 at the frames that are given. The others are the normalised
        latent of the first frame followed by black.
        """
        vae = self.pipeline.vae
        pixels = pixels_of(images)
        self.at_work("vae")
        first = 2 * pixels.to(self.device, vae.dtype) - 1
        video = first.new_zeros(*first.shape[:2], self.frames, *first.shape[2:])
        video[:, :, 0] = first
        mean, std = self._latent_statistics()
        latent = ((vae.encode(video).latent_dist.mode() - mean) / std).float()
        time = self.pipeline.vae_scale_factor_temporal
        mask = latent.new_zeros(len(latent), time, *latent.shape[2:])
        mask[:, :, 0] = 1
        return torch.cat([mask, latent], 1)

    def expert(self, sigma: float) -> str:
        """The name of the module that predicts at this noise level.

        It is "transformer" from the boundary up, and "transformer_2" below.
        """
        steps = self.pipeline.scheduler.config.num_train_timesteps
        boundary = self.pipeline.config.boundary_ratio or 0
        # Rounded as in the pipelines, so that 0.9 in float32 counts as the boundary 0.9.
        time = torch.tensor(sigma, dtype=torch.float32) * steps
        return "transformer" if time >= boundary * steps else "transformer_2"

    def velocity(self, x: Tensor, sigma: Tensor | float, cond: dict[str, Tensor]) -> Tensor:
        """Predicted `noise - data`, float32 and of the shape of x, (B, C, T, h, w).

        sigma: a number in [0, 1], or (B,) of them. cond: from `encode`.
        """
        if len(self.modules) == 1:
            return self._velocity("transformer", x, sigma, cond)
        if not isinstance(sigma, Tensor) or sigma.ndim == 0:
            return self._velocity(self.expert(float(sigma)), x, sigma, cond)
        experts = [self.expert(s) for s in sigma.tolist()]
        v = torch.empty_like(x, dtype=torch.float32)
        for name in dict.fromkeys(experts):
            chosen = [i for i, expert in enumerate(experts) if expert == name]
            rows = torch.tensor(chosen, device=x.device)
            part = {key: value[rows] for key, value in cond.items()}
            v[rows] = self._velocity(name, x[rows], sigma.to(x.device)[rows], part)
        return v

    def _velocity(
        self, name: str, x: Tensor, sigma: Tensor | float, cond: dict[str, Tensor]
    ) -> Tensor:
        """`velocity`, predicted by the module of this name. The unconditional rows come first."""
        if not isinstance(sigma, Tensor):
            # Filled on the device, because a copy from the CPU would wait for the GPU.
            sigma = torch.full((), sigma, device=x.device)
        steps = self.pipeline.scheduler.config.num_train_timesteps
        time = sigma.to(x.device, torch.float32).expand(len(x)) * steps
        self.at_work(name)
        inputs = torch.cat([x, cond["image"]], 1) if self.takes_images else x
        text = cond["text"]
        # As in the pipelines, `guidance` decides for both experts whether there is guidance.
        guided = self.guidance > 1
        if guided:
            inputs, time = torch.cat([inputs, inputs]), torch.cat([time, time])
            text = torch.cat([cond["negative"], text])
        dtype = getattr(self.pipeline, name).dtype
        v = self.modules[name](
            hidden_states=inputs.to(dtype),
            timestep=time,
            encoder_hidden_states=text.to(dtype),
            return_dict=False,
        )[0].float()
        if not guided:
            return v
        unconditional, conditional = v.chunk(2)
        if self.cfg_gradient == "conditional":
            unconditional = unconditional.detach()
        scale = self.guidance_2 if name == "transformer_2" else self.guidance
        return unconditional + scale * (conditional - unconditional)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Latents (B, C, T, h, w) to pixels (B, F, 3, H, W) in [0, 1], float32."""
        vae = self.pipeline.vae
        self.at_work("vae")
        mean, std = self._latent_statistics()
        video = vae.decode(x.to(self.device, vae.dtype) * std + mean, return_dict=False)[0]
        return (video.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std of the latents, each (1, C, 1, 1, 1)."""
        vae = self.pipeline.vae
        statistics = torch.tensor(
            [vae.config.latents_mean, vae.config.latents_std], device=self.device, dtype=vae.dtype
        )
        mean, std = statistics.view(2, 1, -1, 1, 1, 1)
        return mean, std

    def add_lora(self, rank: int, alpha: float) -> None:
        """Train low-rank adapters on the attention projections of each expert, not the weights."""
        for module in self.modules.values():
            add_lora(module, rank, alpha, LORA_TARGETS)

    def load_lora(self, path_or_hub_id: str | Path) -> None:
        """Train the adapters of a file, folder or hub id further, instead of the weights.

        Two experts need a folder or hub id with the adapters of both, as `save` writes them. Raises
        ValueError or OSError as `load_adapters` does.
        """
        load_adapters(self.modules, path_or_hub_id)

    def save(self, folder: Path, lora: bool) -> None:
        """Write a folder that plain diffusers can load.

        lora: the adapters with their alpha, or else the whole pipeline (for `from_pretrained`).
        `load_lora_weights(folder)` loads the adapters. Those of the low-noise expert are in a
        separate folder, as diffusers requires, and are loaded by
        `load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)`.
        """
        if not lora:
            save_pipeline(self.pipeline, folder)
            return
        for name in self.modules:
            place = Path(folder) if name == "transformer" else Path(folder) / name
            save_lora(self.pipeline, place, name)


def clean(prompt: str) -> str:
    """A prompt as the pipelines clean it: repaired Unicode, no HTML entities, single spaces."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    return prompt_clean(prompt)
