"""Training on videos, with one transformer and with two experts that are trained separately."""

import pytest
import torch
from accelerate.state import AcceleratorState

from bpgo import checkpoint
from bpgo.__main__ import main
from bpgo.files import SHIPPED, read_log
from tests import small_runs as runs
from tests.small_trainers import all_equal, weights

pytestmark = pytest.mark.usefixtures("one_thread")
both_tasks = pytest.mark.parametrize("task", ["t2v", "i2v"])


def train_steps(trainer, *steps):
    """Let every iteration train these steps, whatever it draws."""
    draw = type(trainer).draw_batch

    def draw_batch():
        batch = draw(trainer)
        return batch._replace(steps=batch.steps._replace(trained=steps))

    trainer.draw_batch = draw_batch


def of(expert, tensors):
    """The tensors of one expert."""
    return {name: value for name, value in tensors.items() if name.startswith(f"{expert}.")}


def adam(trainer):
    """A copy of the optimiser's state, by the names of the parameters that have any."""
    return {
        f"{name}/{key}": value.clone()
        for name, p in trainer.parameters.items()
        for key, value in trainer.optimiser.state[p].items()
    }


# -------------------------------------------------------------------------- on-policy at first


@both_tasks
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="guidance 3"),
        pytest.param({"generator": {"guidance": 1.0}}, id="no guidance"),
        pytest.param({"sampling": {"micro_batch": 4}}, id="micro-batch 4"),
        pytest.param(
            {
                "sampling": {"micro_batch": 1, "schedule": "dance-grpo"},
                "generator": {"guidance": 1.0},
            },
            id="micro-batch 1",
        ),
        pytest.param(
            {
                "sampling": {"schedule": "cps", "window": 2},
                "generator": {"cfg_gradient": "conditional"},
            },
            id="cps, window",
        ),
        pytest.param({"generator": {"gradient_checkpointing": True}}, id="gradient checkpointing"),
        pytest.param(
            {"generator": {"lora_rank": 2, "dtype": "bfloat16"}}, id="lora, bfloat16 weights"
        ),
        pytest.param(
            {"optimiser": {"updates": 2}, "sampling": {"micro_batch": 2}}, id="two updates"
        ),
    ],
)
def test_the_first_importance_ratio_is_exactly_one(make, task, changes):  # invariant 1
    trainer = make(task, **changes)
    start = weights(trainer)
    for _ in range(2):
        assert trainer.step()["first_log_ratio"] == 0.0
    assert not all_equal(start, weights(trainer))


def test_the_first_importance_ratio_is_exactly_one_under_autocast(make):
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision per process
    try:
        trainer = make("i2v", precision="bf16", generator={"guidance_2": 2.0})
        train_steps(trainer, 0, 2)
        seen = [trainer.step()["first_log_ratio"] for _ in range(2)]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == [0.0, 0.0]


# -------------------------------------------------------------------------------- the two experts


def test_the_optimiser_has_a_group_for_each_expert(make):
    for task, experts in (("t2v", 1), ("i2v", 2)):
        trainer = make(task)
        groups = [{id(p) for p in group["params"]} for group in trainer.optimiser.param_groups]
        modules = trainer.policy.modules.values()
        assert groups == [{id(p) for p in module.parameters()} for module in modules]
        assert len(groups) == experts


@pytest.mark.parametrize(
    ("steps", "trained", "other"),
    [((0, 1), "transformer", "transformer_2"), ((2,), "transformer_2", "transformer")],
)
def test_steps_of_one_expert_leave_the_other_unchanged(make, steps, trained, other):
    trainer = make("i2v", optimiser={"ema_decay": 0.5, "weight_decay": 0.1})
    start = weights(trainer)
    train_steps(trainer, *steps)
    for _ in range(2):
        trainer.step()
    for found in (weights(trainer), trainer.average):
        assert all_equal(of(other, start), of(other, found))
        assert not all_equal(of(trained, start), of(trained, found))
    assert {name.split(".")[0] for name in adam(trainer)} == {trained}

    train_steps(trainer, 1, 2)  # both, so that now the other has a state of the optimiser too
    trainer.step()
    before, moments = weights(trainer), adam(trainer)
    train_steps(trainer, *steps)
    trainer.step()
    assert all_equal(of(other, before), of(other, weights(trainer)))
    assert all_equal(of(other, moments), of(other, adam(trainer)))
    assert not all_equal(of(trained, moments), of(trained, adam(trainer)))


def test_a_window_of_one_step_trains_one_expert_in_each_iteration(make):
    trainer, experts = make("i2v", sampling={"window": 1}), set()
    for _ in range(4):
        start = weights(trainer)
        (step,) = trainer.draw_batch().steps.trained
        trainer.step()
        trained = weights(trainer)
        moved = {
            name.split(".")[0] for name in start if not torch.equal(trained[name], start[name])
        }
        assert moved == {"transformer" if step < 2 else "transformer_2"}
        experts |= moved
    assert experts == {"transformer", "transformer_2"}


def test_the_clipping_of_one_expert_does_not_depend_on_the_gradient_of_the_other(make):
    """With gradients of the low-noise expert a thousand times larger, the high-noise expert makes
    the same step, bit for bit."""
    found, norm = [], 1e-3
    for factor in (1, 1000):
        trainer = make("i2v", optimiser={"max_grad_norm": norm, "beta1": 0.0})
        train_steps(trainer, 0, 2)
        for p in trainer.policy.modules["transformer_2"].parameters():
            p.register_hook(lambda gradient, factor=factor: factor * gradient)
        metrics = trainer.step()
        assert metrics["grad_norm"] > 2 * norm  # so that there was something to clip
        found.append((weights(trainer), adam(trainer), metrics["grad_norm"]))
    (first, moments, small), (second, others, large) = found
    assert large > 10 * small
    assert all_equal(of("transformer", first), of("transformer", second))
    assert all_equal(of("transformer", moments), of("transformer", others))
    for expert in ("transformer", "transformer_2"):
        # Without momentum, the first moment of Adam is the clipped gradient.
        clipped = [v for name, v in of(expert, moments).items() if name.endswith("/exp_avg")]
        total = torch.stack([v.norm() for v in clipped]).norm().item()
        assert total == pytest.approx(norm, rel=1e-3)


@both_tasks
def test_cfg_gradient_changes_the_gradient_and_nothing_else(make, task):
    kinds = ({"cfg_gradient": "both"}, {"cfg_gradient": "conditional"}, {})
    both, conditional, default = (make(task, generator=kind).step() for kind in kinds)
    assert both == default
    assert {name for name in both if both[name] != conditional[name]} == {"grad_norm"}


@pytest.mark.usefixtures("shared_cache")
def test_two_processes_make_the_step_of_one(resume_presets, tmp_path):
    """Each has one of the two groups.

    The gradients of both experts are exchanged, also of the one that the last step does not train.
    """
    overrides = [
        "iterations=1",
        "reward.name=video_clip_xl",
        "optimiser.max_grad_norm=1.0e+9",
        "sampling.window=3",
        "sampling.micro_batch=3",
    ]
    moments = []
    for count in (1, 2):
        folder = tmp_path / f"of {count}"
        command = ["train", resume_presets["i2v"], "--output", folder, *overrides]
        for code, output in runs.run_together(count, command, tmp_path / "log"):
            assert code == 0, output
        tensors, _ = checkpoint.load_state(folder / "checkpoint-000001")
        moments.append({n: v for n, v in tensors.items() if n.startswith("optimiser/exp_avg/")})
    one, two = moments
    assert {name.split("/")[2].split(".")[0] for name in one} == {"transformer", "transformer_2"}
    scale = max(v.abs().max() for v in one.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4 * scale, rtol=1e-3, msg=name)


# ------------------------------------------------------------------------------ shipped presets


@both_tasks
def test_the_shipped_presets_train(task, tmp_path, monkeypatch):
    """One iteration of the presets in the README, on fewer prompts, with all of their metrics."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    kind = "clip" if task == "t2v" else "image-clip"
    lines = (SHIPPED / "prompts" / f"{kind}-evaluation.jsonl").read_text().splitlines()[:8]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    small = [
        f"prompts={tmp_path}/prompts.jsonl",
        f"evaluation.prompts={tmp_path}/prompts.jsonl",
        "evaluation.samples=2",
        "evaluation.steps=2",
        "prior.samples=1",
        "iterations=1",
        "group_size=2",
        "sampling.steps=4",
        "sampling.window_range=[0, 3]",
    ]
    assert main(["train", f"{task}-tiny", "--output", str(tmp_path / "run"), *small]) == 0
    first, last = read_log(tmp_path / "run" / "evaluations.jsonl")
    metrics = {"reward", "held_out", "accuracy", "motion", "visual", "overall", "flicker"}
    assert metrics | {"first_frame", "diversity"} <= first.keys()
    assert (first["iteration"], last["iteration"]) == (0, 1)
    assert (first["first_frame"] is None) is (task == "t2v")
    (row,) = read_log(tmp_path / "run" / "metrics.jsonl")
    assert row["first_log_ratio"] == 0.0
    # Of the two presets, the one for text-to-video trains adapters.
    saved = "pytorch_lora_weights.safetensors" if task == "t2v" else "model_index.json"
    assert (tmp_path / "run" / "final" / saved).exists()
