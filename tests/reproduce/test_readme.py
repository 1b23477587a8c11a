"""The README: its results are the committed ones, its links lead somewhere, its commands exist."""

import csv
import json
import re
import subprocess
import sys

import pytest

from reproduce import readme
from reproduce.analysis import evidence
from tests.reproduce.driver import ROOT

TEXT = (ROOT / "README.md").read_text()
NUMBER = r"[+-]?\d*\.\d+"
# "+.009 (-.005 to .023)"
ESTIMATE = re.compile(rf"({NUMBER}) \(({NUMBER})\s+to\s+({NUMBER})\)")


def committed_claims():
    with (ROOT / readme.STUDY / "claims.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_its_results_are_the_committed_ones():
    assert readme.filled(TEXT, ROOT) == TEXT, "out of date: run `python reproduce/readme.py`"


def test_the_claims_in_the_table_are_those_of_the_records():
    """Older code may have worded the findings in claims.csv differently, with the same numbers."""
    computed = readme.verdicts((ROOT / readme.STUDY).resolve()).to_dict("records")
    committed = committed_claims()
    assert len(computed) == len(committed) > 30
    for row, old in zip(computed, committed, strict=True):
        for name in ("claim", "task", "n", "verdict"):
            assert str(row[name]) == old[name], old
        numbers = re.findall(r"[+-]?\d[\d.]*", row["finding"])
        assert numbers == re.findall(r"[+-]?\d[\d.]*", old["finding"]), old


def test_it_takes_up_the_video_results_when_they_are_there(tmp_path):
    (tmp_path / "reproduce" / "results").mkdir(parents=True)
    for path in (readme.RESULTS, readme.STUDY, "reproduce/video.yaml"):
        (tmp_path / path).symlink_to(ROOT / path)
    without = readme.filled(TEXT, tmp_path)
    assert without.count("samples.gif") == 0
    assert "<!-- video -->\n<!-- /video -->" in without
    for task in readme.VIDEO_TASKS:
        folder = tmp_path / readme.VIDEO / f"{task}-seed0"
        folder.mkdir(parents=True)
        (folder / "samples.gif").touch()
    (tmp_path / readme.VIDEO / "table.md").write_text("| a table |\n")
    text = readme.filled(without, tmp_path)
    assert text.count("samples.gif") == 2 and "| a table |\n\n</details>\n<!-- /video -->" in text
    assert readme.filled(text, tmp_path) == text


def test_a_missing_mark_is_named():
    with pytest.raises(ValueError, match=r"no place for the recipes: <!-- recipes -->"):
        readme.filled(TEXT.replace("<!-- recipes -->", ""), ROOT)


def test_its_links_lead_to_files_of_the_repository():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    files = [target for target in targets if not target.startswith("http")]
    assert files and [file for file in files if not (ROOT / file).exists()] == []


def test_its_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"(?:^|`)make (\w+)", TEXT, re.MULTILINE))
    assert verbs and verbs <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE)), verbs
    commands = set(re.findall(r"`bpgo (\w+)", TEXT))
    help_text = [sys.executable, "-m", "bpgo", "--help"]
    known = subprocess.run(help_text, capture_output=True, text=True, check=True).stdout
    known = set(re.search(r"\{([\w,]+)\}", known)[1].split(","))
    assert commands and commands <= known, commands
    scripts = set(re.findall(r"python (reproduce/[\w/]+\.py)", TEXT))
    assert scripts and [script for script in scripts if not (ROOT / script).exists()] == []


def printed_by_notebooks():
    """What the built notebooks 06 to 09 print, one text per cell."""
    texts = []
    for path in sorted((ROOT / "notebooks").glob("0[6-9]*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            outputs = cell.get("outputs", ())
            texts.append("".join("".join(output.get("text", "")) for output in outputs))
    return texts


def test_the_differences_told_in_short_are_those_of_the_records():
    """Each estimate is, to its last digit, one of the claims, of a notebook, or of digits."""
    sources = [row["finding"] for row in committed_claims()] + printed_by_notebooks()
    known = []
    for text in sources:
        known += [tuple(map(float, found)) for found in ESTIMATE.findall(text)]
    plan, records = evidence.read(ROOT / readme.STUDY)
    ended = evidence.final(plan, records, "digits", "digits", evidence.PRIMARY)
    compared = evidence.compare(ended, "grpo")[["- grpo", "from", "to"]]
    known += compared.itertuples(index=False, name=None)

    short = TEXT[TEXT.index("**In short**") : TEXT.index("<!-- study -->")]
    told = ESTIMATE.findall(" ".join(short.split()))
    assert len(told) > 10
    for estimate in told:
        assert any(is_rounded(estimate, row) for row in known), estimate


def is_rounded(estimate, values):
    """Whether numbers in a text are these values, rounded."""
    for text, value in zip(estimate, values, strict=True):
        half_digit = 0.51 * 10.0 ** -len(text.partition(".")[2])
        if abs(float(text) - value) > half_digit:
            return False
    return True


def test_the_guards_spoke_in_none_of_the_runs_that_lost():
    lost = re.search(r"No guard warned\s+in the (\d+) runs", TEXT)[1]
    line = f"guards spoke in 0 of {lost} runs that lost"
    assert any(line in text for text in printed_by_notebooks())
