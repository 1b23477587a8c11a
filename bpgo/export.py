"""Export of the trained model, with a model card, for use with plain diffusers."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bpgo.config import Config
from bpgo.files import SHIPPED, atomic_folder, resolve
from bpgo.records import aligned

CARD = """---
base_model: {header}
library_name: diffusers
tags: [bpgo, grpo, {kind}]
---

# {base}, post-trained with {objective}

{loading}

- Objective: {objective} ({hyperparameters}), prior {prior}; arXiv 2511.18919.
- Reward: {reward}.
- Prompts: {prompts}; {iterations} of {groups} groups of {group_size}, seed {seed}.
- All settings are in the run's `config.json`.

{scores}
"""


def export(policy, config: Config, iterations: int, evaluations: list[dict], folder: Path) -> None:
    """Write the model and its card. If interrupted, no folder is left. Raises OSError.

    iterations, evaluations: as for `model_card`.
    """
    card = model_card(config, list(policy.modules), iterations, evaluations)
    with atomic_folder(folder) as partial:
        policy.save(partial, lora=config.generator.lora_rank > 0)
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "README.md").write_text(card, encoding="utf-8")


def export_run(run: Path, output: Path | None = None, at: int | None = None, policy=None) -> Path:
    """Write the model of a run's checkpoint to a new folder, as the run does at its end.

    output: by default `export-000025` in the run's folder. at: the iteration of the checkpoint;
    None for the newest, 0 for the model that the run started from. policy: the object that was
    passed to Trainer, if there was one. The averaged weights are exported if the run keeps any.

    Returns the folder. Raises FileExistsError if it exists and is not empty, and ValueError or
    OSError as `load_trained` does.
    """
    from bpgo.trained import evaluations_of, find_iteration, load_trained, read_run

    config, at = read_run(run), find_iteration(run, at)
    output = Path(run) / f"export-{at:06d}" if output is None else Path(output)
    if os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists already: choose another folder with --output")
    policy = load_trained(run, config, at, "cpu", policy)
    export(policy, config, at, evaluations_of(run, at), output)
    return output


# ------------------------------------------------------------------------------------- model card


def model_card(config: Config, modules: list[str], iterations: int, evaluations: list[dict]) -> str:
    """The model card in Markdown, with the hub's header.

    modules: the names of the trained modules. iterations: how many the model was trained.
    evaluations: rows of the run's evaluations.jsonl; the first and the last are shown.
    """
    c = config
    return CARD.format(
        header=json.dumps(c.generator.path, ensure_ascii=False),
        base=_shown(c.generator.path),
        kind="lora" if c.generator.lora_rank else "full-weights",
        objective=c.objective.name,
        loading=_loading(config, modules),
        hyperparameters=_hyperparameters(config),
        prior=c.prior.name,
        reward=_rewards(config),
        prompts=_shown(c.prompts),
        iterations=_iterations(iterations),
        groups=c.groups,
        group_size=c.group_size,
        seed=c.seed,
        scores=_scores(config, evaluations),
    )


def _shown(text: str) -> str:
    """A text on one line: control characters are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _iterations(count: int) -> str:
    return f"{count} iteration" if count == 1 else f"{count} iterations"


def _loading(config: Config, modules: list[str]) -> str:
    """What the folder contains, and code that loads it in plain diffusers."""
    g = config.generator
    lines = ["import torch", "from diffusers import DiffusionPipeline"]
    if not g.lora_rank:
        what, base = "All weights", "folder"
    else:
        alpha = g.lora_alpha or 2 * g.lora_rank
        what = f"Low-rank adapters (rank {g.lora_rank}, alpha {alpha:g}; the file contains both)"
        imports, base = _base(g.path)
        lines += imports
    lines += ["", 'folder = "."  # of this file']
    lines += [f"pipeline = DiffusionPipeline.from_pretrained({base}, dtype=torch.{g.dtype})"]
    if g.lora_rank:
        lines += ["pipeline.load_lora_weights(folder)"]
        for name in modules[1:]:  # the low-noise expert of Wan2.2
            lines += [
                f'pipeline.load_lora_weights(f"{{folder}}/{name}", load_into_{name}=True)',
            ]
    code = "\n".join(lines)
    return f"{what}. To load them with diffusers:\n\n```python\n{code}\n```"


def _base(path: str) -> tuple[list[str], str]:
    """Imports, and an expression for the place of the starting model that is valid anywhere."""
    try:
        place = resolve(path)
    except FileNotFoundError:  # of a policy that does not load it
        return [], repr(path)
    if isinstance(place, str):
        return [], repr(place)
    if place.is_relative_to(SHIPPED):
        return [
            "",
            "from bpgo.files import resolve  # to find what bpgo ships",
        ], f"resolve({path!r})"
    return [], repr(str(place.absolute()))


def _hyperparameters(config: Config) -> str:
    o = config.objective
    sharpness = f"k {o.k:g}" if o.k is not None else f"kappa {o.kappa or 1:g}"
    return f"alpha {o.alpha:g}, beta {o.beta:g}, lambda {o.lam:g}, {sharpness}"


def _rewards(config: Config) -> str:
    terms = []
    for reward in config.reward:
        weights = f" ({_shown(reward.path)})" if reward.path else ""
        terms.append(f"{reward.scale:g} {reward.name}{weights}")
    return " + ".join(terms)


def _scores(config: Config, evaluations: list[dict]) -> str:
    """A table of every metric in the first and the last evaluation."""
    if not evaluations:
        return "This model has not been evaluated."
    shown = [evaluations[0]] if len(evaluations) == 1 else [evaluations[0], evaluations[-1]]
    heads = [f"after {_iterations(row['iteration'])}" for row in shown]
    if shown[0]["iteration"] == 0:
        heads[0] = "before"
    rows = [["metric", *heads]]
    for name, value in shown[-1].items():
        if name in ("iteration", "scores") or value is None:
            continue
        values = [row.get(name) for row in shown]
        rows.append([name, *("-" if v is None else f"{v:.4f}" for v in values)])
    e = config.evaluation
    means = (
        f"Means over the prompts of {_shown(e.prompts or config.prompts)}, "
        f"with {e.samples} samples each and {e.steps} ODE steps"
    )
    return f"{means}:\n\n```\n{aligned(rows)}\n```"
