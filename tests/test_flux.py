"""The FLUX policy against diffusers' own FluxPipeline, and what is refused at the door."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from bpgo.generators import load_generator
from bpgo.generators.flux import LORA_TARGETS, FluxPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid

PROMPTS = ["a red circle", "a small crimson box at the top", "a shape"]
PUBLISHED = dict(
    patch_size=1,
    in_channels=64,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=True,
    axes_dims_rope=(16, 56, 56),
)


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return load_generator(tiny_folder, height=32, width=32)


@pytest.fixture(scope="module")
def schnell(policy):
    """The pipeline with a transformer that has no guidance embedding, and of another seed."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(3)
    transformer = FluxTransformer2DModel.from_config(
        dict(policy.config) | {"guidance_embeds": False}
    )
    return FluxPipeline(**policy.pipeline.components | {"transformer": transformer})


def noise(count, policy, **size):
    return torch.randn(
        count, *policy.latent_shape(**size), generator=torch.Generator().manual_seed(5)
    )


def ask_pipeline(pipeline, x, prompts, sigmas, guidance, output_type, size=(32, 32)):
    """Plain diffusers on unpacked latents: unpacked latents ("latent") or [0, 1] pixels ("pt")."""
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


# ------------------------------------------------------------------------------------- invariant 2: the pipeline's own output


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
def test_without_noise_a_rollout_is_the_pipelines_own_output(
    policy, schnell, prompts, size, shift, guidance, guidance_embeds
):
    pipeline = policy.pipeline if guidance_embeds else schnell
    ours = FluxPolicy(pipeline, height=size[0], width=size[1], guidance=guidance)
    x, sigmas = noise(len(prompts), ours), sigma_grid(5, shift)
    latents = integrate(ours, x, ours.encode(prompts), sigmas)
    theirs = ask_pipeline(pipeline, x, prompts, sigmas[:-1].tolist(), guidance, "latent", size)
    assert latents.shape == theirs.shape == x.shape
    torch.testing.assert_close(latents, theirs, atol=1e-5, rtol=0)
    pixels = ask_pipeline(pipeline, x, prompts, sigmas[:-1].tolist(), guidance, "pt", size)
    torch.testing.assert_close(ours.decode(latents), pixels, atol=1e-5, rtol=0)
    assert not torch.allclose(latents, x, atol=0.1)  # something did happen


def test_our_shifted_grid_is_the_scheduler_s_shift_applied_once(policy):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    pipeline = FluxPipeline(
        **policy.pipeline.components | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    )
    x, steps = noise(2, policy), 6
    latents = integrate(policy, x, policy.encode(PROMPTS[:2]), sigma_grid(steps, 3.0))
    even = torch.linspace(1, 1 / steps, steps).tolist()  # the scheduler shifts these
    torch.testing.assert_close(
        latents, ask_pipeline(pipeline, x, PROMPTS[:2], even, 3.5, "latent"), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_make_the_same_pictures(policy, micro_batch):
    x, cond = noise(3, policy), policy.encode(PROMPTS)
    whole, parts = (integrate(policy, x, cond, sigma_grid(3), size) for size in (None, micro_batch))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def test_the_guidance_scale_matters_where_it_is_embedded_and_only_there(policy, schnell):
    x = noise(1, policy)
    for pipeline, matters in ((policy.pipeline, True), (schnell, False)):
        low, high = (FluxPolicy(pipeline, height=32, width=32, guidance=g) for g in (1.0, 8.0))
        cond = low.encode(PROMPTS[:1])
        assert torch.equal(low.velocity(x, 0.5, cond), high.velocity(x, 0.5, cond)) is not matters


def test_sigma_may_differ_from_row_to_row(policy):
    x, cond = noise(3, policy), policy.encode(PROMPTS)
    together = policy.velocity(x, torch.tensor([0.2, 0.5, 1.0]), cond)
    for i, sigma in enumerate((0.2, 0.5, 1.0)):
        alone = policy.velocity(
            x[i : i + 1], sigma, {name: value[i : i + 1] for name, value in cond.items()}
        )
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


def test_encode_is_the_pipelines_encode_prompt(policy):
    for prompts in (PROMPTS, PROMPTS[:1]):
        text, pooled, _ = policy.pipeline.encode_prompt(prompts, prompts, max_sequence_length=16)
        cond = policy.encode(prompts)
        torch.testing.assert_close(cond["text"], text, atol=1e-6, rtol=0)
        torch.testing.assert_close(cond["pooled"], pooled, atol=1e-6, rtol=0)
        assert cond["text"].shape == (len(prompts), 16, 64)
        assert cond["pooled"].shape == (len(prompts), 32)


def test_a_shorter_text_length_is_the_pipelines(tiny_folder):
    short = load_generator(tiny_folder, height=32, width=32, max_sequence_length=8)
    text, _, _ = short.pipeline.encode_prompt(PROMPTS[0], PROMPTS[0], max_sequence_length=8)
    torch.testing.assert_close(short.encode(PROMPTS[:1])["text"], text, atol=1e-6, rtol=0)


def test_weights_in_half_the_precision_stay_near_the_whole(policy, tiny_folder):
    half = load_generator(tiny_folder, dtype="bfloat16", height=32, width=32)
    x, prompts = noise(2, policy), PROMPTS[:2]
    assert half.pipeline.transformer.dtype == torch.bfloat16
    with torch.no_grad():
        came, expected = (p.velocity(x, 0.7, p.encode(prompts)) for p in (half, policy))
    assert came.dtype == torch.float32
    assert (came - expected).square().mean().sqrt() < 0.05 * expected.square().mean().sqrt()
    half.modules[
        "transformer"
    ].float()  # as full-weight training does: the text stays in half precision
    with torch.no_grad():
        assert half.velocity(x, 0.7, half.encode(prompts)).isfinite().all()


def test_pixels_are_in_the_unit_interval(policy):
    pixels = policy.decode(5 * noise(3, policy))
    assert pixels.shape == (3, 3, 32, 32)
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1


def test_latent_shape(policy, tiny_folder):
    assert policy.latent_shape() == (4, 8, 8)
    assert policy.latent_shape(48, 64) == (4, 12, 16)
    assert load_generator(tiny_folder, height=16, width=40).latent_shape() == (4, 4, 10)
    with pytest.raises(ValueError, match="frames must be 1, not 5"):
        policy.latent_shape(frames=5)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [[], [""], ["a red circle", "  "], [None]])
def test_an_empty_list_or_prompt_is_refused(policy, bad):
    with pytest.raises(ValueError, match="non-empty list of non-empty strings"):
        policy.encode(bad)


def test_unknown_words_are_named_with_their_prompt(policy):
    with pytest.raises(
        ValueError, match=r"'a mauve circle on zinc' has words .* know: mauve, zinc"
    ) as refused:
        policy.encode(["a red circle", "a mauve circle on zinc"])
    assert "a red circle" not in str(refused.value)
    with pytest.raises(ValueError, match="mauve"):
        policy.check(["a mauve circle"])


def test_images_are_refused(policy):
    with pytest.raises(ValueError, match="takes no images"):
        policy.encode(PROMPTS[:1], images=[object()])


@pytest.mark.parametrize("size", [(36, 32), (32, 30), (0, 32), (-8, 32)])
def test_a_size_that_does_not_divide_is_refused_with_the_multiple(policy, size):
    with pytest.raises(ValueError, match=rf"multiples of 8 pixels, not {size[0]} x {size[1]}"):
        FluxPolicy(policy.pipeline, *size)


def test_a_missing_folder_is_refused_with_what_is_shipped(tmp_path):
    with pytest.raises(FileNotFoundError, match="tiny-flux"):
        load_generator("tiny-fluks")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_generator(str(tmp_path / "nowhere"))


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"not a diffusers pipeline: it has no model_index\.json"
    ):
        load_generator(tmp_path)


def test_another_pipeline_class_is_refused_by_name(tmp_path):
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline"})
    )
    with pytest.raises(
        ValueError, match="is a StableDiffusionPipeline; there are policies for FluxPipeline"
    ):
        load_generator(tmp_path)


@pytest.mark.parametrize("index", ["", "{}", "[]", '{"_class_name": '])
def test_a_damaged_model_index_is_refused(tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model_index\.json is damaged"):
        load_generator(tmp_path)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_2"])
@pytest.mark.parametrize("left", [0.5, 0.999, 0])
def test_truncated_weights_are_refused_by_file(tiny_folder, tmp_path, part, left):
    folder = shutil.copytree(tiny_folder, tmp_path / "cut")
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[: int(left * weights.stat().st_size)])
    with pytest.raises(ValueError, match=rf"{part}/{weights.stem}.* is truncated or damaged"):
        load_generator(folder)


def test_missing_weights_are_refused_by_file(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "cut")
    (weights,) = (folder / "transformer").glob("*.safetensors")
    weights.unlink()
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        load_generator(folder)


# ------------------------------------------------------------------------------------------------ LoRA, and the big model


def test_lora_starts_as_the_model_itself_and_trains_only_its_own(tiny_folder, policy):
    adapted = load_generator(tiny_folder, height=32, width=32)
    adapted.add_lora(2, 6.0)
    trained = {
        name for name, p in adapted.modules["transformer"].named_parameters() if p.requires_grad
    }
    assert trained
    assert all("lora_" in name for name in trained)
    x, cond = noise(2, policy), policy.encode(PROMPTS[:2])
    with torch.no_grad():
        torch.testing.assert_close(
            adapted.velocity(x, 0.5, cond), policy.velocity(x, 0.5, cond), atol=1e-6, rtol=0
        )


def test_lora_without_any_of_its_layers_is_refused():
    from bpgo.generators.lora import add_lora

    with pytest.raises(ValueError, match=r"attn\.to_q.* is in Linear"):
        add_lora(torch.nn.Linear(2, 2), 1, 1.0, LORA_TARGETS)


@pytest.fixture(scope="module")
def flux_dev():
    """FLUX.1-dev's transformer as published, without memory for its weights."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(**PUBLISHED)


def test_flux_dev_has_its_published_size(flux_dev):
    assert sum(p.numel() for p in flux_dev.parameters()) / 1e9 == pytest.approx(11.90, abs=0.005)


def test_lora_reaches_every_block_of_flux_dev(flux_dev):
    linear = {
        name: module
        for name, module in flux_dev.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    expected = {f"transformer_blocks.{i}.{target}" for i in range(19) for target in LORA_TARGETS}
    expected |= {
        f"single_transformer_blocks.{i}.{target}" for i in range(38) for target in LORA_TARGETS[:3]
    }
    assert expected == {name for name in linear if name.endswith(LORA_TARGETS)}
    pipeline = SimpleNamespace(
        transformer=flux_dev,
        vae=torch.nn.Identity(),
        text_encoder=torch.nn.Identity(),
        text_encoder_2=torch.nn.Identity(),
        vae_scale_factor=8,
        tokenizer_2=SimpleNamespace(model_max_length=512),
    )
    policy = FluxPolicy(pipeline, height=720, width=720)
    assert policy.latent_shape() == (16, 90, 90)
    policy.add_lora(4, 8.0)
    trained = {name: p for name, p in flux_dev.named_parameters() if p.requires_grad}
    assert {name.partition(".lora_")[0] for name in trained} == expected
    assert sum(p.numel() for p in trained.values()) == sum(
        4 * (linear[n].in_features + linear[n].out_features) for n in expected
    )
