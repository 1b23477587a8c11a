"""Latents and images for the policies, and what plain diffusers makes of the same."""

import json
import shutil

import torch
from PIL import Image

from bpgo.generators.wan import WanPolicy

PROMPTS = ["a red circle", "a small crimson box at the top", "a shape"]


def noise(count, policy):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, *policy.latent_shape(), generator=generator)


def rows(cond, chosen):
    """Some rows of conditions."""
    return {name: value[chosen] for name, value in cond.items()}


def remade(policy, **options):
    """A Wan policy over the same pipeline with other options."""
    size = dict(height=policy.height, width=policy.width, frames=policy.frames)
    return WanPolicy(policy.pipeline, **size | dict(guidance=policy.guidance) | options)


def photos(count, policy, kind="pil"):
    """Images of noise in the size of a policy, as PIL images or as a tensor in [0, 1]."""
    generator = torch.Generator().manual_seed(6)
    pixels = torch.rand(count, policy.height, policy.width, 3, generator=generator)
    levels = (255 * pixels).to(torch.uint8)
    if kind == "pil":
        return [Image.fromarray(level.numpy()) for level in levels]
    return levels.permute(0, 3, 1, 2).float() / 255


def with_index(folder, place, **changes):
    """A copy of a pipeline's folder with changes in its model_index.json."""
    place = shutil.copytree(folder, place)
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | changes))
    return place


def ask_flux(pipeline, x, prompts, sigmas, guidance, output_type, size=(32, 32)):
    """The FluxPipeline's own unpacked latents ("latent") or [0, 1] pixels ("pt")."""
    out = pipeline(
        prompt=prompts,
        height=size[0],
        width=size[1],
        sigmas=sigmas,
        num_inference_steps=len(sigmas),
        guidance_scale=guidance,
        latents=pipeline._pack_latents(x, *x.shape),
        max_sequence_length=16,
        output_type=output_type,
    ).images
    if output_type == "latent":
        out = pipeline._unpack_latents(out, *size, pipeline.vae_scale_factor)
    return out


def ask_wan(policy, x, prompts, sigmas, output_type, **given):
    """The Wan pipeline's own latents ("latent") or [0, 1] pixels ("pt") on this grid of sigmas."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    set_timesteps = scheduler.set_timesteps
    scheduler.set_timesteps = lambda steps, device=None: set_timesteps(
        sigmas=sigmas[:-1].tolist(), device=device
    )
    pipeline = type(policy.pipeline)(
        **policy.pipeline.components | {"scheduler": scheduler},
        boundary_ratio=policy.pipeline.config.boundary_ratio,
    )
    pipeline.set_progress_bar_config(disable=True)
    if policy.pipeline.transformer_2 is not None:
        given["guidance_scale_2"] = policy.guidance_2
    out = pipeline(
        prompt=prompts,
        negative_prompt=policy.negative_prompt,
        height=policy.height,
        width=policy.width,
        num_frames=policy.frames,
        num_inference_steps=len(sigmas) - 1,
        guidance_scale=policy.guidance,
        latents=x,
        max_sequence_length=16,
        output_type=output_type,
        **given,
    ).frames
    torch.testing.assert_close(scheduler.timesteps, 1000 * sigmas[:-1], rtol=1e-6, atol=0)
    return out
