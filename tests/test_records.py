"""Records: what is shown, what is written, and when two of them agree."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bpgo import records
from bpgo.records import MIME, agree, read_records, record

VALUES = {"before": {"reward": 0.25, "seeds": 3}, "grpo": {"reward": 0.5, "seeds": 3, "note": None}}


def test_a_record_comes_back_from_its_file_as_it_was(tmp_path):
    folder, context = tmp_path / "new" / "folder", {"seeds": [0]}
    bounds = dict(rtol=0.1, atol=0.2, uncompared=["note"])
    written = record("t2i", VALUES, folder, context=context, **bounds)
    assert read_records(folder) == [written]
    assert written["values"] == VALUES
    assert (written["rtol"], written["atol"], written["uncompared"]) == (0.1, 0.2, ["note"])
    assert written["context"] == context
    assert written["code"].keys() == {"package", "commit", "dirty"}
    assert [path.name for path in folder.iterdir()] == ["t2i.json"]


def test_records_are_read_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a"):
        record(name, {"x": 1}, tmp_path)
    assert [found["name"] for found in read_records(tmp_path)] == ["a", "b"]


def test_array_scalars_and_arrays_become_plain_numbers():
    scalars = {"numpy": np.float32(0.5), "torch": torch.tensor(2)}
    values = scalars | {"all": np.arange(2), "pair": (1, 2.0)}
    expected = {"numpy": 0.5, "torch": 2, "all": [0, 1], "pair": [1, 2.0]}
    assert record("x", values)["values"] == expected


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), torch.tensor(float("nan")), np.float64("-inf")]
)
def test_a_number_that_is_not_finite_is_refused_by_its_key(bad, tmp_path):
    with pytest.raises(ValueError, match=r"t2i\.grpo\.reward\.1 is -?(nan|inf).*None"):
        record("t2i", {"grpo": {"reward": [0.0, bad]}}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "values", "error", "message"),
    [
        ("../x", {"a": 1}, ValueError, "file name"),
        ("x", {"a": {"b": object()}}, TypeError, r"x\.a\.b is a object"),
        ("x", 3.0, TypeError, "dict of named values"),
    ],
)
def test_what_cannot_be_recorded_is_refused(name, values, error, message):
    with pytest.raises(error, match=message):
        record(name, values)


def test_a_failed_write_leaves_the_old_record(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError("disk full")

    record("x", {"a": 1}, tmp_path)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        record("x", {"a": 2}, tmp_path)
    assert read_records(tmp_path)[0]["values"] == {"a": 1}


def test_what_is_not_a_record_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_records(tmp_path / "nowhere")
    (tmp_path / "other.json").write_text('{"loss": 1}')
    with pytest.raises(ValueError, match=r"other\.json is not a record"):
        read_records(tmp_path)
    (tmp_path / "other.json").write_text('{"loss"')
    with pytest.raises(ValueError, match=r"other\.json is not JSON"):
        read_records(tmp_path)


def test_agree_allows_what_the_expected_record_allows():
    expected = record("x", {"a": {"r": 100.0, "zero": 0.0}}, rtol=1e-2, atol=1e-3)
    assert agree(expected, record("x", {"a": {"r": 100.9, "zero": 9e-4}}, rtol=0, atol=0)) == []
    assert agree(expected, record("x", {"a": {"r": 101, "zero": 0}})) == []
    lines = agree(expected, record("x", {"a": {"r": 101.1, "zero": -2e-3}}, rtol=1, atol=1))
    differences = [line.split(" (")[0] for line in lines]
    first, second = "x.a.r is 101.1, expected 100.0", "x.a.zero is -0.002, expected 0.0"
    assert differences == [first, second]


@pytest.mark.parametrize(
    ("value", "difference"),
    [
        ({"n": 4, "l": [1.0], "s": "a"}, "x.n is 4, expected 3"),
        ({"n": True, "l": [1.0], "s": "a"}, "x.n is True, expected 3"),
        ({"n": 3, "l": [1.0, 1.0], "s": "a"}, "x.l.1 was not expected"),
        ({"n": 3, "l": [], "s": "a"}, "x.l.0 is missing"),
        ({"n": 3, "l": [None], "s": "a"}, "x.l.0 is None, expected 1.0"),
        ({"n": 3, "l": [1.0], "s": "b"}, "x.s is 'b', expected 'a'"),
    ],
)
def test_integers_strings_and_shapes_must_be_equal(value, difference):
    (line,) = agree(record("x", {"n": 3, "l": [1.0], "s": "a"}, rtol=1), record("x", value))
    assert line.startswith(difference)


def test_agree_leaves_out_what_depends_on_the_machine():
    expected = record("x", {"grpo": {"seconds": 1.0, "reward": 1.0}}, uncompared=["seconds"])
    assert agree(expected, record("x", {"grpo": {"seconds": 9.0, "reward": 1.0}})) == []
    assert len(agree(expected, record("x", {"grpo": {"reward": 1.0}}))) == 1


def test_outside_ipython_the_table_is_printed(capsys):
    record("x", {"before": {"reward": 0.123456, "n": 2}, "grpo": {"reward": 12.0, "note": None}})
    assert capsys.readouterr().out.splitlines() == [
        "        reward  n  note",
        "before  0.1235  2     -",
        "grpo        12  -     -",
    ]
    record("x", {"a": 0.5, "b": {"c": [1, "two"]}})
    assert capsys.readouterr().out.splitlines() == ["a      0.5", "b.c.0    1", "b.c.1  two"]


def test_inside_ipython_the_table_is_shown_with_its_bundle(monkeypatch, capsys):
    shown = []
    display = SimpleNamespace(display=lambda bundle, raw: shown.append((bundle, raw)))
    ipython = SimpleNamespace(get_ipython=object, display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    complete = record("x", {"a": 0.5}, context={"seed": 1})
    # Without what depends on the checkout or the run, or a rebuilt notebook would always differ.
    bundle = {key: complete[key] for key in ("name", "values", "rtol", "atol", "uncompared")}
    assert shown == [({"text/plain": "a  0.5", MIME: bundle}, True)]
    assert capsys.readouterr().out == ""


def test_the_code_is_named_by_its_commit_and_by_whether_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHECKOUT", tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    assert records.code_version()["commit"] == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "bpgo").mkdir()
    (tmp_path / "bpgo" / "code.py").write_text("a = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "a_result.json").write_text("{}")
    clean = records.code_version()
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "bpgo" / "new.py").write_text("b = 1\n")
    assert records.code_version() == clean | {"dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert records.code_version()["commit"] == "unknown"


def test_importing_records_does_not_load_the_models():
    code = "import sys, bpgo.records; print({'diffusers', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
