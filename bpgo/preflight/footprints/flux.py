"""FLUX: images, double blocks followed by single blocks, text and image tokens in one sequence."""

from __future__ import annotations

from typing import NamedTuple

from bpgo.preflight.footprints.base import Footprint, Sample


class BlockBytes(NamedTuple):
    """Bytes per token and unit of width: kept by a double or single block, and while one runs."""

    double: float
    single: float
    working: float


TRAINING = {  # by (lora, half)
    (False, False): BlockBytes(double=100, single=82, working=31),
    (True, False): BlockBytes(double=54.4, single=48.4, working=50.8),
    (False, True): BlockBytes(double=57.8, single=50.2, working=21.3),
    (True, True): BlockBytes(double=37, single=32.9, working=30.4),
}
WITHOUT_GRADIENTS = {False: 65, True: 38}  # by half, in the same unit
DECODER_COPIES = 6  # of the layer of full resolution


class FluxFootprint(Footprint):
    """`FluxPipeline`. The sizes default to those that the autoencoder was trained at."""

    def _measure(self) -> Sample:
        g, vae = self.generator, self.pipeline.vae
        height, width = g.height or vae["sample_size"], g.width or vae["sample_size"]
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        patch_channels = self.pipeline.transformer["in_channels"]  # of a patch of 2 x 2
        latent = patch_channels // 4 * height * width // factor**2
        pixels = height * width
        return Sample(
            height=height,
            width=width,
            frames=1,
            latent=latent,
            tokens=latent // patch_channels,
            text_tokens=self.text_tokens,
            rows=1,
            tile=min(pixels, vae["sample_size"] ** 2) if g.vae_tiling else pixels,
        )

    @property
    def blocks(self) -> tuple[int, int]:
        t = self.pipeline.transformer
        return t["num_layers"], t["num_single_layers"]

    @property
    def full_size_blocks(self) -> int:
        double, single = self.blocks
        return double + single // 2

    @property
    def lora_projections(self) -> int:
        double, single = self.blocks
        return 8 * double + 3 * single

    @property
    def text_width(self) -> int:
        return self.pipeline.transformer["joint_attention_dim"]

    def block_input(self, rows: int) -> int:
        return rows * (self.sample.tokens + self.sample.text_tokens) * self.width

    def kept(self, rows: int, lora: bool, half: bool) -> tuple[float, float]:
        each = TRAINING[lora, half]
        unit = self.block_input(rows)
        return unit * each.double, unit * each.single

    def working(self, rows: int, lora: bool, half: bool) -> float:
        return self.block_input(rows) * TRAINING[lora, half].working

    def working_without_gradients(self, rows: int, half: bool) -> float:
        return self.block_input(rows) * WITHOUT_GRADIENTS[half]

    @property
    def operations(self) -> int:
        tokens = self.sample.tokens + self.sample.text_tokens
        weights = 12 * self.width**2
        attention = 4 * tokens**2 * self.width
        return sum(self.blocks) * (2 * weights * tokens + attention)

    @property
    def size_multiple(self) -> int:
        return 2 * 2 ** (len(self.pipeline.vae["block_out_channels"]) - 1)

    @property
    def decoder_numbers(self) -> float:
        return DECODER_COPIES * self.pipeline.vae["block_out_channels"][0]
