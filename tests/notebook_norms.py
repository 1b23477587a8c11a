"""The norms of CONTRIBUTING.md for the source of a notebook and for the built notebook."""

import ast
import json
import re
from pathlib import Path

import nbformat

from bpgo.records import MIME
from reproduce import notebooks
from reproduce.notebook_source import parameters, read, tags

ROOT = Path(__file__).resolve().parent.parent
READS_OR_WRITES = {"open", "Path", "savefig", "save", "read_csv", "imread", "mkdir"}


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def faults_of_source(path):
    """What a script violates of the norms in CONTRIBUTING.md, one line each."""
    notebook = read(path)
    yield from faults_of_text(texts_of(notebook))
    yield from faults_of_exercises(notebook)
    code = code_of(notebook)
    if len([cell for cell in code if "solution" not in tags(cell)]) > 12:
        yield "more than 12 code cells, not counting solutions"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernelspec in the header is not python3"
    if "output" not in parameters(notebook):
        yield "no parameter `output`, the folder for its record"
    for cell in code:
        yield from (f"{cell.id}: {fault}" for fault in faults_of_cell(cell))


def faults_of_text(texts):
    everything, top = "\n".join(texts), texts[0] if texts else ""
    title = next((line for line in everything.splitlines() if line.startswith("#")), "")
    prose = re.sub(r"\$[^$]*\$|<[^>]*>", " ", everything)  # without formulas and HTML tags
    words = len(re.findall(r"[^\W\d_]{2,}", prose))
    if "?" not in title:
        yield f"the title is not a question: {title!r}"
    time, hardware = r"\b(second|minute|hour)s?\b", r"\b(CPU|GPU|core)s?\b"
    if not (re.search(time, top) and re.search(hardware, top)):
        yield "the first cell does not say how long it takes, and on what hardware"
    if re.search(r"[\x00-\x08\x0b-\x1f]", everything):
        yield "a control character, such as what is left of \\alpha in a string that is not raw"
    if not 300 <= words <= 1200:  # ten minutes, or twenty with the figures
        yield f"{words} words of text (300 to 1200)"


def faults_of_exercises(notebook):
    texts = texts_of(notebook)
    numbers = re.findall(r"^\*\*\d\.\*\*", "\n".join(texts[-8:]), re.MULTILINE)
    if not 2 <= len(numbers) <= 3 or "## Exercises" not in "\n".join(texts):
        yield "no heading `## Exercises` with two or three exercises, which begin with **1.**"
    if not any({"solution", "hide-cell"} <= set(tags(cell)) for cell in notebook.cells):
        yield "no solution: a cell tagged solution and hide-cell"
    solutions = ["solution" in tags(cell) for cell in code_of(notebook)]
    if solutions != sorted(solutions):
        yield "code after a solution: it could need what only the solution defines"


def faults_of_cell(cell):
    lines = cell.source.splitlines()
    if len(lines) > 25:
        yield f"{len(lines)} lines (at most 25)"
    if re.search(r"^\s*[%!]\s*(pip|conda)\b", cell.source, re.MULTILINE):
        yield "an install"
        return
    python = "\n".join("" if line.lstrip()[:1] in "%!" else line for line in lines)
    for call in (node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)):
        path = path_constant(call)
        if path and not path.startswith(("/", "~", "http")):
            yield f"a relative path, {path!r}: where output goes is a parameter"
        if getattr(call.func, "id", None) == "record" and "output" not in ast.unparse(call):
            yield "records without `output`: a run would leave nothing"
    if "parameters" in tags(cell):
        # papermill --help-notebook expects one line each, and a second `=` breaks it.
        wrong = [line for line in lines if not re.fullmatch(r"\w+: \w+ = [^#=]+  # [^=]+", line)]
        yield from (f"write `name: type = literal  # what it is`, not {line!r}" for line in wrong)
    if re.search(r"\brecord\(", cell.source) and "nbval-check-output" not in tags(cell):
        yield "records, but is not tagged nbval-check-output: nothing would compare it"
    if re.search(r"\binteract\b.*\(", cell.source) and "nbval-skip" not in tags(cell):
        yield "is interactive, but is not tagged nbval-skip"


def path_constant(call):
    """The string literal that a call reads or writes as a file, if it does."""
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    first = call.args[0] if call.args else None
    if name in READS_OR_WRITES and isinstance(first, ast.Constant):
        return first.value if isinstance(first.value, str) else None
    return None


def faults_of_built(path):
    """What a built notebook violates of the norms, one line each."""
    notebook, text = nbformat.read(path, as_version=4), path.read_text()
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    shown = json.dumps(outputs)
    if len(text) > 300_000:
        yield f"{len(text) // 1000} kB (at most 300)"
    kernelspec = notebook.metadata.get("kernelspec", {})
    if kernelspec.get("name") != "python3" or len(notebook.metadata) != 1:
        yield "its metadata are not only a kernelspec python3"
    if [cell.id for cell in notebook.cells] != [f"c{i:02}" for i in range(len(notebook.cells))]:
        yield "the cells are not called c00, c01, ..."
    for cell in notebook.cells:
        metadata = {key: value for key, value in cell.metadata.items() if key != "tags"}
        if metadata != ({"jupyter": notebooks.FOLDED} if "solution" in tags(cell) else {}):
            yield f"{cell.id}: metadata beside tags, or a solution that is not folded"
    counts = [cell.execution_count for cell in code_of(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield "not executed from top to bottom"
    if any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs):
        yield "an error, a warning or a progress bar among the outputs"
    if '"image/' not in json.dumps([cell.get("outputs", []) for cell in notebook.cells[:4]]):
        yield "no figure among the first 4 cells"
    if MIME not in shown:
        yield "nothing is recorded"
    folders = [str(ROOT)]
    if Path.home() != Path("/"):  # the home of a user who has none
        folders.append(f"{Path.home()}/")
    if any(folder in shown for folder in folders) or re.search(r" at 0x[0-9a-f]{6}", shown):
        yield "an output names this machine's folders or addresses"
