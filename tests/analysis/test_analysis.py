"""What the notebooks show of videos and count of runs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bpgo.analysis import plots, runs


def test_a_film_has_the_frames_in_order_after_the_given_picture():
    video = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 4) / 4
    film = plots.film(video, given=torch.full((3, 2, 4), 0.9))
    assert film.shape == (3, 2, 4 + 8 + 3 * 4 + 2 * 2)
    assert film[0, 0].tolist() == pytest.approx(
        [0.9] * 4 + [1] * 8 + [0] * 4 + [1] * 2 + [0.25] * 4 + [1] * 2 + [0.5] * 4
    )
    assert torch.equal(plots.film(video), film[..., 12:])


def test_an_animation_plays_every_frame_of_every_video():
    videos = torch.zeros(2, 5, 3, 8, 8)
    videos[0, :, 0] = torch.linspace(0.1, 1, 5).view(5, 1, 1)  # ever more red, beside black
    played = Image.open(
        io.BytesIO(plots.animation([list(videos)], ["a shape"], ["before", "after"], scale=3))
    )
    assert played.n_frames == 5 and played.info["loop"] == 0
    reds = []
    for frame in range(5):
        played.seek(frame)
        pixels = np.asarray(played.convert("RGB"))
        reds.append(int(pixels[20, -40, 0]))
        assert pixels[20, -10].tolist() == [0, 0, 0]
    assert reds == sorted(reds) and reds[0] < reds[-1]


def test_outcomes_leave_out_what_is_nowhere_defined_and_single_out_specified_prompts():
    scores = {
        "accuracy": [[1.0, 0.0], [1.0, 1.0]],
        "first_frame": [[None, None]] * 2,
        "diversity": [[None, None], [0.5, 0.5]],
    }
    logs = {"grpo": [runs.Run([], [], [{"scores": scores}, {"scores": scores}])]}
    first, parts = runs.outcome(logs, bits=np.array([0.0, 3.0]))
    assert list(first) == list(parts["grpo"]) == ["accuracy", "diversity", "accuracy_specified"]
    assert first["accuracy_specified"][0, 0] == 0.5 and np.isnan(first["accuracy_specified"][0, 1])
    assert runs.contrasts(parts, first, "before").splitlines()[1].split() == [
        "accuracy",
        "+0.000",
        "±",
        "0.000",
    ]
