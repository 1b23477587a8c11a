"""Tokenization of prompts, with errors for words that the text encoder does not know."""

from __future__ import annotations

from collections.abc import Callable

from bpgo.prompts import list_lines, shortened


def tokenize(tokenizer, prompts: list[str], max_length: int):
    """Token ids and mask, padded to `max_length`; longer prompts are cut, as upstream does.

    Raises ValueError for words that the tokenizer does not know.
    """
    refuse_unknown_words(tokenizer, prompts)
    return padded(tokenizer, prompts, max_length)


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


def refuse_unknown_words(tokenizer, prompts: list[str]) -> None:
    """Raise ValueError, naming the prompt and the words, if any words become `unk` tokens."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return  # byte-level tokenizers (CLIP) spell any word
    for prompt, ids in zip(prompts, tokenizer(prompts)["input_ids"], strict=True):
        if unknown not in ids:
            continue
        words = []
        for word in prompt.split():
            if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]:
                words.append(word)
        raise ValueError(
            f"prompt {prompt!r} has words that the text encoder does not know: "
            f"{', '.join(words) or '?'}. Use other words"
        )
