"""Digests of what a run reads: equal for equal content, and different after any change."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from bpgo import identity
from bpgo.config import build_config
from bpgo.identity import changed_data, data_identity, digest_place, digest_prompts, write_identity
from bpgo.prompts import Prompt
from tests.small_trainers import merged, random_image

GIVEN = {"generator": None, "objective": None, "prior": None, "reward": None}


def test_prompts_have_the_same_digest_only_if_everything_is_the_same():
    image, other = random_image(0), random_image(1)
    prompts = [Prompt("a", image, columns={"answer": 1}), Prompt("b", image, columns={"answer": 2})]
    changed = [
        prompts[::-1],
        prompts[:1],
        [Prompt("A", image, columns={"answer": 1}), prompts[1]],
        [Prompt("a", other, columns={"answer": 1}), prompts[1]],
        [Prompt("a", image, columns={"answer": 3}), prompts[1]],
        [Prompt("a", image), prompts[1]],
    ]
    same = [Prompt("a", image, columns={"answer": 1}), prompts[1]]
    assert digest_prompts(same) == digest_prompts(prompts)
    found = {digest_prompts(other) for other in [prompts, *changed]}
    assert len(found) == len(changed) + 1


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    (place / "vae").mkdir(parents=True)
    save_file({"a": torch.arange(4.0)}, place / "vae" / "model.safetensors")
    (place / "config.json").write_text("{}")
    return place


def test_a_folder_of_weights_changes_with_its_files_and_not_with_its_notes(folder):
    before = digest_place(folder)
    (folder / "README.md").write_text("a note")
    (folder / ".gitignore").write_text("*")
    os.utime(folder / "config.json", (0, 0))
    assert digest_place(folder) == before
    save_file({"a": torch.arange(4.0) + 1e-6}, folder / "vae" / "model.safetensors")
    after = digest_place(folder)
    assert after != before
    (folder / "config.json").rename(folder / "settings.json")
    assert digest_place(folder) not in (before, after)


def test_the_digest_of_a_large_file_is_kept_until_the_file_changes(folder, monkeypatch):
    monkeypatch.setattr(identity, "LARGE", 1)
    file = folder / "vae" / "model.safetensors"
    before = digest_place(file)
    assert digest_place(file) == before
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, (0, 0))  # as a copy that keeps an old time
    assert digest_place(file) != before


def test_what_is_not_on_this_machine_has_no_digest(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert digest_place("owner/model") is None
    assert digest_place("nowhere.safetensors") is None
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    refs = tmp_path / "models--owner--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123abc")
    assert digest_place("owner/model") == "0123abc"


def test_a_run_has_a_digest_of_each_thing_that_it_reads(trees, folder, tmp_path, monkeypatch):
    (tmp_path / "mine_of_identity.py").write_text("def reward(pixels, prompts):\n    return 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    rewards = [{"name": "clip", "path": str(folder)}, {"name": "mine_of_identity:reward"}]
    changes = {"evaluation": {"held_out": {"name": "clip", "path": str(folder)}}}
    tree = merged(trees["t2i"], changes) | {"reward": rewards}
    config = build_config(tree)
    found = data_identity(config, ["a"], ["b"], GIVEN)
    assert found.keys() == {
        "prompts",
        "evaluation.prompts",
        "generator.path",
        "reward.0.path",
        "evaluation.held_out.path",
        "code of mine_of_identity:reward",
    }
    assert found["reward.0.path"] == found["evaluation.held_out.path"] == digest_place(folder)
    given = data_identity(config, ["a"], ["a"], GIVEN | {"generator": object(), "reward": max})
    assert "generator.path" not in given
    assert not any(key.startswith(("reward", "code")) for key in given)


def test_only_what_was_and_is_known_is_compared(tmp_path):
    assert changed_data(tmp_path, {"prompts": "1"}) == []
    write_identity(tmp_path, {"prompts": "1", "reward.path": "2", "generator.path": "3"})
    assert changed_data(tmp_path, {"prompts": "1", "reward.path": "0", "new": "4"}) == [
        "reward.path"
    ]
    assert json.loads((tmp_path / "identity.json").read_text())["prompts"] == "1"
