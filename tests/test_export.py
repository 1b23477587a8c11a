"""Invariant 7: what a run exports gives the same pixels in plain diffusers."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, FluxPipeline

from bpgo.conditioning import encode
from bpgo.export import export, model_card
from bpgo.files import read_log
from bpgo.generators.wan import WanPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from tests.generators.pipelines import ask_flux, ask_wan
from tests.small_trainers import PROMPTS, VIDEO, all_equal, weights

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
    assert card == model_card(trainer.config, [first, last])
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
    from bpgo.config import build_config
    from tests.small_trainers import merged

    def config(**changes):
        return build_config(merged(trees["t2i"], changes))

    return config


def test_the_card_has_the_settings_and_the_scores(config, tiny_folder):
    card = model_card(config(), EVALUATIONS)
    lines = card.splitlines()
    assert f"# {tiny_folder}, post-trained with bpgo" in lines
    objective = "bpgo (alpha 0.5, beta 0.5, lambda 1, kappa 1), prior running_mean"
    assert f"- Objective: {objective}; arXiv 2511.18919." in lines
    assert "- Reward: 1 clip." in lines
    assert "- Prompts: given; 2 iterations of 2 groups of 3, seed 0." in lines
    assert "Means over the prompts of given, with 2 samples each and 2 ODE steps:" in lines
    table = [line.split() for line in card[card.index("```\nmetric") :].splitlines()[1:-1]]
    assert table[0] == ["metric", "before", "after", "9", "iterations"]
    assert table[1:] == [["reward", "0.2500", "0.5000"], ["late", "-", "1.0000"]]
    assert "All weights: " in card
    assert "load_lora_weights" not in card


def test_the_card_of_adapters_says_how_to_load_them(config):
    card = model_card(config(generator={"lora_rank": 2}), EVALUATIONS)
    assert "Low-rank adapters (rank 2, alpha 4; the file contains both):" in card
    assert "load_lora_weights" in card
    assert "All weights: " not in card


def test_the_card_names_k_several_rewards_and_the_evaluation_prompts(config):
    rewards = [{"name": "clip", "path": "tiny-reward", "scale": 2.0}, {"name": "hpsv2"}]
    card = model_card(
        config(objective={"k": 40.0}, reward=rewards, evaluation={"prompts": "others.txt"}),
        EVALUATIONS,
    )
    assert "lambda 1, k 40)" in card
    assert "- Reward: 2 clip (tiny-reward) + 1 hpsv2." in card
    assert "over the prompts of others.txt," in card


def test_an_export_that_fails_leaves_nothing(config, tmp_path):
    class Broken:
        def save(self, folder, lora):
            (Path(folder) / "model.safetensors").write_text("half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        export(Broken(), config(), EVALUATIONS, tmp_path / "final")
    assert list(tmp_path.iterdir()) == []
