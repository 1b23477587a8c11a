"""Put the committed results into the README: `python reproduce/readme.py`.

With `--check` nothing is written, and the exit code is 1 if the README is out of date. Generated
parts of the README stand between marks, `<!-- name -->` and `<!-- /name -->`. The rest stays.
"""

import argparse
import re
import sys
from functools import cache
from pathlib import Path

from bpgo.config import PRESETS, read_config
from bpgo.files import write_atomic
from bpgo.preflight import Launch, preflight, read_launch
from bpgo.text_files import read_yaml
from reproduce.analysis import claims, evidence

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "reproduce/results/foundations"
SEED = "text_to_image-seed0"
VIDEO = "reproduce/results/video"
STUDY = "reproduce/results/study"
VIDEO_TASKS = ("text_to_video", "image_to_video")
TERAFLOPS = 400  # matmul rate of the GPU that the recipes are planned for


# ------------------------------------------------------------------------------ the generated parts


def image(root):
    """The samples before and after training that notebook 02 wrote for the first seed."""
    alt = (
        "Rows of images for prompts of increasing ambiguity, "
        "before training and after each of the four objectives"
    )
    caption = (
        "Same noise, same start: the shipped tiny FLUX before and after 100 iterations (seed 0)."
    )
    return f"![{alt}]({RESULTS}/{SEED}/samples.png)\n\n*{caption}*"


def results(root):
    """The table over seeds, and what an iteration costs."""
    table = (root / RESULTS / "table.md").read_text(encoding="utf-8").strip()
    bench = f"{RESULTS}/bench-t2i-tiny.txt"
    title = "Text-to-image: reward, accuracy, diversity and distance of each objective"
    setting = (
        "100 iterations of 8 prompts x 12 samples on the tiny FLUX, seeds 0, 1, 2, "
        "from the same start."
    )
    cost = (root / bench).read_text(encoding="utf-8").strip()
    return (
        f"{_folded(title, f'{setting} {table}')}\n\n"
        f"What an iteration costs (`bpgo bench`, recorded in `{bench}`):\n\n```\n{cost}\n```"
    )


def video_images(root):
    """The clips before and after training that notebooks 03 and 04 wrote for the first seed."""
    alt = "Clips for prompts of increasing ambiguity, before training and after it"
    files = [f"{VIDEO}/{task}-seed0/samples.gif" for task in VIDEO_TASKS]
    images = [f"![{alt}]({file})" for file in files if (root / file).exists()]
    if not images:
        return ""
    caption = (
        f"*The tiny Wan, text-to-video and image-to-video, before and after "
        f"{_iterations(root)} iterations (seed 0).*"
    )
    return "\n".join(images) + f"\n\n{caption}"


def video(root):
    """The table over seeds of both video tasks."""
    place = root / VIDEO / "table.md"
    if not place.exists():
        return ""
    setting = (
        f"{_iterations(root)} iterations of 8 prompts x 8 clips on the tiny Wan, "
        f"from the same start."
    )
    title = "Video: the same, with motion, looks and flicker"
    return _folded(title, f"{setting} {place.read_text(encoding='utf-8').strip()}")


def study(root):
    """What the plan claims and what was found: one row per claim, and one per claim and task."""
    plan, records = evidence.read(root / STUDY)
    table = verdicts((root / STUDY).resolve())
    hours = sum(record["seconds"]["whole"] for record in records.values()) / 3600
    explained = (
        f"{evidence.state(plan, records)}. They took {hours:.1f} hours in total. *No* means "
        f"refuted as the plan defines it, which may be for want of evidence (an interval that "
        f"contains 0). *Not refuted* is not a proof. In brackets is n, the number of seeds (for "
        f"H5, of prompts)."
    )
    details = f"Also in `{STUDY}/claims.csv`.\n\n" + "\n".join(_findings(table))
    folded = _folded("What was found, with 95 % intervals", details)
    return f"{explained}\n\n" + "\n".join(_verdicts_by_task(table)) + f"\n\n{folded}"


@cache
def verdicts(folder):
    """The verdicts on all claims, from the records in this folder."""
    return claims.verdicts(*evidence.read(folder))


def _verdicts_by_task(table):
    tasks = list(dict.fromkeys(table["task"]))
    lines = [f"| claim | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
    for (claim, says), rows in table.groupby(["claim", "says"], sort=False):
        cells = dict.fromkeys(tasks, "")
        for row in rows.itertuples():
            verdict = row.verdict.replace("does not hold", "no")
            cells[row.task] = f"{verdict} ({row.n})" if row.n else verdict
        lines.append(f"| {claim}, {says} | " + " | ".join(cells.values()) + " |")
    return lines


def _findings(table):
    lines = ["| claim | task | what was found | n |", "|---|---|---|---|"]
    for row in table.itertuples():
        finding = row.finding[:1].upper() + row.finding[1:]
        lines.append(f"| {row.claim} | {row.task} | {finding} | {row.n or ''} |")
    return lines


def recipes(root):
    """What each preset of a published model needs, as preflight estimates it."""
    lines = [
        "| preset | launched on | memory per GPU | seconds per iteration | GPU hours in total |",
        "|---|---|---|---|---|",
    ]
    for place in sorted(PRESETS.glob("*.yaml")):
        if "-tiny" not in place.stem and "-digits" not in place.stem:
            lines.append(_recipe(place))
    explained = (
        f"According to `bpgo preflight PRESET`, at 40 % of {TERAFLOPS} TFLOP/s, without decoding "
        f"and rewards. Estimated, not measured: there was no GPU."
    )
    return f"{explained}\n\n" + "\n".join(lines)


@cache
def _recipe(preset):
    config_file = re.search(r"--config_file (\S+)", preset.read_text(encoding="utf-8"))
    launch, how = Launch(), "1 GPU, with offloading"
    if config_file:
        launch = read_launch(ROOT / config_file[1])
        how = f"{launch.processes} GPUs, {'sharded' if launch.sharded else 'copies'}"
    report = preflight(
        read_config(preset), launch=launch, device_bytes=80 * 10**9, rate=TERAFLOPS * 1e12
    )
    needs = re.search(r"needs (\S+ \S+) of", report.text)[1]
    seconds = float(re.search(r"(\S+) s per iteration", report.text)[1])
    hours = float(re.search(r"(\S+) in all", report.text)[1])
    return f"| `{preset.stem}` | {how} | {needs} | {seconds:.0f} | {hours:.0f} |"


def _folded(title, text):
    """A part that the reader can unfold."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _iterations(root):
    profile = read_yaml(root / "reproduce/video.yaml")
    return " and ".join(str(profile[task]["parameters"]["iterations"]) for task in VIDEO_TASKS)


# ----------------------------------------------------------------------------------------- the file

PARTS = {
    "image": image,
    "results": results,
    "video images": video_images,
    "video": video,
    "study": study,
    "recipes": recipes,
}


def filled(text, root):
    """The README with its generated parts renewed. Raises ValueError if a mark is missing."""
    for name, make in PARTS.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no place for the {name}: {start} ... {end}")
        part = make(root)
        block = f"{start}\n{part}\n{end}" if part else f"{start}\n{end}"
        text = pattern.sub(lambda _, block=block: block, text)
    return text


def main(arguments=None):
    """Renew or check the README. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit code 1 if the README is out of date",
    )
    options = parser.parse_args(arguments)
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = filled(old, ROOT)
    if options.check:
        return int(old != new)
    write_atomic(readme, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
