"""Wan as a policy: text-to-video and image-to-video with true classifier-free guidance, by one transformer or by two experts."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import torch
from torch import Tensor

from bpgo.generators.lora import add_lora, save_lora
from bpgo.generators.offload import Placed
from bpgo.prompts import pixels_of
from bpgo.tokenization import refuse_unknown_words

LORA_TARGETS = tuple(
    f"{attention}.{layer}"
    for attention in ("attn1", "attn2")
    for layer in ("to_q", "to_k", "to_v", "to_out.0")
)


class WanPolicy(Placed):
    """A `WanPipeline` (text-to-video) or `WanImageToVideoPipeline` seen as a policy.

    height, width: pixels, multiples of the autoencoder's factor times the patch; frames: 4k + 1; by default the pipeline's own (480, 832,
    81). guidance: the scale g of `v_u + g (v_c - v_u)`, 1 or less for v_c alone; guidance_2: the low-noise expert's, by default the same.
    cfg_gradient: "both" halves of the guidance carry gradients, or only the "conditional" one (same values). negative_prompt: what v_u is
    given. max_sequence_length: text tokens; by default what the tokenizer says, at most 512.
    Raises ValueError for sizes that do not divide, and for pipelines that are neither of the two or lack an expert.
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
        defaults = inspect.signature(type(pipeline).__call__).parameters
        self.height = defaults["height"].default if height is None else height
        self.width = defaults["width"].default if width is None else width
        self.frames = defaults["num_frames"].default if frames is None else frames
        if cfg_gradient not in ("both", "conditional"):
            raise ValueError(f'cfg_gradient must be "both" or "conditional", not {cfg_gradient!r}')
        if guidance_2 is not None and (
            pipeline.transformer_2 is None or guidance <= 1 < guidance_2
        ):
            raise ValueError(
                f"guidance_2={guidance_2} would do nothing: it needs a second expert, and guidance above 1, not {guidance}"
            )
        self.pipeline = pipeline
        self.takes_images = type(pipeline).__name__ == "WanImageToVideoPipeline"
        self.guidance, self.guidance_2 = guidance, guidance if guidance_2 is None else guidance_2
        self.cfg_gradient, self.negative_prompt = cfg_gradient, negative_prompt
        self.max_sequence_length = max_sequence_length or min(
            512, pipeline.tokenizer.model_max_length
        )
        self.config = pipeline.transformer.config
        names = (
            ("transformer",) if pipeline.transformer_2 is None else ("transformer", "transformer_2")
        )
        self.modules = {
            name: getattr(pipeline, name) for name in names
        }  # what is trained, by its name in the pipeline
        for part in (*self.modules.values(), pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        self.latent_shape()  # refuses sizes that do not divide

    @classmethod
    def load(
        cls, path, dtype: torch.dtype | str = torch.float32, device: str = "cpu", **options
    ) -> WanPolicy:
        """From a folder or hub id. dtype: of the weights ("float32", "bfloat16" or a torch.dtype).

        The autoencoder, and the layers that the transformer names, stay float32. Raises FileNotFoundError for a part that the folder's
        model_index.json names and the folder lacks, ValueError for a text encoder whose embedding is all zeros.
        """
        from diffusers import DiffusionPipeline

        if (index := Path(path) / "model_index.json").is_file():
            for name, entry in json.loads(index.read_text()).items():
                if isinstance(entry, list) and all(entry) and not (index.parent / name).is_dir():
                    raise FileNotFoundError(
                        f"{index} names {name} ({entry[1]}), and there is no folder {index.parent / name}: copy it too"
                    )
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        pipeline = DiffusionPipeline.from_pretrained(
            path, dtype={"vae": torch.float32, "default": dtype}
        )
        policy = cls(pipeline.to(device), **options)
        if not pipeline.text_encoder.encoder.embed_tokens.weight.any():  # transformers issue 43992
            raise ValueError(
                f"{path}: the text encoder's embedding is all zeros. Install a newer transformers, or copy text_encoder again"
            )
        return policy

    def latent_shape(
        self, height: int | None = None, width: int | None = None, frames: int | None = None
    ) -> tuple[int, int, int, int]:
        """(channels, T, h, w) of one video's latent. Raises ValueError for a size or a frame count that does not divide."""
        height, width, frames = height or self.height, width or self.width, frames or self.frames
        space, time = (
            self.pipeline.vae_scale_factor_spatial,
            self.pipeline.vae_scale_factor_temporal,
        )
        for name, side, patch in (
            ("height", height, self.config.patch_size[1]),
            ("width", width, self.config.patch_size[2]),
        ):
            if side <= 0 or side % (space * patch):
                raise ValueError(
                    f"{name} must be a positive multiple of {space * patch} pixels, not {side}"
                )
        if frames <= 0 or (frames - 1) % time:
            raise ValueError(
                f"frames must be {time}k+1, such as {2 * time + 1} or {20 * time + 1}, not {frames}"
            )
        return (
            self.pipeline.vae.config.z_dim,
            (frames - 1) // time + 1,
            height // space,
            width // space,
        )

    @torch.no_grad()
    def encode(self, prompts: list[str], images=None) -> dict[str, Tensor]:
        """Prompts, and for image-to-video as many images, to conditions, one row each.

        `text` (B, L, D), zero past each prompt's end; with guidance `negative` (B, L, D); for image-to-video `image` (B, 4 + C, T, h, w).
        images: RGB PIL images of width x height, or a float tensor (B, 3, H, W) in [0, 1]. Raises ValueError for what `check` refuses.
        """
        self.check(prompts, images)
        cond = self.embed(prompts)
        if self.guidance > 1:
            cond["negative"] = self.embed([self.negative_prompt])["text"].expand_as(cond["text"])
        if (
            self.takes_images
        ):  # one by one: 81 frames of several videos at once would not fit beside the transformers
            cond["image"] = torch.cat(
                [self.condition(images[i : i + 1]) for i in range(len(images))]
            )
        return cond

    def check(self, prompts: list[str], images=None) -> None:
        """Raise ValueError, naming the first, for prompts or images that `encode` would refuse. Cheap: nothing is encoded."""
        if not prompts or not all(isinstance(p, str) and cleaned([p])[0] for p in prompts):
            raise ValueError(
                f"prompts must be a non-empty list of non-empty strings, not {prompts!r}"
            )
        refuse_unknown_words(self.pipeline.tokenizer, cleaned([*prompts, self.negative_prompt]))
        if not self.takes_images and images is not None:
            raise ValueError("this Wan is text-to-video: it takes no images")
        if self.takes_images:
            if (given := 0 if images is None else len(images)) != len(prompts):
                raise ValueError(
                    f"image-to-video needs one image for each of the {len(prompts)} prompts, not {given}"
                )
            refuse_images(images, self.width, self.height, prompts)

    def embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """The `text` of `encode` without its checks and with gradients into the text encoder, for training this."""
        encoder, padding = (
            self.pipeline.text_encoder,
            dict(padding="max_length", max_length=self.max_sequence_length, truncation=True),
        )
        tokens = self.pipeline.tokenizer(cleaned(prompts), **padding, return_tensors="pt")
        self.at_work(*self.encoders)
        mask = tokens.attention_mask.to(self.device)
        text = encoder(tokens.input_ids.to(self.device), mask).last_hidden_state
        return {"text": text.masked_fill(mask[..., None] == 0, 0)}

    @torch.no_grad()
    def condition(self, images) -> Tensor:
        """First frames, as `encode` takes them, to (B, 4 + C, T, h, w) float32: which frames are given, and their latent, normalised."""
        vae = self.pipeline.vae
        pixels = pixels_of(images)
        self.at_work("vae")
        first = 2 * pixels.to(self.device, vae.dtype) - 1
        video = first.new_zeros(*first.shape[:2], self.frames, *first.shape[2:])
        video[:, :, 0] = first
        mean, std = self._latent_statistics()
        latent = ((vae.encode(video).latent_dist.mode() - mean) / std).float()
        mask = latent.new_zeros(
            len(latent), self.pipeline.vae_scale_factor_temporal, *latent.shape[2:]
        )
        mask[:, :, 0] = 1
        return torch.cat([mask, latent], 1)

    def expert(self, sigma: float) -> str:
        """The name of the module that predicts at this noise level: "transformer" from the boundary up, else "transformer_2"."""
        steps, boundary = (
            self.pipeline.scheduler.config.num_train_timesteps,
            self.pipeline.config.boundary_ratio or 0,
        )
        time = (
            torch.tensor(sigma, dtype=torch.float32) * steps
        )  # rounded as the pipelines round it: 0.9 may be the boundary itself
        return "transformer" if time >= boundary * steps else "transformer_2"

    def velocity(self, x: Tensor, sigma: Tensor | float, cond: dict[str, Tensor]) -> Tensor:
        """Predicted `noise - data`, same shape as x (B, C, T, h, w), float32. sigma in [0, 1]: a number or (B,)."""
        if len(self.modules) == 1:
            return self._velocity("transformer", x, sigma, cond)
        if not isinstance(sigma, Tensor) or sigma.ndim == 0:
            return self._velocity(self.expert(float(sigma)), x, sigma, cond)
        experts = [self.expert(s) for s in sigma.tolist()]
        v = torch.empty_like(x, dtype=torch.float32)
        for name in dict.fromkeys(experts):
            rows = torch.tensor(
                [i for i, other in enumerate(experts) if other == name], device=x.device
            )
            v[rows] = self._velocity(
                name,
                x[rows],
                sigma.to(x.device)[rows],
                {key: value[rows] for key, value in cond.items()},
            )
        return v

    def _velocity(
        self, name: str, x: Tensor, sigma: Tensor | float, cond: dict[str, Tensor]
    ) -> Tensor:
        """`velocity` by the module of this name. The unconditional rows come first."""
        dtype, scale = (
            getattr(self.pipeline, name).dtype,
            self.guidance_2 if name == "transformer_2" else self.guidance,
        )
        if not isinstance(sigma, Tensor):  # filled on the device: a copy to it would wait for it
            sigma = torch.full((), sigma, device=x.device)
        time = (
            sigma.to(x.device, torch.float32).expand(len(x))
            * self.pipeline.scheduler.config.num_train_timesteps
        )
        self.at_work(name)
        inputs, text = torch.cat([x, cond["image"]], 1) if self.takes_images else x, cond["text"]
        if (
            self.guidance > 1
        ):  # as the pipelines: whether there is guidance is one question for both experts
            inputs, time, text = (
                torch.cat([inputs, inputs]),
                torch.cat([time, time]),
                torch.cat([cond["negative"], text]),
            )
        given = dict(
            hidden_states=inputs.to(dtype), timestep=time, encoder_hidden_states=text.to(dtype)
        )
        v = self.modules[name](**given, return_dict=False)[0].float()
        if self.guidance > 1:
            unconditional, conditional = v.chunk(2)
            if self.cfg_gradient == "conditional":
                unconditional = unconditional.detach()
            v = unconditional + scale * (conditional - unconditional)
        return v

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """(B, C, T, h, w) latents to (B, F, 3, H, W) pixels in [0, 1], float32."""
        vae = self.pipeline.vae
        self.at_work("vae")
        mean, std = self._latent_statistics()
        video = vae.decode(x.to(self.device, vae.dtype) * std + mean, return_dict=False)[0]
        return (video.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        statistics = torch.tensor(
            [vae.config.latents_mean, vae.config.latents_std], device=self.device, dtype=vae.dtype
        )
        return tuple(statistics.view(2, 1, -1, 1, 1, 1))

    def add_lora(self, rank: int, alpha: float) -> None:
        """Train low-rank adapters on the attention projections instead of the weights: each expert its own."""
        for module in self.modules.values():
            add_lora(module, rank, alpha, LORA_TARGETS)

    def save(self, folder: Path, lora: bool) -> None:
        """Write what plain diffusers reads: the pipeline (`from_pretrained`), or LoRA weights with their alpha.

        These by `load_lora_weights(folder)`; the low-noise expert's by `load_lora_weights(folder / "transformer_2",
        load_into_transformer_2=True)`, which is how diffusers keeps the two apart.
        """
        if not lora:
            self.pipeline.save_pretrained(folder)
        for name in self.modules if lora else ():
            save_lora(self.pipeline, Path(folder) / ("" if name == "transformer" else name), name)


def cleaned(prompts: list[str]) -> list[str]:
    """What the pipelines make of prompts: mended unicode, no HTML entities, single spaces."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    return [prompt_clean(prompt) for prompt in prompts]


def refuse_other_pipelines(pipeline) -> None:
    """Raise ValueError for a pipeline that `WanPolicy` would not run as published."""
    name, config = type(pipeline).__name__, pipeline.config
    if name not in ("WanPipeline", "WanImageToVideoPipeline"):
        raise ValueError(f"{name} is no WanPipeline or WanImageToVideoPipeline")
    if config.expand_timesteps:
        raise ValueError(
            "expand_timesteps (Wan2.2-TI2V-5B) is not supported: take Wan2.1-T2V, Wan2.2-T2V-A14B or Wan2.2-I2V-A14B"
        )
    if pipeline.transformer is None:
        raise ValueError("the pipeline has no transformer (for two experts, the one of high noise)")
    boundary, second = config.boundary_ratio, pipeline.transformer_2
    if (boundary is None) != (second is None):
        has, lacks = (
            ("transformer_2", "boundary_ratio")
            if boundary is None
            else (f"boundary_ratio {boundary}", "transformer_2")
        )
        raise ValueError(
            f"the pipeline's model_index.json has {has} but no {lacks}: two experts need both, one needs neither"
        )
    if boundary is not None and not 0 < boundary < 1:
        raise ValueError(
            f"boundary_ratio in the pipeline's model_index.json must lie between 0 and 1, not {boundary}"
        )
    if (
        getattr(pipeline, "image_encoder", None) is not None
        or pipeline.transformer.config.image_dim is not None
    ):
        raise ValueError(
            "image-to-video with an image encoder (Wan2.1-I2V) is not supported: take Wan2.2-I2V-A14B"
        )
    latent = pipeline.vae.config.z_dim
    expected = latent if name == "WanPipeline" else 2 * latent + pipeline.vae_scale_factor_temporal
    for part in (pipeline.transformer, second):
        if part is not None and part.config.in_channels != expected:
            raise ValueError(
                f"a {name} around {latent} latent channels needs in_channels {expected}, not {part.config.in_channels}"
            )


def refuse_images(images, width: int, height: int, prompts: list[str]) -> None:
    """Raise ValueError, with the first prompt, for images that are no RGB PIL images of this size and no float (B, 3, H, W) in [0, 1]."""
    tensor = isinstance(images, Tensor)
    if tensor and (images.shape[1:] != (3, height, width) or not images.is_floating_point()):
        raise ValueError(
            f"images must be float (B, 3, {height}, {width}), not {images.dtype} {tuple(images.shape)}"
        )
    if tensor and not (images.amin() >= 0 and images.amax() <= 1):
        raise ValueError(
            f"images must lie in [0, 1], not [{images.amin():g}, {images.amax():g}]: divide by 255, or clamp"
        )
    for i, image in enumerate(() if tensor else images):
        which = f"prompt {prompts[i]!r}: image {i}"
        if not hasattr(image, "mode"):
            raise ValueError(
                f"{which} is a {type(image).__name__}, not a PIL image: open it with PIL.Image.open"
            )
        if image.mode != "RGB":
            raise ValueError(f'{which} has mode {image.mode}, not RGB: use image.convert("RGB")')
        if image.size != (width, height):
            raise ValueError(
                f"{which} is {image.size[0]} x {image.size[1]} pixels, not {width} x {height}: "
                f"use image.resize(({width}, {height})), or another height and width"
            )
