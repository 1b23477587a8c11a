"""FLUX as a policy: text-to-image with a guidance embedding, from the tiny one to FLUX.1-dev."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bpgo.generators.lora import add_lora, save_lora
from bpgo.generators.lora_files import load_adapters
from bpgo.generators.offload import Placed
from bpgo.generators.saving import save_pipeline
from bpgo.tokenization import padded, refuse_empty, refuse_unknown_words

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
    """A policy over a `FluxPipeline`.

    height, width: pixels, multiples of twice the autoencoder's factor; by default the size of the
    autoencoder. guidance: the distilled guidance scale, which is embedded if the transformer has
    `guidance_embeds` and ignored otherwise. max_sequence_length: number of T5 tokens; by default
    that of the tokenizer, at most 512. Padding is encoded and attended to, as in the published
    pipeline. Raises ValueError for other sizes.
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
        height = pipeline.vae.config.sample_size if height is None else height
        width = pipeline.vae.config.sample_size if width is None else width
        multiple = 2 * pipeline.vae_scale_factor
        if height <= 0 or width <= 0 or height % multiple or width % multiple:
            raise ValueError(
                f"height and width must be positive multiples of {multiple} pixels, "
                f"not {height} x {width}"
            )
        longest = pipeline.tokenizer_2.model_max_length
        self.pipeline = pipeline
        self.height, self.width, self.guidance = height, width, guidance
        self.max_sequence_length = max_sequence_length or min(512, longest)
        self.config = pipeline.transformer.config
        self.modules = {"transformer": pipeline.transformer}  # those that are trained, by name
        for name in ("transformer", "vae", *self.encoders):
            getattr(pipeline, name).requires_grad_(False).eval()

    @classmethod
    def load(
        cls, path, dtype: torch.dtype | str = torch.float32, device: str = "cpu", **options
    ) -> FluxPolicy:
        """The policy of a folder or hub id.

        dtype: of the weights, "float32", "bfloat16" or a torch.dtype. options: as for `FluxPolicy`.
        """
        from diffusers import FluxPipeline

        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return cls(FluxPipeline.from_pretrained(path, dtype=dtype).to(device), **options)

    def latent_shape(
        self, height: int | None = None, width: int | None = None, frames: int = 1
    ) -> tuple[int, int, int]:
        """The shape (channels, h, w) of one image's latent, unpacked."""
        if frames != 1:
            raise ValueError(f"FLUX makes images: frames must be 1, not {frames}")
        factor = self.pipeline.vae_scale_factor
        height, width = height or self.height, width or self.width
        return self.config.in_channels // 4, height // factor, width // factor

    @torch.no_grad()
    def encode(self, prompts: list[str], images=None) -> dict[str, Tensor]:
        """Encode prompts, one row per prompt: `text` (B, L, D) from T5, `pooled` (B, P) from CLIP.

        Raises ValueError as `check` does.
        """
        self.check(prompts, images)
        return self.embed(prompts)

    def check(self, prompts: list[str], images=None) -> None:
        """Check prompts without encoding them, which is cheap.

        Raises ValueError for an empty list or prompt, for words that a tokenizer does not know (see
        `refuse_unknown_words`), and for images, which FLUX does not take.
        """
        if images is not None:
            raise ValueError("FLUX is text-to-image: it takes no images")
        refuse_empty(prompts)
        refuse_unknown_words(self.pipeline.tokenizer_2, prompts)
        refuse_unknown_words(self.pipeline.tokenizer, prompts)

    def embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """`encode` without its checks and with gradients, for training the text encoders."""
        p = self.pipeline
        t5_ids = padded(p.tokenizer_2, prompts, self.max_sequence_length).input_ids
        clip_ids = padded(p.tokenizer, prompts, p.tokenizer_max_length).input_ids
        self.at_work(*self.encoders)
        text = p.text_encoder_2(t5_ids.to(self.device))[0]
        pooled = p.text_encoder(clip_ids.to(self.device)).pooler_output
        return {"text": text, "pooled": pooled}

    def velocity(self, x: Tensor, sigma: Tensor | float, cond: dict[str, Tensor]) -> Tensor:
        """Predicted `noise - data`, float32 and of the shape of x, (B, C, h, w).

        sigma: a number in [0, 1], or (B,) of them. cond: from `encode`.
        """
        self.at_work("transformer")
        dtype = self.pipeline.transformer.dtype
        batch, _, height, width = x.shape
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(batch)
        guidance = None
        if self.config.guidance_embeds:
            guidance = torch.full((batch,), self.guidance, device=x.device)
        text = cond["text"].to(dtype)
        v = self.modules["transformer"](
            hidden_states=_pack(x).to(dtype),
            timestep=sigma.to(dtype),
            guidance=guidance,
            pooled_projections=cond["pooled"].to(dtype),
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device, dtype=dtype),
            img_ids=_positions(height // 2, width // 2).to(x.device, dtype),
            return_dict=False,
        )[0]
        return _unpack(v, x.shape).float()

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Latents (B, C, h, w) to pixels (B, 3, H, W) in [0, 1], float32."""
        self.at_work("vae")
        vae = self.pipeline.vae
        latents = x / vae.config.scaling_factor + vae.config.shift_factor
        pixels = vae.decode(latents.to(self.device, vae.dtype), return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def add_lora(self, rank: int, alpha: float) -> None:
        """Train low-rank adapters on the attention projections instead of the weights."""
        add_lora(self.modules["transformer"], rank, alpha, LORA_TARGETS)

    def load_lora(self, path_or_hub_id: str | Path) -> None:
        """Train the adapters of a file, folder or hub id further, instead of the weights.

        Raises ValueError or OSError as `load_adapters` does.
        """
        load_adapters(self.modules, path_or_hub_id)

    def save(self, folder: Path, lora: bool) -> None:
        """Write a folder that plain diffusers can load.

        lora: the adapters, with their alpha (for `load_lora_weights`), or else the whole pipeline
        (for `from_pretrained`).
        """
        if lora:
            save_lora(self.pipeline, folder)
        else:
            save_pipeline(self.pipeline, folder)


def _pack(x: Tensor) -> Tensor:
    """Latents (B, C, h, w) to the transformer's tokens (B, h/2 w/2, 4 C), one per 2 x 2 cells."""
    batch, channels = x.shape[:2]
    cells = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, -1, 4 * channels)


def _unpack(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Tokens (B, h/2 w/2, 4 C) to latents of this shape, (B, C, h, w)."""
    batch, channels, height, width = shape
    cells = tokens.view(batch, height // 2, width // 2, channels, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(shape)


def _positions(rows: int, columns: int) -> Tensor:
    """(rows columns, 3): 0, the row and the column of each token."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).reshape(-1, 3)
