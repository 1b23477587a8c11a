"""Runs that start from existing adapters (`generator.lora`)."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from bpgo import checkpoint
from bpgo.export import export_run
from bpgo.files import read_log
from bpgo.generators.lora_files import NAME
from bpgo.setup import with_lora
from tests.small_trainers import all_equal, rollout_of, weights

pytestmark = pytest.mark.usefixtures("one_thread")
LORA = {"lora_rank": 2, "lora_alpha": 7.0}
FAST = {"learning_rate": 1e-2}


def config_with(trees, **generator):
    from bpgo.config import build_config
    from tests.small_trainers import merged

    return build_config(merged(trees["t2i"], {"generator": generator}))


@pytest.mark.parametrize("task", ["t2i", "i2v"])
def test_a_run_starts_as_the_run_whose_adapters_it_continues(make, task):
    first = make(task, generator=LORA, optimiser=FAST, iterations=1)
    first.train()
    second = make(task, generator={"lora": str(first.output / "final")}, optimiser=FAST)
    assert second.config.generator.lora_rank == 2
    assert second.config.generator.lora_alpha == 7
    assert all_equal(weights(second), weights(first))
    first.iteration = 0  # so that both draw the same prompts and noise
    for ours, theirs in zip(rollout_of(second).parts, rollout_of(first).parts, strict=True):
        assert torch.equal(ours.latents, theirs.latents)


def test_such_a_run_resumes_and_exports_like_any_other(make, tmp_path):
    first = make(generator=LORA, optimiser=FAST, iterations=1)
    first.train()
    start = {"lora": str(first.output / "final")}
    whole = make(generator=start, optimiser=FAST, iterations=2)
    before = weights(whole)
    whole.train()
    assert not all_equal(weights(whole), before)
    half = make(generator=start, optimiser=FAST, iterations=1, output=tmp_path / "resumed")
    half.train()
    resumed = make(generator=start, optimiser=FAST, iterations=2, output=half.output)
    assert resumed.iteration == 1
    resumed.train()
    found, expected = (
        checkpoint.load_state(run.output / "checkpoint-000002")[0] for run in (resumed, whole)
    )
    assert all_equal(found, expected)
    again = export_run(whole.output, tmp_path / "again")
    assert all_equal(load_file(again / NAME), load_file(whole.output / "final" / NAME))
    card = (again / "README.md").read_text(encoding="utf-8")
    assert "rank 2, alpha 7" in card


def test_the_reference_is_the_starting_model_with_these_adapters(make, shared_cache):
    """The prior `sft` is the mean reward of the first evaluation, which has the same samples."""
    first = make(generator=LORA, optimiser={"learning_rate": 3e-2}, iterations=2)
    first.train()
    changes = {"prior": {"name": "sft", "samples": 2}, "iterations": 1, "optimiser": FAST}
    second = make(generator={"lora": str(first.output / "final")}, **changes)
    plain = make(generator=LORA, **changes)
    second.train()
    row = read_log(second.output / "evaluations.jsonl")[0]
    assert second.prior.value == pytest.approx(row["reward"], abs=1e-5)
    assert abs(second.prior.value - plain.prior.value) > 1e-3


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"lora_rank": 4}, r"generator\.lora_rank=4, but it is 2 in .*leave generator\.lora_rank"),
        ({"lora_alpha": 2.0}, r"generator\.lora_alpha=2, but it is 7 in .*generator\.lora=null"),
    ],
)
def test_another_rank_or_alpha_is_refused(trees, lora_folder, stated, message):
    with pytest.raises(ValueError, match=message):
        with_lora(config_with(trees, lora=str(lora_folder), **stated))


@pytest.mark.parametrize("stated", [{}, {"lora_rank": 2}, {"lora_rank": 2, "lora_alpha": 7}])
def test_rank_and_alpha_are_those_of_the_file(trees, lora_folder, stated):
    for place in (lora_folder, lora_folder / NAME):
        g = with_lora(config_with(trees, lora=str(place), **stated)).generator
        assert (g.lora_rank, g.lora_alpha, g.lora) == (2, 7.0, str(place))


@pytest.fixture(scope="module")
def lora_folder(tiny_folder, tmp_path_factory):
    from bpgo.generators import load_generator

    policy, folder = load_generator(tiny_folder), tmp_path_factory.mktemp("lora")
    policy.add_lora(2, 7.0)
    policy.save(folder, lora=True)
    return folder


def test_the_trainer_refuses_what_does_not_fit_before_it_loads_anything(
    make, lora_folder, monkeypatch, tmp_path
):
    monkeypatch.setattr("bpgo.setup.load_generator", lambda *_, **__: pytest.fail("it was loaded"))
    shutil.copy(lora_folder / NAME, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((lora_folder / NAME).read_bytes()[:-1])
    for place, message in [
        (tmp_path / "nowhere", "nowhere"),
        (tmp_path / "cut.safetensors", "truncated or damaged"),
        (tmp_path, f"has no file {NAME}"),
    ]:
        with pytest.raises((ValueError, OSError), match=message):
            make(generator={"lora": str(place)})
