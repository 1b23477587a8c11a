"""What users install: the wheel works away from the checkout, and pyproject.toml, the lock,
environment.yml and the Makefile agree."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK_LINES = [
    line
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


def requirements_of(*extras: str) -> list[Requirement]:
    """All requirements of the project with these extras, and with the extras that they name."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, EXTRAS[extra]):
            if requirement.name == PROJECT["name"]:
                # Sorted, because all of pytest's workers must list the tests in the same order.
                waiting.extend(sorted(requirement.extras))
            else:
                found.append(requirement)
    return found


def pins() -> dict[str, Version]:
    """The lock as {canonical name: version}."""
    split = (line.split("==") for line in LOCK_LINES)
    return {canonicalize_name(name): Version(version) for name, version in split}


def listed_by_git(*options: str) -> list[str]:
    """Paths that `git ls-files` lists, relative to the root; skips the test outside a clone."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    command = [git, "ls-files", "-z", *options]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in output.split("\0") if path]


def make(*arguments: str, **environment: str) -> str:
    """Standard output of make, run as if from a plain shell; fails the test when make fails."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    outer_make = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON"}
    environment = {k: v for k, v in os.environ.items() if k not in outer_make} | environment
    command = ["make", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def makefile_verbs() -> list[str]:
    """The targets that the Makefile declares phony."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()


def test_every_lock_line_is_a_plain_pin():
    plain = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!]*")
    assert LOCK_LINES
    assert [line for line in LOCK_LINES if not plain.fullmatch(line)] == []


def test_lock_names_each_package_once_and_no_installer():
    locked = pins()
    assert len(locked) == len(LOCK_LINES)
    assert locked.keys().isdisjoint({"pip", "setuptools", "wheel", PROJECT["name"]})


@pytest.mark.parametrize("requirement", requirements_of("test", "reproduce", "site"), ids=str)
def test_lock_pins_every_requirement_within_its_bound(requirement):
    if requirement.marker is not None and not requirement.marker.evaluate():
        pytest.skip(f"not needed here: {requirement.marker}")
    name = canonicalize_name(requirement.name)
    assert name in pins(), "make lock"
    assert requirement.specifier.contains(pins()[name], prereleases=True), (
        f"{pins()[name]}: make lock"
    )


def test_lock_installs_on_the_oldest_python_that_is_promised():
    """The installed packages say so themselves, where they have the pinned version."""
    oldest = re.search(r">=\s*([\d.]+)", PROJECT["requires-python"])[1] + ".0"
    here = {canonicalize_name(each.metadata["Name"]): each for each in metadata.distributions()}
    same = [name for name, pin in pins().items() if name in here and here[name].version == str(pin)]
    assert same, "not the environment of the lock"
    refusing = {}
    for name in same:
        bound = here[name].metadata["Requires-Python"]
        if bound and not SpecifierSet(bound).contains(oldest):
            refusing[name] = bound
    assert not refusing, "pin an older version by hand, or: make lock BOOTSTRAP=the oldest Python"


def test_bounds_are_lower_bounds():
    """An upper bound could forbid an environment that a lab already has."""
    operators = {bound.operator for each in requirements_of(*EXTRAS) for bound in each.specifier}
    assert operators == {">="}


def test_bounds_admit_the_oldest_supported_gpu_environment():
    """Images for GPUs come with Python and torch. The oldest supported are 3.12 and 2.11."""
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.12")
    torch = next(each for each in requirements_of() if each.name == "torch")
    assert torch.specifier.contains("2.11.0")


def test_environment_installs_what_pyproject_states():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"][0] == "conda-forge"
    *conda, pip = environment["dependencies"]
    assert conda[1:] == ["pip"]
    python = conda[0].removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)

    lock, project = pip["pip"]
    assert lock == "-r requirements.lock"
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", project)[1].split(",")
    assert set(extras) <= set(EXTRAS)
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert extras == re.search(r"'\.\[([a-z,]+)\]'", locked)[1].split(",")


def test_lock_was_resolved_with_the_python_that_environment_names():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python = environment["dependencies"][0].removeprefix("python=")
    assert f"Python {python}." in (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_licence_is_apache_2():
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
    assert "END OF TERMS AND CONDITIONS" in text


def test_make_help_lists_exactly_the_verbs_there_are():
    listed = re.findall(r"^  make (\w+)", make("help"), re.M)
    assert listed == makefile_verbs()
    assert set(listed) >= {"help", "lab", "lint", "lock", "notebooks", "reproduce", "site", "test"}


@pytest.mark.parametrize("verb", ["test", "reproduce", "lab", "notebooks", "site", "lint"])
def test_make_uses_a_given_python_and_then_installs_nothing(verb):
    commands = make("--dry-run", verb, f"PYTHON={sys.executable}")
    assert f"{sys.executable} " in commands
    assert "pip" not in commands.split()
    assert ".venv" not in commands.replace(sys.executable, "")


@pytest.mark.parametrize("verb", ["test", "reproduce"])
def test_make_sets_up_a_fresh_clone_whatever_PYTHON_is_in_the_environment(verb):
    commands = make("--dry-run", "--always-make", verb, PYTHON="/nowhere/python")
    install = commands.index("install --quiet -r requirements.lock")
    stamp = commands.index("touch .venv/.installed")
    first = {"test": "-m ruff", "reproduce": "reproduce"}[verb]
    assert install < stamp < commands.index(f".venv/bin/python {first}")


def test_ci_makes_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-2:] == [
        "make test",
        "make test ARGS='-m site'",
    ]


def test_git_ignores_no_file_of_the_package():
    """A wheel contains what git does not ignore, so it would lack an ignored checkpoint."""
    ignored = listed_by_git("--others", "--ignored", "--exclude-standard", "--", "bpgo")
    expected = re.compile(r"__pycache__/|\.pyc$|\.DS_Store$")
    assert [path for path in ignored if not expected.search(path)] == []
    for suffix in ("safetensors", "json", "jsonl", "md", "txt"):
        path = f"bpgo/checkpoints/example/file.{suffix}"
        command = ["git", "check-ignore", "--quiet", "--no-index", path]
        assert subprocess.run(command, cwd=ROOT).returncode == 1, f"{path} is ignored by git"


def test_no_file_names_a_path_of_one_machine():
    absolute = re.compile(rb"(?<![\w./:~$}<-])/(?:home|mnt|opt|root|scratch|tmp|Users|work)/[\w.]+")
    offenders = []
    for path in listed_by_git("--cached", "--others", "--exclude-standard"):
        file = ROOT / path
        if not file.is_file():
            continue
        content = file.read_bytes()
        if b"\0" not in content:
            offenders += [f"{path}: {match.decode()}" for match in absolute.findall(content)]
    assert offenders == []


# ------------------------------------------------------------------------------------ the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` folder of an environment that has the wheel, and all other packages from here.

    The checkout is not on its path: the .pth file of an editable install is not read there.
    """
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    given = ["install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run([*pip, *given], check=True, capture_output=True)
    places = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(site) / "others.pth").write_text("\n".join(places))
    return folder / "bin"


def in_shell(installed: Path, folder: Path, line: str) -> subprocess.CompletedProcess:
    """Run a line of bash in a folder, with the programs of this environment first."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{installed}{os.pathsep}{environment['PATH']}"
    command = ["bash", "-o", "pipefail", "-c", line]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_has_every_file_of_the_package(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    listed = listed_by_git("--cached", "--others", "--exclude-standard", "--", "bpgo")
    assert {path for path in listed if (ROOT / path).is_file()} <= packed
    assert {"bpgo/__init__.pyi", "bpgo/py.typed", "bpgo/presets/t2i-tiny.yaml"} <= packed
    assert {path.partition("/")[0] for path in packed} == {
        "bpgo",
        f"bpgo-{PROJECT['version']}.dist-info",
    }


def test_the_wheel_trains_away_from_the_checkout(installed, tmp_path):
    """With an objective from the current folder, which is not on the path of a console script."""
    shutil.copy(ROOT / "reproduce" / "site" / "examples" / "own_objective.py", tmp_path)
    (tmp_path / "few.txt").write_text("a red circle\na large blue square")
    settings = "iterations=1 groups=2 group_size=2 sampling.steps=2 optimiser.updates=1"
    settings += " evaluation.samples=1 evaluation.steps=2 evaluation.prompts=few.txt"
    settings += " objective.name=own_objective:batch_std objective.options.floor=0.05"
    done = in_shell(installed, tmp_path, f"bpgo train t2i-tiny --output runs/x {settings}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "x" / "final" / "model_index.json").is_file()
    where = in_shell(installed, tmp_path, "python -c 'import bpgo; print(bpgo.__file__)'")
    assert where.stdout.startswith(str(installed.parent)), where.stderr


@pytest.mark.parametrize("command", ["presets", "settings"])
def test_the_wheel_lists_presets_and_settings(installed, tmp_path, command):
    complete = in_shell(installed, tmp_path, f"bpgo {command}")
    assert (complete.returncode, complete.stderr) == (0, "")
    first = in_shell(installed, tmp_path, f"bpgo {command} | head -1")
    assert (first.returncode, first.stderr) == (0, "")
    assert complete.stdout.startswith(first.stdout) and len(first.stdout.splitlines()) == 1
