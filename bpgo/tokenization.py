"""Tokenization of prompts, with errors for words that the text encoder does not know."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from string import ascii_lowercase

from bpgo.prompts import list_lines, list_problems, shortened


def tokenize(tokenizer, prompts: list[str], max_length: int, clean: Callable[[str], str] = str):
    """Token ids and mask, padded to `max_length`; longer prompts are cut, as upstream does.

    clean: applied to each prompt first. Raises ValueError as `refuse_unknown_words` does.
    """
    refuse_unknown_words(tokenizer, prompts, clean)
    return padded(tokenizer, [clean(prompt) for prompt in prompts], max_length)


def padded(tokenizer, prompts: list[str], max_length: int):
    """Token ids and mask, padded or cut to `max_length`, without checking the words."""
    return tokenizer(
        prompts, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
    )


def refuse_empty(prompts: list[str], clean: Callable[[str], str] = str.strip) -> None:
    """Raise ValueError for an empty list, and for prompts that are not text or are blank.

    The message lists these prompts. clean: applied to each prompt first.
    """
    what = "prompts must be a non-empty list of non-empty strings"
    if isinstance(prompts, str):
        raise ValueError(f"{what}, not the text {shortened(prompts)}: put it in a list")
    problems = []
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str):
            problems.append(f"prompt {number} is a {type(prompt).__name__}")
        elif not clean(prompt):
            problems.append(f"{getattr(prompt, 'where', None) or f'prompt {number}'} is blank")
    if len(prompts) == 0:
        problems.append("the list is empty")
    if problems:
        raise ValueError(list_lines(what, problems))


def refuse_unknown_words(tokenizer, prompts: list[str], clean: Callable[[str], str] = str) -> None:
    """Raise ValueError, listing all prompts with unknown words, for a tokenizer that cannot spell.

    The tokenizers of the tiny checkpoints know words, but not all letters to spell other words.
    Published tokenizers can spell. Their unknown token stands for rare characters, such as emoji,
    and nothing is refused, because upstream scores and encodes it. clean: applied to each prompt
    first.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in _ids(tokenizer, ascii_lowercase):
        return
    problems = []
    for prompt in each_once(prompts):
        cleaned = clean(prompt)
        if unknown in _ids(tokenizer, cleaned):
            words = [word for word in cleaned.split() if unknown in _ids(tokenizer, word)]
            problems.append((prompt, ", ".join(words) or "?"))
    if problems:
        what = "the text encoder does not know these words, so use others"
        raise ValueError(list_problems(problems, what, prompts))


def as_clip(prompt: str) -> str:
    """A prompt as OpenAI's CLIP and open_clip clean it before they tokenize it.

    ftfy repairs Unicode and makes curly quotes straight, HTML entities are replaced twice, and
    white space becomes single spaces. Both also make it lower case, which the tokenizer of
    transformers does too.
    """
    from ftfy import fix_text

    return re.sub(r"\s+", " ", unescape(unescape(fix_text(prompt)))).strip()


def each_once(prompts: list[str]) -> list[str]:
    """The prompts without repetitions of the same object, as the rows of a group are."""
    return list({id(prompt): prompt for prompt in prompts}.values())


def _ids(tokenizer, text: str) -> list[int]:
    # verbose=False: without the warning that the text is longer than the model reads.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
