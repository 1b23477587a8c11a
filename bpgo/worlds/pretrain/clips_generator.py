"""The tiny Wan pipelines: a video autoencoder, then flow matching on partly wrong captions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpgo.generators.wan import WanPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from bpgo.worlds.clips import oracle
from bpgo.worlds.clips.captions import sample_caption, sample_wording
from bpgo.worlds.clips.scenes import (
    FRAMES,
    SIDE,
    Scene,
    all_scenes,
    sample_pixels,
    sample_scenes,
)
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain.fit import (
    batches,
    card,
    optimise,
    scaled_size,
    scaled_steps,
    stage_steps,
    store,
    trainable,
)
from bpgo.worlds.pretrain.stages import STAGES

WRONG = 0.15  # probability that a caption's shape, colour or motion is that of another scene
CLIPS, BATCH = 8000, 64
FRAME_STEPS = 1800  # training steps of the autoencoder on single frames
# Sigma is biased towards high noise, where the caption decides what the video will show.
SHIFT = 3.0

# ------------------------------------------------------------------------------------- autoencoder


def train_autoencoder(output: Path, scale: float) -> None:
    """Train an AutoencoderKLWan, first on single frames and then on clips.

    Frames are nine times cheaper, and teach everything except motion. The loss is absolute plus
    squared error and a light KL term. latents_mean and latents_std are then set to the world's.
    """
    generator = torch.Generator().manual_seed(STAGES["video_autoencoder"].seed)
    videos = sample_pixels(sample_scenes(scaled_size(6000, scale), generator), generator)
    vae = tiny.video_autoencoder()

    def loss_on(chosen: Tensor) -> Tensor:
        x = chosen.transpose(1, 2) * 2 - 1
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - x
        kl = posterior.kl().mean() / x[0, 0].numel()
        return error.abs().mean() + 2 * error.square().mean() + 1e-5 * kl

    frames = videos.flatten(0, 1)[:, None]
    frame_index = batches(len(frames), 32, generator)
    index = batches(len(videos), 8, generator)
    parameters = list(vae.parameters())
    steps = scaled_steps(FRAME_STEPS, scale)
    optimise(parameters, steps, 3e-3, lambda: loss_on(frames[next(frame_index)]), "frames")
    steps = stage_steps("video_autoencoder", scale)
    optimise(parameters, steps, 2e-3, lambda: loss_on(videos[next(index)]), "videos")
    vae.eval().requires_grad_(False).half().float()
    latents = encode(vae, videos[:1024])
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    _store_autoencoder(output, vae)


def train_decoder(output: Path, scale: float) -> None:
    """Train only the decoder further, with more weight on large errors. Latents do not change."""
    generator = torch.Generator().manual_seed(STAGES["video_decoder"].seed)
    videos = sample_pixels(sample_scenes(scaled_size(6000, scale), generator), generator)
    vae = load_autoencoder(output)
    vae.requires_grad_(False)
    latents, index = encode(vae, videos), batches(len(videos), 8, generator)
    parameters = trainable((vae.decoder, vae.post_quant_conv))

    def loss() -> Tensor:
        chosen = next(index)
        error = vae.decode(latents[chosen]).sample - (videos[chosen].transpose(1, 2) * 2 - 1)
        return error.abs().mean() + 5 * error.square().mean()

    optimise(parameters, stage_steps("video_decoder", scale), 2e-3, loss, "video decoder")
    vae.requires_grad_(False).half().float()
    _store_autoencoder(output, vae)


def _store_autoencoder(output: Path, vae) -> None:
    metrics = measure_autoencoder(vae)
    print(json.dumps(metrics, indent=1))
    what = "AutoencoderKLWan of the tiny Wan pipelines."
    facts = card("video_autoencoder", what, "6 000 clips of 9 frames", metrics)
    facts["command"] += " video_decoder"
    folder = output / "tiny-video-autoencoder"
    store(folder, lambda partial: vae.half().save_pretrained(partial), facts)


def measure_autoencoder(vae) -> dict[str, float]:
    """Errors of the autoencoder, and of the oracle on clean and autoencoded videos; and quality."""
    scenes = sample_scenes(512, torch.Generator().manual_seed(101))
    clean = sample_pixels(scenes, torch.Generator().manual_seed(102))
    decoded = roundtrip(vae, clean)
    metrics = {"mean absolute error, [0, 1] pixels": (decoded - clean).abs().mean().item()}
    for kind, videos in (("clean", clean), ("autoencoded", decoded)):
        for name, value in oracle.error_rate(videos, scenes).items():
            metrics[f"oracle {name}, {kind}"] = value
    quality = oracle.measure(decoded, ["a shape"] * len(scenes))
    for name in ("motion", "visual"):
        metrics[f"{name} quality, autoencoded"] = quality[name].mean().item()
    return metrics


def load_autoencoder(output: Path):
    """The video autoencoder in the output folder, in float32."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(output / "tiny-video-autoencoder", dtype=torch.float32)


@torch.no_grad()
def encode(vae, videos: Tensor) -> Tensor:
    """Raw latents (B, 8, 3, 8, 8), the posterior's modes, of videos (B, 9, 3, 32, 32) in [0, 1]."""
    parts = (videos.transpose(1, 2) * 2 - 1).split(64)
    return torch.cat([vae.encode(part).latent_dist.mode() for part in parts])


@torch.no_grad()
def roundtrip(vae, videos: Tensor) -> Tensor:
    """Videos encoded and decoded again, (B, 9, 3, 32, 32) in [0, 1]."""
    decoded = torch.cat([vae.decode(z).sample for z in encode(vae, videos).split(64)])
    return (decoded.transpose(1, 2) / 2 + 0.5).clamp(0, 1)


# --------------------------------------------------------------------------------------- pipelines


def train_text_to_video(output: Path, scale: float) -> None:
    """Train the transformer and the text encoder of a WanPipeline."""
    pipeline = tiny.wan_pipeline(load_autoencoder(output))
    trained = [pipeline.transformer, pipeline.text_encoder]
    fit_flow(policy_of(pipeline), trained, "wan", STAGES["wan"].seed, scale)
    what = (
        "WanPipeline (text-to-video) of the clips world; call it with height=32, width=32, "
        "num_frames=9."
    )
    _finish(output / "tiny-wan", "wan", what, pipeline)


def train_image_to_video(output: Path, scale: float) -> None:
    """Train the two experts of a WanImageToVideoPipeline, each on its side of the boundary.

    The high-noise expert is trained first, with the text encoder.
    """
    pipeline, seed = tiny.wan_image_pipeline(load_autoencoder(output)), STAGES["wan_image"].seed
    policy = policy_of(pipeline)
    high_noise = [pipeline.transformer, pipeline.text_encoder]
    fit_flow(policy, high_noise, "wan_image", seed, scale, lowest=tiny.BOUNDARY)
    low_noise = [pipeline.transformer_2]
    fit_flow(policy, low_noise, "wan_image", seed + 10, scale, highest=tiny.BOUNDARY)
    what = (
        "WanImageToVideoPipeline of the clips world, with two experts; call it with height=32, "
        "width=32, num_frames=9."
    )
    _finish(output / "tiny-wan-image", "wan_image", what, pipeline)


def policy_of(pipeline, guidance: float = 1.0) -> WanPolicy:
    """The policy of a tiny pipeline: 9 frames of 32 x 32 pixels."""
    return WanPolicy(pipeline, height=SIDE, width=SIDE, frames=FRAMES, guidance=guidance)


def mislabelled(scene: Scene, rng: random.Random) -> Scene:
    """The scene, with shape, colour and motion each replaced with probability WRONG."""
    other = rng.choice(all_scenes())
    shape = other.shape if rng.random() < WRONG else scene.shape
    colour = other.colour if rng.random() < WRONG else scene.colour
    moving = other if rng.random() < WRONG else scene
    return Scene(shape, colour, moving.motion, moving.speed)


def fit_flow(
    policy: WanPolicy,
    trained: list[nn.Module],
    stage: str,
    seed: int,
    scale: float,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> None:
    """Flow matching, `v = noise - data`, at sigma in [lowest, highest), biased towards high noise.

    A tenth of the captions is empty, for guidance. Weights are rounded to half precision at the
    end.
    """
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    scenes = sample_scenes(scaled_size(CLIPS, scale), generator)
    captions = [[sample_caption(mislabelled(s, rng), rng) for _ in range(4)] for s in scenes]
    data, images = _training_data(policy, scenes, generator)
    index = batches(len(data), BATCH, generator)
    # The limits before the shift, where sigma is drawn uniformly.
    low, high = (s / (SHIFT - (SHIFT - 1) * s) for s in (lowest, highest))

    def loss() -> Tensor:
        chosen = next(index)
        noise = torch.randn(BATCH, *data.shape[1:], generator=generator)
        u = low + (high - low) * torch.rand(BATCH, generator=generator)
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        prompts = []
        for i in chosen.tolist():
            empty = rng.random() < 0.1
            prompts.append("" if empty else captions[i][rng.randrange(4)])
        cond = policy.embed(prompts)
        if images is not None:
            cond["image"] = images[chosen]
        s = sigma[:, None, None, None, None]
        velocity = policy.velocity((1 - s) * data[chosen] + s * noise, sigma, cond)
        return F.mse_loss(velocity, noise - data[chosen])

    name = f"{stage}, sigma {lowest:g} to {highest:g}"
    optimise(trainable(trained), stage_steps(stage, scale), 1.5e-3, loss, name)
    for module in trained:
        module.requires_grad_(False).half().float()


def _training_data(
    policy: WanPolicy, scenes: list[Scene], generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Latents (N, 8, 3, 8, 8) at unit variance and, for image-to-video, the image conditions."""
    vae = policy.pipeline.vae
    latents, conditions = [], []
    for start in range(0, len(scenes), 500):
        videos = sample_pixels(scenes[start : start + 500], generator)
        latents.append(encode(vae, videos))
        if policy.takes_images:
            conditions.append(policy.condition(videos[:, 0]))
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    return (torch.cat(latents) - mean) / std, torch.cat(conditions) if conditions else None


def _finish(folder: Path, stage: str, what: str, pipeline) -> None:
    parts = [
        part
        for part in (
            pipeline.transformer,
            pipeline.transformer_2,
            pipeline.text_encoder,
            pipeline.vae,
        )
        if part is not None
    ]
    for part in parts:
        part.half().float()
    metrics = measure_generator(pipeline)
    print(json.dumps(metrics, indent=1))
    for part in parts:
        part.half()
    data = (
        f"{CLIPS} clips with four captions each, in which shape, colour and motion are each wrong "
        f"with probability {WRONG}"
    )
    store(folder, pipeline.save_pretrained, card(stage, what, data, metrics))


def measure_generator(pipeline) -> dict[str, float]:
    """The oracle's metrics of samples of 256 prompts that leave nothing open.

    Samples are made with 8 ODE steps, with and without guidance.
    """
    rng = random.Random(1)
    scenes = [rng.choice(all_scenes()) for _ in range(256)]
    prompts = [sample_wording(scene, rng) for scene in scenes]
    images = sample_pixels(scenes, torch.Generator().manual_seed(1))[:, 0]
    metrics = {}
    for guidance in (1.0, 3.0):
        policy = policy_of(pipeline, guidance)
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(len(scenes), *policy.latent_shape(), generator=generator)
        cond = policy.encode(prompts, images if policy.takes_images else None)
        videos = policy.decode(integrate(policy, noise, cond, sigma_grid(8, SHIFT), 64))
        found = oracle.measure(videos, prompts)
        for name in ("accuracy", "motion", "visual"):
            metrics[f"{name}, guidance {guidance:g}"] = found[name].mean().item()
    return metrics
