"""The tokenizers of the tiny checkpoints, for the captions of every world."""

import pytest

from bpgo.worlds import load_world
from bpgo.worlds.clips.captions import wordings as clips_wordings
from bpgo.worlds.clips.scenes import all_scenes as clips_scenes
from bpgo.worlds.digits.captions import MEANING
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.shapes.captions import wordings as shapes_wordings
from bpgo.worlds.shapes.scenes import all_scenes as shapes_scenes


def longest(captions):
    return max(captions, key=lambda caption: len(caption.split()))


LONGEST = {
    "shapes": longest([c for n in (1, 2) for c in shapes_wordings(shapes_scenes(n)[0])]),
    "clips": longest([c for scene in clips_scenes()[:13] for c in clips_wordings(scene)]),
    "digits": longest(MEANING),
}
LIMITS = {"shapes": tiny.TOKENS, "clips": tiny.VIDEO_TOKENS, "digits": tiny.TOKENS}


@pytest.mark.parametrize("world", LONGEST)
@pytest.mark.parametrize("build", [tiny.t5_tokenizer, tiny.clip_tokenizer, tiny.bert_tokenizer])
def test_each_word_is_one_token_and_the_longest_caption_is_not_cut(build, world):
    vocabulary = load_world(world).captions.VOCABULARY
    tokenizer = build(vocabulary, LIMITS[world])
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in vocabulary]
    assert all(len(tokens) == 1 for tokens in ids)
    assert len({tokens[0] for tokens in ids}) == len(vocabulary)
    assert [tokenizer.unk_token_id] not in ids
    special = len(tokenizer("")["input_ids"])
    tokens = len(tokenizer(LONGEST[world])["input_ids"])
    assert tokens == len(LONGEST[world].split()) + special <= LIMITS[world]
