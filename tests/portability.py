"""Run the test suite with the rounding of other machines and list the tests that fail there.

    python tests/portability.py                           # every setting, one after the other
    python tests/portability.py avx2 moved                # only these settings
    python tests/portability.py avx2 -- -k flux -n 2      # everything after -- goes to pytest

A test may pass by the rounding of the processor on which it was written. Each setting copies the
files that git tracks, as they are now, to a temporary folder and runs the tests there. The results
are kept in --output. Running the same command again resumes: it repeats a setting only if a tracked
file, the setting or the pytest arguments have changed. The exit code is 1 if any test failed.

ATEN_CPU_CAPABILITY selects the kernels of torch, ONEDNN_MAX_CPU_ISA those of oneDNN, MKL_CBWR those
of MKL, and NPY_DISABLE_CPU_FEATURES and OPENBLAS_CORETYPE those of numpy. `generic` and `avx2`
lower torch and oneDNN together. `aten` lowers torch alone, which then refuses bfloat16 attention,
so the tests that need it are skipped. The setting `moved` multiplies every shipped weight by
1 +- 0.9e-6 with a random sign and leaves out the tests of the shipped files themselves.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = Path("bpgo", "checkpoints")
MOVED = "moved"
AS_SHIPPED = "not files_are_small and not are_the_committed_ones"  # neither holds of moved weights
MOVE = 0.9e-6  # so that rounding the product to float32 keeps the move below 1e-6
USUAL = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
VECTORS = " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))
SETTINGS = {
    "aten": {"ATEN_CPU_CAPABILITY": "default"},
    "generic": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "onednn": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "mkl": {"MKL_CBWR": "COMPATIBLE"},
    "numpy": {"NPY_DISABLE_CPU_FEATURES": VECTORS, "OPENBLAS_CORETYPE": "Nehalem"},
    "threads": {"OMP_NUM_THREADS": "2"},
    MOVED: {},
}


def tracked_files() -> list[Path]:
    """Files of the checkout that git tracks, relative to its root."""
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


def move_weights(folder: Path) -> None:
    """Multiply every floating-point weight in a folder's safetensors files by 1 +- MOVE.

    The files become float32, because float16 cannot express the move. Integers stay as they are.
    """
    for number, file in enumerate(sorted(folder.rglob("*.safetensors"))):
        generator = torch.Generator().manual_seed(number)
        with safe_open(file, "pt") as source:
            metadata = source.metadata()
            tensors = {name: source.get_tensor(name) for name in source.keys()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                signs = 2 * torch.randint(0, 2, tensor.shape, generator=generator) - 1
                tensors[name] = (tensor.double() * (1 + MOVE * signs)).float()
        save_file(tensors, file, metadata=metadata)


def command_line(setting: str, results: Path, arguments: list[str]) -> list[str]:
    """The pytest command of a setting. Its results go to a JUnit XML file."""
    plain = ["-q", "-p", "no:cacheprovider", f"--junitxml={results}"]
    chosen = ["-k", AS_SHIPPED] if setting == MOVED else []
    return [sys.executable, "-m", "pytest", *plain, *chosen, *arguments]


def read_results(file: Path) -> dict:
    """Counts and names of failures in a JUnit XML file. Without one, pytest itself failed."""
    if not file.exists():
        return {"passed": 0, "failures": ["pytest ended without results"]}
    cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    failures, skipped = [], 0
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
    return {"passed": len(cases) - len(failures) - skipped, "failures": failures}


def run(setting: str, files: list[Path], arguments: list[str], log: Path) -> dict:
    """Run the tests of a copy of the tracked files under a setting."""
    with tempfile.TemporaryDirectory(prefix="portability-") as place:
        copy, results = Path(place, "checkout"), Path(place, "results.xml")
        for file in files:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy / file)
        if setting == MOVED:
            move_weights(copy / WEIGHTS)
        environment = os.environ | USUAL | SETTINGS[setting] | {"PYTHONPATH": str(copy)}
        command, started = command_line(setting, results, arguments), time.monotonic()
        with log.open("w") as both:
            done = subprocess.run(command, cwd=copy, env=environment, stdout=both, stderr=both)
        found = read_results(results) | {"seconds": round(time.monotonic() - started)}
    if done.returncode and not found["failures"]:
        found["failures"] = [f"pytest ended with exit code {done.returncode}"]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen settings that have no up-to-date result, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; default: all")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "portability")
    given = sys.argv[1:] if arguments is None else arguments
    split = given.index("--") if "--" in given else len(given)
    options, for_pytest = parser.parse_args(given[:split]), given[split + 1 :]
    for setting in options.settings:
        if setting not in SETTINGS:
            parser.error(f"unknown setting {setting!r}: there are {', '.join(SETTINGS)}")
    options.output.mkdir(parents=True, exist_ok=True)
    files, digest = tracked_files(), hashlib.sha256(json.dumps(for_pytest).encode())
    for file in files:
        digest.update(f"\0{file}\0".encode() + (ROOT / file).read_bytes())
    failed = False
    for setting in options.settings or SETTINGS:
        key = f"{digest.hexdigest()} {SETTINGS[setting]}"
        kept = options.output / f"{setting}.json"
        found = json.loads(kept.read_text()) if kept.exists() else {}
        if found.get("key") != key:
            found = run(setting, files, for_pytest, options.output / f"{setting}.log")
            kept.write_text(json.dumps(found | {"key": key}, indent=1))
        failures = found["failures"]
        failed |= bool(failures)
        counts = f"{found['passed']:5} passed {len(failures):3} failed {found['seconds']:5} s"
        print(f"{setting:8} {counts}", *failures, sep="\n    ", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
