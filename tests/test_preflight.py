"""What a run needs: published sizes, the memory model against measured peaks, and the messages and exit codes of preflight."""

import dataclasses
import json
import random
import shutil
import time
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bpgo.config import build_config, read_config
from bpgo.files import SHIPPED
from bpgo.generators.flux import FluxPolicy
from bpgo.preflight import report as checks
from bpgo.preflight.memory import (
    adapters,
    decoding,
    flops,
    flops_beside,
    memory,
    rows,
    sampling_activations,
    sizes,
    steps,
    update_activations,
)
from bpgo.preflight.published import (
    PARTS,
    SCORERS,
    needed,
    pipeline_of,
    present,
    published,
    read_pipeline,
    weight,
)
from bpgo.preflight.report import Launch, preflight, read_launch, run
from bpgo.prompts import read_prompts
from bpgo.rewards import REWARDS, clip
from bpgo.sde import sigma_grid
from bpgo.setup import load_policy
from bpgo.trainer import Trainer

ACCELERATE = Path(__file__).parent.parent / "reproduce" / "accelerate"


class Live(TorchDispatchMode):
    """Bytes of the storages made within it that are alive, and their peak: exact, whatever the allocator does."""

    def __init__(self, known):
        super().__init__()
        self.seen, self.now, self.peak = {t.untyped_storage()._cdata for t in known}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if (
                isinstance(t, torch.Tensor)
                and (storage := t.untyped_storage())._cdata not in self.seen
            ):
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key, size):
        self.now -= size
        self.seen.discard(key)


def count(model):
    return sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------------------------------------------------- published sizes


def test_published_transformers_and_autoencoders_have_these_sizes():
    from diffusers import (
        AutoencoderKL,
        AutoencoderKLWan,
        FluxTransformer2DModel,
        WanTransformer3DModel,
    )

    kinds = {"FluxPipeline": (FluxTransformer2DModel, AutoencoderKL)}
    for hub_id, (kind, parts) in PARTS.items():
        transformer, vae = kinds.get(kind["class_name"], (WanTransformer3DModel, AutoencoderKLWan))
        given = kind["vae"] | (
            dict(
                layers_per_block=2,
                use_quant_conv=False,
                use_post_quant_conv=False,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            )
            if vae is AutoencoderKL
            else {}
        )
        more = dict(guidance_embeds=True, pooled_projection_dim=768) if vae is AutoencoderKL else {}
        with torch.device("meta"):
            found = transformer(**kind["transformer"], **more)
            assert count(vae(**given)) == parts["vae"].parameters, hub_id
        assert count(found) == parts["transformer"].parameters, hub_id
        islands = set(found._keep_in_fp32_modules or [])
        kept = sum(
            p.numel() for name, p in found.named_parameters() if islands & set(name.split("."))
        )
        assert kept == parts["transformer"].islands, hub_id
    billions = [parts["transformer"].parameters / 1e9 for _, parts in PARTS.values()]
    assert billions == [
        pytest.approx(11.90, abs=0.005),
        pytest.approx(1.419, abs=5e-4),
        pytest.approx(14.29, abs=0.005),
    ]


def test_published_text_encoders_have_these_sizes():
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        T5Config,
        T5EncoderModel,
        UMT5Config,
        UMT5EncoderModel,
    )

    xxl = dict(
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    clip = dict(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    with torch.device("meta"):
        t5, umt5 = (
            T5EncoderModel(T5Config(vocab_size=32128, **xxl)),
            UMT5EncoderModel(UMT5Config(vocab_size=256384, **xxl)),
        )
        pooled = CLIPTextModel(CLIPTextConfig(**clip))
    flux, wan, experts = (parts for _, parts in PARTS.values())
    assert [count(t5), count(pooled)] == [
        flux[name].parameters for name in ("text_encoder_2", "text_encoder")
    ]
    assert count(umt5) == wan["text_encoder"].parameters == experts["text_encoder"].parameters


def test_published_rewards_have_these_sizes():
    from transformers import CLIPConfig, CLIPModel

    from bpgo.rewards import video_align, video_clip_xl

    def tower(width, layers, heads):
        return dict(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
        )

    vision = dict(image_size=224, patch_size=14)
    with torch.device("meta"):
        large = CLIPModel(
            CLIPConfig(
                text_config=tower(768, 12, 12),
                vision_config=tower(1024, 24, 16) | vision,
                projection_dim=768,
            )
        )
        huge = CLIPModel(
            CLIPConfig(
                text_config=tower(1024, 24, 16),
                vision_config=tower(1280, 32, 16) | vision,
                projection_dim=1024,
            )
        )
        video = video_clip_xl.VideoCLIP(video_clip_xl.PUBLISHED)
        align = video_align.VideoReward(video_align.PUBLISHED, 151_660, 1, 0, [1, 2, 3])
    assert count(large) == SCORERS["clip"].parameters
    assert count(huge) == SCORERS["pickscore"].parameters == SCORERS["hpsv2"].parameters
    assert count(video) == SCORERS["video_clip_xl"].parameters
    assert count(align.backbone) == SCORERS["video_align"].parameters
    sizes_on_disk = {
        name: SCORERS[name].files[0].stored / SCORERS[name].parameters
        for name in ("hpsv2", "image_reward", "video_clip_xl")
    }
    assert sizes_on_disk == {
        "hpsv2": pytest.approx(2, rel=1e-3),
        "image_reward": pytest.approx(4, rel=1e-3),
        "video_clip_xl": 4,
    }


def test_every_reward_with_published_weights_is_known_under_their_id():
    expected = {name: hub_id for name, (_, _, hub_id) in REWARDS.items() if hub_id}
    assert {name: scorer.files[0].hub_id for name, scorer in SCORERS.items()} == expected


@pytest.mark.parametrize("name", ["tiny-flux", "tiny-wan", "tiny-wan-image"])
def test_a_folder_s_sizes_are_those_of_the_models_in_it(name):
    from diffusers import DiffusionPipeline

    read, pipeline = (
        read_pipeline(SHIPPED / name),
        DiffusionPipeline.from_pretrained(SHIPPED / name),
    )
    assert read.class_name == type(pipeline).__name__
    assert {part: sizes.parameters for part, sizes in read.parts.items()} == {
        part: count(getattr(pipeline, part)) for part in read.parts
    }
    assert set(read.parts) == {
        part for part, model in pipeline.components.items() if isinstance(model, torch.nn.Module)
    }


def test_a_reward_s_bytes_are_those_of_its_weights():
    model, _ = clip.load(SHIPPED / "tiny-reward")
    assert weight("clip", "tiny-reward") == 4 * count(model)
    assert weight("hpsv2", None) == 4 * 986_109_441
    assert weight("clip", "nowhere/at/all") == 0


# ----------------------------------------------------------------------------------------------- memory: model against measured


CASES = {  # preset, settings, samples of a micro-batch
    "flux": ("t2i-tiny", [], 16),
    "flux, checkpointing": ("t2i-tiny", ["generator.gradient_checkpointing=true"], 32),
    "flux, LoRA": ("t2i-tiny", ["generator.lora_rank=4"], 16),
    "flux, LoRA, bfloat16": (
        "t2i-tiny",
        ["generator.lora_rank=4", "generator.dtype=bfloat16", "precision=bf16"],
        16,
    ),
    "flux, bfloat16": ("t2i-tiny", ["precision=bf16"], 16),
    "flux, checkpointing, bfloat16": (
        "t2i-tiny",
        ["generator.gradient_checkpointing=true", "precision=bf16"],
        32,
    ),
    "flux, LoRA on float32, bfloat16": (
        "t2i-tiny",
        ["generator.lora_rank=4", "precision=bf16"],
        16,
    ),
    "wan": ("t2v-tiny", ["generator.lora_rank=0"], 8),
    "wan, checkpointing": (
        "t2v-tiny",
        ["generator.lora_rank=0", "generator.gradient_checkpointing=true"],
        16,
    ),
    "wan, checkpointing, bfloat16": (
        "t2v-tiny",
        ["generator.lora_rank=0", "generator.gradient_checkpointing=true", "precision=bf16"],
        16,
    ),
    "wan, LoRA on float32, checkpointing, bfloat16": (
        "t2v-tiny",
        ["generator.gradient_checkpointing=true", "precision=bf16"],
        16,
    ),
    "wan, LoRA": ("t2v-tiny", [], 8),
    "wan, LoRA, guidance": ("t2v-tiny", ["generator.guidance=4.0"], 4),
    "wan, LoRA, checkpointing": ("t2v-tiny", ["generator.gradient_checkpointing=true"], 8),
    "wan, LoRA, bfloat16": ("t2v-tiny", ["generator.dtype=bfloat16", "precision=bf16"], 8),
}


def set_up(preset, overrides, batch):
    """The config, its pipeline's sizes, and its policy with what is trained, as a run has them."""
    config = read_config(
        preset,
        [*overrides, f"sampling.micro_batch={batch}", f"groups={batch}", "optimiser.updates=1"],
    )
    policy = load_policy(config, SimpleNamespace(device=torch.device("cpu"), num_processes=1))
    return config, read_pipeline(SHIPPED / config.generator.path), policy


def trained(policy):
    return [p for module in policy.modules.values() for p in module.parameters() if p.requires_grad]


def conditions(policy, config, batch):
    prompts = read_prompts(config.prompts)[:1] * batch
    with torch.no_grad():
        return {name: value.clone() for name, value in policy.encode(prompts).items()}


def tensors_of(policy):
    parts = [
        part for part in policy.pipeline.components.values() if isinstance(part, torch.nn.Module)
    ]
    held = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    return held + [p.grad for p in held if p.grad is not None]


@pytest.mark.parametrize("case", CASES)
def test_the_activations_of_an_update_are_foreseen(case):
    config, pipeline, policy = set_up(*CASES[case])
    batch = CASES[case][2]
    cond, x = conditions(policy, config, batch), torch.randn(batch, *policy.latent_shape())
    auto = torch.autocast("cpu", torch.bfloat16) if config.precision == "bf16" else nullcontext()

    def update():
        with auto:
            v = policy.velocity(x, 0.5, cond)
        v.square().mean().backward()

    update()  # then gradients are there, as from the second trained step on
    with Live([*tensors_of(policy), x, *cond.values()]) as live:
        update()
    assert update_activations(config, pipeline, batch) == pytest.approx(live.peak, rel=0.15)


@pytest.mark.parametrize(
    "case", ["flux", "flux, bfloat16", "wan", "wan, LoRA, guidance", "wan, LoRA, bfloat16"]
)
def test_the_activations_of_sampling_are_foreseen(case):
    config, pipeline, policy = set_up(*CASES[case])
    batch = CASES[case][2]
    cond, x = conditions(policy, config, batch), torch.randn(batch, *policy.latent_shape())
    auto = torch.autocast("cpu", torch.bfloat16) if config.precision == "bf16" else nullcontext()
    with Live([*tensors_of(policy), x, *cond.values()]) as live, torch.no_grad(), auto:
        noise = torch.randn(config.sampling.steps, *x.shape)
        policy.velocity(x, 0.5, cond)
    assert len(noise) == len(sigma_grid(config.sampling.steps)) - 1
    assert sampling_activations(config, pipeline, batch) == pytest.approx(live.peak, rel=0.15)


@pytest.mark.parametrize("case", ["flux", "wan"])
def test_decoding_is_foreseen(case):
    config, pipeline, policy = set_up(*CASES[case])
    batch = CASES[case][2]
    x = torch.randn(batch, *policy.latent_shape())
    with Live([*tensors_of(policy), x]) as live:
        policy.decode(x)
    assert decoding(config, pipeline, batch) == pytest.approx(live.peak, rel=0.15)


@pytest.mark.parametrize(
    "case",
    ["flux", "wan", "wan, LoRA", "flux, LoRA", "flux, LoRA, bfloat16", "wan, LoRA, bfloat16"],
)
def test_what_training_keeps_is_exact(case):
    config, pipeline, policy = set_up(*CASES[case])
    parameters = trained(policy)
    optimiser = torch.optim.AdamW(parameters, fused=True)
    sum(p.sum() for p in parameters).backward()
    optimiser.step()
    always, phases, host = memory(config, pipeline, 0, 1)
    size = 4 * sum(p.numel() for p in parameters)
    moments = sum(
        state[name].nbytes
        for state in optimiser.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    )
    assert [
        always[name]
        for name in ("trained weights", "gradients", "averaged weights", "AdamW's moments")
    ] == [size, size, size, moments]
    if config.generator.lora_rank:
        assert adapters(config, pipeline) == sum(p.numel() for p in parameters)
        frozen = sum(
            p.nbytes for p in policy.modules["transformer"].parameters() if not p.requires_grad
        )
        assert always["frozen transformers"] == frozen
    text = sum(
        p.nbytes for name in policy.encoders for p in getattr(policy.pipeline, name).parameters()
    )
    assert (always["text encoders"], always["autoencoder"]) == (
        text,
        sum(p.nbytes for p in policy.pipeline.vae.parameters()),
    )
    assert not host and set(phases) == {"encode", "sample", "decode", "update"}


def test_the_rollout_and_the_conditions_are_exact():
    from bpgo.rollout import plan, sample_groups

    config, pipeline, policy = set_up(*CASES["wan, LoRA, guidance"])
    scheme = plan(sigma_grid(8, 3.0), "flow-grpo", 0.7, 0.6, 2, random.Random(0))
    cond = {name: value[:4] for name, value in conditions(policy, config, 4).items()}
    rollout = sample_groups(
        policy, cond, config.group_size, scheme, list(range(4 * config.group_size)), None, 4
    )
    always, *_ = memory(config, pipeline, 0, prompts=4)
    assert always["rollout"] == rollout.latents.nbytes + rollout.x.nbytes + rollout.x_next.nbytes
    assert always["conditions"] == sum(value.nbytes for value in cond.values())


def test_with_offload_only_what_is_at_work_and_what_is_trained_stays():
    given = [
        "generator.path=tiny-wan-image",
        "generator.offload=true",
        "prompts=prompts/image-clip-train.jsonl",
    ]
    config, pipeline = read_config("t2v-tiny", given), read_pipeline(SHIPPED / "tiny-wan-image")
    without = dataclasses.replace(
        config, generator=dataclasses.replace(config.generator, offload=False)
    )
    (always, phases, host), (held, at_once, none) = (
        memory(c, pipeline, 0, 100) for c in (config, without)
    )
    one = 4 * pipeline.parts["transformer"].parameters
    assert phases["update"] - at_once["update"] == one, "one expert of two"
    assert phases["encode"] == 4 * pipeline.parts["text_encoder"].parameters
    assert (
        host["parked weights"] == 2 * one + phases["encode"] + 4 * pipeline.parts["vae"].parameters
    )
    assert (host["rollout"], none) == (held["rollout"], {})
    assert {"rollout", "text encoders", "autoencoder", "frozen transformers"}.isdisjoint(always)
    assert always["trained weights"] == held["trained weights"] > 0


def test_several_processes_encode_first_and_then_free_the_encoders():
    config, pipeline = read_config("t2i-flux"), published("black-forest-labs/FLUX.1-dev")
    (one, phases, _), (several, first, _) = (
        memory(config, pipeline, 0, 1000, processes) for processes in (1, 8)
    )
    words = one["text encoders"]
    assert words == sum(
        2 * pipeline.parts[name].parameters for name in ("text_encoder", "text_encoder_2")
    )
    assert (several["text encoders"], first["encode"] - phases["encode"]) == (0, words)
    assert several["conditions"] * 1000 == one["conditions"] * config.groups


def test_shards_are_divided_and_copies_are_not():
    config, pipeline = read_config("t2i-flux"), published("black-forest-labs/FLUX.1-dev")
    (one, *_), (copies, *_), (shards, *_) = (
        memory(config, pipeline, 0, 1, *given) for given in ((1,), (8,), (8, True))
    )
    for name in ("trained weights", "gradients", "AdamW's moments"):
        assert one[name] == copies[name] == 8 * shards[name]
    assert (
        copies["buckets of DDP"] == copies["gradients"]
        and not shards["buckets of DDP"]
        and not one["buckets of DDP"]
    )


def test_what_is_to_be_sharded_waits_on_the_cpu(monkeypatch):
    """The transformers go to the device a block at a time; encoders and autoencoder at once. "meta" stands for a device."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    config = read_config("i2v-tiny", ["generator.lora_rank=0"])
    policy = load_policy(config, SimpleNamespace(device=torch.device("meta"), num_processes=2))
    places = {
        name: {t.device.type for t in part.parameters()}
        for name, part in policy.pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }
    assert places == {
        "transformer": {"cpu"},
        "transformer_2": {"cpu"},
        "vae": {"meta"},
        "text_encoder": {"meta"},
    }
    assert policy.device.type == "meta"
    *_, host = memory(config, read_pipeline(SHIPPED / "tiny-wan-image"), 0, 1, 2, True)
    assert host == {"loading": sum(p.nbytes for p in trained(policy))}


def test_shards_take_their_device_a_block_at_a_time(monkeypatch):
    """torch's fully_shard moves what it is given; by then nothing else has been moved, and the blocks before have been."""
    from bpgo.distributed import distribute

    seen = []

    def fully_shard(module, mesh, reshard_after_forward=True):
        mine = [p for p in module.parameters() if p.device.type == "cpu"]
        seen.append(len(mine))
        for part in module.modules():
            part._parameters = {
                name: p if p is None else torch.nn.Parameter(p.to("meta"))
                for name, p in part._parameters.items()
            }

    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", fully_shard)
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *given: None)
    monkeypatch.setattr("bpgo.distributed.sharded", lambda accelerator: True)
    *_, policy = set_up(*CASES["wan"])
    (module,) = policy.modules.values()
    every, of_block = len(list(module.parameters())), len(list(module.blocks[0].parameters()))
    distribute(
        SimpleNamespace(device=torch.device("meta"), num_processes=2, mixed_precision="no"),
        policy.modules,
        False,
    )
    assert seen == [of_block] * len(module.blocks) + [every - of_block * len(module.blocks)]


@pytest.mark.parametrize("sizes", [(4, 8)])
def test_memory_grows_with_the_group_by_the_rollout_only(tmp_path, sizes):
    """Equal micro-batches: the peak of a whole iteration, rewards included, differs by what the rollout keeps."""
    from bpgo.trainer import Trainer

    peaks, kept = [], []
    for size in sizes:
        config = read_config(
            "t2i-tiny",
            [
                f"group_size={size}",
                "groups=2",
                "sampling.micro_batch=4",
                "sampling.steps=4",
                "optimiser.updates=1",
                "prior.name=running_mean",
                "evaluation.held_out=[]",
                "evaluation.metrics=[]",
            ],
        )
        trainer = Trainer(config, tmp_path / str(size), progress=False)
        trainer.step()  # then the optimiser has its moments
        conditions = [t for row in trainer.conditions.rows.values() for t in row.values()]
        state = [t for each in trainer.optimiser.state.values() for t in each.values()]
        with Live([*tensors_of(trainer.policy), *conditions, *state]) as live:
            trainer.step()
        peaks.append(live.peak)
        kept.append(memory(config, read_pipeline(SHIPPED / "tiny-flux"), 0, 1)[0]["rollout"])
    assert peaks[1] - peaks[0] == pytest.approx(kept[1] - kept[0], rel=0.1)


@pytest.mark.parametrize("case", ["flux", "wan", "wan, LoRA, guidance"])
def test_operations_are_those_that_torch_counts(case):
    config, pipeline, policy = set_up(*CASES[case])
    batch = CASES[case][2]
    cond, x = conditions(policy, config, batch), torch.randn(batch, *policy.latent_shape())
    for module in policy.modules.values():
        module.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy.velocity(x, 0.5, cond)
    made, again = steps(config)
    passes = made + again * (2 if config.generator.lora_rank else 3)
    assert flops(config, pipeline) / passes / rows(config, 1)[0] * batch == pytest.approx(
        counter.get_total_flops(), rel=0.15
    )


def test_sizes_of_the_published_pipelines():
    flux, wan = (
        sizes(read_config(name), pipeline_of(read_config(name).generator.path))
        for name in ("t2i-flux", "t2v-wan2.1-1.3b")
    )
    assert (flux.tokens, flux.text, flux.width, flux.latent) == (
        2025,
        512,
        3072,
        16 * 90 * 90,
    )  # reference cards: 720 x 720 is 2025
    assert (wan.tokens, wan.text, wan.copies, wan.latent) == (
        14 * 30 * 30,
        226,
        2,
        16 * 14 * 60 * 60,
    )
    whole = sizes(
        read_config(
            "t2v-wan2.1-1.3b",
            ["generator.height=480", "generator.width=832", "generator.frames=81"],
        ),
        published("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    )
    assert whole.tokens == 32_760  # reference cards


# ------------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A hub cache with nothing in it, and a hub that may not be asked."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *a, **k: pytest.fail("it downloads without being told"),
    )
    return tmp_path / "hub"


def put(cache, hub_id, source):
    """Have a folder in the hub cache under an id."""
    place = cache / f"models--{hub_id.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    shutil.copytree(source, place / "snapshots" / "abc")
    return place / "snapshots" / "abc"


@pytest.mark.parametrize("preset", ["t2i-tiny", "t2v-tiny", "i2v-tiny"])
def test_a_tiny_preset_lacks_nothing(preset, empty_cache, capsys):
    start = time.perf_counter()
    assert run(read_config(preset)) == 0
    assert time.perf_counter() - start < 10  # a fraction of a second on a machine of its own
    said = capsys.readouterr().out
    assert (
        said.endswith("Nothing is missing.\n")
        and "device hours for" in said
        and "free on that disk" in said
    )


@pytest.mark.parametrize("preset", ["t2i-flux", "t2v-wan2.1-1.3b", "i2v-wan2.2-a14b"])
def test_a_real_preset_without_its_files_says_what_is_missing(preset, empty_cache, capsys):
    config = read_config(preset)
    assert run(config) == 1
    said = capsys.readouterr().out
    for reward in (*config.reward, *config.evaluation.held_out):
        assert all(
            f"{f.hub_id} is not here: run this again with --download" in said
            for f in needed(reward.name, None)
        )
    assert f"Missing: {config.generator.path} is not here" in said
    assert ("hf auth login" in said) == (preset == "t2i-flux"), "only FLUX.1-dev is gated"
    assert ("prompts: there is no file prompts/images.jsonl" in said) == preset.startswith("i2v")
    assert (said.count("CC-BY-NC-SA-4.0"), said.count("Non-Commercial")) == (
        (0, 1) if preset == "t2i-flux" else (1, 0)
    )


def test_an_id_that_nobody_knows_is_missing_and_its_memory_is_not_guessed(empty_cache):
    report = preflight(read_config("t2i-tiny", ["generator.path=someone/something"]))
    assert "someone/something is not here: run this again with --download" in report.missing[0]
    assert "Memory and time: not known" in report.text
    gone = preflight(read_config("t2i-tiny", ["generator.path=nowhere/at/all"]))
    assert (
        "nowhere/at/all is not here: give a folder that exists, a shipped name or a hub id"
        in gone.missing[0]
    )


def test_what_is_in_the_cache_is_here_if_whole(empty_cache):
    folder = put(empty_cache, "someone/flux", SHIPPED / "tiny-flux")
    config = read_config("t2i-tiny", ["generator.path=someone/flux"])
    assert preflight(config).missing == []
    (weights,) = (folder / "transformer").glob("*.safetensors")
    (folder / "transformer" / "a.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a-00002-of-00002.safetensors"}})
    )
    assert "someone/flux is not here" in preflight(config).missing[0]
    (folder / "transformer" / "a.safetensors.index.json").unlink()
    weights.unlink()
    assert "someone/flux is not here" in preflight(config).missing[0]


def test_a_reward_in_the_cache_is_here(empty_cache, tmp_path):
    (tmp_path / "hps").mkdir()
    (tmp_path / "hps" / "HPS_v2.1_compressed.pt").touch()
    put(empty_cache, "xswu/HPSv2", tmp_path / "hps")
    assert [present(f) for f in needed("hpsv2", None)] == [
        True,
        False,
    ]  # the tokenizer is another repository's
    assert not present(needed("hpsv2.0", None)[0])


def test_it_downloads_when_told_and_only_what_is_needed(empty_cache, monkeypatch):
    import huggingface_hub

    asked = {}

    def fetch(hub_id, allow_patterns):
        asked[hub_id] = allow_patterns
        put(empty_cache, hub_id, SHIPPED / "tiny-flux")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    config = read_config("t2i-tiny", ["generator.path=someone/flux"])
    assert preflight(config, download=True).missing == []
    assert asked == {
        "someone/flux": ["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model"]
    }
    assert preflight(config, download=True).missing == [] and len(asked) == 1


def test_a_download_that_fails_is_told_with_the_remedy(empty_cache, monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    first = preflight(read_config("t2i-flux"), download=True).missing[0]
    assert first.startswith(
        "black-forest-labs/FLUX.1-dev could not be downloaded: accept its terms on its page, then `hf auth login`"
    )
    assert first.endswith("(401 Client Error)")


def test_a_disk_without_room_is_told(empty_cache, monkeypatch):
    monkeypatch.setattr(
        checks.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9 - 1, 1)
    )
    assert any(
        "the disk lacks" in problem and "HF_HOME" in problem
        for problem in preflight(read_config("t2i-flux")).missing
    )


TOO_LITTLE = {  # what is too large -> the setting that is named first
    "the update": (
        "t2i-tiny",
        ["prior.name=running_mean"],
        20_000_000,
        "generator.gradient_checkpointing=true",
    ),
    "decoding": (
        "t2v-tiny",
        ["generator.gradient_checkpointing=true", "generator.height=512", "generator.width=512"],
        10**8,
        "generator.vae_tiling=true",
    ),
    "all weights": (
        "t2i-flux",
        [],
        80 * 10**9,
        "accelerate launch --config_file reproduce/accelerate/fsdp2.yaml",
    ),
    "frozen weights": (
        "i2v-wan2.2-a14b",
        ["sampling.micro_batch=1", "generator.dtype=bfloat16"],
        48 * 10**9,
        "generator.offload=true",
    ),
}


@pytest.mark.parametrize("case", TOO_LITTLE)
def test_too_little_memory_names_the_setting_that_saves_most(case, empty_cache):
    preset, overrides, device, first = TOO_LITTLE[case]
    (problem,) = [
        p
        for p in preflight(read_config(preset, overrides), device_bytes=device).missing
        if "too much" in p
    ]
    assert f"too much: try {first}" in problem


def test_too_little_memory_of_the_cpu_is_told_where_there_is_a_gpu(empty_cache, monkeypatch):
    config = read_config("t2v-wan2.1-1.3b-lowmem")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(checks, "device_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(checks, "_ram", lambda: 32 * 10**9)
    (problem,) = [p for p in preflight(config, rate=1e15).missing if p.startswith("memory")]
    assert (
        problem
        == "memory: the CPU needs 41.2 GB and has 32.0 GB: give rewards a GPU (their device)"
    )


def test_settings_that_are_made_already_are_not_proposed(empty_cache):
    report = preflight(
        read_config("t2v-wan2.1-1.3b-lowmem", ["sampling.micro_batch=1"]), device_bytes=10**9
    )
    (problem,) = [p for p in report.missing if "too much" in p]
    assert not any(
        name in problem
        for name in ("checkpointing", "tiling", "offload", "lora_rank", "micro_batch", "accelerate")
    )
    assert "a smaller generator.height, width or frames" in problem and "reward.device" in problem


def test_prompts_that_cannot_be_used_are_told(empty_cache, tmp_path):
    (tmp_path / "few.txt").write_text("a red circle\n")
    few, gone = (
        preflight(read_config("t2i-tiny", [f"prompts={tmp_path}/{name}.txt"])).missing
        for name in ("few", "gone")
    )
    assert few == [
        f"prompts: groups=8 an iteration, and {tmp_path}/few.txt has 1: lower groups, or add prompts"
    ]
    assert gone == [
        f"prompts: there is no file {tmp_path}/gone.txt. Give a file with a prompt a line, by prompts=FILE"
    ]
    (plain,) = preflight(read_config("i2v-tiny", ["prompts=prompts/clip-train.jsonl"])).missing
    assert "has no images" in plain and '"image"' in plain
    (large,) = preflight(
        read_config("i2v-tiny", ["generator.height=64", "evaluation.prompts=null"])
    ).missing
    assert "pixels, not 32 x 64" in large


def test_groups_that_the_processes_cannot_share_are_refused():
    with pytest.raises(
        ValueError, match=r"groups=8 cannot be split over optimiser\.updates=2 times 8 processes"
    ):
        preflight(read_config("t2i-tiny"), launch=Launch(8))


def test_how_a_run_is_launched_is_read_from_accelerate_s_file():
    assert read_launch(ACCELERATE / "ddp.yaml") == Launch(8, False)
    assert read_launch(ACCELERATE / "fsdp2.yaml") == Launch(8, True)


def test_a_planned_device_s_rate_makes_the_time():
    config = read_config("t2i-flux")
    text = preflight(config, launch=Launch(8, True), device_bytes=80 * 10**9, rate=6e14).text
    seconds = flops(config, published(config.generator.path), 8) / 6e14 / checks.UTILISATION
    assert (
        f"{seconds:.3g} s an iteration, {seconds * 300 * 8 / 3600:.3g} device hours for 300 iterations"
        in text
    )
    assert "of the 600 TFLOP/s planned" in text


@pytest.mark.parametrize(("every", "evaluations"), [(None, 2), (2, 4), (3, 3), (5, 2), (9, 2)])
def test_the_time_beside_the_iterations_is_that_of_the_samples_that_are_drawn(
    every, evaluations, tiny_folder, tmp_path, monkeypatch
):
    """Five iterations: every pass of the transformer counted, in units of a pass of one sample."""
    tree = {
        "generator": {"path": str(tiny_folder), "height": 16, "width": 16},
        "reward": {"name": "redness"},
        "prompts": "given",
        "groups": 2,
        "group_size": 2,
        "iterations": 5,
        "sampling": {"steps": 2, "shift": 1.0, "noise_level": 0.7},
        "evaluation": {"samples": 3, "steps": 4, "every": every},
        "prior": {"name": "sft", "samples": 2},
    }
    config, prompts, passes, velocity = (
        build_config(tree),
        ["a red circle", "a blue square", "a shape"],
        [],
        FluxPolicy.velocity,
    )
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        FluxPolicy,
        "velocity",
        lambda self, x, *given: (passes.append(len(x)), velocity(self, x, *given))[1],
    )
    Trainer(
        config,
        tmp_path / "run",
        reward=lambda x, p: x.mean((1, 2, 3)),
        prompts=prompts,
        progress=False,
    ).train()
    iterations = 5 * rows(config, 1)[0] * sum(steps(config))
    pipeline = read_pipeline(tiny_folder)
    expected = (3 * 2 + evaluations * 3 * 3) * 4
    assert sum(passes) - iterations == expected
    one = flops(config, pipeline) / rows(config, 1)[0] / (steps(config)[0] + 3 * steps(config)[1])
    assert flops_beside(config, pipeline, 3, 3) == pytest.approx(expected * one)


def test_conditions_that_do_not_fit_the_disk_are_missed(monkeypatch, tmp_path):
    """FLUX's 512 x 4096 bfloat16 rows are 4.2 MB a prompt: kept on disk once there are several processes."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path))
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(1000)))
    config, launch = (
        read_config("t2i-flux", [f"prompts={tmp_path / 'p.txt'}", "evaluation.prompts=null"]),
        Launch(8, True),
    )
    text = preflight(config, launch=launch, device_bytes=80 * 10**9, rate=1e15).text
    assert (
        f"in {tmp_path} ($BPGO_CACHE): conditions of 1000 prompts, up to 4.2 GB" in text
        and "for conditions" not in text
    )
    usage = SimpleNamespace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    report = preflight(config, launch=launch, device_bytes=80 * 10**9, rate=1e15)
    assert (
        f"the disk of {tmp_path} lacks 3.2 GB for conditions: point BPGO_CACHE at another disk"
        in report.missing
    )
    assert "$BPGO_CACHE" not in preflight(config, device_bytes=80 * 10**9, rate=1e15).text, (
        "one process keeps them in memory"
    )
