"""What a run leaves for plain diffusers: the trained model, and its card: what it was trained on, by what, and how it measures."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError

from bpgo.config import Config
from bpgo.files import write_atomic
from bpgo.records import aligned


def export(policy, config: Config, evaluations: list[dict], final: Path) -> None:
    """Write the model and its card to this folder, beside it at first and moved there when whole. Raises OSError."""
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        policy.save(partial, lora=bool(config.generator.lora_rank))
    except SafetensorError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"cannot write {final}: {error}") from error
    write_atomic(partial / "README.md", model_card(config, evaluations))
    partial.rename(final)


def model_card(config: Config, evaluations: list[dict]) -> str:
    """Markdown with the hub's header, for a run's settings and its evaluations.jsonl; how to load it, alpha and experts included."""
    g, o = config.generator, config.objective
    first, last = evaluations[0], evaluations[-1]
    measures = [
        name
        for name, value in last.items()
        if name not in ("iteration", "scores") and value is not None
    ]
    rows = [["measure", "before", f"after {last['iteration']} iterations"]]
    rows += [
        [m, *("-" if e.get(m) is None else f"{e[m]:.4f}" for e in (first, last))] for m in measures
    ]
    rewards = " + ".join(
        f"{r.scale:g} {r.name}" + (f" ({r.path})" if r.path else "") for r in config.reward
    )
    settings = f"alpha {o.alpha:g}, beta {o.beta:g}, lambda {o.lam:g}, " + (
        f"k {o.k:g}" if o.k is not None else f"kappa {o.kappa or 1:g}"
    )
    if g.lora_rank:
        loading = f"""Low-rank adapters (rank {g.lora_rank}, alpha {g.lora_alpha or 2 * g.lora_rank:g}, which is in the file):

```python
pipeline = DiffusionPipeline.from_pretrained("{g.path}")
pipeline.load_lora_weights("this folder")
# with two experts, also: pipeline.load_lora_weights("this folder/transformer_2", load_into_transformer_2=True)
```"""
    else:
        loading = 'All weights: `DiffusionPipeline.from_pretrained("this folder")`.'
    evaluated = config.evaluation.prompts or config.prompts
    return f"""---
base_model: {g.path}
library_name: diffusers
tags: [bpgo, grpo, {"lora" if g.lora_rank else "full-weights"}]
---

# {g.path}, post-trained with {o.name}

{loading}

- Objective: {o.name} ({settings}), prior {config.prior.name}; arXiv 2511.18919.
- Reward: {rewards}.
- Prompts: {config.prompts}; {config.iterations} iterations of {config.groups} groups of {config.group_size}, seed {config.seed}.
- All settings are in the run's `config.json`.

Means over the prompts of {evaluated}, {config.evaluation.samples} samples each, by {config.evaluation.steps} ODE steps:

```
{aligned(rows)}
```
"""
