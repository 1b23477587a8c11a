"""Generators: policies over diffusers pipelines.

A policy encodes prompts, predicts velocities and decodes latents. It does not depend on rewards.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

from bpgo.files import cached_snapshot, check_weights, from_hub, resolve
from bpgo.registry import TABLES, arguments, find


def load_generator(path_or_hub_id: str, policy: str | None = None, **options):
    """The policy for a diffusers folder, a shipped name (`tiny-flux`) or a hub id.

    The class of the pipeline in its model_index.json determines the policy. policy: your own class
    instead, as `module:attribute`. It is called with the options, and with `path`, `dtype` and
    `device` if its signature has them. If it has a classmethod `load`, as a subclass of
    `FluxPolicy` has, it is loaded from a pipeline's folder or hub id like the policies here.
    options: dtype, device, height, width (pixels), guidance, max_sequence_length; for Wan also
    frames, guidance_2, cfg_gradient and negative_prompt.

    Raises FileNotFoundError for a folder that is not a pipeline, ValueError for damaged weights, a
    pipeline without a policy and an option that the policy does not have, and OSError for a hub id
    that cannot be fetched.
    """
    placement = {name: options.pop(name) for name in ("dtype", "device") if name in options}
    if policy is not None and not hasattr(find("generator", policy), "load"):
        found, offered = find("generator", policy), {"path": path_or_hub_id} | placement
        return found(**arguments(found, offered, options, f"generator {policy!r}"))
    place = resolve(path_or_hub_id)
    index = _check_pipeline(place) if isinstance(place, Path) else _fetch_index(place)
    found, options = pipeline_policy(index, path_or_hub_id, policy, options)
    with nullcontext() if isinstance(place, Path) else from_hub(place, "generator"):
        return found.load(place, **placement, **options)


def pipeline_policy(index: Path, path: str, policy: str | None, options: dict) -> tuple[type, dict]:
    """The policy class of a pipeline and its options, which are checked.

    index: its model_index.json. path: how messages refer to it. Raises ValueError for a pipeline
    without a policy, a policy of other pipelines and an option that the policy does not have.
    """
    known_as, table = _pipeline_class(index), TABLES["generator"]
    kind = policy or known_as
    if kind in table and known_as in table and table[kind] != table[known_as]:
        raise ValueError(
            f"generator.policy={kind} does not fit {path}, which is a {known_as}: set "
            f"generator.policy=null"
        )
    if policy is None and kind not in table:
        known = ", ".join(table)
        raise ValueError(
            f"{path} is a {kind}, for which there is no policy (there are policies for "
            f"{known}): write one and name it in generator.policy"
        )
    found = find("generator", kind)
    return found, arguments(found, {}, options, f"{path} ({kind})", passed=1)


def _check_pipeline(folder: Path) -> Path:
    """The model_index.json of a folder whose weights are intact."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{folder} is not a diffusers pipeline: it has no model_index.json")
    check_weights(folder)
    return index


def _fetch_index(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download

    with from_hub(hub_id, "generator"):
        index = Path(hf_hub_download(hub_id, "model_index.json"))
    folder = cached_snapshot(hub_id)
    if folder is not None:
        check_weights(folder)
    return index


def _pipeline_class(index: Path) -> str:
    try:
        return json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{index} is damaged: it does not name a pipeline class. Copy it again"
        ) from None
