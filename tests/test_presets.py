"""The presets: they contain the paper's values, every value has a source, and they fit and run.

They run with a tiny checkpoint in place of the published one.
"""

import re

import pytest

from bpgo.__main__ import main
from bpgo.analysis import runs
from bpgo.config import PRESETS, read_config
from bpgo.files import SHIPPED, read_log
from bpgo.preflight import Launch, preflight, read_launch, report, sections
from bpgo.prompt_files import read_prompts

TASKS = {
    "t2i-flux": "tiny-flux",
    "t2v-wan2.1-1.3b": "tiny-wan",
    "i2v-wan2.2-a14b": "tiny-wan-image",
}
REAL = [name + variant for name in TASKS for variant in ("", "-lowmem")]
SOURCES = (
    r"\b(the paper|DanceGRPO|Flow-GRPO|Flow-Factory|MixGRPO|Wan2\.[12]'s|FLUX\.1-dev's|ours)\b"
)
VIDEO_METRICS = ["video_align_ta", "video_align", "qwen3_vl_embedding"]
PAPER = {  # arXiv 2511.18919: model, G, prior, reward, other metrics
    "t2i-flux": (
        "black-forest-labs/FLUX.1-dev",
        12,
        "running_mean",
        ["hpsv2"],
        ["pickscore", "image_reward"],
    ),
    "t2v-wan2.1-1.3b": (
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        8,
        "sft",
        ["video_clip_xl"],
        VIDEO_METRICS,
    ),
    "i2v-wan2.2-a14b": (
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        8,
        "first_frame",
        ["video_clip_xl"],
        VIDEO_METRICS,
    ),
}


def text_of(preset):
    return (PRESETS / f"{preset}.yaml").read_text()


# ------------------------------------------------------------------------------------------ values


def test_there_are_two_presets_of_each_task():
    found = {file.stem for file in PRESETS.glob("*.yaml")}
    assert set(REAL) <= found
    assert {f"{task}-tiny" for task in ("t2i", "t2v", "i2v")} <= found


@pytest.mark.parametrize("preset", REAL)
def test_the_paper_s_values_are_in_it(preset):
    c = read_config(preset)
    rewards = [reward.name for reward in c.reward]
    held_out = [reward.name for reward in c.evaluation.held_out]
    found = (c.generator.path, c.group_size, c.prior.name, rewards, held_out)
    assert found == PAPER[preset.removesuffix("-lowmem")]
    assert (c.objective.name, c.objective.alpha) == ("bpgo", 0.5)
    assert (c.precision, c.reward[0].scale) == ("bf16", 1.0)


def test_dance_grpo_s_values_for_images_are_used_where_the_paper_gives_none():
    c = read_config("t2i-flux")
    g, s, o = c.generator, c.sampling, c.optimiser
    assert (g.height, g.width, g.lora_rank) == (720, 720, 0)
    assert (s.steps, s.shift, s.schedule, s.noise_level) == (16, 3.0, "dance-grpo", 0.3)
    assert (s.trained_share, s.shared_noise) == (0.6, True)
    assert (c.objective.clip_range, o.learning_rate, o.weight_decay) == (1e-4, 1e-5, 1e-4)


@pytest.mark.parametrize("preset", ["t2v-wan2.1-1.3b", "i2v-wan2.2-a14b"])
def test_dance_grpo_s_values_for_videos_are_used_where_the_paper_gives_none(preset):
    c = read_config(preset)
    g, s = c.generator, c.sampling
    assert (g.height, g.width, g.frames) == (480, 480, 53)
    assert (s.steps, s.noise_level, c.objective.clip_range) == (16, 0.25, 1e-4)


@pytest.mark.parametrize("preset", REAL)
def test_every_value_has_a_source(preset):
    values = []
    for line in text_of(preset).splitlines():
        is_section = re.fullmatch(r"\s*\w+:", line)
        if line.strip() and not line.startswith("#") and not is_section:
            values.append(line)
    assert len(values) > 35
    without = [line for line in values if not re.search(SOURCES, line.partition(" # ")[2])]
    assert without == []


# ---------------------------------------------------------------------------------------- hardware


@pytest.mark.parametrize("preset", REAL)
def test_it_says_what_hardware_it_is_for_and_fits_that(preset):
    head = text_of(preset).partition("\ngenerator:")[0]
    (sizes,) = re.findall(r"(?:eight (\d+)-GB GPUs|one GPU of (\d+) GB)", head)
    (ram,) = re.findall(r"and (\d+) GB of RAM", head)
    (command,) = re.findall(r"#   (.*bpgo train (\S+) --output \S+)", head)
    assert command[1] == preset
    file = re.search(r"--config_file (\S+)", command[0])
    launch = read_launch(PRESETS.parent.parent / file[1]) if file else Launch()
    assert launch.processes == (8 if " eight " in head else 1)
    device_bytes = int(sizes[0] or sizes[1]) * 10**9
    found = preflight(read_config(preset), launch=launch, device_bytes=device_bytes, rate=1e15)
    too_large = [problem for problem in found.missing if problem.startswith("memory")]
    assert too_large == [], found.text
    on_cpu = re.findall(r"on the CPU: \D+?([\d.]+) (GB|MB)", found.text)
    assert on_cpu
    gigabytes = sum(float(number) * (1 if unit == "GB" else 1e-3) for number, unit in on_cpu)
    assert launch.processes * gigabytes < 0.9 * int(ram)


@pytest.mark.parametrize("preset", REAL)
def test_low_memory_is_one_gpu_and_every_way_to_save_memory(preset):
    g = read_config(preset).generator
    saving = (g.offload, g.vae_tiling, g.lora_rank > 0)
    assert g.gradient_checkpointing
    if preset.endswith("-lowmem"):
        assert saving == (True, True, True)
    else:
        assert saving == (False, False, preset.startswith("i2v"))


# ----------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("preset", REAL)
def test_its_prompts_are_shipped_or_the_user_s(preset):
    config = read_config(preset)
    if preset.startswith("i2v"):
        assert config.prompts == "prompts/images.jsonl"
        assert not (SHIPPED / config.prompts).exists()
    else:
        assert len(read_prompts(config.prompts)) >= 10 * config.groups


@pytest.mark.parametrize("preset", REAL)
def test_an_evaluation_has_groups_and_fits_in_the_memory_of_a_notebook(preset):
    """A notebook shows the advantages of evaluation samples, and keeps them in float32."""
    c = read_config(preset)
    e, g = c.evaluation, c.generator
    assert e.samples >= 2
    if preset.startswith("i2v"):
        assert e.prompts is None  # the images are the user's
        return
    prompts = read_prompts(e.prompts)
    assert len(prompts) * e.samples * (g.frames or 1) * 3 * g.height * g.width * 4 < 5e9
    assert len(prompts) % 8 == 0  # the same number on each of eight GPUs


def test_the_evaluation_prompts_are_four_subjects_of_the_graded_ones_at_every_level():
    rows = read_log(SHIPPED / "prompts" / "graded.jsonl")
    chosen = read_log(SHIPPED / "prompts" / "graded-evaluation.jsonl")
    # An animal, a vehicle, a dish and a kind of weather.
    subjects = list(dict.fromkeys(row["subject"] for row in rows))[::13]
    assert chosen == [row for row in rows if row["subject"] in subjects and row["paraphrase"] == 1]
    prompts = read_prompts("prompts/graded-evaluation.jsonl")
    facts = runs.prompt_facts("prompts/graded-evaluation.jsonl", prompts)
    assert facts["level"].tolist() == [0, 0.25, 0.5, 1] * 4


@pytest.mark.parametrize("preset", REAL)
def test_the_training_reward_is_in_a_process_of_its_own(preset):
    """It scores while the next samples are drawn, and a reward that hangs ends the run."""
    assert all(reward.process for reward in read_config(preset).reward)


# -------------------------------------------------------------------------------------------- runs


def tiny_in_place_of(preset):
    """Overrides: the name of a tiny checkpoint, and what its world needs.

    It knows only images of 32 pixels, videos of 9 frames and texts of 12 tokens from a vocabulary
    of shapes. The published rewards are not here, so the shipped training reward takes their place,
    in a process of its own if the preset has one.
    """
    checkpoint = TASKS[preset.removesuffix("-lowmem")]
    prompts = {
        "tiny-flux": "evaluation.jsonl",
        "tiny-wan": "clip-evaluation.jsonl",
        "tiny-wan-image": "image-clip-evaluation.jsonl",
    }
    overrides = [
        f"generator.path={checkpoint}",
        "generator.height=32",
        "generator.width=32",
        "evaluation.held_out=null",
        f"prompts=prompts/{prompts[checkpoint]}",
        "evaluation.prompts=null",
    ]
    if checkpoint == "tiny-flux":
        return [*overrides, "reward.name=clip", "reward.path=tiny-reward"]
    overrides += ["generator.frames=9", "generator.max_sequence_length=12"]
    return [*overrides, "reward.name=video_clip_xl", "reward.path=tiny-video-reward"]


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("preset", REAL)
def test_with_the_name_of_a_tiny_checkpoint_nothing_is_missing(preset, gpu, monkeypatch):
    for module in (report, sections):
        monkeypatch.setattr(module, "has_gpu", lambda: gpu)
    monkeypatch.setattr(sections, "device_memory", lambda: 10**9)
    found = preflight(read_config(preset, tiny_in_place_of(preset)), rate=1e12)
    assert found.missing == []
    where = "this machine's GPU" if gpu else "this machine's RAM, as it has no GPU"
    assert f"of 900.0 MB (90% of {where})" in found.text


@pytest.mark.parametrize("preset", REAL)
def test_with_the_name_of_a_tiny_checkpoint_it_runs(
    preset, tmp_path, monkeypatch, any_precision, quick_processes
):
    """One short iteration with the preset's bfloat16, LoRA, offloading, tiling and processes."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path / "cache"))
    overrides, few = tiny_in_place_of(preset), tmp_path / "few.jsonl"
    prompts = SHIPPED / read_config(preset, overrides).prompts
    few.write_text("".join(prompts.read_text().splitlines(keepends=True)[:2]))
    overrides += [
        f"prompts={few}",
        "iterations=1",
        "groups=2",
        "group_size=2",
        "sampling.steps=5",
        "evaluation.steps=2",
    ]
    run = tmp_path / "run"
    assert main(["train", preset, "--output", str(run), *overrides]) == 0
    assert (run / "final" / "README.md").is_file()
    (row,) = read_log(run / "metrics.jsonl")
    assert row["iteration"] == 1
    assert row["reward_std"] > 0
    assert 0 < row["grad_norm"] < float("inf")
    evaluations = read_log(run / "evaluations.jsonl")
    assert [row["iteration"] for row in evaluations] == [0, 1]
