"""The Wan policy against diffusers' own WanPipeline and WanImageToVideoPipeline, and what is refused at the door."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from bpgo.generators.wan import LORA_TARGETS, WanPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid

PROMPTS = ["a red circle", "a small crimson box at the top", "a shape"]
ISLANDS = (
    "time_embedder",
    "scale_shift_table",
    "norm1",
    "norm2",
    "norm3",
)  # what Wan keeps in float32


@pytest.fixture(scope="module")
def t2v(wan_folder):
    return WanPolicy.load(wan_folder, height=16, width=16, frames=5, guidance=4.0)


@pytest.fixture(scope="module")
def i2v(wan_i2v_folder):
    return WanPolicy.load(
        wan_i2v_folder, height=16, width=32, frames=5, guidance=4.0, guidance_2=2.5
    )


@pytest.fixture
def t2v_experts(i2v, t2v):
    """A text-to-video pipeline with two experts, as Wan2.2-T2V-A14B."""
    from diffusers import WanPipeline, WanTransformer3DModel

    torch.manual_seed(7)
    second = WanTransformer3DModel.from_config(t2v.config)
    return WanPipeline(**t2v.pipeline.components | {"transformer_2": second}, boundary_ratio=0.9)


def remade(policy, **options):
    """The same pipeline under other options."""
    size = dict(height=policy.height, width=policy.width, frames=policy.frames)
    return WanPolicy(policy.pipeline, **size | dict(guidance=policy.guidance) | options)


def noise(count, policy):
    return torch.randn(count, *policy.latent_shape(), generator=torch.Generator().manual_seed(5))


def photos(count, policy, kind="pil"):
    pixels = torch.rand(
        count, policy.height, policy.width, 3, generator=torch.Generator().manual_seed(6)
    )
    pixels = (255 * pixels).to(torch.uint8)
    return (
        [Image.fromarray(p.numpy()) for p in pixels]
        if kind == "pil"
        else pixels.permute(0, 3, 1, 2).float() / 255
    )


def ask_pipeline(policy, x, prompts, sigmas, output_type, **given):
    """Plain diffusers on this grid of sigmas: latents ("latent") or [0, 1] pixels ("pt")."""
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
    assert torch.equal(scheduler.timesteps, 1000 * sigmas[:-1])
    return out


def assert_same(policy, x, cond, prompts, sigmas, **given):
    latents = integrate(policy, x, cond, sigmas)
    assert not torch.allclose(latents, x, atol=0.1)  # something did happen
    torch.testing.assert_close(
        latents, ask_pipeline(policy, x, prompts, sigmas, "latent", **given), atol=1e-5, rtol=0
    )
    pixels = policy.decode(latents)
    torch.testing.assert_close(
        pixels, ask_pipeline(policy, x, prompts, sigmas, "pt", **given), atol=1e-5, rtol=0
    )
    return pixels


@contextmanager
def rows_seen(policy):
    """The batch size of each call, by expert."""
    rows = {name: [] for name in policy.modules}
    handles = [
        module.register_forward_pre_hook(
            lambda _, __, given, name=name: rows[name].append(len(given["timestep"])),
            with_kwargs=True,
        )
        for name, module in policy.modules.items()
    ]
    yield rows
    for handle in handles:
        handle.remove()


# ------------------------------------------------------------------------------------- invariant 2: the pipelines' own output


@pytest.mark.parametrize(
    ("count", "size", "shift", "guidance"),
    [
        (1, dict(height=16, width=16, frames=9), 1.0, 4.0),
        (3, dict(height=16, width=32, frames=5), 3.0, 4.0),
        (3, dict(height=32, width=16, frames=1), 3.0, 1.0),
        (1, dict(height=16, width=32, frames=9), 1.0, 0.5),
    ],
)
def test_without_noise_a_rollout_is_the_pipelines_own_output(t2v, count, size, shift, guidance):
    policy, prompts = (
        remade(t2v, guidance=guidance, negative_prompt="a blue cross", **size),
        PROMPTS[:count],
    )
    with rows_seen(policy) as rows:
        cond = policy.encode(prompts)
        pixels = assert_same(policy, noise(count, policy), cond, prompts, sigma_grid(3, shift))
    assert pixels.shape == (count, policy.frames, 3, policy.height, policy.width)
    assert ("negative" in cond) is (guidance > 1)
    assert rows["transformer"][:3] == [count * (2 if guidance > 1 else 1)] * 3


def test_two_experts_without_images_are_the_pipelines(t2v_experts):
    size = dict(height=16, width=16, frames=5)
    for guidances in ((4.0, 2.5), (3.0, None), (4.0, 0.5), (1.0, None), (0.0, 0.5)):
        policy = WanPolicy(t2v_experts, guidance=guidances[0], guidance_2=guidances[1], **size)
        with rows_seen(policy) as rows:
            assert_same(
                policy,
                noise(2, policy),
                policy.encode(PROMPTS[:2]),
                PROMPTS[:2],
                sigma_grid(4, 3.0),
            )
        assert rows["transformer"]
        assert rows["transformer_2"]


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_one_image_is_the_pipelines(i2v, frames):
    policy = remade(i2v, guidance_2=2.5, frames=frames)
    images = photos(1, policy)
    with rows_seen(policy) as rows:
        cond = policy.encode(PROMPTS[:1], images)
        assert_same(
            policy, noise(1, policy), cond, PROMPTS[:1], sigma_grid(4, 3.0), image=images[0]
        )
    assert rows == {
        "transformer": [2, 2, *2 * [1, 1, 1, 1]],
        "transformer_2": [2, 2, *2 * [1, 1, 1, 1]],
    }  # ours, then twice theirs


@pytest.mark.parametrize("kind", ["pil", "tensor"])
def test_a_batch_of_different_images_is_one_pipeline_call_for_each(i2v, kind):
    images, x, sigmas = photos(3, i2v, kind), noise(3, i2v), sigma_grid(4, 3.0)
    latents = integrate(i2v, x, i2v.encode(PROMPTS, images), sigmas)
    for i, prompt in enumerate(PROMPTS):
        theirs = ask_pipeline(
            i2v, x[i : i + 1], [prompt], sigmas, "latent", image=photos(3, i2v)[i]
        )
        torch.testing.assert_close(latents[i : i + 1], theirs, atol=1e-5, rtol=0)
    swapped = integrate(
        i2v, x, i2v.encode(PROMPTS, images[::-1] if kind == "pil" else images.flip(0)), sigmas
    )
    assert (swapped - latents)[[0, 2]].abs().mean() > 0.01


def test_the_experts_change_places_where_the_pipeline_s_do(i2v):
    levels = [1.0, 0.9001, 0.9, 0.8999, 0.5, 0.0]
    assert [i2v.expert(s) for s in levels] == ["transformer"] * 3 + ["transformer_2"] * 3
    assert sigma_grid(4, 3.0)[1].item() == pytest.approx(0.9)
    assert i2v.expert(sigma_grid(4, 3.0)[1].item()) == "transformer"
    assert (
        i2v.expert(float(np.float32(0.9))) == "transformer"
    )  # below 0.9, yet 900 when times 1000 is rounded to float32


@pytest.mark.parametrize("which", ["t2v", "i2v"])
def test_sigma_may_differ_from_row_to_row_even_across_the_boundary(request, which):
    policy = request.getfixturevalue(which)
    x, cond = (
        noise(3, policy),
        policy.encode(PROMPTS, photos(3, policy) if policy.takes_images else None),
    )
    together = policy.velocity(x, torch.tensor([0.2, 0.95, 0.5]), cond)
    for i, sigma in enumerate((0.2, 0.95, 0.5)):
        for number in (sigma, torch.tensor(sigma)):
            alone = policy.velocity(
                x[i : i + 1], number, {name: value[i : i + 1] for name, value in cond.items()}
            )
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_make_the_same_videos(i2v, micro_batch):
    x, cond = noise(3, i2v), i2v.encode(PROMPTS, photos(3, i2v))
    whole, parts = (integrate(i2v, x, cond, sigma_grid(3), size) for size in (None, micro_batch))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


# ----------------------------------------------------------------------------------------------------- conditions and pixels


def test_encode_is_the_pipelines_encode_prompt(t2v):
    policy = remade(t2v, negative_prompt="a blue cross")
    untidy = ["a  red\n circle ", "a small crimson box&nbsp;at the top", "a shape"]
    text, negative = t2v.pipeline.encode_prompt(untidy, "a blue cross", max_sequence_length=16)
    cond = policy.encode(untidy)
    torch.testing.assert_close(cond["text"], text, atol=1e-6, rtol=0)
    torch.testing.assert_close(cond["negative"], negative, atol=1e-6, rtol=0)
    assert cond["text"].shape == (3, 16, 32)
    for prompt, row in zip(PROMPTS, cond["text"], strict=True):
        length = len(prompt.split()) + 1  # a token a word, and the end
        assert row[:length].abs().sum(1).min() > 0
        assert not row[length:].any()
    torch.testing.assert_close(policy.embed(PROMPTS)["text"], text, atol=1e-6, rtol=0)


def test_a_shorter_text_length_is_the_pipelines(t2v):
    text, _ = t2v.pipeline.encode_prompt(PROMPTS, max_sequence_length=4)
    torch.testing.assert_close(
        remade(t2v, max_sequence_length=4).encode(PROMPTS)["text"], text, atol=1e-6, rtol=0
    )


def test_embed_carries_gradients_into_the_text_encoder(wan_folder):
    policy = WanPolicy.load(wan_folder, height=16, width=16, frames=1, guidance=1.0)
    encoder = policy.pipeline.text_encoder.requires_grad_(True)
    policy.velocity(noise(2, policy), 0.5, policy.embed(PROMPTS[:2])).square().sum().backward()
    assert encoder.encoder.embed_tokens.weight.grad.any()


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_the_image_condition_is_the_pipelines(i2v, frames):
    policy = remade(i2v, frames=frames)
    images = photos(2, policy)
    came = policy.encode(PROMPTS[:2], images)["image"]
    torch.testing.assert_close(policy.condition(images), came, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        policy.condition(photos(2, policy, "tensor")), came, atol=1e-6, rtol=0
    )
    for row, image in zip(came, images, strict=True):
        _, theirs = policy.pipeline.prepare_latents(
            policy.pipeline.video_processor.preprocess(image, height=16, width=32),
            1,
            4,
            16,
            32,
            frames,
            torch.float32,
            "cpu",
        )
        torch.testing.assert_close(row[None], theirs, atol=1e-6, rtol=0)
    assert (came[:, :4, 0] == 1).all()
    assert not came[:, :4, 1:].any()


def test_pixels_are_in_the_unit_interval(t2v):
    pixels = t2v.decode(5 * noise(3, t2v))
    assert pixels.shape == (3, 5, 3, 16, 16)
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() < pixels.max() <= 1


def test_latent_shape(t2v, wan_folder):
    assert t2v.latent_shape() == (4, 2, 4, 4)
    assert t2v.latent_shape(24, 40, 9) == (4, 3, 6, 10)
    assert (
        remade(t2v, height=480, width=832, frames=81).latent_shape()
        == WanPolicy(t2v.pipeline).latent_shape()
        == (4, 21, 120, 208)
    )
    with pytest.raises(ValueError, match="frames must be 4k"):
        t2v.latent_shape(frames=4)


# ---------------------------------------------------------------------------------------------------------------- gradients


def gradients(policy, x, sigma, cond, direction):
    """The velocity, and the gradient along a direction into the weights of each expert (None where there is none)."""
    for module in policy.modules.values():
        module.requires_grad_(True).zero_grad(set_to_none=True)
    v = policy.velocity(x, sigma, cond)
    v.backward(direction)
    return v.detach(), {
        name: [p.grad for p in module.parameters()] for name, module in policy.modules.items()
    }


def test_cfg_gradient_changes_gradients_and_not_one_bit_of_the_values(wan_folder):
    both = WanPolicy.load(wan_folder, height=16, width=16, frames=5, guidance=4.0)
    x, cond = noise(2, both), both.encode(PROMPTS[:2])
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(8))
    one = remade(both, cfg_gradient="conditional")
    plain = remade(both, guidance=1.0)
    (v, g), (v_one, g_one) = (gradients(p, x, 0.6, cond, direction) for p in (both, one))
    assert torch.equal(v, v_one)
    total, total_one = (
        torch.cat([p.flatten() for p in every["transformer"]]) for every in (g, g_one)
    )
    assert (total - total_one).norm() > 0.1 * total.norm()
    _, g_conditional = gradients(plain, x, 0.6, cond, 4.0 * direction)
    _, g_unconditional = gradients(plain, x, 0.6, {"text": cond["negative"]}, -3.0 * direction)
    expected = torch.cat([p.flatten() for p in g_conditional["transformer"]])
    torch.testing.assert_close(
        total_one, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4
    )
    expected = expected + torch.cat([p.flatten() for p in g_unconditional["transformer"]])
    torch.testing.assert_close(total, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


def test_a_step_trains_only_the_expert_of_its_noise_level(wan_i2v_folder):
    policy = WanPolicy.load(wan_i2v_folder, height=16, width=16, frames=5)
    x, cond = noise(2, policy), policy.encode(PROMPTS[:2], photos(2, policy))
    for sigma, trained, other in (
        (0.95, "transformer", "transformer_2"),
        (0.5, "transformer_2", "transformer"),
        (torch.tensor([0.1, 0.2]), "transformer_2", "transformer"),
    ):
        _, g = gradients(policy, x, sigma, cond, torch.ones_like(x))
        assert all(p is not None and p.isfinite().all() for p in g[trained])
        assert all(p is None for p in g[other])
    _, g = gradients(policy, x, torch.tensor([0.1, 0.95]), cond, torch.ones_like(x))
    assert all(p is not None for part in g.values() for p in part)


# ---------------------------------------------------------------------------------------------------- precision and loading


def test_half_precision_keeps_what_needs_the_whole(i2v, wan_i2v_folder):
    half = WanPolicy.load(
        wan_i2v_folder,
        dtype="bfloat16",
        height=16,
        width=32,
        frames=5,
        guidance=4.0,
        guidance_2=2.5,
    )
    for module in half.modules.values():
        kept = {name for name, p in module.named_parameters() if p.dtype == torch.float32}
        assert kept == {
            name
            for name, _ in module.named_parameters()
            if any(island in name for island in ISLANDS)
        }
        assert module.dtype == torch.bfloat16
    assert half.pipeline.vae.dtype == torch.float32
    assert half.pipeline.text_encoder.dtype == torch.bfloat16
    images = photos(2, i2v)
    cond = half.encode(PROMPTS[:2], images)
    latents = integrate(half, noise(2, half), cond, sigma_grid(4, 3.0))
    assert latents.dtype == torch.float32
    assert latents.isfinite().all()
    assert half.decode(latents).isfinite().all()
    with torch.no_grad():
        for sigma in (0.95, 0.5):
            came, expected = (
                p.velocity(noise(2, p), sigma, p.encode(PROMPTS[:2], images)) for p in (half, i2v)
            )
            assert (came - expected).square().mean().sqrt() < 0.1 * expected.square().mean().sqrt()
    half.modules[
        "transformer"
    ].float()  # as full-weight training does: the other parts stay as they are
    assert half.velocity(noise(2, half), 0.95, cond).isfinite().all()


def edited(folder, place, **changes):
    """A copy of the folder with another model_index.json."""
    place = shutil.copytree(folder, place)
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | changes))
    return place


def test_the_published_layout_loads(t2v, wan_folder, tmp_path):
    index = json.loads((wan_folder / "model_index.json").read_text())
    assert index["transformer_2"] == [None, None]
    folder = edited(wan_folder, tmp_path / "hub", tokenizer=["transformers", "T5TokenizerFast"])
    policy = WanPolicy.load(folder, height=16, width=16, frames=5, guidance=4.0)
    assert list(policy.modules) == ["transformer"]
    assert torch.equal(policy.encode(PROMPTS)["text"], t2v.encode(PROMPTS)["text"])


def test_every_part_is_frozen_and_in_evaluation_mode(i2v, wan_i2v_folder):
    policy = WanPolicy.load(wan_i2v_folder)
    for part in (policy.pipeline.vae, policy.pipeline.text_encoder, *policy.modules.values()):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())


def test_a_missing_expert_is_named(wan_i2v_folder, tmp_path):
    folder = edited(wan_i2v_folder, tmp_path / "one")
    shutil.rmtree(folder / "transformer_2")
    with pytest.raises(
        FileNotFoundError,
        match=r"names transformer_2 \(WanTransformer3DModel\), and there is no folder .*transformer_2",
    ):
        WanPolicy.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boundary_ratio": None}, "has transformer_2 but no boundary_ratio"),
        ({"transformer_2": [None, None]}, r"has boundary_ratio 0\.9 but no transformer_2"),
        ({"boundary_ratio": 1.0}, r"must lie between 0 and 1, not 1\.0"),
        ({"boundary_ratio": 0}, "must lie between 0 and 1, not 0"),
        ({"boundary_ratio": 900}, "must lie between 0 and 1, not 900"),
        ({"expand_timesteps": True}, "expand_timesteps .*5B.* not supported"),
        ({"transformer": [None, None]}, "has no transformer"),
        (
            {"_class_name": "WanPipeline"},
            "WanPipeline around 4 latent channels needs in_channels 4, not 12",
        ),
    ],
)
def test_a_pipeline_that_would_not_run_as_published_is_refused(
    wan_i2v_folder, tmp_path, changes, message
):
    folder = edited(wan_i2v_folder, tmp_path / "other", **changes)
    with pytest.raises(ValueError, match=message):
        WanPolicy.load(folder)


def test_an_image_encoder_is_refused(i2v):
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

    encoding = WanTransformer3DModel.from_config(dict(i2v.config) | {"image_dim": 8})
    pipeline = WanImageToVideoPipeline(
        **i2v.pipeline.components | {"transformer": encoding}, boundary_ratio=0.9
    )
    with pytest.raises(ValueError, match=r"Wan2\.1-I2V\) is not supported"):
        WanPolicy(pipeline)


def test_other_pipelines_are_refused_by_name(tiny_folder):
    with pytest.raises(ValueError, match="FluxPipeline is no WanPipeline"):
        WanPolicy.load(tiny_folder)


def test_a_text_encoder_that_came_empty_is_refused(wan_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = edited(wan_folder, tmp_path / "grey")
    (weights,) = (folder / "text_encoder").glob("*.safetensors")
    save_file(
        {
            k: v * ("shared" not in k and "embed_tokens" not in k)
            for k, v in load_file(weights).items()
        },
        weights,
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="embedding is all zeros"):
        WanPolicy.load(folder)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [[], [""], ["a red circle", "  "], [None], ["&nbsp;"]])
def test_an_empty_list_or_prompt_is_refused(t2v, bad):
    with pytest.raises(ValueError, match="non-empty list of non-empty strings"):
        t2v.check(bad)


def test_unknown_words_are_named_in_prompts_and_in_the_negative_one(t2v):
    with pytest.raises(ValueError, match=r"'a mauve circle' has words .* know: mauve"):
        t2v.encode(["a red circle", "a mauve circle"])
    with pytest.raises(ValueError, match="know: blurry"):
        remade(t2v, negative_prompt="blurry").check(PROMPTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(frames=10), r"frames must be 4k\+1, such as 9 or 81, not 10"),
        (dict(frames=0), r"frames must be 4k\+1"),
        (dict(frames=-3), r"frames must be 4k\+1"),
        (dict(height=20), "height must be a positive multiple of 8 pixels, not 20"),
        (dict(width=0), "width must be a positive multiple of 8 pixels, not 0"),
        (dict(width=-16), "width must be a positive multiple of 8 pixels, not -16"),
        (dict(cfg_gradient="none"), "cfg_gradient must be .* not 'none'"),
        (dict(guidance_2=3.0), r"guidance_2=3\.0 would do nothing: it needs a second expert"),
    ],
)
def test_bad_options_are_refused(t2v, options, message):
    with pytest.raises(ValueError, match=message):
        remade(t2v, **options)


def test_a_second_guidance_that_the_pipelines_would_ignore_is_refused(i2v):
    with pytest.raises(
        ValueError, match=r"guidance_2=3\.0 would do nothing: .* guidance above 1, not 1\.0"
    ):
        remade(i2v, guidance=1.0, guidance_2=3.0)


def test_text_to_video_takes_no_images(t2v):
    with pytest.raises(ValueError, match="takes no images"):
        t2v.encode(PROMPTS[:1], photos(1, t2v))


def test_bad_images_are_refused(i2v):
    good, tensor = photos(2, i2v), photos(2, i2v, "tensor")
    bad = {
        "one image for each of the 2 prompts, not 0": None,
        "one image for each of the 2 prompts, not 1": good[:1],
        "for each of the 2 prompts, not 3": photos(3, i2v, "tensor"),
        r'image 1 has mode RGBA, not RGB: use image\.convert\("RGB"\)': [
            good[0],
            good[1].convert("RGBA"),
        ],
        r"image 0 is 16 x 32 pixels, not 32 x 16: use image\.resize\(\(32, 16\)\)": [
            good[0].rotate(90, expand=True),
            good[1],
        ],
        "image 1 is a str, not a PIL image": [good[0], "photo.png"],
        r"images must be float \(B, 3, 16, 32\), not torch\.float32 \(2, 3, 32, 16\)": tensor.mT,
        r"images must be float .* not torch\.uint8": (255 * tensor).to(torch.uint8),
        r"must lie in \[0, 1\], not \[.*255\]: divide by 255": 255 * tensor.round(),
        r"must lie in \[0, 1\], not \[-": 2 * tensor - 1,
        r"must lie in \[0, 1\], not \[nan": tensor * float("nan"),
    }
    for message, images in bad.items():
        with pytest.raises(ValueError, match=message):
            i2v.check(PROMPTS[:2], images)
        with pytest.raises(ValueError, match=message):
            i2v.encode(PROMPTS[:2], images)
    i2v.check(PROMPTS[:2], good)
    i2v.check(PROMPTS[:2], tensor)


# ------------------------------------------------------------------------------------------ saving, LoRA, and the big models


def wander(policy, rate=0.1):
    """Move what is trained, as training would: each expert elsewhere."""
    generator = torch.Generator().manual_seed(9)
    for module in policy.modules.values():
        for p in module.parameters():
            if p.requires_grad:
                p.data += rate * torch.randn(p.shape, generator=generator)


def test_lora_starts_as_the_model_itself_and_trains_only_its_own(wan_i2v_folder, i2v):
    adapted = WanPolicy.load(
        wan_i2v_folder, height=16, width=32, frames=5, guidance=4.0, guidance_2=2.5
    )
    adapted.add_lora(2, 6.0)
    for module in adapted.modules.values():
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        assert len(trained) == 2 * 2 * len(LORA_TARGETS)
        assert all("lora_" in name for name in trained)
    x, cond = noise(2, i2v), i2v.encode(PROMPTS[:2], photos(2, i2v))
    with torch.no_grad():
        for sigma in (0.95, 0.5):
            torch.testing.assert_close(
                adapted.velocity(x, sigma, cond), i2v.velocity(x, sigma, cond), atol=1e-5, rtol=0
            )


def test_lora_of_both_experts_is_read_by_plain_diffusers(wan_i2v_folder, i2v, tmp_path):
    from diffusers import DiffusionPipeline

    size = dict(height=16, width=32, frames=5, guidance=4.0, guidance_2=2.5)
    trained = WanPolicy.load(wan_i2v_folder, **size)
    trained.add_lora(2, 6.0)
    wander(trained)
    trained.save(tmp_path, lora=True)
    pipeline = DiffusionPipeline.from_pretrained(wan_i2v_folder)
    pipeline.load_lora_weights(tmp_path)
    pipeline.load_lora_weights(tmp_path / "transformer_2", load_into_transformer_2=True)
    x, images, sigmas = noise(2, i2v), photos(2, i2v), sigma_grid(4, 3.0)
    cond = i2v.encode(PROMPTS[:2], images)
    latents, before = (integrate(p, x, cond, sigmas) for p in (trained, i2v))
    read = WanPolicy(pipeline, **size)
    torch.testing.assert_close(integrate(read, x, cond, sigmas), latents, atol=1e-5, rtol=0)
    for i, image in enumerate(images):
        theirs = ask_pipeline(read, x[i : i + 1], PROMPTS[i : i + 1], sigmas, "latent", image=image)
        torch.testing.assert_close(theirs, latents[i : i + 1], atol=1e-5, rtol=0)
    with torch.no_grad():  # each expert did learn something
        for sigma in (0.95, 0.5):
            assert (
                read.velocity(x, sigma, cond) - i2v.velocity(x, sigma, cond)
            ).abs().mean() > 0.01
    assert not torch.allclose(latents, before, atol=0.01)


@pytest.mark.parametrize("which", ["wan_folder", "wan_i2v_folder"])
def test_full_weights_are_read_by_plain_diffusers(request, which, tmp_path):
    size = dict(height=16, width=16, frames=5)
    trained = WanPolicy.load(request.getfixturevalue(which), **size)
    for module in trained.modules.values():
        module.requires_grad_(True)
    wander(trained, 0.02)
    trained.save(tmp_path / "saved", lora=False)
    read = WanPolicy.load(tmp_path / "saved", **size)
    assert list(read.modules) == list(trained.modules)
    for name, module in trained.modules.items():
        theirs = read.modules[name].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in module.state_dict().items())


def test_lora_of_one_transformer_is_read_by_plain_diffusers(wan_folder, t2v, tmp_path):
    from diffusers import DiffusionPipeline

    trained = WanPolicy.load(wan_folder, height=16, width=16, frames=5, guidance=4.0)
    trained.add_lora(2, 1.0)
    wander(trained)
    trained.save(tmp_path, lora=True)
    assert [place.name for place in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipeline = DiffusionPipeline.from_pretrained(wan_folder)
    pipeline.load_lora_weights(tmp_path)
    read = WanPolicy(pipeline, height=16, width=16, frames=5, guidance=4.0)
    x, cond = noise(2, t2v), t2v.encode(PROMPTS[:2])
    with torch.no_grad():
        v, theirs, before = (p.velocity(x, 0.5, cond) for p in (trained, read, t2v))
    torch.testing.assert_close(theirs, v, atol=1e-5, rtol=0)
    assert (v - before).abs().mean() > 0.01


@pytest.mark.parametrize(
    ("config", "billions", "blocks"),
    [
        (dict(num_attention_heads=12, ffn_dim=8960, num_layers=30), 1.419, 30),
        (dict(num_attention_heads=40, ffn_dim=13824, num_layers=40, in_channels=36), 14.29, 40),
    ],
    ids=["Wan2.1-T2V-1.3B", "Wan2.2-I2V-A14B"],
)
def test_the_published_transformers_have_their_size_and_lora_reaches_every_block(
    t2v, config, billions, blocks
):
    from diffusers import (
        AutoencoderKLWan,
        WanImageToVideoPipeline,
        WanPipeline,
        WanTransformer3DModel,
    )

    with torch.device("meta"):
        vae = AutoencoderKLWan()
        parts = [
            WanTransformer3DModel(text_dim=4096, **config)
            for _ in range(2 if "in_channels" in config else 1)
        ]
    size = sum(p.numel() for p in parts[0].parameters()) / 1e9
    assert size == pytest.approx(billions, abs=0.005 if size > 10 else 0.0005)
    shared = {
        name: getattr(t2v.pipeline, name) for name in ("tokenizer", "text_encoder", "scheduler")
    } | {"vae": vae}
    if len(parts) == 2:
        pipeline = WanImageToVideoPipeline(
            **shared, transformer=parts[0], transformer_2=parts[1], boundary_ratio=0.9
        )
    else:
        pipeline = WanPipeline(**shared, transformer=parts[0])
    policy = WanPolicy(pipeline)
    assert policy.latent_shape() == (16, 21, 60, 104)
    with pytest.raises(
        ValueError, match="height must be a positive multiple of 16 pixels, not 488"
    ):
        policy.latent_shape(height=488)
    expected = {f"blocks.{i}.{target}" for i in range(blocks) for target in LORA_TARGETS}
    assert expected == {name for name, _ in parts[0].named_modules() if name.endswith(LORA_TARGETS)}
    policy.add_lora(4, 8.0)
    for part in parts:
        trained = {name for name, p in part.named_parameters() if p.requires_grad}
        assert {name.partition(".lora_")[0] for name in trained} == expected
