"""The refusal of blank prompts, which names them and nothing else."""

import pytest

from bpgo.prompts import Prompt
from bpgo.tokenization import refuse_empty


def refusal(prompts, **options):
    with pytest.raises(ValueError) as refused:
        refuse_empty(prompts, **options)
    return str(refused.value)


def test_one_blank_prompt_of_many_is_named_alone():
    prompts = [f"prompt number {i}" for i in range(2000)]
    prompts.insert(1234, "  ")
    message = refusal(prompts)
    assert message.endswith("non-empty strings: prompt 1235 is blank")
    assert len(message) < 100


def test_all_blank_prompts_are_listed_with_their_places():
    prompts = ["a", Prompt(" ", where="p.txt, line 7"), None, "b", ""]
    assert [line.strip() for line in refusal(prompts).splitlines()[1:]] == [
        "p.txt, line 7 is blank",
        "prompt 3 is a NoneType",
        "prompt 5 is blank",
    ]
    many = refusal([""] * 2001)
    assert many.endswith("and 1981 more") and len(many) < 1000


def test_what_is_blank_after_cleaning_is_refused():
    assert "prompt 2 is blank" in refusal(["a", "&nbsp;"], clean=lambda p: p.replace("&nbsp;", ""))


def test_a_text_is_not_a_list_of_letters():
    assert "not the text 'abc': put it in a list" in refusal("abc")


def test_an_empty_list_is_refused_and_good_prompts_pass():
    assert "the list is empty" in refusal([])
    refuse_empty(["a", Prompt("b")])
