"""Groups of the study's records, and how well priors rank them, against scipy."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu, spearmanr

from bpgo.config import read_config
from bpgo.files import SHIPPED
from bpgo.objective import group_advantages, ras_weights
from bpgo.priors import Constant, EmpiricalBayes, RunningMean
from bpgo.prompt_files import read_prompts
from bpgo.prompts import pixels_of
from bpgo.rewards import load_reward
from reproduce.analysis import ambiguity


def recorded(task, seed, stages=3, **changes):
    """A record of an `ambiguity` run with random numbers.

    The agreement of its groups follows their mean reward with noise. One group in five is flat.
    """
    n, groups = len(read_prompts(read_config(f"{task}-tiny").evaluation.prompts)), {}
    for stage in range(stages):
        rng = np.random.default_rng([seed, stage])
        mean = rng.normal(size=n)
        agreement = np.where(np.arange(n) % 5 == 0, 0, np.tanh(mean + rng.normal(size=n)))
        columns = {
            "reward_mean": mean,
            "reward_std": rng.random(n),
            "truth_mean": rng.random(n),
            "agreement": agreement,
            "signal": agreement**2,
            "judges_agree": rng.random(n),
        }
        groups[str(25 * stage)] = {name: values.tolist() for name, values in columns.items()}
    return {"run": f"{task}-{seed}", "settings": {}, "groups": groups} | changes


def study(*records):
    """A plan of three seeds of each task, and these records of it."""
    rows = []
    for experiment, task, seed in itertools.product(
        ("ablation", "ambiguity"), ambiguity.TASKS, range(3)
    ):
        row = {"experiment": experiment, "task": task, "arm": "grpo", "seed": seed}
        rows.append(row | {"run": f"{task}-{seed}"})
    return pd.DataFrame(rows), {record["run"]: json.loads(json.dumps(record)) for record in records}


def test_a_row_for_each_group_with_its_deviation_from_each_prior():
    record = recorded("t2i", 1)
    found = ambiguity.groups(*study(record))
    file = SHIPPED / "prompts/evaluation.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(found) == 3 * 96 and found["seed"].unique().tolist() == [1]
    assert found["iteration"].unique().tolist() == [0, 25, 50]
    start = record["groups"]["0"]["reward_mean"]
    for stage, part in found.groupby("stage"):
        groups = record["groups"][str(25 * stage)]
        assert part["prompt"].tolist() == [row["prompt"] for row in rows]
        assert part["bits"].tolist() == [row["bits"] for row in rows]
        assert part["mean reward"].tolist() == groups["reward_mean"]
        assert part["reward_mean"].tolist() == groups["reward_mean"]
        assert part["flat"].tolist() == [i % 5 == 0 for i in range(96)]
        since_start = np.subtract(groups["reward_mean"], start) if stage else np.full(96, np.nan)
        np.testing.assert_array_equal(part["SFT per prompt"].astype(float), since_start)
        assert part["first frame"].isna().all()
        assert part["spread"].tolist() == groups["reward_std"]
        assert part["two rewards agree"].tolist() == groups["judges_agree"]


def test_the_first_frame_is_scored_as_a_video_that_stays_still():
    found = ambiguity.groups(*study(recorded("i2v", 0, stages=1))).iloc[:3]
    prompts = read_prompts("prompts/image-clip-evaluation.jsonl")[:3]
    still = pixels_of([prompt.image for prompt in prompts])[:, None].repeat(1, 9, 1, 1, 1)
    expected = load_reward("video_clip_xl", "tiny-video-reward")(still, prompts).numpy()
    prior = (found["reward_mean"] - found["first frame"]).astype(float)
    np.testing.assert_allclose(prior, expected, atol=1e-5)
    assert found["prompt"].tolist() == [prompt.key for prompt in prompts]


def test_no_records_give_no_rows():
    empty = ambiguity.groups(*study())
    assert empty.empty and {"prompt", *ambiguity.DEVIATIONS, *ambiguity.OTHERS} <= set(empty)
    assert ambiguity.reliability(empty).empty and "rho" in ambiguity.reliability(empty)


def test_a_record_of_other_prompts_is_refused():
    record = recorded("t2i", 0)
    groups = record["groups"]["25"]
    record["groups"]["25"] = {name: values[:50] for name, values in groups.items()}
    with pytest.raises(
        ValueError, match=r"t2i-0 has 50 groups, but prompts/evaluation\.jsonl 96 prompts"
    ):
        ambiguity.groups(*study(record))


def test_reliability_is_that_of_scipy_for_all_groups_and_without_the_flat():
    found = ambiguity.groups(*study(recorded("t2i", 0, 2), recorded("t2i", 2, 1)))
    table = ambiguity.reliability(found, ("mean reward", "SFT per prompt", "spread"))
    # Before training there is no SFT per prompt.
    assert table.groupby(["task", "stage"]).size().tolist() == [4, 6]
    for _, row in table.iterrows():
        part = found[(found["task"] == row["task"]) & (found["stage"] == row["stage"])]
        part = part if row["groups"] == "all" else part[part["agreement"] != 0]
        score, truth = part[row["signal"]].to_numpy(float), part["agreement"].to_numpy(float)
        above = truth > np.median(truth)
        area = mannwhitneyu(score[above], score[~above])[0] / above.sum() / (~above).sum()
        assert row["rho"] == pytest.approx(spearmanr(score, truth)[0])
        assert row["auroc"] == pytest.approx(area)
        assert row["n"] == part["prompt"].nunique() and row["seeds"] == part["seed"].nunique()
        assert row["low"] < row["rho"] < row["high"] and row["seed_low"] <= row["rho"] + 0.1
    not_flat = table[(table["signal"] == "mean reward") & (table["groups"] == "not flat")]
    assert len(not_flat) == 2 and (not_flat["low"] > 0.3).all()  # the agreement follows the mean
    assert (table[table["signal"] == "spread"]["rho"].abs() < 0.3).all()  # and not the spread


def test_seeds_that_say_the_same_do_not_narrow_an_interval():
    one, again = recorded("t2i", 0, 1), recorded("t2i", 0, 1, run="t2i-1")
    columns = ["rho", "low", "high", "auroc", "auroc_low", "auroc_high", "n"]
    alone, twice = (
        ambiguity.reliability(ambiguity.groups(*study(*records)), ["mean reward"])[columns]
        for records in ([one], [one, again])
    )
    np.testing.assert_allclose(alone, twice, atol=1e-12)


def test_priors_of_one_level_rank_groups_as_their_means_do():
    generator = torch.Generator().manual_seed(0)
    rewards = 0.6 + 0.1 * torch.randn(40, 12, generator=generator, dtype=torch.float64)
    running, hierarchy = RunningMean(), EmpiricalBayes()
    running.update(rewards + 0.3)
    hierarchy.update(rewards - 0.1 + 0.1 * torch.arange(40)[:, None] / 40)
    for prior in (Constant(0.35), Constant(0.8), running, hierarchy):
        weights = ras_weights(rewards, prior([], rewards), 0.5, prior.sharpness(rewards) or 10.0)
        assert weights.argsort().tolist() == rewards.mean(1).argsort().tolist()
    norms = group_advantages(rewards).norm(dim=1)
    assert norms.tolist() == pytest.approx([np.sqrt(11)] * 40)
