"""What is drawn in each iteration: prompts, steps and seeds."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpgo.config import SamplingConfig, build_config
from bpgo.registry import TABLES, find
from bpgo.rollout import draw_batch, draw_steps, seed_of
from bpgo.sde import noise_levels, sigma_grid

examples = settings(max_examples=60, deadline=None, derandomize=True)
schedules = st.sampled_from(list(TABLES["schedule"]))
PROMPTS = [f"prompt {i}" for i in range(20)]


def draw(rng, **given):
    return draw_steps(SamplingConfig(**given), rng)


# ----------------------------------------------------------------------------------------- steps


@examples
@given(st.integers(2, 30), st.floats(0.01, 1), st.integers(0, 2**32), schedules)
def test_without_a_window_all_but_the_last_step_carry_noise_and_a_fraction_is_trained(
    steps, share, seed, schedule
):
    drawn = draw(
        random.Random(seed),
        steps=steps,
        shift=3.0,
        schedule=schedule,
        noise_level=0.5,
        trained_share=share,
    )
    sigmas = sigma_grid(steps, 3.0)
    assert drawn.sigmas == sigmas.tolist()
    assert drawn.schedule == find("schedule", schedule)
    assert [s > 0 for s in drawn.noise_std] == [True] * (steps - 1) + [False]
    assert drawn.noise_std == noise_levels(drawn.schedule, sigmas, 0.5, set(range(steps)))
    assert list(drawn.trained) == sorted(set(drawn.trained))
    assert set(drawn.trained) <= set(range(steps - 1))
    expected = share * (steps - 1)
    assert len(drawn.trained) >= 1
    assert abs(len(drawn.trained) - expected) <= max(0.5, 1 - expected)


@examples
@given(st.integers(3, 30), st.data(), st.integers(0, 2**32), schedules)
def test_with_a_window_that_many_consecutive_steps_carry_noise_and_are_trained(
    steps, data, seed, schedule
):
    window = data.draw(st.integers(1, steps - 1))
    given = {"steps": steps, "schedule": schedule, "noise_level": 0.5, "window": window}
    drawn = draw(random.Random(seed), **given)
    first = drawn.trained[0]
    assert drawn.trained == tuple(range(first, first + window))
    assert drawn.trained[-1] <= steps - 2
    assert tuple(i for i, s in enumerate(drawn.noise_std) if s > 0) == drawn.trained


def test_every_noisy_step_is_trained_about_equally_often():
    """1000 draws of 3 out of 5 steps: 600 per step, within 4 standard errors."""
    rng = random.Random(0)
    seen = Counter(i for _ in range(1000) for i in draw(rng, steps=6, trained_share=0.6).trained)
    assert set(seen) == set(range(5))
    for count in seen.values():
        assert abs(count - 600) < 4 * (1000 * 0.6 * 0.4) ** 0.5
    places = Counter(draw(rng, steps=6, window=2).trained[0] for _ in range(1000))
    assert set(places) == set(range(4))
    for count in places.values():
        assert abs(count - 250) < 4 * (1000 * 0.25 * 0.75) ** 0.5


def test_the_steps_depend_on_the_generator_alone():
    first, again, other = (draw(random.Random(seed), steps=20) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_window_stays_within_its_range():
    rng = random.Random(4)
    given = {"steps": 8, "window": 2}
    seen = Counter(draw(rng, **given, window_range=(0, 4)).trained for _ in range(300))
    assert set(seen) == {(0, 1), (1, 2), (2, 3)}
    assert min(seen.values()) > 60
    assert draw(rng, **given, window_range=(5, 7)).trained == (5, 6)


@pytest.mark.parametrize("place", [(0, 1), (3, 3), (6, 8), (4, 2)])
def test_a_range_without_room_for_the_window_is_refused(place):
    expected = (
        rf"^sampling.window=2 does not fit within steps {place[0]} to {place[1] - 1}: "
        r"of 8 steps, the first 7 can carry noise$"
    )
    with pytest.raises(ValueError, match=expected):
        draw(random.Random(0), steps=8, window=2, window_range=place)


@pytest.mark.parametrize("window", [6, 100])
def test_a_window_that_does_not_fit_is_refused(window):
    expected = rf"^sampling.window={window} does not fit: of 6 steps, the first 5 can carry noise$"
    with pytest.raises(ValueError, match=expected):
        draw(random.Random(0), steps=6, window=window)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 1}, "greater than or equal to 2"),
        ({"window": 0}, "greater than or equal to 1"),
        ({"window": -1}, "greater than or equal to 1"),
        ({"window": 2, "window_range": (-1, 3)}, "greater than or equal to 0"),
        ({"window_range": (0, 3)}, "window_range limits the position of the window"),
    ],
)
def test_settings_that_can_fit_no_steps_are_refused_when_they_are_read(given, says):
    with pytest.raises(ValueError, match=says):
        SamplingConfig(**given)


# --------------------------------------------------------------------------------------- batches


def config_of(**changes):
    tree = {
        "generator": {"path": "tiny-flux"},
        "reward": {"name": "clip"},
        "prompts": "given",
        "groups": 4,
        "group_size": 3,
        "optimiser": {"updates": 2},
        "seed": 5,
    }
    return build_config(tree | changes)


def conditions(prompts):
    """Conditions that are the numbers of the prompts."""
    return {"number": torch.tensor([PROMPTS.index(prompt) for prompt in prompts])}


def batch_of(config, iteration=7, processes=1, rank=0):
    return draw_batch(config, PROMPTS, iteration, conditions, processes, rank)


def test_a_batch_has_distinct_prompts_with_their_conditions_and_seeds():
    batch = batch_of(config_of())
    assert len(set(batch.prompts)) == 4
    assert set(batch.prompts) <= set(PROMPTS)
    assert batch.cond["number"].tolist() == [PROMPTS.index(prompt) for prompt in batch.prompts]
    assert (batch.group_size, batch.start_seeds) == (3, None)
    assert batch.seeds == [seed_of(5, 7, g, j) for g in range(4) for j in range(3)]


def test_a_batch_depends_on_the_seed_and_the_iteration():
    batches = [batch_of(config_of(seed=s), i) for s, i in ((5, 7), (5, 7), (6, 7), (5, 8))]
    first, again, other_seed, other_iteration = batches
    assert (first.prompts, first.seeds, first.steps) == (again.prompts, again.seeds, again.steps)
    for other in (other_seed, other_iteration):
        assert other.prompts != first.prompts
        assert not set(other.seeds) & set(first.seeds)


def test_every_prompt_is_drawn_about_equally_often():
    config = config_of(sampling={"steps": 2})
    seen = Counter(p for i in range(1000) for p in batch_of(config, i).prompts)
    assert len(seen) == len(PROMPTS)
    for count in seen.values():
        assert abs(count - 200) < 4 * (1000 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize("shared", [False, True])
def test_two_processes_together_draw_what_a_single_one_draws(shared):
    config = config_of(sampling={"shared_noise": shared})
    whole = batch_of(config)
    parts = [batch_of(config, processes=2, rank=rank) for rank in range(2)]
    for rank, part in enumerate(parts):
        assert part.steps == whole.steps
        groups = [rank, 2 + rank]  # one group of each of the two updates
        rows = [3 * g + j for g in groups for j in range(3)]
        assert part.prompts == [whole.prompts[g] for g in groups]
        assert part.seeds == [whole.seeds[row] for row in rows]
        if shared:
            assert part.start_seeds == [whole.start_seeds[row] for row in rows]
        assert part.cond["number"].tolist() == [whole.cond["number"][g].item() for g in groups]


def test_shared_noise_gives_one_start_seed_per_group():
    batch = batch_of(config_of(sampling={"shared_noise": True}))
    assert batch.start_seeds == [seed_of(5, 7, g) for g in range(4) for _ in range(3)]
    assert len(set(batch.start_seeds)) == 4
    assert not set(batch.start_seeds) & set(batch.seeds)
