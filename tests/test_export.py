"""Invariant 7: what a run exports gives the same pixels in plain diffusers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, FluxPipeline
from safetensors import safe_open
from safetensors.torch import load_file

import bpgo
from bpgo.checkpoint import CheckpointError
from bpgo.conditioning import encode
from bpgo.config import build_config
from bpgo.export import export, export_run, model_card
from bpgo.files import read_log
from bpgo.generators import load_generator
from bpgo.generators.flux import FluxPolicy
from bpgo.generators.wan import WanPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from bpgo.trainer import Trainer
from tests.generators.pipelines import ask_flux, ask_wan
from tests.small_trainers import PROMPTS, VIDEO, all_equal, merged, prompts_of, redness, weights

pytestmark = pytest.mark.usefixtures("one_thread")
LORA = {"lora_rank": 2, "lora_alpha": 7.0}


def flux_pixels(pipeline, x, prompts, sigmas):
    return ask_flux(pipeline, x, prompts, sigmas[:-1].tolist(), 3.5, "pt")


@pytest.mark.parametrize("lora", [False, True])
def test_the_export_gives_the_same_images_in_plain_diffusers(
    make, tiny_folder, lora
):  # invariant 7
    metrics = {"blueness": lambda pixels, prompts: pixels[:, 2].mean((1, 2))}
    optimiser = {"ema_decay": 0.5, "learning_rate": 1e-2}
    trainer = make(generator=LORA if lora else {}, optimiser=optimiser, metrics=metrics)
    trainer.train()
    final = trainer.output / "final"
    pipeline = FluxPipeline.from_pretrained(tiny_folder if lora else final, dtype=torch.float32)
    if lora:
        pipeline.load_lora_weights(final)
        assert not (final / "model_index.json").exists()
    x, sigmas, prompts = torch.randn(2, 4, 8, 8), sigma_grid(4), PROMPTS[:2]
    with trainer.averaged_weights():
        cond = trainer.policy.encode(prompts)
        ours = trainer.policy.decode(integrate(trainer.policy, x, cond, sigmas))
    torch.testing.assert_close(flux_pixels(pipeline, x, prompts, sigmas), ours, atol=1e-5, rtol=0)
    untrained = FluxPipeline.from_pretrained(tiny_folder, dtype=torch.float32)
    assert (flux_pixels(untrained, x, prompts, sigmas) - ours).abs().max() > 1e-3

    card = (final / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["base_model"] == str(tiny_folder)
    assert header["tags"] == ["bpgo", "grpo", "lora" if lora else "full-weights"]
    first, last = read_log(trainer.output / "evaluations.jsonl")
    assert card == model_card(trainer.config, ["transformer"], 2, [first, last])
    for name in ("reward", "blueness"):
        (row,) = [line.split() for line in card.splitlines() if line.split()[:1] == [name]]
        assert row == [name, f"{first[name]:.4f}", f"{last[name]:.4f}"]


@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_export_gives_the_same_videos_in_plain_diffusers(
    make, trees, task, lora
):  # invariant 7
    optimiser = {"ema_decay": 0.5, "learning_rate": 1e-2}
    trainer = make(
        task,
        generator=LORA if lora else {},
        optimiser=optimiser,
        sampling={"trained_share": 1.0},
        iterations=1,
    )
    start = weights(trainer)
    trainer.train()
    final, source = trainer.output / "final", trees[task]["generator"]["path"]
    pipeline = DiffusionPipeline.from_pretrained(source if lora else final, dtype=torch.float32)
    if lora:
        assert all("lora" in name for name in start)
        pipeline.load_lora_weights(final)
        if task == "i2v":
            pipeline.load_lora_weights(final / "transformer_2", load_into_transformer_2=True)
        assert not (final / "model_index.json").exists()
    trained = weights(trainer)
    for expert in trainer.policy.modules:
        names = [name for name in start if name.startswith(f"{expert}.")]
        assert not all_equal({n: start[n] for n in names}, {n: trained[n] for n in names})

    theirs = WanPolicy(pipeline, **VIDEO, guidance=3.0)
    untrained = WanPolicy.load(source, **VIDEO, guidance=3.0)
    prompt, sigmas = trainer.prompts[0], sigma_grid(4, 3.0)
    x = torch.randn(1, *theirs.latent_shape(), generator=torch.Generator().manual_seed(0))
    cond = encode(untrained, [prompt])
    with trainer.averaged_weights():
        ours = trainer.policy.decode(integrate(trainer.policy, x, cond, sigmas))
    given = {"image": prompt.image} if task == "i2v" else {}
    pixels = ask_wan(theirs, x, [str(prompt)], sigmas, "pt", **given)
    torch.testing.assert_close(pixels, ours, atol=1e-5, rtol=0)
    before = untrained.decode(integrate(untrained, x, cond, sigmas))
    assert (before - ours).abs().max() > 1e-3


# ----------------------------------------------------------------------------------- model card


EVALUATIONS = [
    {"iteration": 0, "reward": 0.25, "scores": {"reward": [[0.25]]}},
    {"iteration": 9, "reward": 0.5, "nowhere": None, "late": 1.0, "scores": {"reward": [[0.5]]}},
]


@pytest.fixture
def config(trees):
    def config(**changes):
        return build_config(merged(trees["t2i"], changes))

    return config


def card_of(config, evaluations=EVALUATIONS, iterations=9):
    return model_card(config, ["transformer"], iterations, evaluations)


def test_the_card_has_the_settings_and_the_scores(config, tiny_folder):
    card = card_of(config())
    lines = card.splitlines()
    assert f"# {tiny_folder}, post-trained with bpgo" in lines
    objective = "bpgo (alpha 0.5, beta 0.5, lambda 1, kappa 1), prior running_mean"
    assert f"- Objective: {objective}; arXiv 2511.18919." in lines
    assert "- Reward: 1 clip." in lines
    assert "- Prompts: given; 9 iterations of 2 groups of 3, seed 0." in lines
    assert "Means over the prompts of given, with 2 samples each and 2 ODE steps:" in lines
    table = [line.split() for line in card[card.index("```\nmetric") :].splitlines()[1:-1]]
    assert table[0] == ["metric", "before", "after", "9", "iterations"]
    assert table[1:] == [["reward", "0.2500", "0.5000"], ["late", "-", "1.0000"]]
    assert "All weights. To load them with diffusers:" in card
    assert "load_lora_weights" not in card


def test_the_card_of_adapters_says_how_to_load_them(config):
    card = card_of(config(generator={"lora_rank": 2}))
    assert "Low-rank adapters (rank 2, alpha 4; the file contains both)." in card
    assert "load_lora_weights" in card
    assert "All weights" not in card


def test_the_card_names_k_several_rewards_and_the_evaluation_prompts(config):
    rewards = [{"name": "clip", "path": "tiny-reward", "scale": 2.0}, {"name": "hpsv2"}]
    card = card_of(
        config(objective={"k": 40.0}, reward=rewards, evaluation={"prompts": "others.txt"})
    )
    assert "lambda 1, k 40)" in card
    assert "- Reward: 2 clip (tiny-reward) + 1 hpsv2." in card
    assert "over the prompts of others.txt," in card


@pytest.mark.parametrize("evaluations", [[], EVALUATIONS[:1], EVALUATIONS[1:]])
def test_the_card_shows_the_evaluations_that_there_are(config, evaluations):
    card = card_of(config(), evaluations)
    assert "9 iterations of 2 groups" in card
    assert ("This model has not been evaluated." in card) == (not evaluations)
    assert ("before" in card) == (evaluations == EVALUATIONS[:1])
    assert ("after 9 iterations" in card) == (evaluations == EVALUATIONS[1:])


@pytest.mark.parametrize("path", ['it\'s/"odd"', "back\\slash", "Grüße/模型", "a: b # c", "---"])
def test_special_characters_leave_the_card_as_it_is(config, path):
    reward = {"name": "clip", "path": "a\nb"}
    card = card_of(config(generator={"path": path, "lora_rank": 2}, reward=reward, prompts=path))
    header = card.removeprefix("---\n").partition("\n---\n")[0]
    assert yaml.safe_load(header)["base_model"] == path
    assert f"# {path}, post-trained with bpgo" in card.splitlines()
    assert f"- Prompts: {path}; 9 iterations of 2 groups of 3, seed 0." in card.splitlines()
    assert "- Reward: 1 clip (a\\nb)." in card.splitlines()
    compile(snippet(card), "card", "exec")


def snippet(card):
    """The code of a card."""
    return card.partition("```python\n")[2].partition("```")[0]


def test_a_run_of_fewer_iterations_than_it_was_trained_says_how_many_those_were(make, tmp_path):
    folder = tmp_path / "run"
    trainer = make(iterations=4, output=folder, evaluation={"every": 1})
    for _ in range(2):
        trainer._log_evaluation()
        trainer.step()
    trainer.save_checkpoint()
    del trainer
    shorter = make(iterations=1, output=folder, evaluation={"every": 1})
    shorter.train()
    card = (shorter.output / "final" / "README.md").read_text(encoding="utf-8")
    assert "2 iterations of 2 groups" in card
    assert "after 2 iterations" in card
    assert "1 iteration " not in card


# The sum of all weights of the pipeline that a card loads.
LOADED = """
import json, os, sys
sums = []
for folder in json.load(sys.stdin):
    os.chdir(folder)
    card = open("README.md", encoding="utf-8").read()
    names = {}
    exec(card.partition("```python\\n")[2].partition("```")[0], names)
    parts = [names["pipeline"].transformer, getattr(names["pipeline"], "transformer_2", None)]
    sums.append([sum(p.double().sum().item() for p in part.parameters()) for part in parts if part])
print(json.dumps(sums))
"""


def test_the_code_of_the_card_runs_in_plain_diffusers(
    config, tiny_folder, wan_i2v_folder, tmp_path
):
    """Adapters of a shipped model, of one in a folder with an odd name, and of two experts."""
    odd = tmp_path / 'it\'s an "odd" place' / "Grüße\\n"
    shutil.copytree(tiny_folder, odd)
    folders, expected = [], []
    for number, (path, lora) in enumerate(
        [("tiny-flux", True), (odd, True), (wan_i2v_folder, True), (tiny_folder, False)]
    ):
        policy = load_generator(str(path))
        if lora:
            policy.add_lora(2, 7.0)
        for module in policy.modules.values():
            for p in module.parameters():
                p.data += 0.01 if p.requires_grad or not lora else 0
        generator = {"path": str(path)} | (LORA if lora else {})
        folders.append(tmp_path / f"{number} of 'mine'")
        export(policy, config(generator=generator), 3, [], folders[-1])
        modules = policy.modules.values()
        expected.append([sum(p.double().sum().item() for p in m.parameters()) for m in modules])
    root = str(Path(bpgo.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        input=json.dumps([str(folder) for folder in folders]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for found, known in zip(json.loads(done.stdout), expected, strict=True):
        assert found == pytest.approx(known, rel=1e-9)


def test_an_export_that_fails_leaves_nothing(config, tmp_path):
    class Broken:
        modules: ClassVar = {}

        def save(self, folder, lora):
            (Path(folder) / "model.safetensors").write_text("half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        export(Broken(), config(), 9, EVALUATIONS, tmp_path / "final")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- export of a run


@pytest.fixture(scope="module")
def finished_run(trees, tmp_path_factory):
    """The folder of a finished run of two iterations with averaged weights, by kind."""
    folders = {}

    def finished_run(kind):
        if kind in folders:
            return folders[kind]
        task = "i2v" if kind == "experts" else "t2i"
        changes = {
            "generator": {} if kind == "full" else LORA,
            "optimiser": {"ema_decay": 0.5, "learning_rate": 1e-2},
            "sampling": {"trained_share": 1.0},
            "checkpoint_every": 1,
            "evaluation": {"every": 1},
        }
        folder = folders[kind] = tmp_path_factory.mktemp("finished") / "run"
        config = build_config(merged(trees[task], changes))
        Trainer(config, folder, reward=redness, prompts=prompts_of(task), progress=False).train()
        return folder

    return finished_run


@pytest.fixture(params=["full", "lora", "experts"])
def finished(request, finished_run):
    return finished_run(request.param)


def contents(folder):
    """Every file of a folder: tensors and metadata of weights, the bytes of others."""
    found = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        found[str(file.relative_to(folder))] = file.read_bytes()
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy") as stored:
                tensors = {name: stored.get_tensor(name).tobytes() for name in stored.keys()}
                found[str(file.relative_to(folder))] = tensors, stored.metadata()
    return found


def test_the_export_of_the_last_checkpoint_is_what_the_run_exports(finished, tmp_path):
    folder = export_run(finished, tmp_path / "out")
    assert folder == tmp_path / "out"
    expected = contents(finished / "final")
    assert len(expected) > 1
    assert contents(folder) == expected
    assert contents(export_run(finished, tmp_path / "again", at=2)) == expected


def test_the_export_of_an_earlier_checkpoint_has_its_averaged_weights(finished, tmp_path):
    folder = export_run(finished, tmp_path / "out", at=1)
    stored = load_file(finished / "checkpoint-000001" / "state.safetensors")
    exported = {}
    for file in folder.rglob("*.safetensors"):
        part = "transformer_2" if "transformer_2" in file.parts else "transformer"
        if "lora" not in file.name and file.parent.name != part:
            continue  # the autoencoder and the text encoders
        for name, tensor in load_file(file).items():
            exported[f"{part}.{name.removeprefix('transformer.')}"] = tensor
    known = {
        name.removeprefix("ema/").replace(".default.", "."): tensor
        for name, tensor in stored.items()
        if name.startswith("ema/")
    }
    assert all_equal(exported, known)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "1 iteration of 2 groups" in card
    assert "after 1 iteration\n" in card


@pytest.fixture
def copied(finished_run, tmp_path):
    """A copy of a finished run with the checkpoints 1 and 2."""
    shutil.copytree(finished_run("full"), tmp_path / "run")
    return tmp_path / "run"


def test_by_default_an_export_is_in_the_folder_of_the_run(copied):
    assert export_run(copied, at=1) == copied / "export-000001"
    with pytest.raises(FileExistsError, match=r"export-000001 exists already: .* --output"):
        export_run(copied, at=1)


def test_nothing_that_exists_is_overwritten(copied, tmp_path):
    (tmp_path / "empty").mkdir()
    export_run(copied, tmp_path / "empty")
    assert (tmp_path / "empty" / "README.md").is_file()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "dangling"):
        with pytest.raises(FileExistsError, match=f"{name} exists already"):
            export_run(copied, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path / "folder") == ["mine.txt"]


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(copied, tmp_path):
    for at in (3, -1, 100):
        with pytest.raises(CheckpointError, match=f"no checkpoint of iteration {at}. .*: 1, 2;"):
            export_run(copied, tmp_path / "out", at)
    for place in copied.glob("checkpoint-*"):
        shutil.rmtree(place)
    with pytest.raises(CheckpointError, match="no checkpoint yet; --at 0 stands for"):
        export_run(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_iteration_0_is_the_starting_model(copied, tiny_folder, tmp_path):
    """It needs no checkpoint."""
    for place in copied.glob("checkpoint-*"):
        shutil.rmtree(place)
    folder = export_run(copied, tmp_path / "out", at=0)
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert all_equal(load_file(folder / name), load_file(tiny_folder / name))
    assert "0 iterations of" in (folder / "README.md").read_text(encoding="utf-8")


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not the folder of a run: there is no such folder"):
        export_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"it contains no config\.json"):
        export_run(tmp_path)


def test_a_damaged_run_is_refused_and_named(copied, tmp_path):
    log = copied / "evaluations.jsonl"
    log.write_text(log.read_text() + '{"iteration": 2, "rew')  # cut by a kill
    export_run(copied, tmp_path / "cut")
    log.write_text("{\n" + log.read_text())
    with pytest.raises(ValueError, match=r"evaluations\.jsonl, line 1 is damaged"):
        export_run(copied, tmp_path / "out")
    log.unlink()
    card = export_run(copied, tmp_path / "unlogged") / "README.md"
    assert "This model has not been evaluated." in card.read_text(encoding="utf-8")
    state = copied / "checkpoint-000002" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match="checkpoint-000002 is damaged"):
        export_run(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused(copied, tmp_path):
    settings = json.loads((copied / "config.json").read_text())
    settings["generator"]["lora_rank"] = 2
    (copied / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"not made with the model .* and [0-9]+ more"):
        export_run(copied, tmp_path / "out")
    settings["generator"]["path"] = str(tmp_path / "moved")
    (copied / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"the generator of .* cannot be loaded: .*moved"):
        export_run(copied, tmp_path / "out")


def test_a_policy_that_was_an_object_is_passed_again(trees, tiny_folder, tmp_path):
    class OwnPolicy(FluxPolicy):
        pass

    def policy():
        made = OwnPolicy.load(tiny_folder, height=32, width=32)
        made.modules["transformer"].requires_grad_(True)
        return made

    config = build_config(trees["t2i"])
    trainer = Trainer(
        config, tmp_path / "run", policy=policy(), reward=redness, prompts=PROMPTS, progress=False
    )
    trainer.train()
    with pytest.raises(ValueError, match=r"cannot be loaded: .*<locals>.*as an object, pass one"):
        export_run(tmp_path / "run")
    folder = export_run(tmp_path / "run", policy=policy())
    assert contents(folder) == contents(tmp_path / "run" / "final")
