"""Footprints: what a sample costs in each model family.

To add a family, write a subclass of `Footprint` in a new module and add one line to
FOOTPRINTS. A published checkpoint of the family is one entry in bpgo.preflight.published.
"""

from __future__ import annotations

from bpgo.config import Config
from bpgo.preflight.footprints.base import Footprint, Sample
from bpgo.preflight.footprints.flux import FluxFootprint
from bpgo.preflight.footprints.wan import WanFootprint, WanImageFootprint
from bpgo.preflight.published import Pipeline

__all__ = ["FOOTPRINTS", "Footprint", "Sample", "footprint_of"]

# by the class of the diffusers pipeline, as in TABLES["generator"] of bpgo.registry
FOOTPRINTS: dict[str, type[Footprint]] = {
    "FluxPipeline": FluxFootprint,
    "WanPipeline": WanFootprint,
    "WanImageToVideoPipeline": WanImageFootprint,
}


def footprint_of(config: Config, pipeline: Pipeline) -> Footprint | None:
    """The footprint of a generator; None for an unknown family or your own policy."""
    name = config.generator.policy or pipeline.class_name
    if name in FOOTPRINTS and pipeline.class_name in FOOTPRINTS:
        name = pipeline.class_name  # one policy of the package may serve several pipelines
    family = FOOTPRINTS.get(name)
    return family(config.generator, pipeline) if family else None
