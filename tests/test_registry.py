"""Names of settings: which exist, how one from outside is found, and what is refused."""

import sys

import pytest

from bpgo import objective
from bpgo.priors import Constant
from bpgo.registry import TABLES, arguments, check_name, find, name_of
from bpgo.sde import Schedule

ALL_NAMES = [(kind, name) for kind, table in TABLES.items() for name in table]


class Outer:
    class Inner:
        value = 7


def function(a, b=2, *, c=3):
    return a, b, c


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder on the path, from which modules of one's own are imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


# ---------------------------------------------------------------------------------------- finding


def test_every_kind_has_names():
    assert TABLES.keys() == {"objective", "prior", "schedule", "reward", "generator", "metric"}
    assert all(TABLES.values())


@pytest.mark.parametrize(("kind", "name"), ALL_NAMES, ids=[f"{k}-{n}" for k, n in ALL_NAMES])
def test_every_name_is_found_and_can_be_written_out(kind, name):
    found = find(kind, name)
    assert find(kind, TABLES[kind][name]) is found
    assert isinstance(found, Schedule) if kind == "schedule" else callable(found)


def test_a_name_from_outside_is_found(outside):
    (outside / "mine_a.py").write_text("class A:\n    class B:\n        c = 5\n")
    assert find("prior", "mine_a:A.B.c") == 5
    assert find("objective", "tests.test_registry:Outer.Inner").value == 7


@pytest.mark.parametrize("value", [objective.grpo, Constant, function, Outer.Inner])
def test_the_name_of_a_function_or_class_finds_it(value):
    assert find("objective", name_of(value)) is value


def test_the_name_of_an_object_is_that_of_its_class():
    assert name_of(Constant(1.0)) == "bpgo.priors:Constant"


def test_nothing_is_imported_before_it_is_looked_up(outside):
    (outside / "mine_b.py").write_text("raise RuntimeError('imported')")
    assert check_name("reward", "mine_b:reward") == "mine_b:reward"
    with pytest.raises(RuntimeError, match="imported"):
        find("reward", "mine_b:reward")


# -------------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize("look_up", [check_name, find])
@pytest.mark.parametrize(
    ("kind", "name", "near"),
    [
        ("objective", "gpro", "grpo"),
        ("schedule", "flow_grpo", "flow-grpo"),
        ("reward", "clipp", "clip"),
        ("prior", "running-mean", "running_mean"),
        ("metric", "shape", "shapes"),
        ("generator", "FluxPipline", "FluxPipeline"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(look_up, kind, name, near):
    expected = rf"^unknown {kind} '{name}': did you mean '{near}'\? Write module:attribute for one"
    with pytest.raises(ValueError, match=expected):
        look_up(kind, name)


@pytest.mark.parametrize("name", ["zzz", "", "a b:c", "module:", ":attribute", "a-b:c", "x:y:z"])
def test_a_name_like_no_other_is_refused_with_all_known_ones(name):
    with pytest.raises(ValueError, match="known: grpo, ras, crt, bpgo, teleboost") as refusal:
        check_name("objective", name)
    assert f"unknown objective {name!r}" in str(refusal.value)


def test_a_missing_module_is_named_with_the_remedy():
    expected = "prior 'no_such_module:x': there is no module 'no_such_module'.*PYTHONPATH"
    with pytest.raises(ValueError, match=expected):
        find("prior", "no_such_module:x")


def test_a_missing_submodule_is_named_in_full():
    with pytest.raises(ValueError, match=r"there is no module 'bpgo\.no_such\.module'"):
        find("prior", "bpgo.no_such.module:x")


def test_a_missing_attribute_is_refused_with_the_nearest():
    expected = r"bpgo\.priors has no attribute 'Konstant': did you mean 'Constant'\?$"
    with pytest.raises(ValueError, match=expected):
        find("prior", "bpgo.priors:Konstant")
    with pytest.raises(ValueError, match=r"has no attribute 'Outer\.zzzzzz'\.$"):
        find("prior", "tests.test_registry:Outer.zzzzzz")


def test_a_module_that_imports_something_missing_says_what(outside):
    (outside / "mine_c.py").write_text("import no_such_dependency")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        find("reward", "mine_c:reward")
    (outside / "mine_d.py").write_text("import mine_dd_missing")  # its own name is a prefix
    with pytest.raises(ModuleNotFoundError, match="mine_dd_missing"):
        find("reward", "mine_d:reward")


def test_a_function_inside_a_function_has_no_name_of_its_own():
    def local(rewards, prior):
        return objective.grpo(rewards, prior)

    name = name_of(local)
    assert "<locals>" in name
    assert check_name("objective", name) == name  # a config may carry it
    with pytest.raises(ValueError, match=r"is defined inside a function.*define it at the top"):
        find("objective", name)


# -------------------------------------------------------------------------------------- arguments


def test_arguments_are_what_is_offered_and_named_and_all_options():
    offered = {"a": 1, "c": 30, "unused": 4}
    assert arguments(function, offered, {"b": 20}, "it") == {"a": 1, "b": 20, "c": 30}
    assert arguments(function, {}, {"a": 10}, "it") == {"a": 10}
    assert arguments(Constant, {"value": 3.0, "momentum": 0.5}, {}, "it") == {"value": 3.0}


def test_what_takes_any_keyword_gets_all_options_but_only_what_it_names():
    def anything(a, **rest):
        return a, rest

    assert arguments(anything, {"a": 1, "b": 2}, {"x": 5}, "it") == {"a": 1, "x": 5}


def test_an_unknown_option_is_refused_with_the_nearest_or_with_those_there_are():
    def with_two(alpha=0, beta=1):
        return alpha, beta

    def with_none():
        return None

    with pytest.raises(ValueError, match=r"^prior 'x' has no option 'alfa': did you mean 'alpha'"):
        arguments(with_two, {}, {"alfa": 1}, "prior 'x'")
    with pytest.raises(ValueError, match=r"has no option 'zzz': it has alpha, beta\.$"):
        arguments(with_two, {}, {"zzz": 1}, "prior 'x'")
    with pytest.raises(ValueError, match=r"has no option 'zzz': it has none\.$"):
        arguments(with_none, {}, {"zzz": 1}, "prior 'x'")


def test_an_option_for_what_the_run_gives_is_refused():
    with pytest.raises(ValueError, match="'a' already has a value"):
        arguments(function, {"a": 1}, {"a": 10}, "it")


def test_a_missing_argument_is_named_unless_the_caller_passes_it():
    with pytest.raises(ValueError, match=r"^prior 'x' needs 'a': set it in its options$"):
        arguments(function, {"b": 2}, {}, "prior 'x'")
    assert arguments(function, {"a": 1, "b": 2}, {}, "it", passed=1) == {"b": 2}
    with pytest.raises(ValueError, match="has no option 'a'"):
        arguments(function, {}, {"a": 1}, "it", passed=1)


def test_a_positional_only_parameter_is_not_an_option():
    def positional(x, /, y=1):
        return x, y

    with pytest.raises(ValueError, match="has no option 'x'"):
        arguments(positional, {}, {"x": 1}, "it")
    assert arguments(positional, {"x": 1, "y": 2}, {}, "it") == {"y": 2}
