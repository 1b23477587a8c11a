"""Prompts to token ids, refusing what the text encoder cannot read."""

from __future__ import annotations


def tokenize(tokenizer, prompts: list[str], max_length: int):
    """Padded token ids and mask. Longer prompts are cut, as upstream does; unknown words raise ValueError."""
    refuse_unknown_words(tokenizer, prompts)
    return tokenizer(
        prompts, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
    )


def refuse_unknown_words(tokenizer, prompts: list[str]) -> None:
    """Raise ValueError naming the prompt and the words for which the tokenizer has no token but `unk`."""
    unknown = tokenizer.unk_token_id
    if (
        unknown is None or unknown == tokenizer.eos_token_id
    ):  # byte-level tokenizers (CLIP) spell any word
        return
    for prompt, ids in zip(prompts, tokenizer(prompts)["input_ids"], strict=True):
        if unknown in ids:
            words = [
                w
                for w in prompt.split()
                if unknown in tokenizer(w, add_special_tokens=False)["input_ids"]
            ]
            raise ValueError(
                f"prompt {prompt!r} has words that the text encoder does not know: {', '.join(words) or '?'}"
            )
