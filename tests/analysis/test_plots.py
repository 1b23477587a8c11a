"""Images of videos, and labels of figures."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bpgo.analysis import plots


def test_a_film_has_the_frames_in_order_after_the_given_image():
    video = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 4) / 4
    film = plots.film(video, given=torch.full((3, 2, 4), 0.9))
    assert film.shape == (3, 2, 4 + 8 + 3 * 4 + 2 * 2)
    given, gap, line = [0.9] * 4, [1] * 8, [1] * 2
    frames = [*[0] * 4, *line, *[0.25] * 4, *line, *[0.5] * 4]
    assert film[0, 0].tolist() == pytest.approx([*given, *gap, *frames])
    assert torch.equal(plots.film(video), film[..., 12:])


def test_an_animation_plays_every_frame_of_every_video():
    videos = torch.zeros(2, 5, 3, 8, 8)
    videos[0, :, 0] = torch.linspace(0.1, 1, 5).view(5, 1, 1)  # ever more red, beside black
    gif = plots.animation([list(videos)], ["a shape"], ["before", "after"], scale=3)
    played = Image.open(io.BytesIO(gif))
    assert played.n_frames == 5 and played.info["loop"] == 0
    reds = []
    for frame in range(5):
        played.seek(frame)
        pixels = np.asarray(played.convert("RGB"))
        reds.append(int(pixels[20, -40, 0]))
        assert pixels[20, -10].tolist() == [0, 0, 0]
    assert reds == sorted(reds) and reds[0] < reds[-1]


def test_images_of_another_shape_and_missing_titles_are_refused():
    rows = [torch.zeros(2, 3, 4, 4)] * 2
    with pytest.raises(ValueError, match=r"rows\[1\] has shape \(3, 4, 4\)"):
        plots.show_images([rows[0], torch.zeros(3, 4, 4)])
    with pytest.raises(ValueError, match="1 titles for 2 rows"):
        plots.show_images(rows, ["one"])


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(KeyError, match="grpo, ras, crt, bpgo"):
        plots.method_style("bgpo")


def test_a_heat_map_writes_every_number_frames_what_is_marked_and_says_what_was_not_run():
    figure, [[ax]] = plots.new_figure()
    values = pd.DataFrame([[0.25, np.nan]], index=["1"], columns=["x", "y"])
    plots.heat_map(ax, values, np.array([[True, False]]))
    assert [text.get_text() for text in ax.texts] == ["0.25", "not run"]
    assert len(ax.patches) == 1
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y"]
    plots.heat_map(ax, pd.DataFrame([[np.nan]]), np.array([[False]]))
    plots.plt.close(figure)


def test_an_arm_without_runs_is_labelled():
    figure, [[ax]] = plots.new_figure()
    table = pd.DataFrame({"grpo": [0.1, 0.3], "too_low": [np.nan, np.nan]})
    plots.runs_by_arm(ax, table, start=0.0)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    plots.plt.close(figure)
    assert labels == ["GRPO", "too low\n(not run)"]


def test_error_bars_end_at_the_bounds():
    figure, [[ax]] = plots.new_figure()
    plots.error_bars(ax, [1, 2], [plots.Interval(0.5, 0.2, 0.9, 3), plots.Interval(1, 0, 3, 3)])
    (bars,) = ax.collections
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    plots.plt.close(figure)
    assert ends == [pytest.approx([0.2, 0.9]), pytest.approx([0, 3])]
