"""What is checked before training: the settings of the run that a folder already contains."""

import json

import pytest

from bpgo.checkpoint import CheckpointError
from bpgo.config import build_config, read_config, to_dict
from bpgo.setup import open_output


def test_settings_that_are_newer_than_a_run_have_their_defaults(tmp_path):
    """A run without them can be resumed. One with another value is refused."""
    config = read_config("t2v-tiny")
    older = to_dict(config)
    del older["generator"]["offload"], older["sampling"]["shared_noise"]
    older["reward"] = older["reward"][0]  # as it was written when there was only one
    (tmp_path / "config.json").write_text(json.dumps(older))
    message = r"other settings \(sampling\.shared_noise: False -> True\)"
    with pytest.raises(CheckpointError, match=message):
        open_output(tmp_path, config)
    older["sampling"]["shared_noise"] = True
    (tmp_path / "config.json").write_text(json.dumps(older))
    open_output(tmp_path, build_config(to_dict(config)))
