"""What the published pipelines and rewards are (sizes, files, licences), whether they are here, and how large what lies in a folder is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from bpgo.files import cached_snapshot, check_weights, resolve

FLUX = dict(
    class_name="FluxPipeline",
    text=512,
    transformer=dict(
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=128,
        num_attention_heads=24,
        in_channels=64,
        joint_attention_dim=4096,
    ),
    vae=dict(block_out_channels=[128, 256, 512, 512], latent_channels=16, sample_size=1024),
)
WAN = dict(
    class_name="WanPipeline",
    text=512,
    transformer=dict(
        num_layers=30,
        attention_head_dim=128,
        num_attention_heads=12,
        ffn_dim=8960,
        in_channels=16,
        text_dim=4096,
        patch_size=[1, 2, 2],
    ),
    vae=dict(base_dim=96, z_dim=16, scale_factor_spatial=8, scale_factor_temporal=4),
)
EXPERTS = WAN | dict(
    class_name="WanImageToVideoPipeline",
    transformer=WAN["transformer"]
    | dict(num_layers=40, num_attention_heads=40, ffn_dim=13824, in_channels=36),
)


class Part(NamedTuple):
    """Parameters of a part of a pipeline, those of them that stay float32 in a half-precision model, and the bytes of its files."""

    parameters: int
    islands: int
    stored: int


class Pipeline(NamedTuple):
    """A diffusers pipeline as far as memory goes: its parts, what its transformer's and autoencoder's config.json say, text tokens."""

    class_name: str
    parts: dict[str, Part]
    transformer: dict
    vae: dict
    text: int


PARTS = {  # of the published pipelines; bytes are the tensors' own, in the precision that their shards show (FLUX.1-dev's: not verified)
    "black-forest-labs/FLUX.1-dev": (
        FLUX,
        {
            "transformer": Part(11_901_408_320, 0, 23_802_816_640),
            "text_encoder_2": Part(4_762_310_656, 0, 9_524_621_312),
            "text_encoder": Part(123_060_480, 0, 246_120_960),
            "vae": Part(83_819_683, 0, 167_639_366),
        },
    ),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": (
        WAN,
        {
            "transformer": Part(1_418_996_800, 3_127_296, 5_675_987_200),
            "text_encoder": Part(5_680_910_336, 0, 22_723_641_344),
            "vae": Part(126_892_531, 126_892_531, 507_570_124),
        },
    ),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": (
        EXPERTS,
        {
            "transformer": Part(14_288_901_184, 29_184_000, 57_155_604_736),
            "transformer_2": Part(14_288_901_184, 29_184_000, 57_155_604_736),
            "text_encoder": Part(5_680_910_336, 0, 11_361_820_672),
            "vae": Part(126_892_531, 126_892_531, 507_570_124),
        },
    ),
}
ISLANDS = {
    "rope",
    "time_embedder",
    "scale_shift_table",
    "norm1",
    "norm2",
    "norm3",
}  # WanTransformer3DModel._keep_in_fp32_modules


class Files(NamedTuple):
    """What is downloaded of a hub id: patterns, of which `whole` must be there; bytes; licence."""

    hub_id: str
    patterns: tuple[str, ...]
    whole: str
    stored: int
    licence: str
    gated: bool = False


class Scorer(NamedTuple):
    """A published reward: its parameters, all float32 here, and what it downloads."""

    parameters: int
    files: tuple[Files, ...]


PIPELINE = (
    "model_index.json",
    "*/*.json",
    "*/*.safetensors",
    "*/*.txt",
    "*/*.model",
)  # and not the same weights in one file
LICENCES = {"black-forest-labs/FLUX.1-dev": "FLUX.1-dev Non-Commercial"}  # the others': Apache-2.0
GATED = {"black-forest-labs/FLUX.1-dev"}
WORDS = ("*.json", "*.txt")
CLIP_L = Files("openai/clip-vit-large-patch14", WORDS, "tokenizer_config.json", 5_000_000, "MIT")
CLIP_H = Files(
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", WORDS, "tokenizer_config.json", 5_000_000, "MIT"
)
BERT = Files("bert-base-uncased", WORDS, "tokenizer_config.json", 1_000_000, "Apache-2.0")
ALIGN = Scorer(
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
HPS = "xswu/HPSv2", "HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"
SCORERS = {  # bytes as published, those of HPS v2.1, PickScore and Qwen3-VL by their parameters
    "clip": Scorer(
        427_616_513,
        (
            Files(
                "openai/clip-vit-large-patch14",
                (*WORDS, "model.safetensors"),
                "model.safetensors",
                1_710_466_052,
                "MIT",
            ),
        ),
    ),
    "pickscore": Scorer(
        986_109_441,
        (
            Files(
                "yuvalkirstain/PickScore_v1",
                (*WORDS, "model.safetensors"),
                "model.safetensors",
                3_944_437_764,
                "MIT (code; the weights' not verified)",
            ),
        ),
    ),
    "hpsv2": Scorer(
        986_109_441, (Files(HPS[0], HPS[1:2], HPS[1], 1_972_484_501, "Apache-2.0"), CLIP_H)
    ),
    "hpsv2.0": Scorer(
        986_109_441, (Files(HPS[0], HPS[2:], HPS[2], 1_972_484_501, "Apache-2.0"), CLIP_H)
    ),
    "image_reward": Scorer(
        446_665_953,
        (
            Files(
                "THUDM/ImageReward",
                ("ImageReward.pt", "med_config.json"),
                "ImageReward.pt",
                1_786_880_927,
                "Apache-2.0",
            ),
            BERT,
        ),
    ),
    "video_clip_xl": Scorer(
        427_756_032,
        (
            Files(
                "alibaba-pai/VideoCLIP-XL",
                ("VideoCLIP-XL.bin",),
                "VideoCLIP-XL.bin",
                1_711_024_128,
                "CC-BY-NC-SA-4.0",
            ),
            CLIP_L,
        ),
    ),
    **dict.fromkeys(("video_align", "video_align_vq", "video_align_mq", "video_align_ta"), ALIGN),
    "qwen3_vl_embedding": Scorer(
        2_127_532_032,
        (
            Files(
                "Qwen/Qwen3-VL-Embedding-2B",
                (*WORDS, "*.safetensors"),
                "model.safetensors",
                4_255_064_064,
                "Apache-2.0",
            ),
        ),
    ),
}


def read_pipeline(folder: Path) -> Pipeline:
    """Of a diffusers folder, by its json files and the headers of its weights. Raises FileNotFoundError for a part that is not there."""
    index = json.loads((folder / "model_index.json").read_text())
    names = [
        name
        for name, entry in index.items()
        if isinstance(entry, list) and all(entry) and "processor" not in name
    ]
    parts = {
        name: _part(folder / name)
        for name in names
        if "tokenizer" not in name and name != "scheduler"
    }
    transformer, vae = (
        json.loads((folder / name / "config.json").read_text()) for name in ("transformer", "vae")
    )
    words = json.loads(
        (
            folder
            / ("tokenizer_2" if "tokenizer_2" in index else "tokenizer")
            / "tokenizer_config.json"
        ).read_text()
    )
    return Pipeline(
        index["_class_name"],
        parts,
        transformer,
        vae,
        min(512, int(words.get("model_max_length", 512))),
    )


def published(hub_id: str) -> Pipeline | None:
    """What is known of a published pipeline without its files."""
    kind, parts = PARTS.get(hub_id, (None, None))
    return kind and Pipeline(
        kind["class_name"], parts, kind["transformer"], kind["vae"], kind["text"]
    )


def tensors(file: Path) -> dict[str, dict]:
    """The header of a .safetensors file: name -> dtype, shape."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _part(folder: Path) -> Part:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no .safetensors file")
    found = {
        name: math.prod(entry["shape"]) for file in files for name, entry in tensors(file).items()
    }
    wan = (
        json.loads((folder / "config.json").read_text())["_class_name"]
        if "transformer" in folder.name
        else ""
    )
    islands = sum(
        n for name, n in found.items() if wan.startswith("Wan") and ISLANDS & set(name.split("."))
    )
    return Part(sum(found.values()), islands, sum(file.stat().st_size for file in files))


# ------------------------------------------------------------------------------------------------- what a setting's path stands for


def folder_of(path: str) -> Path | None:
    """The folder or file that a path or shipped name stands for; None for a hub id. Raises FileNotFoundError for neither."""
    place = resolve(path)
    return place if isinstance(place, Path) else None


def cached(hub_id: str, name: str) -> Path | None:
    """A file of a hub id that has been downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name)
    return Path(found) if isinstance(found, str) else None


def needed(kind: str | None, path: str | None) -> tuple[Files, ...]:
    """What a reward of this name, or with None a generator, needs. path: as in the settings."""
    if path is None:
        return (
            SCORERS[kind].files
            if kind in SCORERS
            else (Files(f"reward {kind}: a path", (), "", 0, ""),)
        )
    try:
        if (place := folder_of(path)) is not None:
            inside = [place] if place.is_file() else place.rglob("*")
            return (
                Files(
                    path,
                    (),
                    "" if kind else "model_index.json",
                    sum(f.stat().st_size for f in inside if f.is_file()),
                    "a folder",
                ),
            )
    except FileNotFoundError:
        return (Files(path, (), "", 0, ""),)
    same = (
        [f for scorer in SCORERS.values() for f in scorer.files if f.hub_id == path] if kind else []
    )
    if kind:
        return (
            SCORERS[kind].files
            if same and kind in SCORERS
            else (Files(path, ("*",), "config.json", 0, "not known"),)
        )
    known = published(path)
    licence = LICENCES.get(path, "Apache-2.0" if known else "not known")
    return (
        Files(
            path,
            PIPELINE,
            "model_index.json",
            sum(p.stored for p in known.parts.values()) if known else 0,
            licence,
            path in GATED,
        ),
    )


def present(f: Files) -> bool:
    """Whether it is here, whole."""
    return _named(f) and damage(f) is None


def damage(f: Files) -> str | None:
    """Which file of it is truncated, as far as can be told without reading it all, and the remedy."""
    try:
        place = cached_snapshot(f.hub_id) if f.patterns else folder_of(f.hub_id)
        if place is not None:
            check_weights(place)
    except FileNotFoundError:  # it is not here at all
        return None
    except ValueError as error:
        return str(error)
    return None


def _named(f: Files) -> bool:
    if not f.patterns:
        try:
            place = folder_of(f.hub_id)
        except FileNotFoundError:
            return False
        return place is not None and (place / f.whole if f.whole else place).exists()
    whole = cached(f.hub_id, f.whole)
    if whole is None and f.whole == "model.safetensors":  # or as older weights are published
        whole = cached(f.hub_id, "pytorch_model.bin")
    if whole is None or f.whole != "model_index.json":
        return whole is not None
    names = [
        name
        for name, entry in json.loads(whole.read_text()).items()
        if isinstance(entry, list) and all(entry)
    ]
    weights = [
        whole.parent / name
        for name in names
        if name.startswith(("transformer", "text_encoder", "vae"))
    ]
    return all((whole.parent / name).is_dir() for name in names) and all(map(_all_shards, weights))


def _all_shards(folder: Path) -> bool:
    shards = {
        name
        for index in folder.glob("*.index.json")
        for name in json.loads(index.read_text())["weight_map"].values()
    }
    return all((folder / name).exists() for name in shards) and any(
        f.exists() for f in folder.glob("*.safetensors")
    )


def pipeline_of(path: str) -> Pipeline | None:
    """Sizes of a generator: of its files, or as published; None if neither is there."""
    try:
        folder = folder_of(path) or (
            index.parent if (index := cached(path, "model_index.json")) else None
        )
        return read_pipeline(folder) if folder else published(path)
    except (FileNotFoundError, KeyError, ValueError):  # not whole
        return published(path)


def weight(kind: str, path: str | None) -> int:
    """Bytes of a reward's parameters on its device, float32; 0 if they are not known."""
    try:
        place = folder_of(path) if path is not None else None
    except FileNotFoundError:
        return 0
    if place is None:
        return 4 * SCORERS[kind].parameters if kind in SCORERS else 0
    files = [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
    try:
        headers = [
            entry
            for file in files
            if file.suffix == ".safetensors"
            for entry in tensors(file).values()
        ]
    except ValueError:  # truncated
        return 0
    return 4 * sum(math.prod(entry["shape"]) for entry in headers) or sum(
        file.stat().st_size for file in files
    )
