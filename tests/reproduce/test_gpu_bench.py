"""The measurement of one iteration: all its cases with the tiny models, its table, what it makes of kills, errors and too little memory."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

from bpgo.preflight.published import PIPELINES
from bpgo.trainer import Trainer
from reproduce import gpu_bench

FIRST = ("wan2.1-1.3b-240x416x33", "as the preset")
EVERY = [(case, variant) for case in gpu_bench.CASES for variant in gpu_bench.CASES[case][-1]]
SECOND = "wan2.1-1.3b-480x832x33"  # with the tiny models the same as the first: one variant of it will do


@pytest.fixture(scope="module", autouse=True)
def a_precision_of_its_own():
    """accelerate has one a process, and other tests have been here. Nothing is compiled: that takes a minute on two cores."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with torch.compiler.set_stance("force_eager"):
        yield


def rows_of(folder):
    """(case, variant) -> the other cells of the table in README.md."""
    lines = [
        line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| ")
    ]
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert len({len(row) for row in cells}) == 1 and cells[0] == list(gpu_bench.COLUMNS)
    return {tuple(row[:2]): row[2:] for row in cells[2:]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the results of all cases."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gpu_bench.CASES, SECOND, (*gpu_bench.CASES[SECOND][:-1], ("as the preset",)))
        assert gpu_bench.main(["--tiny", "--output", str(folder)]) == 0
    return folder


def test_every_phase_of_every_variant_takes_time(tiny):
    results = json.loads((tiny / "gpu_bench.json").read_text())
    assert {r["case"] for r in results} == set(gpu_bench.CASES)
    for r in results:
        assert (
            list(r["seconds"]) == ["sample", "decode", "score", "update"]
            and min(r["seconds"].values()) > 0
        ), r["variant"]
        assert sum(r["seconds"].values()) <= r["iteration"] and r["first_iteration"] > 0
        assert (
            r["flops_per_second"] > 0
            and r["matmul_rate"] > 0
            and min(r["foreseen_bytes"].values()) > 0
        )
        assert r["first_log_ratio"] == 0.0, "as in a training run"
        assert (r["too_large"], r["torch"], set(r["code"])) == (
            [],
            torch.__version__,
            {"package", "commit", "dirty"},
        )
    by = {r["variant"]: r for r in results if r["case"] == FIRST[0]}
    assert (
        by["micro-batch 4"]["flops"]
        == 2 * by["as the preset"]["flops"]
        == 12 / 10 * 2 * by["no checkpointing"]["flops"]
    )


def test_the_table_has_a_row_for_each_variant(tiny):
    assert list(rows := rows_of(tiny)) == [
        (case, name) for case, name in EVERY if case != SECOND or name == "as the preset"
    ]
    assert all(float(cell) > 0 for row in rows.values() for cell in row[1:7])
    assert ", tiny models\n" in (tiny / "README.md").read_text()


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    asked = []

    def stopped(case, variant, tiny):
        asked.append(variant)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return next(gpu_bench.planned(case, variant, tiny))[-1] | {"card": gpu_bench.card(tiny)}

    monkeypatch.setattr(gpu_bench, "run", stopped)
    words = ["flux-512-lora", "--tiny", "--output", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        gpu_bench.main(words)
    assert len(json.loads((tmp_path / "gpu_bench.json").read_text())) == 2
    assert gpu_bench.main(words) == gpu_bench.main(words) == 0
    variants = list(gpu_bench.CASES["flux-512-lora"][-1])
    assert asked == variants[:3] + variants[2:]
    assert [r["variant"] for r in json.loads((tmp_path / "gpu_bench.json").read_text())] == variants
    monkeypatch.setattr(gpu_bench, "card", lambda tiny: "another")
    assert gpu_bench.main(words) == 0
    assert (
        asked[-len(variants) :] == variants
        and (tmp_path / "README.md").read_text().count("\n## ") == 2
    )


def test_what_does_not_fit_is_said_and_a_smaller_size_is_tried(tmp_path, monkeypatch):
    real, tried = Trainer.collect, []

    def too_large(self, *given):
        tried.append(self.output)
        if self.config.generator.offload is False or len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *given)

    monkeypatch.setattr(Trainer, "collect", too_large)
    case = gpu_bench.CASES["wan2.2-a14b-lora-largest"]
    monkeypatch.setattr(
        gpu_bench, "CASES", {"large": (*case[:2], case[2][:3], ("as the preset", "no offload"))}
    )
    assert gpu_bench.main(["--tiny", "--output", str(tmp_path)]) == 0
    found, none = json.loads((tmp_path / "gpu_bench.json").read_text())
    assert (
        [len(r["too_large"]) for r in (found, none)] == [2, 3]
        and found["seconds"]
        and "seconds" not in none
    )
    assert "out of memory: try " in none["too_large"][0] and not tried[0].exists()
    assert rows_of(tmp_path)["large", "no offload"][5] == "out of memory"


def test_another_error_is_said_and_the_other_variants_are_measured(tmp_path, monkeypatch, capsys):
    def broken(case, variant, tiny):
        if variant == "no offload, compiled":
            raise RuntimeError("no such kernel")
        return next(gpu_bench.planned(case, variant, tiny))[-1] | {"card": "CPU, tiny models"}

    monkeypatch.setattr(gpu_bench, "run", broken)
    assert (
        gpu_bench.main(
            ["flux-512-lora", "wan2.2-a14b-lora-largest", "--tiny", "--output", str(tmp_path)]
        )
        == 1
    )
    said = capsys.readouterr()
    assert (
        "failed: flux-512-lora: no offload, compiled\n" in said.out and "no such kernel" in said.err
    )
    assert len(json.loads((tmp_path / "gpu_bench.json").read_text())) == len(
        gpu_bench.CASES["flux-512-lora"][-1]
    )


def test_without_a_gpu_nothing_is_measured_and_what_is_foreseen_is_said(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_bench.main(["--output", str(tmp_path)]) == 0
    assert "There is no CUDA device here: nothing was measured." in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert list(rows := rows_of(tmp_path)) == EVERY
    assert all(row[5] == "not measured" and float(row[8]) > 1 for row in rows.values())
    assert rows[FIRST][0] == "240x416x33, 4 steps (2 trained), 2 rows by 2"


def test_the_committed_page_is_the_script_s(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    committed = gpu_bench.ROOT / "reproduce" / "results" / "gpu"
    for file in committed.glob("gpu_bench.json"):
        (tmp_path / file.name).write_text(file.read_text())
    gpu_bench.main(["--output", str(tmp_path)])
    assert (committed / "README.md").read_text() == (tmp_path / "README.md").read_text(), (
        "run `python reproduce/gpu_bench.py`"
    )


def test_a_case_that_does_not_exist_is_refused(tmp_path, capsys):
    for word, answer in (
        ("flux-512", "did you mean 'flux-512-lora'?"),
        ("x", f"there are {', '.join(gpu_bench.CASES)}"),
    ):
        with pytest.raises(SystemExit) as stopped:
            gpu_bench.main([word, "--output", str(tmp_path / "none")])
        assert stopped.value.code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"there is no case {word!r}" in said and answer in said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("path", PIPELINES)
def test_the_full_models_are_the_published_ones_in_their_precisions(path):
    p = gpu_bench.pipeline(path)
    assert not any("encoder" in name for name in p.parts)
    for name in p.parts.keys() - {"transformer_2"}:
        module = gpu_bench.random_part(name, p, torch.bfloat16, "meta")
        single = sum(w.numel() for w in module.parameters() if w.dtype == torch.float32)
        assert (sum(w.numel() for w in module.parameters()), single) == p.parts[name][:2]
        assert {w.dtype for w in module.parameters()} <= {torch.bfloat16, torch.float32}
    assert torch.get_default_dtype() == torch.float32


def test_peaks_are_counted_to_the_phase_that_has_them(monkeypatch):
    peaks = iter([5, 7, 6, 9, 8, 3])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    waited = []
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: waited.append(name))
    probe = gpu_bench.Probe()
    sample, decode = probe.around("sample", abs), probe.around("decode", abs)
    with torch.no_grad():
        assert [sample(-1), sample(-2), decode(-3), sample(-4)] == [1, 2, 3, 4]
    sample(-5)  # with gradients: the update's
    probe.enter("sample")
    assert probe.peaks == {"sample": 8, "decode": 9, "update": 3}
    assert (waited.count("synchronize"), waited.count("reset_peak_memory_stats")) == (4, 6)


@pytest.mark.parametrize(
    ("peak", "said"), [(25e9, "yes (+12%)"), (20e9, "no (+40%)"), (40e9, "no (-30%)")]
)
def test_what_is_foreseen_is_held_against_the_peak(peak, said):
    known = dict(
        case="c",
        variant="v",
        setting="s",
        rows=2,
        seconds={"sample": 1.0},
        iteration=4.0,
        flops_per_second=3e14,
        peak_bytes={"sample": 1e9, "update": peak},
        foreseen_bytes={"sample": 2e9, "update": 28e9},
        matmul_rate=6e14,
    )
    assert gpu_bench.cells(known, True)[4:] == [
        "4",
        "2",
        f"{peak / 1e9:g}",
        "28",
        said,
        "300",
        "50% of 600",
    ]
