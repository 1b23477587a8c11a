"""Policies over the small pipelines of random weights."""

import pytest
import torch

from bpgo.generators import load_generator
from bpgo.generators.wan import WanPolicy


@pytest.fixture(scope="session")
def flux(tiny_folder):
    return load_generator(tiny_folder, height=32, width=32)


@pytest.fixture(scope="session")
def t2v(wan_folder):
    return WanPolicy.load(wan_folder, height=16, width=16, frames=5, guidance=4.0)


@pytest.fixture(scope="session")
def i2v(wan_i2v_folder):
    size = dict(height=16, width=32, frames=5)
    return WanPolicy.load(wan_i2v_folder, guidance=4.0, guidance_2=2.5, **size)


@pytest.fixture(scope="session")
def t2v_experts(t2v):
    """A text-to-video pipeline with two experts, as Wan2.2-T2V-A14B."""
    from diffusers import WanPipeline, WanTransformer3DModel

    torch.manual_seed(7)
    second = WanTransformer3DModel.from_config(t2v.config)
    return WanPipeline(**t2v.pipeline.components | {"transformer_2": second}, boundary_ratio=0.9)
