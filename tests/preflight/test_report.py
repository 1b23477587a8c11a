"""The report: what is missing, with its remedy, and the exit code."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bpgo.config import list_presets, read_config
from bpgo.files import SHIPPED
from bpgo.generators import load_generator
from bpgo.preflight import Launch, preflight, read_launch, report, run, sections
from bpgo.preflight.files import reward_files
from bpgo.preflight.flops import flops
from bpgo.preflight.footprints import footprint_of
from bpgo.preflight.published import PIPELINES
from bpgo.preflight.remedies import SHARDING

ACCELERATE = Path(__file__).parents[2] / "reproduce" / "accelerate"
GPU = 80 * 10**9


# -------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("preset", ["t2i-tiny", "t2v-tiny", "i2v-tiny", "t2i-digits"])
def test_nothing_is_missing_for_a_tiny_preset_and_no_weights_are_loaded(
    preset, hub_cache, capsys, monkeypatch
):
    register = torch.nn.Module.register_parameter

    def without_memory(module, name, parameter):
        assert parameter is None or parameter.is_meta, "a model has weights"
        register(module, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", without_memory)
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
    found = preflight(read_config("t2i-tiny", ["generator.path=someone/something"]))
    assert "someone/something is not here: run this again with --download" in found.missing[0]
    assert "Memory and time: not known" in found.text
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
    expected = "reward 'image_grid' has no published weights: set reward.path"
    assert expected in preflight(config).missing


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
        f"generator.lora_rank=32, or {SHARDING}",
    ),
    "frozen weights": (
        "i2v-wan2.2-a14b",
        ["sampling.micro_batch=1", "generator.dtype=bfloat16"],
        48 * 10**9,
        f"{SHARDING}, or generator.offload=true",
    ),
}


def too_much(found):
    (problem,) = [problem for problem in found.missing if "too much" in problem]
    return problem


@pytest.mark.parametrize("case", TOO_LITTLE)
def test_too_little_memory_names_the_setting_that_saves_most(case, hub_cache):
    preset, overrides, device, first = TOO_LITTLE[case]
    found = preflight(read_config(preset, overrides), device_bytes=device)
    assert f"too much. Try {first}" in too_much(found)


def choices(found):
    """The remedies of a report on too little memory."""
    return too_much(found).partition("Try ")[2].split(", or ")


def test_settings_that_are_in_force_are_not_proposed(hub_cache):
    config = read_config("t2v-wan2.1-1.3b-lowmem", ["sampling.micro_batch=1"])
    assert choices(preflight(config, device_bytes=10**9, rate=1e15)) == [
        "reward.device=cpu",
    ]


@pytest.mark.parametrize("preset", list_presets())
def test_every_remedy_is_an_override_of_the_preset(hub_cache, preset):
    """But for the way to start several processes. Each of them lowers what the device needs."""

    def needed(*overrides):
        text = preflight(read_config(preset, overrides), device_bytes=10**6, rate=1e15).text
        number, unit = text.partition("  needs ")[2].split()[:2]
        return float(number) * {"MB": 1, "GB": 1000}[unit]

    found = choices(preflight(read_config(preset), device_bytes=10**6, rate=1e15))
    assert found
    for remedy in found:
        if not remedy.startswith("accelerate launch"):
            assert needed(*remedy.split()) < needed(), remedy


@pytest.mark.parametrize("preset", list_presets())
def test_without_a_gpu_no_remedy_moves_things_to_the_cpu(hub_cache, monkeypatch, preset):
    monkeypatch.setattr(sections, "has_gpu", lambda: False)
    monkeypatch.setattr(sections, "device_memory", lambda: 10**6)
    found = choices(preflight(read_config(preset), rate=1e15))
    assert found
    assert not any("device" in remedy or "offload" in remedy for remedy in found)


def test_too_little_ram_is_reported_on_a_machine_with_a_gpu(hub_cache, monkeypatch):
    for module in (sections, report):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
    monkeypatch.setattr(sections, "device_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(sections, "ram", lambda: 32 * 10**9)
    found = preflight(read_config("t2v-wan2.1-1.3b-lowmem"), rate=1e15)
    assert "this machine's GPU" in found.text
    assert [problem for problem in found.missing if problem.startswith("memory")] == [
        "memory: 41.2 GB of RAM are needed, and this machine has 32.0 GB. Try "
        "evaluation.held_out.0.device=null evaluation.held_out.1.device=null "
        "evaluation.held_out.2.device=null, "
        "or generator.offload=false"
    ]


def test_without_a_gpu_offloading_changes_nothing(hub_cache, monkeypatch):
    """The parts that wait on the CPU and those in use there are the same."""
    monkeypatch.setattr(report, "has_gpu", lambda: False)
    for preset in ("t2v-tiny", "i2v-tiny"):
        texts = [
            preflight(read_config(preset, [f"generator.offload={offload}"]), rate=1e12).text
            for offload in ("false", "true")
        ]
        assert texts[0] == texts[1]
        assert "on the CPU" not in texts[0]


def test_encoded_prompts_that_do_not_fit_the_disk_are_reported(monkeypatch, tmp_path):
    """Several processes keep FLUX's 512 x 4096 bfloat16 numbers per prompt, 4.2 MB, on disk."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path))
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(1000)))
    overrides = [f"prompts={tmp_path / 'p.txt'}", "evaluation.prompts=null"]
    config, given = read_config("t2i-flux", overrides), dict(device_bytes=GPU, rate=1e15)
    found = preflight(config, launch=Launch(8, True), **given)
    stored = f"on disk in {tmp_path} ($BPGO_CACHE): 1000 encoded prompts, up to 4.2 GB"
    assert stored in found.text and "for the encoded prompts" not in found.text
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
    problem = (
        f"disk: {tmp_path} lacks 3.2 GB for the encoded prompts. "
        f"Set BPGO_CACHE to a folder on another disk"
    )
    assert problem in preflight(config, launch=Launch(8, True), **given).missing
    one_process = preflight(config, **given).text
    assert "$BPGO_CACHE" not in one_process, "one process keeps them in memory"


# ---------------------------------------------------------------------------- what is your own


def mine(pixels, prompts):
    return pixels.flatten(1).mean(1)


class Mine:
    def __init__(self, path):
        pytest.fail("it loads a reward")


class MyPolicy:
    def __init__(self, path):
        pytest.fail("it loads a policy")


def test_your_own_reward_is_not_counted(hub_cache):
    without = preflight(read_config("t2i-tiny"), device_bytes=GPU)
    config = read_config("t2i-tiny", [f"reward.name={__name__}:mine", "reward.path=null"])
    found = preflight(config, device_bytes=GPU)
    assert found.missing == []
    assert f"not counted, size not known: reward {__name__}:mine" in found.text
    assert "not counted, size" not in without.text
    with_path = preflight(read_config("t2i-tiny", [f"reward.name={__name__}:Mine"]))
    assert "tiny-reward" in with_path.text and "not counted, size" not in with_path.text


def test_the_memory_of_your_own_policy_is_not_counted(hub_cache):
    for path in ("tiny-flux", "anything at all"):
        overrides = [f"generator.policy={__name__}:MyPolicy", f"generator.path={path}"]
        found = preflight(read_config("t2i-tiny", overrides))
        assert f"not counted, because {__name__}:MyPolicy is your own policy" in found.text
        assert found.missing == []


def test_a_policy_of_the_package_may_be_named(hub_cache):
    named = preflight(read_config("t2i-tiny", ["generator.policy=FluxPipeline"]), rate=1e12)
    assert named.text == preflight(read_config("t2i-tiny"), rate=1e12).text


def test_a_pipeline_without_a_policy_is_reported(put):
    folder = put("someone/other", SHIPPED / "tiny-flux")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "OtherPipeline"))
    found = preflight(read_config("t2i-tiny", ["generator.path=someone/other"]))
    assert found.missing == [
        "someone/other is a OtherPipeline, for which there is no policy (there are policies for "
        "FluxPipeline, WanPipeline, WanImageToVideoPipeline): write one and name it in "
        "generator.policy"
    ]
    assert "the footprint of a OtherPipeline is not known" in found.text


# ------------------------------------------------------------------------------------ prompts


def test_adapters_to_start_from_are_counted_with_the_rank_of_their_file(hub_cache, tmp_path):
    policy = load_generator("tiny-flux")
    policy.add_lora(2, 7.0)
    policy.save(tmp_path / "adapters", lora=True)
    ranked = ["generator.lora_rank=2", "generator.lora_alpha=7"]
    overrides = ([f"generator.lora={tmp_path / 'adapters'}"], ranked, [])
    given, expected, whole = (
        preflight(read_config("t2i-tiny", each), rate=1e12).text for each in overrides
    )
    assert given == expected != whole


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
    overrides = ["generator.height=64", "evaluation.prompts=null", "evaluation.metrics=[]"]
    (problem,) = preflight(read_config("i2v-tiny", overrides)).missing
    assert "images must be 32 x 64 pixels" in problem


# --------------------------------------------------------------------------- launch and time


def test_groups_that_the_processes_cannot_share_are_reported(hub_cache):
    expected = "groups=8 cannot be divided evenly over optimiser.updates=2 times 8 processes"
    assert preflight(read_config("t2i-tiny"), launch=Launch(8)).missing == [expected]


def test_offloading_in_several_processes_is_reported(hub_cache):
    config = read_config("t2i-tiny", ["generator.offload=true"])
    (problem,) = preflight(config, launch=Launch(2)).missing
    assert problem.startswith("generator.offload supports a single process only")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{fsdp_version: 1}", "only version 2 of FSDP is supported"),
        ("{fsdp_cpu_ram_efficient_loading: false}", "only version 2 of FSDP is supported"),
        ("{fsdp_version: 2}", "would be loaded in the main process only"),
        (
            "{fsdp_version: 2, fsdp_cpu_ram_efficient_loading: true}",
            "would be loaded in the main process only",
        ),
    ],
)
def test_a_launch_that_training_refuses_is_refused(tmp_path, settings, message):
    """accelerate's own defaults are version 1 and loading in the main process only."""
    file = tmp_path / "launch.yaml"
    file.write_text(f"distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {settings}\n")
    with pytest.raises(ValueError, match=message):
        read_launch(file)
    file.write_text(file.read_text().replace("num_processes: 2", "num_processes: 1"))
    assert read_launch(file) == Launch(1, True), "one process does not shard"


@pytest.mark.parametrize("text", ["", "- 1", "num_processes: none of them", "num_processes: 0"])
def test_a_file_that_is_no_launch_is_refused_by_its_name(tmp_path, text):
    file = tmp_path / "launch.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"launch\.yaml"):
        read_launch(file)


def test_devices_are_those_of_this_machine_unless_another_one_is_planned(hub_cache):
    config = read_config("t2i-tiny", ["reward.device=cuda:63"])
    (problem,) = preflight(config, rate=1e12).missing
    assert problem.startswith("reward.device=cuda:63: this machine has ")
    assert preflight(config, device_bytes=GPU, rate=1e12).missing == []


def test_all_problems_are_listed_and_each_only_once(hub_cache):
    overrides = ["sampling.window=20", "objective.options.flor=1", "generator.frames=4"]
    overrides += [
        "groups=9",
        "optimiser.updates=3",
        "prompts=nowhere.txt",
        "evaluation.metrics=clips",
    ]
    missing = preflight(read_config("t2i-tiny", overrides), launch=Launch(2)).missing
    for part in ("window=20", "'flor'", "'frames'", "groups=9", "nowhere.txt", "clips world"):
        assert len([problem for problem in missing if part in problem]) == 1, part
    assert len(missing) == 6


def test_the_size_of_a_model_call_is_told(hub_cache):
    overrides = ["groups=1", "group_size=13", "optimiser.updates=1", "sampling.micro_batch=12"]
    text = preflight(read_config("t2i-tiny", overrides), rate=1e12).text
    assert "Samples per model call: 1 of the 13 of an update" in text
    assert "Warning: sampling.micro_batch=12, but a model call takes 1 of the 13 samples" in text
    plain = preflight(read_config("t2i-tiny"), rate=1e12).text
    assert "Samples per model call: 48 of the 48 of an update" in plain and "Warning" not in plain


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
