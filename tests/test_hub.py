"""Hub ids: what is said when one is absent or gated, and when a file in the cache is truncated."""

import shutil

import httpx
import huggingface_hub
import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from bpgo.__main__ import main
from bpgo.config import RewardConfig
from bpgo.files import SHIPPED, cached_snapshot, check_weights
from bpgo.generators import load_generator
from bpgo.preflight.files import damage, generator_files, present, reward_files
from bpgo.preflight.sizes import reward_bytes
from bpgo.rewards import load_reward, load_rewards

RESPONSE = httpx.Response(401, request=httpx.Request("GET", "https://huggingface.co/someone/thing"))
REFUSALS = {  # what the hub says: what the user is told beside the id and the command
    "gated": (
        GatedRepoError("401 Client Error.\nmore", response=RESPONSE),
        "accept its terms on its page, then `hf auth login`",
    ),
    "unknown": (
        RepositoryNotFoundError("401 Client Error.\nmore", response=RESPONSE),
        "is its name right? If so, and it is private",
    ),
    "not here": (
        LocalEntryNotFoundError("cannot find the requested files in the local cache\nmore"),
        "",
    ),
}
COMMAND = "python -m bpgo preflight PRESET --download"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache, and a hub that refuses everything with the error that is set as its `refusal`."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    class Hub:
        cache, refusal = tmp_path / "hub", REFUSALS["not here"][0]

    def refuse(*args, **kwargs):
        raise Hub.refusal

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    return Hub


def put(hub, hub_id, source):
    """Have the files of a folder in the cache under an id, as links to blobs, which is how the hub has them."""
    place = hub.cache / f"models--{hub_id.replace('/', '--')}"
    for name in ("refs", "blobs"):
        (place / name).mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    folder = place / "snapshots" / "abc"
    for i, file in enumerate(f for f in sorted(source.rglob("*")) if f.is_file()):
        link = folder / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / "blobs" / f"{i:03}")
        link.symlink_to(place / "blobs" / f"{i:03}")
    return folder


def cut(link, left=0.5):
    """Truncate the blob that a link in the cache points to; returns the blob."""
    blob = link.resolve()
    blob.write_bytes(blob.read_bytes()[: int(left * blob.stat().st_size)])
    return blob


# ------------------------------------------------------------------------------------------------ absent and gated ids


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_generator_that_cannot_be_fetched_is_named_with_the_remedy(hub, kind):
    hub.refusal, said = REFUSALS[kind]
    with pytest.raises(
        OSError,
        match="generator: someone/thing is neither in the hub's cache here nor could it be fetched",
    ) as error:
        load_generator("someone/thing")
    assert COMMAND in str(error.value) and said in str(error.value) and "\n" not in str(error.value)
    assert ("hf auth login" in str(error.value)) == (kind != "not here")


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("name", ["hpsv2", "image_reward", "video_clip_xl", "video_align"])
def test_a_reward_that_cannot_be_fetched_is_named_with_the_remedy(hub, name, kind):
    hub.refusal, said = REFUSALS[kind]
    with pytest.raises(
        OSError, match=rf"reward '{name}': someone/thing is neither in the hub's cache"
    ) as error:
        load_reward(name, "someone/thing")
    assert COMMAND in str(error.value) and said in str(error.value)


def test_so_is_one_that_transformers_fetches_and_one_in_a_process_of_its_own(hub, monkeypatch):
    import transformers

    def refuse(*args, **kwargs):
        raise OSError(
            "We couldn't connect to 'https://huggingface.co' to load the files"
        ) from hub.refusal

    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", refuse)
    with pytest.raises(
        OSError,
        match=rf"reward 'pickscore': yuvalkirstain/PickScore_v1 is neither .*{COMMAND}.*couldn't connect",
    ):
        load_reward("pickscore")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=rf"reward 'hpsv2': someone/thing is neither .*{COMMAND}"):
        load_rewards([RewardConfig(name="hpsv2", path="someone/thing", process=True)])


@pytest.fixture
def any_precision():
    """accelerate keeps the first precision that a process trains in."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("kind", REFUSALS)
def test_the_command_line_says_so(hub, kind, any_precision, tmp_path, capsys):
    hub.refusal, said = REFUSALS[kind]
    assert main(["train", "t2i-flux", "--output", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert (
        told.startswith("bpgo train: generator: black-forest-labs/FLUX.1-dev is neither")
        and COMMAND in told
        and said in told
    )
    tiny = [
        "generator.path=tiny-flux",
        "generator.height=32",
        "generator.width=32",
        "reward.process=false",
        "reward.path=someone/thing",
    ]
    words = ["prompts=prompts/train.jsonl", "evaluation.prompts=null"]
    assert main(["train", "t2i-flux", "--output", str(tmp_path / "other"), *tiny, *words]) == 2
    told = capsys.readouterr().err
    assert (
        "bpgo train: reward 'hpsv2': someone/thing is neither" in told
        and COMMAND in told
        and said in told
    )


# --------------------------------------------------------------------------------------------- truncated files in the cache


def test_a_truncated_generator_in_the_cache_is_missing_and_refused_by_file(hub, monkeypatch):
    folder = put(hub, "someone/flux", SHIPPED / "tiny-flux")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda hub_id, name: str(folder / name))
    (files,) = generator_files("someone/flux")
    assert cached_snapshot("someone/flux") == folder and present(files) and damage(files) is None
    blob = cut(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    for say in (lambda: load_generator("someone/flux"), lambda: check_weights(folder)):
        with pytest.raises(
            ValueError,
            match=rf"\.safetensors is truncated or damaged .*: delete {blob} and download it again",
        ):
            say()
    assert not present(files) and str(blob) in damage(files)
    blob.unlink()
    assert not present(files)  # and now the hub will fetch it, for the link leads nowhere


def test_a_truncated_reward_in_the_cache_is_missing_and_refused_by_file(hub):
    blob = cut(
        put(hub, "openai/clip-vit-large-patch14", SHIPPED / "tiny-reward") / "model.safetensors"
    )
    (files,) = reward_files("clip", None)
    assert not present(files) and str(blob) in damage(files)
    with pytest.raises(
        ValueError,
        match=rf"model\.safetensors is truncated or damaged .*: delete {blob} and download it again",
    ):
        load_reward("clip")


ZIPPED = {
    "hpsv2": "HPS_v2.1_compressed.pt",
    "video_clip_xl": "VideoCLIP-XL.bin",
    "video_align": "checkpoint-11352/model.pth",
    "image_reward": "ImageReward.pt",
}


@pytest.mark.parametrize("name", ZIPPED)
def test_a_truncated_pt_in_the_cache_is_missing_and_refused_by_file(hub, name, tmp_path):
    file = tmp_path / "made" / ZIPPED[name]
    file.parent.mkdir(parents=True)
    torch.save({"weight": torch.rand(1000)}, file)
    files = reward_files(name, None)[0]
    folder = put(hub, files.source, tmp_path / "made")
    assert present(files)
    blob = cut(folder / ZIPPED[name], 0.9)
    assert not present(files) and str(blob) in damage(files)
    with pytest.raises(
        ValueError,
        match=rf"{file.name} is damaged, or not whole \(\d+ bytes\): delete {blob} and download it again",
    ):
        load_reward(name)


def test_an_older_pt_that_is_no_zip_is_not_refused(tmp_path):
    torch.save(
        {"weight": torch.rand(1000)},
        tmp_path / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    torch.save({"weight": torch.rand(1000)}, tmp_path / "other.pth")
    check_weights(tmp_path)
    check_weights(tmp_path / "pytorch_model.bin")
    (tmp_path / "other.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"other\.pth is damaged, or not whole \(\d+ bytes\): download it again"
    ):
        check_weights(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_truncated_folder_of_one_s_own_is_missing_too(tmp_path, left):
    folder = shutil.copytree(SHIPPED / "tiny-reward", tmp_path / "mine")
    (files,) = reward_files("clip", str(folder))
    full_size = reward_bytes("clip", str(folder))
    assert present(files) and full_size > 0
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    assert not present(files) and "model.safetensors is truncated" in damage(files)
    assert reward_bytes("clip", str(folder)) in (None, full_size)
