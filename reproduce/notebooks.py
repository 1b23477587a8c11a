"""Build, run and check the notebooks; the percent script `notebooks/NN_name.py` is the source of each.

    python reproduce/notebooks.py build [NAME ...]                      execute as it stands, write the .ipynb
    python reproduce/notebooks.py run NAME OUTPUT.ipynb [-p key=value]  execute a copy with other parameters
    python reproduce/notebooks.py check [NAME ...]                      is each .ipynb built from its .py?
    python reproduce/notebooks.py students [--to FOLDER] [NAME ...]     copies without solutions and outputs (runs/students)

Exit code 0: done; 1: a notebook failed or differs from its source; 2: the request was wrong, nothing was run;
130: interrupted.
"""

import argparse
import ast
import base64
import contextlib
import difflib
import fcntl
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
import papermill
import yaml
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from PIL import Image
from traitlets.config import Config

from bpgo.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 3600  # seconds
FOLDED = {
    "source_hidden": True,
    "outputs_hidden": True,
}  # what JupyterLab does with a solution; the site goes by the tag hide-cell
YOUR_TURN = "# Your turn: write your answer here, and run it."
ERROR_LINES = 12  # shown of a failing cell's traceback


class RequestError(ValueError):
    """What was asked for cannot be done; the message says what, where, and what to do instead."""


class ThisInterpreter(AsyncKernelManager):
    """Starts kernels in the interpreter that runs this file, whatever `python3` means to Jupyter here."""

    @property
    def kernel_spec(self):
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


class Yaml(yaml.SafeLoader):
    """YAML with the numbers of YAML 1.2, where 1e-4 is one; PyYAML by itself takes it for a string."""


Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def source(name, root=ROOT):
    """The script of a notebook that is named as 01_x, 01_x.py or notebooks/01_x.py."""
    folder = Path(root) / "notebooks"
    path = folder / f"{Path(name).stem}.py"
    if not path.exists():
        known = [other.stem for other in folder.glob("*.py")]
        raise RequestError(
            f"there is no notebook {path.stem!r} in {folder}{nearest(path.stem, known)}"
        )
    return path


def read(path):
    """The notebook that a percent script stands for, without outputs, its cells called c00, c01, ..."""
    notebook = jupytext.read(path, fmt="py:percent")
    for index, cell in enumerate(notebook.cells):
        cell.id = f"c{index:02}"
    return notebook


def parameters(notebook):
    """{name: default} of the cell tagged `parameters`. RequestError where it assigns more than literals."""
    cell = next(
        (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())), None
    )
    defaults = {}
    for statement in ast.parse(cell.source).body if cell else ():
        target = getattr(statement, "target", None) or getattr(statement, "targets", [None])[0]
        try:
            defaults[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            line = ast.unparse(statement)
            raise RequestError(
                f"the parameters cell holds {line!r}: write `name: type = literal`"
            ) from None
    return defaults


def check_parameters(given, defaults, name):
    """`given`, with whole numbers as float where the default is one.

    RequestError for a name that is not in `defaults` and for a value of another type than the default there.
    """
    for key, value in given.items():
        if key not in defaults:
            raise RequestError(
                f"notebook {name} has no parameter {key!r}{nearest(key, list(defaults))}"
            )
        if not _same_type(value, defaults[key]):
            raise RequestError(
                f"parameter {key} of notebook {name} is given as {value!r}, which is not the type of its "
                f"default {defaults[key]!r} (values are YAML: -p 'seeds=[0, 1]' -p lr=1e-4)"
            )
    return {
        key: float(value) if type(defaults[key]) is float else value for key, value in given.items()
    }


def execute(name, notebook, output, given=None, timeout=CELL_TIMEOUT):
    """The executed notebook, which is saved to `output` after every cell; None, with a report, if it fails.

    `given` are parameters that `check_parameters` returned; `timeout` is in seconds a cell.
    """
    try:
        return papermill.execute_notebook(
            notebook,
            str(output),
            parameters=given,
            progress_bar=False,
            execution_timeout=timeout,
            kernel_manager_class=ThisInterpreter,
            # ipykernel 7.3 and later warn, in the notebook's log, of a connection in clear text.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            coalesce_streams=True,  # the pieces in which a text arrives differ from run to run
        )
    except papermill.PapermillExecutionError as error:
        # Colours out: this is read in logs too.
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
        report = [f"in cell [{error.exec_count}]:", *trace[-ERROR_LINES:]]
    except CellTimeoutError as error:
        report = str(error).splitlines()
    except DeadKernelError:
        ran = [
            cell for cell in nbformat.read(output, 4).cells if cell.metadata.papermill.start_time
        ]
        report = [
            "the kernel died (out of memory?) in the cell",
            ran[-1].source if ran else "(before any)",
        ]
    finally:
        _forget_input(output)
    print(f"notebook {name} failed:", *report, sep="\n", file=sys.stderr)
    return None


def build(options):
    """Write the .ipynb of each script: code, outputs, tags and kernelspec, and nothing else of the run."""
    failed = 0
    for path in _chosen(options):
        started = time.monotonic()
        notebook, target = read(path), path.with_suffix(".ipynb")
        with tempfile.TemporaryDirectory() as folder:
            executed = execute(
                path.stem, notebook, Path(folder) / target.name, timeout=options.timeout
            )
        if executed is None:
            failed = 1
            continue
        for cell in executed.cells:
            tags = cell.metadata.get("tags")
            cell.metadata = ({"tags": tags} if tags else {}) | (
                {"jupyter": FOLDED} if "solution" in (tags or ()) else {}
            )
        executed.metadata = {"kernelspec": notebook.metadata.kernelspec}
        shrink_pictures(executed)
        write_atomic(target, nbformat.writes(executed) + "\n")
        seconds, size = time.monotonic() - started, target.stat().st_size
        print(f"{target}: {seconds:.0f} s, {size / 1000:.0f} kB", flush=True)
    return failed


def shrink_pictures(notebook):
    """Store the figures with a palette of 256 colours: less than half the size, and the same to the eye."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if "image/png" in output.get("data", {}):
            figure = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert(
                "RGB"
            )
            small = io.BytesIO()
            figure.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
            output.data["image/png"] = base64.b64encode(small.getvalue()).decode() + "\n"


def run(options):
    """Execute a copy of one notebook. It has succeeded when it leaves a record in its parameter `output`."""
    path, output = source(options.name, options.root), options.output
    if output.suffix != ".ipynb" or output.resolve().parent == path.resolve().parent:
        raise RequestError(
            f"OUTPUT is {output}: give an .ipynb outside {path.parent}, where the sources are"
        )
    notebook = read(path)
    given = check_parameters(dict(options.given), parameters(notebook), path.stem)
    with locked(output.with_name(f".{output.stem}.lock")):
        started = time.time()
        print(f"{output}: started", flush=True)
        if execute(path.stem, notebook, output, given, options.timeout) is None:
            print(f"(see {output})", file=sys.stderr)
            return 1
        records = Path(given.get("output") or output.parent).glob("*.json")
        if given.get("output") and not any(record.stat().st_mtime >= started for record in records):
            print(
                f"notebook {path.stem} ended but left no record in {given['output']}",
                file=sys.stderr,
            )
            return 1
        print(f"{output}: {time.time() - started:.0f} s", flush=True)
    return 0


def students(options):
    """Copies for students: no outputs, and for each solution an empty cell to write one's own in."""
    options.to.mkdir(parents=True, exist_ok=True)
    for path in _chosen(options):
        notebook = read(path)
        for cell in notebook.cells:
            if "solution" in cell.metadata.get("tags", ()):
                cell.source, cell.metadata = (YOUR_TURN if cell.cell_type == "code" else ""), {}
        notebook.cells = [cell for cell in notebook.cells if cell.source]
        notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}
        write_atomic(options.to / f"{path.stem}.ipynb", nbformat.writes(notebook) + "\n")
        print(options.to / f"{path.stem}.ipynb")
    return 0


def check(options):
    """Say which .ipynb do not hold the cells of their script."""
    lines = [line for path in _chosen(options) if (line := drift(path))]
    print("\n".join(lines) or "every .ipynb holds the cells of its .py")
    return 1 if lines else 0


def drift(path):
    """How the .ipynb beside a script differs from it, in one line; None where it does not."""
    built, remedy = (
        path.with_suffix(".ipynb"),
        f"run: python reproduce/notebooks.py build {path.stem}",
    )
    if not built.exists():
        return f"{built.name} does not exist; {remedy}"
    here, there = (
        [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]
        for notebook in (read(path), nbformat.read(built, as_version=4))
    )
    if here == there:
        return None
    same = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), None)
    where = (
        f"at cell c{same:02}"
        if same is not None
        else f"in length ({len(here)} and {len(there)} cells)"
    )
    return f"{path.name} and {built.name} differ {where}; {remedy}"


@contextlib.contextmanager
def locked(path):
    """Hold the lock file `path`; where another process does, say which, and wait. Dying lets go of it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(
                f"waiting for process {file.read()}, which is at work in {path.parent}", flush=True
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file


def nearest(word, known):
    """The end of an error message: the known name that `word` may have meant, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return (
        f": did you mean {near[0]!r}?"
        if near
        else f": there are {', '.join(sorted(known)) or 'none'}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder that holds notebooks/")
    verbs = parser.add_subparsers(required=True, metavar="build | run | check | students")
    for verb in (build, run, check, students):
        command = verbs.add_parser(verb.__name__, description=verb.__doc__)
        command.set_defaults(verb=verb)
        if verb is run:
            command.add_argument("name", metavar="NAME")
            command.add_argument("output", type=Path, metavar="OUTPUT.ipynb")
            command.add_argument(
                "-p", dest="given", metavar="KEY=VALUE", type=_assignment, action="append"
            )
            command.set_defaults(given=[])
        else:
            command.add_argument("names", nargs="*", metavar="NAME", help="all where none is given")
        if verb is students:
            command.add_argument(
                "--to",
                type=Path,
                metavar="FOLDER",
                default=Path("runs/students"),
                help="(%(default)s)",
            )
        if verb in (build, run):
            command.add_argument(
                "--timeout", type=int, default=CELL_TIMEOUT, help="seconds a cell may take"
            )
    options = parser.parse_args(arguments)
    try:
        return options.verb(options)
    except RequestError as error:
        print(f"notebooks.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("notebooks.py: interrupted", file=sys.stderr)
        return 130


def _assignment(text):
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, yaml.load(value, Yaml)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"the value in {text!r} is not YAML: {error}") from error


def _chosen(options):
    names = options.names or sorted(path.stem for path in (options.root / "notebooks").glob("*.py"))
    return [source(name, options.root) for name in names]


def _same_type(value, default):
    if default is None:
        return True
    if isinstance(default, list) and default:
        return isinstance(value, list) and all(_same_type(item, default[0]) for item in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def _forget_input(output):
    """Take out the copy of the whole source that papermill, for lack of a path, writes into the metadata."""
    if output.exists():
        notebook = nbformat.read(output, as_version=4)
        notebook.metadata.get("papermill", {}).pop("input_path", None)
        write_atomic(output, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    sys.exit(main())
