"""The notebooks: their sources and the built files keep the norms of CONTRIBUTING.md, and they run.

The header of a script says how it is tested. `smallest` has the parameters of its shortest run, if
they differ from the defaults. `quick: true` means that it takes less than a minute as it stands.
Only the slow tests run the others as they stand.

    # jupyter:
    #   bpgo:
    #     smallest: {iterations: 1}
    #     quick: true
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from bpgo.config import read_config
from bpgo.files import SHIPPED
from bpgo.records import read_records
from reproduce import notebooks
from reproduce.notebook_source import parameters, read, tags
from tests.notebook_norms import code_of, faults_of_built, faults_of_cell, faults_of_source
from tests.test_presets import tiny_in_place_of

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))


def settings_of(path):
    """What the header of a script says about its tests."""
    return read(path).metadata.get("bpgo", {})


def as_parameters(paths):
    return [pytest.param(path, id=path.stem) for path in paths]


def slow_unless_quick(paths):
    """Parameters for pytest: notebooks that are not quick belong to the slow tests."""
    return [
        pytest.param(
            path, id=path.stem, marks=() if settings_of(path).get("quick") else pytest.mark.slow
        )
        for path in paths
    ]


# ------------------------------------------------------------------------------ norms of a source


def test_there_are_notebooks():
    assert SOURCES, "no notebooks/*.py: every other test here would pass"


@pytest.mark.parametrize("path", as_parameters(SOURCES))
def test_the_script_keeps_the_norms(path):
    assert list(faults_of_source(path)) == []


@pytest.mark.parametrize("path", as_parameters(SOURCES))
def test_papermill_lists_the_parameters_that_we_accept(path):
    notebook = read(path)
    assert list(papermill.inspect_notebook(notebook)) == list(parameters(notebook))


@pytest.mark.parametrize(
    "path", as_parameters([path for path in SOURCES if "Study(" in path.read_text()])
)
def test_preflight_is_the_first_thing_that_a_training_notebook_runs(path):
    notebook = read(path)
    code = [cell.source for cell in code_of(notebook) if "parameters" not in tags(cell)]
    statements = [line.partition("  #")[0] for line in code[0].splitlines()]
    assert [line for line in statements if line.startswith("study")][-1] == "study.preflight()"
    assert "Trainer(" not in code[0] and "study.start()" in "".join(code[1:])
    assert "processes" in parameters(notebook)
    assert re.search(r"Study\([^)]*processes", code[0])


def test_the_norms_notice_a_bad_notebook(tmp_path):
    bad = tmp_path / "99_bad.py"
    path = "Path('results/x.csv')\nrecord('x', {})"
    cells = {
        " [markdown]": "# # No title with $\alpha$",
        ' tags=["parameters"]': "n = 1",
        ' tags=["solution"]': "pass",
        "": "%pip install x",
        " ": path,
    }
    bad.write_text("\n\n".join(f"# %%{kind}\n{cell}" for kind, cell in cells.items()))
    found = "\n".join(faults_of_source(bad))
    for fault in (
        "not a question",
        "how long",
        "control character",
        "words",
        "`## Exercises`",
        "no solution",
        "after a solution",
        "python3",
        "parameter `output`",
        "n = 1",
        "install",
        "x.csv",
        "without `output`",
        "tagged nbval-check-output",
    ):
        assert fault in found, fault
    assert "lines" in "\n".join(faults_of_cell(nbformat.v4.new_code_cell("\n" * 30)))


# ---------------------------------------------------------------------- norms of a built notebook


@pytest.mark.parametrize("path", as_parameters(SOURCES))
def test_the_built_notebook_is_that_of_the_script(path):
    assert notebooks.drift(path) is None


@pytest.mark.parametrize("path", as_parameters(SOURCES))
def test_the_built_notebook_keeps_the_norms(path):
    assert list(faults_of_built(path.with_suffix(".ipynb"))) == []


def test_the_norms_notice_a_bad_build(tmp_path):
    output = nbformat.v4.new_output("stream", name="stderr", text=str(ROOT))
    cell = nbformat.v4.new_code_cell("1", outputs=[output], metadata={"tags": ["solution"]})
    built = tmp_path / "99_bad.ipynb"
    built.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])))
    found = "\n".join(faults_of_built(built))
    faults = ("kernelspec", "c00", "folded", "executed", "warning", "figure", "recorded", "folders")
    for fault in faults:
        assert fault in found, fault


def test_students_get_no_solution_and_everything_else(tmp_path, capsys):
    assert notebooks.main(["students", "--to", str(tmp_path)]) == 0
    for path in SOURCES:
        given, source = nbformat.read(tmp_path / f"{path.stem}.ipynb", as_version=4), read(path)
        nbformat.validate(given)
        solutions = [cell for cell in source.cells if "solution" in tags(cell)]
        kept = [cell.source for cell in source.cells if "solution" not in tags(cell)]
        cells = [cell.source for cell in given.cells]
        assert [cell for cell in cells if cell != notebooks.YOUR_TURN] == kept
        answers = sum(cell.cell_type == "code" for cell in solutions)
        assert cells.count(notebooks.YOUR_TURN) == answers > 0


# ---------------------------------------------------------------------------------------- running


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache for this test alone. Priors are made from rewards of the starting model in it."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))


def few_prompts(preset, file, every):
    """Write every n-th evaluation prompt of a preset to a file. Returns overrides that use it."""
    lines = (SHIPPED / read_config(preset).evaluation.prompts).read_text().splitlines(True)
    file.write_text("".join(lines[::every]))
    return [f"prompts={file}", f"evaluation.prompts={file}"]


def run(name, output, given):
    """Execute a notebook with these parameters. Returns the exit code of the command."""
    words = [word for key, value in given.items() for word in ("-p", f"{key}={json.dumps(value)}")]
    return notebooks.main(["run", name, str(output), *words])


@pytest.mark.parametrize(
    "path", as_parameters([path for path in SOURCES if settings_of(path).get("smallest")])
)
def test_the_notebook_runs_at_its_smallest(path, tmp_path, own_cache, capfd):
    given = {"output": str(tmp_path)} | settings_of(path)["smallest"]
    preset = parameters(read(path)).get("preset")
    if preset:
        given["overrides"] += few_prompts(preset, tmp_path / "few.jsonl", every=6)
    assert run(path.stem, tmp_path / "out.ipynb", given) == 0, capfd.readouterr().err
    assert read_records(tmp_path)  # record() refuses numbers that are not finite
    assert "input_path" not in nbformat.read(tmp_path / "out.ipynb", 4).metadata.papermill


@pytest.mark.parametrize("path", slow_unless_quick(SOURCES))
def test_running_the_notebook_again_gives_the_built_numbers(path):
    plugins = ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600"]
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-v"]
    command += [*plugins, *nbval, path.with_suffix(".ipynb")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "PASSED" in done.stdout, done.stdout


REAL = {
    "02_train_text_to_image": "t2i-flux-lowmem",
    "03_train_text_to_video": "t2v-wan2.1-1.3b-lowmem",
    "04_train_image_to_video": "i2v-wan2.2-a14b-lowmem",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_notebook_runs_the_preset_of_a_published_model(name, tmp_path, own_cache, capfd):
    """A tiny model takes the place of the published one. The rest is as in the preset.

    That includes its evaluation, what its prompts' file says, and its reward in another process.
    """
    path, *overrides = tiny_in_place_of(REAL[name])
    prompts = SHIPPED / read_config(REAL[name], overrides).prompts
    few = tmp_path / "few.jsonl"
    few.write_text("".join(prompts.read_text().splitlines(True)[:4]))
    overrides += [f"prompts={few}", "groups=2", "group_size=2"]
    overrides += ["sampling.steps=6", "evaluation.steps=2"]
    given = {"preset": REAL[name], "objectives": ["bpgo"], "iterations": 1, "evaluate_every": 1}
    given |= {"overrides": overrides, "checkpoint": path.partition("=")[2]}
    given |= {"output": str(tmp_path)}
    if name.startswith("04"):
        given["low_noise_iterations"] = 1
    assert run(name, tmp_path / "out.ipynb", given) == 0, capfd.readouterr().err
    assert read_records(tmp_path)
