"""The measurement of one iteration on a GPU, with tiny models on the CPU.

All cases, the table, and what becomes of kills, errors and too little memory.
"""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

from bpgo.preflight.published import PIPELINES
from bpgo.trainer import Trainer
from reproduce import gpu_bench, gpu_cases, gpu_models, gpu_report

FIRST = ("wan2.1-1.3b-240x416x33", "as the preset")
EVERY = gpu_cases.variants()
# All settings with one model, and with the other models those that concern them in particular. With
# tiny models the two sizes of the first model are the same.
MEASURED = {
    FIRST[0]: gpu_cases.CASES[FIRST[0]][-1],
    "wan2.1-1.3b-480x832x33": ("as the preset",),
    "flux-512-lora": ("as the preset", "no offload, float32", "no offload, compiled"),
    "wan2.2-a14b-lora-240x416x17": ("as the preset", "micro-batch 2"),
    "wan2.2-a14b-lora-largest": ("as the preset",),
}


@pytest.fixture(scope="module", autouse=True)
def a_fresh_precision():
    """accelerate has one precision per process, and other tests have set it.

    Nothing is compiled, which would take a minute on two cores.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    with torch.compiler.set_stance("force_eager"):
        yield


def rows_of(folder):
    """(case, variant) -> the other cells of the table in README.md."""
    lines = (folder / "README.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert len({len(row) for row in cells}) == 1 and cells[0] == list(gpu_report.COLUMNS)
    return {tuple(row[:2]): row[2:] for row in cells[2:]}


def results_of(folder):
    return json.loads((folder / "gpu_bench.json").read_text())


# ----------------------------------------------------------------------------------- measurements


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the results of all cases, in the variants of MEASURED."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        for name, names in MEASURED.items():
            patch.setitem(gpu_cases.CASES, name, (*gpu_cases.CASES[name][:-1], names))
        assert gpu_bench.main(["--tiny", "--output", str(folder)]) == 0
    return folder


def test_every_case_and_every_setting_is_measured_here():
    assert MEASURED.keys() == gpu_cases.CASES.keys()
    for case, names in MEASURED.items():
        assert set(names) <= set(gpu_cases.CASES[case][-1])
    settings = {part for names in MEASURED.values() for name in names for part in name.split(", ")}
    assert settings == set(gpu_cases.SETTINGS)


def test_every_phase_of_every_variant_takes_time(tiny):
    results = results_of(tiny)
    assert {r["case"] for r in results} == set(gpu_cases.CASES)
    for r in results:
        assert list(r["seconds"]) == ["sample", "decode", "score", "update"], r["variant"]
        assert min(r["seconds"].values()) > 0, r["variant"]
        assert 0.5 * r["iteration"] < sum(r["seconds"].values()) <= r["iteration"]
        for name in ("first_iteration", "flops_per_second", "matmul_rate"):
            assert r[name] > 0, name
        assert min(r["foreseen_bytes"].values()) > 0
        assert r["first_log_ratio"] == 0.0, "as in a training run"
        assert r["too_large"] == [] and r["torch"] == torch.__version__
        assert set(r["code"]) == {"package", "commit", "dirty"}


def test_operations_follow_from_the_settings(tiny):
    work = {r["variant"]: r["flops"] for r in results_of(tiny) if r["case"] == FIRST[0]}
    assert work["micro-batch 4"] == 2 * work["as the preset"]
    assert work["as the preset"] == 12 / 10 * work["no checkpointing"]


def test_the_table_has_a_row_for_each_variant(tiny):
    rows = rows_of(tiny)
    assert list(rows) == [(case, name) for case, names in MEASURED.items() for name in names]
    for row in rows.values():
        assert min(map(float, row[1:7])) > 0
    assert ", tiny models\n" in (tiny / "README.md").read_text()


@pytest.mark.parametrize("path", PIPELINES)
def test_the_full_models_are_the_published_ones_in_their_precisions(path):
    sizes = gpu_models.sizes_of(path)
    assert not any("encoder" in name for name in sizes.parts)
    for name in sizes.parts.keys() - {"transformer_2"}:
        module = gpu_models.random_part(name, sizes, torch.bfloat16, "meta")
        weights = list(module.parameters())
        total = sum(w.numel() for w in weights)
        single = sum(w.numel() for w in weights if w.dtype == torch.float32)
        assert (total, single) == sizes.parts[name][:2]
        assert {w.dtype for w in weights} <= {torch.bfloat16, torch.float32}
    assert torch.get_default_dtype() == torch.float32


def test_peaks_are_counted_for_the_phase_that_has_them(monkeypatch):
    peaks, called = iter([5, 7, 6, 9, 8, 3]), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: called.append(name))
    probe = gpu_bench.Probe()
    sample, decode = probe.around("sample", abs), probe.around("decode", abs)
    with torch.no_grad():
        assert [sample(-1), sample(-2), decode(-3), sample(-4)] == [1, 2, 3, 4]
    sample(-5)  # with gradients: part of the update
    probe.enter("sample")
    assert probe.peaks == {"sample": 8, "decode": 9, "update": 3}
    assert called.count("synchronize") == 4 and called.count("reset_peak_memory_stats") == 6


# ----------------------------------------------------------------------- kills, errors and memory


def not_run(case, variant, tiny):
    """In place of `gpu_bench.run`: what is known without running a variant."""
    return next(gpu_cases.planned(case, variant, tiny))[1] | {"card": gpu_bench.card(tiny)}


def test_a_run_that_was_stopped_resumes(tmp_path, monkeypatch):
    asked = []

    def stopped(case, variant, tiny):
        asked.append(variant)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return not_run(case, variant, tiny)

    monkeypatch.setattr(gpu_bench, "run", stopped)
    arguments = ["flux-512-lora", "--tiny", "--output", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        gpu_bench.main(arguments)
    assert len(results_of(tmp_path)) == 2
    assert gpu_bench.main(arguments) == gpu_bench.main(arguments) == 0
    variants = list(gpu_cases.CASES["flux-512-lora"][-1])
    assert asked == variants[:3] + variants[2:]
    assert [r["variant"] for r in results_of(tmp_path)] == variants
    monkeypatch.setattr(gpu_bench, "card", lambda tiny: "another")
    assert gpu_bench.main(arguments) == 0
    assert asked[-len(variants) :] == variants
    assert (tmp_path / "README.md").read_text().count("\n## ") == 2


def test_what_does_not_fit_is_said_and_a_smaller_size_is_tried(tmp_path, monkeypatch):
    draw_batch, tried = Trainer.draw_batch, []

    def too_large(trainer):
        tried.append(trainer.output)
        if trainer.config.generator.offload is False or len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw_batch(trainer)

    monkeypatch.setattr(Trainer, "draw_batch", too_large)
    preset, steps, sizes, _ = gpu_cases.CASES["wan2.2-a14b-lora-largest"]
    case = (preset, steps, sizes[:3], ("as the preset", "no offload"))
    monkeypatch.setattr(gpu_cases, "CASES", {"large": case})
    assert gpu_bench.main(["--tiny", "--output", str(tmp_path)]) == 0
    found, none = results_of(tmp_path)
    assert len(found["too_large"]) == 2 and found["seconds"]
    assert len(none["too_large"]) == 3 and "seconds" not in none
    assert "out of memory (" in none["too_large"][0] and not tried[0].exists()
    assert rows_of(tmp_path)["large", "no offload"][5] == "out of memory"


def test_another_error_is_said_and_the_other_variants_are_measured(tmp_path, monkeypatch, capsys):
    def broken(case, variant, tiny):
        if variant == "no offload, compiled":
            raise RuntimeError("no such kernel")
        return not_run(case, variant, tiny)

    monkeypatch.setattr(gpu_bench, "run", broken)
    cases = ["flux-512-lora", "wan2.2-a14b-lora-largest"]
    assert gpu_bench.main([*cases, "--tiny", "--output", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "failed: flux-512-lora: no offload, compiled\n" in said.out
    assert "no such kernel" in said.err
    assert len(results_of(tmp_path)) == len(gpu_cases.variants(cases)) - 1


# ---------------------------------------------------------------------------------- without a GPU


def test_without_a_gpu_nothing_is_measured_and_what_is_foreseen_is_said(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_bench.main(["--output", str(tmp_path)]) == 0
    assert "There is no CUDA device here: nothing was measured." in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    rows = rows_of(tmp_path)
    assert list(rows) == EVERY
    for row in rows.values():
        assert row[5] == "not measured" and float(row[8]) > 1
    assert rows[FIRST][0] == "240x416x33, 4 steps (2 trained), 2 rows by 2"


def test_the_committed_page_is_that_of_the_script(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    committed = gpu_bench.ROOT / "reproduce" / "results" / "gpu"
    for file in committed.glob("gpu_bench.json"):
        (tmp_path / file.name).write_text(file.read_text())
    gpu_bench.main(["--output", str(tmp_path)])
    written = (tmp_path / "README.md").read_text()
    assert (committed / "README.md").read_text() == written, "run `python reproduce/gpu_bench.py`"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("flux-512", "did you mean 'flux-512-lora'?"),
        ("x", f"there are {', '.join(sorted(gpu_cases.CASES))}"),
    ],
)
def test_a_case_that_does_not_exist_is_refused(word, hint, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_bench.main([word, "--output", str(tmp_path / "none")])
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"there is no case {word!r}" in said and hint in said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("peak", "agrees"), [(25e9, "yes (+12%)"), (20e9, "no (+40%)"), (40e9, "no (-30%)")]
)
def test_what_is_foreseen_is_compared_with_the_peak(peak, agrees):
    known = {
        "case": "c",
        "variant": "v",
        "setting": "s",
        "rows": 2,
        "seconds": {"sample": 1.0},
        "iteration": 4.0,
        "flops_per_second": 3e14,
        "peak_bytes": {"sample": 1e9, "update": peak},
        "foreseen_bytes": {"sample": 2e9, "update": 28e9},
        "matmul_rate": 6e14,
    }
    expected = ["4", "2", f"{peak / 1e9:g}", "28", agrees, "300", "50% of 600"]
    assert gpu_report.cells(known, True)[4:] == expected
