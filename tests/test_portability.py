"""The script that runs the tests with other rounding: the moved weights and the command line."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bpgo.files import SHIPPED, check_safetensors
from tests import portability


def test_every_weight_moves_by_less_than_a_millionth_and_integers_stay(tmp_path):
    tensors = {
        "half": torch.linspace(-3, 3, 100).half(),
        "single": torch.full((2, 3), 1e-20),
        "zero": torch.zeros(2),
        "counts": torch.arange(5),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    portability.move_weights(tmp_path)
    check_safetensors(tmp_path)
    moved = load_file(tmp_path / "model.safetensors")
    assert moved.keys() == tensors.keys()
    assert torch.equal(moved["counts"], tensors["counts"])
    assert torch.equal(moved["zero"], tensors["zero"])
    for name in ("half", "single"):
        relative = moved[name].double() / tensors[name].double() - 1
        assert 0 < relative.abs().min() <= relative.abs().max() <= 1e-6
        assert relative.min() < 0 < relative.max(), "both signs"


def test_a_shipped_model_still_loads_and_its_output_moves_a_little(tmp_path):
    from bpgo.rewards import load_reward

    folder = tmp_path / "tiny-reward"
    folder.mkdir()
    for file in (SHIPPED / "tiny-reward").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    portability.move_weights(folder)
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = ["a red circle", "a blue square", "a shape", "a green thing"]
    before, after = (
        load_reward("clip", place)(pixels, prompts) for place in (SHIPPED / "tiny-reward", folder)
    )
    assert 0 < (after - before).abs().max() < 1e-3


def test_a_setting_is_a_copy_of_the_package_under_its_own_command(tmp_path, monkeypatch, capsys):
    called = []

    def fake(command, cwd, env, **streams):
        called.append((command, env))
        assert (cwd / "bpgo" / "__init__.py").is_file() and env["PYTHONPATH"] == str(cwd)
        (file,) = (word.partition("=")[2] for word in command if word.startswith("--junitxml="))
        with open(file, "w") as stream:
            stream.write('<testsuites><testsuite><testcase classname="tests.a" name="good"/>')
            if env.get("ATEN_CPU_CAPABILITY") == "avx2":
                stream.write('<testcase classname="tests.a" name="bad"><failure/></testcase>')
            stream.write("</testsuite></testsuites>")
        return portability.subprocess.CompletedProcess(command, 0)

    files = [portability.Path("bpgo/__init__.py")]
    monkeypatch.setattr(portability, "tracked_files", lambda: files)
    monkeypatch.setattr(portability.subprocess, "run", fake)
    given = ["avx2", "moved", "--output", str(tmp_path), "--", "-k", "flux"]
    assert portability.main(given) == 1
    (avx2, lowered), (moved, usual) = called
    assert avx2[:3] == [sys.executable, "-m", "pytest"] and avx2[-2:] == ["-k", "flux"]
    assert portability.AS_SHIPPED in moved and portability.AS_SHIPPED not in avx2
    assert (lowered["ATEN_CPU_CAPABILITY"], lowered["ONEDNN_MAX_CPU_ISA"]) == ("avx2", "AVX2")
    assert "ATEN_CPU_CAPABILITY" not in usual and usual["OMP_NUM_THREADS"] == "1"
    assert "tests.a::bad" in capsys.readouterr().out
    assert portability.main(given) == 1 and len(called) == 2, "both results are up to date"
    assert portability.main([*given[:-1], "wan"]) == 1 and len(called) == 4


def test_results_that_are_missing_count_as_a_failure(tmp_path):
    assert portability.read_results(tmp_path / "none.xml")["failures"]


def test_an_unknown_setting_is_refused(capsys):
    with pytest.raises(SystemExit):
        portability.main(["avx3"])
    assert "unknown setting 'avx3': there are aten, generic, avx2" in capsys.readouterr().err


def test_numpy_is_told_to_leave_out_what_it_has_here():
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    assert portability.SETTINGS["numpy"]["NPY_DISABLE_CPU_FEATURES"].split() == found
