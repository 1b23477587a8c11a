"""A small profile of one notebook that trains nothing, for the tests of `reproduce/run.py`."""

import pytest

from tests.reproduce import driver


@pytest.fixture
def root(tmp_path):
    """A folder with a profile of three seeds: see `driver.make_root`."""
    return driver.make_root(tmp_path)


@pytest.fixture(scope="module")
def start():
    """Starts `run.py` in a process group. Whatever is left of the groups is killed in the end."""
    with driver.processes() as start:
        yield start
