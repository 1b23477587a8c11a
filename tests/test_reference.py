"""Priors that are rewards of the starting model or of a still image, and their cache."""

import shutil

import numpy as np
import pytest
import torch

from bpgo import reference
from bpgo.evaluation import evaluate
from bpgo.generators.flux import FluxPolicy
from bpgo.reference import cache_file, first_frame_rewards, reference_rewards, weights_fingerprint
from bpgo.rewards import load_reward
from tests.small_trainers import PROMPTS, VIDEO, redness

pytestmark = pytest.mark.usefixtures("one_thread")


class Calls:
    """How often a policy has been asked for a velocity since the last look."""

    def __init__(self):
        self.count = 0

    def any(self):
        """Whether there was one, and start to count again."""
        found, self.count = self.count > 0, 0
        return found


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Count the calls of a policy, with an empty cache."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    calls, velocity = Calls(), FluxPolicy.velocity

    def counted(self, *given):
        calls.count += 1
        return velocity(self, *given)

    monkeypatch.setattr(FluxPolicy, "velocity", counted)
    return calls


def mean_rewards(trainer, samples):
    """Mean reward of each prompt under the present weights."""
    e, shift = trainer.config.evaluation, trainer.config.sampling.shift
    metrics = {"reward": trainer.reward}
    found = evaluate(trainer.policy, trainer.prompts, metrics, samples, e.steps, shift)
    return dict(zip(trainer.prompts, found.scores["reward"].mean(1).tolist(), strict=True))


# ------------------------------------------------------------------------------- starting model


@pytest.mark.parametrize("name", ["sft", "sft_per_prompt"])
def test_an_sft_prior_is_the_mean_reward_of_the_starting_model(make, calls, name):
    options = {"prior": {"name": name, "samples": 3}, "iterations": 1}
    trainer = make(**options)
    assert calls.any()
    expected = mean_rewards(trainer, samples=3)
    drawn = trainer.draw_batch().prompts
    prompts = drawn if name == "sft_per_prompt" else trainer.prompts
    mean = sum(expected[prompt] for prompt in prompts) / len(prompts)
    assert trainer.step()["prior"] == pytest.approx(mean, rel=1e-5)

    calls.any()
    again = make(**options)  # from the starting weights again
    assert not calls.any(), "the rewards are in the cache"
    rewards = torch.zeros(2, 3)
    value = torch.as_tensor(trainer.prior(drawn, rewards))
    assert again.prior(drawn, rewards) == pytest.approx(value)


def test_reference_rewards_are_computed_again_for_anything_that_they_depend_on(make, calls):
    trainer = make(prior={"name": "sft", "samples": 1})
    config, policy, reward, prompts = (
        trainer.config,
        trainer.policy,
        trainer.reward,
        trainer.prompts,
    )
    before = reference_rewards(config, policy, reward, prompts)
    calls.any()
    assert reference_rewards(config, policy, reward, prompts) == before
    assert not calls.any()

    other = reference_rewards(config, policy, lambda x, p: -redness(x, p), prompts)
    assert calls.any()
    assert other == {prompt: -value for prompt, value in before.items()}
    reference_rewards(config, policy, reward, prompts[:2])
    assert calls.any()
    config.evaluation.steps += 1
    reference_rewards(config, policy, reward, prompts)
    assert calls.any()
    config.evaluation.steps -= 1
    with torch.no_grad():
        next(iter(trainer.parameters.values())).view(-1)[0] += 1e-3
    reference_rewards(config, policy, reward, prompts)
    assert calls.any()


@pytest.mark.parametrize("content", ["", '{"a": ', "[]", '{"a": "b"}'])
def test_a_damaged_cache_is_computed_anew(make, calls, tmp_path, content):
    options = {"prior": {"name": "sft", "samples": 1}}
    value = make(**options).prior.value
    (file,) = (tmp_path / "cache").glob("reference-*.json")
    file.write_text(content)
    calls.any()
    assert make(**options).prior.value == value
    assert calls.any()
    assert not file.read_text().startswith(content or " ")


def test_an_sft_prior_survives_a_resume(make, calls, tmp_path):
    options = {
        "prior": {"name": "sft", "samples": 2},
        "output": tmp_path / "run",
        "checkpoint_every": 1,
        "iterations": 3,
    }
    trainer = make(**options)
    trainer.step()
    trainer.save_checkpoint()
    value = trainer.prior.value
    # Without the cache, the prior of the trained weights is another, and the checkpoint's counts.
    shutil.rmtree(tmp_path / "cache")
    again = make(**options)
    assert (again.iteration, again.prior.value) == (1, value)
    assert again.step()["prior"] == pytest.approx(value, rel=1e-6)


def test_a_prior_from_the_cache_leaves_the_random_numbers_as_they_are(make, calls):
    """A reward that draws random numbers draws the same in the run in both cases."""

    def noisy(pixels, prompts):
        return redness(pixels, prompts) + torch.rand(len(prompts))

    options = {"reward": noisy, "prior": {"name": "sft", "samples": 1}}
    computed, cached = (make(**options).step() for _ in range(2))
    assert computed == cached


def test_sft_rewards_of_equal_texts_are_those_of_each_image(make, calls):
    prior = {"name": "sft_per_prompt", "samples": 2}
    trainer = make("i2v", prior=prior)
    assert trainer.prior.table.keys() == {p.key for p in trainer.prompts}
    e, shift = trainer.config.evaluation, trainer.config.sampling.shift
    for p in trainer.prompts:
        found = evaluate(trainer.policy, [p], {"reward": redness}, 2, e.steps, shift)
        mean = found.scores["reward"].mean().item()
        assert trainer.prior.table[p.key] == pytest.approx(mean, abs=1e-5)
    # Prompts with the same texts and other images are not found in the cache.
    others = [type(p)(str(p), p.image.rotate(90)) for p in trainer.prompts]
    again = make("i2v", prior=prior, prompts=others)
    assert again.prior.table.keys().isdisjoint(trainer.prior.table.keys())


# ---------------------------------------------------------------------------------- still images


def test_the_first_frame_prior_is_the_reward_of_a_still_video(make, video_reward_folder):
    score = load_reward("video_clip_xl", video_reward_folder)
    trainer, expected = make("i2v", reward=score, prior={"name": "first_frame"}), {}
    for p in trainer.prompts:
        image = torch.tensor(np.array(p.image, dtype=np.float32).transpose(2, 0, 1) / 255)
        still = torch.stack([image] * VIDEO["frames"])
        expected[p.key] = score(still[None], [p]).item()
    assert trainer.prior.table == pytest.approx(expected, abs=1e-6)
    drawn = trainer.draw_batch().prompts
    mean = sum(expected[p.key] for p in drawn) / len(drawn)
    assert trainer.step()["prior"] == pytest.approx(mean, abs=1e-6)
    third, fourth = trainer.prompts[2:]
    assert third == fourth
    assert abs(expected[third.key] - expected[fourth.key]) > 1e-4  # one text, two images
    in_chunks = first_frame_rewards(trainer.policy, trainer.reward, trainer.prompts, chunk=3)
    assert in_chunks == pytest.approx(expected, abs=1e-6)


def test_prompts_without_images_are_refused():
    with pytest.raises(ValueError, match="first_frame is for image-to-video, and these prompts"):
        first_frame_rewards(None, redness, PROMPTS)


# ---------------------------------------------------------------------------------------- caching


def test_a_cached_file_depends_on_all_of_its_identity(monkeypatch, tmp_path):
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path))
    file = cache_file("reference", [{"a": 1, "b": [2.5]}, "c"])
    assert file.parent == tmp_path
    assert file.name.startswith("reference-")
    assert cache_file("reference", [{"b": [2.5], "a": 1}, "c"]) == file
    others = [cache_file("reference", [{"a": 1, "b": [2.5]}, "d"]), cache_file("conditions", ["c"])]
    assert len({file, *others}) == 3


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("BPGO_CACHE", raising=False)
    monkeypatch.setattr(reference.Path, "home", lambda: tmp_path)
    assert cache_file("reference", []).parent == tmp_path / ".cache" / "bpgo"


def test_every_change_of_a_weight_changes_the_fingerprint():
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    before = weights_fingerprint({"transformer": module})
    assert weights_fingerprint({"transformer": module}) == before
    assert weights_fingerprint({"transformer_2": module}) != before
    with torch.no_grad():
        module.bias[1] += 1e-6
    changed = weights_fingerprint({"transformer": module})
    assert changed != before
    with torch.no_grad():
        module.weight.copy_(module.weight * torch.tensor([[-1.0], [1.0]]))
    assert weights_fingerprint({"transformer": module}) != changed
