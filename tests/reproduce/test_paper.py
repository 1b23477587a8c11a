"""The paper's tables: the published numbers as printed, and ours beside them."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bpgo.config import read_config
from bpgo.records import read_record
from reproduce.analysis import evidence, paper
from tests.reproduce.driver import ROOT
from tests.reproduce.real_runs import finished, flux

NONE = pd.DataFrame(columns=paper.RUNS)


# ------------------------------------------------------------------------------------ as published

VIDEO = ("VideoCLIP-XL", "VideoAlign-TA", "VideoAlign-overall", "Qwen3-VL-Embedding")
PRINTED = {  # typed from the paper's facts, not from the files
    "main": {
        "t2v": (
            VIDEO,
            {
                "base": "2.6563 1.0638 .0939 .6741",
                "grpo": "2.6714 .8984 -.5411 .6722",
                "bpgo": "2.6788 1.1193 -.0478 .6754",
            },
        ),
        "i2v": (
            VIDEO,
            {
                "base": "2.6726 1.0633 -.7623 .6741",
                "grpo": "2.0713 .2307 -1.8932 .6885",
                "bpgo": "2.6855 1.0589 -1.0491 .689",
            },
        ),
        "t2i": (
            ("HPSv2", "PickScore", "ImageReward"),
            {
                "base": ".2398 .2270 1.1482",
                "grpo": ".2564 .2242 1.0607",
                "bpgo": ".2434 .2288 1.2136",
            },
        ),
    },
    "ablation": {
        "t2v": (
            VIDEO[:3],
            {
                "ras": "2.7042 1.2327 -.4838",
                "crt": "2.6844 1.1751 .0876",
                "bpgo": "2.6788 1.1193 -.0478",
            },
        ),
        "i2v": (
            VIDEO[:3],
            {
                "ras": "2.6681 1.0361 -.8429",
                "crt": "2.0682 .2162 -1.6573",
                "bpgo": "2.6855 1.0589 -1.0491",
            },
        ),
    },
    "alpha": {
        "t2v": (
            VIDEO[:3],
            {
                "alpha=0.1": "2.6834 1.1866 .0386",
                "alpha=0.5": "2.7042 1.2327 -.4838",
                "alpha=0.7": "2.6678 1.1161 .0979",
                "alpha=0.9": "2.6583 1.0334 -.012",
            },
        ),
    },
}


def numbers(name):
    table = paper.published(name).set_index(["task", "method", "metric"])
    return table["value"].sort_index()


@pytest.mark.parametrize("name", PRINTED)
def test_the_published_numbers_are_those_of_the_paper(name):
    expected = {}
    for task, (metrics, rows) in PRINTED[name].items():
        for method, row in rows.items():
            for metric, value in zip(metrics, row.split(), strict=True):
                expected[task, method, metric] = float(value)
    assert numbers(name).to_dict() == expected
    assert len(paper.published(name)) == len(expected)


def test_what_the_main_table_does_not_hide():
    main = numbers("main")
    for task in ("t2v", "i2v"):
        assert main[task, "base", "VideoAlign-overall"] > main[task, "bpgo", "VideoAlign-overall"]
    base, grpo, bpgo = (main["t2i", method] for method in ("base", "grpo", "bpgo"))
    assert grpo["HPSv2"] > bpgo["HPSv2"] > base["HPSv2"]
    for metric in ("PickScore", "ImageReward"):
        assert grpo[metric] < base[metric] < bpgo[metric]
    base, grpo, bpgo = (main["i2v", method] for method in ("base", "grpo", "bpgo"))
    assert grpo["VideoCLIP-XL"] < base["VideoCLIP-XL"]  # its own training reward
    lost = [metric for metric in VIDEO if bpgo[metric] < base[metric]]
    assert lost == ["VideoAlign-TA", "VideoAlign-overall"]


def test_what_the_other_tables_do_not_hide():
    main, ablation, alpha = map(numbers, ("main", "ablation", "alpha"))
    for metric in VIDEO[:3]:
        for task in ("t2v", "i2v"):
            assert main[task, "bpgo", metric] == ablation[task, "bpgo", metric]
        assert alpha["t2v", "alpha=0.5", metric] == ablation["t2v", "ras", metric]
    for metric in VIDEO[:2]:
        ras, crt, both = (ablation["t2v", method, metric] for method in ("ras", "crt", "bpgo"))
        assert min(ras, crt) > both  # either half alone has more
        ras, crt, both = (ablation["i2v", method, metric] for method in ("ras", "crt", "bpgo"))
        assert max(ras, crt) < both
    overall = alpha.xs("VideoAlign-overall", level="metric")
    assert overall.idxmin() == ("t2v", "alpha=0.5") and overall.idxmax() == ("t2v", "alpha=0.7")


def test_an_unknown_table_is_refused():
    with pytest.raises(
        FileNotFoundError, match=r"no published table 'mian'.*main, ablation, alpha"
    ):
        paper.published("mian")


def test_metrics_are_those_of_the_package_and_methods_those_of_the_plan():
    plan, _ = evidence.read()
    for name in PRINTED:
        table = paper.published(name)
        assert set(table["metric"]) <= paper.METRICS.keys()
        assert paper.METRICS.keys() == set(VIDEO) | {"HPSv2", "PickScore", "ImageReward"}
        for task, rows in table.groupby("task"):
            planned = (plan["experiment"] == paper.EXPERIMENTS[name]) & (plan["task"] == task)
            assert set(rows["method"]) - {"base"} <= set(plan["arm"][planned])


@pytest.mark.parametrize("task", paper.PRESETS)
def test_both_real_presets_of_a_task_have_the_paper_s_metrics(task):
    metrics = set(paper.published("main").query("task == @task")["metric"])
    for preset in paper.PRESETS[task]:
        config = read_config(preset)
        assert [r.name for r in config.reward] == [paper.METRICS[paper.TRAINED[task]]]
        names = {paper.METRICS[metric] for metric in metrics - {paper.TRAINED[task]}}
        assert {r.name for r in config.evaluation.held_out} == names


# ----------------------------------------------------------------------------------------- beside


def study(**ends):
    """A plan of text-to-image runs, and records of their rewards.

    All start at 0.5. ends: {arm: the reward of each seed after training, None without a record}.
    """
    rows, records = [], {}
    for arm, values in ends.items():
        for seed, value in enumerate(values):
            run = f"{arm}-{seed}"
            rows.append(
                {"experiment": "trust", "task": "t2i", "arm": arm, "seed": seed, "run": run}
            )
            if value is not None:
                evaluations = [{"iteration": 0, "reward": 0.5}, {"iteration": 2, "reward": value}]
                records[run] = {"task": "t2i", "evaluations": evaluations}
    return pd.DataFrame(rows), records


def test_ours_stand_beside_with_intervals_paired_by_seed():
    grpo, bpgo = [0.60, 0.62, 0.61, None], [0.63, 0.64, 0.66, 0.7]
    table = paper.beside("main", *study(grpo=grpo, bpgo=bpgo), NONE).set_index("line")
    row = table[table["metric"] == "HPSv2"]
    assert row.loc["bpgo - grpo", "published"] == pytest.approx(0.2434 - 0.2564)
    base = row.loc["base", "ours"]  # one model, without seeds
    assert (base.mean, base.n) == (0.5, 1) and np.isnan(base.low)
    gain = np.subtract(bpgo[:3], grpo[:3])
    half = stats.t.ppf(0.975, 2) * gain.std(ddof=1) / np.sqrt(3)
    expected = gain.mean(), gain.mean() - half, gain.mean() + half, 3
    assert row.loc["bpgo - grpo", "ours"] == pytest.approx(expected)
    assert row.loc["bpgo", "ours"].n == row.loc["bpgo - base", "ours"].n == 4
    # Not planned, without counterpart, or not in these records.
    assert {one.n for one in table.loc[table["metric"] != "HPSv2", "ours"]} == {0}
    assert {one.n for one in table["real"]} == {0}


def test_the_text_says_what_was_not_run():
    names = {"grpo": "GRPO", "bpgo": "BPGO", "base": "untrained"}
    table = paper.beside("main", *study(grpo=[0.6, None], bpgo=[None, None]), NONE)
    lines = paper.text(table, names).splitlines()
    start = next(i for i, line in enumerate(lines) if "HPSv2 (trained on)" in line)
    cells = []
    for line in lines[start : start + 7]:
        cells.append([cell.strip() for cell in line.split("  ") if cell.strip()])
    assert cells[0] == ["t2i HPSv2 (trained on)", "[reward]"]
    assert cells[2] == ["GRPO", "0.2564", "0.600 (n = 1)", "not run"]
    assert cells[3] == ["BPGO", "0.2434", "not run", "not run"]
    assert cells[4] == ["GRPO - untrained", "+0.0166", "+0.100 (n = 1)", "not run"]
    assert cells[6] == ["BPGO - GRPO", "-0.0130", "not run", "not run"]


@pytest.mark.parametrize("name", PRINTED)
def test_without_any_record_all_of_ours_is_not_run(name):
    table = paper.beside(name, evidence.read()[0], {}, NONE)
    assert {one.n for column in ("ours", "real") for one in table[column]} == {0}


@pytest.mark.slow
def test_the_notebook_runs_without_a_record_of_the_study_and_with_real_runs(tmp_path):
    (tmp_path / "results").mkdir()
    shutil.copy(evidence.RESULTS / "runs.csv", tmp_path / "results")
    for method in ("grpo", "bpgo"):
        folder = tmp_path / "real" / method
        finished(folder, "t2i-flux", 0, flux(0.2), flux(0.3), f"objective.name={method}")
    script = ROOT / "reproduce" / "notebooks.py"
    command = [sys.executable, script, "run", "10_paper_tables", tmp_path / "out.ipynb"]
    given = {"results": tmp_path / "results", "runs": tmp_path / "real", "output": tmp_path}
    for key, value in given.items():
        command += ["-p", f"{key}={value}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = read_record(tmp_path / "paper_tables.json")["values"]
    assert {row["n"] for row in values.values()} == {0}
    assert {row["ours"] for row in values.values()} == {None}
    at_scale = {name for name, row in values.items() if row["n at paper scale"]}
    assert at_scale == {"t2i HPSv2", "t2i PickScore", "t2i ImageReward"}
    assert "stderr" not in (tmp_path / "out.ipynb").read_text()
