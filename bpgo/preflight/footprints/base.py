"""The interface of a footprint: what one sample of a model family costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from bpgo.config import GeneratorConfig
from bpgo.preflight.published import Pipeline


class Sample(NamedTuple):
    """The sizes of one sample.

    height, width: pixels. frames: 1 for an image. latent: how many numbers its latent has.
    tokens: those of the latent in the transformer. text_tokens: those of the prompt.
    rows: rows of the transformer's batch, 2 with classifier-free guidance.
    tile: pixels of a frame that are decoded at a time.
    """

    height: int
    width: int
    frames: int
    latent: int
    tokens: int
    text_tokens: int
    rows: int
    tile: int

    @property
    def pixels(self) -> int:
        """Pixels of one frame."""
        return self.height * self.width


class Footprint(ABC):
    """What a model family costs, as a function of the settings and of the pipeline's sizes.

    A subclass describes one family. bpgo.preflight.activations, memory and flops use only this
    interface.

    lora: whether only adapters are trained. half: whether activations are bfloat16. rows: rows of
    the transformer's batch.

    The bytes of activations are coefficients times tokens and widths. The coefficients are fits to
    what the blocks of diffusers 0.42 kept alive on the CPU with torch 2.13. Attention by SDPA
    needs no memory that grows with the square of the tokens. CUDA's kernels differ from the CPU's,
    and its allocator needs more.
    """

    float32_autoencoder = False
    """Whether the autoencoder stays float32, whatever generator.dtype is."""
    makes_videos = False
    """Whether a sample is a video."""
    takes_images = False
    """Whether a sample starts from an image."""

    def __init__(self, generator: GeneratorConfig, pipeline: Pipeline):
        self.generator = generator
        self.pipeline = pipeline
        heads = pipeline.transformer["num_attention_heads"]
        self.width = heads * pipeline.transformer["attention_head_dim"]
        self.text_tokens = generator.max_sequence_length or pipeline.text_tokens
        self.sample = self._measure()

    @abstractmethod
    def _measure(self) -> Sample:
        """The sizes of one sample."""

    # ------------------------------------------------------------------------- transformer

    @property
    @abstractmethod
    def blocks(self) -> tuple[int, ...]:
        """How many transformer blocks there are of each kind, in the order in which they run."""

    @property
    @abstractmethod
    def full_size_blocks(self) -> int:
        """How many blocks of the largest kind have as many weights as all blocks together."""

    @property
    @abstractmethod
    def lora_projections(self) -> int:
        """How many projections get an adapter. Each is width x width."""

    @property
    @abstractmethod
    def text_width(self) -> int:
        """Numbers per text token, as the text encoder gives them."""

    @abstractmethod
    def block_input(self, rows: int) -> int:
        """How many numbers go into one block."""

    @abstractmethod
    def kept(self, rows: int, lora: bool, half: bool) -> tuple[float, ...]:
        """Bytes that one block of each kind keeps for the backward pass."""

    @abstractmethod
    def working(self, rows: int, lora: bool, half: bool) -> float:
        """Bytes that the running block holds in addition."""

    @abstractmethod
    def working_without_gradients(self, rows: int, half: bool) -> float:
        """Bytes that the running block holds when nothing is kept for a backward pass."""

    @property
    @abstractmethod
    def operations(self) -> int:
        """Floating-point operations of all blocks for one row.

        Two per weight and token, and 4 L^2 d per layer for attention over L tokens of width d.
        """

    # -------------------------------------------------------------------- everything else

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Pixels of which the height and the width must be multiples."""

    @property
    @abstractmethod
    def decoder_numbers(self) -> float:
        """How many numbers decoding holds, per pixel that is decoded at a time."""

    @property
    def image_condition(self) -> int:
        """Bytes of the encoded image that a sample starts from."""
        return 0
