"""The paper's tables: the published numbers as printed, ours beside them, and real runs as `python -m bpgo train` leaves them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bpgo.config import read_config, to_dict
from bpgo.records import read_record
from reproduce.analysis import evidence, paper

ROOT = Path(__file__).resolve().parent.parent
NONE = pd.DataFrame(columns=paper.RUNS)


# ---------------------------------------------------------------------------------------------------------- as published

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
    return paper.published(name).set_index(["task", "method", "metric"])["value"]


@pytest.mark.parametrize("name", PRINTED)
def test_the_published_numbers_are_those_of_the_paper(name):
    expected = {
        (task, method, metric): float(value)
        for task, (metrics, rows) in PRINTED[name].items()
        for method, row in rows.items()
        for metric, value in zip(metrics, row.split(), strict=True)
    }
    assert numbers(name).to_dict() == expected and len(paper.published(name)) == len(expected)


def test_what_the_published_numbers_do_not_hide():
    main, ablation, alpha = map(numbers, ("main", "ablation", "alpha"))
    for task in ("t2v", "i2v"):
        assert main[task, "base", "VideoAlign-overall"] > main[task, "bpgo", "VideoAlign-overall"]
        assert all(main[task, "bpgo", m] == ablation[task, "bpgo", m] for m in VIDEO[:3])
    assert (
        main["t2i", "grpo", "HPSv2"] > main["t2i", "bpgo", "HPSv2"] > main["t2i", "base", "HPSv2"]
    )
    assert all(
        main["t2i", "grpo", m] < main["t2i", "base", m] < main["t2i", "bpgo", m]
        for m in ("PickScore", "ImageReward")
    )
    assert (
        main["i2v", "grpo", "VideoCLIP-XL"] < main["i2v", "base", "VideoCLIP-XL"]
    )  # its own training reward
    assert [m for m in VIDEO if main["i2v", "bpgo", m] < main["i2v", "base", m]] == [
        "VideoAlign-TA",
        "VideoAlign-overall",
    ]
    for m in VIDEO[:2]:  # either half alone has more
        assert (
            min(ablation["t2v", "ras", m], ablation["t2v", "crt", m]) > ablation["t2v", "bpgo", m]
        )
        assert (
            max(ablation["i2v", "ras", m], ablation["i2v", "crt", m]) < ablation["i2v", "bpgo", m]
        )
    assert all(alpha["t2v", "alpha=0.5", m] == ablation["t2v", "ras", m] for m in VIDEO[:3])
    overall = alpha.xs("VideoAlign-overall", level="metric")
    assert overall.idxmin() == ("t2v", "alpha=0.5") and overall.idxmax() == ("t2v", "alpha=0.7")


def test_names_are_those_of_the_package_and_the_plan():
    with pytest.raises(
        FileNotFoundError, match=r"no published table 'mian'.*main, ablation, alpha"
    ):
        paper.published("mian")
    plan, _ = evidence.read()
    for name in PRINTED:
        table = paper.published(name)
        assert (
            set(table["metric"])
            <= paper.METRICS.keys()
            <= set(VIDEO) | {"HPSv2", "PickScore", "ImageReward"}
        )
        for task in table["task"].unique():
            arms = set(
                plan[(plan["experiment"] == paper.EXPERIMENTS[name]) & (plan["task"] == task)][
                    "arm"
                ]
            )
            assert set(table["method"]) - {"base"} <= arms


@pytest.mark.parametrize("task", paper.PRESETS)
def test_both_real_presets_of_a_task_have_the_paper_s_metrics(task):
    metrics = set(paper.published("main").query("task == @task")["metric"])
    for preset in paper.PRESETS[task]:
        config = read_config(preset)
        assert [r.name for r in config.reward] == [paper.METRICS[paper.TRAINED[task]]]
        names = {paper.METRICS[m] for m in metrics - {paper.TRAINED[task]}}
        assert {r.name for r in config.evaluation.held_out} == names


# ----------------------------------------------------------------------------------------------------------------- beside


def study(**ends):
    """A plan of ten seeds' text-to-image, and records that start at 0.5 and end at these rewards, a seed each (None: no record)."""
    rows, records = [], {}
    for arm, values in ends.items():
        for seed, value in enumerate(values):
            rows.append(
                {
                    "experiment": "trust",
                    "task": "t2i",
                    "arm": arm,
                    "seed": seed,
                    "run": f"{arm}-{seed}",
                }
            )
            if value is not None:
                entries = [{"iteration": 0.0, "reward": 0.5}, {"iteration": 2.0, "reward": value}]
                records[f"{arm}-{seed}"] = {
                    "task": "t2i",
                    "evaluations": entries,
                    "seconds": {"iteration": 2.0 + 2 * (arm == "bpgo")},
                }
    return pd.DataFrame(rows), records


def test_ours_stand_beside_with_intervals_paired_by_seed():
    grpo, bpgo = [0.60, 0.62, 0.61, None], [0.63, 0.64, 0.66, 0.7]
    plan, records = study(grpo=grpo, bpgo=bpgo)
    table = paper.beside("main", plan, records, NONE).set_index("line")
    row = table[table["metric"] == "HPSv2"]
    assert row.loc["bpgo - grpo", "published"] == pytest.approx(0.2434 - 0.2564)
    assert row.loc["base", "ours"][::3] == (0.5, 1) and np.isnan(
        row.loc["base", "ours"].low
    )  # one model, without seeds
    gain = np.subtract(bpgo[:3], grpo[:3])
    half = stats.t.ppf(0.975, 2) * gain.std(ddof=1) / np.sqrt(3)
    assert row.loc["bpgo - grpo", "ours"] == pytest.approx(
        (gain.mean(), gain.mean() - half, gain.mean() + half, 3)
    )
    assert row.loc["bpgo", "ours"].n == row.loc["bpgo - base", "ours"].n == 4
    assert all(
        one.n == 0 for one in table.loc[table["metric"] != "HPSv2", "ours"]
    )  # not planned, no counterpart, not in these records
    assert all(one.n == 0 for one in table["real"])


def test_the_words_say_what_was_not_run():
    plan, records = study(grpo=[0.6, None], bpgo=[None, None])
    said = paper.text(
        paper.beside("main", plan, records, NONE),
        {"grpo": "GRPO", "bpgo": "BPGO", "base": "untrained"},
    ).splitlines()
    block = [
        line.split("  ")
        for line in said[said.index(next(line for line in said if "HPSv2 (trained on)" in line)) :][
            :7
        ]
    ]
    cells = [[word.strip() for word in line if word.strip()] for line in block]
    assert cells[0] == ["t2i HPSv2 (trained on)", "[reward]"]
    assert cells[2] == ["GRPO", "0.2564", "0.600 (n = 1)", "not run"] and cells[3] == [
        "BPGO",
        "0.2434",
        "not run",
        "not run",
    ]
    assert cells[4] == ["GRPO - untrained", "+0.0166", "+0.100 (n = 1)", "not run"]
    assert cells[6] == ["BPGO - GRPO", "-0.0130", "not run", "not run"]


@pytest.mark.parametrize("name", PRINTED)
def test_without_any_record_all_of_ours_is_not_run(name):
    table = paper.beside(name, evidence.read()[0], {}, NONE)
    assert len(table) and {one.n for column in ("ours", "real") for one in table[column]} == {0}


# -------------------------------------------------------------------------------------------------------------- real runs


def finished(folder, preset, seed, first, last, *overrides, iterations=None):
    """A run folder as a trainer leaves it: its config, and evaluations {metric: value} before training and after."""
    config = read_config(preset, [f"seed={seed}", *overrides])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config), indent=1) + "\n")
    rows = [
        (0, first),
        (100, last),
        (config.iterations if iterations is None else iterations, last),
    ]
    lines = [
        {"iteration": i, **values, "scores": {m: [[v, v]] for m, v in values.items()}}
        for i, values in rows
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def flux(reward, pick=0.22, image=1.0):
    return {"reward": reward, "pickscore": pick, "image_reward": image}


def test_real_runs_are_read_by_task_method_and_metric_with_intervals_over_seeds(tmp_path):
    ends = {"grpo": [0.25, 0.27, 0.26], "bpgo": [0.24, 0.27, 0.30]}
    for method, values in ends.items():
        for seed, value in enumerate(values):
            finished(
                tmp_path / f"{method}-{seed}",
                "t2i-flux-lowmem",
                seed,
                flux(0.2),
                flux(value),
                f"objective.name={method}",
            )
    shutil.copytree(tmp_path / "bpgo-2", tmp_path / "deeper" / "copy")  # the same run counts once
    finished(tmp_path / "tiny", "t2i-tiny", 0, flux(0.5), flux(0.6))  # another model
    (tmp_path / "bpgo-0" / "final" / "transformer").mkdir(parents=True)
    (tmp_path / "bpgo-0" / "final" / "transformer" / "config.json").write_text("{}")
    runs, left_out = paper.real_runs(tmp_path)
    assert (
        left_out == []
        and set(runs["setting"]) == {"t2i-flux-lowmem"}
        and set(runs["task"]) == {"t2i"}
    )
    table = paper.over_seeds(runs).set_index(["method", "metric"])
    for method, values in ends.items():
        half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
        expected = np.mean(values), np.mean(values) - half, np.mean(values) + half, 3
        assert tuple(table.loc[(method, "HPSv2"), ["mean", "low", "high", "n"]]) == pytest.approx(
            expected
        )
        assert tuple(table.loc[(method, "PickScore"), ["mean", "n"]]) == pytest.approx((0.22, 3))
    assert tuple(table.loc[("base", "HPSv2"), ["mean", "n"]]) == (0.2, 1)


def test_real_runs_stand_beside_the_published_ones_and_ours(tmp_path):
    for method, value in (("grpo", 0.26), ("bpgo", 0.25)):
        for seed in (0, 1):
            after = flux(value + seed / 100)
            finished(
                tmp_path / f"{method}-{seed}",
                "t2i-flux-lowmem",
                seed,
                flux(0.2),
                after,
                f"objective.name={method}",
            )
    finished(
        tmp_path / "bpgo-full", "t2i-flux", 0, flux(0.2), flux(0.9)
    )  # another setting, with fewer runs: not pooled
    runs, _ = paper.real_runs(tmp_path)
    table = paper.beside("main", evidence.read()[0], {}, runs).set_index("line")
    row = table.loc[table["metric"] == "HPSv2", "real"]
    assert row["bpgo"][::3] == pytest.approx((0.255, 2)) and row["bpgo - grpo"] == pytest.approx(
        (-0.01, -0.01, -0.01, 2)
    )
    assert row["grpo - base"][::3] == pytest.approx((0.065, 2)) and row["base"][
        ::3
    ] == pytest.approx((0.2, 1))
    assert all(one.n == 0 for one in table.loc[table["task"] != "t2i", "real"])
    assert "+0.065 (+0.001 to +0.129, n = 2)" in paper.text(table.reset_index(), {})


def test_settings_are_kept_apart_and_said(tmp_path):
    finished(
        tmp_path / "a",
        "t2i-flux",
        0,
        flux(0.2),
        flux(0.3),
        "evaluation.every=50",
        "checkpoint_every=5",
        "guards=false",
    )
    finished(tmp_path / "b", "t2i-flux", 1, flux(0.2), flux(0.4), "groups=8", "iterations=200")
    finished(
        tmp_path / "c",
        "t2i-flux-lowmem",
        1,
        flux(0.2),
        flux(0.5),
        "generator.path=/data/FLUX.1-dev",
    )
    runs, _ = paper.real_runs(tmp_path)
    assert set(runs["setting"]) == {
        "t2i-flux",
        "t2i-flux; groups: 16 -> 8; iterations: 300 -> 200",
        "t2i-flux-lowmem",
    }
    assert set(paper.over_seeds(runs)["n"]) == {1}


def test_the_published_sweep_of_alpha_is_of_ras(tmp_path):
    video = {"video_align_ta": 1.0, "video_align": 0.1, "qwen3_vl_embedding": 0.6}
    for alpha in (0.1, 0.5):
        for name in ("ras", "bpgo", "grpo"):
            given = f"objective.alpha={alpha}", f"objective.name={name}"
            value = alpha + (name == "ras")
            finished(
                tmp_path / f"{name}-{alpha}",
                "t2v-wan2.1-1.3b",
                0,
                {"reward": 0.0} | video,
                {"reward": value} | video,
                *given,
            )
    runs, _ = paper.real_runs(tmp_path)
    assert set(runs["method"]) == {"base", "grpo", "ras", "bpgo", "ras alpha=0.1", "bpgo alpha=0.1"}
    row = paper.beside("alpha", evidence.read()[0], {}, runs).set_index(["metric", "line"])["real"][
        "VideoCLIP-XL"
    ]
    assert row["alpha=0.1"].mean == 1.1 and row["alpha=0.5"].mean == 1.5 and row["alpha=0.9"].n == 0


def test_what_does_not_count_is_left_out_with_its_reason(tmp_path):
    finished(tmp_path / "stopped", "t2i-flux", 0, flux(0.2), flux(0.3), iterations=200)
    finished(tmp_path / "scaled", "t2i-flux", 0, flux(0.2), flux(0.3), "reward.scale=2")
    finished(tmp_path / "proxy", "t2i-flux", 0, flux(0.2), flux(0.3), "reward={name: clip}")
    finished(tmp_path / "small", "t2i-flux", 0, flux(0.2), flux(0.3), "reward.path=tiny-reward")
    finished(tmp_path / "cut", "t2i-flux", 0, flux(0.2), flux(0.3))
    (tmp_path / "cut" / "evaluations.jsonl").write_text('{"iteration": 0, "rew')
    finished(tmp_path / "empty", "t2i-flux", 0, flux(0.2), flux(0.3))
    (tmp_path / "empty" / "evaluations.jsonl").write_text("")
    (finished(tmp_path / "lost", "t2i-flux", 0, flux(0.2), flux(0.3)) / "config.json").unlink()
    runs, left_out = paper.real_runs(tmp_path)
    assert runs.empty and len(left_out) == 7
    reasons = dict(line.split(": ", 1) for line in left_out)
    assert "up to iteration 300" in reasons["stopped"] and "up to iteration 300" in reasons["empty"]
    assert all(
        "not trained on the paper's HPSv2" in reasons[name] for name in ("scaled", "proxy", "small")
    )
    assert all("is not whole" in reasons[name] for name in ("cut", "lost"))


def test_held_out_metrics_count_by_name_and_scale_and_a_single_one_has_another_key(tmp_path):
    one = "evaluation.held_out={name: pickscore, scale: 0.01, device: cuda}"
    finished(
        tmp_path / "one",
        "t2i-flux",
        0,
        {"reward": 0.2, "held_out": 0.21},
        {"reward": 0.3, "held_out": None},
        one,
    )
    other = "evaluation.held_out=[{name: pickscore}, {name: image_reward}]"  # at a hundred times the paper's scale
    finished(tmp_path / "other", "t2i-flux", 1, flux(0.2), flux(0.3, 22.0, 1.1), other)
    table = paper.real_runs(tmp_path)[0].set_index(["method", "seed", "metric"])["value"]
    assert table["base", -1, "PickScore"] == 0.21 and np.isnan(table["bpgo", 0, "PickScore"])
    assert ("bpgo", 1, "PickScore") not in table and table["bpgo", 1, "ImageReward"] == 1.1


def test_without_real_runs_there_are_none(tmp_path):
    for folder in ("", tmp_path):
        runs, left_out = paper.real_runs(folder)
        assert (
            runs.empty
            and list(runs) == paper.RUNS
            and left_out == []
            and paper.over_seeds(runs).empty
        )
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        paper.real_runs(tmp_path / "nowhere")


@pytest.mark.slow
def test_the_notebook_runs_without_a_record_of_the_study_and_with_real_runs(tmp_path):
    (tmp_path / "results").mkdir()
    shutil.copy(evidence.RESULTS / "runs.csv", tmp_path / "results")
    for method in ("grpo", "bpgo"):
        finished(
            tmp_path / "real" / method,
            "t2i-flux",
            0,
            flux(0.2),
            flux(0.3),
            f"objective.name={method}",
        )
    command = [
        sys.executable,
        ROOT / "reproduce" / "notebooks.py",
        "run",
        "10_paper_tables",
        tmp_path / "out.ipynb",
    ]
    given = {"results": tmp_path / "results", "runs": tmp_path / "real", "output": tmp_path}
    command += [word for key, value in given.items() for word in ("-p", f"{key}={value}")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = read_record(tmp_path / "paper_tables.json")["values"]
    assert {row["n"] for row in values.values()} == {0} and {
        row["ours"] for row in values.values()
    } == {None}
    assert {name for name, row in values.items() if row["n at paper scale"]} == {
        "t2i HPSv2",
        "t2i PickScore",
        "t2i ImageReward",
    }
    assert "stderr" not in (tmp_path / "out.ipynb").read_text()
