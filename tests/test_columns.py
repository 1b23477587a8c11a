"""Columns of the prompt file that rewards and metrics ask for by name, and lists of bad prompts."""

import copy
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from PIL import Image

from bpgo.prompts import (
    Prompt,
    columns_for,
    list_problems,
    required_columns,
    with_columns,
)

PIXELS = torch.zeros(2, 3, 4, 4)
PROMPTS = [
    Prompt("a sign", where="p.csv, line 2", columns={"answer": "yes", "target": "STOP"}),
    Prompt("a shop", where="p.csv, line 3", columns={"answer": "no", "target": "OPEN"}),
]


def plain(pixels, prompts):
    return torch.ones(len(prompts))


def needs_both(pixels, prompts, answer, target):
    return pixels.shape, list(prompts), answer, target


def has_a_default(pixels, prompts, answer, *, language="en"):
    return answer, language


class Instance:
    def __call__(self, pixels, prompts, answer):
        return answer


class Module(torch.nn.Module):
    def forward(self, pixels, prompts, answer):
        return answer


def test_a_function_without_further_parameters_is_returned_as_it_is():
    for function in (plain, lambda *args: 0, lambda p, q, *more, **options: 0, len, max):
        assert with_columns(function, "it") is function
        assert required_columns(function) == []


def test_columns_are_passed_by_name_with_one_entry_per_prompt():
    found = with_columns(needs_both, "it")(PIXELS, PROMPTS)
    assert found == ((2, 3, 4, 4), ["a sign", "a shop"], ["yes", "no"], ["STOP", "OPEN"])
    swapped = with_columns(lambda pixels, prompts, target, answer: (target, answer), "it")
    assert swapped(PIXELS, PROMPTS) == (["STOP", "OPEN"], ["yes", "no"])


@pytest.mark.parametrize("reward", [Instance(), Module(), Module().forward])
def test_objects_and_modules_can_ask_too(reward):
    assert required_columns(reward) == ["answer"]
    assert with_columns(reward, "it")(PIXELS, PROMPTS) == ["yes", "no"]


def test_passing_columns_twice_is_passing_them_once():
    once = with_columns(needs_both, "it")
    assert with_columns(once, "it") is once


def test_required_columns_are_those_without_a_default():
    assert required_columns(needs_both) == ["answer", "target"]
    assert required_columns(has_a_default) == ["answer"]
    assert required_columns(lambda pixels, prompts, *, answer: 0) == ["answer"]


def test_a_parameter_with_a_default_gets_its_column_only_if_all_prompts_have_it():
    reward = with_columns(has_a_default, "it")
    assert reward(PIXELS, PROMPTS) == (["yes", "no"], "en")
    french, unknown = (Prompt(p, columns=p.columns | {"language": "fr"}) for p in PROMPTS)
    assert reward(PIXELS, [french, unknown]) == (["yes", "no"], ["fr", "fr"])
    assert reward(PIXELS, [french, PROMPTS[1]]) == (["yes", "no"], "en")


def test_a_prompt_without_the_column_is_named_with_its_place_and_columns():
    prompts = [PROMPTS[0], Prompt("a wall", None, "p.csv, line 9", {"target": "", "level": 1})]
    with pytest.raises(ValueError) as refused:
        with_columns(needs_both, "reward 'mine:reward'")(PIXELS, prompts)
    message = str(refused.value)
    for part in ("reward 'mine:reward'", "'answer'", "'a wall' (p.csv, line 9)", "target, level"):
        assert part in message
    assert "1 of 2 prompts without" in message


def test_a_plain_string_has_no_columns():
    with pytest.raises(
        ValueError, match=r"the column 'answer' .* 'a shop' .* further columns: none"
    ):
        with_columns(needs_both, "it")(PIXELS, [PROMPTS[0], "a shop"])


def test_all_prompts_can_be_checked_without_pixels():
    assert columns_for(needs_both, PROMPTS, "it")["target"] == ["STOP", "OPEN"]
    with pytest.raises(ValueError, match="2 of 4 prompts without"):
        columns_for(needs_both, [*PROMPTS, "a", "b"], "it")


def test_columns_do_not_enter_the_key_or_the_text():
    assert PROMPTS[0].key == PROMPTS[0] == "a sign"
    assert Prompt("a sign").columns == {} and Prompt("a sign").where is None


def test_prompts_reach_another_process_with_columns_and_place():
    prompt = Prompt("it moves", Image.new("RGB", (4, 4), "red"), "p.csv, line 2", {"answer": 3})
    copies = [pickle.loads(ForkingPickler.dumps(prompt)), copy.deepcopy(prompt)]
    for found in copies:
        assert (found, found.key) == (prompt, prompt.key)
        assert (found.where, found.columns) == ("p.csv, line 2", {"answer": 3})
        assert found.image.getpixel((0, 0)) == (255, 0, 0)


# --------------------------------------------------------------------------------------- messages


def test_one_problem_is_one_line():
    message = list_problems([(PROMPTS[1], "unknown word: shop")], "prompts")
    assert message == "prompts: p.csv, line 3, 'a shop': unknown word: shop"


def test_all_problems_are_listed_with_their_places():
    prompts = ["a", "b", PROMPTS[0], "d"]
    problems = [(prompts[i], "bad") for i in (1, 2, 3)]
    lines = list_problems(problems, "prompts", prompts).splitlines()
    assert lines[0] == "prompts:"
    assert [line.strip() for line in lines[1:]] == [
        "prompt 2, 'b': bad",
        "p.csv, line 2, 'a sign': bad",
        "prompt 4, 'd': bad",
    ]


def test_long_lists_and_long_prompts_are_shortened():
    problems = [(Prompt("x" * 5000, where=f"p.txt, line {i}"), "too long") for i in range(2001)]
    message = list_problems(problems, "prompts")
    assert message.endswith("and 1981 more")
    assert len(message.splitlines()) == 22
    assert len(message) < 22 * 110
