"""Settings, prompts and rewards of small training runs, and what is compared between two runs."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bpgo import checkpoint
from bpgo.files import read_log
from bpgo.prompts import Prompt
from bpgo.rollout import Rollout, sample_groups

PROMPTS = ["a red circle", "a large blue square", "a shape", "a small cross at the top"]
TASKS = ("t2i", "t2v", "i2v")
VIDEO = {"height": 16, "width": 16, "frames": 5}


def redness(pixels, prompts):
    """A reward of images or videos that has no weights."""
    return 10 * (pixels[..., 0, :, :] - pixels[..., 2, :, :]).flatten(1).mean(1)


def random_image(seed, side=16):
    """An RGB image of noise, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompts_of(task):
    """Four prompts. Of those for image-to-video, the last two differ in their images only."""
    if task != "i2v":
        return PROMPTS
    texts = [*PROMPTS[:3], PROMPTS[2]]
    return [Prompt(text, random_image(i)) for i, text in enumerate(texts)]


def settings_of(task, path):
    """A small run of a task, as a nested dict, with the generator at `path`.

    Of the levels 1, 0.9, 0.75 and 0.5 of the two video tasks, the first two belong to the
    high-noise expert of the image-to-video generator.
    """
    size = {"height": 32, "width": 32} if task == "t2i" else VIDEO | {"guidance": 3.0}
    return {
        "generator": {"path": str(path)} | size,
        "reward": {"name": "clip"},
        "prompts": "given",
        "groups": 2,
        "group_size": 3,
        "iterations": 2,
        "sampling": {
            "steps": 4,
            "shift": 1.0 if task == "t2i" else 3.0,
            "schedule": "flow-grpo",
            "noise_level": 0.7,
        },
        "optimiser": {"learning_rate": 1e-3},
        "evaluation": {"samples": 2, "steps": 2},
    }


def merged(tree, changes):
    """A nested dict with the changes of another."""
    result = tree | changes
    for key, value in changes.items():
        if isinstance(value, dict):
            result[key] = merged(tree.get(key, {}), value)
    return result


def rollout_of(trainer):
    """What an iteration of the trainer samples, before rewards."""
    batch = trainer.draw_batch()
    parts = sample_groups(trainer.policy, batch, trainer.micro_batch, trainer.keep_on)
    return Rollout(batch, list(parts))


def weights(trainer):
    """A copy of the trained weights."""
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


def all_equal(a, b):
    """Whether two dicts of tensors are equal bit for bit. They must have the same names."""
    assert a.keys() == b.keys()
    assert a, "there is nothing to compare"
    return all(torch.equal(a[name], b[name]) for name in a)


def assert_same_run(folder, expected):
    """Two finished runs of 4 iterations are equal bit for bit.

    This covers weights, averages, optimiser, generator and prior, every logged number, and the
    exported transformers.
    """
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (folder / name).read_text() == (expected / name).read_text()
    assert [row["iteration"] for row in read_log(folder / "timing.jsonl")] == [1, 2, 3, 4]
    newest = Path("checkpoint-000004")
    tensors, state = checkpoint.load_state(folder / newest)
    expected_tensors, expected_state = checkpoint.load_state(expected / newest)
    assert state == expected_state
    assert {name.split("/")[0] for name in tensors} == {"weights", "ema", "optimiser", "rng"}
    assert all_equal(tensors, expected_tensors)
    exported = sorted((expected / "final").glob("transformer*/*.safetensors"))
    assert exported, "the expected run has exported nothing"
    for file in exported:
        assert (folder / file.relative_to(expected)).read_bytes() == file.read_bytes()
    assert not list(folder.glob(".*")), "something half-written was left"


def write_prompts(file, task):
    """Write the prompts of a task to a file, and their images next to it."""
    if task != "i2v":
        file.write_text("\n".join(prompts_of(task)))
        return file
    rows = []
    for i, prompt in enumerate(prompts_of(task)):
        prompt.image.save(file.with_name(f"{i}.png"))
        rows.append(json.dumps({"prompt": prompt, "image": f"{i}.png"}))
    file.write_text("\n".join(rows) + "\n")
    return file
