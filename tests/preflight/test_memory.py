"""The memory and the operations of a run, against what torch allocates and counts."""

import dataclasses
import random
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bpgo.batching import micro_batch_size, rows_per_process
from bpgo.config import build_config, read_config
from bpgo.generators.flux import FluxPolicy
from bpgo.preflight.activations import (
    decoding_activations,
    sampling_activations,
    update_activations,
)
from bpgo.preflight.flops import flops, flops_outside_iterations, trained_steps
from bpgo.preflight.footprints import FOOTPRINTS, footprint_of
from bpgo.preflight.footprints.flux import FluxFootprint
from bpgo.preflight.launch import Launch
from bpgo.preflight.memory import lora_parameters, memory
from bpgo.preflight.published import PIPELINES
from bpgo.preflight.sizes import pipeline_of
from bpgo.prompt_files import read_prompts
from bpgo.rollout import Batch, draw_steps, sample_groups
from bpgo.setup import load_policy
from bpgo.trainer import Trainer


class Live(TorchDispatchMode):
    """Counts the bytes that are alive of storages made within it, and their peak.

    The count is exact, and does not depend on the allocator.
    """

    def __init__(self, known):
        super().__init__()
        self.seen = {t.untyped_storage()._cdata for t in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self._count(t.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.now -= size
        self.seen.discard(key)


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


class SetUp:
    """A case as a run has it: its policy with what is trained, conditions and noise."""

    def __init__(self, case):
        preset, overrides, self.samples = CASES[case]
        sizes = [f"sampling.micro_batch={self.samples}", f"groups={self.samples}"]
        self.config = read_config(preset, [*overrides, *sizes, "optimiser.updates=1"])
        self.footprint = footprint_of(self.config, pipeline_of(self.config.generator.path))
        one_process = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
        self.policy = load_policy(self.config, one_process)
        self.trained = [
            p
            for module in self.policy.modules.values()
            for p in module.parameters()
            if p.requires_grad
        ]

    def conditions(self):
        prompts = read_prompts(self.config.prompts)[:1] * self.samples
        with torch.no_grad():
            return {name: value.clone() for name, value in self.policy.encode(prompts).items()}

    def noise(self):
        return torch.randn(self.samples, *self.policy.latent_shape())

    def autocast(self):
        if self.config.precision == "bf16":
            return torch.autocast("cpu", torch.bfloat16)
        return nullcontext()


def tensors_of(policy):
    """All weights and buffers of a pipeline, with the gradients that there are."""
    components = policy.pipeline.components.values()
    parts = [part for part in components if isinstance(part, torch.nn.Module)]
    held = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    return held + [p.grad for p in held if p.grad is not None]


# -------------------------------------------------------------------------------- activations


@pytest.mark.parametrize("case", CASES)
def test_the_activations_of_an_update_are_predicted(case):
    run = SetUp(case)
    cond, x = run.conditions(), run.noise()

    def update():
        with run.autocast():
            v = run.policy.velocity(x, 0.5, cond)
        v.square().mean().backward()

    update()  # from the second trained step on there are gradients
    with Live([*tensors_of(run.policy), x, *cond.values()]) as live:
        update()
    predicted = update_activations(run.config, run.footprint, run.samples)
    assert predicted == pytest.approx(live.peak, rel=0.15)


@pytest.mark.parametrize(
    "case", ["flux", "flux, bfloat16", "wan", "wan, LoRA, guidance", "wan, LoRA, bfloat16"]
)
def test_the_activations_of_sampling_are_predicted(case):
    run = SetUp(case)
    cond, x = run.conditions(), run.noise()
    with Live([*tensors_of(run.policy), x, *cond.values()]) as live:
        with torch.no_grad(), run.autocast():
            noise = torch.randn(run.config.sampling.steps, *x.shape)
            run.policy.velocity(x, 0.5, cond)
    predicted = sampling_activations(run.config, run.footprint, run.samples)
    assert predicted == pytest.approx(live.peak, rel=0.15)
    del noise  # which was alive at the peak


@pytest.mark.parametrize("case", ["flux", "wan"])
def test_the_activations_of_decoding_are_predicted(case):
    run = SetUp(case)
    x = run.noise()
    with Live([*tensors_of(run.policy), x]) as live:
        run.policy.decode(x)
    predicted = decoding_activations(run.config, run.footprint, run.samples)
    assert predicted == pytest.approx(live.peak, rel=0.15)


# ------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize(
    "case",
    ["flux", "wan", "wan, LoRA", "flux, LoRA", "flux, LoRA, bfloat16", "wan, LoRA, bfloat16"],
)
def test_weights_and_optimiser_are_exact(case):
    run = SetUp(case)
    optimiser = torch.optim.AdamW(run.trained, fused=True)
    sum(p.sum() for p in run.trained).backward()
    optimiser.step()
    needs = memory(run.config, run.footprint, rewards=0, prompts=1)
    kept, size = needs.permanent, sum(p.nbytes for p in run.trained)
    states = optimiser.state.values()
    moments = sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq"))
    assert kept.trained_weights == kept.gradients == kept.averaged_weights == size
    assert kept.moments == moments
    transformer, pipeline = run.policy.modules["transformer"], run.policy.pipeline
    frozen = [p for p in transformer.parameters() if not p.requires_grad]
    assert kept.frozen_transformers == sum(p.nbytes for p in frozen)
    if run.config.generator.lora_rank:
        parameters = sum(p.numel() for p in run.trained)
        assert lora_parameters(run.config, run.footprint) == parameters
    encoders = [getattr(pipeline, name) for name in run.policy.encoders]
    assert kept.text_encoders == sum(p.nbytes for e in encoders for p in e.parameters())
    assert kept.autoencoder == sum(p.nbytes for p in pipeline.vae.parameters())
    assert needs.host.total == 0


def test_rollout_and_conditions_are_exact():
    run = SetUp("wan, LoRA, guidance")
    cond = run.conditions()
    count, group_size = len(cond["text"]), run.config.group_size
    steps = draw_steps(run.config.sampling, random.Random(0))
    seeds = list(range(count * group_size))
    batch = Batch(["a prompt"] * count, cond, group_size, steps, seeds)
    parts = list(sample_groups(run.policy, batch, micro_batch_size(run.config)))
    kept = memory(run.config, run.footprint, rewards=0, prompts=count).permanent
    assert kept.rollout == sum(
        t.nbytes for part in parts for t in (part.latents, part.x, part.x_next)
    )
    assert kept.conditions == sum(value.nbytes for value in cond.values())


def test_the_peak_of_an_iteration_grows_with_the_group_by_the_rollout_only(tmp_path):
    """With equal micro-batches, and with the reward."""
    peaks, kept = [], []
    for group_size in (4, 8):
        overrides = [f"group_size={group_size}", "groups=2", "sampling.micro_batch=4"]
        overrides += ["sampling.steps=4", "optimiser.updates=1", "prior.name=running_mean"]
        overrides += ["evaluation.held_out=[]", "evaluation.metrics=[]"]
        config = read_config("t2i-tiny", overrides)
        trainer = Trainer(config, tmp_path / str(group_size), progress=False)
        trainer.step()  # then the optimiser has its moments
        conditions = [t for row in trainer.conditions.rows.values() for t in row.values()]
        state = [t for each in trainer.optimiser.state.values() for t in each.values()]
        with Live([*tensors_of(trainer.policy), *conditions, *state]) as live:
            trainer.step()
        peaks.append(live.peak)
        footprint = footprint_of(config, pipeline_of("tiny-flux"))
        kept.append(memory(config, footprint, rewards=0, prompts=1).permanent.rollout)
    assert peaks[1] - peaks[0] == pytest.approx(kept[1] - kept[0], rel=0.1)


# ------------------------------------------------------------------- offloading and processes


def test_with_offloading_only_what_is_trained_or_at_work_is_on_the_device():
    overrides = ["generator.path=tiny-wan-image", "prompts=prompts/image-clip-train.jsonl"]
    config = read_config("t2v-tiny", [*overrides, "generator.offload=true"])
    without = dataclasses.replace(
        config, generator=dataclasses.replace(config.generator, offload=False)
    )
    pipeline = pipeline_of("tiny-wan-image")
    parked = memory(config, footprint_of(config, pipeline), rewards=0, prompts=100)
    held = memory(without, footprint_of(without, pipeline), rewards=0, prompts=100)
    expert = 4 * pipeline.parts["transformer"].parameters
    encoder = 4 * pipeline.parts["text_encoder"].parameters
    autoencoder = 4 * pipeline.parts["vae"].parameters
    assert parked.phases.update - held.phases.update == expert, "one of the two experts"
    assert parked.phases.encode == encoder
    assert parked.host.parked_weights == 2 * expert + encoder + autoencoder
    assert (parked.host.rollout, held.host.total) == (held.permanent.rollout, 0)
    on_device = {label for label, _ in parked.permanent.listed()}
    only_held = {label for label, _ in held.permanent.listed()} - on_device
    assert only_held == {"rollout", "text encoders", "autoencoder", "frozen transformers"}
    assert parked.permanent.trained_weights == held.permanent.trained_weights > 0


@pytest.fixture
def flux():
    config = read_config("t2i-flux")
    return config, footprint_of(config, PIPELINES["black-forest-labs/FLUX.1-dev"].sizes)


def test_several_processes_encode_first_and_then_free_the_encoders(flux):
    config, footprint = flux
    one = memory(config, footprint, 0, prompts=1000)
    several = memory(config, footprint, 0, prompts=1000, launch=Launch(8))
    parts = footprint.pipeline.parts
    encoders = parts["text_encoder"].parameters + parts["text_encoder_2"].parameters
    assert one.permanent.text_encoders == several.phases.encode == 2 * encoders
    assert one.phases.encode == several.permanent.text_encoders == 0
    assert several.permanent.conditions * 1000 == one.permanent.conditions * config.groups


def test_shards_are_divided_and_copies_are_not(flux):
    one, copies, shards = (
        memory(*flux, 0, prompts=1, launch=launch).permanent
        for launch in (Launch(1), Launch(8), Launch(8, sharded=True))
    )
    for name in ("trained_weights", "gradients", "moments"):
        assert getattr(one, name) == getattr(copies, name) == 8 * getattr(shards, name)
    assert copies.ddp_buckets == copies.gradients
    assert one.ddp_buckets == shards.ddp_buckets == 0
    assert one.gathered_blocks == copies.gathered_blocks == 0 < shards.gathered_blocks


def test_what_is_to_be_sharded_waits_on_the_cpu(monkeypatch):
    """The transformers move to the device block by block, encoders and autoencoder at once.

    The device "meta" stands for a GPU.
    """
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
    footprint = footprint_of(config, pipeline_of("tiny-wan-image"))
    host = memory(config, footprint, 0, prompts=1, launch=Launch(2, sharded=True)).host
    waiting = sum(p.nbytes for module in policy.modules.values() for p in module.parameters())
    assert host.loading == host.total == waiting


def test_shards_move_to_their_device_block_by_block(monkeypatch):
    """fully_shard moves what it is given. At that time earlier blocks have moved, and no others."""
    from bpgo.distributed import distribute

    seen = []

    def fully_shard(module, mesh, reshard_after_forward=True):
        seen.append(sum(p.device.type == "cpu" for p in module.parameters()))
        module.to_empty(device="meta")

    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", fully_shard)
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *given: None)
    monkeypatch.setattr("bpgo.distributed.sharded", lambda accelerator: True)
    run = SetUp("wan")
    (module,) = run.policy.modules.values()
    all_weights, of_block = len(list(module.parameters())), len(list(module.blocks[0].parameters()))
    accelerator = SimpleNamespace(device=torch.device("meta"), num_processes=2)
    distribute(accelerator, run.policy.modules, "no", keep_device=False)
    blocks = len(module.blocks)
    assert seen == [of_block] * blocks + [all_weights - of_block * blocks]


# --------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("case", ["flux", "wan", "wan, LoRA, guidance"])
def test_operations_are_those_that_torch_counts(case):
    run = SetUp(case)
    cond, x = run.conditions(), run.noise()
    for module in run.policy.modules.values():
        module.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run.policy.velocity(x, 0.5, cond)
    per_trained_step = 2 if run.config.generator.lora_rank else 3
    passes = run.config.sampling.steps + trained_steps(run.config) * per_trained_step
    samples = rows_per_process(run.config) * passes
    per_sample = flops(run.config, run.footprint) / samples
    assert per_sample * run.samples == pytest.approx(counter.get_total_flops(), rel=0.15)


def mean_value(pixels, prompts):
    return pixels.mean((1, 2, 3))


@pytest.mark.parametrize(("every", "evaluations"), [(None, 2), (2, 4), (3, 3), (5, 2), (9, 2)])
def test_evaluations_and_prior_take_as_many_passes_as_are_planned(
    every, evaluations, tmp_path, monkeypatch
):
    """Of five iterations, all passes of the transformer are counted, one for each sample."""
    config = build_config(
        {
            "generator": {"path": "tiny-flux", "height": 16, "width": 16},
            "reward": {"name": "clip"},
            "prompts": "given below",
            "groups": 2,
            "group_size": 2,
            "iterations": 5,
            "sampling": {"steps": 2, "shift": 1.0, "noise_level": 0.7},
            "evaluation": {"samples": 3, "steps": 4, "every": every},
            "prior": {"name": "sft", "samples": 2},
        }
    )
    prompts = ["a red circle", "a blue square", "a green triangle"]
    passes, velocity = [], FluxPolicy.velocity

    def counted(self, x, *given):
        passes.append(len(x))
        return velocity(self, x, *given)

    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FluxPolicy, "velocity", counted)
    given = dict(reward=mean_value, prompts=prompts, progress=False)
    Trainer(config, tmp_path / "run", **given).train()
    in_iterations = 5 * rows_per_process(config) * (2 + trained_steps(config))
    expected = (3 * 2 + evaluations * 3 * 3) * 4
    assert sum(passes) - in_iterations == expected
    footprint = footprint_of(config, pipeline_of("tiny-flux"))
    per_iteration = rows_per_process(config) * (2 + 3 * trained_steps(config))
    one_pass = flops(config, footprint) / per_iteration
    outside = flops_outside_iterations(config, footprint, training=3, evaluation=3)
    assert outside == pytest.approx(expected * one_pass)


# ---------------------------------------------------------------------------------- footprints


def test_the_tokens_of_the_published_pipelines():
    """Against their reference cards: 2025 tokens for 720 x 720, 32760 for 480 x 832 x 81."""
    config = read_config("t2i-flux")
    flux = footprint_of(config, PIPELINES[config.generator.path].sizes)
    assert (flux.sample.tokens, flux.sample.text_tokens, flux.width) == (2025, 512, 3072)
    assert flux.sample.latent == 16 * 90 * 90
    config = read_config("t2v-wan2.1-1.3b")
    sizes = PIPELINES[config.generator.path].sizes
    wan = footprint_of(config, sizes).sample
    assert (wan.tokens, wan.text_tokens, wan.rows) == (14 * 30 * 30, 226, 2)
    assert wan.latent == 16 * 14 * 60 * 60
    overrides = ["generator.height=null", "generator.width=null", "generator.frames=null"]
    default = footprint_of(read_config("t2v-wan2.1-1.3b", overrides), sizes).sample
    assert (default.height, default.width, default.frames) == (480, 832, 81)
    assert default.tokens == 32_760


def test_a_family_is_added_by_its_footprint_alone(monkeypatch):
    class Twice(FluxFootprint):
        @property
        def operations(self):
            return 2 * super().operations

    config, flux = read_config("t2i-tiny"), pipeline_of("tiny-flux")
    other = flux._replace(class_name="OtherPipeline")
    assert footprint_of(config, other) is None
    monkeypatch.setitem(FOOTPRINTS, "OtherPipeline", Twice)
    known, added = footprint_of(config, flux), footprint_of(config, other)
    assert flops(config, added) == 2 * flops(config, known)
    assert memory(config, added, 0, 1) == memory(config, known, 0, 1)
