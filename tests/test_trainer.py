"""The loop: on-policy in the first step, and each stage in its order and with its result."""

import itertools

import pytest
import torch
from safetensors.torch import load_file

from bpgo import checkpoint
from bpgo.__main__ import main
from bpgo.files import SHIPPED, read_log
from bpgo.generators.flux import FluxPolicy
from bpgo.objective import bpgo
from bpgo.priors import Constant
from bpgo.registry import name_of
from tests.small_trainers import PROMPTS, all_equal, redness, rollout_of, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def bfloat16_attention_runs():
    """Whether torch has it: not if ATEN_CPU_CAPABILITY hides instructions that it looks for."""
    x = torch.zeros(1, 2, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    try:
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
    except RuntimeError:
        return False
    return True


needs_bfloat16_attention = pytest.mark.skipif(
    not bfloat16_attention_runs(), reason="torch has no bfloat16 attention on this processor"
)


# --------------------------------------------------------------------------- on-policy at first


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="whole"),
        pytest.param({"sampling": {"micro_batch": 5}}, id="micro-batch 5"),
        pytest.param({"sampling": {"micro_batch": 24}}, id="micro-batch 24"),
        pytest.param(
            {"sampling": {"micro_batch": 1, "schedule": "dance-grpo"}, "group_size": 2},
            id="micro-batch 1, dance-grpo",
        ),
        pytest.param({"sampling": {"schedule": "cps", "window": 2}}, id="cps, window"),
        pytest.param({"generator": {"gradient_checkpointing": True}}, id="gradient checkpointing"),
        pytest.param({"generator": {"lora_rank": 2}}, id="lora"),
        pytest.param(
            {"generator": {"lora_rank": 2, "dtype": "bfloat16"}},
            id="lora, bfloat16 weights",
            marks=needs_bfloat16_attention,
        ),
        pytest.param(
            {"optimiser": {"updates": 2}, "sampling": {"micro_batch": 5}}, id="two updates"
        ),
    ],
)
def test_the_first_importance_ratio_is_exactly_one(make, changes):  # invariant 1
    trainer = make(**{"group_size": 6} | changes)
    start = weights(trainer)
    for _ in range(2):
        assert trainer.step()["first_log_ratio"] == 0.0
    assert not all_equal(start, weights(trainer))


def test_the_first_importance_ratio_is_exactly_one_under_autocast(make):
    before = make(group_size=3)
    trainer = make(precision="bf16")  # accelerate itself has one precision per process
    assert before.step()["first_log_ratio"] == 0.0
    assert [trainer.step()["first_log_ratio"] for _ in range(2)] == [0.0, 0.0]
    full = FluxPolicy.load(trainer.config.generator.path, height=32, width=32)
    trained = trainer.policy.pipeline.transformer.state_dict()
    full.pipeline.transformer.load_state_dict(trained)
    x, cond = torch.randn(1, 4, 8, 8), full.encode(PROMPTS[:1])
    with torch.no_grad():
        difference = trainer.policy.velocity(x, 0.5, cond) - full.velocity(x, 0.5, cond)
    assert difference.abs().max() > 1e-4  # it did run in half precision


def test_a_ratio_that_is_not_one_is_noticed(make):
    """The control of the tests above: weights change between rollout and update."""
    trainer = make()
    update = trainer.update

    def move_then_update(*given):
        with torch.no_grad():
            for p in trainer.parameters.values():
                p.mul_(1.01)
        return update(*given)

    trainer.update = move_then_update
    assert trainer.step()["first_log_ratio"] > 1e-5


# --------------------------------------------------------------------------- stages of a step


def test_each_micro_batch_is_decoded_and_scored_before_the_next_is_sampled(make):
    """So that a reward in another process works while the next samples are drawn."""
    trainer, events = make(sampling={"micro_batch": 3}), []
    policy, velocity, decode = trainer.policy, trainer.policy.velocity, trainer.policy.decode

    def scored(pixels, prompts):
        events.append(("score", list(prompts)))
        return redness(pixels, prompts)

    def sampled(*given):
        if not torch.is_grad_enabled():
            events.append("sample")
        return velocity(*given)

    def decoded(latents):
        events.append("decode")
        return decode(latents)

    policy.velocity, policy.decode = sampled, decoded
    trainer.rewards = {"scored": scored}
    batch = trainer.draw_batch()
    trainer.step()
    groups = [[prompt] * 3 for prompt in batch.prompts]
    parts = [[*["sample"] * 4, "decode", ("score", prompts)] for prompts in groups]
    assert events == [*parts[0], *parts[1]]


def test_objects_take_the_place_of_what_the_config_names(make, trees, tmp_path):
    from bpgo.config import build_config
    from bpgo.trainer import Trainer

    seen = []

    def objective(rewards, prior, *, alpha=0.5):
        seen.append((prior, alpha))
        return bpgo(rewards, prior, alpha=alpha)

    config = build_config(trees["t2i"] | {"objective": {"alpha": 0.25}})
    given = {"reward": redness, "prompts": PROMPTS, "progress": False}
    trainer = Trainer(config, tmp_path / "run", objective=objective, prior=Constant(0.5), **given)
    seen.clear()  # it has been tried
    trainer.step()
    assert seen == [(0.5, 0.25)]
    recorded = trainer.config
    assert recorded.objective.name == name_of(objective)
    assert recorded.prior.name == "bpgo.priors:Constant"
    assert recorded.reward[0].name == "tests.small_trainers:redness"


def test_without_ras_and_crt_bpgo_is_grpo_bit_for_bit(make):  # invariant 5
    # The learning rate is high enough that a second epoch is off-policy and clipped.
    options = {"optimiser": {"epochs": 2, "learning_rate": 1e-2}, "iterations": 2}
    both = []
    for objective in ({"name": "grpo"}, {"name": "bpgo", "alpha": 0.0, "beta": 0.0}):
        trainer = make(objective=objective, **options)
        trainer.train()
        both.append(trainer)
    grpo, bpgo = both
    assert all_equal(weights(grpo), weights(bpgo))
    evaluations = [(trainer.output / "evaluations.jsonl").read_bytes() for trainer in both]
    assert evaluations[0] == evaluations[1]
    same = (
        "reward",
        "reward_std",
        "loss",
        "clip_up",
        "clip_down",
        "approx_kl",
        "grad_norm",
        "weight_min",
        "weight_max",
    )
    logs = [read_log(trainer.output / "metrics.jsonl") for trainer in both]
    for row, other in zip(*logs, strict=True):
        assert [row[name] for name in same] == [other[name] for name in same]
    assert logs[0][0]["approx_kl"] > 0
    assert max(row["clip_up"] + row["clip_down"] for row in logs[0]) > 0


def test_the_objectives_differ(make):
    moved = {}
    for name in ("grpo", "ras", "crt", "bpgo", "teleboost"):
        prior = {"name": "constant", "value": 0.3}
        trainer = make(objective={"name": name, "kappa": 3.0}, prior=prior)
        trainer.step()
        moved[name] = torch.cat([p.flatten() for p in weights(trainer).values()])
    for a, b in itertools.combinations(moved, 2):
        assert not torch.equal(moved[a], moved[b]), (a, b)


def test_a_seed_determines_the_run(make):
    first, again, other = (make(seed=seed).step() for seed in (0, 0, 1))
    assert first == again
    assert first["reward"] != other["reward"]


def test_a_window_carries_all_the_noise_and_is_what_is_trained(make):
    trainer = make(sampling={"window": 2, "steps": 6})
    for _ in range(3):
        rollout = rollout_of(trainer)
        steps, (part,) = rollout.batch.steps, rollout.parts
        assert len(steps.trained) == len(part.x) == 2
        assert steps.trained[1] == steps.trained[0] + 1
        assert [i for i, noise in enumerate(steps.noise_std) if noise] == list(steps.trained)
        trainer.iteration += 1


@pytest.mark.parametrize("shared", [True, False])
def test_a_group_may_start_from_one_noise(make, shared):
    rollout = rollout_of(make(sampling={"shared_noise": shared, "trained_share": 1.0}))
    (part,) = rollout.parts
    assert rollout.batch.steps.trained[0] == 0
    first, second = part.x[0].view(2, 3, -1)
    assert torch.equal(first[0], first[1]) is shared
    assert torch.equal(first[0], first[2]) is shared
    assert not torch.equal(first[0], second[0])
    ends = part.latents.view(2, 3, -1)
    assert not torch.equal(ends[0, 0], ends[0, 1])


def test_several_rewards_are_added_and_logged_apart(make):
    trainer = make()
    trainer.rewards = {"a": redness, "b": lambda pixels, prompts: 2 * redness(pixels, prompts)}
    metrics = trainer.step()
    assert metrics["reward/b"] == pytest.approx(2 * metrics["reward/a"], rel=1e-5)
    assert metrics["reward"] == pytest.approx(3 * metrics["reward/a"], rel=1e-5)
    assert not [name for name in make().step() if name.startswith("reward/")]


# --------------------------------------------------------------------------------- the prior


def test_the_running_mean_is_the_mean_of_the_past(make):
    trainer = make(prior={"name": "running_mean", "momentum": 0.75})
    log = [trainer.step() for _ in range(3)]
    rewards = [row["reward"] for row in log]
    second = rewards[0]
    third = 0.75 * second + 0.25 * rewards[1]
    assert [row["prior"] for row in log] == pytest.approx([rewards[0], second, third], rel=1e-6)


def test_a_constant_prior_is_that_constant(make):
    trainer = make(prior={"name": "constant", "value": 0.625})
    assert [trainer.step()["prior"] for _ in range(2)] == [0.625, 0.625]


def test_empirical_bayes_determines_the_sharpness(make):
    def by_length(pixels, prompts):  # so that groups differ
        return redness(pixels, prompts) + torch.tensor([float(len(p)) for p in prompts])

    trainer = make(reward=by_length, prior={"name": "empirical_bayes"})
    first = trainer.step()
    implied = trainer.prior.sharpness(torch.zeros(2, 3))  # from the moments of the first rewards
    second = trainer.step()
    assert first["prior"] == pytest.approx(first["reward"], rel=1e-6)
    assert second["prior"] == pytest.approx(first["reward"], rel=1e-6)
    assert first["k"] == second["k"] == implied > 0


# ------------------------------------------------------------------------------------ not finite


def test_a_policy_that_makes_nan_is_named_and_not_its_reward(make):
    """The message says what is wrong, since when, and how to go back."""
    trainer = make(checkpoint_every=1, iterations=3)
    learning_rate = trainer.config.optimiser.learning_rate

    def diverge():
        for p in trainer.parameters.values():
            p.data.fill_(torch.nan)

    save = trainer.save_checkpoint

    def save_then_diverge():
        save()
        if trainer.iteration == 1:
            diverge()

    trainer.save_checkpoint = save_then_diverge
    with pytest.raises(FloatingPointError) as raised:
        trainer.train()
    message = str(raised.value)
    assert message.startswith("iteration 2: the policy produced 6 of 6 samples that are not finite")
    assert f"The last checkpoint is {trainer.output / 'checkpoint-000001'}" in message
    assert f"--at 1 --output NEW optimiser.learning_rate={learning_rate / 2:g}" in message
    assert "reward" not in message
    tensors, _ = checkpoint.load_state(trainer.output / "checkpoint-000001")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_weights_that_are_not_finite_are_never_saved(make):
    trainer = make(iterations=2)
    trainer.step()
    next(iter(trainer.parameters.values())).data.flatten()[0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"weights/transformer\..* are not finite"):
        trainer.save_checkpoint()
    assert checkpoint.checkpoints(trainer.output) == []


def test_an_autoencoder_that_overflows_is_named(make, monkeypatch):
    trainer = make()
    decode = trainer.policy.decode
    monkeypatch.setattr(trainer.policy, "decode", lambda latents: decode(latents) * torch.nan)
    with pytest.raises(FloatingPointError, match=r"the autoencoder decoded .* float16.*bfloat16"):
        trainer.step()


# ------------------------------------------------------------------------------ precision, memory


@needs_bfloat16_attention
def test_adapters_are_trained_in_float32_over_bfloat16_weights(make):
    trainer = make(
        generator={"lora_rank": 2, "dtype": "bfloat16"}, optimiser={"ema_decay": 0.5}, iterations=1
    )
    trainer.train()
    frozen = [p for p in trainer.policy.modules["transformer"].parameters() if not p.requires_grad]
    moments = [value for state in trainer.optimiser.state.values() for value in state.values()]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    for tensors in (trainer.parameters.values(), trainer.average.values(), moments):
        assert {t.dtype for t in tensors} == {torch.float32}
    tensors, _ = checkpoint.load_state(trainer.output / "checkpoint-000001")
    exported = load_file(trainer.output / "final" / "pytorch_lora_weights.safetensors")
    assert {t.dtype for name, t in (tensors | exported).items() if name != "rng"} == {torch.float32}


def test_a_complete_run_says_so(make, capsys):
    trainer = make(iterations=1)
    trainer.train()
    capsys.readouterr()
    trainer.progress = True
    trainer.train()
    assert (
        "is complete: it has all 1 iterations, and its model is in final/"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_compiled_transformers_take_the_same_step(make):
    eager, compiled = (
        make(generator={"compile": flag}, optimiser={"learning_rate": 1e-4})
        for flag in (False, True)
    )
    expected, found = eager.step(), compiled.step()
    assert found["first_log_ratio"] == pytest.approx(0, abs=1e-5)
    for name in ("reward", "grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3)
    reference = weights(eager)
    for name, p in weights(compiled).items():
        assert p.isfinite().all()
        # Where a gradient is nearly zero, the step may have the other sign.
        assert (p - reference[name]).abs().max() <= 2.1e-4


# --------------------------------------------------------------------------- the shipped preset


def test_the_shipped_preset_trains(tmp_path):
    """One iteration of the preset in the README, on fewer prompts, with all of its metrics."""
    lines = (SHIPPED / "prompts" / "evaluation.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[:8]))
    small = [
        f"evaluation.prompts={tmp_path}/prompts.jsonl",
        "iterations=1",
        "group_size=2",
        "sampling.steps=4",
        "evaluation.samples=1",
        "evaluation.steps=2",
    ]
    code = main(["train", "t2i-tiny", "--output", str(tmp_path / "run"), *small])
    assert code == 0
    first, last = read_log(tmp_path / "run" / "evaluations.jsonl")
    assert {"reward", "held_out", "accuracy", "distance"} <= first.keys()
    assert (first["iteration"], last["iteration"]) == (0, 1)
    assert len(first["scores"]["accuracy"]) == 8
