"""What a fresh clone installs: pyproject.toml, the lock, environment.yml and the Makefile tell one story."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
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
    """All requirements of the project with these extras; one that names the project itself is followed."""
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, EXTRAS[extra]):
            if requirement.name == PROJECT["name"]:
                waiting.extend(
                    sorted(requirement.extras)
                )  # a set: pytest's workers must list the same tests in the same order
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
    return re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[
        1
    ].split()


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
    """Debian 12 has 3.11.2. As the packages themselves say, where the pinned version is the one at hand."""
    oldest = re.search(r">=\s*([\d.]+)", PROJECT["requires-python"])[1] + ".0"
    here = {canonicalize_name(each.metadata["Name"]): each for each in metadata.distributions()}
    same = [
        here[name]
        for name, version in pins().items()
        if name in here and Version(here[name].version) == version
    ]
    asked = {each.metadata["Name"]: each.metadata["Requires-Python"] for each in same}
    assert asked, "not the environment of the lock"
    refuse = {
        name: bound
        for name, bound in asked.items()
        if bound and not SpecifierSet(bound).contains(oldest)
    }
    assert not refuse, "pin an older version by hand, or: make lock BOOTSTRAP=the oldest Python"


def test_bounds_are_lower_bounds():
    """An upper bound would keep the package out of an environment that a lab already has."""
    operators = {bound.operator for each in requirements_of(*EXTRAS) for bound in each.specifier}
    assert operators == {">="}


def test_bounds_admit_the_oldest_supported_gpu_environment():
    """GPU images come with their own Python and torch; the oldest pair supported is 3.12 with 2.11."""
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
    locked_for = re.search(
        r"'\.\[([a-z,]+)\]'", (ROOT / "requirements.lock").read_text(encoding="utf-8")
    )[1]
    assert extras == locked_for.split(",")


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
    run = commands.index(
        ".venv/bin/python -m ruff" if verb == "test" else ".venv/bin/python reproduce"
    )
    assert install < stamp < run


def test_ci_makes_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-2:] == [
        "make test",
        "make test ARGS='-m site'",
    ]


def test_git_ignores_no_file_of_the_package():
    """Wheels are built from what git does not ignore: an ignored checkpoint would be missing in them."""
    ignored = listed_by_git("--others", "--ignored", "--exclude-standard", "--", "bpgo")
    assert [
        path for path in ignored if not re.search(r"__pycache__/|\.pyc$|\.DS_Store$", path)
    ] == []
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
