"""The cases of `gpu_bench.py`, their variants, and what is known without running them."""

from bpgo.batching import micro_batch_size, rows_per_process
from bpgo.config import read_config
from bpgo.preflight.flops import trained_steps
from bpgo.preflight.footprints import footprint_of
from bpgo.preflight.memory import memory
from reproduce.gpu_models import sizes_of

# One prompt with two samples, because seconds are proportional to the rows.
SHORT = [
    "groups=1",
    "group_size=2",
    "optimiser.updates=1",
    "prior.name=running_mean",
    "evaluation.prompts=null",
    "evaluation.held_out=null",
]
# A variant is one of these, or several with commas between them.
SETTINGS = {
    "as the preset": "",
    "no checkpointing": "generator.gradient_checkpointing=false",
    "micro-batch 1": "sampling.micro_batch=1",
    "micro-batch 2": "sampling.micro_batch=2",
    "micro-batch 4": "group_size=4 sampling.micro_batch=4",
    "tiled decoding": "generator.vae_tiling=true",
    "offload": "generator.offload=true",
    "no offload": "generator.offload=false",
    "LoRA": "generator.lora_rank=32",
    "float32": "generator.dtype=float32 precision=no",
    "compiled": "generator.compile=true",
}
WAN = (
    "as the preset",
    "no checkpointing",
    "no checkpointing, micro-batch 1",
    "micro-batch 1",
    "micro-batch 4",
    "tiled decoding",
    "offload",
    "LoRA",
    "compiled",
)
FLUX = (
    "as the preset",
    "no checkpointing",
    "no offload",
    "no offload, no checkpointing",
    "no offload, micro-batch 1",
    "no offload, micro-batch 4",
    "no offload, float32",
    "no offload, compiled",
)
TWO_EXPERTS = (
    "as the preset",
    "no checkpointing",
    "no offload",
    "micro-batch 2",
    "no offload, compiled",
)
LARGEST = [(480, 832, 81), (480, 832, 53), (480, 832, 33), (240, 416, 33), (240, 416, 17)]
# Preset, sampling steps, sizes (height, width, frames; the first that fits is taken), and
# variants.
CASES = {
    "wan2.1-1.3b-240x416x33": ("t2v-wan2.1-1.3b", 4, [(240, 416, 33)], (*WAN, "float32")),
    "wan2.1-1.3b-480x832x33": ("t2v-wan2.1-1.3b", 4, [(480, 832, 33)], WAN),
    "flux-512-lora": ("t2i-flux-lowmem", 4, [(512, 512)], FLUX),
    "wan2.2-a14b-lora-240x416x17": ("i2v-wan2.2-a14b-lowmem", 4, [(240, 416, 17)], TWO_EXPERTS),
    "wan2.2-a14b-lora-largest": ("i2v-wan2.2-a14b-lowmem", 2, LARGEST, ("as the preset",)),
}
# The shipped pipelines of the same classes.
TINY = {
    "black-forest-labs/FLUX.1-dev": "tiny-flux",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "tiny-wan",
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": "tiny-wan-image",
}


def variants(cases=None):
    """(case, variant) of these cases, by default all."""
    return [(case, variant) for case in cases or CASES for variant in CASES[case][-1]]


def planned(case, variant, tiny):
    """(config, what is known without running it) for each size of a variant, the largest first."""
    preset, steps, sizes, _ = CASES[case]
    for size in sizes:
        if tiny:
            size, steps = (16, 16, 5)[: len(size)], 2
        overrides = _overrides(preset, variant, size, steps, tiny)
        config = read_config(preset, overrides)
        rows = rows_per_process(config)
        needs = memory(config, footprint(config), rewards=0, prompts=1)
        phases = ("sample", "decode", "update")
        yield (
            config,
            {
                "case": case,
                "variant": variant,
                "preset": preset,
                "overrides": overrides,
                "rows": rows,
                "setting": f"{'x'.join(map(str, size))}, {steps} steps ({trained_steps(config)} "
                f"trained), {rows} rows by {micro_batch_size(config)}",
                "foreseen_bytes": {
                    phase: needs.permanent.total + getattr(needs.phases, phase) for phase in phases
                },
            },
        )


def _overrides(preset, variant, size, steps, tiny):
    given = [*SHORT, f"sampling.steps={steps}"]
    for name, number in zip(("height", "width", "frames"), size, strict=False):
        given.append(f"generator.{name}={number}")
    for name in variant.split(", "):
        given += SETTINGS[name].split()
    if tiny:
        given.append(f"generator.path={TINY[read_config(preset).generator.path]}")
        given.append("generator.max_sequence_length=8")
    return given


def footprint(config):
    """What a sample of this config costs."""
    return footprint_of(config, sizes_of(config.generator.path))
