"""Measure one BPGO iteration of the published architectures, with random weights, on this machine's GPU.

    python reproduce/gpu_bench.py [CASE ...] [--tiny] [--output FOLDER]

Each variant of a case is a preset with other settings, run by `bpgo.trainer.Trainer` as a training run is: one iteration to warm up, and
one that is measured. Two things differ: the weights are random, made on the device, and so are the conditions, in place of the text
encoders, which a run is done with before its first iteration. After each variant FOLDER/gpu_bench.json and FOLDER/README.md are written;
what is in there of this card is not measured again. --tiny: tiny models, on any machine, to try the script; the numbers mean nothing.

Exit code 0: all is there, or there is no GPU; 1: variants that failed, other than by memory, are listed; 2: there is no such case.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import traceback
from difflib import get_close_matches
from functools import cache, partial
from inspect import signature
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState

from bpgo import setup as start
from bpgo.batching import micro_batch_size, rows_per_process
from bpgo.config import read_config
from bpgo.files import read_log, write_atomic
from bpgo.preflight.flops import flops, trained_steps
from bpgo.preflight.footprints import footprint_of
from bpgo.preflight.machine import matmul_rate
from bpgo.preflight.memory import memory
from bpgo.preflight.published import FLOAT32_LAYERS
from bpgo.preflight.sizes import pipeline_of
from bpgo.records import code_version
from bpgo.rewards import RewardError
from bpgo.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
rate = cache(matmul_rate)
PHASES = ("sample", "decode", "score", "update")
# one prompt, two samples: seconds are linear in the rows
SHORT = "groups=1 group_size=2 optimiser.updates=1 prior.name=running_mean evaluation.prompts=null evaluation.held_out=null"
SETTINGS = {  # a variant is one of these, or several with commas between them
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
CASES = {  # preset, sampling steps, (height, width, frames) of which the first that fits the memory is taken, variants
    "wan2.1-1.3b-240x416x33": ("t2v-wan2.1-1.3b", 4, [(240, 416, 33)], (*WAN, "float32")),
    "wan2.1-1.3b-480x832x33": ("t2v-wan2.1-1.3b", 4, [(480, 832, 33)], WAN),
    "flux-512-lora": (
        "t2i-flux-lowmem",
        4,
        [(512, 512)],
        (
            "as the preset",
            "no checkpointing",
            "no offload",
            "no offload, no checkpointing",
            "no offload, micro-batch 1",
            "no offload, micro-batch 4",
            "no offload, float32",
            "no offload, compiled",
        ),
    ),
    "wan2.2-a14b-lora-240x416x17": (
        "i2v-wan2.2-a14b-lowmem",
        4,
        [(240, 416, 17)],
        (
            "as the preset",
            "no checkpointing",
            "no offload",
            "micro-batch 2",
            "no offload, compiled",
        ),
    ),
    "wan2.2-a14b-lora-largest": (
        "i2v-wan2.2-a14b-lowmem",
        2,
        [(480, 832, 81), (480, 832, 53), (480, 832, 33), (240, 416, 33), (240, 416, 17)],
        ("as the preset",),
    ),
}
TINY = {  # the shipped pipelines of the same classes
    "black-forest-labs/FLUX.1-dev": "tiny-flux",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "tiny-wan",
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": "tiny-wan-image",
}
FLUX = (
    dict(guidance_embeds=True, pooled_projection_dim=768),
    dict(  # what the published config.json say beside what memory goes by
        layers_per_block=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    ),
)


def pipeline(path):
    """What pipeline_of knows, without text encoders; `transformer` and `vae` are all that their classes are to be given."""
    p = pipeline_of(path)
    transformer, vae = FLUX if p.class_name == "FluxPipeline" else ({}, {})
    parts = {name: part for name, part in p.parts.items() if not name.startswith("text_encoder")}
    return p._replace(parts=parts, transformer=transformer | p.transformer, vae=vae | p.vae)


def random_part(name, p, dtype, device):
    """Transformer or autoencoder with the weights that its class starts from, in the precisions that `from_pretrained` leaves."""
    import diffusers

    flux, vae, before = p.class_name == "FluxPipeline", name == "vae", torch.get_default_dtype()
    kind = (
        ("AutoencoderKL" if vae else "FluxTransformer2DModel")
        if flux
        else "AutoencoderKLWan"
        if vae
        else "WanTransformer3DModel"
    )
    torch.set_default_dtype(torch.float32 if kind == "AutoencoderKLWan" else dtype)
    try:
        with torch.device(device):
            module = getattr(diffusers, kind).from_config(p.vae if vae else p.transformer)
    finally:
        torch.set_default_dtype(before)
    float32_layers = FLOAT32_LAYERS.get(kind, frozenset())
    for place, weights in module.named_parameters():
        if float32_layers.intersection(place.split(".")):
            weights.data = weights.data.float()
    return module


def random_generator(p, probe, path, policy, dtype, device, **options):
    """Stands in for `load_generator`: the policy of pipeline p with random weights, watched by the probe. path, policy: not read."""
    import diffusers

    from bpgo.generators.flux import FluxPolicy
    from bpgo.generators.wan import WanPolicy

    kind, dtype, where = (
        getattr(diffusers, p.class_name),
        getattr(torch, dtype),
        "cuda" if torch.cuda.is_available() else "cpu",
    )
    parts = {name: random_part(name, p, dtype, where).to(device) for name in p.parts}
    unused = [
        name
        for name in signature(kind.__init__).parameters
        if name.startswith(("text_encoder", "tokenizer"))
    ]
    parts |= {name: torch.nn.Identity() if "encoder" in name else None for name in unused}
    parts |= {"boundary_ratio": 0.9} if "transformer_2" in p.parts else {}  # Wan2.2-I2V-A14B's
    pipeline = kind(**parts, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    policy = (FluxPolicy if p.class_name == "FluxPipeline" else WanPolicy)(
        pipeline, **{"max_sequence_length": p.text_tokens, **options}
    )
    policy.encoders, policy.check = (), lambda prompts, images=None: None
    policy.encode = partial(random_conditions, policy, p.transformer, dtype)
    policy.velocity, policy.decode = (
        probe.around("sample", policy.velocity),
        probe.around("decode", policy.decode),
    )
    return policy


def random_conditions(policy, t, dtype, prompts):
    """What `encode` returns, of the same names, shapes and precision: see FluxPolicy and WanPolicy. t: the transformer's settings."""
    count, length, draw = (
        len(prompts),
        policy.max_sequence_length,
        partial(torch.randn, device=policy.device),
    )
    if "joint_attention_dim" in t:
        shapes = {
            "text": (count, length, t["joint_attention_dim"]),
            "pooled": (count, t["pooled_projection_dim"]),
        }
    else:
        shapes = dict.fromkeys(
            ("text", "negative")[: 1 + (policy.guidance > 1)], (count, length, t["text_dim"])
        )
    cond = {name: draw(shape, dtype=dtype) for name, shape in shapes.items()}
    channels, *places = policy.latent_shape()
    return cond | (
        {"image": draw(count, t["in_channels"] - channels, *places)}
        if getattr(policy, "takes_images", False)
        else {}
    )


class Probe:
    """Peak bytes of each phase on a GPU; nothing elsewhere.

    After each call without gradients it waits for the GPU: the trainer's clock does not, and would count to a phase what others have
    left to be done. (For the ends of scoring and of an update the trainer itself waits.)
    """

    def __init__(self):
        self.phase, self.peaks = "sample", {}

    def enter(self, phase):
        """What is allocated from now on is this phase's."""
        if torch.cuda.is_available():
            self.peaks[self.phase] = max(
                self.peaks.get(self.phase, 0), torch.cuda.max_memory_allocated()
            )
            torch.cuda.reset_peak_memory_stats()
        self.phase = phase

    def around(self, phase, call):
        """The call, counted to this phase; with gradients, to the update."""

        def watched(*given):
            self.enter("update" if torch.is_grad_enabled() else phase)
            found = call(*given)
            if torch.cuda.is_available() and not torch.is_grad_enabled():
                torch.cuda.synchronize()
            return found

        return watched


def measure(config, p):
    """Seconds of the second iteration by phase, its peak bytes, operations and their rate. Raises MemoryError where it does not fit."""
    probe = Probe()
    reward = probe.around("score", lambda pixels, prompts: pixels.flatten(1).mean(1))
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, BPGO_CACHE=folder):
        with patch.object(start, "load_generator", partial(random_generator, p, probe)):
            trainer = Trainer(config, folder, reward=reward, prompts=["a prompt"], progress=False)
        trainer.save_checkpoint = lambda: (
            None
        )  # what it does first when memory runs out: gigabytes of random weights
        trainer.step()
        probe.enter("sample")
        probe.peaks.clear()
        metrics = trainer.step()
        probe.enter("sample")
        first, second = read_log(trainer.output / "timing.jsonl")
    work = flops(config, footprint_of(config, p))
    return {
        "seconds": {phase: second[phase] for phase in PHASES},
        "iteration": second["seconds"],
        "first_iteration": first["seconds"],
        "peak_bytes": probe.peaks,
        "flops": work,
        "flops_per_second": work / (second["sample"] + second["update"]),
        "first_log_ratio": metrics["first_log_ratio"],
        "matmul_rate": rate(config.precision == "bf16" or config.generator.dtype == "bfloat16"),
    }


def planned(case, variant, tiny):
    """(config, pipeline, what is known without running it) for each size that a variant may have, the largest first."""
    preset, made, sizes, _ = CASES[case]
    for size in sizes:
        size, made = ((16, 16, 5)[: len(size)], 2) if tiny else (size, made)
        given = [
            f"generator.{name}={n}"
            for name, n in zip(("height", "width", "frames"), size, strict=False)
        ]
        given += f"{SHORT} sampling.steps={made} {' '.join(SETTINGS[name] for name in variant.split(', '))}".split()
        if tiny:
            given += [
                f"generator.path={TINY[read_config(preset).generator.path]}",
                "generator.max_sequence_length=8",
            ]
        config = read_config(preset, given)
        p = pipeline(config.generator.path)
        whole, batch = rows_per_process(config), micro_batch_size(config)
        needs = memory(config, footprint_of(config, p), rewards=0, prompts=1)
        known = {
            "case": case,
            "variant": variant,
            "preset": preset,
            "overrides": given,
            "rows": whole,
        }
        known["setting"] = (
            f"{'x'.join(map(str, size))}, {made} steps ({trained_steps(config)} trained), {whole} rows by {batch}"
        )
        known["foreseen_bytes"] = {
            phase: needs.permanent.total + getattr(needs.phases, phase)
            for phase in ("sample", "decode", "update")
        }
        yield config, p, known


def run(case, variant, tiny):
    """The results of a variant: of the first size that fits, or without measurements if none does."""
    too_large = []
    for config, p, known in planned(case, variant, tiny):
        if torch.cuda.is_available():  # what the last one held
            gc.collect()
            torch.cuda.empty_cache()
            torch._C._host_emptyCache()  # pinned weights; in torch 2.11 this has no public name
        known |= {
            "card": card(tiny),
            "torch": torch.__version__,
            "code": code_version(),
            "too_large": too_large,
        }
        try:
            return known | measure(config, p)
        except MemoryError as error:
            too_large.append(f"{known['setting']}: {error}")
        finally:
            torch.compiler.reset()
            AcceleratorState._reset_state(
                reset_partial_state=True
            )  # accelerate has one precision a process
    return known


def card(tiny):
    """What results are kept under: those of one card are not another's."""
    return (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    ) + ", tiny models" * tiny


COLUMNS = (
    "case",
    "variant",
    "setting",
    "sample s",
    "decode s",
    "score s",
    "update s",
    "iteration s",
    "s a row",
    "peak GB",
    "foreseen GB",
    "within 15 %",
    "TFLOP/s",
    "of matmul",
)


def cells(known, measured):
    """A row of the table. measured: whether this card's results are `known`; else only what is foreseen is."""
    foreseen, peak = (
        max(known["foreseen_bytes"].values()),
        max(known.get("peak_bytes", {}).values(), default=None),
    )
    memories = [f"{peak / 1e9:.3g}" if peak else "-", f"{foreseen / 1e9:.3g}"]
    memories.append(
        f"{'yes' if abs(foreseen / peak - 1) <= 0.15 else 'no'} ({foreseen / peak - 1:+.0%})"
        if peak
        else "-"
    )
    front = [known["case"], known["variant"], known["setting"]]
    if "seconds" not in known:
        return [
            *front,
            *"----",
            "out of memory" if measured else "not measured",
            "-",
            *memories,
            "-",
            "-",
        ]
    times = [*known["seconds"].values(), known["iteration"], known["iteration"] / known["rows"]]
    speed, limit = known["flops_per_second"], known["matmul_rate"]
    return [
        *front,
        *(f"{s:.3g}" for s in times),
        *memories,
        f"{speed / 1e12:.3g}",
        f"{speed / limit:.0%} of {limit / 1e12:.3g}",
    ]


def report(results, tiny):
    """README.md: how to make the results, and a table of every variant for each card; of none, if there are no results."""
    lines = [HEAD]
    for name in dict.fromkeys(r["card"] for r in results) or [None]:
        found = {(r["case"], r["variant"]): r for r in results if r["card"] == name}
        lines.append(f"## {name}" if name else "## Not measured: the script has met no GPU yet")
        every = [(case, variant) for case in CASES for variant in CASES[case][-1]]
        made = [
            cells(found.get(key) or next(planned(*key, tiny))[-1], key in found) for key in every
        ]
        lines.append(
            "\n".join(
                "| " + " | ".join(row) + " |" for row in (COLUMNS, ["---"] * len(COLUMNS), *made)
            )
        )
    return "\n\n".join(lines) + "\n"


HEAD = """\
# One BPGO iteration of the published architectures on one GPU

```sh
python reproduce/gpu_bench.py                  # all cases; it goes on where it was stopped
python reproduce/gpu_bench.py flux-512-lora    # one of them
python reproduce/gpu_bench.py --tiny           # tiny models, into runs/gpu-tiny: whether it works there
```

For one GPU of 80 GB and 128 GB of RAM; nothing is downloaded, the weights are random. In a lab's own environment, with what
`pyproject.toml` asks for: `PYTHONPATH=. python reproduce/gpu_bench.py`. The script makes this page, and `gpu_bench.json` with more.

A preset with one prompt, few steps and few rows, as *setting* counts them; its second iteration. GB are 10^9 bytes. *Peak*: the most
that torch had allocated. *Foreseen*: by `bpgo.preflight.memory`, without text encoders and rewards, as here. *TFLOP/s*: operations by
`bpgo.preflight.flops` over the seconds of sampling and update; *of matmul*: of a square matrix product's in the same precision.
*largest*: the first size that fits of several; where it is not measured, the first to be tried."""


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; by default all"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models, on any machine")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="by default reproduce/results/gpu, or runs/gpu-tiny with --tiny",
    )
    options = parser.parse_args(words)
    for name in options.cases:
        if name not in CASES:
            near = get_close_matches(name, CASES, 1)
            parser.error(
                f"there is no case {name!r}"
                + (f", did you mean {near[0]!r}?" if near else f": there are {', '.join(CASES)}")
            )
    tiny, output = (
        options.tiny,
        options.output or ROOT / ("runs/gpu-tiny" if options.tiny else "reproduce/results/gpu"),
    )
    output.mkdir(parents=True, exist_ok=True)
    place, failed = output / "gpu_bench.json", []
    results = json.loads(place.read_text()) if place.exists() else []
    there = {(r["case"], r["variant"]) for r in results if r["card"] == card(tiny)}
    wanted = [
        (case, variant)
        for case in options.cases or CASES
        for variant in CASES[case][-1]
        if (case, variant) not in there
    ]
    for case, variant in wanted if tiny or torch.cuda.is_available() else ():
        print(f"{case}: {variant}", flush=True)
        try:
            results.append(run(case, variant, tiny))
            write_atomic(place, json.dumps(results, indent=1) + "\n")
        except (
            RuntimeError,
            ArithmeticError,
            RewardError,
        ):  # of a kernel, a compiler, a gradient: the other variants may do
            traceback.print_exc()
            failed.append(f"{case}: {variant}")
    text = report(results, tiny)
    write_atomic(output / "README.md", text)
    print(text.partition("\n## ")[2])
    for line in failed:
        print(f"failed: {line}")
    if not tiny and not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was measured.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
