"""Pictures of the evaluation samples in the run's folder and in TensorBoard."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bpgo import monitor
from bpgo.evaluation import Scores
from bpgo.files import read_log
from bpgo.pictures import GAP
from tests.small_trainers import all_equal, redness, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def cell(image, row, column, side=128):
    """One sample of a saved grid, in [0, 1] and (3, side, side)."""
    top, left = row * (side + GAP), column * (side + GAP)
    box = np.asarray(image.convert("RGB"))[top : top + side, left : left + side]
    return torch.from_numpy(box.copy()).permute(2, 0, 1) / 255


def test_each_evaluation_saves_the_samples_of_the_first_prompts(make):
    trainer = make(evaluation={"every": 1, "pictures": 3})
    trainer.train()
    names = [file.name for file in sorted((trainer.output / "samples").iterdir())]
    assert names == [f"00000{i}.{end}" for i in range(3) for end in ("json", "png")]
    # The last evaluation had the weights that the trainer still has.
    expected = trainer.evaluate()
    image = Image.open(trainer.output / "samples" / "000002.png")
    assert image.size == (2 * 128 + GAP, 3 * 128 + 2 * GAP)  # two samples of three prompts
    for row in range(3):
        for column in range(2):
            large = expected.pixels[row, column].repeat_interleave(4, 1).repeat_interleave(4, 2)
            torch.testing.assert_close(cell(image, row, column), large, atol=0.6 / 255, rtol=0)
    shown = json.loads((trainer.output / "samples" / "000002.json").read_text())
    assert shown["prompts"] == trainer.evaluation_prompts[:3]
    logged = read_log(trainer.output / "evaluations.jsonl")[-1]["scores"]["reward"]
    assert shown["rewards"] == logged[:3]


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_videos_are_saved_as_animations(make, task):
    trainer = make(task, iterations=1)
    trainer.train()
    with Image.open(trainer.output / "samples" / "000001.gif") as image:
        assert image.n_frames == 5
        assert image.size == (2 * 128 + GAP, 4 * 128 + 3 * GAP)


def test_the_pictures_change_no_number_of_the_run(make):
    runs = [make(evaluation={"every": 1, "pictures": count}) for count in (0, 9)]
    for trainer in runs:
        torch.manual_seed(1)
        trainer.train()
        trainer.random_state = torch.get_rng_state()
    without, trainer = runs
    assert not (without.output / "samples").exists()
    assert torch.equal(trainer.random_state, without.random_state)
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert (trainer.output / log).read_text() == (without.output / log).read_text()
    assert all_equal(weights(trainer), weights(without))


def test_a_picture_that_cannot_be_written_is_a_warning_and_training_continues(make):
    trainer = make(iterations=1)
    (trainer.output / "samples").write_text("a file where the folder should be")
    with pytest.warns(UserWarning) as warned:
        trainer.train()
    assert trainer.complete
    told = [str(w.message) for w in warned if "pictures" in str(w.message)]
    assert len(told) == 2  # before and after the only iteration
    assert "of iteration 0 could not be saved" in told[0] and "pictures=0" in told[0]


def test_pixels_that_are_not_rgb_are_a_warning(make):
    trainer = make()
    grey = Scores(torch.zeros(4, 2, 1, 8, 8), {"reward": torch.zeros(4, 2)})
    with pytest.warns(UserWarning, match="could not be saved"):
        monitor.show(trainer, grey)


def test_pixels_outside_their_range_are_clipped(tmp_path):
    pixels = torch.tensor([-0.5, float("nan"), 2.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 128, 128)
    monitor.save(tmp_path, 7, monitor.reduced(pixels), ["a"], [[0.0]])
    assert Image.open(tmp_path / "000007.png").getpixel((5, 5)) == (0, 0, 255)


def test_large_pictures_are_reduced_by_averaging():
    wide = torch.rand(2, 1, 3, 4, 2 * monitor.LARGEST, generator=torch.Generator().manual_seed(0))
    small = monitor.reduced(wide)
    expected = wide.unflatten(-1, (-1, 2)).mean(-1).unflatten(-2, (-1, 2)).mean(-2)
    torch.testing.assert_close(small, expected)
    video = torch.rand(1, 1, 2, 3, 8, monitor.LARGEST_VIDEO)
    assert torch.equal(monitor.reduced(video), video)


def test_a_rewritten_picture_replaces_the_old_one(tmp_path):
    for value in (0.0, 1.0):
        pixels = torch.full((1, 1, 3, 128, 128), value)
        monitor.save(tmp_path, 3, pixels, ["a"], [[value]])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["000003.json", "000003.png"]
    assert Image.open(tmp_path / "000003.png").getpixel((0, 0)) == (255, 255, 255)
    assert json.loads((tmp_path / "000003.json").read_text())["rewards"] == [[1.0]]


def sometimes(pixels, prompts):
    return torch.tensor([float("nan") if p == "a shape" else 1.5 for p in prompts])


def nowhere(pixels, prompts):
    return torch.full((len(prompts),), torch.nan)


@pytest.mark.parametrize("task", ["t2i", "t2v"])
def test_tensorboard_has_pictures_histograms_and_scalars(make, task):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = {"sometimes": sometimes, "nowhere": nowhere}
    trainer = make(task, metrics=metrics, tracker="tensorboard", evaluation={"every": 1})
    trainer.train()
    (events,) = trainer.output.rglob("events.out.tfevents.*")
    everything = {"images": 0, "histograms": 0, "scalars": 0}
    tracked = EventAccumulator(str(events.parent), everything).Reload()
    (tag,) = tracked.Tags()["images"]
    images = tracked.Images(tag)
    assert [image.step for image in images] == [0, 1, 2]
    columns = 2 if task == "t2i" else 5  # samples, or frames of the first sample
    expected = (columns * 128 + (columns - 1) * GAP, 4 * 128 + 3 * GAP)
    assert {(image.width, image.height) for image in images} == {expected}
    histograms = {"evaluation/reward", "evaluation/sometimes", "rewards", "weights"}
    assert set(tracked.Tags()["histograms"]) == histograms  # none of what is defined nowhere
    assert [h.step for h in tracked.Histograms("rewards")] == [1, 2]  # nothing is trained before
    last = tracked.Histograms("evaluation/reward")[-1].histogram_value
    logged = read_log(trainer.output / "evaluations.jsonl")[-1]
    assert (last.num, last.sum) == (8, pytest.approx(8 * logged["reward"], rel=1e-5))
    sizes = [tracked.Histograms(name)[-1].histogram_value.num for name in ("rewards", "weights")]
    assert sizes == [6, 2]  # two groups of three samples
    assert {"reward", "evaluation/reward", "grad_norm"} <= set(tracked.Tags()["scalars"])


def test_a_tracker_of_weights_and_biases_gets_the_same(monkeypatch):
    """The package wandb is replaced, because it needs an account."""
    import sys
    import types

    sent = []

    class Tracker:
        name = "wandb"

        def log_images(self, values, step):
            sent.append((step, values))

        def log(self, values, step):
            sent.append((step, values))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Histogram=lambda v: list(v)))
    picture = Image.new("RGB", (4, 4))
    nan = torch.tensor([torch.nan])
    monitor.track(Tracker(), 5, picture, {"a": torch.tensor([1.0, 2.0]), "b": nan})
    assert sent == [(5, {"samples": [picture]}), (5, {"a": [1.0, 2.0]})]


def test_an_evaluation_returns_the_samples_of_the_first_prompts(make):
    trainer = make(sampling={"micro_batch": 2})
    whole, first = trainer.evaluate(), trainer.evaluate(keep=3)
    assert whole.pixels.shape[0] == 4
    assert torch.equal(first.pixels, whole.pixels[:3])
    assert torch.equal(first.scores["reward"], whole.scores["reward"])
    assert trainer.evaluate(keep=0).pixels.numel() == 0
    torch.testing.assert_close(
        redness(whole.pixels.flatten(0, 1), None), whole.scores["reward"].flatten()
    )
