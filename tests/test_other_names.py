"""Settings of other trainers, in the message for an unknown setting."""

import pytest

from bpgo.config import Config, ConfigError, read_config
from bpgo.other_names import NOTES, OTHER_NAMES
from bpgo.settings import list_settings

SETTINGS = {setting.name for setting in list_settings(Config)}
GROUPS = {name.rpartition(".")[0] for name in SETTINGS}


def refusal(override):
    with pytest.raises(ConfigError) as error:
        read_config("t2i-tiny", [override])
    return str(error.value)


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_every_name_leads_to_a_setting_that_exists(name):
    setting = OTHER_NAMES[name]
    assert setting in SETTINGS | GROUPS
    assert name not in SETTINGS | GROUPS
    assert f"unknown setting {name!r}: did you mean {setting!r}?" in refusal(f"{name}=1")


def test_every_note_belongs_to_a_name():
    assert set(NOTES) <= set(OTHER_NAMES.values())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("gradient_accumulation_steps=4", "sampling.micro_batch"),
        ("optimiser.gradient_accumulation=4", "sampling.micro_batch"),
        ("optimiser.lr=1e-4", "optimiser.learning_rate"),
        ("learning_rate=1e-4", "optimiser.learning_rate"),
        ("sampling.num_inference_steps=4", "sampling.steps"),
        ("generator.guidance_scale=3", "generator.guidance"),
        ("generator.num-frames=9", "generator.frames"),
        ("lora.rank=8", "generator.lora_rank"),
        ("kl_coef=0.04", "objective.kl"),
        ("objective.KL_coef=0.04", "objective.kl"),
        ("optimiser.kl=0.04", "objective.kl"),
        ("epochs=3", "optimiser.epochs"),
        ("optimiser.ema=true", "optimiser.ema_decay"),
    ],
)
def test_what_users_of_other_trainers_write_is_recognised(override, expected):
    key = override.partition("=")[0]
    key = "lora" if key == "lora.rank" else key
    assert f"unknown setting {key!r}: did you mean {expected!r}?" in refusal(override)


def test_gradient_accumulation_is_explained():
    message = refusal("gradient_accumulation_steps=4")
    assert message.endswith("Gradients are accumulated over the micro-batches of an update")


def test_misspelt_settings_are_recognised_as_before():
    assert "did you mean 'iterations'?" in refusal("iteratons=3")
    assert "did you mean 'objective.alpha'?" in refusal("objective.alfa=1")
    assert "`bpgo settings` lists them all" in refusal("zzz=1")
