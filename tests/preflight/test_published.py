"""The published sizes against the models themselves, and which files are needed and present."""

import json

import pytest
import torch

from bpgo.files import SHIPPED
from bpgo.preflight.files import generator_files, present, reward_files
from bpgo.preflight.footprints import FOOTPRINTS
from bpgo.preflight.published import FLOAT32_LAYERS, PIPELINES, REWARDS
from bpgo.preflight.sizes import pipeline_of, read_pipeline, reward_bytes
from bpgo.registry import TABLES
from bpgo.rewards import clip, published_weights


def count(model):
    return sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------------------------- pipelines

FLUX_VAE = {  # what AutoencoderKL needs in addition to what preflight knows
    "layers_per_block": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def published_models(sizes):
    """The transformer and the autoencoder of a published pipeline, without memory."""
    import diffusers

    with torch.device("meta"):
        if sizes.class_name == "FluxPipeline":
            transformer = diffusers.FluxTransformer2DModel(
                **sizes.transformer, guidance_embeds=True, pooled_projection_dim=768
            )
            return transformer, diffusers.AutoencoderKL(**sizes.vae, **FLUX_VAE)
        transformer = diffusers.WanTransformer3DModel(**sizes.transformer)
        return transformer, diffusers.AutoencoderKLWan(**sizes.vae)


@pytest.mark.parametrize(
    ("hub_id", "billions"),
    [
        ("black-forest-labs/FLUX.1-dev", 11.90),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 1.419),
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", 14.29),
    ],
)
def test_published_transformers_and_autoencoders_have_these_sizes(hub_id, billions):
    sizes = PIPELINES[hub_id].sizes
    transformer, autoencoder = published_models(sizes)
    assert count(autoencoder) == sizes.parts["vae"].parameters
    assert count(transformer) == sizes.parts["transformer"].parameters
    assert count(transformer) / 1e9 == pytest.approx(billions, rel=5e-4)
    layers = set(transformer._keep_in_fp32_modules or [])
    assert layers == FLOAT32_LAYERS.get(type(transformer).__name__, set())
    kept = [p for name, p in transformer.named_parameters() if layers & set(name.split("."))]
    assert sum(p.numel() for p in kept) == sizes.parts["transformer"].float32_parameters


def test_published_text_encoders_have_these_sizes():
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        T5Config,
        T5EncoderModel,
        UMT5Config,
        UMT5EncoderModel,
    )

    xxl = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    xxl |= dict(feed_forward_proj="gated-gelu")
    large = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    large |= dict(num_attention_heads=12, vocab_size=49408)
    with torch.device("meta"):
        t5 = T5EncoderModel(T5Config(vocab_size=32128, **xxl))
        umt5 = UMT5EncoderModel(UMT5Config(vocab_size=256384, **xxl))
        pooled = CLIPTextModel(CLIPTextConfig(**large))
    flux, wan, experts = (known.sizes.parts for known in PIPELINES.values())
    assert count(t5) == flux["text_encoder_2"].parameters
    assert count(pooled) == flux["text_encoder"].parameters
    assert count(umt5) == wan["text_encoder"].parameters == experts["text_encoder"].parameters


def test_every_generator_with_a_policy_has_a_footprint():
    assert set(FOOTPRINTS) == set(TABLES["generator"])
    assert {known.sizes.class_name for known in PIPELINES.values()} <= set(FOOTPRINTS)


@pytest.mark.parametrize("name", ["tiny-flux", "tiny-wan", "tiny-wan-image"])
def test_the_sizes_of_a_folder_are_those_of_the_models_in_it(name):
    from diffusers import DiffusionPipeline

    sizes = read_pipeline(SHIPPED / name)
    pipeline = DiffusionPipeline.from_pretrained(SHIPPED / name)
    models = {
        part: model
        for part, model in pipeline.components.items()
        if isinstance(model, torch.nn.Module)
    }
    assert sizes.class_name == type(pipeline).__name__
    assert {part: size.parameters for part, size in sizes.parts.items()} == {
        part: count(model) for part, model in models.items()
    }


def test_float32_layers_of_a_folder_are_counted():
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(
        SHIPPED / "tiny-wan" / "transformer", torch_dtype=torch.bfloat16
    )
    kept = sum(p.numel() for p in model.parameters() if p.dtype == torch.float32)
    part = read_pipeline(SHIPPED / "tiny-wan").parts["transformer"]
    assert part.float32_parameters == kept > 0
    assert read_pipeline(SHIPPED / "tiny-flux").parts["transformer"].float32_parameters == 0


def test_an_incomplete_folder_has_no_sizes_and_a_published_id_keeps_its_own(put):
    hub_id = "black-forest-labs/FLUX.1-dev"
    published = PIPELINES[hub_id].sizes
    assert pipeline_of(hub_id) == published
    folder = put(hub_id, SHIPPED / "tiny-flux")
    assert pipeline_of(hub_id) == read_pipeline(SHIPPED / "tiny-flux") != published
    (folder / "vae" / "config.json").unlink()
    assert pipeline_of(hub_id) == published
    assert pipeline_of(str(folder)) is None


# ------------------------------------------------------------------------------------ rewards


def tower(width, layers, heads):
    return dict(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )


def test_published_rewards_have_these_sizes():
    from transformers import CLIPConfig, CLIPModel

    from bpgo.rewards import video_align, video_clip_xl

    patches = dict(image_size=224, patch_size=14)
    with torch.device("meta"):
        large = CLIPModel(
            CLIPConfig(
                text_config=tower(768, 12, 12),
                vision_config=tower(1024, 24, 16) | patches,
                projection_dim=768,
            )
        )
        huge = CLIPModel(
            CLIPConfig(
                text_config=tower(1024, 24, 16),
                vision_config=tower(1280, 32, 16) | patches,
                projection_dim=1024,
            )
        )
        video = video_clip_xl.VideoCLIP(video_clip_xl.PUBLISHED)
        align = video_align.VideoReward(video_align.PUBLISHED, 151_660, 1, 0, [1, 2, 3])
    assert count(large) == REWARDS["clip"].parameters
    assert count(huge) == REWARDS["pickscore"].parameters == REWARDS["hpsv2"].parameters
    assert count(video) == REWARDS["video_clip_xl"].parameters
    assert count(align.backbone) == REWARDS["video_align"].parameters


@pytest.mark.parametrize(
    ("name", "bytes_per_parameter"), [("hpsv2", 2), ("image_reward", 4), ("video_clip_xl", 4)]
)
def test_published_files_have_the_size_of_their_parameters(name, bytes_per_parameter):
    reward = REWARDS[name]
    expected = bytes_per_parameter * reward.parameters
    assert reward.files[0].stored == pytest.approx(expected, rel=1e-3)


def test_every_reward_with_published_weights_is_known_under_its_hub_id():
    published = {name: published_weights(name) for name in TABLES["reward"]}
    expected = {name: hub_id for name, hub_id in published.items() if hub_id}
    assert {name: reward.files[0].source for name, reward in REWARDS.items()} == expected


def test_the_bytes_of_a_reward_are_those_of_its_weights(tmp_path):
    model, _ = clip.load(SHIPPED / "tiny-reward")
    size = 4 * count(model)
    assert reward_bytes("clip", "tiny-reward") == size
    assert reward_bytes("my_rewards:Mine", "tiny-reward") == size
    assert reward_bytes("clip", str(SHIPPED / "tiny-reward" / "model.safetensors")) == size
    assert reward_bytes("hpsv2", None) == 4 * 986_109_441
    (tmp_path / "weights.pt").write_bytes(b"12345")
    assert reward_bytes("image_reward", str(tmp_path / "weights.pt")) == 5


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("clip", "nowhere/at/all"),
        ("image_grid", None),
        ("my_rewards:mine", None),
        ("my_rewards:Mine", "someone/weights"),
    ],
)
def test_the_bytes_of_other_rewards_are_not_known(name, path):
    assert reward_bytes(name, path) is None


# -------------------------------------------------------------------------------------- files


def test_only_a_complete_pipeline_in_the_cache_is_present(put):
    folder = put("someone/flux", SHIPPED / "tiny-flux")
    (files,) = generator_files("someone/flux")
    assert present(files)
    index = folder / "transformer" / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a-00002-of-00002.safetensors"}}))
    assert not present(files)
    index.unlink()
    assert present(files)
    (weights,) = (folder / "transformer").glob("*.safetensors")
    weights.unlink()
    assert not present(files)


def test_every_file_of_a_reward_is_looked_for(put, tmp_path):
    source = tmp_path / "hps"
    source.mkdir()
    (source / "HPS_v2.1_compressed.pt").touch()
    put("xswu/HPSv2", source)
    weights, tokenizer = reward_files("hpsv2", None)  # the tokenizer is another repository's
    assert (present(weights), present(tokenizer)) == (True, False)
    assert not present(reward_files("hpsv2.0", None)[0])


def test_a_published_reward_named_by_its_id_needs_all_its_files():
    assert reward_files("hpsv2", "xswu/HPSv2") == reward_files("hpsv2", None)
    (other,) = reward_files("hpsv2", "someone/else")
    assert (other.source, other.licence) == ("someone/else", "not known")


def test_of_your_own_rewards_and_policies_only_what_is_here_is_listed():
    """What a class of your own makes of its path is not known."""
    assert reward_files("my_rewards:mine", None) == ()
    assert reward_files("my_rewards:Mine", "anything at all") == ()
    assert [f.source for f in reward_files("my_rewards:Mine", "tiny-reward")] == ["tiny-reward"]
    assert generator_files("someone/thing", "my_policies:Mine") == ()
    (here,) = generator_files("tiny-reward", "my_policies:Mine")
    assert present(here)
    assert not present(*generator_files("tiny-reward")), "it is not a pipeline"
