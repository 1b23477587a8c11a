"""Run folders of the published models, as a trainer leaves them."""

import json

from bpgo.config import read_config, to_dict


def finished(folder, preset, seed, first, last, *overrides, iterations=None):
    """A run folder: its config, and evaluations {metric: value} before and after training.

    iterations: of the last evaluation, the config's by default. Returns the folder.
    """
    config = read_config(preset, [f"seed={seed}", *overrides])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config), indent=1) + "\n")
    end = config.iterations if iterations is None else iterations
    lines = []
    for iteration, values in ((0, first), (100, last), (end, last)):
        scores = {metric: [[value, value]] for metric, value in values.items()}
        lines.append(json.dumps({"iteration": iteration, **values, "scores": scores}))
    (folder / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def flux(reward, pick=0.22, image=1.0):
    """An evaluation of text-to-image."""
    return {"reward": reward, "pickscore": pick, "image_reward": image}
