"""README.md of the results of `gpu_bench.py`: how to make them, and a table for each GPU."""

HEAD = """\
# One BPGO iteration of the published architectures on one GPU

```sh
python reproduce/gpu_bench.py                  # all cases; the same command resumes
python reproduce/gpu_bench.py flux-512-lora    # one of them
python reproduce/gpu_bench.py --tiny           # tiny models, into runs/gpu-tiny: does it work?
```

Needs one 80 GB GPU and 128 GB of RAM. Nothing is downloaded, and the weights are random. In your
own environment, with what `pyproject.toml` requires: `PYTHONPATH=. python
reproduce/gpu_bench.py`. The script writes this page, and `gpu_bench.json` with more numbers.

Each row is a preset with one prompt, few steps and few rows, as *setting* says. The second
iteration is measured. GB are 10^9 bytes. *Peak*: the most that torch had allocated. *Foreseen*:
what `bpgo.preflight.memory` expects, without text encoders and rewards, as here. *TFLOP/s*:
operations, by `bpgo.preflight.flops`, over the seconds of sampling and update. *Of matmul*: the
same, relative to a square matrix product in the same precision. *Largest*: the first of several
sizes that fits; where it is not measured, the first that would be tried."""
COLUMNS = (
    "case",
    "variant",
    "setting",
    "sample s",
    "decode s",
    "score s",
    "update s",
    "iteration s",
    "s per row",
    "peak GB",
    "foreseen GB",
    "within 15 %",
    "TFLOP/s",
    "of matmul",
)
TOLERANCE = 0.15  # of the memory that was foreseen


def report(cards):
    """README.md. cards: {name of a GPU: [(results, whether they were measured)]}.

    A name is None if there are no results.
    """
    parts = [HEAD]
    for name, rows in cards.items():
        parts.append(
            f"## {name}" if name else "## Not measured: the script has not run on a GPU yet"
        )
        lines = [COLUMNS, ["---"] * len(COLUMNS)]
        lines += [cells(known, measured) for known, measured in rows]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def cells(known, measured):
    """A row of the table. Without measurements only what is foreseen is shown."""
    front = [known["case"], known["variant"], known["setting"]]
    if "seconds" not in known:
        why = "out of memory" if measured else "not measured"
        return [*front, "-", "-", "-", "-", why, "-", *_memory_cells(known), "-", "-"]
    times = [*known["seconds"].values(), known["iteration"], known["iteration"] / known["rows"]]
    speed, limit = known["flops_per_second"], known["matmul_rate"]
    return [
        *front,
        *(f"{seconds:.3g}" for seconds in times),
        *_memory_cells(known),
        f"{speed / 1e12:.3g}",
        f"{speed / limit:.0%} of {limit / 1e12:.3g}",
    ]


def _memory_cells(known):
    """Peak, foreseen, and whether they agree."""
    foreseen = max(known["foreseen_bytes"].values())
    peak = max(known.get("peak_bytes", {}).values(), default=None)
    if not peak:
        return ["-", f"{foreseen / 1e9:.3g}", "-"]
    error = foreseen / peak - 1
    agrees = "yes" if abs(error) <= TOLERANCE else "no"
    return [f"{peak / 1e9:.3g}", f"{foreseen / 1e9:.3g}", f"{agrees} ({error:+.0%})"]
