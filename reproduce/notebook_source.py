"""Read a notebook's source, the percent script `notebooks/NN_name.py`, and its parameters."""

import ast
from pathlib import Path

import jupytext

from bpgo.text_files import Word
from reproduce.common import RequestError, nearest

ROOT = Path(__file__).resolve().parent.parent


def source(name, root=ROOT):
    """The script of a notebook, which may be given as 01_x, 01_x.py or notebooks/01_x.py."""
    folder = Path(root) / "notebooks"
    path = folder / f"{Path(name).stem}.py"
    if not path.exists():
        known = [other.stem for other in folder.glob("*.py")]
        raise RequestError(
            f"there is no notebook {path.stem!r} in {folder}{nearest(path.stem, known)}"
        )
    return path


def read(path):
    """The notebook that a percent script describes, without outputs. Its cells are c00, c01, ..."""
    notebook = jupytext.read(path, fmt="py:percent")
    for index, cell in enumerate(notebook.cells):
        cell.id = f"c{index:02}"
    return notebook


def tags(cell):
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def parameters(notebook):
    """{name: default} of the cell tagged `parameters`.

    Raises RequestError if that cell contains anything but assignments of literals.
    """
    cell = next((cell for cell in notebook.cells if "parameters" in tags(cell)), None)
    defaults = {}
    for statement in ast.parse(cell.source).body if cell else ():
        target = getattr(statement, "target", None) or getattr(statement, "targets", [None])[0]
        try:
            defaults[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            line = ast.unparse(statement)
            raise RequestError(
                f"the parameters cell contains {line!r}: write `name: type = literal`"
            ) from None
    return defaults


def check_parameters(given, defaults, name):
    """`given`, with integers converted to float where the default is a float.

    Raises RequestError for a name that is not in `defaults`, and for a value whose type differs
    from that of the default.
    """
    checked = {}
    for key, value in given.items():
        if key not in defaults:
            raise RequestError(
                f"notebook {name} has no parameter {key!r}{nearest(key, list(defaults))}"
            )
        if isinstance(value, Word):  # an unquoted yes, no, on or off
            is_bool = isinstance(defaults[key], bool)
            value = value.lower() in ("yes", "on") if is_bool else str(value)
        if not _same_type(value, defaults[key]):
            raise RequestError(
                f"parameter {key} of notebook {name} is given as {value!r}, which is not of the "
                f"type of its default {defaults[key]!r} (values are YAML: -p 'seeds=[0, 1]' "
                f"-p lr=1e-4)"
            )
        checked[key] = float(value) if type(defaults[key]) is float else value
    return checked


def _same_type(value, default):
    if default is None:
        return True
    if isinstance(default, list) and default:
        return isinstance(value, list) and all(_same_type(item, default[0]) for item in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)
