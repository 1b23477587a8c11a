"""The report: what is missing, with its remedy, and the exit code."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bpgo.config import read_config
from bpgo.files import SHIPPED
from bpgo.preflight import Launch, preflight, read_launch, run, sections
from bpgo.preflight.files import reward_files
from bpgo.preflight.flops import flops
from bpgo.preflight.footprints import footprint_of
from bpgo.preflight.published import PIPELINES

ACCELERATE = Path(__file__).parents[2] / "reproduce" / "accelerate"
GPU = 80 * 10**9


# -------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("preset", ["t2i-tiny", "t2v-tiny", "i2v-tiny", "t2i-digits"])
def test_nothing_is_missing_for_a_tiny_preset_and_no_model_is_loaded(
    preset, hub_cache, capsys, monkeypatch
):
    def refuse(*args, **kwargs):
        pytest.fail("it loads a model")

    monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
    assert run(read_config(preset)) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("Nothing is missing.\n")
    assert "device hours for" in printed and "free on that disk" in printed


@pytest.mark.parametrize("preset", ["t2i-flux", "t2v-wan2.1-1.3b", "i2v-wan2.2-a14b"])
def test_a_real_preset_without_its_files_says_what_is_missing(preset, hub_cache, capsys):
    config = read_config(preset)
    assert run(config) == 1
    printed = capsys.readouterr().out
    for reward in (*config.reward, *config.evaluation.held_out):
        for files in reward_files(reward.name, None):
            assert f"{files.source} is not here: run this again with --download" in printed
    assert f"Missing: {config.generator.path} is not here" in printed
    assert ("hf auth login" in printed) == (preset == "t2i-flux"), "only FLUX.1-dev is gated"
    asks_for_images = "prompts: there is no file prompts/images.jsonl" in printed
    assert asks_for_images == preset.startswith("i2v")
    licences = printed.count("CC-BY-NC-SA-4.0"), printed.count("Non-Commercial")
    assert licences == ((0, 1) if preset == "t2i-flux" else (1, 0))


def test_memory_is_not_guessed_without_the_files_of_the_generator(hub_cache):
    report = preflight(read_config("t2i-tiny", ["generator.path=someone/something"]))
    assert "someone/something is not here: run this again with --download" in report.missing[0]
    assert "Memory and time: not known" in report.text
    absent = preflight(read_config("t2i-tiny", ["generator.path=nowhere/at/all"]))
    assert absent.missing[0] == (
        "nowhere/at/all is not here: "
        "give a folder that exists, a shipped name or a hub id (owner/name)"
    )


def test_a_generator_in_the_cache_is_found(put):
    config = read_config("t2i-tiny", ["generator.path=someone/flux"])
    assert len(preflight(config).missing) == 1
    put("someone/flux", SHIPPED / "tiny-flux")
    assert preflight(config).missing == []


def test_a_reward_without_published_weights_needs_a_path(hub_cache):
    config = read_config("t2i-tiny", ["reward.name=image_grid", "reward.path=null"])
    expected = "reward 'image_grid' has no published weights: set its path"
    assert preflight(config).missing == [expected]


def test_it_downloads_only_when_told_to_and_only_what_is_needed(put, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(hub_id, allow_patterns):
        asked[hub_id] = allow_patterns
        put(hub_id, SHIPPED / "tiny-flux")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config = read_config("t2i-tiny", ["generator.path=someone/flux"])
    assert preflight(config).missing and not asked
    assert preflight(config, download=True).missing == []
    patterns = ["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model"]
    assert asked == {"someone/flux": patterns}
    asked.clear()
    assert preflight(config, download=True).missing == [] and not asked


def test_a_download_that_fails_is_reported_with_the_remedy(hub_cache, monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    first = preflight(read_config("t2i-flux"), download=True).missing[0]
    assert first.startswith(
        "black-forest-labs/FLUX.1-dev could not be downloaded: "
        "accept its terms on its page, then run `hf auth login`"
    )
    assert first.endswith("(401 Client Error)")


def test_too_little_disk_space_is_reported(hub_cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
    missing = preflight(read_config("t2i-flux")).missing
    (problem,) = [problem for problem in missing if problem.startswith("disk:")]
    assert problem == (
        f"disk: {hub_cache} lacks 40.5 GB for the downloads. "
        f"Make room, or set HF_HOME to a folder on another disk"
    )


# ------------------------------------------------------------------------------------- memory


TOO_LITTLE = {  # what is too large: preset, settings, bytes of the device, the first remedy
    "the update": (
        "t2i-tiny",
        ["prior.name=running_mean"],
        20_000_000,
        "generator.gradient_checkpointing=true",
    ),
    "decoding": (
        "t2v-tiny",
        ["generator.gradient_checkpointing=true", "generator.height=512", "generator.width=512"],
        10**8,
        "generator.vae_tiling=true",
    ),
    "all weights": (
        "t2i-flux",
        [],
        GPU,
        "accelerate launch --config_file reproduce/accelerate/fsdp2.yaml",
    ),
    "frozen weights": (
        "i2v-wan2.2-a14b",
        ["sampling.micro_batch=1", "generator.dtype=bfloat16"],
        48 * 10**9,
        "generator.offload=true",
    ),
}


def too_much(report):
    (problem,) = [problem for problem in report.missing if "too much" in problem]
    return problem


@pytest.mark.parametrize("case", TOO_LITTLE)
def test_too_little_memory_names_the_setting_that_saves_most(case, hub_cache):
    preset, overrides, device, first = TOO_LITTLE[case]
    report = preflight(read_config(preset, overrides), device_bytes=device)
    assert f"too much. Try {first}" in too_much(report)


def test_settings_that_are_in_force_are_not_proposed(hub_cache):
    config = read_config("t2v-wan2.1-1.3b-lowmem", ["sampling.micro_batch=1"])
    problem = too_much(preflight(config, device_bytes=10**9))
    assert problem.partition("Try ")[2].split(", or ") == [
        "a smaller generator.height, width or frames",
        "another device for the rewards (reward.device, evaluation.held_out.device)",
    ]


def test_too_little_ram_is_reported_on_a_machine_with_a_gpu(hub_cache, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sections, "device_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(sections, "ram", lambda: 32 * 10**9)
    report = preflight(read_config("t2v-wan2.1-1.3b-lowmem"), rate=1e15)
    assert "this machine's GPU" in report.text
    assert [problem for problem in report.missing if problem.startswith("memory")] == [
        "memory: 41.2 GB of RAM are needed, and this machine has 32.0 GB. "
        "Give the rewards a GPU (their device)"
    ]


def test_without_a_gpu_what_the_cpu_holds_counts_too(hub_cache, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = read_config("t2v-tiny", ["generator.offload=true"])
    planned = preflight(config, device_bytes=10**9).text
    here = preflight(config).text
    needs = [float(text.partition("needs ")[2].partition(" MB")[0]) for text in (planned, here)]
    host = [line.split()[-2:] for line in here.splitlines() if "on the CPU" in line]
    assert {unit for _, unit in host} == {"MB"}
    assert needs[1] - needs[0] == pytest.approx(sum(float(n) for n, _ in host), abs=0.2)


def test_encoded_prompts_that_do_not_fit_the_disk_are_reported(monkeypatch, tmp_path):
    """Several processes keep FLUX's 512 x 4096 bfloat16 numbers per prompt, 4.2 MB, on disk."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path))
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(1000)))
    overrides = [f"prompts={tmp_path / 'p.txt'}", "evaluation.prompts=null"]
    config, given = read_config("t2i-flux", overrides), dict(device_bytes=GPU, rate=1e15)
    report = preflight(config, launch=Launch(8, True), **given)
    stored = f"on disk in {tmp_path} ($BPGO_CACHE): 1000 encoded prompts, up to 4.2 GB"
    assert stored in report.text and "for the encoded prompts" not in report.text
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
    problem = (
        f"disk: {tmp_path} lacks 3.2 GB for the encoded prompts. "
        f"Set BPGO_CACHE to a folder on another disk"
    )
    assert problem in preflight(config, launch=Launch(8, True), **given).missing
    one_process = preflight(config, **given).text
    assert "$BPGO_CACHE" not in one_process, "one process keeps them in memory"


# ---------------------------------------------------------------------------- what is your own


def test_your_own_reward_is_not_counted(hub_cache):
    without = preflight(read_config("t2i-tiny"), device_bytes=GPU)
    config = read_config("t2i-tiny", ["reward.name=my_rewards:mine", "reward.path=null"])
    report = preflight(config, device_bytes=GPU)
    assert report.missing == []
    assert "not counted, size not known: reward my_rewards:mine" in report.text
    assert "not counted, size" not in without.text
    with_path = preflight(read_config("t2i-tiny", ["reward.name=my_rewards:Mine"]))
    assert "tiny-reward" in with_path.text and "not counted, size" not in with_path.text


def test_the_memory_of_your_own_policy_is_not_counted(hub_cache):
    for path in ("tiny-flux", "anything at all"):
        overrides = ["generator.policy=my_policies:Mine", f"generator.path={path}"]
        report = preflight(read_config("t2i-tiny", overrides))
        assert "Memory and time: not counted, because my_policies:Mine is your own" in report.text
        assert report.missing == []


def test_a_policy_of_the_package_may_be_named(hub_cache):
    named = preflight(read_config("t2i-tiny", ["generator.policy=FluxPipeline"]), rate=1e12)
    assert named.text == preflight(read_config("t2i-tiny"), rate=1e12).text


def test_a_pipeline_without_a_policy_is_reported(put):
    folder = put("someone/other", SHIPPED / "tiny-flux")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "OtherPipeline"))
    report = preflight(read_config("t2i-tiny", ["generator.path=someone/other"]))
    assert report.missing == [
        "generator: there is no policy for a OtherPipeline. "
        "Set generator.policy to one of your own, as module:attribute"
    ]
    assert "the footprint of a OtherPipeline is not known" in report.text


# ------------------------------------------------------------------------------------ prompts


def test_too_few_prompts_are_reported(hub_cache, tmp_path):
    file = tmp_path / "few.txt"
    file.write_text("a red circle\n")
    config = read_config("t2i-tiny", [f"prompts={file}"])
    assert preflight(config).missing == [
        f"prompts: {file} has 1 of the 8 prompts that an iteration takes. "
        f"Lower groups, or add prompts"
    ]


def test_a_prompt_file_that_does_not_exist_is_reported(hub_cache, tmp_path):
    file = tmp_path / "absent.txt"
    expected = f"there is no file {file}. Set KEY to a file with one prompt per line"
    for key in ("prompts", "evaluation.prompts"):
        missing = preflight(read_config("t2i-tiny", [f"{key}={file}"])).missing
        assert missing == [f"{key}: {expected.replace('KEY', key)}"]


def test_prompts_without_images_are_reported(hub_cache):
    (problem,) = preflight(read_config("i2v-tiny", ["prompts=prompts/clip-train.jsonl"])).missing
    assert "has no images" in problem and '"image"' in problem


def test_images_of_another_size_are_reported(hub_cache):
    overrides = ["generator.height=64", "evaluation.prompts=null"]
    (problem,) = preflight(read_config("i2v-tiny", overrides)).missing
    assert "pixels, not 32 x 64" in problem


# --------------------------------------------------------------------------- launch and time


def test_groups_that_the_processes_cannot_share_are_refused():
    message = r"groups=8 cannot be divided evenly over optimiser\.updates=2 times 8 processes"
    with pytest.raises(ValueError, match=message):
        preflight(read_config("t2i-tiny"), launch=Launch(8))


def test_the_launch_is_read_from_the_configuration_of_accelerate():
    assert read_launch(ACCELERATE / "ddp.yaml") == Launch(8, False)
    assert read_launch(ACCELERATE / "fsdp2.yaml") == Launch(8, True)
    assert str(Launch(8, True)) == "8 processes, sharded"


def test_time_follows_from_the_rate_of_the_planned_device(hub_cache):
    config = read_config("t2i-flux")
    text = preflight(config, launch=Launch(8, True), device_bytes=GPU, rate=6e14).text
    footprint = footprint_of(config, PIPELINES[config.generator.path].sizes)
    seconds = flops(config, footprint, processes=8) / 6e14 / 0.4
    hours = seconds * 300 * 8 / 3600
    assert f"{seconds:.3g} s per iteration, {hours:.3g} device hours for 300 iterations" in text
    assert "40% (assumed) of the 600 TFLOP/s of the planned device" in text


def test_the_command_plans_for_the_device_that_it_is_given(capsys):
    config = read_config("t2i-tiny", ["optimiser.updates=1"])
    launch = str(ACCELERATE / "ddp.yaml")
    assert run(config, launch=launch, gigabytes=0.5, teraflops=100) == 0
    printed = capsys.readouterr().out
    assert "Memory per process (8 processes)" in printed
    assert "of 450.0 MB (90% of the planned device)" in printed
    assert "100 TFLOP/s of the planned device" in printed
