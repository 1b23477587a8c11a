"""Runs of the published models are read by task, setting, method and metric, or left out."""

import shutil

import numpy as np
import pytest
from scipy import stats

from reproduce.analysis import evidence, paper
from tests.reproduce.real_runs import finished, flux


@pytest.fixture
def run(tmp_path):
    """Makes a finished run of text-to-image, which starts at a reward of .2, in a folder."""

    def make(name, reward, *overrides, preset="t2i-flux", seed=0, **given):
        folder = tmp_path / name
        return finished(folder, preset, seed, flux(0.2), flux(reward), *overrides, **given)

    return make


def test_real_runs_are_read_by_task_method_and_metric_with_intervals_over_seeds(tmp_path, run):
    ends = {"grpo": [0.25, 0.27, 0.26], "bpgo": [0.24, 0.27, 0.30]}
    for method, values in ends.items():
        for seed, value in enumerate(values):
            objective = f"objective.name={method}"
            run(f"{method}-{seed}", value, objective, preset="t2i-flux-lowmem", seed=seed)
    shutil.copytree(tmp_path / "bpgo-2", tmp_path / "deeper" / "copy")  # the same run counts once
    run("tiny", 0.6, preset="t2i-tiny")  # another model
    exported = tmp_path / "bpgo-0" / "final" / "transformer"
    exported.mkdir(parents=True)
    (exported / "config.json").write_text("{}")
    runs, left_out = paper.real_runs(tmp_path)
    assert left_out == []
    assert set(runs["setting"]) == {"t2i-flux-lowmem"} and set(runs["task"]) == {"t2i"}
    table = paper.over_seeds(runs).set_index(["method", "metric"])
    for method, values in ends.items():
        mean = np.mean(values)
        half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
        found = tuple(table.loc[(method, "HPSv2"), ["mean", "low", "high", "n"]])
        assert found == pytest.approx((mean, mean - half, mean + half, 3))
        assert tuple(table.loc[(method, "PickScore"), ["mean", "n"]]) == pytest.approx((0.22, 3))
    assert tuple(table.loc[("base", "HPSv2"), ["mean", "n"]]) == (0.2, 1)


def test_real_runs_stand_beside_the_published_ones_and_ours(tmp_path, run):
    for method, value in (("grpo", 0.26), ("bpgo", 0.25)):
        for seed in (0, 1):
            objective, reward = f"objective.name={method}", value + seed / 100
            run(f"{method}-{seed}", reward, objective, preset="t2i-flux-lowmem", seed=seed)
    run("bpgo-full", 0.9)  # another setting, with fewer runs, is not pooled
    runs, _ = paper.real_runs(tmp_path)
    table = paper.beside("main", evidence.read()[0], {}, runs).set_index("line")
    row = table.loc[table["metric"] == "HPSv2", "real"]
    assert row["bpgo - grpo"] == pytest.approx((-0.01, -0.01, -0.01, 2))
    expected = {"bpgo": (0.255, 2), "grpo - base": (0.065, 2), "base": (0.2, 1)}
    for line, mean_and_n in expected.items():
        assert (row[line].mean, row[line].n) == pytest.approx(mean_and_n), line
    assert {one.n for one in table.loc[table["task"] != "t2i", "real"]} == {0}
    assert "+0.065 (+0.001 to +0.129, n = 2)" in paper.text(table.reset_index(), {})


def test_settings_are_kept_apart_and_said(tmp_path, run):
    run("a", 0.3, "evaluation.every=50", "checkpoint_every=5", "guards=false")
    run("b", 0.4, "groups=8", "iterations=200", seed=1)
    run("c", 0.5, "generator.path=/data/FLUX.1-dev", preset="t2i-flux-lowmem", seed=1)
    runs, _ = paper.real_runs(tmp_path)
    assert set(runs["setting"]) == {
        "t2i-flux",
        "t2i-flux; groups: 16 -> 8; iterations: 300 -> 200",
        "t2i-flux-lowmem",
    }
    assert set(paper.over_seeds(runs)["n"]) == {1}


def test_the_published_sweep_of_alpha_is_of_ras(tmp_path):
    for alpha in (0.1, 0.5):
        for name in ("ras", "bpgo", "grpo"):
            before = {"reward": 0.0, "video_align": 0.1}
            after = {"reward": alpha + (1 if name == "ras" else 0), "video_align": 0.1}
            given = f"objective.alpha={alpha}", f"objective.name={name}"
            finished(tmp_path / f"{name}-{alpha}", "t2v-wan2.1-1.3b", 0, before, after, *given)
    runs, _ = paper.real_runs(tmp_path)
    methods = {"base", "grpo", "ras", "bpgo", "ras alpha=0.1", "bpgo alpha=0.1"}
    assert set(runs["method"]) == methods
    table = paper.beside("alpha", evidence.read()[0], {}, runs).set_index(["metric", "line"])
    row = table["real"]["VideoCLIP-XL"]
    assert row["alpha=0.1"].mean == 1.1 and row["alpha=0.5"].mean == 1.5
    assert row["alpha=0.9"].n == 0


def test_what_does_not_count_is_left_out_with_its_reason(tmp_path, run):
    run("stopped", 0.3, iterations=200)
    run("scaled", 0.3, "reward.scale=2")
    run("proxy", 0.3, "reward={name: clip}")
    run("small", 0.3, "reward.path=tiny-reward")
    (run("cut", 0.3) / "evaluations.jsonl").write_text('{"iteration": 0, "rew')
    (run("empty", 0.3) / "evaluations.jsonl").write_text("")
    (run("lost", 0.3) / "config.json").unlink()
    runs, left_out = paper.real_runs(tmp_path)
    assert runs.empty and len(left_out) == 7
    reasons = dict(line.split(": ", 1) for line in left_out)
    for names, reason in {
        ("stopped", "empty", "cut"): "up to iteration 300",
        ("scaled", "proxy", "small"): "not trained on the paper's HPSv2",
        ("lost",): "is incomplete",
    }.items():
        assert all(reason in reasons[name] for name in names), reason


def test_held_out_metrics_count_by_name_and_scale(tmp_path, run):
    at_other_scale = "evaluation.held_out=[{name: pickscore}, {name: image_reward}]"
    run("other", 0.3, at_other_scale, seed=1)
    table = paper.real_runs(tmp_path)[0].set_index(["method", "seed", "metric"])["value"]
    assert ("bpgo", 1, "PickScore") not in table
    assert table["bpgo", 1, "ImageReward"] == 1.0


def test_a_single_held_out_metric_is_logged_under_another_key(tmp_path):
    one = "evaluation.held_out={name: pickscore, scale: 0.01, device: cuda}"
    before, after = {"reward": 0.2, "held_out": 0.21}, {"reward": 0.3, "held_out": None}
    finished(tmp_path / "one", "t2i-flux", 0, before, after, one)
    table = paper.real_runs(tmp_path)[0].set_index(["method", "seed", "metric"])["value"]
    assert table["base", -1, "PickScore"] == 0.21 and np.isnan(table["bpgo", 0, "PickScore"])


def test_without_real_runs_there_are_none(tmp_path):
    for folder in ("", tmp_path):
        runs, left_out = paper.real_runs(folder)
        assert runs.empty and list(runs) == paper.RUNS and left_out == []
        assert paper.over_seeds(runs).empty
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        paper.real_runs(tmp_path / "nowhere")
