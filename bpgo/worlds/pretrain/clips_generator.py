"""The tiny Wan pipelines: a video autoencoder, then transformers and text encoder by flow matching on partly wrong captions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bpgo.generators.wan import WanPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from bpgo.worlds.clips import oracle as clip_oracle
from bpgo.worlds.clips.captions import sample_caption, sample_wording
from bpgo.worlds.clips.scenes import FRAMES, SIDE, Clip, all_clips, sample_clips, sample_videos
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain.fit import SEEDS, batches, card, optimise, size, steps, store

WRONG = 0.15
CLIPS, BATCH = 8000, 64
SHIFT = 3.0  # sigma leans to high noise, where the words decide and not yet the video


def train_video_autoencoder(output: Path, scale: float) -> None:
    """AutoencoderKLWan, on single frames first (nine times cheaper, and all of space is learnt there), then on whole clips.

    Absolute plus squared error and a light KL term; latents_mean and latents_std are then set to the world's.
    """
    generator = torch.Generator().manual_seed(SEEDS["video_autoencoder"])
    videos = sample_videos(sample_clips(size(6000, scale), generator), generator)
    vae = tiny.video_autoencoder()

    def error_of(chosen: Tensor) -> Tensor:
        x = chosen.transpose(1, 2) * 2 - 1
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - x
        return (
            error.abs().mean()
            + 2 * error.square().mean()
            + 1e-5 * posterior.kl().mean() / x[0, 0].numel()
        )

    frames, index = (
        batches(videos.shape[0] * videos.shape[1], 32, generator),
        batches(len(videos), 8, generator),
    )
    parameters = list(vae.parameters())
    optimise(
        parameters,
        steps("frame_autoencoder", scale),
        3e-3,
        lambda: error_of(videos.flatten(0, 1)[next(frames)][:, None]),
        "frames",
    )
    optimise(
        parameters,
        steps("video_autoencoder", scale),
        2e-3,
        lambda: error_of(videos[next(index)]),
        "videos",
    )
    vae.eval().requires_grad_(False).half().float()
    latents = encode(vae, videos[:1024])
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    _store_autoencoder(output, vae)


def train_video_decoder(output: Path, scale: float) -> None:
    """The decoder alone, for longer and with more weight on large errors: latents stay what they were."""
    generator = torch.Generator().manual_seed(SEEDS["video_decoder"])
    videos, vae = (
        sample_videos(sample_clips(size(6000, scale), generator), generator),
        autoencoder(output),
    )
    vae.requires_grad_(False)
    latents, index = encode(vae, videos), batches(len(videos), 8, generator)
    trained = [
        p
        for part in (vae.decoder, vae.post_quant_conv)
        for p in part.requires_grad_(True).parameters()
    ]

    def loss() -> Tensor:
        chosen = next(index)
        error = vae.decode(latents[chosen]).sample - (videos[chosen].transpose(1, 2) * 2 - 1)
        return error.abs().mean() + 5 * error.square().mean()

    optimise(trained, steps("video_decoder", scale), 2e-3, loss, "video decoder")
    vae.requires_grad_(False).half().float()
    _store_autoencoder(output, vae)


def _store_autoencoder(output: Path, vae) -> None:
    clips = sample_clips(512, torch.Generator().manual_seed(101))
    clean = sample_videos(clips, torch.Generator().manual_seed(102))
    decoded = roundtrip(vae, clean)
    quality = clip_oracle.measure(decoded, ["a shape"] * len(clips))
    metrics = {
        "mean absolute error, [0, 1] pixels": (decoded - clean).abs().mean().item(),
        **{f"oracle {k}, clean": v for k, v in clip_oracle.error_rate(clean, clips).items()},
        **{
            f"oracle {k}, autoencoded": v for k, v in clip_oracle.error_rate(decoded, clips).items()
        },
        **{
            f"{name} quality, autoencoded": quality[name].mean().item()
            for name in ("motion", "visual")
        },
    }
    print(json.dumps(metrics, indent=1))
    facts = card(
        "video_autoencoder",
        "AutoencoderKLWan of the tiny Wan pipelines.",
        "6 000 clips of 9 frames",
        metrics,
    )
    facts["command"] += " video_decoder"
    store(
        output / "tiny-video-autoencoder", lambda folder: vae.half().save_pretrained(folder), facts
    )


def mislabelled(clip: Clip, rng: random.Random) -> Clip:
    """The clip with its shape, its colour and its motion each replaced by that of a random clip with probability WRONG."""
    other = rng.choice(all_clips())
    shape, colour = (
        theirs if rng.random() < WRONG else own
        for own, theirs in ((clip.shape, other.shape), (clip.colour, other.colour))
    )
    moving = other if rng.random() < WRONG else clip
    return Clip(shape, colour, moving.motion, moving.speed)


def policy_of(pipeline) -> WanPolicy:
    return WanPolicy(pipeline, height=SIDE, width=SIDE, frames=FRAMES, guidance=1.0)


def fit(
    policy: WanPolicy,
    trained: list,
    stage: str,
    scale: float,
    lowest: float,
    highest: float,
    seed: int,
    name: str,
) -> None:
    """Flow matching, `v = noise - data`, of the modules in `trained`, at sigma in [lowest, highest) leaning to noise.

    A tenth of the captions is empty, for guidance.
    """
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    clips, vae = sample_clips(size(CLIPS, scale), generator), policy.pipeline.vae
    captions = [[sample_caption(mislabelled(clip, rng), rng) for _ in range(4)] for clip in clips]
    latents, conditions = [], []
    for part in range(0, len(clips), 500):
        videos = sample_videos(clips[part : part + 500], generator)
        latents.append(encode(vae, videos))
        if policy.takes_images:
            conditions.append(policy.condition(videos[:, 0]))
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    data = (torch.cat(latents) - mean) / std
    index = batches(len(data), BATCH, generator)
    images = torch.cat(conditions) if conditions else None

    def loss() -> Tensor:
        chosen = next(index)
        noise = torch.randn(BATCH, *data.shape[1:], generator=generator)
        low, high = (s / (SHIFT - (SHIFT - 1) * s) for s in (lowest, highest))  # on the even grid
        u = low + (high - low) * torch.rand(BATCH, generator=generator)
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        cond = policy.embed(
            ["" if rng.random() < 0.1 else captions[i][rng.randrange(4)] for i in chosen.tolist()]
        )
        if images is not None:
            cond["image"] = images[chosen]
        s = sigma[:, None, None, None, None]
        return F.mse_loss(
            policy.velocity((1 - s) * data[chosen] + s * noise, sigma, cond), noise - data[chosen]
        )

    optimise(
        [p for m in trained for p in m.requires_grad_(True).parameters()],
        steps(stage, scale),
        1.5e-3,
        loss,
        name,
    )
    for module in trained:
        module.requires_grad_(False).half().float()


def train_text_to_video(output: Path, scale: float) -> None:
    pipeline = tiny.wan_pipeline(autoencoder(output))
    fit(
        policy_of(pipeline),
        [pipeline.transformer, pipeline.text_encoder],
        "wan",
        scale,
        0.0,
        1.0,
        SEEDS["wan"],
        "wan",
    )
    what = "WanPipeline (text-to-video) of the shapes world; call it with height=32, width=32, num_frames=9."
    _finish(output / "tiny-wan", "wan", what, pipeline)


def train_image_to_video(output: Path, scale: float) -> None:
    """The high-noise expert with the text encoder, then the low-noise expert, each on its own side of the boundary."""
    pipeline, seed = tiny.wan_image_pipeline(autoencoder(output)), SEEDS["wan_image"]
    policy = policy_of(pipeline)
    high = [pipeline.transformer, pipeline.text_encoder]
    fit(policy, high, "wan_image", scale, tiny.BOUNDARY, 1.0, seed, "wan_image, high noise")
    fit(
        policy,
        [pipeline.transformer_2],
        "wan_image",
        scale,
        0.0,
        tiny.BOUNDARY,
        seed + 10,
        "wan_image, low noise",
    )
    what = "WanImageToVideoPipeline of the shapes world, two experts; call it with height=32, width=32, num_frames=9."
    _finish(output / "tiny-wan-image", "wan_image", what, pipeline)


def autoencoder(output: Path):
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(output / "tiny-video-autoencoder", dtype=torch.float32)


def _finish(folder: Path, stage: str, what: str, pipeline) -> None:
    parts = [
        p
        for p in (pipeline.transformer, pipeline.transformer_2, pipeline.text_encoder, pipeline.vae)
        if p is not None
    ]
    for part in parts:
        part.half().float()
    metrics = measure_generator(pipeline)
    print(json.dumps(metrics, indent=1))
    for part in parts:
        part.half()
    data = f"{CLIPS} clips with four captions each, shape, colour and motion each wrong with probability {WRONG}"
    store(folder, pipeline.save_pretrained, card(stage, what, data, metrics))


def measure_generator(pipeline) -> dict[str, float]:
    """The oracle's measures of 8-step ODE samples of 256 fully specified prompts, without guidance and with."""
    rng, metrics = random.Random(1), {}
    clips = [rng.choice(all_clips()) for _ in range(256)]
    prompts = [sample_wording(clip, rng) for clip in clips]
    images = sample_videos(clips, torch.Generator().manual_seed(1))[:, 0]
    for guidance in (1.0, 3.0):
        policy = WanPolicy(pipeline, height=SIDE, width=SIDE, frames=FRAMES, guidance=guidance)
        noise = torch.randn(
            len(clips), *policy.latent_shape(), generator=torch.Generator().manual_seed(2)
        )
        cond = policy.encode(prompts, images if policy.takes_images else None)
        found = clip_oracle.measure(
            policy.decode(integrate(policy, noise, cond, sigma_grid(8, SHIFT), 64)), prompts
        )
        metrics |= {
            f"{name}, guidance {guidance:g}": found[name].mean().item()
            for name in ("accuracy", "motion", "visual")
        }
    return metrics


@torch.no_grad()
def encode(vae, videos: Tensor) -> Tensor:
    """Raw latents (B, 8, 3, 8, 8), the posterior's mode, of videos (B, 9, 3, 32, 32) in [0, 1]."""
    return torch.cat(
        [vae.encode(part.transpose(1, 2) * 2 - 1).latent_dist.mode() for part in videos.split(64)]
    )


@torch.no_grad()
def roundtrip(vae, videos: Tensor) -> Tensor:
    """Videos encoded and decoded again, (B, 9, 3, 32, 32) in [0, 1]."""
    decoded = torch.cat([vae.decode(z).sample for z in encode(vae, videos).split(64)])
    return (decoded.transpose(1, 2) / 2 + 0.5).clamp(0, 1)
