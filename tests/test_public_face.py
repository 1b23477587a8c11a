"""What a user sees first: the import, `help(bpgo)`, the first example and the command line."""

import ast
import inspect
import os
import pydoc
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

import bpgo

pytestmark = pytest.mark.usefixtures("one_thread")

STUB = ast.parse(Path(bpgo.__file__).with_suffix(".pyi").read_text())
LIMIT = 0.2  # seconds
SMALL = ["iterations=1", "groups=2", "group_size=2", "sampling.steps=4"]
SMALL += ["evaluation.samples=1", "evaluation.steps=2"]


def stub_imports():
    """(module, name, alias) of every import in the stub."""
    for node in STUB.body:
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                yield node.module, name.name, name.asname


def documented_code():
    """The code blocks of the package's docstring."""
    text = inspect.getdoc(bpgo)
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", f"{text}\n", re.M)
    return [inspect.cleandoc(block) for block in found]


def seconds(code):
    """Seconds of the fastest of three runs of this code in a fresh interpreter."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        best = min(best, time.perf_counter() - began)
    return best


def test_the_import_is_fast():
    assert seconds("import bpgo") - seconds("pass") < LIMIT


def test_the_import_loads_nothing_heavy():
    code = "import sys, bpgo; print(*(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "numpy", "accelerate", "diffusers", "transformers", "pydantic", "yaml"}
    assert heavy.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("name", bpgo.__all__)
def test_a_public_name_has_a_docstring_of_its_own(name):
    value = getattr(bpgo, name)
    assert callable(value)
    first = (value.__doc__ or "").partition("\n")[0]
    assert first and not first.startswith(f"{name}("), "this is what dataclasses generate"
    assert name in dir(bpgo)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no_such_name"):
        bpgo.no_such_name  # noqa: B018


def test_the_stub_lists_exactly_the_public_names():
    """A type checker reads the stub, and lazy_loader imports what it lists."""
    listed = list(stub_imports())
    assert [alias for _, _, alias in listed] == [name for _, name, _ in listed]  # re-exported
    names = [name for _, name, _ in listed]
    assert sorted(names) == sorted(set(names)) == sorted(bpgo.__all__)
    for module, name, _ in listed:
        assert getattr(import_module(f"bpgo.{module}"), name) is getattr(bpgo, name)
    others = [node for node in STUB.body if not isinstance(node, ast.ImportFrom)]
    assert all(isinstance(node, ast.AnnAssign) for node in others)


def test_type_checkers_may_use_the_annotations():
    assert Path(bpgo.__file__).with_name("py.typed").is_file()


def test_help_shows_the_example_and_every_public_name():
    shown = pydoc.render_doc(bpgo, renderer=pydoc.plaintext)
    for line in documented_code()[0].splitlines():
        assert line in shown
    for name in bpgo.__all__:
        assert re.search(rf"^    (class )?{name}\(", shown, re.M), name


def test_the_example_of_the_docstring_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("a red circle\na large blue square")
    small = [*SMALL, "evaluation.prompts=few.txt"]
    code = documented_code()[0]
    assert code.count('"iterations=20", ') == 1 and "runs/first" in code
    exec(code.replace('"iterations=20", ', f"*{small}, "), {})
    assert {"metrics.jsonl", "final"} <= {file.name for file in Path("runs/first").iterdir()}
    printed = capsys.readouterr().out
    assert set(ast.literal_eval(printed.replace("nan", "0"))) > {"reward", "held_out"}


def test_the_loop_of_the_docstring_runs():
    rewards = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    names = {"bpgo": bpgo, "rewards": rewards, "prompts": ["a", "b", "c"]}
    exec(documented_code()[1], names)
    expected = bpgo.bpgo(rewards, rewards.mean(), k=1 / rewards.std().item()).effective
    torch.testing.assert_close(names["advantages"], expected)
    assert names["prior"].mean == pytest.approx(rewards.mean().item())


def test_the_docstring_has_no_other_code():
    assert len(documented_code()) == 2


@pytest.mark.parametrize("command", ["settings", "presets"])
def test_a_reader_that_leaves_is_no_error(command):
    """As `bpgo settings | head -1`."""
    line = f"{sys.executable} -m bpgo {command} | head -1"
    shell = ["bash", "-c", f"set -o pipefail; {line}"]
    done = subprocess.run(shell, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
