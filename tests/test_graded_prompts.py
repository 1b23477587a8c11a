"""The shipped graded prompts for real models, and what the analysis reads from them."""

import itertools
import json
import re
from collections import defaultdict

import numpy as np
import pytest

from bpgo.analysis import runs
from bpgo.files import SHIPPED
from bpgo.prompt_files import read_prompts
from bpgo.prompts import images_of

NAME = "prompts/graded.jsonl"
LEVELS = (0.0, 0.25, 0.5, 1.0)
ROWS = [json.loads(line) for line in (SHIPPED / NAME).read_bytes().decode("ascii").splitlines()]
CHAINS = defaultdict(list)  # (subject, paraphrase) -> prompts of increasing level
for row in ROWS:
    CHAINS[row["subject"], row["paraphrase"]].append(row["prompt"])
FUNCTION_WORDS = set(
    """
    a about above across along amid among an and around as at away before behind beneath beside
    between beyond by down for from her his in inside into is it its of off on one onto or out over
    s that the their them they this through to towards under up upon we where while who with
    """.split()
)


def content(prompt):
    """The words of a prompt without function words."""
    return set(re.findall(r"[a-z]+", prompt.lower())) - FUNCTION_WORDS


def test_fifty_subjects_at_four_levels_in_two_paraphrases():
    assert {tuple(row) for row in ROWS} == {("prompt", "subject", "level", "paraphrase")}
    subjects = list(dict.fromkeys(row["subject"] for row in ROWS))
    assert len(subjects) == 50
    found = [(row["subject"], row["level"], row["paraphrase"]) for row in ROWS]
    assert found == list(itertools.product(subjects, LEVELS, (1, 2)))


def test_prompts_are_plain_text_and_differ():
    for prompt in (row["prompt"] for row in ROWS):
        assert re.fullmatch(r"[A-Za-z',;:-]+( [A-Za-z',;:-]+)*", prompt)
        assert prompt[0].islower()
        assert prompt[-1].isalpha()
    words = {" ".join(re.findall(r"[a-z]+", row["prompt"].lower())) for row in ROWS}
    assert len(words) == 400


def test_a_text_encoder_of_77_tokens_reads_every_prompt_to_its_end():
    for row in ROWS:
        assert len(row["prompt"].split()) <= 55
        # The longest has 68 CLIP tokens, both ends counted.
        assert len(re.findall(r"\w+|[^\w\s]", row["prompt"])) <= 65


def test_the_clearer_the_level_the_longer_the_prompt():
    words = np.array([[len(prompt.split()) for prompt in chain] for chain in CHAINS.values()])
    kind, thing, place, scene = words.T
    assert max(kind.max(), thing.max()) < 10
    assert (np.maximum(kind, thing) < place).all()
    assert (place + 10 < scene).all()
    assert place.mean() > 4 * thing.mean()
    assert scene.mean() > 3 * place.mean()


def test_a_more_specific_prompt_repeats_the_words_of_the_less_specific_one():
    for (_, thing, place, scene), (subject, _) in zip(CHAINS.values(), CHAINS, strict=True):
        assert content(place) <= content(scene), subject
        assert content(thing) & content(place), subject


def test_paraphrases_share_few_words():
    pairs = [
        (content(first["prompt"]), content(second["prompt"]))
        for first, second in zip(ROWS[::2], ROWS[1::2], strict=True)
    ]
    shared = np.array([len(a & b) / len(a | b) for a, b in pairs])
    assert shared.max() < 0.25
    assert shared.mean() < 0.05


def test_prompts_and_levels_are_read():
    prompts = read_prompts(NAME)
    assert prompts == [row["prompt"] for row in ROWS]
    assert images_of(prompts) is None
    facts = runs.prompt_facts(NAME, prompts)
    assert facts["level"].tolist() == [row["level"] for row in ROWS]
    assert np.isnan(facts["bits"]).all()
    # The quarters of the prompts are the four levels.
    levels, means, count = runs.by_level(facts["level"][None], facts["level"])
    assert levels.tolist() == list(LEVELS)
    assert means[0].tolist() == list(LEVELS)
    assert count.tolist() == [100] * 4


@pytest.mark.parametrize(
    "name", ["owner/name", "owner/name:train:caption", "saved/folder:train", "p.txt", "p.parquet"]
)
def test_files_without_grades_give_facts_without_values(name):
    facts = runs.prompt_facts(name, ["a shape", "a thing"])
    assert facts.keys() == {"level", "bits"}
    assert all(np.isnan(values).tolist() == [True, True] for values in facts.values())
