"""What a reward says of ambiguous prompts, against the oracle, the world's own count and scipy."""

import itertools
import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu, spearmanr

from bpgo.config import read_config
from bpgo.files import SHIPPED
from bpgo.objective import group_advantages, ras_weights
from bpgo.priors import Constant, EmpiricalBayes, RunningMean
from bpgo.prompts import pixels_of, read_prompts
from bpgo.rewards import load_reward
from bpgo.worlds.clips import captions as clips_captions
from bpgo.worlds.clips.scenes import MOVING
from bpgo.worlds.shapes import captions, scenes
from reproduce.analysis import ambiguity

SIZE = 6


def worlds():
    return [pytest.param(ambiguity.world(task), id=task) for task in ambiguity.TASKS]


# ------------------------------------------------------------------------------------------------------- live, on drawings


@pytest.mark.parametrize("of", worlds())
def test_bits_are_those_of_the_caption(of):
    cases = list(ambiguity.omissions(of, 4, 2))
    assert [c.open for c in cases] == [0, 1, 2, 3, 4] * 4
    for c in cases:
        given = {"image_of": of.subjects[c.subject]} if of.given_image else {}
        assert c.bits == pytest.approx(of.captions.prompt_bits(c.caption, **given))
    assert all(c.bits == 0 for c in cases if c.open == 0)


@pytest.mark.parametrize("of", worlds())
def test_the_oracle_finds_right_what_is_right_and_one_thing_wrong_in_a_near_miss(of):
    for c in ambiguity.omissions(of, 1, SIZE, seed=2):
        share = of.oracle.share_right(c.pictures, [c.caption] * len(c.pictures)).numpy()
        assert (share[c.right] == 1).all() and c.right.sum() == SIZE
        attributes = of.captions.parse(c.caption).attributes
        named = [value for value in attributes.values() if value not in (None, MOVING)]
        assert share[~c.right].tolist() == pytest.approx(
            [1 - 1 / max(1, len(named))] * (~c.right).sum(), abs=0.2
        )
        assert (share[~c.right] < 1).all()
        assert c.open == 4 or of.given_image or (~c.right).sum() == SIZE


@pytest.mark.parametrize("of", worlds())
def test_other_words_say_the_same_of_the_same_pictures(of):
    cases = list(ambiguity.wordings(of, 2, SIZE))
    assert len({c.caption for c in cases}) == len(cases) == 20
    for first, others in ((cases[0], cases[1:10]), (cases[10], cases[11:])):
        for c in others:
            assert (
                of.captions.parse(c.caption)
                == of.captions.parse(first.caption)
                == of.subjects[c.subject]
            )
            assert torch.equal(c.pictures, first.pictures) and c.bits == 0
    counts = [
        (ambiguity.turned(c.caption), ambiguity.synonyms(c.caption, of.captions))
        for c in cases[:10]
    ]
    assert counts == [(t, k) for t in (False, True) for k in range(5)]
    usual = next(ambiguity.omissions(of, 2, SIZE))
    assert usual.caption == cases[0].caption and torch.equal(usual.pictures, cases[0].pictures)


@pytest.mark.parametrize(
    "language, caption, count",
    [
        (captions, "a large azure shape on the right", 1),
        (captions, "down low a big ivory thing", 4),
        (captions, "a red circle", 0),
        (captions, "a red disc beside and left of a azure box", 4),
        (captions, "a shape with a thing", 2),
        (clips_captions, "fast a azure plus rises", 3),
        (clips_captions, "it moves gently", 1),
        (clips_captions, "a thing is in motion", 2),
        (clips_captions, "a red cross moves left slowly", 0),
        (clips_captions, "a red cross moves slowly", 0),
    ],
)
def test_synonyms_are_counted_by_phrase(language, caption, count):
    assert ambiguity.synonyms(caption, language) == count


def test_synonyms_are_the_second_words_of_the_world_in_each_of_its_wordings():
    for scene in random.Random(0).sample(scenes.all_scenes(1), 5):
        values = [captions.WORDS[kind][value] for kind, value in scene.attributes.items()]
        for said in captions.wordings(scene):
            assert ambiguity.synonyms(said, captions) == sum(second in said for _, second in values)


@pytest.mark.parametrize("of", worlds())
def test_a_reward_that_is_the_truth_is_all_signal(of):
    exact = lambda pixels, prompts: (of.oracle.share_right(pixels, prompts) == 1).float()
    found = ambiguity.measure(of, ambiguity.omissions(of, 1, SIZE), [exact, exact])
    some, nothing = found[found["gap"].notna()], found[found["gap"].isna()]
    assert len(some) >= 3 and some["signal"].tolist() == pytest.approx([1] * len(some))
    assert some["disagreement"].tolist() == pytest.approx([0] * len(some), abs=1e-12)
    assert (some["error"] == 0).all() and (some["gap"] == 1).all() and (found["spread"] == 0).all()
    assert nothing["signal"].isna().all()  # no near miss, so a reward without variance
    assert found["disagreement_right"].isna().all()


def test_a_reward_of_noise_has_the_floor_and_agrees_by_chance():
    of, generator = ambiguity.world("t2i"), torch.Generator().manual_seed(0)
    noise = lambda pixels, prompts: torch.randn(len(prompts), generator=generator)
    one = ambiguity.case(of, 7, {"colour"}, SIZE)
    found = ambiguity.measure(of, [one] * 400, [noise, noise])
    assert found["signal"].mean() == pytest.approx(1 / (2 * SIZE - 1), rel=0.2)
    assert found["error"].mean() == pytest.approx(0.5, abs=0.03)
    assert (
        found["disagreement"].mean()
        == pytest.approx(1, abs=0.05)
        == found["disagreement_right"].mean()
    )
    assert found["spread"].mean() == pytest.approx(0.95, abs=0.05)  # of 6 normal draws
    assert ambiguity.mixed(found, SIZE).groupby("wrong")["signal"].mean()[3] == pytest.approx(
        1 / (SIZE - 1), rel=0.2
    )


def test_measures_of_one_case_are_those_of_scipy():
    of = ambiguity.world("t2i")
    c, rewards = ambiguity.case(of, 30, {"size"}, SIZE), ambiguity.rewards_of("t2i")
    row = ambiguity.measure(of, [c], rewards).iloc[0]
    named = ("clip", "tiny-reward"), ("image_reward", "tiny-held-out")
    first, other = (load_reward(*name)(c.pictures, [c.caption] * 12).numpy() for name in named)
    np.testing.assert_allclose(row["rewards"], first, rtol=1e-5)
    assert row["disagreement"] == pytest.approx(1 - spearmanr(first, other)[0])
    assert row["disagreement_right"] == pytest.approx(1 - spearmanr(first[:6], other[:6])[0])
    assert row["error"] == pytest.approx(mannwhitneyu(first[6:], first[:6])[0] / 36)
    assert row["signal"] == pytest.approx(np.corrcoef(first, c.right)[0, 1] ** 2, rel=1e-4)


def test_groups_composed_of_right_ones_and_near_misses():
    measured = pd.DataFrame(
        {"rewards": [np.array([1.0] * 4 + [0.0] * 4), np.ones(4)]}
    )  # the second has no near miss
    found = ambiguity.mixed(measured, 4)
    assert found["wrong"].tolist() == [0, 1, 2, 3, 4] and found["mean"].tolist() == [
        1,
        0.75,
        0.5,
        0.25,
        0,
    ]
    assert found["signal"].isna().tolist() == [True, False, False, False, True]
    assert found["signal"][1:4].tolist() == pytest.approx([1, 1, 1])
    assert found["std"].tolist() == pytest.approx(
        [np.std([0] * k + [1] * (4 - k), ddof=1) for k in range(5)]
    )


def test_spread_over_wordings_and_over_pictures():
    said = pd.DataFrame(
        {
            "subject": [3, 3, 5, 5],
            "rewards": [np.array(r) for r in ([0, 2, 9], [0, 4, 9], [1, 1, 9], [2, 2, 9])],
        }
    )
    found = ambiguity.over_wordings(said, 2)  # of the first two pictures of each
    half = np.sqrt(0.5)
    assert found.loc[3].tolist() == pytest.approx(
        [(0 + 2 * half) / 2, half, (2 * half + 4 * half) / 2]
    )
    assert found.loc[5].tolist() == pytest.approx([half, half, 0])


def test_another_task_is_named():
    with pytest.raises(ValueError, match="unknown task 't2x': there are t2i"):
        ambiguity.world("t2x")


# -------------------------------------------------------------------------------------------------------------- of records


def made(task, seed, stages=3, **changes):
    """A record of an `ambiguity` run with drawn numbers: its groups' agreement follows the mean reward with noise, one in five is flat."""
    n, found = len(read_prompts(read_config(f"{task}-tiny").evaluation.prompts)), {}
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
        found[str(25 * stage)] = {name: values.tolist() for name, values in columns.items()}
    return {"run": f"{task}-{seed}", "settings": {}, "groups": found} | changes


def study(*kept):
    """A plan of three seeds a task, and these records of it."""
    planned = itertools.product(("ablation", "ambiguity"), ambiguity.TASKS, range(3))
    rows = [
        {"experiment": e, "task": t, "arm": "grpo", "seed": s, "run": f"{t}-{s}"}
        for e, t, s in planned
    ]
    return pd.DataFrame(rows), {record["run"]: json.loads(json.dumps(record)) for record in kept}


def test_a_row_for_each_group_with_its_deviation_from_each_prior():
    record = made("t2i", 1)
    found = ambiguity.groups(*study(record))
    rows = [
        json.loads(line) for line in (SHIPPED / "prompts/evaluation.jsonl").read_text().splitlines()
    ]
    assert (
        len(found) == 3 * 96
        and found["seed"].unique().tolist() == [1]
        and found["iteration"].unique().tolist() == [0, 25, 50]
    )
    for stage, part in found.groupby("stage"):
        groups = record["groups"][str(25 * stage)]
        assert part["prompt"].tolist() == [r["prompt"] for r in rows] and part["bits"].tolist() == [
            r["bits"] for r in rows
        ]
        assert part["mean reward"].tolist() == part["reward_mean"].tolist() == groups["reward_mean"]
        assert part["flat"].tolist() == [i % 5 == 0 for i in range(96)]
        change = (
            np.subtract(groups["reward_mean"], record["groups"]["0"]["reward_mean"])
            if stage
            else np.full(96, np.nan)
        )
        np.testing.assert_array_equal(part["SFT per prompt"].astype(float), change)
        assert part["first frame"].isna().all()
        assert (
            part["spread"].tolist() == groups["reward_std"]
            and part["two rewards agree"].tolist() == groups["judges_agree"]
        )


def test_the_first_frame_is_scored_as_a_video_that_stays_still():
    record = made("i2v", 0, stages=1)
    found = ambiguity.groups(*study(record)).iloc[:3]
    prompts = read_prompts("prompts/image-clip-evaluation.jsonl")[:3]
    still = pixels_of([p.image for p in prompts])[:, None].repeat(1, 9, 1, 1, 1)
    expected = load_reward("video_clip_xl", "tiny-video-reward")(still, prompts).numpy()
    np.testing.assert_allclose(
        (found["reward_mean"] - found["first frame"]).astype(float), expected, atol=1e-5
    )
    assert found["prompt"].tolist() == [p.key for p in prompts]


def test_no_records_give_no_rows_and_others_prompts_are_refused():
    empty = ambiguity.groups(*study())
    assert empty.empty and {"prompt", *ambiguity.DEVIATIONS, *ambiguity.OTHERS} <= set(empty)
    assert ambiguity.reliability(empty).empty and "rho" in ambiguity.reliability(empty)
    record = made("t2i", 0)
    record["groups"]["25"] = {name: values[:50] for name, values in record["groups"]["25"].items()}
    with pytest.raises(
        ValueError, match=r"t2i-0 has 50 groups, but prompts/evaluation\.jsonl 96 prompts"
    ):
        ambiguity.groups(*study(record))


def test_reliability_is_that_of_scipy_for_all_groups_and_without_the_flat():
    found = ambiguity.groups(*study(made("t2i", 0, 2), made("t2i", 2, 1)))
    table = ambiguity.reliability(found, ("mean reward", "SFT per prompt", "spread"))
    assert table.groupby(["task", "stage"]).size().tolist() == [
        4,
        6,
    ]  # no SFT per prompt before training
    for _, row in table.iterrows():
        part = found[(found["task"] == row["task"]) & (found["stage"] == row["stage"])]
        part = part if row["groups"] == "all" else part[part["agreement"] != 0]
        score, truth = part[row["signal"]].to_numpy(float), part["agreement"].to_numpy(float)
        above = truth > np.median(truth)
        assert row["rho"] == pytest.approx(spearmanr(score, truth)[0])
        assert row["auroc"] == pytest.approx(
            mannwhitneyu(score[above], score[~above])[0] / above.sum() / (~above).sum()
        )
        assert row["n"] == part["prompt"].nunique() and row["seeds"] == part["seed"].nunique()
        assert row["low"] < row["rho"] < row["high"] and row["seed_low"] <= row["rho"] + 0.1
    level = table[(table["signal"] == "mean reward") & (table["groups"] == "not flat")]
    assert (level["low"] > 0.3).all()  # the made-up agreement follows the mean
    assert (table[table["signal"] == "spread"]["rho"].abs() < 0.3).all()  # and not the spread


def test_seeds_that_say_the_same_do_not_narrow_an_interval():
    one, again = made("t2i", 0, 1), made("t2i", 0, 1, run="t2i-1")
    columns = ["rho", "low", "high", "auroc", "auroc_low", "auroc_high", "n"]
    alone, twice = (
        ambiguity.reliability(ambiguity.groups(*study(*kept)), ["mean reward"])[columns]
        for kept in ([one], [one, again])
    )
    np.testing.assert_allclose(alone, twice, atol=1e-12)


def test_priors_of_one_level_rank_groups_as_their_means_do():
    rewards = 0.6 + 0.1 * torch.randn(
        40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    running, hierarchy = RunningMean(), EmpiricalBayes()
    running.update(rewards + 0.3)
    hierarchy.update(rewards - 0.1 + 0.1 * torch.arange(40)[:, None] / 40)
    for prior in (Constant(0.35), Constant(0.8), running, hierarchy):
        weights = ras_weights(rewards, prior([], rewards), 0.5, prior.sharpness(rewards) or 10.0)
        assert weights.argsort().tolist() == rewards.mean(1).argsort().tolist()
    assert group_advantages(rewards).norm(dim=1).tolist() == pytest.approx([np.sqrt(11)] * 40)
