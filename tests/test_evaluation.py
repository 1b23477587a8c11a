"""Evaluation: the same samples whatever the seed, the batch and the number of processes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpgo.evaluation import Scores, divide_prompts, evaluate
from bpgo.prompts import Prompt, key_of
from tests.small_trainers import redness, rollout_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Noise:
    """A policy whose samples are their own noise, plus a number for each prompt."""

    device = "cpu"

    def latent_shape(self):
        return 3, 4, 4

    def encode(self, prompts):
        return {"number": torch.tensor([float(len(prompt)) for prompt in prompts])}

    def velocity(self, x, sigma, cond):
        return -cond["number"][:, None, None, None].expand_as(x)

    def decode(self, x):
        return x / SPREAD + 0.5


SPREAD = 20  # latents from -10 to 10 become pixels in [0, 1]


def mean(pixels, prompts):
    return SPREAD * (pixels.flatten(1).mean(1) - 0.5)


PROMPTS = ["a", "bb", "ccc", "bb"]
GIVEN = {"metrics": {"mean": mean}, "samples": 3, "steps": 2, "shift": 3.0}


def test_samples_and_scores_are_those_of_their_prompts():
    found = evaluate(Noise(), PROMPTS, **GIVEN)
    assert found.pixels.shape == (4, 3, 3, 4, 4)
    assert torch.equal(found.scores["mean"], SPREAD * (found.pixels.flatten(2).mean(2) - 0.5))
    lengths = found.scores["mean"].mean(1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 2.0, 3.0, 2.0]), atol=0.5, rtol=0)
    assert found.means() == {"mean": pytest.approx(found.scores["mean"].mean().item())}


def test_equal_prompts_get_other_noise_each():
    pixels = evaluate(Noise(), PROMPTS, **GIVEN).pixels
    assert len({tuple(sample.flatten().tolist()) for sample in pixels.flatten(0, 1)}) == 12


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 6, 100])
def test_micro_batches_and_neighbours_change_nothing(micro_batch):
    whole = evaluate(Noise(), PROMPTS, **GIVEN)
    parts = evaluate(Noise(), PROMPTS, **GIVEN, micro_batch=micro_batch)
    assert torch.equal(parts.pixels, whole.pixels)
    assert torch.equal(parts.scores["mean"], whole.scores["mean"])
    for few in ([2, 0], [1]):
        apart = evaluate(Noise(), [PROMPTS[i] for i in few], **GIVEN)
        assert torch.equal(apart.pixels, whole.pixels[few])


def test_a_metric_receives_all_samples_of_a_prompt_in_one_call():
    seen = []

    def noted(pixels, prompts):
        seen.append(list(prompts))
        return mean(pixels, prompts)

    evaluate(Noise(), PROMPTS, **GIVEN | {"metrics": {"noted": noted}}, micro_batch=1)
    assert seen == [[prompt] * 3 for prompt in PROMPTS]


def test_a_metric_may_give_several_values_and_may_be_undefined():
    def several(pixels, prompts):
        short = torch.where(torch.tensor([len(p) < 2 for p in prompts]), 0.5, torch.nan)
        return {"short": short, "mean": mean(pixels, prompts).double()}

    found = evaluate(Noise(), PROMPTS, **GIVEN | {"metrics": {"several": several}})
    assert list(found.scores) == ["short", "mean"]
    assert found.scores["mean"].dtype == torch.float32
    assert found.scores["short"][0].tolist() == [0.5] * 3
    assert found.scores["short"][1:].isnan().all()
    assert found.means()["short"] == 0.5


def test_a_metric_that_changes_its_input_in_place_changes_nothing_else():
    def careless(pixels, prompts):
        prompts.clear()
        return pixels.mul_(0).flatten(1).sum(1)

    alone = evaluate(Noise(), PROMPTS, **GIVEN)
    both = evaluate(Noise(), PROMPTS, **GIVEN | {"metrics": {"careless": careless, "mean": mean}})
    assert torch.equal(both.scores["mean"], alone.scores["mean"])
    assert torch.equal(both.pixels, alone.pixels)


class Damaged(Noise):
    def __init__(self, decode):
        self.decode = decode


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda x: x * torch.nan, "not finite: sample 0, for prompt 'a', contains nan"),
        (lambda x: x.clamp(-1, 1), r"if they are in \[-1, 1\], use \(x \+ 1\) / 2"),
    ],
)
def test_pixels_that_no_metric_can_read_are_refused(decode, message):
    with pytest.raises(ValueError, match=f"^evaluation: .*{message}"):
        evaluate(Damaged(decode), PROMPTS, **GIVEN)


def test_samples_are_dropped_if_they_are_not_kept():
    found = evaluate(Noise(), PROMPTS, **GIVEN, keep=0)
    assert found.pixels.numel() == 0
    assert torch.equal(found.scores["mean"], evaluate(Noise(), PROMPTS, **GIVEN).scores["mean"])


def test_the_mean_of_a_metric_that_is_defined_nowhere_is_nan():
    means = Scores(torch.empty(0), {"nowhere": torch.full((2, 2), torch.nan)}).means()
    assert math.isnan(means["nowhere"])


# -------------------------------------------------------------------------- dividing the prompts


def test_equal_prompts_stay_together():
    prompts = ["a", "b", "a", "c", "d", "e"]
    first, second = divide_prompts(prompts, 2)
    assert len(first) == len(second)
    assert set(first) | set(second) == set(range(6))
    assert not set(first) & set(second)
    assert {0, 2} <= set(first) or {0, 2} <= set(second)
    assert divide_prompts(prompts, 1) == [[0, 1, 2, 3, 4, 5]]
    # A process without prompts repeats one, because all must make equally many calls.
    assert divide_prompts(["a"], 2) == [[0], [0]]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=20), st.integers(1, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_prompt_is_evaluated_and_all_processes_have_equally_many(prompts, processes):
    shares = divide_prompts(prompts, processes)
    assert len(shares) == processes
    assert len({len(share) for share in shares}) == 1
    assert set().union(*shares) == set(range(len(prompts)))
    for prompt in set(prompts) - {prompts[0]}:  # a process without prompts repeats the first one
        owners = [share for share in shares if prompt in {prompts[i] for i in share}]
        assert len(owners) == 1, prompt


# ------------------------------------------------------------------------------------ in a trainer


def test_evaluations_have_the_same_images_for_every_seed(make):
    first, second = (make(seed=seed, group_size=2 + seed).evaluate() for seed in (0, 1))
    torch.testing.assert_close(first.pixels, second.pixels, atol=1e-5, rtol=0)
    assert first.pixels.shape == (4, 2, 3, 32, 32)
    assert first.scores["reward"].shape == (4, 2)


def test_held_out_rewards_are_evaluated(make, image_reward_folder, clip_folder):
    one = {"name": "image_reward", "path": str(image_reward_folder)}
    two = [one, {"name": "clip", "path": str(clip_folder)}]
    for held_out, names in ((one, {"held_out"}), (two, {"image_reward", "clip"})):
        found = make(evaluation={"held_out": held_out, "samples": 1, "steps": 1}).evaluate()
        assert set(found.scores) == {"reward"} | names
        for name in names:
            assert found.scores[name].isfinite().all()


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_micro_batches_and_neighbours_do_not_change_the_videos(make, task):
    trainer = make(task)
    given = {"metrics": {"reward": redness}, "samples": 3, "steps": 2, "shift": 3.0}
    whole = evaluate(trainer.policy, trainer.prompts, **given)
    assert whole.pixels.shape == (4, 3, 5, 3, 16, 16)
    for micro_batch in (1, 5):
        parts = evaluate(trainer.policy, trainer.prompts, **given, micro_batch=micro_batch)
        torch.testing.assert_close(parts.pixels, whole.pixels, atol=1e-5, rtol=0)
        rewards, expected = parts.scores["reward"], whole.scores["reward"]
        torch.testing.assert_close(rewards, expected, atol=1e-4, rtol=0)
    for few in ([3, 1], [2]):
        apart = evaluate(trainer.policy, [trainer.prompts[i] for i in few], **given)
        torch.testing.assert_close(apart.pixels, whole.pixels[few], atol=1e-5, rtol=0)


def test_equal_texts_with_two_images_are_two_prompts(make):
    trainer = make("i2v")
    third, fourth = trainer.prompts[2:]
    assert third == fourth
    assert key_of(third) != key_of(fourth)
    seen = []

    def noted(pixels, prompts):
        seen.extend(prompts)
        return redness(pixels, prompts)

    found = evaluate(trainer.policy, [third, fourth], {"noted": noted}, 2, 2, 3.0)
    assert not torch.allclose(found.pixels[0], found.pixels[1], atol=1e-2)
    assert [p.key for p in seen] == [third.key] * 2 + [fourth.key] * 2
    batch = rollout_of(make("i2v", groups=4)).batch
    for prompt, image in zip(batch.prompts, batch.cond["image"], strict=True):
        assert isinstance(prompt, Prompt)
        alone = trainer.policy.encode([prompt], [prompt.image])["image"][0]
        torch.testing.assert_close(image, alone, atol=1e-6, rtol=0)
