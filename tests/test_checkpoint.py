"""Checkpoints: what they keep, which are found, and what is said of a damaged one."""

import json
import shutil

import pytest
import torch

from bpgo.checkpoint import (
    CheckpointError,
    checkpoint_folder,
    checkpoints,
    delete_old,
    iteration_of,
    load_state,
    pack,
    save_state,
    unpack,
)
from tests.small_trainers import all_equal


class Model:
    """Two parameters, of which the second is trained only if asked, with averages and AdamW."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        names = ("transformer.weight", "transformer_2.bias")
        self.parameters = {
            name: torch.nn.Parameter(torch.randn(3, 2, generator=generator)) for name in names
        }
        self.average = {n: p.detach() + 1 for n, p in self.parameters.items()}
        self.optimiser = torch.optim.AdamW(self.parameters.values(), lr=0.1)

    def step(self, both=True):
        first, second = self.parameters.values()
        (first.square().sum() + (second.square().sum() if both else 0)).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def pack(self):
        return pack(self.parameters, self.average, self.optimiser)

    def unpack(self, tensors):
        unpack(tensors, self.parameters, self.average, self.optimiser)


# ------------------------------------------------------------------------------------- the state


@pytest.mark.parametrize("both", [True, False])
def test_a_restored_model_continues_bit_for_bit(tmp_path, both):
    model = Model(0)
    model.step(both)
    torch.manual_seed(5)
    torch.rand(3)
    save_state(tmp_path / "checkpoint-000001", model.pack(), {"iteration": 1, "prior": {"a": 0.1}})
    expected_noise = torch.rand(3)

    tensors, state = load_state(tmp_path / "checkpoint-000001")
    other = Model(1)
    other.unpack(tensors)
    assert torch.equal(torch.rand(3), expected_noise)
    assert (state["iteration"], state["prior"]) == (1, {"a": 0.1})
    assert other.parameters["transformer.weight"].requires_grad
    for trained in (model, other):
        trained.step()
    found, expected = other.pack(), model.pack()
    assert {name.split("/")[0] for name in found} == {"weights", "ema", "optimiser", "rng"}
    assert all_equal(found, expected)


def test_a_checkpoint_replaces_one_of_the_same_name(tmp_path):
    folder = tmp_path / "checkpoint-000001"
    for number in (1, 2):
        save_state(
            folder, {"a": torch.full((2,), float(number))}, {"iteration": number, "prior": {}}
        )
    tensors, state = load_state(folder)
    assert tensors["a"].tolist() == [2.0, 2.0]
    assert state["iteration"] == 2
    assert [place.name for place in tmp_path.iterdir()] == [folder.name]


# ------------------------------------------------------------------------------------------ names


def test_only_complete_checkpoints_are_found_and_in_order_of_iteration(tmp_path):
    found = ["checkpoint-000002", "checkpoint-000010", "checkpoint-1000000"]
    others = ["checkpoint-12", "checkpoint-000003-old", "my-checkpoint-000001", "checkpoint-abc"]
    others += ["checkpoint-0000003", "checkpoint-\u0660\u0660\u0660\u0660\u0660\u0661"]
    for name in [*found, *others, ".checkpoint-000004.partial", "final"]:
        (tmp_path / name).mkdir()
    assert [place.name for place in checkpoints(tmp_path)] == found
    assert [iteration_of(place) for place in checkpoints(tmp_path)] == [2, 10, 1_000_000]
    for place in checkpoints(tmp_path):
        assert checkpoint_folder(tmp_path, iteration_of(place)) == place
    delete_old(tmp_path, keep=2)
    assert [place.name for place in checkpoints(tmp_path)] == found[1:]
    for name in others:
        assert (tmp_path / name).exists()


def test_a_file_with_the_name_of_a_checkpoint_is_none_and_is_left_alone(tmp_path):
    (tmp_path / "checkpoint-000001").write_text("a file")
    (tmp_path / "checkpoint-000002").mkdir()
    (tmp_path / "checkpoint-000003").mkdir()
    assert [place.name for place in checkpoints(tmp_path)] == [
        "checkpoint-000002",
        "checkpoint-000003",
    ]
    delete_old(tmp_path, keep=1)
    assert (tmp_path / "checkpoint-000001").read_text() == "a file"


def test_without_a_folder_there_are_no_checkpoints(tmp_path):
    assert checkpoints(tmp_path / "nowhere") == []


# ----------------------------------------------------------------------------------------- damage


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "checkpoint-000004"
    save_state(folder, {"a": torch.arange(1000.0)}, {"iteration": 4, "prior": {}})
    return folder


def cut(folder):
    data = (folder / "state.safetensors").read_bytes()
    (folder / "state.safetensors").write_bytes(data[:-100])


def flip(folder):
    data = bytearray((folder / "state.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "state.safetensors").write_bytes(bytes(data))


def without_digest(folder):
    state = json.loads((folder / "state.json").read_text())
    del state["sha256"]
    (folder / "state.json").write_text(json.dumps(state))


DAMAGE = {
    "cut": (cut, "is damaged .*: rename it, .* to resume from the checkpoint before it$"),
    "flipped": (flip, "is damaged "),
    "empty state": (lambda folder: (folder / "state.json").write_text(""), "is damaged "),
    "no digest": (without_digest, "is damaged "),
    "no tensors": (
        lambda folder: (folder / "state.safetensors").unlink(),
        r"is not a checkpoint: .*state\.safetensors is missing$",
    ),
    "no state": (
        lambda folder: (folder / "state.json").unlink(),
        r"is not a checkpoint: .*state\.json is missing$",
    ),
    "no folder": (shutil.rmtree, r"is not a checkpoint: .*state\.json is missing$"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_by_name(saved, kind):
    damage, says = DAMAGE[kind]
    load_state(saved)
    damage(saved)
    with pytest.raises(CheckpointError, match=rf"checkpoint-000004 {says}"):
        load_state(saved)
