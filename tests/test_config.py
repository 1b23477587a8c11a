"""Presets and overrides: what is read, and what is refused with a remedy."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import yaml

from bpgo import config as settings
from bpgo.__main__ import main
from bpgo.config import (
    PRESETS,
    Config,
    ConfigError,
    build_config,
    differences,
    flatten,
    read_config,
    to_dict,
)
from bpgo.generators import load_generator
from bpgo.objective import OBJECTIVES
from bpgo.rewards import REWARDS
from bpgo.sde import SCHEDULES

SMALLEST = {
    "generator": {"path": "tiny-flux"},
    "reward": {"name": "clip"},
    "prompts": "prompts.txt",
}
KNOWN_PRESETS = sorted(PRESETS.glob("*.yaml"))


@pytest.fixture
def preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SMALLEST))
    return file


@pytest.mark.parametrize("file", KNOWN_PRESETS, ids=lambda file: file.stem)
def test_every_preset_is_read_by_name_and_by_file(file):
    config = read_config(file.stem)
    assert isinstance(config, Config)
    assert config == read_config(file)
    assert build_config(to_dict(config)) == config
    assert (
        build_config(json.loads(json.dumps(to_dict(config)))) == config
    )  # as a run's folder keeps it
    tree = yaml.safe_load(file.read_text())
    assert config.generator.path == tree["generator"]["path"]
    assert config.group_size == tree.get("group_size", 12)


def test_there_are_presets():
    assert "t2i-tiny" in [file.stem for file in KNOWN_PRESETS]


def test_the_tiny_preset_names_what_is_shipped(tmp_path):
    config = read_config("t2i-tiny")
    load_generator(
        config.generator.path, height=config.generator.height, width=config.generator.width
    )
    assert (config.group_size, config.prior.name, config.objective.alpha) == (
        12,
        "running_mean",
        0.5,
    )  # the paper's


def test_a_missing_preset_is_refused_with_those_there_are():
    with pytest.raises(
        FileNotFoundError, match=r"no preset 't2i-tinny': give a YAML file or one of .*t2i-tiny"
    ):
        read_config("t2i-tinny")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("iteratons=3", "unknown setting 'iteratons': did you mean 'iterations'?"),
        ("objective.alfa=0.1", "unknown setting 'objective.alfa': did you mean 'objective.alpha'?"),
        ("objectve.alpha=0.1", "did you mean 'objective"),
        ("evaluation.heldout={name: clip}", "did you mean 'evaluation.held_out"),
        ("evaluation.held_out={name: clip, pth: x}", "did you mean 'evaluation.held_out.path'?"),
        ("sampling.zzzzqqq=1", "unknown setting 'sampling.zzzzqqq'"),
        ("qqqqzzzz=1", "`python -m bpgo settings` lists all"),
        ("=1", "unknown setting ''"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(preset, override, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_config(preset, [override])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("iterations=many", "iterations = 'many': Input should be a valid integer"),
        ("iterations=2.5", "iterations = 2.5: "),
        ("iterations=0", "iterations = 0: Input should be greater than or equal to 1"),
        ("group_size=1", "group_size = 1: Input should be greater than or equal to 2"),
        ("seed=-1", "seed = -1"),
        ("objective.alpha=1.5", "objective.alpha = 1.5: Input should be less than or equal to 1"),
        ("objective.alpha=.nan", "objective.alpha = nan"),
        ("objective.alpha=[1]", "objective.alpha = [1]"),
        ("objective.clip_range=0", "objective.clip_range = 0: Input should be greater than 0"),
        ("objective.name=ppo", "'grpo', 'ras', 'crt', 'bpgo' or 'teleboost'"),
        (
            "optimiser.learning_rate=.inf",
            "optimiser.learning_rate = inf: Input should be a finite number",
        ),
        ("optimiser.learning_rate=-1e-4", "optimiser.learning_rate = "),
        ("optimiser.ema_decay=1", "optimiser.ema_decay = 1: Input should be less than 1"),
        ("optimiser.updates=3", "groups=8 cannot be split over optimiser.updates=3"),
        ("prior.name=constant", "prior.value goes with prior.name=constant"),
        ("prior.value=1.0", "prior.value goes with prior.name=constant"),
        (
            "prior={name: constant, value: .inf}",
            "prior.value = inf: Input should be a finite number",
        ),
        ("generator=tiny-flux", "generator = 'tiny-flux'"),
        ("generator.lora_rank=-1", "generator.lora_rank = -1"),
        ("sampling.shift=0", "sampling.shift = 0"),
        ("sampling.steps=1", "sampling.steps = 1"),
        ("tracker=mlflow", "tracker = 'mlflow'"),
        ("prompts=7", "prompts = 7"),
    ],
)
def test_a_wrong_type_or_range_is_refused_by_key_value_and_rule(preset, override, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_config(preset, [override])


def test_k_and_kappa_are_two_ways_to_say_one_thing(preset):
    assert read_config(preset, ["objective.k=40"]).objective.k == 40
    assert read_config(preset, ["objective.kappa=2"]).objective.kappa == 2
    with pytest.raises(ConfigError, match=r"objective: give k .* or kappa .*, not both"):
        read_config(preset, ["objective.k=40", "objective.kappa=2"])


def test_every_fault_is_told_at_once(preset):
    with pytest.raises(ConfigError) as refused:
        read_config(preset, ["iteratons=3", "objective.alpha=2", "group_size=1"])
    assert len(str(refused.value).splitlines()) == 3


def test_what_has_no_default_must_be_given(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError) as refused:
        read_config(tmp_path / "empty.yaml")
    assert [line for line in str(refused.value).splitlines()] == [
        "generator must be given",
        "reward must be given",
        "prompts must be given",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- 1\n- 2\n", "holds no settings"),
        ("words", "holds no settings"),
        ("a: [1\nb: 2", "is not YAML"),
        ("\tx", "is not YAML"),
    ],
)
def test_a_file_that_is_no_preset_is_refused_by_name(tmp_path, text, says):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    for overrides in ([], ["iterations=3"]):
        with pytest.raises(ConfigError, match=rf"broken\.yaml {says}"):
            read_config(file, overrides)


# ------------------------------------------------------------------------------------------------------------- overrides


def test_overrides_are_yaml_at_any_depth_and_the_last_one_holds(preset):
    config = read_config(
        preset,
        [
            "objective.alpha=0.3",
            "evaluation.held_out.name=image_reward",
            "evaluation.held_out.path=tiny-held-out",
            "optimiser={learning_rate: 1e-3, updates: 2}",
            "optimiser.learning_rate=2e-3",
            "generator.lora_alpha=null",
            "iterations=7",
            "iterations=9",
            "evaluation.oracle=true",
        ],
    )
    assert config.objective.alpha == 0.3
    assert [(held.name, held.path) for held in config.evaluation.held_out] == [
        ("image_reward", "tiny-held-out")
    ]
    assert (config.optimiser.learning_rate, config.optimiser.updates) == (2e-3, 2)
    assert (config.generator.lora_alpha, config.iterations, config.evaluation.oracle) == (
        None,
        9,
        True,
    )
    assert read_config("t2i-tiny", ["evaluation.held_out=null"]).evaluation.held_out == []


def test_an_override_may_have_an_equals_sign_in_its_value(preset):
    assert read_config(preset, ["generator.path=runs/a=b"]).generator.path == "runs/a=b"


def test_precision_no_is_not_read_as_false(preset):
    assert read_config(preset, ["precision=no"]).precision == "no"
    assert read_config(preset, ["precision=bf16"]).precision == "bf16"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("iterations", "'iterations' is not an override: write key=value"),
        ("iterations:3", "is not an override"),
        ("objective.alpha=[", "objective.alpha=[ is not YAML"),
        ("prompts.train=x", "prompts is 'prompts.txt', it has no settings below it"),
        ("objective.alpha.x=1", "objective.alpha"),
    ],
)
def test_what_is_no_override_is_refused(preset, override, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_config(preset, [override])


def test_overrides_do_not_change_the_file(preset):
    before = preset.read_text()
    read_config(preset, ["iterations=3"])
    assert preset.read_text() == before


def test_differences_name_the_keys():
    old, new = (
        to_dict(build_config(SMALLEST | {"objective": {"alpha": a}, "seed": s}))
        for a, s in ((0.5, 0), (0.25, 1))
    )
    assert differences(old, new) == ["objective.alpha: 0.5 -> 0.25", "seed: 0 -> 1"]
    assert differences(old, old) == []
    assert differences({"a": {"b": 1}}, {"a": None}) == ["a: {'b': 1} -> None"]


# --------------------------------------------------------------------------------------------------------- documentation


def leaves(kind, prefix=""):
    """Dotted names of a tree of dataclasses, found in the classes' own annotations."""
    kinds = [c for c in vars(settings).values() if dataclasses.is_dataclass(c)]
    for name, annotation in kind.__annotations__.items():
        inner = next((c for c in kinds if re.search(rf"\b{c.__name__}s?\b", annotation)), None)
        if inner:
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_is_listed_with_its_meaning(capsys):
    assert main(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = dict(line.split(None, 1) for line in lines)
    assert set(listed) == set(leaves(Config)) == set(flatten(Config))
    assert {
        "objective.alpha",
        "evaluation.held_out.path",
        "generator.lora_rank",
        "seed",
    } <= listed.keys()
    assert all(len(meaning) > 5 for meaning in listed.values()), {
        k: v for k, v in listed.items() if len(v) <= 5
    }
    assert (
        len({line.index(meaning) for line, meaning in zip(lines, listed.values(), strict=True)})
        == 1
    ), "not in two columns"


def test_what_the_settings_name_is_what_there_is():
    known = {
        f.name: str(f.type).replace("'", '"')
        for kind in (settings.Objective, settings.Sampling)
        for f in dataclasses.fields(kind)
    }
    assert set(re.findall(r'"([\w-]+)"', known["name"])) == set(OBJECTIVES)
    assert set(re.findall(r'"([\w-]+)"', known["schedule"])) == set(SCHEDULES)
    named = re.findall(r"[a-z]\w+(?=, )", flatten(Config)["reward.name"].partition(": ")[2])
    assert set(named) < set(REWARDS)


# ---------------------------------------------------------------------------------------------------------- command line


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
            "'nowhere/at/all' is no folder",
        ),
        (
            ["pretrain", "fluks", "--output", "{out}"],
            "unknown stage 'fluks'; stages are autoencoder, flux",
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
    assert "usage: python -m bpgo" in message
    assert says in message


def test_from_a_shell():
    command = [sys.executable, "-m", "bpgo"]
    wrong = subprocess.run(
        [*command, "train", "t2i-tiny", "--output", "x", "seeed=1"], capture_output=True, text=True
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "bpgo train: unknown setting 'seeed': did you mean 'seed'?\n"
    right = subprocess.run([*command, "settings"], capture_output=True, text=True)
    assert (right.returncode, right.stderr) == (0, "")


def test_a_range_without_a_window_is_refused():
    with pytest.raises(
        ConfigError, match=r"sampling: window_range says where sampling\.window may lie"
    ):
        read_config("t2v-tiny", ["sampling.window=null", "sampling.window_range=[0, 4]"])
    assert read_config(
        "t2v-tiny", ["sampling.window=3", "sampling.window_range=[1, 6]"]
    ).sampling.window_range == (1, 6)


def test_the_sharpness_of_ras_has_one_source():
    with pytest.raises(
        ConfigError,
        match=r"prior.name=empirical_bayes works out the sharpness of RAS itself: set objective.kappa=null",
    ):
        read_config("t2i-tiny", ["prior.name=empirical_bayes"])
    assert (
        read_config("t2i-tiny", ["prior.name=empirical_bayes", "objective.kappa=null"]).prior.name
        == "empirical_bayes"
    )
