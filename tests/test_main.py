"""The command line: exit codes, messages and usage."""

import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest

from bpgo import __version__
from bpgo.__main__ import main
from bpgo.config import list_presets
from bpgo.signals import Interrupted

# What the console script `bpgo` of pyproject.toml does.
SCRIPT = "import sys; from bpgo.__main__ import main; sys.exit(main())"


def stand_in(monkeypatch, name, **attributes):
    """Replace a module of the package, so that what it imports is not needed."""
    module = types.ModuleType(f"bpgo.{name}")
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, f"bpgo.{name}", module)


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
        (["train", "t2i-tiny", "--output", ""], "'' is not a path: name a file or folder"),
        (["train", "t2i-tiny", "--output", "{out} "], "starts or ends with a space"),
        (["train", "t2i-tiny", "--output", "{out}\n"], "contains a line break"),
        (["train", "t2i-tiny", "--output", "~nobody-here/x"], "there is no home folder for"),
        (["train", "~nobody-here/x.yaml", "--output", "{out}"], "there is no home folder for"),
        (["train", "t2i-tiny", "--output", "{out}", "reward.device=gpu"], "did you mean 'cuda'"),
        (["preflight", "t2i-tiny", "--launch", ""], "'' is not a path"),
        (["report", "~nobody-here/run"], "there is no home folder for"),
        (["branch", "~nobody-here/run", "--output", "{out}"], "there is no home folder for"),
        (["pretrain", "--output", "~nobody-here/x"], "there is no home folder for"),
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
        ([], "list the shipped presets"),
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["xyz"], "unknown command 'xyz': there are train, preflight, branch,"),
        (["train", "t2i-tiny"], "required: --output"),
        (
            ["train", "t2i-tiny", "--output", "x", "--ouput", "y"],
            "unrecognized arguments: --ouput (did you mean --output?)",
        ),
        (
            ["train", "t2i-tiny", "--output", "x", "--iterations=3", "seed=1"],
            "unrecognized arguments: --iterations=3 (for a setting, write iterations=3, without",
        ),
        (
            ["train", "t2i-tiny", "--output", "x", "--iterations", "3"],
            "unrecognized arguments: --iterations (for a setting, write iterations=VALUE, without",
        ),
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


@pytest.mark.parametrize("arguments", [["settings"], ["presets"], ["--help"], ["train", "-h"]])
def test_a_reader_that_leaves_early_is_not_an_error(arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "bpgo", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_a_broken_pipe_elsewhere_is_an_error(monkeypatch, capsys):
    def broken(config):
        raise BrokenPipeError(32, "the reward process has ended")

    monkeypatch.setattr("bpgo.settings.format_settings", broken)
    assert main(["settings"]) == 2
    assert "the reward process has ended" in capsys.readouterr().err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"bpgo {__version__}\n"


def test_without_a_command_the_commands_are_listed_and_the_exit_code_is_2(capsys):
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    for command in ("train", "preflight", "branch", "export", "sample", "report", "settings"):
        assert re.search(rf"^    {command} ", printed.err, re.M)


# ------------------------------------------------------------------------- interrupted, unexpected


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "bpgo settings: interrupted\n"),
        (Interrupted(signal.SIGINT), 130, "bpgo settings: interrupted by SIGINT\n"),
        (Interrupted(signal.SIGTERM), 143, "bpgo settings: interrupted by SIGTERM\n"),
    ],
)
def test_an_interrupted_command_says_so_in_one_line(monkeypatch, capsys, error, code, says):
    def interrupted(config):
        raise error

    monkeypatch.setattr("bpgo.settings.format_settings", interrupted)
    assert main(["settings"]) == code
    assert capsys.readouterr().err == says


def test_ctrl_c_while_a_setting_is_read_leaves_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr("bpgo.config.find_preset", lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert main(["bench", "t2i-tiny"]) == 130
    assert capsys.readouterr().err == "bpgo bench: interrupted by SIGINT\n"


def failing(*arguments):
    raise RuntimeError("CUDA error: an illegal memory access\nand many further lines")


@pytest.mark.parametrize("made", [True, False])
def test_an_unexpected_error_is_one_line_that_names_the_log(monkeypatch, capsys, tmp_path, made):
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    if made:
        run.mkdir()
    stand_in(monkeypatch, "trainer", Trainer=failing)
    assert main(["train", "t2i-tiny", "--output", str(run)]) == 1
    expected = r"bpgo train: unexpected error: RuntimeError: CUDA error: an illegal memory access "
    (found,) = re.findall(rf"^{expected}\(traceback: (.*)\)\n$", capsys.readouterr().err)
    assert Path(found).parent == (run if made else temporary)
    assert not made or Path(found).name == "error.log"
    log = Path(found).read_text(encoding="utf-8")
    assert __version__ in log
    assert "in failing\n" in log
    assert log.endswith("and many further lines\n")


def test_further_processes_have_their_own_log(monkeypatch, tmp_path):
    stand_in(monkeypatch, "trainer", Trainer=failing)
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "t2i-tiny", "--output", str(tmp_path)]) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["error-rank1.log"]


def test_an_error_without_a_message_is_named(monkeypatch, capsys):
    def no_memory(config):
        raise MemoryError

    monkeypatch.setattr("bpgo.settings.format_settings", no_memory)
    assert main(["settings"]) == 2
    assert capsys.readouterr().err == "bpgo settings: MemoryError\n"


# ------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("arguments", "function", "expected"),
    [
        (
            ["branch", "~/a", "--output", "~/b", "--at", "4", "seed=1", "groups=2"],
            "branch:branch",
            ("{home}/a", "{home}/b", 4, ["seed=1", "groups=2"]),
        ),
        (["export", "~/a"], "export:export_run", ("{home}/a", None, None)),
        (
            ["export", "~/a", "--at", "4", "--output", "~/b"],
            "export:export_run",
            ("{home}/a", "{home}/b", 4),
        ),
        (
            ["sample", "~/a", "a fox", "~/no path", "-n", "2", "-o", "~/b.png", "--seed", "3"],
            "sample:sample_run",
            ("{home}/a", ["a fox", "~/no path"], "{home}/b.png", None, 3, 2, None),
        ),
        (
            ["report", "~/a", "b", "-o", "~/c.html"],
            "report:write_report",
            (["{home}/a", "b"], "{home}/c.html"),
        ),
        (
            ["pretrain", "--output", "~/b"],
            "worlds.pretrain:pretrain",
            ([], "{home}/b", 1.0),
        ),
    ],
)
def test_paths_are_expanded_and_arguments_passed(
    monkeypatch, tmp_path, arguments, function, expected
):
    monkeypatch.setenv("HOME", str(tmp_path))
    module, _, name = function.partition(":")
    given = []
    functions = {name: lambda *values: given.append(values), "with_image": None}
    stand_in(monkeypatch, module, **functions)
    assert main(arguments) == 0

    def in_home(value):
        if isinstance(value, list):
            return [in_home(entry) for entry in value]
        return value.format(home=tmp_path) if isinstance(value, str) else value

    def as_text(value):
        if isinstance(value, list):
            return [as_text(entry) for entry in value]
        return str(value) if isinstance(value, Path) else value

    assert [as_text(value) for value in given[0]] == [in_home(value) for value in expected]


def test_a_preset_in_the_home_folder_is_found(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("seeed: 1\n", encoding="utf-8")
    assert main(["train", "~/mine.yaml", "--output", "x"]) == 2
    assert f"{tmp_path}/mine.yaml, line 1: unknown setting 'seeed'" in capsys.readouterr().err


def test_the_presets_are_listed_with_what_they_are(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [tuple(line.split(None, 1)) for line in lines] == list(list_presets().items())


def test_overrides_may_stand_before_and_after_the_options(monkeypatch, tmp_path):
    given = []

    def trainer(*arguments):
        given.append(arguments)
        return SimpleNamespace(train=lambda: None)

    stand_in(monkeypatch, "trainer", Trainer=trainer)
    arguments = ["train", "t2i-tiny", "seed=4", "--output", str(tmp_path), "groups=2"]
    assert main(arguments) == 0
    ((config, output),) = given
    assert (config.seed, config.groups, output) == (4, 2, str(tmp_path))
