"""The list of settings: complete, with defaults, allowed values and meanings."""

import dataclasses

import pytest
import yaml

from bpgo import config
from bpgo.__main__ import main
from bpgo.config import Config, read_config
from bpgo.registry import TABLES
from bpgo.settings import format_settings, list_settings

SETTINGS = {setting.name: setting for setting in list_settings(Config)}
SMALLEST = {
    "generator": {"path": "tiny-flux"},
    "reward": {"name": "clip"},
    "prompts": "prompts.txt",
    "evaluation": {"held_out": {"name": "clip"}},
}
# Groups of settings that are lists in a config: their entries are listed.
LISTS = {"reward": config.RewardConfig, "evaluation.held_out": config.RewardConfig}


def fields_of(kind, prefix=""):
    """Dotted names and fields of a tree of dataclasses."""
    groups = {c.__name__: c for c in vars(config).values() if dataclasses.is_dataclass(c)}
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        group = LISTS.get(name) or groups.get(field.type) or field.type
        if dataclasses.is_dataclass(group):
            yield from fields_of(group, f"{name}.")
        else:
            yield name, field


def test_every_setting_is_listed_once_and_in_order():
    names = [setting.name for setting in list_settings(Config)]
    assert names == [name for name, _ in fields_of(Config)]
    assert len(names) == len(set(names))
    assert {"objective.alpha", "evaluation.held_out.path", "seed"} <= set(names)


def test_every_meaning_is_a_sentence_on_one_line():
    for name, setting in SETTINGS.items():
        assert len(setting.meaning) >= 10, name
        assert setting.meaning.endswith("."), name
        assert "\n" not in setting.meaning and "- " not in setting.meaning, name


@pytest.mark.parametrize("name", [name for name, _ in fields_of(Config)])
def test_the_default_as_an_override_changes_nothing(tmp_path, name):
    preset, default = tmp_path / "preset.yaml", SETTINGS[name].default
    preset.write_text(yaml.safe_dump(SMALLEST))
    if default == "required":
        assert name in ("generator.path", "reward.name", "prompts", "evaluation.held_out.name")
        return
    assert read_config(preset, [f"{name}={default}"]) == read_config(preset)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("objective.name", "objective"),
        ("sampling.schedule", "schedule"),
        ("reward.name", "reward"),
        ("evaluation.held_out.name", "reward"),
        ("prior.name", "prior"),
        ("evaluation.metrics", "metric"),
        ("generator.policy", "generator"),
    ],
)
def test_every_registered_name_is_allowed(name, kind):
    allowed = SETTINGS[name].allowed.removeprefix("list of ").split(" | ")
    assert [*TABLES[kind], "module:attribute"] == [a for a in allowed if a != "null"]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("objective.alpha", "number >= 0 <= 1"),
        ("optimiser.ema_decay", "number >= 0 < 1"),
        ("optimiser.learning_rate", "number > 0"),
        ("group_size", "integer >= 2 <= 65536"),
        ("seed", "integer >= 0 < 2**63"),
        ("sampling.window", "integer >= 1 | null"),
        ("guards", "true | false"),
        ("precision", "no | bf16"),
        ("reward.options", "mapping"),
        ("prompts", "text"),
    ],
)
def test_what_is_allowed(name, allowed):
    assert SETTINGS[name].allowed == allowed


def test_the_command_prints_two_lines_per_setting(capsys):
    assert main(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == format_settings(Config).splitlines()
    assert len(lines) == 2 * len(SETTINGS)
    heads = [line.split(" = ")[0] for line in lines[::2]]
    assert heads == list(SETTINGS)
    assert "objective.alpha = 0.5    [number >= 0 <= 1]" in lines
    assert all(line.startswith("    ") and line.strip() for line in lines[1::2])
