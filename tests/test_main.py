"""The command line: exit codes, messages and usage."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bpgo.__main__ import main
from bpgo.config import list_presets

# What the console script `bpgo` of pyproject.toml does.
SCRIPT = "import sys; from bpgo.__main__ import main; sys.exit(main())"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "t2i-tiny", "--output", "{out}", "iteratons=3"], "did you mean 'iterations'"),
        (["train", "t2i-tiny", "iteratons=3", "--output", "{out}"], "did you mean 'iterations'"),
        (["train", "t2i-tinny", "--output", "{out}"], "no preset 't2i-tinny'"),
        (["train", "t2i-tiny", "--output", "{out}", "group_size=1"], "group_size = 1"),
        (["train", "t2i-tiny", "--output", "{out}", "objective.alpha"], "write key=value"),
        (["train", "t2i-tiny", "--output", "{out}", "reward.name=clipp"], "did you mean 'clip'"),
        (
            ["train", "t2i-tiny", "--output", "{out}", "generator.path=nowhere/at/all"],
            "'nowhere/at/all' is not a folder",
        ),
        (
            ["pretrain", "fluks", "--output", "{out}"],
            "unknown stage 'fluks'",
        ),
        (["bench", "t2i-tiny", "objective.alfa=1"], "did you mean 'objective.alpha'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, says, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([argument.format(out=out) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert re.search(rf"^bpgo {arguments[0]}: ", message, re.M)
    assert says in message
    assert "Traceback" not in message
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: command"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "t2i-tiny"], "required: --output"),
        (["train", "t2i-tiny", "--output", "x", "--ouput", "y"], "unrecognized arguments: --ouput"),
        (["settings", "extra"], "unrecognized arguments: extra"),
        (["pretrain", "--output", "x", "--scale", "fast"], "invalid float value: 'fast'"),
    ],
)
def test_a_wrong_command_is_refused_with_the_usage(arguments, says, capsys):
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert "usage: bpgo" in message
    assert says in message


@pytest.mark.parametrize("command", [["-m", "bpgo"], ["-c", SCRIPT]], ids=["module", "script"])
def test_from_a_shell(command):
    train = ["train", "t2i-tiny", "--output", "x", "seeed=1"]
    result = subprocess.run([sys.executable, *command, *train], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "bpgo train: unknown setting 'seeed': did you mean 'seed'?\n"


def test_a_reader_that_leaves_early_is_not_an_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "bpgo", "settings"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_the_presets_are_listed_with_what_they_are(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [tuple(line.split(None, 1)) for line in lines] == list(list_presets().items())


def test_overrides_may_stand_before_and_after_the_options(monkeypatch, tmp_path):
    given = []

    def trainer(*arguments):
        given.append(arguments)
        return SimpleNamespace(train=lambda: None)

    monkeypatch.setattr("bpgo.trainer.Trainer", trainer)
    arguments = ["train", "t2i-tiny", "seed=4", "--output", str(tmp_path), "groups=2"]
    assert main(arguments) == 0
    ((config, output),) = given
    assert (config.seed, config.groups, output) == (4, 2, str(tmp_path))
