"""The FLUX policy against diffusers' own FluxPipeline, and what it refuses."""

import pytest
import torch

from bpgo.generators import load_generator
from bpgo.generators.flux import FluxPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from tests.generators.pipelines import PROMPTS, ask_flux, noise, rows


@pytest.fixture(scope="module")
def schnell(flux):
    """The pipeline with a transformer of another seed that has no guidance embedding."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(3)
    config = dict(flux.config) | {"guidance_embeds": False}
    transformer = FluxTransformer2DModel.from_config(config)
    return FluxPipeline(**flux.pipeline.components | {"transformer": transformer})


# -------------------------------------------------------- invariant 2: the pipeline's own output


@pytest.mark.parametrize(
    ("prompts", "size", "shift", "guidance"),
    [
        (PROMPTS[:1], (32, 32), 1.0, 3.5),
        (PROMPTS, (32, 32), 1.0, 1.0),
        (PROMPTS, (32, 48), 1.0, 3.5),
        (PROMPTS[1:], (48, 32), 3.0, 7.0),
    ],
)
@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_without_noise_a_rollout_is_the_pipeline_s_own_output(
    flux, schnell, prompts, size, shift, guidance, guidance_embeds
):
    pipeline = flux.pipeline if guidance_embeds else schnell
    policy = FluxPolicy(pipeline, height=size[0], width=size[1], guidance=guidance)
    x, grid = noise(len(prompts), policy), sigma_grid(5, shift)
    latents = integrate(policy, x, policy.encode(prompts), grid)
    assert (latents - x).abs().max() > 0.1  # something happened
    sigmas = grid[:-1].tolist()
    theirs = ask_flux(pipeline, x, prompts, sigmas, guidance, "latent", size)
    assert latents.shape == theirs.shape == x.shape
    torch.testing.assert_close(latents, theirs, atol=1e-5, rtol=0)
    pixels = ask_flux(pipeline, x, prompts, sigmas, guidance, "pt", size)
    torch.testing.assert_close(policy.decode(latents), pixels, atol=1e-5, rtol=0)


def test_our_shifted_grid_is_the_scheduler_s_shift_applied_once(flux):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = FluxPipeline(**flux.pipeline.components | {"scheduler": scheduler})
    x, steps = noise(2, flux), 6
    latents = integrate(flux, x, flux.encode(PROMPTS[:2]), sigma_grid(steps, 3.0))
    even = torch.linspace(1, 1 / steps, steps).tolist()  # the scheduler shifts these
    theirs = ask_flux(pipeline, x, PROMPTS[:2], even, 3.5, "latent")
    torch.testing.assert_close(latents, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_make_the_same_images(flux, micro_batch):
    x, cond, grid = noise(3, flux), flux.encode(PROMPTS), sigma_grid(3)
    together, in_parts = (integrate(flux, x, cond, grid, size) for size in (None, micro_batch))
    torch.testing.assert_close(in_parts, together, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_guidance_scale_matters_only_if_it_is_embedded(flux, schnell):
    x = noise(1, flux)
    for pipeline, matters in ((flux.pipeline, True), (schnell, False)):
        low, high = (FluxPolicy(pipeline, height=32, width=32, guidance=g) for g in (1.0, 8.0))
        cond = low.encode(PROMPTS[:1])
        change = (low.velocity(x, 0.5, cond) - high.velocity(x, 0.5, cond)).abs().max()
        assert change > 1e-3 if matters else change < 1e-5


def test_sigma_may_differ_from_row_to_row(flux):
    x, cond = noise(3, flux), flux.encode(PROMPTS)
    together = flux.velocity(x, torch.tensor([0.2, 0.5, 1.0]), cond)
    for i, sigma in enumerate((0.2, 0.5, 1.0)):
        alone = flux.velocity(x[i : i + 1], sigma, rows(cond, slice(i, i + 1)))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------- prompts and pixels


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]])
def test_encode_is_the_pipeline_s_encode_prompt(flux, prompts):
    text, pooled, _ = flux.pipeline.encode_prompt(prompts, prompts, max_sequence_length=16)
    cond = flux.encode(prompts)
    torch.testing.assert_close(cond["text"], text, atol=1e-6, rtol=0)
    torch.testing.assert_close(cond["pooled"], pooled, atol=1e-6, rtol=0)
    assert cond["text"].shape == (len(prompts), 16, 64)
    assert cond["pooled"].shape == (len(prompts), 32)


def test_a_shorter_text_is_the_pipeline_s(tiny_folder):
    short = load_generator(tiny_folder, height=32, width=32, max_sequence_length=8)
    text, _, _ = short.pipeline.encode_prompt(PROMPTS[0], PROMPTS[0], max_sequence_length=8)
    torch.testing.assert_close(short.encode(PROMPTS[:1])["text"], text, atol=1e-6, rtol=0)


@torch.no_grad()
def test_bfloat16_stays_near_float32(flux, tiny_folder):
    half = load_generator(tiny_folder, dtype="bfloat16", height=32, width=32)
    x, prompts = noise(2, flux), PROMPTS[:2]
    assert half.pipeline.transformer.dtype == torch.bfloat16
    expected = flux.velocity(x, 0.7, flux.encode(prompts))
    came = half.velocity(x, 0.7, half.encode(prompts))
    assert came.dtype == torch.float32
    assert relative_error(came, expected) < 0.05
    # As for training all weights: the text encoders stay in bfloat16.
    half.modules["transformer"].float()
    came = half.velocity(x, 0.7, half.encode(prompts))
    assert relative_error(came, expected) < 0.05


def relative_error(came, expected):
    return (came - expected).square().mean().sqrt() / expected.square().mean().sqrt()


def test_pixels_are_in_the_unit_interval(flux):
    pixels = flux.decode(5 * noise(3, flux))
    assert (pixels.shape, pixels.dtype) == ((3, 3, 32, 32), torch.float32)
    assert 0 <= pixels.min() < pixels.max() <= 1


def test_latent_shape(flux, tiny_folder):
    assert flux.latent_shape() == (4, 8, 8)
    assert flux.latent_shape(48, 64) == (4, 12, 16)
    assert load_generator(tiny_folder, height=16, width=40).latent_shape() == (4, 4, 10)
    with pytest.raises(ValueError, match="frames must be 1, not 5"):
        flux.latent_shape(frames=5)


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [[], [""], ["a red circle", "  "], [None]])
def test_an_empty_list_or_prompt_is_refused(flux, bad):
    with pytest.raises(ValueError, match="non-empty list of non-empty strings"):
        flux.encode(bad)


def test_unknown_words_are_named_with_their_prompt(flux):
    message = r"text encoder does not know these words, .*'a mauve circle on zinc': mauve, zinc"
    with pytest.raises(ValueError, match=message) as refused:
        flux.encode(["a red circle", "a mauve circle on zinc"])
    assert "a red circle" not in str(refused.value)
    with pytest.raises(ValueError, match="mauve"):
        flux.check(["a mauve circle"])


def test_images_are_refused(flux):
    with pytest.raises(ValueError, match="takes no images"):
        flux.encode(PROMPTS[:1], images=[object()])


@pytest.mark.parametrize("size", [(36, 32), (32, 30), (0, 32), (-8, 32)])
def test_a_size_that_does_not_divide_is_refused_with_the_multiple(flux, size):
    with pytest.raises(ValueError, match=rf"multiples of 8 pixels, not {size[0]} x {size[1]}"):
        FluxPolicy(flux.pipeline, *size)
