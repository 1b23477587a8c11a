"""Measure one BPGO iteration of the published architectures on this machine's GPU.

    python reproduce/gpu_bench.py [CASE ...] [--tiny] [--output FOLDER]

Each variant of a case is a preset with other settings. `bpgo.Trainer` runs it as in a training run:
one iteration to warm up and one that is measured. Only weights and conditions are random (see
`gpu_models`). FOLDER/gpu_bench.json is written after each variant, and results of the same GPU that
are already in it are not measured again. FOLDER/README.md is written at the end. With --tiny, tiny
models run on any machine, to try the script; their numbers mean nothing.

Exit code 0: all variants are measured, or there is no GPU. 1: variants failed for
reasons other than memory, and are listed. 2: there is no such case.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import traceback
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState

from bpgo.files import read_log, write_atomic
from bpgo.preflight.flops import flops
from bpgo.preflight.machine import matmul_rate
from bpgo.records import code_version
from bpgo.rewards import RewardError
from bpgo.trainer import Trainer
from reproduce import gpu_cases
from reproduce.common import nearest, path_argument
from reproduce.gpu_cases import footprint, planned, variants
from reproduce.gpu_models import POLICY
from reproduce.gpu_report import report

ROOT = Path(__file__).resolve().parent.parent
rate, version = cache(matmul_rate), cache(code_version)
PHASES = ("sample", "decode", "score", "update")


# ---------------------------------------------------------------------------------------- measuring


class Probe:
    """Peak bytes of each phase on a GPU; nothing elsewhere.

    It waits for the GPU after each call without gradients. The trainer's clock does not, and would
    count towards a phase what others have left in the queue. (At the end of scoring and of an
    update the trainer itself waits.)
    """

    def __init__(self):
        self.phase, self.peaks = "sample", {}

    def enter(self, phase):
        """From now on, what is allocated counts for this phase."""
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), peak)
            torch.cuda.reset_peak_memory_stats()
        self.phase = phase

    def around(self, phase, call):
        """The call, counted for this phase, or for the update if it has gradients."""

        def watched(*given):
            self.enter("update" if torch.is_grad_enabled() else phase)
            found = call(*given)
            if torch.cuda.is_available() and not torch.is_grad_enabled():
                torch.cuda.synchronize()
            return found

        return watched


def measure(config):
    """Seconds of the second iteration by phase, its peak bytes, operations and their rate.

    Raises MemoryError if it does not fit.
    """
    probe = Probe()
    reward = probe.around("score", lambda pixels, prompts: pixels.flatten(1).mean(1))
    random_weights = replace(config, generator=replace(config.generator, policy=POLICY))
    given = {"reward": reward, "prompts": ["a prompt"], "progress": False}
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, BPGO_CACHE=folder):
        trainer = Trainer(random_weights, folder, **given)
        trainer.policy.velocity = probe.around("sample", trainer.policy.velocity)
        trainer.policy.decode = probe.around("decode", trainer.policy.decode)
        # When memory runs out, the trainer would first save gigabytes of random weights.
        trainer.save_checkpoint = lambda: None
        trainer.step()
        probe.enter("sample")
        probe.peaks.clear()
        metrics = trainer.step()
        probe.enter("sample")
        first, second = read_log(trainer.output / "timing.jsonl")
    work = flops(config, footprint(config))
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


def run(case, variant, tiny):
    """The results of a variant: those of the first size that fits, or none if no size does."""
    too_large = []
    for config, known in planned(case, variant, tiny):
        if torch.cuda.is_available():  # free what the last variant held
            gc.collect()
            torch.cuda.empty_cache()
            torch._C._host_emptyCache()  # pinned weights; torch 2.11 has no public name for this
        known |= {"card": card(tiny), "torch": torch.__version__}
        known |= {"code": version(), "too_large": too_large}
        try:
            return known | measure(config)
        except MemoryError as error:
            too_large.append(f"{known['setting']}: {error}")
        finally:
            torch.compiler.reset()
            # accelerate has one precision per process
            AcceleratorState._reset_state(reset_partial_state=True)
    return known


def card(tiny):
    """The name of the GPU, under which its results are kept."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{name}, tiny models" if tiny else name


# ------------------------------------------------------------------------------------- command line


def write_report(output, results, tiny):
    """Write README.md with a row for every variant. Returns its text."""
    cards = {}
    for name in dict.fromkeys(result["card"] for result in results) or [None]:
        measured = {(r["case"], r["variant"]): r for r in results if r["card"] == name}
        rows = []
        for key in variants():
            known = measured.get(key) or next(planned(*key, tiny))[1]
            rows.append((known, key in measured))
        cards[name] = rows
    text = report(cards)
    write_atomic(output / "README.md", text)
    return text


def main(arguments=None):
    """Measure what is missing. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"of {', '.join(gpu_cases.CASES)}; default: all"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models, on any machine")
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="FOLDER",
        help="default: reproduce/results/gpu, or runs/gpu-tiny with --tiny",
    )
    options = parser.parse_args(arguments)
    for name in options.cases:
        if name not in gpu_cases.CASES:
            parser.error(f"there is no case {name!r}{nearest(name, gpu_cases.CASES)}")
    tiny = options.tiny
    default = ROOT / ("runs/gpu-tiny" if tiny else "reproduce/results/gpu")
    output = options.output or default
    output.mkdir(parents=True, exist_ok=True)
    can_measure = tiny or torch.cuda.is_available()
    results, failed = measure_missing(output, options.cases if can_measure else None, tiny)
    text = write_report(output, results, tiny)
    print(text.partition("\n## ")[2])
    for line in failed:
        print(f"failed: {line}")
    if not can_measure:
        print("There is no CUDA device here: nothing was measured.")
    return int(bool(failed))


def measure_missing(output, cases, tiny):
    """Add what is missing to gpu_bench.json. cases: an empty list for all, None for none.

    Returns all results, and a line for each variant that failed.
    """
    place, failed = output / "gpu_bench.json", []
    results = json.loads(place.read_text(encoding="utf-8")) if place.exists() else []
    present = {(r["case"], r["variant"]) for r in results if r["card"] == card(tiny)}
    for case, variant in () if cases is None else variants(cases):
        if (case, variant) in present:
            continue
        print(f"{case}: {variant}", flush=True)
        try:
            results.append(run(case, variant, tiny))
            write_atomic(place, json.dumps(results, indent=1) + "\n")
        except (RuntimeError, ArithmeticError, RewardError):
            # A kernel, a compiler or a gradient failed. The other variants may work.
            traceback.print_exc()
            failed.append(f"{case}: {variant}")
    return results, failed


if __name__ == "__main__":
    sys.exit(main())
