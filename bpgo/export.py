"""Export of the trained model, with a model card, for use with plain diffusers."""

from __future__ import annotations

from pathlib import Path

from bpgo.config import Config
from bpgo.files import atomic_folder
from bpgo.records import aligned

CARD = """---
base_model: {base}
library_name: diffusers
tags: [bpgo, grpo, {kind}]
---

# {base}, post-trained with {objective}

{loading}

- Objective: {objective} ({hyperparameters}), prior {prior}; arXiv 2511.18919.
- Reward: {reward}.
- Prompts: {prompts}; {iterations} iterations of {groups} groups of {group_size}, seed {seed}.
- All settings are in the run's `config.json`.

Means over the prompts of {evaluated}, with {samples} samples each and {steps} ODE steps:

```
{scores}
```
"""

LORA = """Low-rank adapters (rank {rank}, alpha {alpha:g}; the file contains both):

```python
pipeline = DiffusionPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("this folder")
# with two experts, also:
# pipeline.load_lora_weights("this folder/transformer_2", load_into_transformer_2=True)
```"""

FULL = 'All weights: `DiffusionPipeline.from_pretrained("this folder")`.'


def export(policy, config: Config, evaluations: list[dict], folder: Path) -> None:
    """Write the model and its card. If interrupted, no folder is left. Raises OSError."""
    with atomic_folder(folder) as partial:
        policy.save(partial, lora=config.generator.lora_rank > 0)
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "README.md").write_text(model_card(config, evaluations))


def model_card(config: Config, evaluations: list[dict]) -> str:
    """The model card in Markdown, with the hub's header.

    evaluations: rows of the run's evaluations.jsonl; the first and the last are shown.
    """
    g, c = config.generator, config
    return CARD.format(
        base=g.path,
        kind="lora" if g.lora_rank else "full-weights",
        objective=c.objective.name,
        loading=_loading(config),
        hyperparameters=_hyperparameters(config),
        prior=c.prior.name,
        reward=_rewards(config),
        prompts=c.prompts,
        iterations=c.iterations,
        groups=c.groups,
        group_size=c.group_size,
        seed=c.seed,
        evaluated=c.evaluation.prompts or c.prompts,
        samples=c.evaluation.samples,
        steps=c.evaluation.steps,
        scores=_scores(evaluations[0], evaluations[-1]),
    )


def _loading(config: Config) -> str:
    g = config.generator
    if not g.lora_rank:
        return FULL
    return LORA.format(rank=g.lora_rank, alpha=g.lora_alpha or 2 * g.lora_rank, base=g.path)


def _hyperparameters(config: Config) -> str:
    o = config.objective
    sharpness = f"k {o.k:g}" if o.k is not None else f"kappa {o.kappa or 1:g}"
    return f"alpha {o.alpha:g}, beta {o.beta:g}, lambda {o.lam:g}, {sharpness}"


def _rewards(config: Config) -> str:
    terms = []
    for reward in config.reward:
        weights = f" ({reward.path})" if reward.path else ""
        terms.append(f"{reward.scale:g} {reward.name}{weights}")
    return " + ".join(terms)


def _scores(first: dict, last: dict) -> str:
    """A table of every metric before and after training."""
    rows = [["metric", "before", f"after {last['iteration']} iterations"]]
    for name, value in last.items():
        if name in ("iteration", "scores") or value is None:
            continue
        before = first.get(name)
        rows.append([name, "-" if before is None else f"{before:.4f}", f"{value:.4f}"])
    return aligned(rows)
