"""Low-rank adapters: they start as the model, reach every block, and plain diffusers reads them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bpgo.generators import load_generator
from bpgo.generators import wan as wan_module
from bpgo.generators.flux import LORA_TARGETS, FluxPolicy
from bpgo.generators.lora import add_lora
from bpgo.generators.wan import WanPolicy
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from tests.generators.pipelines import PROMPTS, ask_wan, noise, photos

WAN_SIZE = dict(height=16, width=16, frames=5, guidance=4.0)
I2V_SIZE = dict(height=16, width=32, frames=5, guidance=4.0, guidance_2=2.5)


def trained(module):
    """The weights that are trained, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def move(policy, rate=0.1):
    """Change what is trained, as training would, and each expert in another way."""
    generator = torch.Generator().manual_seed(9)
    for module in policy.modules.values():
        for p in trained(module).values():
            p.data += rate * torch.randn(p.shape, generator=generator)


# ----------------------------------------------------------------------------------- the beginning


@torch.no_grad()
def test_flux_starts_as_the_model_itself_and_trains_only_the_adapters(tiny_folder, flux):
    adapted = load_generator(tiny_folder, height=32, width=32)
    adapted.add_lora(2, 6.0)
    names = list(trained(adapted.modules["transformer"]))
    assert names
    assert all("lora_" in name for name in names)
    x, cond = noise(2, flux), flux.encode(PROMPTS[:2])
    came, expected = adapted.velocity(x, 0.5, cond), flux.velocity(x, 0.5, cond)
    torch.testing.assert_close(came, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_both_wan_experts_start_as_the_model_and_train_only_the_adapters(wan_i2v_folder, i2v):
    adapted = WanPolicy.load(wan_i2v_folder, **I2V_SIZE)
    adapted.add_lora(2, 6.0)
    for module in adapted.modules.values():
        names = list(trained(module))
        assert len(names) == 2 * 2 * len(wan_module.LORA_TARGETS)  # two blocks, two matrices
        assert all("lora_" in name for name in names)
    x, cond = noise(2, i2v), i2v.encode(PROMPTS[:2], photos(2, i2v))
    for sigma in (0.95, 0.5):
        came, expected = adapted.velocity(x, sigma, cond), i2v.velocity(x, sigma, cond)
        torch.testing.assert_close(came, expected, atol=1e-5, rtol=0)


def test_adapters_are_float32_in_a_bfloat16_model(tiny_folder):
    policy = load_generator(tiny_folder, dtype="bfloat16", height=32, width=32)
    policy.add_lora(2, 4.0)
    module = policy.modules["transformer"]
    assert {p.dtype for p in trained(module).values()} == {torch.float32}
    assert {p.dtype for p in module.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_a_module_without_any_of_the_layers_is_refused():
    message = r"Linear has none of the layers for LoRA \(attn\.to_q.*lora_rank=0"
    with pytest.raises(ValueError, match=message):
        add_lora(nn.Linear(2, 2), 1, 1.0, LORA_TARGETS)


# -------------------------------------------------------------------------- read by plain diffusers


def test_adapters_of_both_experts_are_read_by_plain_diffusers(wan_i2v_folder, i2v, tmp_path):
    from diffusers import DiffusionPipeline

    policy = WanPolicy.load(wan_i2v_folder, **I2V_SIZE)
    policy.add_lora(2, 6.0)
    move(policy)
    policy.save(tmp_path, lora=True)
    pipeline = DiffusionPipeline.from_pretrained(wan_i2v_folder)
    pipeline.load_lora_weights(tmp_path)
    pipeline.load_lora_weights(tmp_path / "transformer_2", load_into_transformer_2=True)
    read = WanPolicy(pipeline, **I2V_SIZE)

    x, images, sigmas = noise(2, i2v), photos(2, i2v), sigma_grid(4, 3.0)
    cond = i2v.encode(PROMPTS[:2], images)
    latents, before = integrate(policy, x, cond, sigmas), integrate(i2v, x, cond, sigmas)
    assert (latents - before).abs().max() > 0.01
    torch.testing.assert_close(integrate(read, x, cond, sigmas), latents, atol=1e-5, rtol=0)
    for i, image in enumerate(images):
        row = slice(i, i + 1)
        theirs = ask_wan(read, x[row], PROMPTS[row], sigmas, "latent", image=image)
        torch.testing.assert_close(theirs, latents[row], atol=1e-5, rtol=0)
    with torch.no_grad():
        for sigma in (0.95, 0.5):  # each expert has changed
            change = read.velocity(x, sigma, cond) - i2v.velocity(x, sigma, cond)
            assert change.abs().mean() > 0.01


def test_adapters_of_one_transformer_are_read_by_plain_diffusers(wan_folder, t2v, tmp_path):
    from diffusers import DiffusionPipeline

    policy = WanPolicy.load(wan_folder, **WAN_SIZE)
    policy.add_lora(2, 1.0)
    move(policy)
    policy.save(tmp_path, lora=True)
    assert [place.name for place in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipeline = DiffusionPipeline.from_pretrained(wan_folder)
    pipeline.load_lora_weights(tmp_path)
    read = WanPolicy(pipeline, **WAN_SIZE)
    x, cond = noise(2, t2v), t2v.encode(PROMPTS[:2])
    with torch.no_grad():
        v, theirs, before = (p.velocity(x, 0.5, cond) for p in (policy, read, t2v))
    torch.testing.assert_close(theirs, v, atol=1e-5, rtol=0)
    assert (v - before).abs().mean() > 0.01


@pytest.mark.parametrize("which", ["wan_folder", "wan_i2v_folder"])
def test_full_weights_are_read_by_plain_diffusers(request, which, tmp_path):
    size = dict(height=16, width=16, frames=5)
    policy = WanPolicy.load(request.getfixturevalue(which), **size)
    for module in policy.modules.values():
        module.requires_grad_(True)
    move(policy, 0.02)
    policy.save(tmp_path / "saved", lora=False)
    read = WanPolicy.load(tmp_path / "saved", **size)
    assert list(read.modules) == list(policy.modules)
    for name, module in policy.modules.items():
        theirs = read.modules[name].state_dict()
        for key, value in module.state_dict().items():
            assert torch.equal(value, theirs[key]), key


# ----------------------------------------------------------------------------- the published models


@pytest.fixture(scope="module")
def flux_dev():
    """FLUX.1-dev's transformer as published, without memory for its weights."""
    from diffusers import FluxTransformer2DModel

    published = dict(
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
    with torch.device("meta"):
        return FluxTransformer2DModel(**published)


def test_adapters_reach_every_block_of_flux_dev(flux_dev):
    assert sum(p.numel() for p in flux_dev.parameters()) / 1e9 == pytest.approx(11.90, abs=0.005)
    linear = {name: m for name, m in flux_dev.named_modules() if isinstance(m, nn.Linear)}
    expected = {f"transformer_blocks.{i}.{target}" for i in range(19) for target in LORA_TARGETS}
    for i in range(38):
        expected |= {f"single_transformer_blocks.{i}.{target}" for target in LORA_TARGETS[:3]}
    assert expected == {name for name in linear if name.endswith(LORA_TARGETS)}
    pipeline = SimpleNamespace(
        transformer=flux_dev,
        vae=nn.Identity(),
        text_encoder=nn.Identity(),
        text_encoder_2=nn.Identity(),
        vae_scale_factor=8,
        tokenizer_2=SimpleNamespace(model_max_length=512),
    )
    policy = FluxPolicy(pipeline, height=720, width=720)
    assert policy.latent_shape() == (16, 90, 90)
    policy.add_lora(4, 8.0)
    adapters = trained(flux_dev)
    assert {name.partition(".lora_")[0] for name in adapters} == expected
    sizes = [4 * (linear[name].in_features + linear[name].out_features) for name in expected]
    assert sum(p.numel() for p in adapters.values()) == sum(sizes)


@pytest.mark.parametrize(
    ("config", "billions", "blocks"),
    [
        (dict(num_attention_heads=12, ffn_dim=8960, num_layers=30), 1.419, 30),
        (dict(num_attention_heads=40, ffn_dim=13824, num_layers=40, in_channels=36), 14.29, 40),
    ],
    ids=["Wan2.1-T2V-1.3B", "Wan2.2-I2V-A14B"],
)
def test_adapters_reach_every_block_of_wan(t2v, config, billions, blocks):
    policy = published_wan(t2v, config)
    assert policy.latent_shape() == (16, 21, 60, 104)
    with pytest.raises(ValueError, match=r"height must be .* multiple of 16 pixels, not 488"):
        policy.latent_shape(height=488)
    policy.add_lora(4, 8.0)
    targets = wan_module.LORA_TARGETS
    expected = {f"blocks.{i}.{target}" for i in range(blocks) for target in targets}
    for part in policy.modules.values():
        frozen = [p.numel() for p in part.parameters() if not p.requires_grad]
        digits = 0.005 if billions > 10 else 0.0005
        assert sum(frozen) / 1e9 == pytest.approx(billions, abs=digits)
        assert {name.partition(".lora_")[0] for name in trained(part)} == expected


def published_wan(t2v, config):
    """A policy over a published Wan without memory for its weights, and the small text encoder."""
    from diffusers import (
        AutoencoderKLWan,
        WanImageToVideoPipeline,
        WanPipeline,
        WanTransformer3DModel,
    )

    count = 2 if "in_channels" in config else 1
    with torch.device("meta"):
        vae = AutoencoderKLWan()
        experts = [WanTransformer3DModel(text_dim=4096, **config) for _ in range(count)]
    parts = {"vae": vae, "transformer": experts[0]}
    for name in ("tokenizer", "text_encoder", "scheduler"):
        parts[name] = getattr(t2v.pipeline, name)
    if count == 1:
        return WanPolicy(WanPipeline(**parts))
    parts["transformer_2"] = experts[1]
    return WanPolicy(WanImageToVideoPipeline(**parts, boundary_ratio=0.9))
