"""Wan: videos, blocks of self-attention, cross-attention to the text and a feed-forward layer."""

from __future__ import annotations

import math
from typing import NamedTuple

from bpgo.preflight.footprints.base import Footprint, Sample

HEIGHT, WIDTH, FRAMES = 480, 832, 81  # what the pipelines generate by default
GUIDANCE = 5.0
DECODER_TILE = 256  # pixels, the side of a tile of AutoencoderKLWan
DECODER_COPIES = 52  # of the layer of full resolution


class Coefficients(NamedTuple):
    """Bytes per video token and unit of width, per video token and unit of the feed-forward
    layer, and per text token and unit of width."""

    width: float
    feed_forward: float
    text: float


KEPT = {  # by (lora, half)
    (False, False): Coefficients(81, 9, 12),
    (True, False): Coefficients(55.5, 4.5, 11.3),
    (False, True): Coefficients(69.7, 3.8, 9.3),
    (True, True): Coefficients(49.4, 2.3, 11.1),
}
WORKING = {  # by (lora, half)
    (False, False): Coefficients(26, 0, 32),
    (True, False): Coefficients(9.7, 6.1, 9.1),
    (False, True): Coefficients(18.8, 0.6, 18.1),
    (True, True): Coefficients(19.8, 0, 10.1),
}
WITHOUT_GRADIENTS = {
    False: Coefficients(17.8, 7.7, 15.3),
    True: Coefficients(19, 1.4, 19.6),
}  # by half


class WanFootprint(Footprint):
    """`WanPipeline`, text-to-video."""

    float32_autoencoder = True
    makes_videos = True

    def _measure(self) -> Sample:
        g, vae = self.generator, self.pipeline.vae
        height, width, frames = g.height or HEIGHT, g.width or WIDTH, g.frames or FRAMES
        pixels = height * width
        latent_frames = (frames - 1) // vae["scale_factor_temporal"] + 1
        places = latent_frames * pixels // vae["scale_factor_spatial"] ** 2
        guidance = GUIDANCE if g.guidance is None else g.guidance
        return Sample(
            height=height,
            width=width,
            frames=frames,
            latent=vae["z_dim"] * places,
            tokens=places // math.prod(self.pipeline.transformer["patch_size"]),
            text_tokens=self.text_tokens,
            rows=2 if guidance > 1 else 1,
            tile=min(pixels, DECODER_TILE**2) if g.vae_tiling else pixels,
        )

    @property
    def blocks(self) -> tuple[int]:
        return (self.pipeline.transformer["num_layers"],)

    @property
    def full_size_blocks(self) -> int:
        return self.pipeline.transformer["num_layers"]

    @property
    def lora_projections(self) -> int:
        return 8 * self.pipeline.transformer["num_layers"]

    @property
    def text_width(self) -> int:
        return self.pipeline.transformer.get("text_dim", 4096)

    def block_input(self, rows: int) -> int:
        return rows * self.sample.tokens * self.width

    def kept(self, rows: int, lora: bool, half: bool) -> tuple[float]:
        return (self._bytes(rows, KEPT[lora, half]),)

    def working(self, rows: int, lora: bool, half: bool) -> float:
        return self._bytes(rows, WORKING[lora, half])

    def working_without_gradients(self, rows: int, half: bool) -> float:
        return self._bytes(rows, WITHOUT_GRADIENTS[half])

    def _bytes(self, rows: int, each: Coefficients) -> float:
        tokens, text = rows * self.sample.tokens, rows * self.sample.text_tokens
        feed_forward = tokens * self.pipeline.transformer["ffn_dim"] * each.feed_forward
        return tokens * self.width * each.width + feed_forward + text * self.width * each.text

    @property
    def operations(self) -> int:
        d, tokens, text = self.width, self.sample.tokens, self.sample.text_tokens
        # Per video token: four matrices of self-attention, query and output of cross-attention,
        # and two of the feed-forward layer. Per text token: key and value of cross-attention.
        video_weights = 6 * d**2 + 2 * d * self.pipeline.transformer["ffn_dim"]
        text_weights = 2 * d**2
        attention = 4 * tokens * (tokens + text) * d
        return sum(self.blocks) * (2 * video_weights * tokens + 2 * text_weights * text + attention)

    @property
    def size_multiple(self) -> int:
        return (
            self.pipeline.vae["scale_factor_spatial"] * self.pipeline.transformer["patch_size"][1]
        )

    @property
    def decoder_numbers(self) -> float:
        return DECODER_COPIES * self.pipeline.vae["base_dim"]


class WanImageFootprint(WanFootprint):
    """`WanImageToVideoPipeline`, image-to-video."""

    takes_images = True

    @property
    def image_condition(self) -> int:
        # In float32: the channels of the latent (16 as published) and 4 channels of mask.
        return 4 * self.sample.latent * 5 // 4
