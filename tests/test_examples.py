"""The pages on using bpgo elsewhere and on extending it: every example runs and does what it says, and so does every block on the pages."""

import importlib.util
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bpgo import objective, rewards
from bpgo.checkpoint import checkpoints, load_state
from bpgo.config import ConfigError, read_config
from bpgo.files import SHIPPED, read_log
from bpgo.objective import (
    bpgo,
    crt_rewards,
    group_advantages,
    k_from_kappa,
    rank_inversions,
    ras_weights,
)
from bpgo.priors import RunningMean
from bpgo.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

SITE = Path(__file__).resolve().parent.parent / "reproduce" / "site"
EXAMPLES = sorted((SITE / "examples").glob("*.py"))
EQUATIONS = {"alpha": 0.5, "lam": 1.0, "beta": 0.5}


@pytest.fixture
def example(monkeypatch):
    """An example as a module. What it enters into the package's tables is taken out again."""
    monkeypatch.setattr(objective, "OBJECTIVES", dict(objective.OBJECTIVES))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, SITE / "examples" / f"{name}.py")
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return module

    return load


def blocks(page):
    """The Python blocks of a page, those in lists too."""
    found = re.findall(
        r"^( *)```python\n(.*?)^ *```$", (SITE / f"{page}.md").read_text(), re.M | re.S
    )
    return [re.sub(f"^{indent}", "", block, flags=re.M) for indent, block in found]


def block(page, containing):
    """The one Python block of a page that holds these words."""
    (found,) = (b for b in blocks(page) if containing in b)
    return found


def batch(seed=0, n=6, g=5, dtype=torch.float64):
    """Rewards (N, G), and the same flat and shuffled: rewards (B,), ids (B,), the order that was drawn."""
    generator = torch.Generator().manual_seed(seed)
    r = torch.rand(n, g, generator=generator, dtype=dtype)
    order = torch.randperm(n * g, generator=generator)
    return r, r.flatten()[order], torch.arange(n).repeat_interleave(g)[order], order


# ---------------------------------------------------------------------------------------------------- a foreign trainer

FOREIGN = (SITE / "examples" / "foreign_trainer.py").read_text().splitlines()
FIVE = [line for line in FOREIGN if re.search(r"# BPGO \d", line)]
THEIRS = next(line for line in FOREIGN if line.strip().startswith("adv = (r - "))


def advantages_by(lines, r, **given):
    """What these lines of the example make of rewards r: the value of `adv`."""
    names = {
        "r": r,
        "prompts": None,
        "bpgo": bpgo,
        "k_from_kappa": k_from_kappa,
        "prior": RunningMean(),
        **given,
    }
    exec("\n".join(line.strip() for line in lines), names)
    return names["adv"]


def test_the_foreign_trainer_takes_five_lines():
    assert len(FIVE) == 5
    assert [re.search(r"# BPGO (\d)", line)[1] for line in FIVE] == list("12345")
    rest = [line for line in FOREIGN[FOREIGN.index("") :] if line not in FIVE]
    assert not any("bpgo" in line for line in rest), (
        "without the five, the file knows nothing of bpgo"
    )


def test_the_page_marks_the_five_lines():
    first, marked = re.search(
        r":lines: (\d+)-\n.*?:emphasize-lines: ([\d,]+)\n", (SITE / "trainers.md").read_text(), re.S
    ).groups()
    assert [FOREIGN[int(first) + int(n) - 2] for n in marked.split(",")] == FIVE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_alpha_and_beta_zero_the_five_lines_give_the_foreigners_own_z_score(dtype):
    r = batch(dtype=dtype)[0]
    given = advantages_by([FIVE[3]], r, alpha=0.0, beta=0.0)
    assert torch.allclose(given, advantages_by([THEIRS], r), rtol=0, atol=1e-6)


def test_the_z_score_of_numpys_deviation_is_larger_by_the_factor_that_the_page_gives():
    r = batch()[0]
    population = (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True, correction=0)
    assert torch.allclose(group_advantages(r), population * math.sqrt(4 / 5), atol=1e-6)


def test_the_five_lines_give_the_objective_of_the_grouped_rewards():
    r = batch()[0]
    given = advantages_by([FIVE[3]], r, alpha=0.5, beta=0.5)
    made = bpgo(r, r.mean().item(), k=1 / r.std().item(), **EQUATIONS)
    assert torch.allclose(given, made.main + made.auxiliary, atol=1e-12)
    assert not torch.allclose(given, advantages_by([THEIRS], r), atol=0.1)


def test_the_foreign_trainer_learns_and_without_the_five_lines_it_is_grpo(example, capsys):
    with_them, without = example("foreign_trainer"), {"__name__": "foreign"}
    exec("\n".join(line for line in FOREIGN if line not in FIVE), without)
    with_them.main()
    assert "before" in capsys.readouterr().out
    before, after = with_them.train(iterations=30)
    assert after > before + 0.1
    theirs = without["train"](iterations=10)
    assert with_them.train(iterations=10, alpha=0.0, beta=0.0) == pytest.approx(theirs, abs=1e-4)
    assert with_them.train(iterations=10) != pytest.approx(theirs, abs=1e-4)


# ------------------------------------------------------------------------------------------- the blocks of the first page


@pytest.fixture
def page():
    """A namespace for the blocks of trainers.md, with their functions defined."""
    names = {
        "torch": torch,
        "np": np,
        "bpgo": bpgo,
        "k_from_kappa": k_from_kappa,
        "ras_weights": ras_weights,
        "prior": RunningMean(),
    }
    exec(block("trainers", "def flat_advantages"), names)
    exec(block("trainers", "def uneven_advantages"), names)
    return SimpleNamespace(
        names=names,
        run=lambda containing, **given: exec(block("trainers", containing), names | given, names),
    )


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
    """Advantages as Flow-GRPO's tracker makes them by default: of each prompt's mean and the whole batch's (population) deviation."""

    def update(self, prompts, rewards):
        found = np.empty_like(rewards)
        for prompt in set(prompts):
            rows = np.array(prompts) == prompt
            found[rows] = (rewards[rows] - rewards[rows].mean(0, keepdims=True)) / (
                rewards.std(0, keepdims=True) + 1e-4
            )
        return found


def test_the_lines_for_flow_grpo(page):
    r, flat, ids, order = batch()
    prompts = [f"prompt {i}" for i in ids.tolist()]
    given = {"prompts": prompts, "gathered_rewards": {"avg": flat[:, None].repeat(1, 3).numpy()}}
    page.run("return_inverse", **given)
    made = bpgo(r, r.mean().item(), k=k_from_kappa(1.0, r), **EQUATIONS)
    assert page.names["advantages"].shape == (30, 3)
    assert np.allclose(page.names["advantages"], made.effective.flatten()[order][:, None])
    tracker, fresh = (
        Tracker(),
        {"prior": RunningMean(), "ids": page.names["ids"], "rewards": page.names["rewards"]},
    )
    page.run("stat_tracker.update", stat_tracker=tracker, **given, **fresh)
    expected = (
        tracker.update(prompts, given["gathered_rewards"]["avg"])
        * made.weights[ids][:, None].numpy()
    )
    assert np.allclose(page.names["advantages"], expected)


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
    assert (
        rank_inversions(r, crt_rewards(r, 0.9)).max()
        == 0
        < rank_inversions(r, crt_rewards(r, 2.5)).max()
    )


def test_every_block_of_the_pages_is_tested():
    assert (len(blocks("trainers")), len(blocks("extend"))) == (7, 2)


# --------------------------------------------------------------------------------------------------- extending the package


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_short_and_shown_on_a_page(file):
    assert 20 <= len(file.read_text().splitlines()) <= 60
    assert f"{{literalinclude}} examples/{file.name}" in "".join(
        page.read_text() for page in SITE.glob("*.md")
    )


def moved(output):
    """Whether a run of the shipped FLUX has other weights at its end than at its start."""
    part = Path("transformer", "diffusion_pytorch_model.safetensors")
    before, after = load_file(SHIPPED / "tiny-flux" / part), load_file(output / "final" / part)
    return any(not torch.equal(before[name].float(), after[name]) for name in before)


def test_a_reward_of_ones_own(example, tmp_path, monkeypatch, capsys):
    own, seen = example("own_reward"), []
    pixels = torch.zeros(3, 3, 4, 4)
    pixels[:, :, :, :2] = torch.tensor(own.COLOURS["red"])[:, None, None]
    assert own.colour(pixels, ["a red circle", "a blue circle", "a circle"]).tolist() == [
        0.5,
        0.0,
        0.0,
    ]
    judge = rewards.load_reward("clip", "tiny-reward")
    monkeypatch.setattr(
        own, "load_reward", lambda *given: lambda *rows: seen.append(judge(*rows)) or seen[-1]
    )
    own.main(tmp_path)
    evaluated, trained = (
        torch.cat(seen)[1:17].mean().item(),
        torch.cat(seen)[17:33].mean().item(),
    )  # the first row is a trial
    rows = read_log(tmp_path / "evaluations.jsonl")
    assert rows[0]["colour"] > 0
    assert rows[0]["reward"] == pytest.approx(evaluated + 2 * rows[0]["colour"], abs=1e-6)
    assert read_log(tmp_path / "metrics.jsonl")[0]["reward"] > trained
    assert (
        json.loads((tmp_path / "config.json").read_text())["reward"][0]["name"] == "clip + 2 colour"
    )
    assert "clip + 2 colour" in capsys.readouterr().out
    assert moved(tmp_path)


def test_a_reward_with_weights_of_its_own_by_name(monkeypatch):
    monkeypatch.setattr(rewards, "REWARDS", dict(rewards.REWARDS))
    exec(block("extend", 'REWARDS["symmetry"]'), names := {"torch": torch})
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    values = names["reward"](pixels, ["a circle", "a square"])
    assert values.shape == (2,) and values.std() > 0
    scaled = rewards.load_rewards(
        read_config("t2i-tiny", ["reward=[{name: symmetry, path: tiny-reward, scale: 2}]"]).reward
    )
    assert torch.allclose(scaled["symmetry"](pixels, ["a circle", "a square"]), 2 * values)


def test_a_prior_of_ones_own_is_asked_and_goes_on_where_it_was(example, tmp_path):
    own = example("own_prior")
    own.main(tmp_path / "whole")
    rows, state = (
        read_log(tmp_path / "whole" / "metrics.jsonl"),
        load_state(checkpoints(tmp_path / "whole")[-1])[1],
    )
    means = state["prior"]["means"]
    assert len(means) == 12
    assert [row["prior"] for row in rows] == pytest.approx(
        [np.median(means[: max(4, n)]) for n in (0, 4, 8)]
    )
    assert rows[2]["reward"] == pytest.approx(np.mean(means[8:]))
    own.main(tmp_path / "parts", iterations=2)
    own.main(tmp_path / "parts", iterations=3)
    assert read_log(tmp_path / "parts" / "metrics.jsonl") == rows
    assert moved(tmp_path / "whole")


def test_an_objective_of_ones_own(example, tmp_path):
    own = example("own_objective")
    r = batch(dtype=torch.float32)[0]
    made = own.batch_spread(r, 0.5, alpha=0.5, k=2.0, lam=1.0, beta=0.5)
    assert torch.allclose(
        made.main,
        ras_weights(r, 0.5, 0.5, 2.0)[:, None] * (r - r.mean(1, keepdim=True)) / r.std(),
        atol=1e-6,
    )
    used, plain = [], objective.OBJECTIVES["batch_spread"]
    objective.OBJECTIVES["batch_spread"] = lambda *given, **named: (
        used.append(plain(*given, **named)) or used[-1]
    )
    own.main(tmp_path)
    rows = read_log(tmp_path / "metrics.jsonl")
    assert [row["weight_max"] for row in rows] == [made.weights.max().item() for made in used]
    assert json.loads((tmp_path / "config.json").read_text())["objective"]["name"] == "batch_spread"
    assert moved(tmp_path)
    with pytest.raises(
        ConfigError, match=r"objective\.name = 'batch_spread'"
    ):  # as the page says: not to be gone on with
        own.main(tmp_path)


def test_a_generator_of_ones_own_learns_and_is_saved(example, tmp_path):
    own = example("own_generator")
    own.main(tmp_path)
    rows, logged = read_log(tmp_path / "evaluations.jsonl"), read_log(tmp_path / "metrics.jsonl")
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.02
    assert logged[0]["first_log_ratio"] == 0.0
    torch.manual_seed(0)
    start, end = own.HalfLight().net.state_dict(), load_file(tmp_path / "final" / "net.safetensors")
    assert start.keys() == end.keys() and all(
        not torch.equal(start[name], end[name]) for name in start
    )
    with pytest.raises(ValueError, match="left or right"):
        own.HalfLight().check(["up"])


def test_an_objective_by_way_of_weigh_can_be_gone_on_with(example, tmp_path):
    generator, own = example("own_generator"), example("own_objective")
    exec(block("extend", "def weigh"), names := {"Trainer": Trainer})
    settings = [
        "generator={path: half-light}",
        "reward={name: lit}",
        "groups=2",
        "objective.name=ras",
        "objective.k=3",
        "prior={name: constant, value: 0}",
        "optimiser={learning_rate: 0.01}",
        "evaluation={samples: 1, steps: 2}",
    ]

    def run(folder, iterations):
        torch.manual_seed(0)
        config = read_config(
            "t2i-tiny", [*settings, "objective.kappa=null", f"iterations={iterations}"]
        )
        given = {
            "policy": generator.HalfLight(),
            "reward": generator.lit,
            "prompts": ["left", "right"],
            "progress": False,
        }
        trainer = names["BatchSpreadTrainer"](config, tmp_path / folder, **given)
        trainer.train()
        return trainer

    trainer = run("whole", 2)
    run("parts", 1)
    run("parts", 2)
    assert (tmp_path / "parts" / "metrics.jsonl").read_text() == (
        tmp_path / "whole" / "metrics.jsonl"
    ).read_text()
    r = batch(n=2, dtype=torch.float32)[0]
    made = own.batch_spread(r, 0.0, alpha=0.5, k=3.0, lam=1.0, beta=0.5)
    assert torch.allclose(trainer.weigh(["left", "right"], r)[0].main, made.main, atol=1e-6)
