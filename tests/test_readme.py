"""The README: its results are the committed ones, its links lead somewhere, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import readme

from bpgo.analysis import claims

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_its_results_are_the_committed_ones():
    assert readme.filled(TEXT, ROOT) == TEXT, "out of date: run `python reproduce/readme.py`"


def test_it_takes_up_the_video_results_when_they_are_there(tmp_path):
    (tmp_path / "reproduce" / "results").mkdir(parents=True)
    for folder in (readme.RESULTS, readme.STUDY):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "reproduce" / "video.yaml").symlink_to(ROOT / "reproduce" / "video.yaml")
    assert readme.filled(TEXT, tmp_path).count("samples.gif") == 0
    for task in ("text_to_video", "image_to_video"):
        (tmp_path / readme.VIDEO / f"{task}-seed0").mkdir(parents=True)
        (tmp_path / readme.VIDEO / f"{task}-seed0" / "samples.gif").touch()
    (tmp_path / readme.VIDEO / "table.md").write_text("| a table |\n")
    text = readme.filled(TEXT, tmp_path)
    assert text.count("samples.gif") == 2 and "| a table |\n\n</details>\n<!-- /video -->" in text
    assert readme.filled(text, tmp_path) == text


def test_its_links_lead_to_files_of_the_repository():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", TEXT) if not t.startswith("http")]
    assert targets and [t for t in targets if not (ROOT / t).exists()] == []


def test_its_commands_exist():
    verbs = set(re.findall(r"(?:^|`)make (\w+)", TEXT, re.MULTILINE))
    assert verbs <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)), verbs
    commands = set(re.findall(r"python -m bpgo (\w+)", TEXT))
    known = subprocess.run([sys.executable, "-m", "bpgo", "--help"], capture_output=True, text=True, check=True).stdout
    assert commands and all(command in known for command in commands), commands


def test_the_claims_in_the_table_are_those_of_the_records():
    computed = claims.verdicts(*readme.evidence.read(ROOT / readme.STUDY)).to_csv(index=False, lineterminator="\n")
    assert (ROOT / readme.STUDY / "claims.csv").read_text() == computed, "out of date: run `python reproduce/study.py tables`"
