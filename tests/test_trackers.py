"""A tracker that is not installed is refused before training."""

import importlib.util
import sys

import pytest

from bpgo.config import read_config
from bpgo.setup import setting_errors
from bpgo.trackers import check_tracker


def absent(monkeypatch, *names):
    """Let the import system find none of these modules."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "bpgo.trackers.find_spec", lambda name: None if name in names else real(name)
    )
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_it_is_refused_with_the_command_that_installs_it(monkeypatch, name):
    absent(monkeypatch, "wandb", "tensorboard", "tensorboardX")
    expected = f"tracker={name} needs a package that is not installed: pip install {name}, or set"
    with pytest.raises(ValueError, match=expected):
        check_tracker(name)
    given = dict.fromkeys(["objective", "prior", "reward"])
    errors = setting_errors(read_config("t2i-tiny", [f"tracker={name}"]), given)
    assert [str(error).partition(":")[0] for error in errors] == [expected.partition(":")[0]]


def test_no_tracker_needs_nothing(monkeypatch):
    absent(monkeypatch, "wandb", "tensorboard", "tensorboardX")
    check_tracker("none")


def test_an_installed_one_is_accepted():
    pytest.importorskip("tensorboard")
    check_tracker("tensorboard")
