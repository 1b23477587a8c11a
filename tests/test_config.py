"""Presets and overrides: what is read, and what is refused with a remedy."""

import json
import re
import warnings

import pytest
import yaml

from bpgo.config import (
    PRESETS,
    Config,
    ConfigError,
    build_config,
    differences,
    list_presets,
    read_config,
    to_dict,
)
from bpgo.files import resolve

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
    in_a_run = json.loads(json.dumps(to_dict(config)))
    assert build_config(in_a_run) == config
    tree = yaml.safe_load(file.read_text())
    assert config.generator.path == tree["generator"]["path"]
    assert config.group_size == tree.get("group_size", 12)


def test_every_preset_is_listed_with_its_first_line():
    listed = list_presets()
    assert list(listed) == [file.stem for file in KNOWN_PRESETS]
    assert "t2i-tiny" in listed
    for file in KNOWN_PRESETS:
        assert file.read_text().splitlines()[0] == f"# {listed[file.stem]}"


def test_the_tiny_preset_names_what_is_shipped_and_has_the_values_of_the_paper():
    config = read_config("t2i-tiny")
    for path in (config.generator.path, config.reward[0].path, config.prompts):
        assert resolve(path).exists()
    assert config.group_size == 12
    assert config.prior.name == "running_mean"
    assert config.objective.alpha == 0.5


def test_a_missing_preset_is_refused_with_the_names_of_all():
    expected = r"no preset 't2i-tinny': give a YAML file or one of .*t2i-tiny"
    with pytest.raises(FileNotFoundError, match=expected):
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
        ("qqqqzzzz=1", "unknown setting 'qqqqzzzz': `bpgo settings` lists them all"),
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
        (
            "objective.name=ppo",
            "objective.name: unknown objective 'ppo': known: grpo, ras, crt, bpgo, teleboost.",
        ),
        (
            "optimiser.learning_rate=.inf",
            "optimiser.learning_rate = inf: Input should be a finite number",
        ),
        ("optimiser.learning_rate=-1e-4", "optimiser.learning_rate = "),
        ("optimiser.ema_decay=1", "optimiser.ema_decay = 1: Input should be less than 1"),
        ("optimiser.updates=3", "groups=8 cannot be divided evenly over optimiser.updates=3"),
        ("prior.name=constant", "prior.value must be set for prior.name=constant, and only"),
        ("prior.value=1.0", "prior.value must be set for prior.name=constant, and only then"),
        ("evaluation.metrics=shape", "unknown metric 'shape': did you mean 'shapes'?"),
        ("reward.name=clipp", "reward.name: unknown reward 'clipp': did you mean 'clip'?"),
        ("sampling.schedule=sps", "sampling.schedule: unknown schedule 'sps': did you mean 'cps'?"),
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
def test_a_wrong_value_is_refused_with_its_key_and_what_is_allowed(preset, override, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_config(preset, [override])


def test_only_one_of_k_and_kappa_can_be_set(preset):
    assert read_config(preset, ["objective.k=40"]).objective.k == 40
    assert read_config(preset, ["objective.kappa=2"]).objective.kappa == 2
    with pytest.raises(ConfigError, match=r"objective: set either k .* or kappa .*, not both"):
        read_config(preset, ["objective.k=40", "objective.kappa=2"])


def test_every_fault_is_reported_at_once(preset):
    with pytest.raises(ConfigError) as refused:
        read_config(preset, ["iteratons=3", "objective.alpha=2", "group_size=1"])
    assert len(str(refused.value).splitlines()) == 3


def test_what_has_no_default_must_be_given(tmp_path):
    (tmp_path / "empty.yaml").write_text("{}")
    with pytest.raises(ConfigError) as refused:
        read_config(tmp_path / "empty.yaml")
    assert str(refused.value).splitlines() == [
        "generator must be given",
        "reward must be given",
        "prompts must be given",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- 1\n- 2\n", " has no settings: write lines of `key: value`"),
        ("words", " has no settings"),
        ("", " is empty: write lines of `key: value`"),
        ("# words\n", " is empty"),
        ("iterations:5", " has no settings"),
        ("a: [1\nb: 2", ", line 2: not valid YAML"),
        ("\tx", ", line 1: not valid YAML: indent with spaces instead of tabs"),
        ("a:\n\tb: 1", ", line 2: not valid YAML: indent with spaces instead of tabs"),
        ("groups: 2\niterations:5\nseed: 1", ", line 3: not valid YAML: .*a space after the colon"),
        ("objective: {alpha:0.5}", ", line 1: write a space after the colon of 'alpha:0.5'"),
        ("groups: 2\n---\ngroups: 3", ", line 2: a second document starts here"),
        (
            "groups: 2\nseed: 1\ngroups: 3",
            ", line 3: the key 'groups' is given twice, in lines 1 and",
        ),
        ("groups: 010", ", line 1: 010 can be read in several ways"),
        ("groups: \x00", ", line 1: not valid YAML: the character"),
    ],
)
def test_a_file_that_is_not_a_preset_is_refused_by_name(tmp_path, text, says):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    for overrides in ([], ["iterations=3"]):
        with pytest.raises(ConfigError, match=rf"broken\.yaml{says}"):
            read_config(file, overrides)


# -------------------------------------------------------------------- values as a person reads them


@pytest.fixture
def with_value(tmp_path):
    """Makes a preset with one more setting, in line 4."""

    def write(key, value):
        file = tmp_path / "mine.yaml"
        settings = {"generator.path": "tiny-flux", "reward.name": "clip", "prompts": "p.txt"}
        lines = []
        for name, text in (settings | {key: value}).items():
            group, _, leaf = name.partition(".")
            lines.append(f"{group}: {{{leaf}: {text}}}" if leaf else f"{name}: {text}")
        file.write_text("\n".join(lines), encoding="utf-8")
        return file

    return write


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimiser.learning_rate", "1e-4", 0.0001),
        ("optimiser.learning_rate", ".5E-3", 0.0005),
        ("optimiser.learning_rate", "2e0", 2.0),
        ("iterations", "1_000", 1000),
        ("iterations", "1e3", 1000),
        ("guards", "off", False),
        ("guards", "yes", True),
        ("precision", "no", "no"),
        ("generator.path", "no", "no"),
        ("prompts", "on", "on"),
        ("prompts", "2025-01-31", "2025-01-31"),
        ("prompts", "=", "="),
        ("objective.options", "{scale: 1e-4}", {"scale": 0.0001}),
        ("objective.options", "{answer: 'no'}", {"answer": "no"}),
    ],
)
def test_a_value_is_read_as_a_person_reads_it(with_value, key, text, value):
    group, _, leaf = key.rpartition(".")
    config = read_config(with_value(key, text))
    found = getattr(getattr(config, group) if group else config, leaf)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("iterations", "010", "mine.yaml, line 4: 010 can be read in several ways"),
        ("iterations", "08", "mine.yaml, line 4: 08 can be"),
        ("iterations", "12:30", "mine.yaml, line 4: 12:30 can be"),
        ("objective.alpha", "0:30.5", "mine.yaml, line 4: 0:30.5 can be"),
        ("iterations", "1__0", "mine.yaml, line 4: 1__0 can be"),
        ("objective.lam", "1e999", "mine.yaml, line 4: 1e999 is too large for a number"),
        ("iterations", "9" * 5000, "is too large for a number"),
        (
            "objective.lam",
            ".inf",
            "mine.yaml, line 4: objective.lam = inf: Input should be a finite",
        ),
        (
            "objective.lam",
            "nan",
            "mine.yaml, line 4: objective.lam = 'nan': Input should be a finite",
        ),
        ("objective.options", "{clip: no}", "line 4: objective.options: no is a text or true or"),
        (
            "objective.options",
            "{clip: [off]}",
            "line 4: objective.options: off is a text or true or",
        ),
        ("iteratons", "3", "line 4: unknown setting 'iteratons': did you mean 'iterations'?"),
        ("objective", "grpo", "line 4: objective = 'grpo': write its settings below it"),
        ("seed", str(2**64), "(integer >= 0 < 2**63)"),
        ("seed", "-1", "(integer >= 0 < 2**63)"),
        ("group_size", str(10**12), "(integer >= 2 <= 65536)"),
        ("evaluation.steps", str(10**12), "(integer >= 1 <= 65536)"),
        ("prior.samples", str(10**30), "(integer >= 1 <= 65536)"),
    ],
)
def test_an_unclear_or_wrong_value_is_refused_with_its_line(with_value, key, text, says):
    file = with_value(key, text)
    with pytest.raises(ConfigError, match=re.escape(says)) as refused:
        read_config(file)
    assert f"{file}, line 4: " in str(refused.value)


def test_a_dotted_key_in_a_file_is_refused_with_how_to_write_it(preset):
    preset.write_text(preset.read_text() + "objective.alpha: 0.3\n")
    line = preset.read_text().count("\n")
    says = rf"line {line}: unknown setting 'objective.alpha': .* `alpha:` below `objective:`"
    with pytest.raises(ConfigError, match=says):
        read_config(preset)


def test_the_largest_seed_is_accepted(preset):
    assert read_config(preset, [f"seed={2**63 - 1}"]).seed == 2**63 - 1


def test_a_wrong_override_is_not_said_to_be_in_the_file(preset):
    with pytest.raises(ConfigError) as refused:
        read_config(preset, ["reward.name=clipp"])
    assert str(refused.value).startswith("reward.name: unknown reward 'clipp'")


def test_a_preset_with_a_byte_order_mark_or_windows_line_ends_is_read(preset):
    text = preset.read_text(encoding="utf-8")
    expected = read_config(preset)
    preset.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_config(preset) == expected


def test_a_preset_in_another_encoding_is_refused_with_the_line(preset):
    text = preset.read_text(encoding="utf-8")
    preset.write_bytes(text.encode() + "# sch\xf6n\n".encode("latin-1"))
    line = text.count("\n") + 1
    with pytest.raises(ConfigError, match=rf"mine\.yaml, line {line}: this is not UTF-8 text"):
        read_config(preset)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("gpu", "cuda"),
        ("gpu1", "cuda"),
        ("cude:1", "cuda:1"),
        ("CUDA:0", "cuda:0"),
        ("0", "cuda:0"),
        ("cuda0", "cuda"),
        ("metal", "mps"),
        ("cpu:1", "cpu"),
    ],
)
def test_a_misspelt_device_is_refused_with_the_nearest(preset, name, nearest):
    for key in ("reward.device", "evaluation.held_out.device"):
        overrides = ["evaluation.held_out.name=clip", f"{key}={name}"]
        with pytest.raises(ConfigError, match=f"{key}: unknown device .* mean '{nearest}'"):
            read_config(preset, overrides)


# ---------------------------------------------------------------------------------------- overrides


def test_overrides_are_yaml_at_any_depth(preset):
    config = read_config(
        preset,
        [
            "objective.alpha=0.3",
            "evaluation.held_out.name=image_reward",
            "evaluation.held_out.path=tiny-held-out",
            "optimiser={learning_rate: 1e-3, updates: 2}",
            "optimiser.learning_rate=2e-3",
            "generator.lora_alpha=null",
            "iterations=9",
            "iterations=9",
            "evaluation.metrics=shapes",
        ],
    )
    assert config.objective.alpha == 0.3
    assert [(held.name, held.path) for held in config.evaluation.held_out] == [
        ("image_reward", "tiny-held-out")
    ]
    assert (config.optimiser.learning_rate, config.optimiser.updates) == (2e-3, 2)
    assert (config.generator.lora_alpha, config.iterations) == (None, 9)
    assert config.evaluation.metrics == ["shapes"]
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
        ("objective.alpha=[", "objective.alpha=[: not valid YAML"),
        ("prompts.train=x", "prompts is 'prompts.txt', which has no settings below it"),
        ("objective.alpha.x=1", "objective.alpha"),
    ],
)
def test_what_is_not_an_override_is_refused(preset, override, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_config(preset, [override])


def test_overrides_do_not_change_the_file(preset):
    before = preset.read_text()
    read_config(preset, ["iterations=3"])
    assert preset.read_text() == before


def test_differences_name_the_keys():
    old = to_dict(build_config(SMALLEST | {"objective": {"alpha": 0.5}, "seed": 0}))
    new = to_dict(build_config(SMALLEST | {"objective": {"alpha": 0.25}, "seed": 1}))
    assert differences(old, new) == ["objective.alpha: 0.5 -> 0.25", "seed: 0 -> 1"]
    assert differences(old, old) == []
    assert differences({"a": {"b": 1}}, {"a": None}) == ["a: {'b': 1} -> None"]


def test_a_range_without_a_window_is_refused():
    expected = r"sampling: window_range limits the position of the window: set sampling\.window too"
    with pytest.raises(ConfigError, match=expected):
        read_config("t2v-tiny", ["sampling.window=null", "sampling.window_range=[0, 4]"])
    config = read_config("t2v-tiny", ["sampling.window=3", "sampling.window_range=[1, 6]"])
    assert config.sampling.window_range == (1, 6)


def test_the_sharpness_of_ras_has_one_source():
    expected = r"empirical_bayes determines the sharpness of RAS itself: set objective.kappa=null"
    with pytest.raises(ConfigError, match=expected):
        read_config("t2i-tiny", ["prior.name=empirical_bayes"])
    config = read_config("t2i-tiny", ["prior.name=empirical_bayes", "objective.kappa=null"])
    assert config.prior.name == "empirical_bayes"


def test_of_two_overrides_of_one_setting_the_last_counts(preset):
    """A script can so add to the overrides that it has by default."""
    assert read_config(preset, ["iterations=7", " iterations =9"]).iterations == 9
    section = ["optimiser.learning_rate=2e-3", "optimiser={updates: 2}", "optimiser.epochs=3"]
    optimiser = read_config(preset, section).optimiser
    assert (optimiser.updates, optimiser.epochs) == (2, 3)
    assert optimiser.learning_rate == 1e-5  # the default


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["generator.path=runs/x #1"], "YAML takes what follows # as a comment"),
        (["prompts=#1"], "YAML takes what follows # as a comment"),
        (["seed=010"], "seed=010: 010 can be read in several ways"),
        (["objective={alpha: 0.1, alpha: 0.2}"], "the key 'alpha' is given twice, in line 1"),
    ],
)
def test_an_override_that_would_be_misread_is_refused(preset, overrides, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_config(preset, overrides)


def test_spaces_around_an_override_do_not_count_and_an_empty_value_is_null(preset):
    config = read_config(preset, [" iterations = 7 ", "reward.path=", "generator.path='a #1'"])
    assert (config.iterations, config.reward[0].path) == (7, None)
    assert config.generator.path == "a #1"


# -------------------------------------------------------------------------------------------- lists


@pytest.fixture
def two_rewards(tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(
        "generator: {path: tiny-flux}\n"
        "prompts: prompts.txt\n"
        "reward:\n"
        "  - {name: clip}\n"
        "  - {name: hpsv2}\n"
        "evaluation: {held_out: {name: clip}}\n"
    )
    return file


def test_entries_of_lists_are_counted_from_0(two_rewards):
    overrides = ["reward.1.scale=0.5", "evaluation.held_out.0.device=cpu"]
    overrides += ["reward.0.name=pickscore"]
    config = read_config(two_rewards, overrides)
    assert [(r.name, r.scale) for r in config.reward] == [("pickscore", 1.0), ("hpsv2", 0.5)]
    assert [(r.name, r.device) for r in config.evaluation.held_out] == [("clip", "cpu")]


def test_an_entry_can_be_replaced(two_rewards):
    overrides = ["reward.1={name: clip, path: x}", "evaluation.held_out.0={name: hpsv2}"]
    config = read_config(two_rewards, overrides)
    assert [(r.name, r.path) for r in config.reward] == [("clip", None), ("clip", "x")]
    assert [r.name for r in config.evaluation.held_out] == ["hpsv2"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("reward.name=clip", "reward is a list with entries reward.0, reward.1"),
        ("reward.2.name=clip", "reward is a list with entries reward.0, reward.1"),
        ("evaluation.held_out.1.device=cpu", "a list with entries evaluation.held_out.0"),
        ("sampling.0.steps=3", "unknown setting 'sampling.0'"),
        ("reward.1.name=clipp", "reward.1.name: unknown reward 'clipp'"),
    ],
)
def test_an_entry_that_does_not_exist_is_refused_with_those_that_do(two_rewards, override, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_config(two_rewards, [override])


# -------------------------------------------------------------------- own code and earlier versions


@pytest.mark.parametrize(
    "override",
    [
        "objective.name=mine.losses:my_objective",
        "prior.name=mine:MyPrior",
        "reward.name=mine:Reward.make",
        "sampling.schedule=mine:SCHEDULE",
        "generator.policy=mine:Policy",
        "evaluation.metrics=[shapes, mine:metric]",
    ],
)
def test_a_name_from_outside_is_accepted_and_not_imported(preset, override):
    assert read_config(preset, [override]) != read_config(preset)


def test_options_are_kept_as_they_are(preset):
    overrides = ["prior.name=mine:MyPrior", "prior.options={depth: 3, words: [a, b]}"]
    assert read_config(preset, overrides).prior.options == {"depth": 3, "words": ["a", "b"]}


def test_the_earlier_name_of_teleboost_is_read_with_a_warning():
    tree = SMALLEST | {"objective": {"name": "bgpo", "alpha": 0.25}}
    with pytest.warns(UserWarning, match="objective.name=bgpo is now called teleboost"):
        config = build_config(tree)
    assert (config.objective.name, config.objective.alpha) == ("teleboost", 0.25)
    assert tree["objective"]["name"] == "bgpo", "the settings that were given are not changed"


def test_the_earlier_key_of_the_prior_is_read_with_a_warning():
    tree = SMALLEST | {"prior": {"kind": "sft", "samples": 2}}
    with pytest.warns(UserWarning, match="prior.kind is now called prior.name"):
        config = build_config(tree)
    assert (config.prior.name, config.prior.samples) == ("sft", 2)
    assert tree["prior"]["kind"] == "sft"


def test_present_names_are_read_without_a_warning():
    tree = SMALLEST | {"prior": {"name": "sft"}, "objective": {"name": "teleboost"}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_config(tree).prior.name == "sft"
        with pytest.raises(ConfigError, match=r"unknown setting 'prior.kind': did you mean"):
            build_config(SMALLEST | {"prior": {"name": "sft", "kind": "sft"}})
