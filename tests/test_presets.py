"""The presets: they are read, the paper's values stand in those of its models, each value says where it is from, and they fit."""

import re

import pytest
import torch

from bpgo.config import PRESETS, read_config
from bpgo.files import SHIPPED
from bpgo.preflight import Launch, preflight, read_launch
from bpgo.prompts import read_prompts

TASKS = {"t2i-flux": "tiny-flux", "t2v-wan2.1-1.3b": "tiny-wan", "i2v-wan2.2-a14b": "tiny-wan-image"}
REAL = [name + variant for name in TASKS for variant in ("", "-lowmem")]
SOURCES = r"\b(the paper|DanceGRPO|Flow-GRPO|Flow-Factory|MixGRPO|Wan2\.[12]'s|FLUX\.1-dev's|ours)\b"
PAPER = {  # arXiv 2511.18919: model, G, prior, reward, other metrics
    "t2i-flux": ("black-forest-labs/FLUX.1-dev", 12, "running_mean", "hpsv2", ["pickscore", "image_reward"]),
    "t2v-wan2.1-1.3b": ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 8, "sft", "video_clip_xl",
                        ["video_align_ta", "video_align", "qwen3_vl_embedding"]),
    "i2v-wan2.2-a14b": ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", 8, "first_frame", "video_clip_xl",
                        ["video_align_ta", "video_align", "qwen3_vl_embedding"]),
}  # fmt: skip


def test_there_are_two_presets_of_each_task():
    found = {file.stem for file in PRESETS.glob("*.yaml")}
    assert set(REAL) <= found
    assert {f"{task}-tiny" for task in ("t2i", "t2v", "i2v")} <= found


@pytest.mark.parametrize("preset", REAL)
def test_the_paper_s_values_stand_in_it(preset):
    c, expected = read_config(preset), PAPER[preset.removesuffix("-lowmem")]
    held_out = [r.name for r in c.evaluation.held_out]
    assert (c.generator.path, c.group_size, c.prior.kind, *(r.name for r in c.reward), held_out) == expected
    assert (c.objective.name, c.objective.alpha) == ("bpgo", 0.5)
    assert (c.precision, c.reward[0].scale) == ("bf16", 1.0)


def test_dance_grpo_s_values_stand_where_the_paper_is_silent():
    c = read_config("t2i-flux")
    s, g, o = c.sampling, c.generator, c.optimiser
    assert (g.height, g.width, g.lora_rank, s.steps, s.shift, s.schedule, s.noise_level) == (720, 720, 0, 16, 3.0, "dance-grpo", 0.3)
    assert (s.trained_share, s.shared_noise, c.objective.clip_range, o.learning_rate, o.weight_decay) == (0.6, True, 1e-4, 1e-5, 1e-4)
    for name in ("t2v-wan2.1-1.3b", "i2v-wan2.2-a14b"):
        c = read_config(name)
        s, g = c.sampling, c.generator
        assert (g.height, g.width, g.frames, s.steps, s.noise_level, c.objective.clip_range) == (480, 480, 53, 16, 0.25, 1e-4)


@pytest.mark.parametrize("preset", REAL)
def test_every_value_says_where_it_is_from(preset):
    lines = (PRESETS / f"{preset}.yaml").read_text().splitlines()
    values = [line for line in lines if line.strip() and not line.startswith("#") and not re.fullmatch(r"\s*\w+:", line)]
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
    report = preflight(read_config(preset), launch=launch, device_bytes=int(size[0] or size[1]) * 10**9, rate=1e15)
    assert [problem for problem in report.missing if problem.startswith("memory")] == [], report.text
    on_cpu = re.findall(r"on the CPU: \D+?([\d.]+) (GB|MB)", report.text)
    assert on_cpu and launch.processes * sum(float(n) * (1 if unit == "GB" else 1e-3) for n, unit in on_cpu) < 0.9 * int(ram)


@pytest.mark.parametrize("preset", REAL)
def test_low_memory_is_one_gpu_and_every_means_of_saving(preset):
    g = read_config(preset).generator
    assert g.gradient_checkpointing
    assert (g.offload, g.vae_tiling, g.lora_rank > 0) == ((True,) * 3 if preset.endswith("-lowmem") else (False, False, "i2v" in preset))


@pytest.mark.parametrize("preset", REAL)
def test_its_prompts_are_shipped_or_asked_for(preset):
    config = read_config(preset)
    if preset.startswith("i2v"):
        assert config.prompts == "prompts/images.jsonl" and not (SHIPPED / config.prompts).exists()
    else:
        assert len(read_prompts(config.prompts)) >= 10 * config.groups


@pytest.mark.parametrize("preset", REAL)
def test_with_the_tiny_checkpoint_s_name_nothing_is_missing(preset):
    tiny = TASKS[preset.removesuffix("-lowmem")]
    picture = tiny == "tiny-flux"
    reward = "{name: clip, path: tiny-reward}" if picture else "{name: video_clip_xl, path: tiny-video-reward}"
    overrides = [f"generator.path={tiny}", "generator.height=32", "generator.width=32", f"reward={reward}", "evaluation.held_out=null"]
    overrides += [] if picture else ["generator.frames=9", "generator.max_sequence_length=12"]
    overrides += ["prompts=prompts/image-clip-train.jsonl"] * (tiny == "tiny-wan-image")
    report = preflight(read_config(preset, overrides))
    assert report.missing == []
    assert not torch.cuda.is_available() or "this machine's GPU" in report.text
