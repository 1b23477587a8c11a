"""Put the committed results into the README: `python reproduce/readme.py` (`--check`: exit code 1 if it is out of date).

The pictures, the tables of the profiles `foundations` and `video` and the timing ratios stand between marks; all else is left alone.
"""

import argparse
import re
import sys
from pathlib import Path

import pandas as pd
import yaml

from bpgo.config import read_config
from bpgo.files import write_atomic
from bpgo.preflight import Launch, preflight, read_launch
from reproduce.analysis import evidence

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "reproduce/results/foundations"
SEED = "text_to_image-seed0"
VIDEO = "reproduce/results/video"
STUDY = "reproduce/results/study"


def picture(root):
    """The samples before and after training that notebook 02 left for the first seed."""
    alt = "Rows of pictures for prompts of rising ambiguity, before training and after each of the four objectives"
    caption = (
        "Same noise, same start: the shipped tiny FLUX before and after 100 iterations (seed 0)."
    )
    return f"![{alt}]({RESULTS}/{SEED}/samples.png)\n\n*{caption}*"


def results(root):
    """The table over seeds, and what an iteration costs."""
    table = (root / RESULTS / "table.md").read_text().strip()
    bench = (root / RESULTS / "bench-t2i-tiny.txt").read_text().strip()
    what = "100 iterations of 8 prompts x 12 samples on the tiny FLUX, seeds 0, 1, 2, from the same start."
    return (
        f"{_folded('Text-to-image: reward, accuracy, diversity and distance of each objective', f'{what} {table}')}\n\n"
        f"What an iteration costs (`python -m bpgo bench`, committed as `{RESULTS}/bench-t2i-tiny.txt`):\n\n```\n{bench}\n```"
    )


def video_picture(root):
    """The clips before and after training that notebooks 03 and 04 left for the first seed; nothing where there are none."""
    files = [f"{VIDEO}/{task}-seed0/samples.gif" for task in ("text_to_video", "image_to_video")]
    alt = "Clips for prompts of rising ambiguity, before training and after it"
    pictures = "\n".join(f"![{alt}]({file})" for file in files if (root / file).exists())
    caption = f"*The tiny Wan, text-to-video and image-to-video, before and after {_iterations(root)} iterations (seed 0).*"
    return f"{pictures}\n\n{caption}" if pictures else ""


def video(root):
    """The table over seeds of both video tasks; nothing where there is none."""
    place, said = (
        root / VIDEO / "table.md",
        f"{_iterations(root)} iterations of 8 prompts x 8 clips on the tiny Wan, from the same start.",
    )
    return (
        _folded(
            "Video: the same, with motion, looks and flicker", f"{said} {place.read_text().strip()}"
        )
        if place.exists()
        else ""
    )


def study(root):
    """What was claimed before the study's first run and what was found, a row a claim and task."""
    table = pd.read_csv(root / STUDY / "claims.csv", keep_default_na=False)
    plan, records = evidence.read(root / STUDY)
    hours = sum(record["seconds"]["whole"] for record in records.values()) / 3600
    said = (
        f"{evidence.state(plan, records)}; their clocks add to {hours:.1f} hours. *No* means refuted as the plan "
        "defines it, which may be for want of evidence (an interval that holds 0); *not refuted* is no proof. "
        "In brackets n, the number of seeds, for H5 of prompts."
    )
    tasks = list(dict.fromkeys(table["task"]))
    short = [f"| claim | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    full = ["| claim | task | what was found | n |", "|---|---|---|---|"]
    for (claim, says), rows in table.groupby(["claim", "says"], sort=False):
        cells = {
            row.task: row.verdict.replace("does not hold", "no") + f" ({row.n})" * bool(row.n)
            for row in rows.itertuples()
        }
        short.append(
            f"| {claim}, {says} | " + " | ".join(cells.get(task, "") for task in tasks) + " |"
        )
        found = [
            (row.task, row.finding and row.finding[0].upper() + row.finding[1:], row.n or "")
            for row in rows.itertuples()
        ]
        full += [f"| {claim} | {task} | {finding} | {n} |" for task, finding, n in found]
    numbers = _folded(
        "What was found, with 95 % intervals",
        f"Also in `{STUDY}/claims.csv`.\n\n" + "\n".join(full),
    )
    return f"{said}\n\n" + "\n".join(short) + f"\n\n{numbers}"


def recipes(root):
    """What each preset of a published model needs, by preflight's reckoning."""
    rate, lines = (
        400,
        [
            "| preset | launched on | memory a GPU | seconds an iteration | GPU hours in all |",
            "|---|---|---|---|---|",
        ],
    )
    for place in sorted((root / "reproduce" / "presets").glob("*.yaml")):
        if "-tiny" not in place.stem and "-digits" not in place.stem:
            sharding = re.search(r"--config_file (\S+)", place.read_text())
            launch = read_launch(root / sharding[1]) if sharding else Launch()
            text = preflight(
                read_config(place), launch=launch, device_bytes=80 * 10**9, rate=rate * 1e12
            ).text
            needs, seconds, hours = (
                re.search(p, text)[1]
                for p in (r"needs (\S+ \S+) of", r"(\S+) s per iteration", r"(\S+) in all")
            )
            how = (
                f"{launch.processes} GPUs, {'sharded' if launch.sharded else 'copies'}"
                if sharding
                else "1 GPU, with offloading"
            )
            lines.append(
                f"| `{place.stem}` | {how} | {needs} | {float(seconds):.0f} | {float(hours):.0f} |"
            )
    said = f"By `python -m bpgo preflight PRESET`, at 40 % of {rate} TFLOP/s, decoding and rewards not counted. Not measured: no GPU."
    return f"{said}\n\n" + "\n".join(lines)


def _folded(title, text):
    """A part that a reader opens."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _iterations(root):
    profile = yaml.safe_load((root / "reproduce/video.yaml").read_text())
    return " and ".join(
        str(profile[task]["parameters"]["iterations"])
        for task in ("text_to_video", "image_to_video")
    )


MARKS = {
    "picture": picture,
    "results": results,
    "video picture": video_picture,
    "video": video,
    "study": study,
    "recipes": recipes,
}


def filled(text, root):
    """The README with what stands between its marks made anew."""
    for mark, make in MARKS.items():
        start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no place for the {mark}: {start} ... {end}")
        made = "\n".join(filter(None, [start, make(root), end]))
        text = pattern.sub(lambda _, made=made: made, text)
    return text


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit code 1 if the README is out of date",
    )
    options = parser.parse_args(words)
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = filled(old, ROOT)
    if options.check:
        return int(old != new)
    write_atomic(readme, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
