"""The presets: they are read, the paper's values stand in those of its models, each value says where it is from, and they fit.

And they run, with a tiny checkpoint in place of the published one.
"""

import re
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState

from bpgo.__main__ import main
from bpgo.analysis import runs
from bpgo.config import PRESETS, read_config
from bpgo.files import SHIPPED, read_log
from bpgo.preflight import Launch, preflight, read_launch
from bpgo.prompts import read_prompts

TASKS = {
    "t2i-flux": "tiny-flux",
    "t2v-wan2.1-1.3b": "tiny-wan",
    "i2v-wan2.2-a14b": "tiny-wan-image",
}
REAL = [name + variant for name in TASKS for variant in ("", "-lowmem")]
SOURCES = (
    r"\b(the paper|DanceGRPO|Flow-GRPO|Flow-Factory|MixGRPO|Wan2\.[12]'s|FLUX\.1-dev's|ours)\b"
)
PAPER = {  # arXiv 2511.18919: model, G, prior, reward, other metrics
    "t2i-flux": (
        "black-forest-labs/FLUX.1-dev",
        12,
        "running_mean",
        "hpsv2",
        ["pickscore", "image_reward"],
    ),
    "t2v-wan2.1-1.3b": (
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        8,
        "sft",
        "video_clip_xl",
        ["video_align_ta", "video_align", "qwen3_vl_embedding"],
    ),
    "i2v-wan2.2-a14b": (
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        8,
        "first_frame",
        "video_clip_xl",
        ["video_align_ta", "video_align", "qwen3_vl_embedding"],
    ),
}


def test_there_are_two_presets_of_each_task():
    found = {file.stem for file in PRESETS.glob("*.yaml")}
    assert set(REAL) <= found
    assert {f"{task}-tiny" for task in ("t2i", "t2v", "i2v")} <= found


@pytest.mark.parametrize("preset", REAL)
def test_the_paper_s_values_stand_in_it(preset):
    c, expected = read_config(preset), PAPER[preset.removesuffix("-lowmem")]
    held_out = [r.name for r in c.evaluation.held_out]
    assert (
        c.generator.path,
        c.group_size,
        c.prior.name,
        *(r.name for r in c.reward),
        held_out,
    ) == expected
    assert (c.objective.name, c.objective.alpha) == ("bpgo", 0.5)
    assert (c.precision, c.reward[0].scale) == ("bf16", 1.0)


def test_dance_grpo_s_values_stand_where_the_paper_is_silent():
    c = read_config("t2i-flux")
    s, g, o = c.sampling, c.generator, c.optimiser
    assert (g.height, g.width, g.lora_rank, s.steps, s.shift, s.schedule, s.noise_level) == (
        720,
        720,
        0,
        16,
        3.0,
        "dance-grpo",
        0.3,
    )
    assert (
        s.trained_share,
        s.shared_noise,
        c.objective.clip_range,
        o.learning_rate,
        o.weight_decay,
    ) == (0.6, True, 1e-4, 1e-5, 1e-4)
    for name in ("t2v-wan2.1-1.3b", "i2v-wan2.2-a14b"):
        c = read_config(name)
        s, g = c.sampling, c.generator
        assert (g.height, g.width, g.frames, s.steps, s.noise_level, c.objective.clip_range) == (
            480,
            480,
            53,
            16,
            0.25,
            1e-4,
        )


@pytest.mark.parametrize("preset", REAL)
def test_every_value_says_where_it_is_from(preset):
    lines = (PRESETS / f"{preset}.yaml").read_text().splitlines()
    values = [
        line
        for line in lines
        if line.strip() and not line.startswith("#") and not re.fullmatch(r"\s*\w+:", line)
    ]
    assert len(values) > 35
    without = [line for line in values if not re.search(SOURCES, line.partition(" # ")[2])]
    assert without == []


@pytest.mark.parametrize("preset", REAL)
def test_it_says_what_hardware_it_is_for_and_fits_that(preset):
    text = (PRESETS / f"{preset}.yaml").read_text()
    head = text.partition("\ngenerator:")[0]
    (size,) = re.findall(r"(?:eight (\d+)-GB GPUs|one GPU of (\d+) GB)", head)
    (ram,) = re.findall(r"and (\d+) GB of RAM", head)
    (command,) = re.findall(r"#   (.*bpgo train (\S+) --output \S+)", head)
    assert command[1] == preset
    file = re.search(r"--config_file (\S+)", command[0])
    launch = read_launch(PRESETS.parent.parent / file[1]) if file else Launch()
    assert launch.processes == (8 if " eight " in head else 1)
    report = preflight(
        read_config(preset), launch=launch, device_bytes=int(size[0] or size[1]) * 10**9, rate=1e15
    )
    assert [problem for problem in report.missing if problem.startswith("memory")] == [], (
        report.text
    )
    on_cpu = re.findall(r"on the CPU: \D+?([\d.]+) (GB|MB)", report.text)
    assert on_cpu and launch.processes * sum(
        float(n) * (1 if unit == "GB" else 1e-3) for n, unit in on_cpu
    ) < 0.9 * int(ram)


@pytest.mark.parametrize("preset", REAL)
def test_low_memory_is_one_gpu_and_every_means_of_saving(preset):
    g = read_config(preset).generator
    assert g.gradient_checkpointing
    assert (g.offload, g.vae_tiling, g.lora_rank > 0) == (
        (True,) * 3 if preset.endswith("-lowmem") else (False, False, "i2v" in preset)
    )


@pytest.mark.parametrize("preset", REAL)
def test_its_prompts_are_shipped_or_asked_for(preset):
    config = read_config(preset)
    if preset.startswith("i2v"):
        assert config.prompts == "prompts/images.jsonl" and not (SHIPPED / config.prompts).exists()
    else:
        assert len(read_prompts(config.prompts)) >= 10 * config.groups


@pytest.mark.parametrize("preset", REAL)
def test_an_evaluation_is_of_groups_and_so_short_that_a_notebook_can_keep_its_samples(preset):
    """A notebook shows group advantages of evaluation samples, which takes two, and keeps all of them, float32, in RAM."""
    c = read_config(preset)
    e, g = c.evaluation, c.generator
    assert e.samples >= 2
    if preset.startswith("i2v"):  # whose pictures are the user's
        assert e.prompts is None
        return
    prompts = read_prompts(e.prompts)
    assert len(prompts) * e.samples * (g.frames or 1) * 3 * g.height * g.width * 4 < 5e9
    assert len(prompts) % 8 == 0  # as many for each GPU


def test_the_evaluation_prompts_are_four_subjects_of_the_graded_ones_at_every_level():
    rows, chosen = (
        read_log(SHIPPED / "prompts" / f"graded{part}.jsonl") for part in ("", "-evaluation")
    )
    subjects = list(dict.fromkeys(row["subject"] for row in rows))[
        ::13
    ]  # an animal, a vehicle, a dish, a kind of weather
    assert chosen == [row for row in rows if row["subject"] in subjects and row["paraphrase"] == 1]
    facts = runs.prompt_facts(
        "prompts/graded-evaluation.jsonl", read_prompts("prompts/graded-evaluation.jsonl")
    )
    assert facts["level"].tolist() == [0, 0.25, 0.5, 1] * 4


@pytest.mark.parametrize("preset", REAL)
def test_the_training_reward_is_in_a_process_of_its_own(preset):
    """So that it scores while the next samples are made, and a reward that hangs ends the run instead of holding it."""
    assert all(reward.process for reward in read_config(preset).reward)


def tiny_in_place_of(preset):
    """The one parameter, and what a tiny model and its world need beside it.

    Its size: 32 pixels, 9 frames and 12 words are all that it knows. Its rewards: the published ones are not here, and the shipped
    training reward stands for them, in a process of its own where the preset has one. Its words: a vocabulary of shapes.
    """
    tiny = TASKS[preset.removesuffix("-lowmem")]
    reward = {"tiny-flux": ("clip", "tiny-reward")}.get(
        tiny, ("video_clip_xl", "tiny-video-reward")
    )
    size = ["height=32", "width=32"] + ["frames=9", "max_sequence_length=12"] * (
        tiny != "tiny-flux"
    )
    words = {"tiny-flux": "", "tiny-wan": "clip-", "tiny-wan-image": "image-clip-"}[
        tiny
    ] + "evaluation.jsonl"
    return [
        f"generator.path={tiny}",
        *(f"generator.{setting}" for setting in size),
        f"reward.name={reward[0]}",
        f"reward.path={reward[1]}",
        "evaluation.held_out=null",
        f"prompts=prompts/{words}",
        "evaluation.prompts=null",
    ]


@pytest.mark.parametrize("preset", REAL)
def test_with_the_tiny_checkpoint_s_name_nothing_is_missing(preset):
    report = preflight(read_config(preset, tiny_in_place_of(preset)))
    assert report.missing == []
    assert not torch.cuda.is_available() or "this machine's GPU" in report.text


@pytest.mark.parametrize("preset", REAL)
def test_with_the_tiny_checkpoint_s_name_it_runs(preset, tmp_path, monkeypatch, request):
    """The one-parameter promise, by the command line: bfloat16, LoRA, offloading, tiles and a reward's process as the preset has them.

    Beside what `tiny_in_place_of` gives: one short iteration, for time.
    """
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    request.addfinalizer(
        partial(AcceleratorState._reset_state, True)
    )  # accelerate keeps the first precision that a process trains in
    AcceleratorState._reset_state(True)
    overrides, words = tiny_in_place_of(preset), tmp_path / "few.jsonl"
    prompts = read_config(preset, overrides).prompts
    words.write_text("".join((SHIPPED / prompts).read_text().splitlines(True)[:2]))
    overrides += [
        f"prompts={words}",
        "iterations=1",
        "groups=2",
        "group_size=2",
        "sampling.steps=5",
        "evaluation.steps=2",
    ]
    assert main(["train", preset, "--output", str(tmp_path / "run"), *overrides]) == 0
    assert (tmp_path / "run" / "final" / "README.md").is_file()
    (row,) = read_log(tmp_path / "run" / "metrics.jsonl")
    assert row["iteration"] == 1 and row["reward_std"] > 0 and 0 < row["grad_norm"] < float("inf")
    assert [found["iteration"] for found in read_log(tmp_path / "run" / "evaluations.jsonl")] == [
        0,
        1,
    ]
