"""The study's records as tables: paired by seed, with what is missing, on records made up here."""

import json

import numpy as np
import pandas as pd
import pytest

from reproduce.analysis import evidence
from reproduce.code_digest import code_digest


@pytest.fixture
def folder(tmp_path):
    """Results of one experiment with two arms and three seeds, of which one run is missing."""
    (tmp_path / "runs").mkdir()
    lines = ["experiment,task,arm,seed,run"]
    for arm, values in {"grpo": [0.1, 0.2, 0.6], "bpgo": [0.3, None, 0.7]}.items():
        for seed, value in enumerate(values):
            lines.append(f"a,t2i,{arm},{seed},{arm}-{seed}")
            if value is not None:
                record = {
                    "task": "t2i",
                    "code": {"digest": "old"},
                    "curves": {"reward": [0.0, value]},
                    "evaluations": [{"x": 0.05}, {"x": value}],
                }
                (tmp_path / "runs" / f"{arm}-{seed}.json").write_text(json.dumps(record))
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    return tmp_path


def test_the_state_counts_missing_runs_and_older_code(folder, monkeypatch):
    plan, records = evidence.read(folder)
    monkeypatch.setattr(evidence, "code_digest", lambda: "new")
    assert evidence.state(plan, records) == (
        "5 of 6 planned runs are recorded, 5 of them by older code "
        "(`make study ARGS=--renew` repeats those)"
    )
    monkeypatch.setattr(evidence, "code_digest", lambda: "old")
    assert evidence.state(plan, records) == "5 of 6 planned runs are recorded"


def test_arms_are_paired_by_seed(folder):
    plan, records = evidence.read(folder)
    table = evidence.final(plan, records, "a", "t2i", "x")
    assert list(table) == ["grpo", "bpgo"]
    assert table["bpgo"].isna().tolist() == [False, True, False]
    found = evidence.compare(table, "grpo")
    assert found.loc["bpgo", "n"] == 2
    assert found.loc["bpgo", "- grpo"] == pytest.approx(0.15)  # of seeds 0 and 2
    assert np.isnan(found.loc["grpo", "p"])
    assert evidence.before(records, "t2i", "x") == 0.05
    assert np.isnan(evidence.before(records, "i2v", "x"))


def test_curves_are_paired_by_seed(folder):
    plan, records = evidence.read(folder)
    curves = evidence.curves(plan, records, "a", "t2i", "reward")
    assert curves["bpgo"].tolist() == [[0.0, 0.3], [0.0, 0.7]]
    difference = evidence.less(plan, records, "a", "t2i", "reward", "bpgo", "grpo")
    assert difference == pytest.approx(np.array([[0, 0.2], [0, 0.1]]))


def test_what_is_not_recorded_or_planned_is_said(folder):
    plan, records = evidence.read(folder)
    assert evidence.final(plan, records, "a", "t2i", "y").isna().all(axis=None)
    assert evidence.so_far(plan, {}, "a", "t2i", "x").isna().all(axis=None)
    with pytest.raises(ValueError, match="no run of a on t2i is recorded yet"):
        evidence.final(plan, {}, "a", "t2i", "x")
    for function in (evidence.final, evidence.so_far):
        with pytest.raises(ValueError, match="no run of b on t2i is planned"):
            function(plan, records, "b", "t2i", "x")
    with pytest.raises(FileNotFoundError, match="run `make study`"):
        evidence.read(folder / "none")


def test_older_names_are_read_under_the_present_ones(folder):
    plan = folder / "runs.csv"
    plan.write_text(plan.read_text().replace("bpgo", "bgpo"))
    for old in list((folder / "runs").glob("bpgo-*.json")):
        record = json.loads(old.read_text())
        record["settings"] = {"objective.name": "bgpo", "prior": {"kind": "sft", "samples": 2}}
        old.with_name(old.name.replace("bpgo", "bgpo")).write_text(json.dumps(record))
    plan, records = evidence.read(folder)
    assert list(evidence.final(plan, records, "a", "t2i", "x")) == ["grpo", "teleboost"]
    assert records["bgpo-0"]["settings"] == {
        "objective.name": "teleboost",
        "prior": {"name": "sft", "samples": 2},
    }


def test_a_grid_has_its_settings_as_rows_and_columns_and_marks_what_is_level_with_the_best():
    cells = {
        "a=1 b=0.5": [0.1, 0.2, 0.15],
        "a=1 b=2.0": [0.9, 1.0, 0.94],
        "a=3 b=0.5": [0.91, 0.98, 0.96],
        "a=3 b=2.0": [np.nan] * 3,
    }
    mean, level = evidence.grid(pd.DataFrame(cells))
    assert (mean.index.name, list(mean.index)) == ("a", ["1", "3"])
    assert (mean.columns.name, list(mean.columns)) == ("b", ["0.5", "2.0"])
    assert mean.loc["1", "0.5"] == pytest.approx(0.15) and np.isnan(mean.loc["3", "2.0"])
    assert level.to_numpy().tolist() == [[False, True], [True, False]]
    empty, none = evidence.grid(pd.DataFrame(cells) * np.nan)
    assert empty.isna().all(axis=None) and not none.any(axis=None)
    with pytest.raises(ValueError, match="two settings per arm"):
        evidence.grid(pd.DataFrame({"grpo": [0.1]}))


@pytest.fixture
def rising():
    """Plan and records of GRPO, which rises to 1.0 in 20 iterations, and of two other arms.

    `fast` gets there in half the time and `half` never does. Seed 1 of GRPO is missing.
    """
    curve = np.minimum(np.arange(1, 21) / 20, 1.0)
    curves = {"grpo": curve, "fast": np.minimum(2 * curve, 1.0), "half": curve / 2}
    rows, records = [], {}
    for arm, values in curves.items():
        for seed in (0, 1):
            run = f"{arm}-{seed}"
            rows.append({"experiment": "a", "task": "t2i", "arm": arm, "seed": seed, "run": run})
            records[run] = {"curves": {"reward": values.tolist()}}
    del records["grpo-1"]
    return pd.DataFrame(rows), records


def test_iterations_to_a_reward_are_counted_by_seed(rising):
    table = evidence.reaching(*rising, "a", "t2i")
    assert list(table.index) == [0]
    assert table.loc[0, "grpo"] == 20 and table.loc[0, "fast"] == 11  # means of two iterations
    assert np.isnan(table.loc[0, "half"])


def test_pace_is_relative_to_the_rise_of_grpo(rising):
    """Over means of two iterations GRPO rises from .075 to .975, by half of that in ten."""
    plan, records = rising
    found = evidence.pace(plan, records, "a", "t2i")
    early = {arm: values[0][0] for arm, values in found.items()}
    assert early == pytest.approx({"grpo": 0.5, "fast": 0.85 / 0.9, "half": 0.25})
    unsteady = {arm: values[1][0] for arm, values in found.items()}
    assert unsteady["grpo"] == pytest.approx(0, abs=1e-9) and unsteady["fast"] > 0.01
    assert evidence.pace(plan, {}, "a", "t2i") == {}


def test_comments_and_docstrings_do_not_make_results_old(tmp_path):
    def digest(text):
        (tmp_path / "bpgo" / "objective.py").write_text(text)
        return code_digest(tmp_path)

    for folder in ("bpgo/presets", "bpgo/analysis/statistics", "reproduce"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "reproduce" / "study_trainer.py").write_text("")
    source = 'def f(x):\n    """One."""\n    return x\n'
    plain = digest(source)
    assert digest('def f(x):\n    """Another."""\n    return x  # said\n') == plain
    assert digest("def f(x):\n    return 2 * x\n") != plain
    for file, changes in {
        "presets/t2i-flux.yaml": False,
        "presets/t2i-tiny.yaml": True,
        "guards.py": False,
        "analysis/plots.py": False,
        "analysis/statistics/groups.py": True,
    }.items():
        before = digest(source)
        (tmp_path / "bpgo" / file).write_text("a = 1\n")
        assert (digest(source) != before) == changes, file
