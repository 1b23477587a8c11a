"""Makes nbval compare the records of a notebook by their own tolerances, and the rest as it always does.

    python -m pytest -p tests.conftest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks/

nbval compares exact strings (in cells tagged `nbval-check-output`), which no trained number would ever pass.
"""

import sys
from pathlib import Path

from bpgo.records import MIME, agree

try:
    from nbval.plugin import IPyNbCell
except ImportError:  # then no notebook is collected, and there is nothing to compare
    IPyNbCell = None

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reproduce"))  # its scripts are modules here


def _split(outputs):
    """The records among a cell's outputs, and the other outputs."""
    records = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
    return records, [output for output in outputs if MIME not in output.get("data", {})]


def _comparing_records(compare_others):
    def compare_outputs(cell, test, ref, skip_compare=None):
        (came, test), (expected, ref) = _split(test), _split(ref)
        differences = [line for pair in zip(expected, came, strict=False) for line in agree(*pair)]
        if len(came) != len(expected):
            differences.append(f"the notebook holds {len(expected)} records here, {len(came)} came")
        if differences:
            cell.comparison_traceback = differences
            return False
        return compare_others(cell, test, ref, skip_compare)

    return compare_outputs


if IPyNbCell is not None:
    IPyNbCell.compare_outputs = _comparing_records(IPyNbCell.compare_outputs)
