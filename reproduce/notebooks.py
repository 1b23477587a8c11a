"""Build, run and check the notebooks. Their sources are the percent scripts `notebooks/NN_name.py`.

    notebooks.py build [NAME ...]                      execute as it is and write the .ipynb
    notebooks.py run NAME OUTPUT.ipynb [-p key=value]  execute a copy with other parameters
    notebooks.py check [NAME ...]                      was each .ipynb built from its .py?
    notebooks.py students [--to FOLDER] [NAME ...]     copies without solutions and outputs

Exit code 0: done. 1: a notebook failed or differs from its source. 2: the request was wrong and
nothing was run. 130: interrupted.
"""

import argparse
import base64
import io
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from PIL import Image
from traitlets.config import Config

from bpgo.files import write_atomic
from bpgo.text_files import ParseError, parse_yaml
from reproduce.common import RequestError, locked, path_argument
from reproduce.notebook_source import ROOT, check_parameters, parameters, read, source, tags

CELL_TIMEOUT = 3600  # seconds
# How JupyterLab hides a solution. The web site hides it because of the tag hide-cell.
FOLDED = {"source_hidden": True, "outputs_hidden": True}
YOUR_TURN = "# Your turn: write your answer here and run it."
ERROR_LINES = 12  # lines of a failed cell's traceback that are shown


class ThisInterpreter(AsyncKernelManager):
    """Starts kernels in the interpreter that runs this file, whichever Jupyter calls python3."""

    @property
    def kernel_spec(self):
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


def execute(name, notebook, output, given=None, timeout=CELL_TIMEOUT):
    """Execute a notebook and return it. If it fails, print a report and return None.

    The executed notebook is saved to `output` after every cell. `given` are parameters that
    `check_parameters` returned. `timeout` is in seconds per cell.
    """
    try:
        return papermill.execute_notebook(
            notebook,
            str(output),
            parameters=given,
            progress_bar=False,
            execution_timeout=timeout,
            kernel_manager_class=ThisInterpreter,
            # ipykernel 7.3 and later otherwise warn of an unencrypted connection.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            # Printed text arrives in pieces that differ from run to run.
            coalesce_streams=True,
        )
    except papermill.PapermillExecutionError as error:
        # The report is read in logs too, so the colours are removed.
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
        report = [f"in cell [{error.exec_count}]:", *trace[-ERROR_LINES:]]
    except CellTimeoutError as error:
        report = str(error).splitlines()
    except DeadKernelError:
        cells = nbformat.read(output, 4).cells
        started = [cell for cell in cells if cell.metadata.papermill.start_time]
        report = ["the kernel died (out of memory?) in the cell"]
        report.append(started[-1].source if started else "(before the first cell)")
    finally:
        _remove_input_path(output)
    print(f"notebook {name} failed:", *report, sep="\n", file=sys.stderr)
    return None


# ------------------------------------------------------------------------------------ commands


def build(options):
    """Execute each script and write its .ipynb: code, outputs, tags and kernelspec only."""
    failed = 0
    for path in _chosen(options):
        started = time.monotonic()
        notebook, target = read(path), path.with_suffix(".ipynb")
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder) / target.name
            executed = execute(path.stem, notebook, scratch, timeout=options.timeout)
        if executed is None:
            failed = 1
            continue
        for cell in executed.cells:
            cell.metadata = _kept_metadata(cell)
        executed.metadata = {"kernelspec": notebook.metadata.kernelspec}
        shrink_images(executed)
        write_atomic(target, nbformat.writes(executed) + "\n")
        seconds, size = time.monotonic() - started, target.stat().st_size
        print(f"{target}: {seconds:.0f} s, {size / 1000:.0f} kB", flush=True)
    return failed


def _kept_metadata(cell):
    kept = {}
    if tags(cell):
        kept["tags"] = tags(cell)
    if "solution" in tags(cell):
        kept["jupyter"] = FOLDED
    return kept


def shrink_images(notebook):
    """Store figures with a palette of 256 colours: the same look at less than half the size."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = _with_palette(data["image/png"])


def _with_palette(png):
    """A PNG image, as base64 text, with 256 colours."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    small = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode() + "\n"


def run(options):
    """Execute a copy of one notebook. It succeeds if it writes a record to the folder `output`."""
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
        folder = given.get("output")
        if folder and not _written_since(started, Path(folder).glob("*.json")):
            print(f"notebook {path.stem} ended but left no record in {folder}", file=sys.stderr)
            return 1
        print(f"{output}: {time.time() - started:.0f} s", flush=True)
    return 0


def _written_since(started, files):
    return any(file.stat().st_mtime >= started for file in files)


def students(options):
    """Write copies for students: no outputs, and an empty cell in place of each solution."""
    options.to.mkdir(parents=True, exist_ok=True)
    for path in _chosen(options):
        notebook = read(path)
        for cell in notebook.cells:
            if "solution" in tags(cell):
                cell.source = YOUR_TURN if cell.cell_type == "code" else ""
                cell.metadata = {}
        notebook.cells = [cell for cell in notebook.cells if cell.source]
        notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}
        target = options.to / f"{path.stem}.ipynb"
        write_atomic(target, nbformat.writes(notebook) + "\n")
        print(target)
    return 0


def check(options):
    """List the .ipynb files whose cells differ from those of their script."""
    lines = [line for path in _chosen(options) if (line := drift(path))]
    print("\n".join(lines) or "every .ipynb has the cells of its .py")
    return 1 if lines else 0


def drift(path):
    """How the .ipynb of a script differs from it, in one line. None if it does not."""
    built = path.with_suffix(".ipynb")
    remedy = f"run: python reproduce/notebooks.py build {path.stem}"
    if not built.exists():
        return f"{built.name} does not exist; {remedy}"
    here, there = _contents(read(path)), _contents(nbformat.read(built, as_version=4))
    if here == there:
        return None
    where = f"in length ({len(here)} and {len(there)} cells)"
    for index, (cell, other) in enumerate(zip(here, there, strict=False)):
        if cell != other:
            where = f"at cell c{index:02}"
            break
    return f"{path.name} and {built.name} differ {where}; {remedy}"


def _contents(notebook):
    return [(cell.cell_type, cell.source, tags(cell)) for cell in notebook.cells]


# -------------------------------------------------------------------------------- command line


def main(arguments=None):
    """Run one command. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.verb(options)
    except RequestError as error:
        print(f"notebooks.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("notebooks.py: interrupted", file=sys.stderr)
        return 130


def _parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--root", type=path_argument, default=ROOT, help="the folder that contains notebooks/"
    )
    verbs = parser.add_subparsers(required=True, metavar="build | run | check | students")
    for verb in (build, run, check, students):
        command = verbs.add_parser(verb.__name__, description=verb.__doc__)
        command.set_defaults(verb=verb)
        if verb is run:
            command.add_argument("name", metavar="NAME")
            command.add_argument("output", type=path_argument, metavar="OUTPUT.ipynb")
            command.add_argument(
                "-p",
                dest="given",
                metavar="KEY=VALUE",
                type=_assignment,
                action="append",
                default=[],
            )
        else:
            command.add_argument("names", nargs="*", metavar="NAME", help="default: all notebooks")
        if verb is students:
            folder = Path("runs/students")
            command.add_argument(
                "--to",
                type=path_argument,
                metavar="FOLDER",
                default=folder,
                help="default: %(default)s",
            )
        if verb in (build, run):
            command.add_argument(
                "--timeout", type=int, default=CELL_TIMEOUT, help="seconds that a cell may take"
            )
    return parser


def _assignment(text):
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, parse_yaml(value)
    except ParseError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error.problem}") from error


def _chosen(options):
    names = options.names or sorted(path.stem for path in (options.root / "notebooks").glob("*.py"))
    return [source(name, options.root) for name in names]


def _remove_input_path(output):
    """Remove the source of the notebook, which papermill copies into its metadata."""
    if output.exists():
        notebook = nbformat.read(output, as_version=4)
        notebook.metadata.get("papermill", {}).pop("input_path", None)
        write_atomic(output, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    sys.exit(main())
