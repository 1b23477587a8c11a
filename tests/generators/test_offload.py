"""Parts of a pipeline that wait on the CPU, prompts that are encoded once, and what is said when memory runs out."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from bpgo import trainer as trainer_module
from bpgo.conditioning import Conditions
from bpgo.config import build_config, read_config
from bpgo.evaluation import encode
from bpgo.generators import load_generator
from bpgo.generators.offload import Parking
from bpgo.prompts import read_prompts
from bpgo.setup import load_policy, make_conditions, memory_explained
from bpgo.trainer import Trainer
from tests.test_parallel import WORDS


def away(policy):
    """The parts whose frozen weights are not where the CPU keeps them."""
    return {
        name
        for name, frozen in policy.parking.frozen.items()
        if any(t.data_ptr() != kept.data_ptr() for t, kept in frozen)
    }


def test_only_what_is_at_work_is_on_the_device():
    policy = load_generator("tiny-wan-image", height=32, width=32, frames=9, guidance=1.0)
    policy.add_lora(2, 4)
    policy.offload("cpu")
    parts = {"transformer", "transformer_2", "vae", "text_encoder"}
    assert set(policy.parking.frozen) == parts and away(policy) == set()
    (prompt,) = read_prompts("prompts/image-clip-evaluation.jsonl")[:1]
    cond = encode(policy, [prompt])
    assert away(policy) == {"vae"}  # the picture comes after the words
    x = torch.randn(1, *policy.latent_shape())
    for sigma, expert in ((1.0, "transformer"), (0.5, "transformer_2")):
        policy.velocity(x, sigma, cond)
        assert away(policy) == {expert}
    policy.decode(x)
    assert away(policy) == {"vae"}


def test_weights_that_are_trained_stay():
    module = torch.nn.Linear(3, 3)
    module.bias.requires_grad_(False)
    parking = Parking({"it": module, "other": torch.nn.Linear(2, 2).requires_grad_(False)}, "cpu")
    place, kept = module.weight.data_ptr(), module.bias.data_ptr()
    parking.use("it")
    assert module.weight.data_ptr() == place and module.bias.data_ptr() != kept
    parking.use("other")
    assert module.weight.data_ptr() == place and module.bias.data_ptr() == kept


@pytest.mark.parametrize("task", ["t2i", "t2v", "i2v"])
def test_offloading_changes_no_number(presets, tmp_path, monkeypatch, task):
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    logged = []
    for offload in (False, True):
        config = read_config(
            presets[task], ["generator.lora_rank=2", f"generator.offload={offload}"]
        )
        trainer = Trainer(config, tmp_path / str(offload), progress=False)
        logged.append([trainer.step() for _ in range(2)])
        scores = trainer.evaluate().scores["reward"]
    assert logged[0] == logged[1]
    assert scores.isfinite().all()
    files = list((tmp_path / "cache").glob("conditions-*/*.safetensors"))
    assert len(files) == len(WORDS)


@pytest.mark.parametrize("name", ["tiny-flux", "tiny-wan", "tiny-wan-image"])
def test_conditions_on_disk_are_those_in_memory(name, tmp_path):
    sizes = {} if name == "tiny-flux" else dict(height=32, width=32, frames=9, guidance=3.0)
    policy = load_generator(name, **sizes)
    file = {
        "tiny-flux": "evaluation",
        "tiny-wan": "clip-evaluation",
        "tiny-wan-image": "image-clip-evaluation",
    }[name]
    prompts = read_prompts(f"prompts/{file}.jsonl")[:3]
    kept, stored = Conditions(policy), Conditions(policy, tmp_path / "conditions")
    stored.prepare(prompts)
    policy.embed = None  # from here on nothing may be encoded
    found = stored([prompts[2], prompts[0], prompts[2]])
    policy = kept.policy = load_generator(name, **sizes)
    expected = kept([prompts[2], prompts[0], prompts[2]])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    if name != "tiny-flux":  # zeros past the prompts' ends are not stored
        raw = sum(v[:1].numel() for v in expected.values()) * 4
        assert max(f.stat().st_size for f in (tmp_path / "conditions").iterdir()) < raw


def test_processes_share_the_encoding_then_free_the_encoders(presets, tmp_path, monkeypatch):
    """Two processes that share a disk, one of them run where the other waits for it."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    config = read_config(presets["i2v"])
    prompts = read_prompts(config.prompts)
    policy, encoded, moved = load_policy(config, Accelerator()), [], []
    encoding, encoder = policy.encode, policy.pipeline.text_encoder
    expected = Conditions(policy)(prompts)
    monkeypatch.setattr(
        policy, "encode", lambda words, images: (encoded.append(words), encoding(words, images))[1]
    )
    monkeypatch.setattr(encoder, "to", lambda place: moved.append((place, len(encoded))))

    def rank(index, wait):
        told = SimpleNamespace(
            num_processes=2, process_index=index, is_main_process=index == 0, wait_for_everyone=wait
        )
        return make_conditions(config, policy, [*prompts, *prompts], told)

    conditions = rank(0, lambda: (encoded.append("rank 0 waits"), rank(1, lambda: None)))
    assert len(prompts) == len(WORDS) and sorted(map(str, encoded)) == sorted(
        [*(str([str(p)]) for p in prompts), "rank 0 waits"]
    )
    assert encoded.index("rank 0 waits") == len(prompts) // 2
    assert moved == [("meta", len(encoded)), ("cpu", len(encoded))], (
        "when all is encoded; the main process exports them later"
    )
    monkeypatch.setattr(policy, "encode", None)
    for name, value in conditions(prompts).items():
        assert torch.equal(value, expected[name]), name


def test_running_out_of_memory_names_what_to_change():
    config = read_config("t2v-tiny", ["generator.lora_rank=0"])
    for error in (torch.OutOfMemoryError("CUDA out of memory.\nmore"), MemoryError("none")):
        with pytest.raises(
            MemoryError,
            match=r"try sampling\.micro_batch below 32, generator\.gradient_checkpointing=true.*lora_rank=32",
        ):
            with memory_explained(config):
                raise error
    with pytest.raises(MemoryError, match=r"DefaultCPUAllocator"), memory_explained(config):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="something else"), memory_explained(config):
        raise RuntimeError("something else")


def test_running_out_of_memory_while_loading_or_saving_names_what_to_change(
    presets, tmp_path, monkeypatch
):
    def full(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    config = read_config(presets["t2i"], ["iterations=1", "prior.name=running_mean"])
    for place, name in (
        (trainer_module, "load_policy"),
        (trainer_module, "load_rewards"),
        (trainer_module, "make_conditions"),
    ):
        with (
            monkeypatch.context() as patch,
            pytest.raises(
                MemoryError, match=r"try sampling\.micro_batch below 2.*CUDA out of memory\."
            ),
        ):
            patch.setattr(place, name, full)
            Trainer(config, tmp_path / name, progress=False)
    for place, name in ((trainer_module.checkpoint, "pack"), (trainer_module, "export")):
        with (
            monkeypatch.context() as patch,
            pytest.raises(
                MemoryError, match=r"try sampling\.micro_batch below 2.*CUDA out of memory\."
            ),
        ):
            patch.setattr(place, name, full)
            Trainer(config, tmp_path / name, progress=False).train()


def test_offloading_is_for_one_process(tiny_folder, tmp_path):
    from tests import small_runs as runs

    tree = [
        "t2i-tiny",
        "--output",
        tmp_path / "run",
        "generator.offload=true",
        "generator.lora_rank=2",
    ]
    for code, said in runs.together(2, ["train", *tree], tmp_path / "log"):
        assert code == 2 and "generator.offload is for a single process" in said


def test_settings_that_came_later_do_not_stop_an_older_run(tmp_path):
    """A config.json without them is read as having their defaults; one with a setting that differs is refused."""
    import json

    from bpgo.checkpoint import CheckpointError
    from bpgo.config import to_dict
    from bpgo.setup import open_output

    config = read_config("t2v-tiny")
    older = to_dict(config)
    del older["generator"]["offload"], older["sampling"]["shared_noise"]
    older["reward"] = older["reward"][0]  # as it was written when there was only one
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(
        CheckpointError, match=r"other settings \(sampling\.shared_noise: False -> True\)"
    ):
        open_output(tmp_path, config)
    older["sampling"]["shared_noise"] = True
    (tmp_path / "config.json").write_text(json.dumps(older))
    open_output(tmp_path, build_config(to_dict(config)))
