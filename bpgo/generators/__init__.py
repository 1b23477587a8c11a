"""Policies over diffusers pipelines. A policy encodes prompts, predicts velocities and decodes latents; it knows no rewards."""

from __future__ import annotations

import json
from contextlib import nullcontext
from inspect import signature
from pathlib import Path

from bpgo.files import cached_snapshot, check_weights, from_hub, resolve


def load_generator(path_or_hub_id: str, **options):
    """The policy for a diffusers folder, a shipped name (`tiny-flux`) or a hub id, by the pipeline class in its model_index.json.

    options: dtype, device, height, width (pixels), guidance, max_sequence_length; for Wan also frames, guidance_2, cfg_gradient and
    negative_prompt: see the policies. Raises FileNotFoundError for a folder that is no pipeline, ValueError for damaged weights, a class
    without a policy, or an option that its policy has not, OSError for a hub id that cannot be fetched.
    """
    from bpgo.generators.flux import FluxPolicy
    from bpgo.generators.wan import WanPolicy

    policies = {
        "FluxPipeline": FluxPolicy,
        "WanPipeline": WanPolicy,
        "WanImageToVideoPipeline": WanPolicy,
    }
    place = resolve(path_or_hub_id)
    if isinstance(place, Path):
        index = place / "model_index.json"
        if not index.is_file():
            raise FileNotFoundError(
                f"{place} is not a diffusers pipeline: it has no model_index.json"
            )
        check_weights(place)
    else:
        from huggingface_hub import hf_hub_download

        with from_hub(place, "generator"):
            index = Path(hf_hub_download(place, "model_index.json"))
        if (folder := cached_snapshot(place)) is not None:
            check_weights(folder)
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{index} is damaged (it names no pipeline class): copy or make it again"
        ) from None
    if name not in policies:
        raise ValueError(
            f"{path_or_hub_id} is a {name}; there are policies for {', '.join(policies)}"
        )
    known = {*signature(policies[name]).parameters, "dtype", "device"} - {"pipeline"}
    if unknown := [option for option in options if option not in known]:
        raise ValueError(
            f"{path_or_hub_id} is a {name}, which has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    with from_hub(place, "generator") if isinstance(place, str) else nullcontext():
        return policies[name].load(place, **options)
