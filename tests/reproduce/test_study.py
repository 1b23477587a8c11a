"""The study's engine: one table of runs, rewards corrupted as they say, trust from the truth, and no number lost to a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bpgo.analysis import plots
from bpgo.worlds.clips import oracle as clip_oracle
from bpgo.worlds.clips.scenes import Clip, draw_clips
from bpgo.worlds.shapes import oracle
from bpgo.worlds.shapes.captions import parse
from bpgo.worlds.shapes.scenes import Scene, Thing, all_scenes, draw
from reproduce import study, study_trainer
from reproduce.analysis import evidence

ROOT = Path(__file__).resolve().parent.parent
SMALL = """\
tasks:
  t2i: {preset: t2i-tiny, settings: {iterations: 2, evaluation.every: 1, groups: 2, group_size: 4, sampling.steps: 3, evaluation.steps: 2,
                                     evaluation.samples: 8, checkpoint_every: 1}}
experiments:
  first: {tasks: [t2i], seeds: [0], arms: {ceiling: {rule: ceiling}, noisy: {corruption: noise, rule: raw}}}
  second: {tasks: [t2i], seeds: [0, 1], grid: {mix: [0.5], rule: [ceiling, none]}}
"""


# ------------------------------------------------------------------------------------------------------ the table of runs


def test_the_table_of_runs_is_the_plans():
    rows = study.table()
    said = (ROOT / "reproduce" / "PLAN.md").read_text()
    for experiment in {row["experiment"] for row in rows}:
        assert experiment in said or f"{experiment.partition('_')[0]}_*" in said, experiment
    seeds = {}
    for row in rows:
        if row["experiment"] in ("ablation", "digits"):
            seeds.setdefault(row["task"], set()).add(row["seed"])
    assert seeds.keys() == {"t2i", "t2v", "i2v", "digits"} and all(
        len(found) >= 5 for found in seeds.values()
    )
    assert all(row["seed"] != 100 for row in rows)  # the pilots' seed


def test_experiments_that_need_the_same_run_share_it():
    rows = study.table()
    run = {
        (row["experiment"], row["arm"], row["seed"]): row["run"]
        for row in rows
        if row["task"] == "t2i"
    }
    assert (
        run["ablation", "bpgo", 0]
        == run["priors_t2i", "running_mean", 0]
        == run["alpha_kappa", "alpha=0.5 kappa=1.0", 0]
    )
    assert (
        run["ablation", "bpgo", 0]
        == run["lambda_beta", "lam=5.0 beta=0.5", 0]
        != run["ablation", "bpgo", 1]
    )
    given = {}
    for row in rows:  # and no two that differ do
        config = study.configure(
            row["preset"], {k: v for k, v in row["settings"].items() if k not in study.OURS}
        )
        ours = {
            k: v for k, v in row["settings"].items() if k in study.OURS and v not in (None, "none")
        }
        assert given.setdefault(row["run"], (config, ours)) == (config, ours)


@pytest.mark.parametrize(
    ("text", "says"),
    [("tasks: [t2x]", "unknown task 't2x': did you mean 't2i'?"), ("seed: [0]", "mean 'seeds'?")],
)
def test_a_wrong_plan_is_refused_before_anything_runs(text, says, tmp_path, capsys, monkeypatch):
    plan = tmp_path / "plan.yaml"
    key = text.partition(":")[0]
    line = ", ".join(
        [
            text,
            *(
                part
                for part in ("tasks: [t2i]", "seeds: [0]", "arms: {a: {}}")
                if not part.startswith(f"{key}:")
            ),
        ]
    )
    plan.write_text(
        f"tasks: {{t2i: {{preset: t2i-tiny, settings: {{}}}}}}\nexperiments: {{a: {{{line}}}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert study.main(["list", "--plan", str(plan), "--root", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    assert study.main(["list", "ablatoin", "--root", str(tmp_path)]) == 2
    assert "did you mean 'ablation'?" in capsys.readouterr().err


def test_comments_and_docstrings_do_not_make_results_old(tmp_path):
    def digest(text):
        (tmp_path / "bpgo" / "objective.py").write_text(text)
        return evidence.code_digest(tmp_path)

    for folder in ("bpgo", "reproduce"):
        (tmp_path / folder).mkdir()
    (tmp_path / "reproduce" / "study_trainer.py").write_text("")
    plain = digest('def f(x):\n    """One."""\n    return x\n')
    assert (
        digest('def f(x):\n    """Another."""\n    return x  # said\n')
        == plain
        != digest("def f(x):\n    return 2 * x\n")
    )


# ------------------------------------------------------------------------------------------------------------- the truth


def test_the_finer_truth_counts_the_attributes_that_are_right():
    scene = Scene((Thing("circle", "red", "small", "left"),))
    picture = draw([scene], torch.zeros(1, 2, 2)).expand(6, -1, -1, -1)
    said = [
        "a small red circle on the left",
        "a small red square on the left",
        "a large blue circle",
        "a shape",
        "a red circle above a blue box",
        "a green thing",
    ]
    assert oracle.share_right(picture, said).tolist() == pytest.approx([1, 3 / 4, 1 / 3, 1, 0, 0])
    pictures = draw(all_scenes(1)[::17], torch.zeros(len(all_scenes(1)[::17]), 2, 2))
    for prompt in said:
        right = oracle.accuracy(pictures, [prompt] * len(pictures)) == 1
        assert torch.equal(oracle.share_right(pictures, [prompt] * len(pictures)) == 1, right)
    assert oracle.share_right(torch.full((1, 3, 32, 32), 0.5), ["a shape"]).tolist() == [0.0]


def test_so_does_that_of_clips():
    videos = draw_clips([Clip("square", "blue", "left", "fast")], torch.zeros(1, 2))
    said = {
        "a blue square moves left fast": 1,
        "a red square moves left fast": 3 / 4,
        "a red circle does not move": 0,
        "a blue thing is in motion": 1,
        "a red thing is in motion": 1 / 2,
    }
    for prompt, share in said.items():
        assert clip_oracle.share_right(videos, [prompt]).tolist() == pytest.approx([share]), prompt


# ---------------------------------------------------------------------------------------------------- corrupted rewards


@pytest.fixture(scope="module")
def scored():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4000, 3, 2, 2, generator=generator)
    return (
        study_trainer.MIDDLE + study_trainer.SPREAD * torch.randn(4000, generator=generator),
        pixels,
        [i % 2 == 0 for i in range(4000)],
    )


@pytest.mark.parametrize("name", study_trainer.CORRUPTIONS)
def test_a_corruption_is_a_function_of_the_sample(name, scored):
    """So a resumed run, another micro-batch and another order see the same reward."""
    values, pixels, ambiguous = scored
    corrupt = study_trainer.CORRUPTIONS[name]
    whole = corrupt(values[:64], pixels[:64], ambiguous[:64], 2.0)
    assert whole.isfinite().all() and not torch.equal(whole, values[:64])
    turned = corrupt(values[:64].flip(0), pixels[:64].flip(0), ambiguous[:64][::-1], 2.0).flip(0)
    alone = torch.cat(
        [
            corrupt(values[i : i + 1], pixels[i : i + 1], ambiguous[i : i + 1], 2.0)
            for i in range(64)
        ]
    )
    torch.testing.assert_close(turned, whole, rtol=0, atol=0)
    torch.testing.assert_close(alone, whole, rtol=0, atol=0)


def test_corruptions_are_what_their_names_say(scored):
    values, pixels, ambiguous = scored
    spread, middle, open_ones = study_trainer.SPREAD, study_trainer.MIDDLE, torch.tensor(ambiguous)
    found = {
        name: corrupt(values, pixels, ambiguous, 2.0)
        for name, corrupt in study_trainer.CORRUPTIONS.items()
    }
    added = {name: (after - values) / spread for name, after in found.items()}
    assert added["noise"].std().item() == pytest.approx(2, rel=0.05) and added[
        "noise"
    ].mean().item() == pytest.approx(0, abs=0.1)
    assert torch.equal(found["noise_ambiguous"][~open_ones], values[~open_ones])
    assert added["noise_ambiguous"][open_ones].std().item() == pytest.approx(2, rel=0.05)
    tails = added["heavy_tails"].abs() / 0.5  # |Cauchy| has its median at 1
    assert tails.median().item() == pytest.approx(1, rel=0.1) and tails.max() > 30
    turned = found["flipped"] != values
    assert turned.float().mean().item() == pytest.approx(0.2, abs=0.02)
    torch.testing.assert_close(found["flipped"][turned], 2 * middle - values[turned])
    torch.testing.assert_close(found["stretched"], middle + 10 * (values - middle))
    torch.testing.assert_close(found["shifted"], values - 4)
    torch.testing.assert_close(found["saturated"], values.clamp(max=middle))
    red, green = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    red[:, 0], green[:, 1] = 1.0, 1.0
    likes = study_trainer.CORRUPTIONS["biased"]
    assert likes(values[:1], red, [False], 2.0) > values[:1] and torch.equal(
        likes(values[:1], green, [False], 2.0), values[:1]
    )


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_a_mix_has_the_share_it_says(share):
    prompts = study_trainer.mixed("prompts/train.jsonl", share)
    left_open = [any(v is None for v in parse(p).attributes.values()) for p in prompts]
    assert len(prompts) == study_trainer.MIXED and np.mean(left_open) == share


# -------------------------------------------------------------------------------------------------------- all the runs


def start(root, *words):
    (root / "plan.yaml").write_text(SMALL)
    command = [
        sys.executable,
        ROOT / "reproduce" / "study.py",
        "all",
        "--plan",
        root / "plan.yaml",
        "--root",
        root,
        *words,
    ]
    return subprocess.Popen(
        list(map(str, command)),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def results(root):
    folder = root / "reproduce" / "results" / "study"
    records = [json.loads(place.read_text()) for place in sorted((folder / "runs").glob("*.json"))]
    for record in records:
        record.pop("seconds")
    return (folder / "table.csv").read_text(), (folder / "runs.csv").read_text(), records


@pytest.mark.slow
def test_a_study_killed_three_times_ends_as_the_undisturbed_one(tmp_path):
    """SIGKILL to the driver and all that it started, whatever they do at that moment; then the same command, without flags."""
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    for folder in (calm, disturbed):
        folder.mkdir()
    process = start(calm)
    assert "6 of 6 runs are there" in process.communicate()[0] and process.returncode == 0
    for seconds in (20, 40, 60):
        process = start(disturbed)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = start(disturbed)
    assert "6 of 6 runs are there" in process.communicate()[0] and process.returncode == 0
    assert results(disturbed) == results(calm)
    table, _, records = results(calm)
    assert table.count("\n") == 1 + 6 * 3 and {len(record["groups"]) for record in records} == {3}
    for record in records:
        if record["settings"].get("rule") == "ceiling":
            assert (
                0.5 <= min(record["curves"]["weight_min"])
                and max(record["curves"]["weight_max"]) <= 1.5
            )


def test_a_run_by_itself_leaves_its_record_and_comes_again(tmp_path, monkeypatch, capsys):
    """A ceiling run: weights 1 + alpha times agreement; groups measured against the truth before, between and after."""
    (tmp_path / "plan.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    row = next(row for row in study.table(tmp_path / "plan.yaml") if row["arm"] == "ceiling")
    assert study.main(["run", row["run"], "--plan", "plan.yaml", "--root", str(tmp_path)]) == 0
    assert study.main(["tables", "--plan", "plan.yaml", "--root", str(tmp_path)]) == 0
    table, listed, [record] = results(tmp_path)
    assert record["run"] == row["run"] and record["code"]["digest"] == evidence.code_digest()
    assert (
        record["settings"]["rule"] == "ceiling"
        and row["run"] in listed
        and table.count("\n") == 1 + 3
    )
    assert [0 <= entry["accuracy_specified"] <= 1 for entry in record["evaluations"]] == [True] * 3
    assert (
        list(record["groups"]) == ["0", "1", "2"] and len(record["groups"]["0"]["agreement"]) == 96
    )
    for kept in (record["curves"], record["groups"]["2"]):
        assert all(v is None or np.isfinite(v) for values in kept.values() for v in values)
    assert 0.5 <= min(record["curves"]["weight_min"]) <= max(record["curves"]["weight_max"]) <= 1.5
    assert not (
        tmp_path / "runs" / "study" / row["run"]
    ).exists()  # only what the record needs is kept
    given = ["--plan", "plan.yaml", "--root", str(tmp_path)]
    monkeypatch.setenv(
        "BPGO_CACHE", str(tmp_path / "cache")
    )  # and put back afterwards, which `again` does not
    record["curves"]["reward"][1] = 0.123
    (tmp_path / "reproduce" / "results" / "study" / "runs" / f"{row['run']}.json").write_text(
        json.dumps(record)
    )
    assert study.main(["again", row["run"], *given]) == 1
    said = capsys.readouterr().out
    assert f"{row['run']}: 1 of " in said and "such as curves/reward/1: 0.123 before" in said, (
        "and all others came again"
    )
    other = next(row for row in study.table(tmp_path / "plan.yaml") if row["arm"] == "noisy")
    assert (
        study.main(["again", other["run"], *given]) == 2
        and "has no record to compare with" in capsys.readouterr().err
    )


# ------------------------------------------------------------------------------------------------------------- evidence


def test_evidence_pairs_by_seed_and_says_what_is_missing(tmp_path):
    (tmp_path / "runs").mkdir()
    lines, values = (
        ["experiment,task,arm,seed,run"],
        {"grpo": [0.1, 0.2, 0.6], "bpgo": [0.3, None, 0.7]},
    )
    for arm, found in values.items():
        for seed, value in enumerate(found):
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
    plan, records = evidence.read(tmp_path)
    assert evidence.state(plan, records).startswith(
        "5 of 6 planned runs are recorded; 5 of them by other code"
    )
    table = evidence.final(plan, records, "a", "t2i", "x")
    assert list(table) == ["grpo", "bpgo"] and table["bpgo"].isna().tolist() == [False, True, False]
    found = evidence.compare(table, "grpo")
    assert found.loc["bpgo", "n"] == 2 and found.loc["bpgo", "- grpo"] == pytest.approx(
        0.15
    )  # of seeds 0 and 2
    assert np.isnan(found.loc["grpo", "p"]) and evidence.before(records, "t2i", "x") == 0.05
    assert evidence.curves(plan, records, "a", "t2i", "reward")["bpgo"].tolist() == [
        [0.0, 0.3],
        [0.0, 0.7],
    ]
    assert evidence.less(plan, records, "a", "t2i", "reward", "bpgo", "grpo") == pytest.approx(
        np.array([[0, 0.2], [0, 0.1]])
    )
    assert evidence.final(plan, records, "a", "t2i", "y").isna().all(axis=None)
    with pytest.raises(ValueError, match="no run of b on t2i is planned"):
        evidence.final(plan, records, "b", "t2i", "x")
    assert evidence.so_far(plan, {}, "a", "t2i", "x").isna().all(axis=None)
    with pytest.raises(ValueError, match="no run of b on t2i is planned"):
        evidence.so_far(plan, {}, "b", "t2i", "x")
    with pytest.raises(ValueError, match="no run of a on t2i is recorded yet"):
        evidence.final(plan, {}, "a", "t2i", "x")
    with pytest.raises(FileNotFoundError, match="run `make study`"):
        evidence.read(tmp_path / "none")


def test_a_grid_has_its_settings_as_rows_and_columns_and_marks_what_is_level_with_the_best():
    cells = {
        "a=1 b=0.5": [0.1, 0.2, 0.15],
        "a=1 b=2.0": [0.9, 1.0, 0.94],
        "a=3 b=0.5": [0.91, 0.98, 0.96],
        "a=3 b=2.0": [np.nan] * 3,
    }
    mean, level = evidence.grid(pd.DataFrame(cells))
    assert (mean.index.name, list(mean.index), mean.columns.name, list(mean.columns)) == (
        "a",
        ["1", "3"],
        "b",
        ["0.5", "2.0"],
    )
    assert mean.loc["1", "0.5"] == pytest.approx(0.15) and np.isnan(mean.loc["3", "2.0"])
    assert level.to_numpy().tolist() == [[False, True], [True, False]]
    empty, none = evidence.grid(pd.DataFrame(cells) * np.nan)
    assert empty.isna().all(axis=None) and not none.any(axis=None)
    with pytest.raises(ValueError, match="two settings an arm"):
        evidence.grid(pd.DataFrame({"grpo": [0.1]}))


def test_a_heat_map_writes_every_number_frames_what_is_marked_and_says_what_was_not_run():
    figure, [[ax]] = plots.new_figure()
    plots.heat_map(
        ax,
        pd.DataFrame([[0.25, np.nan]], index=["1"], columns=["x", "y"]),
        np.array([[True, False]]),
    )
    assert [text.get_text() for text in ax.texts] == ["0.25", "not run"] and len(ax.patches) == 1
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y"]
    plots.heat_map(ax, pd.DataFrame([[np.nan]]), np.array([[False]]))
    plots.plt.close(figure)


def test_scores_to_a_target_are_counted_by_seed():
    """GRPO ends at 1.0: an arm that is there in half the time, and one that never is; curves of 20, means of 2."""
    rise = np.minimum(np.arange(1, 21) / 20, 1.0)
    curves = {"grpo": rise, "fast": np.minimum(2 * rise, 1.0), "never": rise / 2}
    plan = pd.DataFrame(
        [
            {"experiment": "a", "task": "t2i", "arm": arm, "seed": s, "run": f"{arm}-{s}"}
            for arm in curves
            for s in (0, 1)
        ]
    )
    records = {
        f"{arm}-{s}": {"curves": {"reward": curve.tolist()}}
        for arm, curve in curves.items()
        for s in (0, 1)
    }
    del records["grpo-1"]
    table = evidence.reaching(plan, records, "a", "t2i")
    assert (
        list(table.index) == [0]
        and table.loc[0, "grpo"] == 20
        and table.loc[0, "fast"] == 11
        and np.isnan(table.loc[0, "never"])
    )
