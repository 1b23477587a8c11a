"""Folders of random weights in the published layouts of the image rewards."""

import json
import shutil
from string import ascii_lowercase

import pytest
import torch

from bpgo.worlds.pretrain import architectures
from bpgo.worlds.shapes.captions import VOCABULARY
from tests.rewards.layouts import (
    FILES,
    HEADS,
    LENGTH,
    TINY,
    blip_shapes,
    med_config,
    open_clip_shapes,
    random_tensors,
    transformers_clip_shapes,
)


@pytest.fixture(scope="session")
def clip_tokenizer():
    """The tiny tokenizer with its two special tokens last and with all bytes, as CLIP has them."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    ours = architectures.clip_tokenizer()
    vocabulary = ours.get_vocab()
    special = ["<|startoftext|>", "<|endoftext|>"]
    words = [word for word in sorted(vocabulary, key=vocabulary.get) if word not in special]
    letters = sorted(ByteLevel.alphabet())
    words += [c for c in [*letters, *(f"{c}</w>" for c in letters)] if c not in vocabulary]
    merges = json.loads(ours.backend_tokenizer.to_str())["model"]["merges"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words + special)},
        merges=[tuple(pair) for pair in merges],
        model_max_length=LENGTH,
    )


@pytest.fixture(scope="session")
def published(tmp_path_factory, clip_tokenizer):
    """Name -> (folder in the published layout, its state dict), with random weights."""
    sizes = tuple(len(clip_tokenizer) if size is None else size for size in TINY)
    made = {}
    for seed, name in enumerate(FILES):
        folder = tmp_path_factory.mktemp(name)
        if name == "image_reward":
            state = write_image_reward(folder, sizes)
        else:
            write = write_hpsv2 if "hps" in name else write_clip
            state = write(folder, name, sizes, seed)
            clip_tokenizer.save_pretrained(folder)
        made[name] = folder, state
    return made


@pytest.fixture
def copied(published, tmp_path):
    """A function: name -> a copy of its folder that a test may damage, and the file of weights."""

    def copy(name):
        folder = shutil.copytree(published[name][0], tmp_path / name)
        return folder, folder / FILES[name]

    return copy


def write_hpsv2(folder, name, sizes, seed):
    """float16, among other things that a training run saves."""
    state = random_tensors(open_clip_shapes(*sizes), seed)
    state = {key: tensor.half() for key, tensor in state.items()}
    torch.save({"epoch": 3, "name": "tiny", "state_dict": state}, folder / FILES[name])
    return state


def write_clip(folder, name, sizes, seed):
    """With a config of the time: the end token 2 stands for the highest id; much is repeated."""
    patch, side, width, layers, inner, *text_sizes, joint = sizes
    tokens, text_width, text_layers, text_inner, length = text_sizes
    act = "quick_gelu" if name == "clip" else "gelu"
    text = dict(
        hidden_size=text_width,
        intermediate_size=text_inner,
        num_hidden_layers=text_layers,
        num_attention_heads=HEADS,
        hidden_act=act,
        max_position_embeddings=length,
        vocab_size=tokens,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        model_type="clip_text_model",
    )
    vision = dict(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        image_size=side,
        patch_size=patch,
        hidden_act=act,
        model_type="clip_vision_model",
    )
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": joint,
        "logit_scale_init_value": 2.6592,
        "text_config": text,
        "text_config_dict": text,
        "vision_config": vision,
        "vision_config_dict": vision,
        "torch_dtype": "float32",
        "transformers_version": "4.24.0.dev0",
    }
    processor = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": side,
        "size": side,
        "resample": 3,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    state = random_tensors(transformers_clip_shapes(*sizes), seed)
    is_zip = name != "clip"
    torch.save(state, folder / FILES[name], _use_new_zipfile_serialization=is_zip)
    return state


def write_image_reward(folder, sizes):
    patch, side, width, layers, *_, joint = sizes
    words = [*VOCABULARY, *ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    tokenizer = architectures.bert_tokenizer(list(dict.fromkeys(words)), tokens=40)
    med = med_config(len(tokenizer) + 2)  # two tokens that the score never reads
    shapes = blip_shapes(patch, side, width, layers, med, (20, 12, 8, 4, 1), joint)
    state = random_tensors(shapes, seed=9)
    state["mlp.layers.7.weight"] *= 0.3  # for scores of about 1
    torch.save(state, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(med))
    tokenizer.save_pretrained(folder)
    return state
