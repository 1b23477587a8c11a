"""The conditions of prompts: computed once, on disk as in memory, and shared by processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from bpgo.conditioning import Conditions, encode
from bpgo.config import build_config
from bpgo.generators import load_generator
from bpgo.prompt_files import read_prompts
from bpgo.prompts import key_of
from bpgo.setup import load_policy, make_conditions
from tests.small_trainers import prompts_of

WAN = dict(height=32, width=32, frames=9, guidance=3.0)


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "file", "options"),
    [
        ("tiny-flux", "evaluation", {}),
        ("tiny-wan", "clip-evaluation", WAN),
        ("tiny-wan-image", "image-clip-evaluation", WAN),
    ],
)
def test_conditions_on_disk_are_those_in_memory(name, file, options, tmp_path, monkeypatch):
    policy = load_generator(name, **options)
    prompts = read_prompts(f"prompts/{file}.jsonl")[:3]
    chosen = [prompts[2], prompts[0], prompts[2]]
    expected = Conditions(policy)(chosen)
    stored = Conditions(policy, tmp_path / "conditions")
    stored.prepare(prompts)
    monkeypatch.setattr(policy, "embed", None)  # nothing may be encoded from here on
    assert_close(stored(chosen), expected)
    if name != "tiny-flux":  # the zeros after the end of a prompt are not stored
        size = 4 * sum(value[:1].numel() for value in expected.values())
        assert max(f.stat().st_size for f in (tmp_path / "conditions").iterdir()) < size


def test_processes_share_the_encoding_then_free_the_encoders(trees, tmp_path, monkeypatch):
    """Two processes with the same disk. The second runs while the first waits for it."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    config, prompts = build_config(trees["i2v"]), prompts_of("i2v")
    policy = load_policy(config, Accelerator())
    expected = Conditions(policy)(prompts)
    events, moved = [], []
    encode, encoder = policy.encode, policy.pipeline.text_encoder

    def noted(texts, images):
        events.append(texts)
        return encode(texts, images)

    monkeypatch.setattr(policy, "encode", noted)
    monkeypatch.setattr(encoder, "to", lambda place: moved.append((place, len(events))))

    def process(index, wait):
        accelerator = SimpleNamespace(
            num_processes=2, process_index=index, is_main_process=index == 0, wait_for_everyone=wait
        )
        return make_conditions(config, policy, [*prompts, *prompts], accelerator)

    def first_waits():
        events.append("the first waits")
        process(1, lambda: None)

    conditions = process(0, first_waits)
    encoded = [event for event in events if event != "the first waits"]
    assert sorted(encoded) == sorted([prompt] for prompt in prompts)
    assert events.index("the first waits") == len(prompts) // 2
    # Both move the encoder when all is encoded. The main process exports it later.
    assert moved == [("meta", len(events)), ("cpu", len(events))]
    monkeypatch.setattr(policy, "encode", None)
    assert_close(conditions(prompts), expected)


class Encoder:
    """A policy that encodes a text as its length and, if it has one, the mean of its image."""

    device = "cpu"

    def __init__(self):
        self.encoded = []

    def encode(self, prompts, images=None):
        self.encoded.append([key_of(prompt) for prompt in prompts])
        text = torch.zeros(len(prompts), 6, 2)
        for row, prompt in zip(text, prompts, strict=True):
            row[: len(prompt)] = len(prompt)
        if images is None:
            return {"text": text}
        means = [float(np.asarray(image).mean()) for image in images]
        return {"text": text, "image": torch.tensor(means)}


@pytest.mark.parametrize("on_disk", [False, True])
def test_each_prompt_is_encoded_once_and_alone(on_disk, tmp_path):
    policy = Encoder()
    conditions = Conditions(policy, tmp_path / "conditions" if on_disk else None)
    conditions.prepare(["aa", "", "aa"])
    found = conditions(["bbb", "aa", "bbb", ""])
    assert policy.encoded == [["aa"], [""], ["bbb"]]
    expected = policy.encode(["bbb", "aa", "bbb", ""])
    assert found.keys() == expected.keys()
    assert torch.equal(found["text"], expected["text"])


@pytest.mark.parametrize("on_disk", [False, True])
def test_equal_texts_with_two_images_are_encoded_apart(on_disk, tmp_path):
    policy, prompts = Encoder(), prompts_of("i2v")
    found = Conditions(policy, tmp_path / "conditions" if on_disk else None)(prompts)
    assert len(policy.encoded) == 4
    expected = encode(policy, prompts)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert found["image"][2] != found["image"][3]


def test_another_run_reads_what_is_on_disk(tmp_path):
    first, second = Encoder(), Encoder()
    expected = Conditions(first, tmp_path)(["aa", "b"])["text"]
    found = Conditions(second, tmp_path)(["b", "aa"])["text"]
    assert second.encoded == []
    assert torch.equal(found, expected.flip(0))


@pytest.mark.parametrize("content", [b"", b"not safetensors", None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_encoded_anew(tmp_path, content):
    first, second = Encoder(), Encoder()
    expected = Conditions(first, tmp_path)(["aa", "b"])["text"]
    damaged = Conditions(first, tmp_path)._file("aa")
    damaged.write_bytes(damaged.read_bytes()[:-4] if content is None else content)
    assert torch.equal(Conditions(second, tmp_path)(["aa", "b"])["text"], expected)
    assert second.encoded == [["aa"]]
    assert torch.equal(Conditions(Encoder(), tmp_path)(["aa", "b"])["text"], expected)


def test_prompts_of_which_only_some_have_images_are_refused():
    with pytest.raises(ValueError, match="1 of 5 prompts have no image"):
        encode(Encoder(), ["aa", *prompts_of("i2v")])
