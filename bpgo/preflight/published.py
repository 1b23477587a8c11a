"""Published pipelines and rewards as tables: their sizes, their files and their licences.

A new checkpoint is one entry in PIPELINES, and a new reward one in REWARDS. Bytes are those of the
tensors as they are published.
"""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """One model of a pipeline.

    float32_parameters: those that stay float32 in half precision. stored: bytes of its files.
    """

    parameters: int
    float32_parameters: int
    stored: int


class Pipeline(NamedTuple):
    """A diffusers pipeline, as far as memory and operations depend on it.

    transformer, vae: entries of their config.json. text_tokens: length of an encoded prompt.
    """

    class_name: str
    parts: dict[str, Part]
    transformer: dict
    vae: dict
    text_tokens: int


class Files(NamedTuple):
    """Files from one place.

    source: a hub id, a folder or a file. patterns: what is downloaded of a hub id; empty for a
    folder or file. required: the file that must be there. stored: bytes.
    """

    source: str
    patterns: tuple[str, ...]
    required: str
    stored: int
    licence: str
    gated: bool = False


class PublishedPipeline(NamedTuple):
    """A checkpoint of the hub: its sizes and its terms."""

    sizes: Pipeline
    licence: str
    gated: bool = False


class PublishedReward(NamedTuple):
    """A reward of the hub: its parameters, all float32 here, and the files that it downloads."""

    parameters: int
    files: tuple[Files, ...]


# Layers that diffusers keeps in float32 whatever precision is asked for, by the transformer's class
FLOAT32_LAYERS = {
    "WanTransformer3DModel": frozenset(
        {"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"}
    )
}

# -------------------------------------------------------------------------------- pipelines

_UMT5 = 5_680_910_336
_WAN_VAE = {"base_dim": 96, "z_dim": 16, "scale_factor_spatial": 8, "scale_factor_temporal": 4}
_WAN_VAE_PART = Part(126_892_531, 126_892_531, 507_570_124)
_A14B_EXPERT = Part(14_288_901_184, 29_184_000, 57_155_604_736)

PIPELINES = {
    "black-forest-labs/FLUX.1-dev": PublishedPipeline(
        Pipeline(
            class_name="FluxPipeline",
            parts={  # the precision of these files is not verified
                "transformer": Part(11_901_408_320, 0, 23_802_816_640),
                "text_encoder_2": Part(4_762_310_656, 0, 9_524_621_312),
                "text_encoder": Part(123_060_480, 0, 246_120_960),
                "vae": Part(83_819_683, 0, 167_639_366),
            },
            transformer={
                "num_layers": 19,
                "num_single_layers": 38,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "in_channels": 64,
                "joint_attention_dim": 4096,
            },
            vae={
                "block_out_channels": [128, 256, 512, 512],
                "latent_channels": 16,
                "sample_size": 1024,
            },
            text_tokens=512,
        ),
        licence="FLUX.1-dev Non-Commercial",
        gated=True,
    ),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": PublishedPipeline(
        Pipeline(
            class_name="WanPipeline",
            parts={
                "transformer": Part(1_418_996_800, 3_127_296, 5_675_987_200),
                "text_encoder": Part(_UMT5, 0, 4 * _UMT5),
                "vae": _WAN_VAE_PART,
            },
            transformer={
                "num_layers": 30,
                "attention_head_dim": 128,
                "num_attention_heads": 12,
                "ffn_dim": 8960,
                "in_channels": 16,
                "text_dim": 4096,
                "patch_size": [1, 2, 2],
            },
            vae=_WAN_VAE,
            text_tokens=512,
        ),
        licence="Apache-2.0",
    ),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": PublishedPipeline(
        Pipeline(
            class_name="WanImageToVideoPipeline",
            parts={
                "transformer": _A14B_EXPERT,
                "transformer_2": _A14B_EXPERT,
                "text_encoder": Part(_UMT5, 0, 2 * _UMT5),
                "vae": _WAN_VAE_PART,
            },
            transformer={
                "num_layers": 40,
                "attention_head_dim": 128,
                "num_attention_heads": 40,
                "ffn_dim": 13824,
                "in_channels": 36,
                "text_dim": 4096,
                "patch_size": [1, 2, 2],
            },
            vae=_WAN_VAE,
            text_tokens=512,
        ),
        licence="Apache-2.0",
    ),
}

# The files of a pipeline. Some repositories also have the same weights as one large file.
PIPELINE_PATTERNS = ("model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")

# ---------------------------------------------------------------------------------- rewards

_TEXT = ("*.json", "*.txt")
_WEIGHTS = "model.safetensors"
_CLIP_H = 986_109_441

_CLIP_L_TOKENIZER = Files(
    "openai/clip-vit-large-patch14", _TEXT, "tokenizer_config.json", 5_000_000, "MIT"
)
_CLIP_H_TOKENIZER = Files(
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", _TEXT, "tokenizer_config.json", 5_000_000, "MIT"
)
_BERT_TOKENIZER = Files(
    "bert-base-uncased", _TEXT, "tokenizer_config.json", 1_000_000, "Apache-2.0"
)


def _hps(file: str) -> PublishedReward:
    weights = Files("xswu/HPSv2", (file,), file, 1_972_484_501, "Apache-2.0")
    return PublishedReward(_CLIP_H, (weights, _CLIP_H_TOKENIZER))


_VIDEO_ALIGN = PublishedReward(
    2_208_561_664,
    (
        Files(
            "KwaiVGI/VideoReward",
            ("*config.json", "checkpoint-*/model.pth", "checkpoint-*/tokenizer/*"),
            "checkpoint-11352/model.pth",
            5_031_072_529,
            "Apache-2.0 (not verified)",
        ),
    ),
)

# Bytes of PickScore and Qwen3-VL are computed from their parameters.
REWARDS = {
    "clip": PublishedReward(
        427_616_513,
        (
            Files(
                "openai/clip-vit-large-patch14",
                (*_TEXT, _WEIGHTS),
                _WEIGHTS,
                1_710_466_052,
                "MIT",
            ),
        ),
    ),
    "pickscore": PublishedReward(
        _CLIP_H,
        (
            Files(
                "yuvalkirstain/PickScore_v1",
                (*_TEXT, _WEIGHTS),
                _WEIGHTS,
                4 * _CLIP_H,
                "MIT (code; the weights' not verified)",
            ),
        ),
    ),
    "hpsv2": _hps("HPS_v2.1_compressed.pt"),
    "hpsv2.0": _hps("HPS_v2_compressed.pt"),
    "image_reward": PublishedReward(
        446_665_953,
        (
            Files(
                "THUDM/ImageReward",
                ("ImageReward.pt", "med_config.json"),
                "ImageReward.pt",
                1_786_880_927,
                "Apache-2.0",
            ),
            _BERT_TOKENIZER,
        ),
    ),
    "video_clip_xl": PublishedReward(
        427_756_032,
        (
            Files(
                "alibaba-pai/VideoCLIP-XL",
                ("VideoCLIP-XL.bin",),
                "VideoCLIP-XL.bin",
                1_711_024_128,
                "CC-BY-NC-SA-4.0",
            ),
            _CLIP_L_TOKENIZER,
        ),
    ),
    "video_align": _VIDEO_ALIGN,
    "video_align_vq": _VIDEO_ALIGN,
    "video_align_mq": _VIDEO_ALIGN,
    "video_align_ta": _VIDEO_ALIGN,
    "qwen3_vl_embedding": PublishedReward(
        2_127_532_032,
        (
            Files(
                "Qwen/Qwen3-VL-Embedding-2B",
                (*_TEXT, "*.safetensors"),
                _WEIGHTS,
                4_255_064_064,
                "Apache-2.0",
            ),
        ),
    ),
}
