"""The table of a profile: means over seeds of what its records measured, with 95 % t intervals."""

import csv
import io
import os
import statistics

from scipy.special import stdtrit

from bpgo.files import write_atomic
from bpgo.records import read_record

# Metrics in the table, in this order, with the names of their columns.
METRICS = {
    "reward": "reward",
    "held_out": "held-out reward",
    "accuracy": "oracle accuracy",
    "accuracy_specified": "specified only",
    "motion": "motion",
    "visual": "visual quality",
    "overall": "overall",
    "flicker": "flicker",
    "first_frame": "first-frame distance",
    "diversity": "diversity",
    "distance": "distance",
    "seconds_per_iteration": "s/iteration",
}


def summary(work):
    """[(experiment, row, {metric: values over seeds})] of the existing records, in their order.

    work: the jobs of a profile. Only records whose values are {"before": {metric: number},
    objective: {metric: number}, ...} are part of the table.
    """
    rows = {}
    for job in work.values():
        values = read_record(job["record"])["values"] if os.path.exists(job["record"]) else {}
        if "before" not in values:
            continue
        for row, measured in values.items():
            empty = {metric: [] for metric in METRICS}
            over_seeds = rows.setdefault((job["experiment"], row), empty)
            for metric in METRICS:
                if measured.get(metric) is not None:
                    over_seeds[metric].append(measured[metric])
    return [(*key, over_seeds) for key, over_seeds in rows.items()]


def interval(values):
    """Mean, and half width of its 95 % t interval over seeds. The width of one seed is None."""
    if len(values) < 2:
        return statistics.fmean(values), None
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(stdtrit(len(values) - 1, 0.975)) * error


def table(rows):
    """The summary as lines of text cells: the mean ± half width of each metric that any row has."""
    metrics = [metric for metric in METRICS if any(measured[metric] for _, _, measured in rows)]
    lines = [["experiment", "objective", "seeds", *(METRICS[metric] for metric in metrics)]]
    for experiment, row, measured in rows:
        seeds = str(max(map(len, measured.values())))
        lines.append([experiment, row, seeds, *(_cell(measured[metric]) for metric in metrics)])
    return lines


def _cell(values):
    if not values:
        return "-"
    mean, width = interval(values)
    return f"{mean:.3f}" if width is None else f"{mean:.3f} ± {width:.3f}"


def write_tables(folder, rows, lines, profile):
    """Write `table.md` for people and `table.csv`, with one number per line, for machines."""
    note = (
        f"Mean ± half width of its 95 % t interval over seeds. "
        f"`make reproduce ARGS='--profile {profile}'`"
    )
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    text = "\n".join([note, "", head, "|---" * len(lines[0]) + "|", *body])
    write_atomic(folder / "table.md", text + "\n")

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["experiment", "objective", "metric", "seeds", "mean", "half_width"])
    for experiment, row, measured in rows:
        for metric, values in measured.items():
            if values:
                writer.writerow([experiment, row, metric, len(values), *interval(values)])
    write_atomic(folder / "table.csv", stream.getvalue())
