"""The Wan policy against diffusers' own WanPipeline and WanImageToVideoPipeline."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from bpgo.generators.wan import WanPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from tests.generators.pipelines import (
    PROMPTS,
    ask_wan,
    noise,
    photos,
    remade,
    rows,
    with_index,
)

# What Wan keeps in float32.
ISLANDS = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
ISLANDS_WITH_WEIGHTS = ("time_embedder", "scale_shift_table", "norm2")  # the other norms have none


def assert_same(policy, x, cond, prompts, sigmas, **given):
    """A rollout without noise and its pixels are those of the pipeline. Returns the pixels."""
    latents = integrate(policy, x, cond, sigmas)
    assert (latents - x).abs().max() > 0.1  # something happened
    theirs = ask_wan(policy, x, prompts, sigmas, "latent", **given)
    torch.testing.assert_close(latents, theirs, atol=1e-5, rtol=0)
    pixels = policy.decode(latents)
    theirs = ask_wan(policy, x, prompts, sigmas, "pt", **given)
    torch.testing.assert_close(pixels, theirs, atol=1e-5, rtol=0)
    return pixels


@contextmanager
def rows_seen(policy):
    """The batch size of each call, by expert."""
    seen, handles = {}, []
    for name, module in policy.modules.items():
        seen[name] = []

        def note(_, __, given, name=name):
            seen[name].append(len(given["timestep"]))

        handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    yield seen
    for handle in handles:
        handle.remove()


# -------------------------------------------------------- invariant 2: the pipelines' own output


@pytest.mark.parametrize(
    ("count", "size", "shift", "guidance"),
    [
        (1, dict(height=16, width=16, frames=9), 1.0, 4.0),
        (3, dict(height=16, width=32, frames=5), 3.0, 4.0),
        (3, dict(height=32, width=16, frames=1), 3.0, 1.0),
        (1, dict(height=16, width=32, frames=9), 1.0, 0.5),
    ],
)
def test_without_noise_a_rollout_is_the_pipeline_s_own_output(t2v, count, size, shift, guidance):
    policy = remade(t2v, guidance=guidance, negative_prompt="a blue cross", **size)
    prompts = PROMPTS[:count]
    with rows_seen(policy) as seen:
        cond = policy.encode(prompts)
        pixels = assert_same(policy, noise(count, policy), cond, prompts, sigma_grid(3, shift))
    assert pixels.shape == (count, policy.frames, 3, policy.height, policy.width)
    assert ("negative" in cond) is (guidance > 1)
    assert seen["transformer"][:3] == [count * (2 if guidance > 1 else 1)] * 3


@pytest.mark.parametrize(
    ("guidance", "guidance_2"), [(4.0, 2.5), (3.0, None), (4.0, 0.5), (1.0, None), (0.0, 0.5)]
)
def test_two_experts_without_images_are_the_pipeline_s(t2v_experts, guidance, guidance_2):
    size = dict(height=16, width=16, frames=5)
    policy = WanPolicy(t2v_experts, guidance=guidance, guidance_2=guidance_2, **size)
    x, prompts = noise(2, policy), PROMPTS[:2]
    with rows_seen(policy) as seen:
        assert_same(policy, x, policy.encode(prompts), prompts, sigma_grid(4, 3.0))
    assert seen["transformer"]
    assert seen["transformer_2"]


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_one_image_is_the_pipeline_s(i2v, frames):
    policy = remade(i2v, guidance_2=2.5, frames=frames)
    images, prompts = photos(1, policy), PROMPTS[:1]
    with rows_seen(policy) as seen:
        cond = policy.encode(prompts, images)
        x, sigmas = noise(1, policy), sigma_grid(4, 3.0)
        assert_same(policy, x, cond, prompts, sigmas, image=images[0])
    ours, theirs = [2, 2], [1, 1, 1, 1]  # the pipeline runs twice, without batching the guidance
    for name in ("transformer", "transformer_2"):
        assert seen[name] == [*ours, *theirs, *theirs]


@pytest.mark.parametrize("kind", ["pil", "tensor"])
def test_a_batch_of_different_images_is_one_pipeline_call_for_each(i2v, kind):
    images, x, sigmas = photos(3, i2v, kind), noise(3, i2v), sigma_grid(4, 3.0)
    latents = integrate(i2v, x, i2v.encode(PROMPTS, images), sigmas)
    for i, prompt in enumerate(PROMPTS):
        image = photos(3, i2v)[i]
        theirs = ask_wan(i2v, x[i : i + 1], [prompt], sigmas, "latent", image=image)
        torch.testing.assert_close(latents[i : i + 1], theirs, atol=1e-5, rtol=0)
    reverse = images[::-1] if kind == "pil" else images.flip(0)
    swapped = integrate(i2v, x, i2v.encode(PROMPTS, reverse), sigmas)
    assert (swapped - latents)[[0, 2]].abs().mean() > 0.01


def test_the_experts_change_where_the_pipeline_s_do(i2v):
    for sigma in (1.0, 0.9001, 0.9):
        assert i2v.expert(sigma) == "transformer"
    for sigma in (0.8999, 0.5, 0.0):
        assert i2v.expert(sigma) == "transformer_2"
    boundary = sigma_grid(4, 3.0)[1].item()
    assert boundary == pytest.approx(0.9)
    assert i2v.expert(boundary) == "transformer"
    # Below 0.9, but 900 once it is multiplied by 1000 and rounded to float32.
    assert i2v.expert(float(np.float32(0.9))) == "transformer"


@pytest.mark.parametrize("which", ["t2v", "i2v"])
def test_sigma_may_differ_from_row_to_row_even_across_the_boundary(request, which):
    policy = request.getfixturevalue(which)
    images = photos(3, policy) if policy.takes_images else None
    x, cond = noise(3, policy), policy.encode(PROMPTS, images)
    together = policy.velocity(x, torch.tensor([0.2, 0.95, 0.5]), cond)
    for i, sigma in enumerate((0.2, 0.95, 0.5)):
        row = slice(i, i + 1)
        for number in (sigma, torch.tensor(sigma)):
            alone = policy.velocity(x[row], number, rows(cond, row))
            torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_make_the_same_videos(i2v, micro_batch):
    x, cond, grid = noise(3, i2v), i2v.encode(PROMPTS, photos(3, i2v)), sigma_grid(3)
    together, in_parts = (integrate(i2v, x, cond, grid, size) for size in (None, micro_batch))
    torch.testing.assert_close(in_parts, together, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------- conditions and pixels


def test_encode_is_the_pipeline_s_encode_prompt(t2v):
    policy = remade(t2v, negative_prompt="a blue cross")
    untidy = ["a  red\n circle ", "a small crimson box&nbsp;at the top", "a shape"]
    text, negative = t2v.pipeline.encode_prompt(untidy, "a blue cross", max_sequence_length=16)
    cond = policy.encode(untidy)
    torch.testing.assert_close(cond["text"], text, atol=1e-6, rtol=0)
    torch.testing.assert_close(cond["negative"], negative, atol=1e-6, rtol=0)
    assert cond["text"].shape == (3, 16, 32)
    for prompt, row in zip(PROMPTS, cond["text"], strict=True):
        length = len(prompt.split()) + 1  # one token per word, and the end
        assert row[:length].abs().sum(1).min() > 0
        assert not row[length:].any()
    torch.testing.assert_close(policy.embed(PROMPTS)["text"], text, atol=1e-6, rtol=0)


def test_a_shorter_text_is_the_pipeline_s(t2v):
    text, _ = t2v.pipeline.encode_prompt(PROMPTS, max_sequence_length=4)
    came = remade(t2v, max_sequence_length=4).encode(PROMPTS)["text"]
    torch.testing.assert_close(came, text, atol=1e-6, rtol=0)


def test_embed_carries_gradients_into_the_text_encoder(wan_folder):
    policy = WanPolicy.load(wan_folder, height=16, width=16, frames=1, guidance=1.0)
    encoder = policy.pipeline.text_encoder.requires_grad_(True)
    policy.velocity(noise(2, policy), 0.5, policy.embed(PROMPTS[:2])).square().sum().backward()
    assert encoder.encoder.embed_tokens.weight.grad.any()


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_the_image_condition_is_the_pipeline_s(i2v, frames):
    policy = remade(i2v, frames=frames)
    images, pipeline = photos(2, policy), policy.pipeline
    came = policy.encode(PROMPTS[:2], images)["image"]
    for given in (images, photos(2, policy, "tensor")):
        torch.testing.assert_close(policy.condition(given), came, atol=1e-5, rtol=0)
    for row, image in zip(came, images, strict=True):
        first = pipeline.video_processor.preprocess(image, height=16, width=32)
        size = (1, 4, 16, 32, frames)  # batch, channels, height, width, frames
        _, theirs = pipeline.prepare_latents(first, *size, torch.float32, "cpu")
        torch.testing.assert_close(row[None], theirs, atol=1e-5, rtol=0)
    assert (came[:, :4, 0] == 1).all()
    assert not came[:, :4, 1:].any()


def test_pixels_are_in_the_unit_interval(t2v):
    pixels = t2v.decode(5 * noise(3, t2v))
    assert (pixels.shape, pixels.dtype) == ((3, 5, 3, 16, 16), torch.float32)
    assert 0 <= pixels.min() < pixels.max() <= 1


def test_latent_shape(t2v):
    assert t2v.latent_shape() == (4, 2, 4, 4)
    assert t2v.latent_shape(24, 40, 9) == (4, 3, 6, 10)
    assert remade(t2v, height=480, width=832, frames=81).latent_shape() == (4, 21, 120, 208)
    assert WanPolicy(t2v.pipeline).latent_shape() == (4, 21, 120, 208)  # the pipeline's default
    with pytest.raises(ValueError, match="frames must be 4k"):
        t2v.latent_shape(frames=4)


# --------------------------------------------------------------------------------------- gradients


def gradients(policy, x, sigma, cond, direction):
    """The velocity, and its gradient along a direction into the weights of each expert.

    The gradient of a weight is None if the velocity does not depend on it.
    """
    for module in policy.modules.values():
        module.requires_grad_(True).zero_grad(set_to_none=True)
    v = policy.velocity(x, sigma, cond)
    v.backward(direction)
    found = {}
    for name, module in policy.modules.items():
        found[name] = [p.grad for p in module.parameters()]
    return v.detach(), found


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients["transformer"]])


def test_cfg_gradient_changes_gradients_and_not_values(wan_folder):
    both = WanPolicy.load(wan_folder, height=16, width=16, frames=5, guidance=4.0)
    one, plain = remade(both, cfg_gradient="conditional"), remade(both, guidance=1.0)
    x, cond = noise(2, both), both.encode(PROMPTS[:2])
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(8))
    v, of_both = gradients(both, x, 0.6, cond, direction)
    v_one, of_one = gradients(one, x, 0.6, cond, direction)
    torch.testing.assert_close(v_one, v, atol=1e-6, rtol=0)
    assert (flat(of_both) - flat(of_one)).norm() > 0.1 * flat(of_both).norm()
    # The two terms of v_u + 4 (v_c - v_u).
    _, conditional = gradients(plain, x, 0.6, cond, 4.0 * direction)
    _, unconditional = gradients(plain, x, 0.6, {"text": cond["negative"]}, -3.0 * direction)
    expected = flat(conditional)
    close = dict(atol=1e-5 * expected.abs().max().item(), rtol=1e-4)
    torch.testing.assert_close(flat(of_one), expected, **close)
    torch.testing.assert_close(flat(of_both), expected + flat(unconditional), **close)


def test_a_step_trains_only_the_expert_of_its_noise_level(wan_i2v_folder):
    policy = WanPolicy.load(wan_i2v_folder, height=16, width=16, frames=5)
    x, cond = noise(2, policy), policy.encode(PROMPTS[:2], photos(2, policy))
    high, low = "transformer", "transformer_2"
    for sigma, trained, other in (
        (0.95, high, low),
        (0.5, low, high),
        (torch.tensor([0.1, 0.2]), low, high),
    ):
        _, found = gradients(policy, x, sigma, cond, torch.ones_like(x))
        assert all(g is not None and g.isfinite().all() for g in found[trained])
        assert all(g is None for g in found[other])
    _, found = gradients(policy, x, torch.tensor([0.1, 0.95]), cond, torch.ones_like(x))
    assert all(g is not None for name in (high, low) for g in found[name])


# --------------------------------------------------------------------------- precision and loading


def relative_error(came, expected):
    return (came - expected).square().mean().sqrt() / expected.square().mean().sqrt()


def test_bfloat16_keeps_what_needs_float32(i2v, wan_i2v_folder):
    size = dict(height=16, width=32, frames=5)
    half = WanPolicy.load(wan_i2v_folder, "bfloat16", guidance=4.0, guidance_2=2.5, **size)
    for module in half.modules.values():
        assert module.dtype == torch.bfloat16
        names = [name for name, _ in module.named_parameters()]
        for island in ISLANDS_WITH_WEIGHTS:
            assert any(island in name for name in names), f"there is no {island}"
        for name, p in module.named_parameters():
            is_island = any(island in name for island in ISLANDS)
            assert p.dtype == (torch.float32 if is_island else torch.bfloat16), name
    assert half.pipeline.vae.dtype == torch.float32
    assert half.pipeline.text_encoder.dtype == torch.bfloat16


@torch.no_grad()
def test_bfloat16_stays_near_float32(i2v, wan_i2v_folder):
    size = dict(height=16, width=32, frames=5)
    half = WanPolicy.load(wan_i2v_folder, "bfloat16", guidance=4.0, guidance_2=2.5, **size)
    images, x = photos(2, i2v), noise(2, i2v)
    cond, exact = half.encode(PROMPTS[:2], images), i2v.encode(PROMPTS[:2], images)
    for sigma in (0.95, 0.5):
        came, expected = half.velocity(x, sigma, cond), i2v.velocity(x, sigma, exact)
        assert relative_error(came, expected) < 0.1
    latents = integrate(half, x, cond, sigma_grid(4, 3.0))
    assert latents.dtype == torch.float32
    assert relative_error(latents, integrate(i2v, x, exact, sigma_grid(4, 3.0))) < 0.1
    # As for training all weights: the other parts stay as they are.
    half.modules["transformer"].float()
    came, expected = half.velocity(x, 0.95, cond), i2v.velocity(x, 0.95, exact)
    assert relative_error(came, expected) < 0.1


def test_the_published_layout_loads(t2v, wan_folder, tmp_path):
    folder = tmp_path / "hub"
    with_index(wan_folder, folder, tokenizer=["transformers", "T5TokenizerFast"])
    policy = WanPolicy.load(folder, height=16, width=16, frames=5, guidance=4.0)
    assert list(policy.modules) == ["transformer"]
    came, expected = policy.encode(PROMPTS)["text"], t2v.encode(PROMPTS)["text"]
    torch.testing.assert_close(came, expected, atol=1e-6, rtol=0)


def test_every_part_is_frozen_and_in_evaluation_mode(wan_i2v_folder):
    policy = WanPolicy.load(wan_i2v_folder)
    for part in (policy.pipeline.vae, policy.pipeline.text_encoder, *policy.modules.values()):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
