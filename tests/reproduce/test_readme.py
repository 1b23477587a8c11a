"""The README: its results are the committed ones, its links lead somewhere, its commands exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

from reproduce import readme
from reproduce.analysis import claims, evidence

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
    assert verbs <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)), (
        verbs
    )
    commands = set(re.findall(r"python -m bpgo (\w+)", TEXT))
    known = subprocess.run(
        [sys.executable, "-m", "bpgo", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert commands and all(command in known for command in commands), commands


def test_the_claims_in_the_table_are_those_of_the_records():
    computed = claims.verdicts(*readme.evidence.read(ROOT / readme.STUDY)).to_csv(
        index=False, lineterminator="\n"
    )
    assert (ROOT / readme.STUDY / "claims.csv").read_text() == computed, (
        "out of date: run `python reproduce/study.py tables`"
    )


def test_the_differences_told_in_short_are_those_of_the_records():
    """Each "+.009 (-.005 to .023)" is, to its last digit, one of claims.csv, of a built notebook, or of the objectives on digits."""
    number = r"[+-]?\d*\.\d+"
    triple = re.compile(rf"({number}) \(({number})\s+to\s+({number})\)")
    short = TEXT[TEXT.index("**In short**") : TEXT.index("<!-- study -->")]
    built = [
        json.loads(path.read_text()) for path in sorted((ROOT / "notebooks").glob("0[6-9]*.ipynb"))
    ]
    printed = [
        "".join(o.get("text", ""))
        for notebook in built
        for cell in notebook["cells"]
        for o in cell.get("outputs", ())
    ]
    sources = [(ROOT / readme.STUDY / "claims.csv").read_text(), *printed]
    known = [tuple(map(float, found)) for text in sources for found in triple.findall(text)]
    plan, records = evidence.read(ROOT / readme.STUDY)
    ended = evidence.final(plan, records, "digits", "digits", evidence.PRIMARY)
    known += evidence.compare(ended, "grpo")[["- grpo", "from", "to"]].itertuples(
        index=False, name=None
    )
    told = triple.findall(" ".join(short.split()))
    assert len(told) > 10
    for words in told:
        near = [0.51 * 10.0 ** -len(word.partition(".")[2]) for word in words]
        assert any(
            all(abs(float(w) - x) <= e for w, x, e in zip(words, row, near, strict=True))
            for row in known
        ), words
    lost = re.search(r"none spoke\s+in the (\d+) runs", TEXT)[1]
    assert any(f"guards spoke in 0 of {lost} runs that lost" in text for text in printed)
