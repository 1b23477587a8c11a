"""The notebooks: built from their sources, within the norms, and running.

A script says in its header how it is tested: `smallest`, the parameters of its shortest run, and `quick: true` where it
takes less than a minute as it stands; as they stand, the others run only among the slow tests.

    # jupyter:
    #   bpgo:
    #     smallest: {iterations: 1}
    #     quick: true
"""

import ast
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
from bpgo.records import MIME, read_records
from reproduce import notebooks
from tests.test_presets import tiny_in_place_of

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
READS_OR_WRITES = {"open", "Path", "savefig", "save", "read_csv", "imread", "mkdir"}


def header(path):
    return notebooks.read(path).metadata.get("bpgo", {})


def each(paths):
    """Parameters for `path`: quick notebooks run always, the others among the slow tests."""
    slow = [() if header(path).get("quick") else pytest.mark.slow for path in paths]
    return [
        pytest.param(path, id=path.stem, marks=mark) for path, mark in zip(paths, slow, strict=True)
    ]


def every(paths):
    return [pytest.param(path, id=path.stem) for path in paths]


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def constants(source):
    """String literals in `source` that are the first argument of a call which reads or writes a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in READS_OR_WRITES and isinstance(node.args[0].value, str):
                yield node.args[0].value


def faults_of_source(path):
    """What a script breaks of the norms in CONTRIBUTING.md, a line each."""
    notebook = notebooks.read(path)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    code = code_of(notebook)
    title = next((line for line in "\n".join(texts).splitlines() if line.startswith("#")), "")
    prose = re.sub(r"\$[^$]*\$|<[^>]*>", " ", "\n".join(texts))  # without formulas and HTML tags
    words = len(re.findall(r"[^\W\d_]{2,}", prose))
    top = texts[0] if texts else ""
    if "?" not in title:
        yield f"the title is no question: {title!r}"
    if not re.search(r"\b(second|minute|hour)s?\b", top) or not re.search(
        r"\b(CPU|GPU|core)s?\b", top
    ):
        yield "the first cell does not say how long it takes, and on what hardware"
    if not 300 <= words <= 1100:  # ten minutes, with its figures twenty
        yield f"{words} words of text (300 to 1100)"
    if len(shown := [cell for cell in code if "solution" not in tags(cell)]) > 12:
        yield f"{len(shown)} code cells beside the solutions (at most 12)"
    if not 2 <= len(
        re.findall(r"^\*\*\d\.\*\*", "\n".join(texts[-8:]), re.MULTILINE)
    ) <= 3 or "## Exercises" not in "\n".join(texts):
        yield "no two or three exercises under a heading of their own, each beginning with its number, **1.**"
    if not any("solution" in tags(cell) and "hide-cell" in tags(cell) for cell in notebook.cells):
        yield "no solution: a cell tagged solution and hide-cell"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernelspec in the header is not python3"
    if "output" not in notebooks.parameters(notebook):
        yield "no parameter `output`, the folder that its record goes to"
    for cell in code:
        yield from (f"{cell.id}: {fault}" for fault in faults_of_cell(cell))


def faults_of_cell(cell):
    lines = cell.source.splitlines()
    if len(lines) > 25:
        yield f"{len(lines)} lines (at most 25)"
    if re.search(r"^\s*[%!]\s*(pip|conda)\b", cell.source, re.MULTILINE):
        yield "an install"
        return
    for text in constants("\n".join("" if line.lstrip()[:1] in "%!" else line for line in lines)):
        if text and not text.startswith(("/", "~", "http")):
            yield f"a relative path, {text!r}: where output goes is a parameter"
    if "parameters" in tags(cell):
        # papermill's --help-notebook takes one line each, and is thrown off by a second `=`.
        bad = [line for line in lines if not re.fullmatch(r"\w+: \w+ = [^#=]+  # [^=]+", line)]
        yield from (f"write `name: type = literal  # what it is`, not {line!r}" for line in bad)
    if re.search(r"\brecord\(", cell.source) and "nbval-check-output" not in tags(cell):
        yield "records, but is not tagged nbval-check-output: nothing would compare it"
    if re.search(r"\binteract\b.*\(", cell.source) and "nbval-skip" not in tags(cell):
        yield "is interactive, but is not tagged nbval-skip"


def faults_of_built(path):
    """What a built notebook breaks of the norms, a line each."""
    notebook, text = nbformat.read(path, as_version=4), path.read_text()
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    shown = json.dumps(outputs)
    if len(text) > 300_000:
        yield f"{len(text) // 1000} kB (at most 300)"
    if (
        notebook.metadata.get("kernelspec", {}).get("name") != "python3"
        or len(notebook.metadata) != 1
    ):
        yield "its metadata are not a kernelspec python3 and nothing else"
    if [cell.id for cell in notebook.cells] != [f"c{i:02}" for i in range(len(notebook.cells))]:
        yield "the cells are not called c00, c01, ..."
    beside = [
        {key: value for key, value in cell.metadata.items() if key != "tags"}
        for cell in notebook.cells
    ]
    if beside != [
        {"jupyter": notebooks.FOLDED} if "solution" in tags(cell) else {} for cell in notebook.cells
    ]:
        yield "cells have metadata beside tags, or a solution is not folded"
    if [cell.execution_count for cell in code_of(notebook)] != [
        *range(1, len(code_of(notebook)) + 1)
    ]:
        yield "not executed from top to bottom"
    if any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs):
        yield "an error, a warning or a progress bar among the outputs"
    first = json.dumps([cell.get("outputs", []) for cell in notebook.cells[:4]])
    if '"image/' not in first:
        yield "no picture among the first 4 cells"
    if MIME not in shown:
        yield "nothing is recorded"
    if (
        str(ROOT) in shown
        or (Path.home() != Path("/") and f"{Path.home()}/" in shown)
        or re.search(r" at 0x[0-9a-f]{6}", shown)
    ):
        yield "an output names this machine's folders or addresses"


def test_there_are_notebooks():
    assert SOURCES, "no notebooks/*.py: every other test here would pass"


@pytest.mark.parametrize("path", every(SOURCES))
def test_the_built_notebook_is_that_of_the_script(path):
    assert notebooks.drift(path) is None


@pytest.mark.parametrize("path", every(SOURCES))
def test_the_script_keeps_the_norms(path):
    assert list(faults_of_source(path)) == []


@pytest.mark.parametrize("path", every(SOURCES))
def test_the_built_notebook_keeps_the_norms(path):
    assert list(faults_of_built(path.with_suffix(".ipynb"))) == []


@pytest.mark.parametrize("path", every(SOURCES))
def test_papermill_lists_the_parameters_that_we_accept(path):
    notebook = notebooks.read(path)
    assert list(papermill.inspect_notebook(notebook)) == list(notebooks.parameters(notebook))


def run(name, output, *parameters, root=ROOT):
    command = [
        sys.executable,
        ROOT / "reproduce" / "notebooks.py",
        "--root",
        root,
        "run",
        name,
        output,
    ]
    command += [word for parameter in parameters for word in ("-p", parameter)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_notebook_runs_at_its_smallest(path, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "BPGO_CACHE", str(tmp_path / "cache")
    )  # rewards of the starting model, which a prior is made of
    smallest = [
        f"{key}={json.dumps(value)}" for key, value in header(path).get("smallest", {}).items()
    ]
    done = run(path.stem, tmp_path / "out.ipynb", f"output={tmp_path}", *smallest)
    assert done.returncode == 0, done.stderr
    assert read_records(tmp_path)  # whose numbers record() found finite
    assert "input_path" not in nbformat.read(tmp_path / "out.ipynb", 4).metadata.papermill


def test_students_get_no_solution_and_nothing_else_less(tmp_path, capsys):
    assert notebooks.main(["students", "--to", str(tmp_path)]) == 0
    for path in SOURCES:
        given, source = (
            nbformat.read(tmp_path / f"{path.stem}.ipynb", as_version=4),
            notebooks.read(path),
        )
        nbformat.validate(given)
        kept = [cell.source for cell in source.cells if "solution" not in tags(cell)]
        assert [cell.source for cell in given.cells if cell.source != notebooks.YOUR_TURN] == kept
        assert all(not cell.get("outputs") for cell in given.cells)
        answers = sum(
            "solution" in tags(cell) and cell.cell_type == "code" for cell in source.cells
        )
        assert sum(cell.source == notebooks.YOUR_TURN for cell in given.cells) == answers > 0


@pytest.mark.parametrize("path", each(SOURCES))
def test_the_students_version_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    assert notebooks.main(["students", "--to", str(tmp_path), path.stem]) == 0
    smallest = header(path).get("smallest", {})
    papermill.execute_notebook(
        tmp_path / f"{path.stem}.ipynb",
        tmp_path / "out.ipynb",
        smallest,
        progress_bar=False,
        kernel_name="python3",
    )


REAL = {
    "02_train_text_to_image": "t2i-flux-lowmem",
    "03_train_text_to_video": "t2v-wan2.1-1.3b-lowmem",
    "04_train_image_to_video": "i2v-wan2.2-a14b-lowmem",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_notebook_runs_a_published_model_s_preset(name, tmp_path, monkeypatch):
    """With a tiny model in place of the published one: its evaluation, its prompts' facts, its reward's process, from a kernel."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    path, *overrides = tiny_in_place_of(REAL[name])
    few, prompts = tmp_path / "few.jsonl", SHIPPED / read_config(REAL[name], overrides).prompts
    few.write_text("".join(prompts.read_text().splitlines(True)[:4]))
    overrides += [
        f"prompts={few}",
        "groups=2",
        "group_size=2",
        "sampling.steps=6",
        "evaluation.steps=2",
    ]
    given = {
        "preset": REAL[name],
        "objectives": ["bpgo"],
        "iterations": 1,
        "evaluate_every": 1,
        "overrides": overrides,
    }
    given |= {"checkpoint": path.partition("=")[2], "output": str(tmp_path)}
    given |= {"low_noise_iterations": 1} if name.startswith("04") else {}
    done = run(
        name,
        tmp_path / "out.ipynb",
        *(f"{key}={json.dumps(value)}" for key, value in given.items()),
    )
    assert done.returncode == 0, done.stderr
    assert read_records(tmp_path)


# ------------------------------------------------------------------------------- preflight, and several processes


SMALL = [
    "groups=2",
    "group_size=2",
    "optimiser.updates=1",
    "sampling.steps=3",
    "evaluation.steps=2",
    "evaluation.samples=2",
]


def study_of(output, *overrides, processes=1):
    from reproduce.analysis.study import Study

    return Study(
        "t2i-tiny", ["bpgo"], [0], 2, 1, "", [*SMALL, *overrides], str(output), {}, processes
    )


def test_preflight_of_a_study_is_one_line_where_nothing_is_missing(capsys):
    study_of("").preflight()
    assert (
        capsys.readouterr().out == "preflight: nothing is missing\n"
    )  # the same on each machine, for the built notebook


def test_preflight_of_a_study_stops_with_the_remedies(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    study = study_of("", "generator.path=someone/thing", "prompts=nowhere.txt")
    with pytest.raises(RuntimeError) as told:
        study.preflight()
    assert "Missing: someone/thing is not here: run this again with --download" in str(told.value)
    assert "Missing: prompts: there is no file nowhere.txt" in str(told.value)
    assert "free on that disk" in capsys.readouterr().out
    with pytest.raises(
        RuntimeError, match=r"groups=2 cannot be split over optimiser\.updates=1 times 3 processes"
    ):
        study_of("", processes=3).preflight()


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if "Study(" in path.read_text()], ids=lambda path: path.stem
)
def test_preflight_is_the_first_thing_that_a_training_notebook_runs(path):
    notebook = notebooks.read(path)
    first = next(cell for cell in code_of(notebook) if "parameters" not in tags(cell))
    assert [
        line.partition("  #")[0] for line in first.source.splitlines() if line.startswith("study")
    ][-1] == "study.preflight()"
    assert "Trainer" not in first.source and "study.start()" in "".join(
        cell.source for cell in code_of(notebook)
    )
    assert "processes" in notebooks.parameters(notebook) and re.search(
        r"Study\(.*processes", first.source
    )


IN_TWO = """
import sys
from reproduce.analysis.study import Study
from bpgo.trainer import Trainer

output, *overrides = sys.argv[1:]
study = Study("t2i-tiny", ["bpgo"], [0], 2, 1, "", overrides, output, {}, processes=2)
study.preflight()
start = study.start()
assert start.accelerator.num_processes == 1 and start.iteration == 0
Trainer.step = None  # nothing is left to be trained here
logs, after = study.train()
assert [row["iteration"] for row in logs["bpgo"][0].metrics] == [1, 2]
assert after["bpgo"].pixels.shape == (2, 2, 3, 32, 32)
study.start()
print("done", *(row["reward"] for row in logs["bpgo"][0].metrics))
"""


def test_a_study_trains_in_two_processes(tmp_path, monkeypatch):
    """By accelerate.notebook_launcher, before this process has a Trainer; the runs are those of one process."""
    words = tmp_path / "words.txt"
    words.write_text("a red circle\na shape")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    overrides = [
        f"evaluation.prompts={words}",
        "evaluation.metrics=[]",
        "evaluation.held_out=null",
    ]
    done = subprocess.run(
        [sys.executable, "-c", IN_TWO, tmp_path / "two", *SMALL, *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Launching training on 2 ") == 1
    logs, _ = study_of(tmp_path / "one", *overrides).train()
    rewards = list(map(float, done.stdout.splitlines()[-1].split()[1:]))
    assert rewards == pytest.approx([row["reward"] for row in logs["bpgo"][0].metrics], abs=1e-4)


NBVAL = "-p tests.conftest -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=600 -v".split()


def nbval(path):
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", *NBVAL, path]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("path", each(SOURCES))
def test_the_built_numbers_come_again(path):
    done = nbval(path.with_suffix(".ipynb"))
    assert done.returncode == 0 and "PASSED" in done.stdout, done.stdout


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
    """A folder with notebooks/01_dummy.py; the number in its file `drift` is added to the recorded one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "drift").write_text("0")
    script = tmp_path / "notebooks" / "01_dummy.py"
    script.parent.mkdir()
    script.write_text(DUMMY.replace("DRIFT", str(tmp_path / "drift")))
    return tmp_path


def test_a_built_notebook_is_the_same_each_time_and_drift_is_noticed(dummy, capsys):
    script = dummy / "notebooks" / "01_dummy.py"
    built = script.with_suffix(".ipynb")
    arguments = ["--root", str(dummy)]
    assert notebooks.main([*arguments, "check"]) == 1
    assert notebooks.main([*arguments, "build"]) == 0
    first = built.read_bytes()
    assert notebooks.main([*arguments, "build", "notebooks/01_dummy.py"]) == 0
    assert built.read_bytes() == first
    assert notebooks.main([*arguments, "check"]) == 0
    script.write_text(script.read_text().replace("the same", "not the same"))
    capsys.readouterr()
    assert notebooks.main([*arguments, "check"]) == 1
    assert "01_dummy.py and 01_dummy.ipynb differ at cell c01; run: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ("iteration=3", "has no parameter 'iteration': did you mean 'iterations'?"),
        ("zzz=3", "has no parameter 'zzz': there are fail, iterations, output, rate, seeds"),
        ("iterations=many", "parameter iterations of notebook 01_dummy is given as 'many'"),
        ("iterations=true", "given as True"),
        ("iterations=2.5", "given as 2.5"),
        ("rate='1e-4'", "given as '1e-4'"),
        ("seeds=1", "given as 1"),
        ("seeds=[a]", "given as ['a']"),
        ("fail=1", "given as 1"),
        ("iterations", "'iterations' is not KEY=VALUE"),
        ("seeds=[1", "is not YAML"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_runs(parameter, says, dummy, capsys):
    arguments = ["--root", str(dummy), "run", "01_dummy", str(dummy / "out.ipynb"), "-p", parameter]
    try:
        code = notebooks.main(arguments)
    except SystemExit as left:  # argparse's way
        code = left.code
    assert code == 2
    assert says in capsys.readouterr().err
    assert not (dummy / "out.ipynb").exists()


def test_a_wrong_request_is_refused(dummy, capsys):
    arguments = ["--root", str(dummy), "run"]
    assert notebooks.main([*arguments, "01_dumy", str(dummy / "out.ipynb")]) == 2
    assert "did you mean '01_dummy'?" in capsys.readouterr().err
    assert (
        notebooks.main([*arguments, "01_dummy", str(dummy / "notebooks" / "01_dummy.ipynb")]) == 2
    )
    assert "where the sources are" in capsys.readouterr().err


def test_parameters_are_typed_and_reach_the_record(dummy):
    done = run(
        "01_dummy",
        dummy / "new" / "out.ipynb",
        f"output={dummy}",
        "iterations=3",
        "rate=1e-1",
        root=dummy,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr  # ipykernel's, of a connection in clear text
    assert read_records(dummy)[0]["values"]["grpo"]["reward"] == pytest.approx(0.3)
    assert not (dummy / "notebooks" / "01_dummy.ipynb").exists()
    assert run("01_dummy", dummy / "out.ipynb", "rate=1", root=dummy).returncode == 0


def test_a_failing_cell_fails_the_run_and_is_shown(dummy):
    done = run("01_dummy", dummy / "out.ipynb", "fail=true", root=dummy)
    assert done.returncode == 1
    assert "notebook 01_dummy failed:\nin cell [3]:" in done.stderr
    assert "ValueError: asked to fail" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("line", "timeout", "says"),
    [
        ("import os; os.kill(os.getpid(), 9)", 300, "the kernel died"),
        ("import time; time.sleep(60)", 3, "timed out"),
        ("output = ''", 300, "left no record in"),
    ],
)
def test_a_run_that_cannot_be_trusted_fails(line, timeout, says, dummy, capfd):
    script = dummy / "notebooks" / "01_dummy.py"
    script.write_text(script.read_text().replace("if fail:", f"{line}\nif fail:"))
    arguments = [
        "--root",
        str(dummy),
        "run",
        "01_dummy",
        str(dummy / "out.ipynb"),
        "--timeout",
        str(timeout),
    ]
    assert notebooks.main([*arguments, "-p", f"output={dummy}"]) == 1
    assert says in capfd.readouterr().err


def test_nbval_compares_records_by_their_tolerance(dummy):
    assert notebooks.main(["--root", str(dummy), "build"]) == 0
    built = dummy / "notebooks" / "01_dummy.ipynb"
    (dummy / "drift").write_text("5e-4")
    assert nbval(built).returncode == 0
    (dummy / "drift").write_text("5e-2")
    done = nbval(built)
    assert done.returncode == 1
    assert "dummy.grpo.reward is 1.05, expected 1.0" in done.stdout


def test_nbval_still_compares_the_other_outputs(dummy):
    assert notebooks.main(["--root", str(dummy), "build"]) == 0
    built = dummy / "notebooks" / "01_dummy.ipynb"
    built.write_text(built.read_text().replace("the same each time\\n", "another\\n"))
    assert nbval(built).returncode == 1
    built.write_text(built.read_text().replace(MIME, "application/json"))
    done = nbval(built)
    assert "holds 0 records here, 1 came" in done.stdout


def test_the_norms_notice_a_bad_notebook(tmp_path):
    bad = tmp_path / "99_bad.py"
    cells = ["# # No question", "n = 1", "%pip install x", "Path('results/x.csv')\nrecord('x', {})"]
    kinds = [" [markdown]", ' tags=["parameters"]', "", ""]
    bad.write_text(
        "\n\n".join(f"# %%{kind}\n{cell}" for kind, cell in zip(kinds, cells, strict=True))
    )
    found = "\n".join(faults_of_source(bad))
    for fault in (
        "no question",
        "how long",
        "words",
        "python3",
        "`output`",
        "n = 1",
        "install",
        "x.csv",
        "tagged",
    ):
        assert fault in found
    assert "lines" in "\n".join(faults_of_cell(nbformat.v4.new_code_cell("\n" * 30)))

    cell = nbformat.v4.new_code_cell(
        "1", outputs=[nbformat.v4.new_output("stream", name="stderr", text=str(ROOT))]
    )
    built = tmp_path / "99_bad.ipynb"
    built.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])))
    found = "\n".join(faults_of_built(built))
    for fault in ("kernelspec", "c00", "executed", "warning", "picture", "recorded", "folders"):
        assert fault in found
