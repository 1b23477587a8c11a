"""Rewards that cannot score every text say so without pixels, and list all that they refuse."""

import pytest
import torch

from bpgo.config import RewardConfig
from bpgo.prompts import Prompt, with_columns
from bpgo.rewards import RewardError, load_reward, load_rewards
from bpgo.rewards.prompt_checks import prompt_check
from bpgo.rewards.video_align import SPECIAL
from bpgo.rewards.worker import Worker
from tests.rewards.qwen import qwen_tokenizer
from tests.rewards.qwen_folders import (
    ending_tokenizer,
    peft_model,
    write_qwen3,
    write_video_align,
)

GOOD = ["a red circle", "a small crimson box at the top"]
ZZZ = [Prompt("a zzz box", where="p.txt, line 2"), Prompt("a qqq box", where="p.txt, line 9")]
OF_WORDS = {  # the tiny checkpoints
    "clip": "tiny-reward",
    "pickscore": "tiny-reward",
    "image_reward": "tiny-held-out",
    "image_grid": "tiny-video-held-out",
    "video_clip_xl": "tiny-video-reward",
}


def check_lists(check, good, bad):
    """`check` accepts the good prompts, and names every bad one by its place."""
    assert check(good) is None
    with pytest.raises(ValueError) as caught:
        check([*good, *bad])
    for prompt in bad:
        assert f"\n  {prompt.where}, '{prompt}': " in str(caught.value)


@pytest.mark.parametrize(("name", "path"), OF_WORDS.items())
def test_rewards_of_words_refuse_others(name, path):
    reward = load_reward(name, path, scale=2.0)
    check_lists(prompt_check(reward), GOOD[:1], ZZZ)
    shape = (1, 9, 3, 32, 32) if "video" in path else (1, 3, 32, 32)
    with pytest.raises(RewardError, match="a zzz box"):  # scoring refuses what the check refuses
        reward(torch.zeros(shape), ZZZ[:1])


@pytest.mark.parametrize("name", ["clip", "pickscore", "hpsv2", "image_reward"])
def test_rewards_that_can_spell_refuse_nothing(published, name):
    check = prompt_check(load_reward(name, published[name][0]))
    check([*GOOD, "a zzz box", "\U0001f600", "\u7ea2\u5706"])


def test_rewards_of_qwen_refuse_their_special_tokens(tmp_path):
    write_qwen3(tmp_path / "qwen", ending_tokenizer())
    check = prompt_check(load_reward("qwen3_vl_embedding", tmp_path / "qwen"))
    tokens = ["<|video_pad|>", *SPECIAL]
    bad = [Prompt(f"a {t} b", where=f"p.txt, line {i}") for i, t in enumerate(tokens)]
    with pytest.raises(ValueError, match=r"remove them: p\.txt, line 0"):
        check([*GOOD, *bad])
    tokenizer = qwen_tokenizer(*SPECIAL)
    write_video_align(tmp_path / "align", tokenizer, peft_model(tokenizer, 1))
    check_lists(prompt_check(load_reward("video_align_mq", tmp_path / "align")), GOOD, bad)


def test_a_check_is_found_through_all_that_is_around_a_reward():
    config = RewardConfig(name="image_reward", path="tiny-held-out", retries=2)
    (reward,) = load_rewards([config]).values()
    check_lists(prompt_check(reward), GOOD, ZZZ)


def test_a_reward_of_one_s_own_may_have_a_check():
    class Short:
        def __call__(self, pixels, prompts, answer=None):
            return torch.zeros(len(prompts))

        def check_prompts(self, prompts):
            if max(map(len, prompts)) > 20:
                raise ValueError("too long")

    check = prompt_check(with_columns(Short(), "reward"))
    check(GOOD[:1])
    with pytest.raises(ValueError, match="too long"):
        check(GOOD)
    prompt_check(lambda pixels, prompts: torch.zeros(len(prompts)))(GOOD)


def test_a_reward_in_another_process_checks_prompts_there(quick_processes):
    worker = Worker("image_reward", path_or_hub_id="tiny-held-out")
    try:
        check_lists(prompt_check(worker), GOOD, ZZZ)
        assert worker(torch.zeros(1, 3, 32, 32), GOOD[:1]).shape == (1,)  # it still scores
    finally:
        worker.close()
