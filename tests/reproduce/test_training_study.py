"""`reproduce.analysis.study.Study`, which trains what the notebooks 02 to 04 show."""

import subprocess
import sys
from pathlib import Path

import pytest

from reproduce.analysis.study import Study

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "groups=2",
    "group_size=2",
    "optimiser.updates=1",
    "sampling.steps=3",
    "evaluation.steps=2",
    "evaluation.samples=2",
]


def study_of(output, *overrides, processes=1):
    overrides = [*SMALL, *overrides]
    return Study("t2i-tiny", ["bpgo"], [0], 2, 1, "", overrides, str(output), processes=processes)


def test_preflight_prints_one_line_if_nothing_is_missing(capsys):
    study_of("").preflight()
    # The same on every machine, because the built notebook contains it.
    assert capsys.readouterr().out == "preflight: nothing is missing\n"


def test_preflight_stops_and_says_what_to_do(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    study = study_of("", "generator.path=someone/thing", "prompts=nowhere.txt")
    with pytest.raises(RuntimeError) as told:
        study.preflight()
    assert "Missing: someone/thing" in str(told.value) and "--download" in str(told.value)
    assert "Missing: prompts: " in str(told.value) and "nowhere.txt" in str(told.value)
    assert "free on that disk" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=r"groups=2 cannot be .*optimiser\.updates=1.* 3 proc"):
        study_of("", processes=3).preflight()


IN_TWO = """
import sys
from reproduce.analysis.study import Study
from bpgo.trainer import Trainer

output, *overrides = sys.argv[1:]
study = Study("t2i-tiny", ["bpgo"], [0], 2, 1, "", overrides, output, processes=2)
study.preflight()
start = study.start()
assert start.accelerator.num_processes == 1 and start.iteration == 0
Trainer.step = None  # nothing is left to train here
logs, after = study.train()
assert [row["iteration"] for row in logs["bpgo"][0].metrics] == [1, 2]
assert after["bpgo"].pixels.shape == (2, 2, 3, 32, 32)
study.start()
print("done", *(row["reward"] for row in logs["bpgo"][0].metrics))
"""


def test_a_study_trains_in_two_processes(tmp_path, monkeypatch):
    """accelerate.notebook_launcher trains them before this process has a Trainer.

    The runs equal those of one process.
    """
    words = tmp_path / "words.txt"
    words.write_text("a red circle\na shape")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    overrides = [f"prompts={words}", f"evaluation.prompts={words}"]
    overrides += ["evaluation.metrics=[]", "evaluation.held_out=null"]
    command = [sys.executable, "-c", IN_TWO, tmp_path / "two", *SMALL, *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Launching training on 2 ") == 1
    logs, _ = study_of(tmp_path / "one", *overrides).train()
    rewards = list(map(float, done.stdout.splitlines()[-1].split()[1:]))
    assert len(rewards) == 2
    assert rewards == pytest.approx([row["reward"] for row in logs["bpgo"][0].metrics], abs=1e-4)
