"""`reproduce/notebooks.py` on a notebook of two cells, and the comparison of records by nbval."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bpgo.records import MIME, read_records
from reproduce import notebooks

ROOT = Path(__file__).resolve().parents[2]
NAME = "01_dummy"
DUMMY = """\
# ---
# jupyter:
#   kernelspec: {display_name: Python 3 (ipykernel), language: python, name: python3}
# ---

# %% tags=["parameters"]
iterations: int = 2  # updates
rate: float = 0.5  # per update
seeds: list = [0]  # one run each
fail: bool = False  # in the cell below
output: str = ""  # folder of the record

# %% tags=["nbval-check-output"]
from pathlib import Path
from bpgo.records import record

if fail:
    raise ValueError("asked to fail")
drift = float(Path("DRIFT").read_text())
whole = record("dummy", {"grpo": {"reward": iterations * rate + drift}}, output=output, rtol=1e-2)
print("the same each time")
"""


@pytest.fixture
def dummy(tmp_path, monkeypatch):
    """A folder with notebooks/01_dummy.py, which adds the number in the file `drift` to its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "drift").write_text("0")
    script = tmp_path / "notebooks" / f"{NAME}.py"
    script.parent.mkdir()
    script.write_text(DUMMY.replace("DRIFT", str(tmp_path / "drift")))
    return tmp_path


def command(root, verb, *arguments):
    """The exit code of a command on the notebooks of `root`."""
    try:
        return notebooks.main(["--root", str(root), verb, *map(str, arguments)])
    except SystemExit as left:  # argparse refuses a request in this way
        return left.code


def test_a_built_notebook_is_the_same_each_time_and_drift_is_noticed(dummy, capsys):
    script = dummy / "notebooks" / f"{NAME}.py"
    built = script.with_suffix(".ipynb")
    assert command(dummy, "check") == 1
    assert command(dummy, "build") == 0
    first = built.read_bytes()
    assert command(dummy, "build", f"notebooks/{NAME}.py") == 0
    assert built.read_bytes() == first
    assert command(dummy, "check") == 0
    script.write_text(script.read_text().replace("the same", "not the same"))
    capsys.readouterr()
    assert command(dummy, "check") == 1
    assert "01_dummy.py and 01_dummy.ipynb differ at cell c01; run: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("iteration=3", "has no parameter 'iteration': did you mean 'iterations'?"),
        ("zzz=3", "has no parameter 'zzz': there are fail, iterations, output, rate, seeds"),
        ("iterations=many", "iterations of notebook 01_dummy is given as 'many'"),
        ("iterations=true", "given as True"),
        ("iterations=2.5", "given as 2.5"),
        ("rate='1e-4'", "given as '1e-4'"),
        ("seeds=1", "given as 1"),
        ("seeds=[a]", "given as ['a']"),
        ("fail=1", "given as 1"),
        ("iterations", "'iterations' is not KEY=VALUE"),
        ("seeds=[1", "not valid YAML"),
        ("iterations=010", "010 can be read in several ways"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_runs(parameter, message, dummy, capsys):
    assert command(dummy, "run", NAME, dummy / "out.ipynb", "-p", parameter) == 2
    assert message in capsys.readouterr().err
    assert not (dummy / "out.ipynb").exists()


def test_a_wrong_request_is_refused(dummy, capsys):
    assert command(dummy, "run", "01_dumy", dummy / "out.ipynb") == 2
    assert "did you mean '01_dummy'?" in capsys.readouterr().err
    assert command(dummy, "run", NAME, dummy / "notebooks" / "01_dummy.ipynb") == 2
    assert "where the sources are" in capsys.readouterr().err


def test_parameters_are_typed_and_reach_the_record(dummy, capfd):
    given = [f"output={dummy}", "iterations=3", "rate=1e-1"]
    words = [word for parameter in given for word in ("-p", parameter)]
    code = command(dummy, "run", NAME, dummy / "new" / "out.ipynb", *words)
    messages = capfd.readouterr().err
    assert code == 0, messages
    assert "WARNING" not in messages  # ipykernel's, about a connection in clear text
    assert read_records(dummy)[0]["values"]["grpo"]["reward"] == pytest.approx(0.3)
    assert not (dummy / "notebooks" / "01_dummy.ipynb").exists()
    assert command(dummy, "run", NAME, dummy / "out.ipynb", "-p", "rate=1") == 0


def test_a_failing_cell_fails_the_run_and_is_shown(dummy, capfd):
    assert command(dummy, "run", NAME, dummy / "out.ipynb", "-p", "fail=true") == 1
    messages = capfd.readouterr().err
    assert "notebook 01_dummy failed:\nin cell [3]:" in messages
    assert "ValueError: asked to fail" in messages
    assert "\x1b" not in messages


@pytest.mark.parametrize(
    ("line", "timeout", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", 300, "the kernel died"),
        ("import time; time.sleep(60)", 3, "timed out"),
        ("output = ''", 300, "left no record in"),
    ],
)
def test_a_run_that_cannot_be_trusted_fails(line, timeout, message, dummy, capfd):
    script = dummy / "notebooks" / f"{NAME}.py"
    script.write_text(script.read_text().replace("if fail:", f"{line}\nif fail:"))
    words = ["--timeout", timeout, "-p", f"output={dummy}"]
    assert command(dummy, "run", NAME, dummy / "out.ipynb", *words) == 1
    assert message in capfd.readouterr().err


def test_nbval_compares_records_by_their_tolerance_and_other_outputs_exactly(dummy):
    assert command(dummy, "build") == 0
    folder, drift = dummy / "notebooks", str(dummy / "drift")
    built = (folder / "01_dummy.ipynb").read_text()
    changed = {
        "near": built.replace(drift, f"{drift}-near"),
        "far": built.replace(drift, f"{drift}-far"),
        "text": built.replace("the same each time\\n", "another\\n"),
        "record": built.replace(MIME, "application/json"),
    }
    (dummy / "drift-near").write_text("5e-4")
    (dummy / "drift-far").write_text("5e-2")
    for name, text in changed.items():
        assert text != built
        (folder / f"{name}.ipynb").write_text(text)
    plugins = ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", "-v"]
    files = [folder / f"{name}.ipynb" for name in ("01_dummy", *changed)]
    pytest_command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml"]
    done = subprocess.run(
        [*pytest_command, *plugins, *nbval, *files], cwd=ROOT, capture_output=True, text=True
    )
    # One line per cell, in order. The second cell of each notebook records.
    outcomes = re.findall(r"::Cell \d (PASSED|FAILED) ", done.stdout)
    assert outcomes[::2] == ["PASSED"] * 5, done.stdout
    recorded = dict(zip(("01_dummy", *changed), outcomes[1::2], strict=True))
    assert [name for name, outcome in recorded.items() if outcome == "PASSED"] == [
        "01_dummy",
        "near",
    ]
    assert "dummy.grpo.reward is 1.05, expected 1.0" in done.stdout
