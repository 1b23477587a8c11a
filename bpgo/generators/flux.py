"""FLUX as a policy: text-to-image with a guidance embedding. One file for the tiny pipeline and for FLUX.1-dev."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bpgo.generators.lora import add_lora, save_lora
from bpgo.generators.offload import Placed
from bpgo.tokenization import refuse_unknown_words

LORA_TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)


class FluxPolicy(Placed):
    """A `FluxPipeline` seen as a policy.

    height, width: pixels, multiples of twice the autoencoder's factor; by default the autoencoder's own. guidance: the distilled
    guidance scale, embedded if the transformer has `guidance_embeds` and unused otherwise. max_sequence_length: T5 tokens; by
    default what the tokenizer says, at most 512. Padding is encoded and attended to, as the published pipeline does.
    """

    encoders = ("text_encoder", "text_encoder_2")

    def __init__(
        self,
        pipeline,
        height: int | None = None,
        width: int | None = None,
        guidance: float = 3.5,
        max_sequence_length: int | None = None,
    ):
        height, width = (
            pipeline.vae.config.sample_size if side is None else side for side in (height, width)
        )
        multiple = 2 * pipeline.vae_scale_factor
        if height <= 0 or width <= 0 or height % multiple or width % multiple:
            raise ValueError(
                f"height and width must be positive multiples of {multiple} pixels, not {height} x {width}"
            )
        self.pipeline = pipeline
        self.height, self.width, self.guidance = height, width, guidance
        self.max_sequence_length = max_sequence_length or min(
            512, pipeline.tokenizer_2.model_max_length
        )
        self.config = pipeline.transformer.config
        for part in (
            pipeline.transformer,
            pipeline.vae,
            pipeline.text_encoder,
            pipeline.text_encoder_2,
        ):
            part.requires_grad_(False).eval()
        self.modules = {
            "transformer": pipeline.transformer
        }  # what is trained, by its name in the pipeline

    @classmethod
    def load(
        cls, path, dtype: torch.dtype | str = torch.float32, device: str = "cpu", **options
    ) -> FluxPolicy:
        """From a folder or hub id. dtype: of the weights ("float32", "bfloat16" or a torch.dtype)."""
        from diffusers import FluxPipeline

        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return cls(FluxPipeline.from_pretrained(path, dtype=dtype).to(device), **options)

    def latent_shape(
        self, height: int | None = None, width: int | None = None, frames: int = 1
    ) -> tuple[int, int, int]:
        """(channels, h, w) of one picture's latent, unpacked."""
        if frames != 1:
            raise ValueError(f"FLUX makes pictures: frames must be 1, not {frames}")
        factor = self.pipeline.vae_scale_factor
        return (
            self.config.in_channels // 4,
            (height or self.height) // factor,
            (width or self.width) // factor,
        )

    @torch.no_grad()
    def encode(self, prompts: list[str], images=None) -> dict[str, Tensor]:
        """Prompts to conditions, one row each: `text` (B, L, D) from T5 and `pooled` (B, P) from CLIP.

        Raises ValueError for an empty list, for words outside the tokenizer's, and for images (FLUX takes none).
        """
        self.check(prompts, images)
        return self.embed(prompts)

    def check(self, prompts: list[str], images=None) -> None:
        """Raise ValueError, naming the first, for what `encode` would refuse. Cheap: nothing is encoded."""
        if images is not None:
            raise ValueError("FLUX is text-to-image: it takes no images")
        if not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise ValueError(
                f"prompts must be a non-empty list of non-empty strings, not {prompts!r}"
            )
        refuse_unknown_words(self.pipeline.tokenizer_2, prompts)

    def embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`encode` without its checks and with gradients into the text encoders, for training these."""
        p = self.pipeline
        ids = [
            tokenizer(
                prompts,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer, length in (
                (p.tokenizer_2, self.max_sequence_length),
                (p.tokenizer, p.tokenizer_max_length),
            )
        ]
        self.at_work(*self.encoders)
        text = p.text_encoder_2(ids[0].to(self.device))[0]
        pooled = p.text_encoder(ids[1].to(self.device)).pooler_output
        return {"text": text, "pooled": pooled}

    def velocity(self, x: Tensor, sigma: Tensor | float, cond: dict[str, Tensor]) -> Tensor:
        """Predicted `noise - data`, same shape as x (B, C, h, w), float32. sigma in [0, 1]: a number or (B,)."""
        self.at_work("transformer")
        transformer = self.modules["transformer"]
        dtype = self.pipeline.transformer.dtype
        batch, channels, height, width = x.shape
        packed = (
            x.unflatten(3, (-1, 2))
            .unflatten(2, (-1, 2))
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(batch, -1, 4 * channels)
        )
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(batch)
        rows, columns = torch.meshgrid(
            torch.arange(height // 2), torch.arange(width // 2), indexing="ij"
        )
        places = (
            torch.stack([torch.zeros_like(rows), rows, columns], -1)
            .reshape(-1, 3)
            .to(x.device, dtype)
        )
        v = transformer(
            hidden_states=packed.to(dtype),
            timestep=sigma.to(dtype),
            guidance=torch.full((batch,), self.guidance, device=x.device)
            if self.config.guidance_embeds
            else None,
            pooled_projections=cond["pooled"].to(dtype),
            encoder_hidden_states=cond["text"].to(dtype),
            txt_ids=torch.zeros(cond["text"].shape[1], 3, device=x.device, dtype=dtype),
            img_ids=places,
            return_dict=False,
        )[0]
        v = v.view(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return v.reshape(x.shape).float()

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """(B, C, h, w) latents to (B, 3, H, W) pixels in [0, 1], float32."""
        self.at_work("vae")
        vae = self.pipeline.vae
        latents = (x / vae.config.scaling_factor + vae.config.shift_factor).to(
            self.device, vae.dtype
        )
        return (vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def add_lora(self, rank: int, alpha: float) -> None:
        """Train low-rank adapters on the attention projections instead of the weights."""
        add_lora(self.modules["transformer"], rank, alpha, LORA_TARGETS)

    def save(self, folder: Path, lora: bool) -> None:
        """Write what plain diffusers reads: LoRA weights with their alpha (`load_lora_weights`), or the pipeline (`from_pretrained`)."""
        if lora:
            save_lora(self.pipeline, folder)
        else:
            self.pipeline.save_pretrained(folder)
