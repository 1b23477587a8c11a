"""Training on videos: text-to-video by one transformer, and image-to-video by two experts, each trained as if alone."""

import itertools
import json
import os
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from bpgo import checkpoint, rewards
from bpgo.__main__ import main
from bpgo.config import build_config
from bpgo.evaluation import encode, evaluate
from bpgo.files import SHIPPED
from bpgo.generators.wan import WanPolicy
from bpgo.prompts import Prompt
from bpgo.reference import first_frame_rewards
from bpgo.rewards import load_reward
from bpgo.rewards.video_clip_xl import VideoCLIP
from bpgo.rollout import integrate
from bpgo.sde import sigma_grid
from bpgo.trainer import Trainer, read_log
from bpgo.worlds.pretrain import architectures as tiny
from bpgo.worlds.pretrain.prompts import data_uri
from tests import small_runs as runs
from tests.test_trainer import all_equal, assert_same_run, merged, weights
from tests.test_wan import ask_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = dict(height=16, width=16, frames=5)
WORDS = ["a red circle", "a large blue square", "a shape", "a shape"]
TASKS = ("t2v", "i2v")
both_tasks = pytest.mark.parametrize("task", TASKS)


def redness(pixels, prompts):
    """A reward of videos without weights."""
    return 10 * (pixels[:, :, 0] - pixels[:, :, 2]).mean((1, 2, 3))


def picture(seed, side=16):
    """A random picture; every seed another."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompts_of(task):
    """Of the image-to-video prompts, the last two have the same words and different pictures."""
    return (
        [Prompt(text, picture(i)) for i, text in enumerate(WORDS)]
        if task == "i2v"
        else [*WORDS[:3], "a small cross at the top"]
    )


def jsonl(file, prompts):
    """Write prompts with their pictures, as PNG in data URIs."""
    pixels = [torch.from_numpy(np.array(p.image)).permute(2, 0, 1) / 255 for p in prompts]
    file.write_text(
        "".join(
            json.dumps({"prompt": p, "image": data_uri(x)}) + "\n"
            for p, x in zip(prompts, pixels, strict=True)
        )
    )
    return file


@pytest.fixture(scope="session")
def video_reward_folder(tmp_path_factory):
    """A VideoCLIP folder of random weights that sees 4 frames, and its tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "video-reward", tiny.clip_tokenizer()
    folder.mkdir()
    torch.manual_seed(4)
    config = tiny.video_clip_config(tokenizer)
    config["vision"] |= {"image_size": 16}
    model = VideoCLIP(config)
    torch.nn.init.normal_(model.temporal, std=0.5)
    (folder / "config.json").write_text(json.dumps(model.config))
    save_file(model.state_dict(), folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trees(wan_folder, wan_i2v_folder):
    """The config of each task. Of the four levels 1, 0.9, 0.75 and 0.5, the first two fall on the high-noise expert."""
    return {
        task: {
            "generator": {"path": str(folder), **SIZE, "guidance": 3.0},
            "reward": {"name": "redness"},
            "prompts": "given",
            "groups": 2,
            "group_size": 3,
            "iterations": 2,
            "sampling": {"steps": 4, "shift": 3.0, "schedule": "flow-grpo", "noise_level": 0.7},
            "optimiser": {"learning_rate": 1e-3},
            "evaluation": {"samples": 2, "steps": 2},
        }
        for task, folder in (("t2v", wan_folder), ("i2v", wan_i2v_folder))
    }


@pytest.fixture
def make(trees, tmp_path):
    """A trainer of a task in a folder of its own; sections of the config as keywords."""
    numbers = itertools.count()

    def make(task, reward=redness, prompts=None, metrics=None, **changes):
        config = build_config(merged(trees[task], changes))
        given = dict(reward=reward, prompts=prompts or prompts_of(task), metrics=metrics)
        return Trainer(config, tmp_path / f"run{next(numbers)}", **given, progress=False)

    return make


def trains(trainer, *steps):
    """Make every iteration train these steps, whatever it draws."""
    draw = trainer._plan
    trainer._plan = lambda rng: draw(rng)._replace(trained=steps)


def of(expert, tensors):
    return {name: value for name, value in tensors.items() if name.startswith(f"{expert}.")}


def adam(trainer):
    """The optimiser's state by the names of the parameters: {} where it has none."""
    found = {
        f"{name}/{key}": v.clone()
        for name, p in trainer.parameters.items()
        for key, v in trainer.optimiser.state[p].items()
    }
    return found


# ---------------------------------------------------------------------------------------- invariant 1: on-policy at first


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
def test_the_first_importance_ratio_is_exactly_one(make, task, changes):
    trainer = make(task, **changes)
    start = weights(trainer)
    for _ in range(2):
        assert trainer.step()["first_log_ratio"] == 0.0
    assert not all_equal(start, weights(trainer))


def test_the_first_importance_ratio_is_exactly_one_under_autocast(make):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # accelerate has one precision a process
    try:
        trainer = make("i2v", precision="bf16", generator={"guidance_2": 2.0})
        trains(trainer, 0, 2)
        seen = [trainer.step()["first_log_ratio"] for _ in range(2)]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == [0.0, 0.0]


# ---------------------------------------------------------------------------- invariant 6: a killed run is the undisturbed one


@pytest.fixture(scope="module")
def presets(trees, video_reward_folder, tmp_path_factory):
    """Preset files that keep every kind of state. Of image-to-video, one step is trained at a time, so mostly one expert alone."""
    folder = tmp_path_factory.mktemp("presets")
    (folder / "t2v.txt").write_text("\n".join(prompts_of("t2v")))
    jsonl(folder / "i2v.jsonl", prompts_of("i2v"))
    changes = {
        "reward": {"name": "test", "path": str(video_reward_folder)},
        "iterations": 4,
        "checkpoint_every": 2,
        "evaluation": {"every": 2},
        "optimiser": {"ema_decay": 0.5},
    }
    own = {
        "t2v": {"prompts": str(folder / "t2v.txt"), "prior": {"name": "running_mean"}},
        "i2v": {
            "prompts": str(folder / "i2v.jsonl"),
            "prior": {"name": "first_frame"},
            "sampling": {"window": 1},
        },
    }
    for task in TASKS:
        (folder / f"{task}.yaml").write_text(
            yaml.safe_dump(merged(merged(trees[task], changes), own[task]))
        )
    return {task: folder / f"{task}.yaml" for task in TASKS}


@both_tasks
def test_killed_at_every_kind_of_moment_it_ends_as_the_undisturbed_run(presets, tmp_path, task):
    def train(folder, *disturbances):
        return runs.run(
            ["train", presets[task], "--output", folder], tmp_path / "log", *disturbances
        )

    first = (
        1 if task == "i2v" else 0
    )  # calls: the prior's pictures, evaluation (two), 1, 2, evaluation, 3, 4
    moments = [
        (partial(runs.reward, runs.kill, first + 4), []),  # in the second iteration
        (partial(runs.half_written, "checkpoint-000002"), []),
        (
            partial(runs.reward, runs.kill, first + 7 if task == "t2v" else first + 8),
            ["checkpoint-000002"],
        ),  # in the third or fourth
        (runs.half_saved, ["checkpoint-000002", "checkpoint-000004"]),
    ]
    folder, expected = tmp_path / "run", tmp_path / "undisturbed"
    for moment, kept in moments:
        code, said = train(folder, moment)
        assert code == -signal.SIGKILL, said
        assert [place.name for place in checkpoint.checkpoints(folder)] == kept
    for place in (folder, expected):
        code, said = train(place)
        assert code == 0, said
    assert_same_run(folder, expected)
    (early, _), (late, state) = (
        checkpoint.load_state(expected / f"checkpoint-00000{i}") for i in (2, 4)
    )
    experts = ["transformer", "transformer_2"] if task == "i2v" else ["transformer"]
    for kind in ("weights", "ema", "optimiser/exp_avg_sq"):
        assert {
            name.removeprefix(f"{kind}/").split(".")[0]
            for name in late
            if name.startswith(f"{kind}/")
        } == set(experts)
    for expert in experts:
        part = f"final/{expert}/diffusion_pytorch_model.safetensors"
        assert (folder / part).read_bytes() == (expected / part).read_bytes()
    assert state["prior"].keys() == ({"mean"} if task == "t2v" else set())
    if (
        task == "i2v"
    ):  # one expert had not been trained when the second checkpoint was written: it had no state of Adam's
        assert (
            len(
                {
                    name.split("/")[2].split(".")[0]
                    for name in early
                    if name.startswith("optimiser/")
                }
            )
            == 1
        )


# --------------------------------------------------------------------------- invariant 7: what plain diffusers makes of it


@both_tasks
@pytest.mark.parametrize("lora", [False, True])
def test_the_export_makes_the_same_videos_in_plain_diffusers(make, trees, task, lora):
    from diffusers import DiffusionPipeline

    changes = {"generator": {"lora_rank": 2, "lora_alpha": 7.0}} if lora else {}
    trainer = make(
        task,
        optimiser={"ema_decay": 0.5, "learning_rate": 1e-2},
        sampling={"trained_share": 1.0},
        **changes,
    )
    start = weights(trainer)
    trainer.train()
    final, source = trainer.output / "final", trees[task]["generator"]["path"]
    pipeline = DiffusionPipeline.from_pretrained(source if lora else final, dtype=torch.float32)
    if lora:
        assert all("lora" in name for name in start)
        pipeline.load_lora_weights(final)
        if task == "i2v":
            pipeline.load_lora_weights(final / "transformer_2", load_into_transformer_2=True)
        assert not (final / "model_index.json").exists()
    for expert in trainer.policy.modules:
        assert not all_equal(of(expert, start), of(expert, weights(trainer)))
    theirs, untrained = (
        WanPolicy(pipeline, **SIZE, guidance=3.0),
        WanPolicy.load(source, **SIZE, guidance=3.0),
    )
    prompt, sigmas = trainer.prompts[0], sigma_grid(4, 3.0)
    x, cond = (
        torch.randn(1, *theirs.latent_shape(), generator=torch.Generator().manual_seed(0)),
        encode(untrained, [prompt]),
    )
    with trainer.averaged_weights():
        ours = trainer.policy.decode(integrate(trainer.policy, x, cond, sigmas))
    given = {"image": prompt.image} if task == "i2v" else {}
    torch.testing.assert_close(
        ask_pipeline(theirs, x, [str(prompt)], sigmas, "pt", **given), ours, atol=1e-5, rtol=0
    )
    assert (
        untrained.decode(integrate(untrained, x, cond, sigmas)) - ours
    ).abs().max() > 1e-3  # there was something to save


# --------------------------------------------------------------------------------------------------- the two experts apart


def test_the_optimiser_has_a_group_for_each_expert(make):
    for task, experts in (("t2v", 1), ("i2v", 2)):
        trainer = make(task)
        groups = [{id(p) for p in group["params"]} for group in trainer.optimiser.param_groups]
        assert groups == [
            {id(p) for p in module.parameters()} for module in trainer.policy.modules.values()
        ]
        assert len(groups) == experts


@pytest.mark.parametrize(
    ("steps", "trained", "other"),
    [((0, 1), "transformer", "transformer_2"), ((2,), "transformer_2", "transformer")],
)
def test_steps_of_one_expert_do_not_touch_the_other(make, steps, trained, other):
    trainer = make("i2v", optimiser={"ema_decay": 0.5, "weight_decay": 0.1})
    start = weights(trainer)
    trains(trainer, *steps)
    for _ in range(2):
        trainer.step()
    for found in (weights(trainer), trainer.ema):
        assert all_equal(of(other, start), of(other, found))
        assert not all_equal(of(trained, start), of(trained, found))
    assert {name.split(".")[0] for name in adam(trainer)} == {trained}

    trains(trainer, 1, 2)  # both: now the other has averages and moments of its own
    trainer.step()
    before, moments = weights(trainer), adam(trainer)
    trains(trainer, *steps)
    trainer.step()
    assert of(other, moments)
    assert all_equal(of(other, before), of(other, weights(trainer)))
    assert all_equal(of(other, moments), of(other, adam(trainer)))
    assert not all_equal(of(trained, moments), of(trained, adam(trainer)))


def test_a_window_of_one_step_trains_one_expert_in_each_iteration(make):
    trainer = make("i2v", sampling={"window": 1})
    experts = set()
    for _ in range(4):
        start = weights(trainer)
        (step,) = trainer.collect()[1].trained
        trainer.step()
        moved = {
            name.split(".")[0]
            for name, p in weights(trainer).items()
            if not torch.equal(p, start[name])
        }
        assert moved == {"transformer" if step < 2 else "transformer_2"}
        experts |= moved
    assert experts == {"transformer", "transformer_2"}


def test_the_clipping_of_one_expert_does_not_depend_on_the_others_gradient(make):
    """The gradients of the low-noise expert a thousand times larger: the high-noise expert takes the same step, bit for bit."""
    found, norm = [], 1e-3
    for factor in (1, 1000):
        trainer = make("i2v", optimiser={"max_grad_norm": norm, "beta1": 0.0})
        trains(trainer, 0, 2)
        for p in trainer.policy.modules["transformer_2"].parameters():
            p.register_hook(lambda g, factor=factor: factor * g)
        metrics = trainer.step()
        assert metrics["grad_norm"] > 2 * norm  # so that there was something to clip
        found.append((trainer, adam(trainer), metrics["grad_norm"]))
    (first, moments, small), (second, others, large) = found
    assert large > 10 * small
    assert all_equal(of("transformer", weights(first)), of("transformer", weights(second)))
    assert all_equal(of("transformer", moments), of("transformer", others))
    for expert in (
        "transformer",
        "transformer_2",
    ):  # without momentum, Adam's first moment is the clipped gradient
        clipped = [v for name, v in of(expert, moments).items() if name.endswith("/exp_avg")]
        assert torch.stack([v.norm() for v in clipped]).norm().item() == pytest.approx(
            norm, rel=1e-3
        )


def test_cfg_gradient_changes_the_gradient_and_nothing_else(make):
    for task in TASKS:
        kinds = ({"cfg_gradient": "both"}, {"cfg_gradient": "conditional"}, {})
        both, conditional, default = (make(task, generator=kind).step() for kind in kinds)
        assert both == default
        assert {name for name in both if both[name] != conditional[name]} == {"grad_norm"}


def test_two_processes_take_the_step_of_one(presets, tmp_path):
    """Each has one of the two groups; the gradients of both experts are exchanged, also of the one that the last step does not train."""
    moments = []
    for count in (1, 2):
        folder = tmp_path / f"of {count}"
        overrides = [
            "iterations=1",
            "reward.name=video_clip_xl",
            "optimiser.max_grad_norm=1.0e+9",
            "sampling.window=3",
        ]
        overrides += ["sampling.micro_batch=3"]
        for code, said in runs.together(
            count, ["train", presets["i2v"], "--output", folder, *overrides], tmp_path / "log"
        ):
            assert code == 0, said
        tensors, _ = checkpoint.load_state(folder / "checkpoint-000001")
        moments.append(
            {name: v for name, v in tensors.items() if name.startswith("optimiser/exp_avg/")}
        )
    one, two = moments
    assert {name.split("/")[2].split(".")[0] for name in one} == {"transformer", "transformer_2"}
    scale = max(v.abs().max() for v in one.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4 * scale, rtol=1e-3, msg=name)


# -------------------------------------------------------------------------------------------------------- priors of pictures


def test_the_first_frame_prior_is_the_reward_of_a_still_video(make, video_reward_folder):
    score = load_reward("video_clip_xl", video_reward_folder)
    trainer = make("i2v", reward=score, prior={"name": "first_frame"})
    expected = {}
    for p in trainer.prompts:
        still = torch.stack(
            [torch.tensor(np.array(p.image, dtype=np.float32).transpose(2, 0, 1) / 255)]
            * SIZE["frames"]
        )
        expected[p.key] = score(still[None], [p]).item()
    assert trainer.prior.table == pytest.approx(expected, abs=1e-6)
    drawn = trainer.collect()[0]
    assert trainer.step()["prior"] == pytest.approx(
        sum(expected[p.key] for p in drawn) / len(drawn), abs=1e-6
    )
    third, fourth = trainer.prompts[2:]
    assert third == fourth
    assert abs(expected[third.key] - expected[fourth.key]) > 1e-4  # the same words, two pictures
    assert first_frame_rewards(
        trainer.policy, trainer.reward, trainer.prompts, chunk=3
    ) == pytest.approx(expected, abs=1e-6)


def test_sft_rewards_of_equal_words_are_those_of_each_picture(make, monkeypatch, tmp_path):
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    trainer = make("i2v", prior={"name": "sft_per_prompt", "samples": 2})
    assert trainer.prior.table.keys() == {p.key for p in trainer.prompts}
    e, shift = trainer.config.evaluation, trainer.config.sampling.shift
    for p in trainer.prompts:
        found = (
            evaluate(trainer.policy, [p], {"reward": redness}, 2, e.steps, shift)
            .scores["reward"]
            .mean()
            .item()
        )
        assert trainer.prior.table[p.key] == pytest.approx(found, abs=1e-5)
    again = make(
        "i2v",
        prior={"name": "sft_per_prompt", "samples": 2},
        prompts=[Prompt(p, picture(9)) for p in WORDS[:3]],
    )
    assert again.prior.table.keys().isdisjoint(
        trainer.prior.table.keys()
    )  # of other pictures: not found in the cache


def test_a_prior_from_the_cache_leaves_the_random_numbers_as_they_are(make, monkeypatch, tmp_path):
    """Whether the table is computed or found, a reward that draws draws the same in the run."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))

    def noisy(pixels, prompts):
        return redness(pixels, prompts) + torch.rand(len(prompts))

    computed, cached = (
        make("t2v", reward=noisy, prior={"name": "sft", "samples": 1}).step() for _ in range(2)
    )
    assert computed == cached


# ------------------------------------------------------------------------------------------------------------- evaluation


def test_equal_words_with_two_pictures_are_two_groups(make):
    trainer = make("i2v")
    found = trainer.evaluate()
    assert found.pixels.shape == (4, 2, 5, 3, 16, 16)
    assert not torch.allclose(found.pixels[2], found.pixels[3], atol=1e-2)
    drawn, _, cond, _ = make("i2v", groups=4).collect()  # in training too each has its own
    for p, image in zip(drawn, cond["image"], strict=True):
        torch.testing.assert_close(
            image, trainer.policy.encode([p], [p.image])["image"][0], atol=1e-6, rtol=0
        )
    seen = []
    evaluate(
        trainer.policy,
        trainer.prompts[2:],
        {"seen": lambda _, prompts: (seen.extend(prompts), redness(_, prompts))[1]},
        2,
        2,
        3.0,
    )
    assert [p.key for p in seen] == [p.key for p in trainer.prompts[2:] for _ in range(2)]


@both_tasks
def test_micro_batches_and_neighbours_do_not_change_the_videos(make, task):
    trainer = make(task)
    given = dict(metrics={"reward": redness}, samples=3, steps=3, shift=3.0)
    whole = evaluate(trainer.policy, trainer.prompts, **given)
    for micro_batch in (1, 5):
        parts = evaluate(trainer.policy, trainer.prompts, **given, micro_batch=micro_batch)
        torch.testing.assert_close(parts.pixels, whole.pixels, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            parts.scores["reward"], whole.scores["reward"], atol=1e-4, rtol=0
        )
    for few in ([3, 1], [2]):
        apart = evaluate(trainer.policy, [trainer.prompts[i] for i in few], **given)
        torch.testing.assert_close(apart.pixels, whole.pixels[few], atol=1e-5, rtol=0)


def test_a_metric_may_return_several_measures(make):
    def measures(pixels, prompts):
        still = torch.where(torch.tensor([p == "a shape" for p in prompts]), torch.nan, 0.5)
        return {"mean": pixels.mean((1, 2, 3, 4)), "still": still}

    trainer = make("i2v", metrics={"several": measures}, iterations=1)
    trainer.train()
    first, last = read_log(trainer.output / "evaluations.jsonl")
    assert first["scores"].keys() == last["scores"].keys() == {"reward", "mean", "still"}
    assert first["still"] == 0.5
    assert first["scores"]["still"] == [[0.5, 0.5], [0.5, 0.5], [None, None], [None, None]]
    pixels = trainer.evaluate().pixels
    assert last["scores"]["mean"] == [
        pytest.approx(row.tolist(), abs=1e-6) for row in pixels.mean((2, 3, 4, 5))
    ]


# ------------------------------------------------------------------------------------------------------------- what is refused


@pytest.fixture
def refused(presets, monkeypatch, capsys, tmp_path):
    """Ask `python -m bpgo train` in this process for what it must refuse; returns its message."""
    monkeypatch.setitem(rewards.REWARDS, "test", None)  # put back afterwards
    runs.reward()

    def refused(task, *overrides):
        capsys.readouterr()
        code = main(["train", str(presets[task]), *overrides, "--output", str(tmp_path / "run")])
        message = capsys.readouterr().err.rpartition("bpgo train: ")[2]
        assert code == 2, message
        assert "Traceback" not in message
        assert message.count("\n") == 1, message
        assert not list((tmp_path / "run").iterdir()), "something was written"
        return message

    return refused


@pytest.mark.parametrize(
    ("task", "overrides", "says"),
    [
        ("t2v", ["generator.frames=10"], "frames must be 4k+1, such as 9 or 81, not 10"),
        ("i2v", ["generator.height=30"], "height must be a positive multiple of 8 pixels, not 30"),
        (
            "t2v",
            ["generator.guidance_2=2.0"],
            "guidance_2=2.0 would do nothing: it needs a second expert",
        ),
        (
            "t2v",
            ["prior.name=first_frame"],
            "prior.name=first_frame is for image-to-video, and these prompts carry no images",
        ),
        ("t2v", ["prompts={i2v}"], "prompts: this Wan is text-to-video: it takes no images"),
        (
            "i2v",
            ["prompts={t2v}"],
            "prompts: image-to-video needs one image for each of the 4 prompts, not 0",
        ),
        (
            "i2v",
            ["evaluation.prompts={t2v}"],
            "evaluation.prompts: image-to-video needs one image for each of the 4 prompts, not 0",
        ),
        (
            "i2v",
            ["reward.name=clip", "reward.path={clip}"],
            "reward 'clip' raised ValueError: this reward takes pictures (batch, 3, ",
        ),
        (
            "t2v",
            ["reward.name=image_reward", "reward.path={image_reward}"],
            "reward 'image_reward' raised ValueError: this reward takes ",
        ),
        (
            "t2v",
            ["generator.frames=1"],
            "video_clip_xl sees 4 frames of a video and these have 1: sample at least 4",
        ),
        (
            "t2v",
            ["evaluation.held_out={{name: clip, path: {clip}}}"],
            "reward 'clip' raised ValueError: this reward takes pictures",
        ),
        (
            "t2v",
            ["evaluation.metrics=clips"],
            "reads pixels of shape (B, 9, 3, 32, 32), not (1, 5, 3, 16, 16)",
        ),
        (
            "i2v",
            ["generator.frames=9", "evaluation.metrics=clips"],
            "reads pixels of shape (B, 9, 3, 32, 32), not (1, 9, 3, 16",
        ),
    ],
)
def test_settings_that_do_not_fit_videos_are_refused_at_the_door(
    refused, presets, clip_folder, image_reward_folder, task, overrides, says
):
    files = {
        "i2v": presets["i2v"].with_name("i2v.jsonl"),
        "t2v": presets["t2v"].with_name("t2v.txt"),
    }
    given = files | {"clip": clip_folder, "image_reward": image_reward_folder}
    assert says in refused(task, *(override.format(**given) for override in overrides))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["generator.frames=5"], "is a FluxPipeline, which has no frames; it has "),
        (
            ["generator.negative_prompt=a shape"],
            "is a FluxPipeline, which has no negative_prompt; it has ",
        ),
        (
            [],
            "reward 'test' raised ValueError: video_clip_xl takes videos (batch, frames, 3, height, width) in [0, 1], not (1, 3, 16, 16)",
        ),
        (
            ["prompts={i2v}", "reward.name=clip"],
            "prompts: FLUX is text-to-image: it takes no images",
        ),
    ],
)
def test_settings_of_videos_are_refused_for_pictures(
    refused, presets, tiny_folder, overrides, says
):
    only = [f"generator={{path: {tiny_folder}, height: 16, width: 16}}"]
    overrides = [
        override.format(i2v=presets["i2v"].with_name("i2v.jsonl")) for override in overrides
    ]
    assert says in refused("t2v", *only, *overrides)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda image: image.resize((32, 16)),
            ": image 1 is 32 x 16 pixels, not 16 x 16: use image.resize((16, 16))",
        ),
        (
            lambda image: image.convert("RGBA"),
            ': image 1 has mode RGBA, not RGB: use image.convert("RGB")',
        ),
        (
            lambda image: image.convert("L"),
            ': image 1 has mode L, not RGB: use image.convert("RGB")',
        ),
        (lambda image: None, " has no image, and others have (1 of 4 without)"),
    ],
    ids=["size", "RGBA", "grey", "none"],
)
def test_a_picture_that_does_not_fit_is_named_with_its_prompt(refused, tmp_path, change, says):
    rows = []
    for i, p in enumerate(prompts_of("i2v")):
        image = change(p.image) if i == 1 else p.image
        if image is not None:
            image.save(tmp_path / f"{i}.png")
        rows.append({"prompt": p} | ({"image": f"{i}.png"} if image is not None else {}))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refused("i2v", f"prompts={tmp_path}/prompts.jsonl")
    assert message.startswith(f"prompts: prompt 'a large blue square'{says}")


@pytest.mark.parametrize("boundary", [0, 1, 1.5])
def test_a_boundary_outside_the_noise_levels_is_refused(
    refused, wan_i2v_folder, tmp_path, boundary
):
    folder = shutil.copytree(wan_i2v_folder, tmp_path / "wan")
    index = json.loads((folder / "model_index.json").read_text()) | {"boundary_ratio": boundary}
    (folder / "model_index.json").write_text(json.dumps(index))
    message = refused("i2v", f"generator.path={folder}")
    assert (
        f"boundary_ratio in the pipeline's model_index.json must lie between 0 and 1, not {boundary}"
        in message
    )


def test_a_missing_expert_is_refused_by_its_name(refused, wan_i2v_folder, tmp_path):
    folder = shutil.copytree(wan_i2v_folder, tmp_path / "wan")
    shutil.rmtree(folder / "transformer_2")
    message = refused("i2v", f"generator.path={folder}")
    assert "names transformer_2 (WanTransformer3DModel)" in message
    assert f"there is no folder {folder / 'transformer_2'}: copy it too" in message


# ------------------------------------------------------------------------------------------------------------------ bench


def test_bench_times_videos_without_sampling_for_a_prior(presets, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    for task in TASKS:
        overrides = ["reward.name=video_clip_xl", *(["prior.name=sft"] if task == "t2v" else [])]
        assert main(["bench", str(presets[task]), "--rounds", "1", *overrides]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "2 prompts x 3 samples, 1 rounds, 1 threads"
        assert [line.split("   ")[0].strip() for line in lines[1:]] == [
            "iteration / model calls",
            "BPGO / GRPO",
        ]
        assert all(float(line[26:].split()[0]) > 0 for line in lines[1:])
    assert not os.path.exists(tmp_path / "cache")


# -------------------------------------------------------------------------------------------------------- the shipped presets


@both_tasks
def test_the_shipped_presets_train(task, tmp_path, monkeypatch):
    """One iteration of what the README trains, on fewer prompts, with everything it measures."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    kind = "clip" if task == "t2v" else "image-clip"
    lines = (SHIPPED / "prompts" / f"{kind}-evaluation.jsonl").read_text().splitlines()[:8]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    few = [
        f"prompts={tmp_path}/prompts.jsonl",
        f"evaluation.prompts={tmp_path}/prompts.jsonl",
        "evaluation.samples=2",
    ]
    small = [
        "iterations=1",
        "group_size=2",
        "sampling.steps=4",
        "sampling.window_range=[0, 3]",
        "evaluation.steps=2",
    ]
    assert main(["train", f"{task}-tiny", "--output", str(tmp_path / "run"), *few, *small]) == 0
    first, last = read_log(tmp_path / "run" / "evaluations.jsonl")
    assert {
        "reward",
        "held_out",
        "accuracy",
        "motion",
        "visual",
        "overall",
        "flicker",
        "first_frame",
        "diversity",
    } <= first.keys()
    assert (first["iteration"], last["iteration"]) == (0, 1)
    assert (first["first_frame"] is None) is (task == "t2v")
    assert read_log(tmp_path / "run" / "metrics.jsonl")[0]["first_log_ratio"] == 0.0
    saved = (
        "pytorch_lora_weights.safetensors" if task == "t2v" else "model_index.json"
    )  # of the two presets, the first trains adapters
    assert (tmp_path / "run" / "final" / saved).exists()
