"""The plots: what is written and marked in them."""

import numpy as np
import pandas as pd

from bpgo.analysis import plots


def test_a_heat_map_writes_every_number_frames_what_is_marked_and_says_what_was_not_run():
    figure, [[ax]] = plots.new_figure()
    values = pd.DataFrame([[0.25, np.nan]], index=["1"], columns=["x", "y"])
    plots.heat_map(ax, values, np.array([[True, False]]))
    assert [text.get_text() for text in ax.texts] == ["0.25", "not run"]
    assert len(ax.patches) == 1
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y"]
    plots.heat_map(ax, pd.DataFrame([[np.nan]]), np.array([[False]]))
    plots.plt.close(figure)
