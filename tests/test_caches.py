"""Where caches are kept without a home folder that can be written to."""

import os
import pwd
import warnings
from pathlib import Path

import pytest

from bpgo import caches
from bpgo.__main__ import main
from bpgo.caches import cache_folder, redirect_caches

VARIABLES = ("BPGO_CACHE", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "HF_HOME")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder that stands for the one of temporary files. No cache is set."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    for name in (*VARIABLES, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(params=["unknown", "a file", "a device"])
def no_home(request, temporary, tmp_path, monkeypatch):
    """A machine without a home folder, or whose home is no folder."""
    if request.param == "unknown":

        def no_entry(number):
            raise KeyError(number)

        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(pwd, "getpwuid", no_entry)
    elif request.param == "a file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("HOME", str(tmp_path / "file"))
    else:
        monkeypatch.setenv("HOME", "/dev/null")


def test_caches_are_in_the_home_folder(temporary, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bpgo"
    assert redirect_caches() is None
    assert "HF_HOME" not in os.environ


def test_the_variable_counts_and_is_expanded(temporary, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BPGO_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("BPGO_CACHE", "")
    assert cache_folder() == tmp_path / ".cache" / "bpgo"


def test_without_a_home_folder_the_cache_is_temporary_with_a_warning(no_home, temporary):
    with pytest.warns(UserWarning, match="Set BPGO_CACHE to keep it elsewhere"):
        folder = cache_folder()
    assert folder.is_relative_to(temporary)


def test_a_chosen_cache_that_cannot_be_made_is_refused_with_its_variable(
    temporary, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="set BPGO_CACHE to another folder"):
        cache_folder()


def test_the_command_line_moves_all_caches_and_says_so_once(
    no_home, temporary, monkeypatch, capsys
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["presets"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bpgo presets: ")
    for name in VARIABLES:
        assert Path(os.environ[name]).is_relative_to(temporary)
        assert name in line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache_folder().is_relative_to(temporary)
    assert redirect_caches() is None


def test_what_is_set_and_a_hub_cache_that_exists_are_kept(temporary, tmp_path, monkeypatch):
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    monkeypatch.setattr(os, "environ", os.environ | {"HOME": str(tmp_path), "BPGO_CACHE": "/b"})
    monkeypatch.setattr(caches, "writable", lambda folder: False)  # the tests may run as root
    assert "MPLCONFIGDIR" in redirect_caches()
    assert os.environ["BPGO_CACHE"] == "/b"
    assert "HF_HOME" not in os.environ
