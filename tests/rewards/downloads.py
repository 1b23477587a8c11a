"""A hub that hands out files of a folder, for the rewards that download theirs by name."""

import torch
from transformers import AutoTokenizer

from bpgo.rewards import load_reward
from tests.rewards.layouts import PROMPTS, noisy_images


def check_downloads(name, expected, folder, complete, monkeypatch):
    """The reward of a hub id asks for `expected`, in order, and scores as the one of a folder.

    expected: a (hub id, file) pair for a file, or a hub id for a tokenizer. folder: the published
    files, of which this removes the tokenizer. complete: the same with a tokenizer.
    """
    asked = []

    def download(hub_id, file):
        asked.append((hub_id, file))
        return str(folder / file)

    class Tokenizers:
        @staticmethod
        def from_pretrained(hub_id):
            asked.append(hub_id)
            return AutoTokenizer.from_pretrained(complete)

    for file in folder.glob("tokenizer*"):
        file.unlink()
    with monkeypatch.context() as patch:
        # By name, because transformers replaces its module when a class is first used.
        patch.setattr("huggingface_hub.hf_hub_download", download)
        patch.setattr("transformers.AutoTokenizer", Tokenizers)
        reward = load_reward(name)
    assert asked == expected
    pixels = noisy_images(32, 32)
    came, theirs = reward(pixels, PROMPTS), load_reward(name, complete)(pixels, PROMPTS)
    torch.testing.assert_close(came, theirs, atol=1e-5, rtol=0)
