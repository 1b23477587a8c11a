"""A reward on drawings of ambiguous prompts, against the oracle, the world's counts and scipy."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu, spearmanr

from bpgo.rewards import load_reward
from bpgo.worlds.clips import captions as clips_captions
from bpgo.worlds.clips.scenes import MOVING
from bpgo.worlds.shapes import captions, scenes
from reproduce.analysis import ambiguity

SIZE = 6


@pytest.fixture(params=ambiguity.TASKS)
def world(request):
    return ambiguity.world(request.param)


# ---------------------------------------------------------------------------------- the drawings


def test_bits_are_those_of_the_caption(world):
    cases = list(ambiguity.omissions(world, 4, 2))
    assert [case.open for case in cases] == [0, 1, 2, 3, 4] * 4
    for case in cases:
        given = {"image_of": world.subjects[case.subject]} if world.given_image else {}
        assert case.bits == pytest.approx(world.captions.prompt_bits(case.caption, **given))
        assert case.open > 0 or case.bits == 0


def test_the_oracle_finds_right_what_is_right_and_one_thing_wrong_in_a_near_miss(world):
    cases = list(ambiguity.omissions(world, 1, SIZE, seed=2))
    assert len(cases) == 5
    for case in cases:
        share = world.oracle.share_right(case.pictures, [case.caption] * len(case.pictures)).numpy()
        assert case.right.sum() == SIZE and (share[case.right] == 1).all()
        attributes = world.captions.parse(case.caption).attributes
        named = [value for value in attributes.values() if value not in (None, MOVING)]
        near_misses = share[~case.right]
        assert near_misses == pytest.approx(1 - 1 / max(1, len(named)), abs=0.2)
        assert (near_misses < 1).all()
        if case.open < 4 and not world.given_image:
            assert len(near_misses) == SIZE


def test_other_words_say_the_same_of_the_same_drawings(world):
    cases = list(ambiguity.wordings(world, 2, SIZE))
    assert len({case.caption for case in cases}) == len(cases) == 20
    for of_subject in (cases[:10], cases[10:]):
        for case in of_subject:
            assert world.captions.parse(case.caption) == world.subjects[case.subject]
            assert case.subject == of_subject[0].subject and case.bits == 0
            assert torch.equal(case.pictures, of_subject[0].pictures)
    kinds = []
    for case in cases[:10]:
        count = ambiguity.synonyms(case.caption, world.captions)
        kinds.append((ambiguity.turned(case.caption), count))
    assert kinds == [(turned, count) for turned in (False, True) for count in range(5)]
    usual = next(ambiguity.omissions(world, 2, SIZE))
    assert usual.caption == cases[0].caption and torch.equal(usual.pictures, cases[0].pictures)


@pytest.mark.parametrize(
    ("module", "caption", "count"),
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
def test_synonyms_are_counted_by_phrase(module, caption, count):
    assert ambiguity.synonyms(caption, module) == count


def test_synonyms_are_the_second_words_of_the_world_in_each_of_its_wordings():
    for scene in random.Random(0).sample(scenes.all_scenes(1), 5):
        values = [captions.WORDS[kind][value] for kind, value in scene.attributes.items()]
        for caption in captions.wordings(scene):
            expected = sum(second in caption for _, second in values)
            assert ambiguity.synonyms(caption, captions) == expected


def test_another_task_is_named():
    with pytest.raises(ValueError, match="unknown task 't2x': there are t2i"):
        ambiguity.world("t2x")


# ---------------------------------------------------------------------------------- measurements


def test_a_reward_that_is_the_truth_is_all_signal(world):
    def truth(pixels, prompts):
        return (world.oracle.share_right(pixels, prompts) == 1).float()

    found = ambiguity.measure(world, ambiguity.omissions(world, 1, SIZE), [truth, truth])
    some, nothing = found[found["gap"].notna()], found[found["gap"].isna()]
    assert len(some) >= 3 and some["signal"].tolist() == pytest.approx([1] * len(some))
    assert some["disagreement"].tolist() == pytest.approx([0] * len(some), abs=1e-12)
    assert (some["error"] == 0).all() and (some["gap"] == 1).all() and (found["spread"] == 0).all()
    # Without near misses the reward has no variance.
    assert len(nothing) and nothing["signal"].isna().all()
    assert found["disagreement_right"].isna().all()


def test_a_reward_of_noise_has_the_floor_and_agrees_by_chance():
    generator = torch.Generator().manual_seed(0)

    def noise(pixels, prompts):
        return torch.randn(len(prompts), generator=generator)

    world = ambiguity.world("t2i")
    case = ambiguity.case(world, 7, {"colour"}, SIZE)
    found = ambiguity.measure(world, [case] * 400, [noise, noise])
    assert found["signal"].mean() == pytest.approx(1 / (2 * SIZE - 1), rel=0.2)
    assert found["error"].mean() == pytest.approx(0.5, abs=0.03)
    assert found["disagreement"].mean() == pytest.approx(1, abs=0.05)
    assert found["disagreement_right"].mean() == pytest.approx(1, abs=0.05)
    assert found["spread"].mean() == pytest.approx(0.95, abs=0.05)  # of 6 normal draws
    by_wrong = ambiguity.mixed(found, SIZE).groupby("wrong")["signal"].mean()
    assert by_wrong[3] == pytest.approx(1 / (SIZE - 1), rel=0.2)


def test_measurements_of_one_case_are_those_of_scipy():
    world = ambiguity.world("t2i")
    case, rewards = ambiguity.case(world, 30, {"size"}, SIZE), ambiguity.rewards_of("t2i")
    row = ambiguity.measure(world, [case], rewards).iloc[0]
    named = ("clip", "tiny-reward"), ("image_reward", "tiny-held-out")
    prompts = [case.caption] * 12
    first, other = (load_reward(*name)(case.pictures, prompts).numpy() for name in named)
    np.testing.assert_allclose(row["rewards"], first, rtol=1e-5)
    assert row["disagreement"] == pytest.approx(1 - spearmanr(first, other)[0])
    assert row["disagreement_right"] == pytest.approx(1 - spearmanr(first[:6], other[:6])[0])
    assert row["error"] == pytest.approx(mannwhitneyu(first[6:], first[:6])[0] / 36)
    assert row["signal"] == pytest.approx(np.corrcoef(first, case.right)[0, 1] ** 2, rel=1e-4)


def test_groups_composed_of_right_ones_and_near_misses():
    # The second case has no near misses.
    measured = pd.DataFrame({"rewards": [np.array([1.0] * 4 + [0.0] * 4), np.ones(4)]})
    found = ambiguity.mixed(measured, 4)
    assert found["wrong"].tolist() == [0, 1, 2, 3, 4]
    assert found["mean"].tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert found["signal"].isna().tolist() == [True, False, False, False, True]
    assert found["signal"][1:4].tolist() == pytest.approx([1, 1, 1])
    expected = [np.std([0] * wrong + [1] * (4 - wrong), ddof=1) for wrong in range(5)]
    assert found["std"].tolist() == pytest.approx(expected)


def test_deviations_over_wordings_and_over_drawings():
    rewards = [0, 2, 9], [0, 4, 9], [1, 1, 9], [2, 2, 9]
    measured = pd.DataFrame({"subject": [3, 3, 5, 5], "rewards": list(map(np.array, rewards))})
    found = ambiguity.over_wordings(measured, 2)  # of the first two drawings
    half = np.sqrt(0.5)
    expected = [(0 + 2 * half) / 2, half, (2 * half + 4 * half) / 2]
    assert found.loc[3].tolist() == pytest.approx(expected)
    assert found.loc[5].tolist() == pytest.approx([half, half, 0])
