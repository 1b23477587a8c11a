"""Which prompts a tokenizer refuses: those of words that it can neither read nor spell."""

from string import ascii_lowercase

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BertTokenizer, CLIPTokenizer, Qwen2Tokenizer, T5Tokenizer

from bpgo.generators import load_generator
from bpgo.prompts import Prompt
from bpgo.tokenization import refuse_unknown_words
from bpgo.worlds.pretrain import architectures as tiny

RARE = ["a \U0001f600 box", "\u7ea2\u8272\u7684\u5706", "na\u00efve \u0416", "x"]
LETTERS = list(ascii_lowercase)
BYTES = sorted(ByteLevel.alphabet())


def t5():
    """As T5's and UMT5's: pieces of words, and all letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581", -2.0)]
    return T5Tokenizer(vocab=pieces + [(c, -4.0) for c in LETTERS], extra_ids=0)


def bert():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})


def clip():
    """All bytes, and the end as the unknown token."""
    tokens = [*BYTES, *(f"{c}</w>" for c in BYTES), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def qwen():
    return Qwen2Tokenizer(vocab={token: i for i, token in enumerate(BYTES)}, merges=[])


@pytest.mark.parametrize("build", [t5, bert, clip, qwen])
def test_a_tokenizer_that_can_spell_refuses_nothing(build):
    tokenizer = build()
    if build in (t5, bert):
        unknown = [tokenizer.unk_token_id in tokenizer(text)["input_ids"] for text in RARE]
        assert unknown == [True, True, True, False]
    refuse_unknown_words(tokenizer, RARE)


@pytest.mark.parametrize("build", [tiny.t5_tokenizer, tiny.bert_tokenizer, tiny.clip_tokenizer])
def test_a_tokenizer_of_words_refuses_all_prompts_with_others(build):
    """CLIP's reads a prompt up to the first end token, which is also its unknown token."""
    bad = [
        Prompt("a zzz box", where="p.txt, line 2"),
        Prompt("a red \U0001f600", where="p.txt, line 3"),
    ]
    with pytest.raises(ValueError, match="does not know these words") as caught:
        refuse_unknown_words(build(), ["a red circle", *bad, "a box", bad[0]])
    assert str(caught.value).splitlines()[1:] == [
        "  p.txt, line 2, 'a zzz box': zzz",
        "  p.txt, line 3, 'a red \U0001f600': \U0001f600",
    ]
    refuse_unknown_words(build(), ["a red circle", "a small crimson box at the top"])


def test_words_are_checked_as_they_are_read_and_prompts_named_as_they_are_written():
    words = tiny.t5_tokenizer()
    refuse_unknown_words(words, ["A RED CIRCLE"], str.lower)
    with pytest.raises(ValueError, match="'A Mauve circle': mauve"):
        refuse_unknown_words(words, ["A Mauve circle"], str.lower)


def test_generators_take_what_a_published_tokenizer_reads_as_unknown(tiny_folder, wan_folder):
    flux, wan = load_generator(tiny_folder), load_generator(wan_folder)
    for policy in (flux, wan):
        with pytest.raises(ValueError, match="does not know these words"):
            policy.check(RARE)
    flux.pipeline.tokenizer_2, flux.pipeline.tokenizer, wan.pipeline.tokenizer = t5(), clip(), t5()
    for policy in (flux, wan):
        policy.check(RARE)


def test_every_tokenizer_of_flux_is_asked(tiny_folder):
    flux = load_generator(tiny_folder)
    flux.pipeline.tokenizer_2 = t5()  # can spell, and the tiny CLIP cannot
    with pytest.raises(ValueError, match="'a zzz box': zzz"):
        flux.check(["a red circle", "a zzz box"])
