"""How the generator and the rewards of the digits world are trained: `python -m bpgo pretrain digits --output FOLDER`.

Stages, which run on request only since they need scikit-learn's pictures: `digits_judge`, `digits_flux` (the shipped autoencoder is
trained on, then transformer and text encoders are trained), `digits_reward` and `digits_held_out`; `digits` is all four. Architectures,
losses and storage are those of the shapes world.
"""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bpgo.files import SHIPPED, write_atomic
from bpgo.generators.flux import FluxPolicy
from bpgo.rewards.clip import MEAN, STD
from bpgo.rewards.image_reward import ImageReward
from bpgo.rewards.preprocess import centre_crop
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from bpgo.worlds.digits import judge
from bpgo.worlds.digits.captions import (
    VOCABULARY,
    graded_prompts,
    name_digit,
    other_digit,
    sample_caption,
)
from bpgo.worlds.digits.scenes import handwriting, sample_pictures, show
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain.digits_judge import train_judge
from bpgo.worlds.pretrain.fit import (
    SEEDS,
    STEPS,
    batches,
    card,
    optimise,
    roundtrip,
    size,
    steps,
    store,
)
from bpgo.worlds.pretrain.flux import GUIDANCE, flow_loss, latents_of
from bpgo.worlds.pretrain.rewards import finish_reward, fit_preference, save_reward, told_apart

SEEDS |= {"digits_flux": 32, "digits_reward": 33, "digits_held_out": 34, "digits_prompts": 35}
STEPS |= {
    "digits_autoencoder": 700,
    "digits_flux": 3000,
    "digits_reward": 1000,
    "digits_held_out": 600,
}
WRONG = 0.4  # how often a caption is another digit's: what is left to learn
DATA = "500 pictures of the rewards' split, varied into 8 000, half of them autoencoded, noise of 0.02; captions of all kinds"


def digits_pipeline(vae):
    """tiny.flux_pipeline with the vocabulary of digits."""
    pipeline = tiny.flux_pipeline(vae)
    pipeline.register_modules(
        tokenizer=tiny.clip_tokenizer(VOCABULARY), tokenizer_2=tiny.t5_tokenizer(VOCABULARY)
    )
    for encoder, tokenizer in (
        (pipeline.text_encoder, pipeline.tokenizer),
        (pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return pipeline


def fit_autoencoder(pictures: Tensor, generator: torch.Generator, scale: float):
    """The shipped autoencoder, which saw coloured shapes only, trained on for grey strokes; latents scaled to unit variance anew."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(SHIPPED / "tiny-autoencoder", dtype=torch.float32)
    vae.register_to_config(_name_or_path="tiny-autoencoder")  # not where it lies here
    index = batches(len(pictures), 48, generator)

    def loss() -> Tensor:
        x = pictures[next(index)] * 2 - 1
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - x
        return error.abs().mean() + error.square().mean() + 1e-5 * posterior.kl().mean()

    optimise(list(vae.parameters()), steps("digits_autoencoder", scale), 1e-3, loss, "autoencoder")
    vae.eval().requires_grad_(False).half().float().register_to_config(
        scaling_factor=1.0, shift_factor=0.0
    )
    latents = latents_of(vae, pictures[:2048])
    vae.register_to_config(
        scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item()
    )
    return vae


def train_flux(output: Path, scale: float) -> None:
    """Flow matching on varied pictures, each with four captions, of which WRONG are another digit's."""
    generator, rng = (
        torch.Generator().manual_seed(SEEDS["digits_flux"]),
        random.Random(SEEDS["digits_flux"]),
    )
    pictures, digits = sample_pictures("generator", size(12000, scale), generator)
    pipeline = digits_pipeline(fit_autoencoder(pictures, generator, scale))
    policy = FluxPolicy(pipeline, height=32, width=32, guidance=GUIDANCE)
    latents = latents_of(pipeline.vae, pictures)
    said = [
        [
            d if rng.random() >= WRONG else rng.choice([o for o in range(10) if o != d])
            for _ in range(4)
        ]
        for d in digits
    ]
    captions = [[sample_caption(d, rng) for d in row] for row in said]
    index = batches(len(latents), 64, generator)

    def loss() -> Tensor:
        chosen = next(index)
        return flow_loss(
            policy,
            latents[chosen],
            [captions[i][rng.randrange(4)] for i in chosen.tolist()],
            1.5,
            generator,
        )

    trained = [pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2]
    parameters = [p for m in trained for p in m.requires_grad_(True).parameters()]
    optimise(parameters, steps("digits_flux", scale), 1.5e-3, loss, "digits flux")
    for module in (*trained, pipeline.vae):
        module.half().float()
    metrics = measure_generator(
        FluxPolicy(pipeline, height=32, width=32, guidance=GUIDANCE),
        judge.Judge(output / "tiny-digits-judge"),
    )
    print(json.dumps(metrics, indent=1))
    data = f"600 pictures of the generator's split, varied into 12 000 with four captions each, {WRONG:.0%} of these another digit's"
    what = "FluxPipeline of the digits world; call it with height=32, width=32, max_sequence_length=16."
    for module in (*trained, pipeline.vae):
        module.half()
    store(
        output / "tiny-digits-flux",
        pipeline.save_pretrained,
        card("digits_flux", what, data, metrics),
    )


def measure_generator(policy, by: judge.Judge, samples: int = 512) -> dict[str, float]:
    """What the judge reads in 10-step samples of prompts that name a digit, and the autoencoder's error on pictures of the judge."""
    prompts = [row["prompt"] for row in graded_prompts(samples, 401, specified=1.0)]
    noise = torch.randn(
        samples, *policy.latent_shape(), generator=torch.Generator().manual_seed(401)
    )
    with torch.no_grad():
        pictures = policy.decode(integrate(policy, noise, policy.encode(prompts), sigma_grid(10)))
    read, (levels, digits) = by.read(pictures), handwriting("judge_test")
    clean = show(levels)
    decoded = roundtrip(policy.pipeline.vae, clean)
    return {
        "judge's accuracy, digit named": sum(
            d in judge.parse(p) for d, p in zip(read, prompts, strict=True)
        )
        / len(read),
        "no digit seen": sum(d is None for d in read) / len(read),
        "distance to the world": by.distances(pictures).mean().item(),
        "autoencoder's mean absolute error, [0, 1] pixels": (decoded - clean).abs().mean().item(),
        "judge misreads, autoencoded": sum(
            a != b for a, b in zip(by.read(decoded), digits.tolist(), strict=True)
        )
        / len(digits),
    }


def reward_pictures(output: Path, n: int, generator: torch.Generator) -> tuple[list[int], Tensor]:
    """n digits and pictures of them as a generator shows them: half autoencoded, all with a little noise."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(
        output / "tiny-digits-flux", subfolder="vae", dtype=torch.float32
    ).eval()
    pictures, digits = sample_pictures("reward", n, generator)
    pictures[: n // 2] = roundtrip(vae, pictures[: n // 2])
    return digits, (pictures + 0.02 * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


def train_reward(output: Path, scale: float) -> None:
    """CLIPModel by contrast: each picture against the batch's captions, each caption against its pictures."""
    from transformers import CLIPImageProcessorPil

    generator, rng = (
        torch.Generator().manual_seed(SEEDS["digits_reward"]),
        random.Random(SEEDS["digits_reward"]),
    )
    digits, pictures = reward_pictures(output, size(8000, scale), generator)
    tokenizer = tiny.clip_tokenizer(VOCABULARY)
    model, index, pixels = (
        tiny.clip_model(tokenizer),
        batches(len(digits), 128, generator),
        centre_crop(pictures, 32, MEAN, STD),
    )

    def loss() -> Tensor:
        chosen = next(index)
        text = tokenizer(
            [sample_caption(digits[i], rng) for i in chosen.tolist()],
            padding="max_length",
            return_tensors="pt",
        )
        return model(**text, pixel_values=pixels[chosen], return_loss=True).loss

    optimise(list(model.parameters()), steps("digits_reward", scale), 1.5e-3, loss, "digits reward")
    model.half().float().eval()

    def save(folder: Path) -> None:
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)

    what = "CLIPModel, the training reward of the digits world: cosine of picture and caption."
    finish_reward(
        output / "tiny-digits-reward", "digits_reward", "clip", save, what, DATA, preferences()
    )


def train_held_out(output: Path, scale: float) -> None:
    """ImageReward by preference on pictures, first with captions that name the digit: with all it can stay at chance for 1000 steps."""
    generator, rng = (
        torch.Generator().manual_seed(SEEDS["digits_held_out"]),
        random.Random(SEEDS["digits_held_out"]),
    )
    digits, pictures = reward_pictures(output, size(8000, scale), generator)
    config = tiny.image_reward_config()
    config["text"] |= {"vocab_size": 5 + len(VOCABULARY)}
    model, tokenizer = ImageReward(config), tiny.bert_tokenizer(VOCABULARY)
    index = batches(len(digits), 64, generator)
    for caption in (name_digit, sample_caption):
        model.config |= {"mean": 0.0, "std": 1.0}
        fit_preference(
            model,
            tokenizer,
            digits,
            pictures,
            index,
            caption,
            other_digit,
            rng,
            "digits_held_out",
            scale,
        )
    what = "ImageReward architecture, the held-out reward of the digits world, trained in two passes; matched pictures score 1 +- 1."
    save = partial(save_reward, model, tokenizer)
    finish_reward(
        output / "tiny-digits-held-out",
        "digits_held_out",
        "image_reward",
        save,
        what,
        DATA,
        preferences(),
    )


def preferences() -> tuple[Tensor, Tensor, list[str]]:
    """Pictures that no reward was trained on, others that their captions do not fit, and these captions."""
    generator, rng = torch.Generator().manual_seed(402), random.Random(402)
    pictures, digits = sample_pictures("judge_test", 1024, generator)
    rows_of = {d: [i for i, shown in enumerate(digits) if shown == d] for d in set(digits)}
    right, wrong, captions = told_apart(digits, sample_caption, other_digit, rng)
    return (
        *(pictures[[rng.choice(rows_of[d]) for d in column]] for column in (right, wrong)),
        captions,
    )


def write_digit_prompts(folder: Path) -> None:
    """digits-train.jsonl and digits-evaluation.jsonl: JSON lines {prompt, level, bits}, half of them naming a digit."""
    for i, (name, n) in enumerate((("train", 256), ("evaluation", 64))):
        rows = graded_prompts(n, SEEDS["digits_prompts"] + i)
        write_atomic(
            folder / f"digits-{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
        )


STAGES = {
    "digits_judge": train_judge,
    "digits_flux": train_flux,
    "digits_reward": train_reward,
    "digits_held_out": train_held_out,
}
