"""How a tiny FLUX pipeline of any world is trained: autoencoder, then flow matching."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpgo.generators.flux import FluxPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from bpgo.worlds.pretrain.fit import batches, optimise, trainable

GUIDANCE = 3.5  # the default of FluxPipeline, the only value the guidance embedding is trained at


def policy_of(pipeline) -> FluxPolicy:
    """The policy of a tiny pipeline: images of 32 x 32 pixels."""
    return FluxPolicy(pipeline, height=32, width=32, guidance=GUIDANCE)


def fit_autoencoder(
    vae,
    images: Tensor,
    steps: int,
    lr: float,
    generator: torch.Generator,
    posterior_generator: torch.Generator | None = None,
) -> None:
    """Train on absolute plus squared error and a light KL term; scale latents to unit variance.

    images: (N, 3, 32, 32) in [0, 1]. generator: draws the batches. posterior_generator: draws from
    the posterior; None for the global generator.
    """
    index = batches(len(images), 48, generator)

    def loss() -> Tensor:
        x = images[next(index)] * 2 - 1
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample(posterior_generator)).sample - x
        return error.abs().mean() + error.square().mean() + 1e-5 * posterior.kl().mean()

    optimise(list(vae.parameters()), steps, lr, loss, "autoencoder")
    vae.eval().requires_grad_(False).half().float()
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    latents = latents_of(vae, images[:2048])
    scale, shift = 1 / latents.std().item(), latents.mean().item()
    vae.register_to_config(scaling_factor=scale, shift_factor=shift)


@torch.no_grad()
def latents_of(vae, images: Tensor) -> Tensor:
    """(B, 4, 8, 8) latents, at unit variance, of (B, 3, 32, 32) images in [0, 1]."""
    latents = torch.cat([vae.encode(x * 2 - 1).latent_dist.mode() for x in images.split(128)])
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def trained_parts(pipeline) -> list[nn.Module]:
    """The parts that flow matching trains: the transformer and both text encoders."""
    return [pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2]


def fit_flow(
    pipeline,
    latents: Tensor,
    captions: list[list[str]],
    steps: int,
    batch: int,
    lr: float,
    shift: float,
    generator: torch.Generator,
    rng: random.Random,
    name: str,
) -> None:
    """Flow matching, `v = noise - data`, of transformer and text encoders together.

    latents: (N, 4, 8, 8). captions: several per latent, one of which is drawn each time. shift: as
    in `flow_loss`. Weights are rounded to half precision at the end.
    """
    policy = policy_of(pipeline)
    index = batches(len(latents), batch, generator)

    def loss() -> Tensor:
        chosen = next(index)
        prompts = [captions[i][rng.randrange(len(captions[i]))] for i in chosen.tolist()]
        return flow_loss(policy, latents[chosen], prompts, shift, generator)

    optimise(trainable(trained_parts(pipeline)), steps, lr, loss, name)
    for module in (*trained_parts(pipeline), pipeline.vae):
        module.half().float()


def flow_loss(
    policy: FluxPolicy,
    data: Tensor,
    captions: list[str],
    shift: float,
    generator: torch.Generator,
) -> Tensor:
    """Squared error of the velocity of (B, 4, 8, 8) latents, each at a random sigma.

    shift: sigma is uniform for 1 and biased towards high noise above 1.
    """
    noise = torch.randn(data.shape, generator=generator)
    u = torch.rand(len(data), generator=generator)
    sigma = shift * u / (1 + (shift - 1) * u)
    s = sigma[:, None, None, None]
    velocity = policy.velocity((1 - s) * data + s * noise, sigma, policy.embed(captions))
    return F.mse_loss(velocity, noise - data)


@torch.no_grad()
def sample(policy: FluxPolicy, prompts: list[str], seed: int) -> Tensor:
    """(B, 3, 32, 32) images, sampled with 10 ODE steps."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(prompts), *policy.latent_shape(), generator=generator)
    return policy.decode(integrate(policy, noise, policy.encode(prompts), sigma_grid(10)))
