"""The page on using bpgo in another trainer: its example and every code block on it are run."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bpgo import (
    RunningMean,
    bpgo,
    crt_rewards,
    group_advantages,
    k_from_kappa,
    ras_weights,
)
from bpgo.diagnostics import rank_inversions

pytestmark = pytest.mark.usefixtures("one_thread")

SITE = Path(__file__).resolve().parent.parent / "reproduce" / "site"
PAGE = (SITE / "trainers.md").read_text()
EQUATIONS = {"alpha": 0.5, "lam": 1.0, "beta": 0.5}


def blocks():
    """The Python blocks of the page, including those in lists."""
    found = re.findall(r"^( *)```python\n(.*?)^ *```$", PAGE, re.M | re.S)
    return [re.sub(f"^{indent}", "", block, flags=re.M) for indent, block in found]


def block(containing):
    """The only Python block of the page that contains this text."""
    (found,) = (b for b in blocks() if containing in b)
    return found


def batch(seed=0, n=6, g=5, dtype=torch.float64):
    """Rewards (N, G), and the same flat and shuffled: rewards (B,), ids (B,) and their order."""
    generator = torch.Generator().manual_seed(seed)
    r = torch.rand(n, g, generator=generator, dtype=dtype)
    order = torch.randperm(n * g, generator=generator)
    return r, r.flatten()[order], torch.arange(n).repeat_interleave(g)[order], order


# ------------------------------------------------------------------------------- the example

SOURCE = (SITE / "examples" / "foreign_trainer.py").read_text()
FOREIGN = SOURCE.splitlines()
FIVE = [line for line in FOREIGN if re.search(r"# BPGO \d", line)]
THEIRS = next(line for line in FOREIGN if line.strip().startswith("adv = (r - "))
NAMES = {"bpgo": bpgo, "k_from_kappa": k_from_kappa}


def advantages_by(lines, r, **given):
    """The value of `adv` after these lines of the example, for rewards r."""
    names = NAMES | {"r": r, "prompts": None, "prior": RunningMean()} | given
    exec("\n".join(line.strip() for line in lines), names)
    return names["adv"]


@pytest.fixture
def foreign():
    """The example as a namespace."""
    names = {"__name__": "foreign"}
    exec(SOURCE, names)
    return SimpleNamespace(**names)


def test_the_foreign_trainer_takes_five_lines():
    assert len(FIVE) == 5
    assert [re.search(r"# BPGO (\d)", line)[1] for line in FIVE] == list("12345")
    rest = [line for line in FOREIGN[FOREIGN.index("") :] if line not in FIVE]
    assert not any("bpgo" in line for line in rest)


def test_the_page_marks_the_five_lines():
    pattern = r":lines: (\d+)-\n.*?:emphasize-lines: ([\d,]+)\n"
    first, marked = re.search(pattern, PAGE, re.S).groups()
    assert [FOREIGN[int(first) + int(n) - 2] for n in marked.split(",")] == FIVE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_alpha_and_beta_zero_the_five_lines_give_the_foreigners_own_z_score(dtype):
    r = batch(dtype=dtype)[0]
    given = advantages_by(FIVE[2:4], r, alpha=0.0, beta=0.0)
    assert torch.allclose(given, advantages_by([THEIRS], r), rtol=0, atol=1e-6)


def test_the_z_score_of_numpys_deviation_is_larger_by_the_factor_that_the_page_gives():
    r = batch()[0]
    population = (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True, correction=0)
    assert torch.allclose(group_advantages(r), population * math.sqrt(4 / 5), atol=1e-6)


def test_the_five_lines_give_the_objective_of_the_grouped_rewards():
    r = batch()[0]
    given = advantages_by(FIVE[2:4], r, alpha=0.5, beta=0.5)
    made = bpgo(r, r.mean().item(), k=1 / r.std().item(), **EQUATIONS)
    assert torch.allclose(given, made.main + made.auxiliary, atol=1e-12)
    assert not torch.allclose(given, advantages_by([THEIRS], r), atol=0.1)


def test_the_foreign_trainer_learns_and_without_the_five_lines_it_is_grpo(foreign, capsys):
    without = {"__name__": "foreign"}
    exec("\n".join(line for line in FOREIGN if line not in FIVE), without)
    foreign.main()
    assert "before" in capsys.readouterr().out
    before, after = foreign.train(iterations=30)
    assert after > before + 0.1
    theirs = without["train"](iterations=10)
    assert foreign.train(iterations=10, alpha=0.0, beta=0.0) == pytest.approx(theirs, abs=1e-4)
    assert foreign.train(iterations=10) != pytest.approx(theirs, abs=1e-4)


# ------------------------------------------------------------------------ the blocks of the page


@pytest.fixture
def page():
    """The names that the blocks define, and `run` to run the block that contains a text."""
    names = NAMES | {"torch": torch, "np": np, "ras_weights": ras_weights, "prior": RunningMean()}
    exec(block("def flat_advantages"), names)
    exec(block("def uneven_advantages"), names)

    def run(containing, **given):
        exec(block(containing), names | given, names)

    return SimpleNamespace(names=names, run=run)


@pytest.mark.parametrize("form", ["flat_advantages", "uneven_advantages"])
def test_flat_rewards_give_the_advantages_of_their_groups_in_any_order(page, form):
    r, flat, ids, order = batch()
    expected = bpgo(r, r.mean().item(), k=k_from_kappa(1.0, r), **EQUATIONS).effective.flatten()
    given = page.names[form](flat, 3 + 7 * ids, RunningMean())  # ids need not be consecutive
    assert torch.allclose(given, expected[order], atol=1e-12)
    again = torch.randperm(len(flat), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(
        page.names[form](flat[again], ids[again], RunningMean()), given[again], atol=1e-12
    )


def test_uneven_groups_are_each_weighed_against_the_whole_batch(page):
    _, flat, ids, _ = batch()
    flat, ids, prior = flat[:-4], ids[:-4], RunningMean()
    assert len(ids.bincount().unique()) > 1
    given = page.names["uneven_advantages"](flat, ids, prior)
    for i in ids.unique():
        made = bpgo(flat[ids == i][None], flat.mean().item(), k=1 / flat.std().item(), **EQUATIONS)
        assert torch.allclose(given[ids == i], made.effective[0], atol=1e-12)
    assert prior.state() == {"mean": flat.mean().item()}
    with pytest.raises(ValueError, match="at least 2 samples"):
        page.names["uneven_advantages"](flat, torch.arange(len(flat)), prior)


def test_gathered_rewards_give_every_process_its_share_of_the_same_advantages(page):
    _, flat, ids, _ = batch()
    whole, parts = page.names["flat_advantages"](flat, ids, RunningMean()), []
    for rank in range(2):
        given = {
            "gather": lambda x: x,
            "rewards": flat,
            "prompt_ids": ids,
            "prior": RunningMean(),
            "world_size": 2,
            "rank": rank,
        }
        page.run("gather(rewards)", **given)
        parts.append(page.names["adv"])
    assert torch.equal(torch.cat(parts), whole)


def test_two_losses_and_the_sum_have_one_gradient_at_ratio_one(page):
    r = batch()[0]
    log_ratio = torch.zeros_like(r, requires_grad=True)
    page.run("loss = surrogate", r=r, prompts=None, ratio=log_ratio.exp())
    (both,) = torch.autograd.grad(page.names["loss"], log_ratio)
    total = page.names["surrogate"](log_ratio.exp(), page.names["made"].effective)
    assert torch.allclose(both, torch.autograd.grad(total, log_ratio)[0], atol=1e-12)


class Tracker:
    """Advantages as Flow-GRPO's tracker computes them by default.

    Each prompt has its own mean, and all have the population standard deviation of the batch.
    """

    def update(self, prompts, rewards):
        found = np.empty_like(rewards)
        for prompt in set(prompts):
            rows = np.array(prompts) == prompt
            centred = rewards[rows] - rewards[rows].mean(0, keepdims=True)
            found[rows] = centred / (rewards.std(0, keepdims=True) + 1e-4)
        return found


def test_the_lines_for_flow_grpo(page):
    r, flat, ids, order = batch()
    prompts = [f"prompt {i}" for i in ids.tolist()]
    given = {"prompts": prompts, "gathered_rewards": {"avg": flat[:, None].repeat(1, 3).numpy()}}
    page.run("return_inverse", **given)
    made = bpgo(r, r.mean().item(), k=k_from_kappa(1.0, r), **EQUATIONS)
    assert page.names["advantages"].shape == (30, 3)
    assert np.allclose(page.names["advantages"], made.effective.flatten()[order][:, None])
    tracker, fresh = Tracker(), {name: page.names[name] for name in ("ids", "rewards")}
    fresh["prior"] = RunningMean()
    page.run("stat_tracker.update", stat_tracker=tracker, **given, **fresh)
    theirs = tracker.update(prompts, given["gathered_rewards"]["avg"])
    assert np.allclose(page.names["advantages"], theirs * made.weights[ids][:, None].numpy())


def test_the_lines_for_dance_grpo(page):
    r = batch()[0]
    expected = bpgo(r, r.mean().item(), k=k_from_kappa(1.0, r), **EQUATIONS).effective
    for rank in range(3):  # of two prompts each
        samples = {"rewards": r[2 * rank : 2 * rank + 2].flatten()}
        given = {
            "gathered_reward": r.flatten(),
            "samples": samples,
            "args": SimpleNamespace(num_generations=5),
            "prior": RunningMean(),
        }
        page.run("gathered_reward.view", **given)
        assert torch.allclose(
            samples["advantages"], expected[2 * rank : 2 * rank + 2].flatten(), atol=1e-12
        )


def test_what_the_page_says_of_crt():
    r = 4 * batch()[0]
    for prior in (0.5, 2.5):
        made, lower, far = (
            group_advantages(crt_rewards(r - shift, prior - shift)) for shift in (0, 5, 30)
        )
        assert torch.allclose(lower, made, rtol=1e-4), "only the distance from the prior counts"
        assert far.abs().max() < 0.01, "until exp(R) is less than epsilon"
    assert rank_inversions(r, crt_rewards(r, 0.9)).max() == 0
    assert rank_inversions(r, crt_rewards(r, 2.5)).max() > 0


def test_every_block_of_the_page_is_tested():
    assert len(blocks()) == 7
