"""Wrong files for rewards: what is expected and what is there, not a bare error of a library."""

import json
import shutil
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bpgo
from bpgo.rewards import load_reward, video_clip_xl
from bpgo.rewards.video_align import SPECIAL
from tests.rewards.layouts import FILES
from tests.rewards.qwen import qwen_tokenizer
from tests.rewards.qwen_folders import (
    WEIGHTS,
    ending_tokenizer,
    peft_model,
    write_qwen3,
    write_video_align,
)
from tests.rewards.video_clip_layout import config_for, random_state

PACKAGE = Path(bpgo.__file__).parent
OURS = ("config.json", "model.safetensors", "tokenizer.json")
LAYOUTS = {  # the reward, and the files that it cannot do without, the weights first
    "clip": ("pytorch_model.bin", "config.json", "tokenizer.json"),
    "pickscore": ("pytorch_model.bin", "config.json", "tokenizer.json"),
    "clip, safetensors": ("model.safetensors", "config.json", "tokenizer.json"),
    "hpsv2": ("HPS_v2.1_compressed.pt",),
    "image_reward": ("ImageReward.pt", "med_config.json"),
    "image_reward, ours": ("model.safetensors", "config.json", "tokenizer.json"),
    "image_grid": ("model.safetensors", "config.json", "tokenizer.json"),
    "video_clip_xl": ("VideoCLIP-XL.bin",),
    "video_clip_xl, ours": ("model.safetensors", "config.json", "tokenizer.json"),
    "video_align": (
        WEIGHTS,
        "model_config.json",
        "checkpoint-11352/tokenizer/tokenizer.json",
    ),
    "qwen3_vl_embedding": ("model.safetensors", "config.json", "tokenizer.json"),
}
SIDE_FILES = [(layout, file) for layout, files in LAYOUTS.items() for file in files]
REST = [(layout, file) for layout, file in SIDE_FILES if file != LAYOUTS[layout][0]]


@pytest.fixture(scope="module")
def right(
    tmp_path_factory,
    published,
    clip_folder,
    image_reward_folder,
    video_reward_folder,
    clip_tokenizer,
):
    """A right folder of each layout."""
    made = tmp_path_factory.mktemp("right")
    tokenizer = qwen_tokenizer(*SPECIAL)
    write_video_align(made / "align", tokenizer, peft_model(tokenizer, 1))
    (made / "qwen").mkdir()
    write_qwen3(made / "qwen", ending_tokenizer())
    (made / "video").mkdir()
    torch.save(random_state(len(clip_tokenizer)), made / "video" / "VideoCLIP-XL.bin")
    clip_tokenizer.save_pretrained(made / "video")
    return {name: published[name][0] for name in FILES} | {
        "clip, safetensors": clip_folder,
        "image_reward, ours": image_reward_folder,
        "image_grid": image_reward_folder,
        "video_clip_xl": made / "video",
        "video_clip_xl, ours": video_reward_folder,
        "video_align": made / "align",
        "qwen3_vl_embedding": made / "qwen",
    }


@pytest.fixture(autouse=True)
def tiny_published_sizes(monkeypatch, clip_tokenizer):
    monkeypatch.setattr(video_clip_xl, "PUBLISHED", config_for(clip_tokenizer))


@pytest.fixture
def copied(right, tmp_path):
    """A function: layout -> a copy of its folder that a test may damage."""
    return lambda layout: shutil.copytree(right[layout], tmp_path / "copy")


def refusal(layout, place):
    """The message with which a reward refuses a place: of one line, and an error of our own."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_reward(layout.partition(",")[0], place)
    raised_in = Path(traceback.extract_tb(caught.value.__traceback__)[-1].filename)
    assert raised_in.is_relative_to(PACKAGE), f"a bare error of {raised_in}: {caught.value!r}"
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_right_folders_load(right, layout):
    assert load_reward(layout.partition(",")[0], right[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_without_files_of_a_reward(layout, tmp_path):
    for there, found in (("", "It is empty"), ("notes.txt", "It has notes.txt")):
        if there:
            (tmp_path / there).write_text("my notes")
        message = refusal(layout, tmp_path)
        assert str(tmp_path) in message
        assert found in message
        lacking = LAYOUTS[layout][0].replace("11352", "<step>")
        assert lacking in message, message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_text_file_in_place_of_a_folder(layout, tmp_path):
    (tmp_path / "notes.txt").write_text("my notes")
    assert "notes.txt" in refusal(layout, tmp_path / "notes.txt")


@pytest.mark.parametrize(("layout", "file"), SIDE_FILES)
def test_a_missing_file_is_named_with_those_that_are_there(copied, layout, file):
    folder = copied(layout)
    (folder / file).unlink()
    message = refusal(layout, folder)
    assert Path(file).name in message
    beside = sorted(path.name for path in (folder / file).parent.iterdir())
    if file == WEIGHTS:
        beside = ["checkpoint-11352/", "config.json"]
    assert any(name in message for name in beside), message


CONTENTS = {
    "empty": b"",
    "text": b"a red circle\n",
    "no object": b"[1, 2]",
    "an empty object": b"{}",
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(("layout", "file"), SIDE_FILES)
def test_a_file_with_other_contents_is_named(copied, layout, file, content):
    folder = copied(layout)
    (folder / file).write_bytes(CONTENTS[content])
    message = refusal(layout, folder)
    if "tokenizer" in file:  # a tokenizer consists of several files
        assert str((folder / file).parent) in message
    else:
        assert Path(file).name in message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_folder_of_another_reward_is_refused(right, layout):
    """Also with the file of weights renamed to the one that is expected."""
    reward = layout.partition(",")[0]
    same = (
        {"clip", "pickscore", "clip, safetensors"},
        {"image_reward", "image_reward, ours", "image_grid"},
    )
    for other in LAYOUTS:
        alike = any({layout, other} <= group for group in same)
        if alike or other.partition(",")[0] == reward:
            continue
        assert str(right[other]) in refusal(layout, right[other])


def change_weights(file, change):
    """Rewrite a file of weights after `change(state)`, in its own format."""
    if file.suffix == ".safetensors":
        state = load_file(file)
        change(state)
        save_file(state, file, metadata={"format": "pt"})
        return
    content = torch.load(file, weights_only=True)
    change(content.get("state_dict", content))
    torch.save(content, file)


def halve(state):
    for name, tensor in state.items():
        if tensor.ndim:
            state[name] = tensor[: len(tensor) // 2].clone()


def flatten(state):
    for name, tensor in state.items():
        state[name] = tensor.flatten().clone()


def rename(state):
    for name in list(state):
        state[f"module.{name}"] = state.pop(name)


def of_another_model(state):
    state.clear()
    state |= {"conv.weight": torch.zeros(3, 3), "conv.bias": torch.zeros(3)}


@pytest.mark.parametrize("change", [halve, flatten, rename, of_another_model])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_weights_are_refused(copied, layout, change):
    folder = copied(layout)
    change_weights(folder / LAYOUTS[layout][0], change)
    message = refusal(layout, folder)
    assert str(folder) in message
    assert "complete" in message or "not a " in message or "incomplete LoRA" in message


@pytest.mark.parametrize(("layout", "file"), [pair for pair in REST if "config" in pair[1]])
def test_a_config_with_other_values_is_refused(copied, layout, file):
    """Each value of the config, and of the objects in it, is replaced by a text or null."""
    folder = copied(layout)
    config = json.loads((folder / file).read_text())
    sizes = ("vision", "text", "vision_config", "text_config", "data_config", "peft_lora_config")
    for part in (name for name in sizes if isinstance(config.get(name), dict)):
        for wrong in ("ten", None, []):
            (folder / file).write_text(json.dumps(config | {part: wrong}))
            if wrong is None and part.endswith("_config") and file == "config.json":
                continue  # transformers then takes its own sizes, which are refused by shape
            assert str(folder) in refusal(layout, folder)


@pytest.mark.parametrize("layout", ["clip", "clip, safetensors", "qwen3_vl_embedding"])
def test_the_config_of_another_type_of_model_is_refused(copied, layout):
    folder = copied(layout)
    config = json.loads((folder / "config.json").read_text())
    expected = config["model_type"]
    for other in ("bert", "siglip", None, 3):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": other}))
        message = refusal(layout, folder)
        assert f"not a {expected} model" in message
        assert str(other) in message or other is None


@pytest.mark.parametrize("layout", ["clip, safetensors", "qwen3_vl_embedding"])
def test_weights_in_several_files_lack_one(copied, layout):
    folder = copied(layout)
    weights = load_file(folder / "model.safetensors")
    names, half = sorted(weights), len(weights) // 2
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for part, chosen in zip(parts, (names[:half], names[half:]), strict=True):
        save_file({n: weights[n] for n in chosen}, folder / part, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    places = {name: parts[i >= half] for i, name in enumerate(names)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert load_reward(layout.partition(",")[0], folder)
    (folder / parts[1]).unlink()
    message = refusal(layout, folder)
    assert f"has no {parts[1]}" in message
    assert parts[0] in message
    index.write_text("{}")
    assert "lacks weight_map" in refusal(layout, folder)


def test_the_tokenizer_of_another_model_is_refused(copied, right):
    """CLIP's has no [CLS] token, and transformers would index beyond the embeddings with Qwen's."""
    for source in ("clip", "qwen3_vl_embedding"):
        folder = copied("image_reward, ours")
        for file in right[source].glob("tokenizer*"):
            shutil.copy(file, folder)
        message = refusal("image_reward, ours", folder)
        assert "a BERT tokenizer with a [CLS] token" in message
        shutil.rmtree(folder)


@pytest.mark.parametrize("layout", ["hpsv2", "image_reward", "video_clip_xl"])
def test_a_tokenizer_that_the_hub_cannot_give_is_named(copied, layout):
    """Published files come without one. No test has a network."""
    folder = copied(layout)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(
        OSError, match=r"the tokenizer of the weights in .*copy: .* not in the local"
    ):
        load_reward(layout, folder)
