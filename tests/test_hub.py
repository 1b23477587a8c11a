"""Hub ids: what is said if one is absent or gated, and if a file in the cache is truncated."""

import shutil

import httpx
import pytest
import torch
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
REFUSALS = {  # what the hub says, and what the message adds to the id and the command
    "gated": (
        GatedRepoError("401 Client Error.\nmore", response=RESPONSE),
        "accept its terms on its page, then run `hf auth login`",
    ),
    "unknown": (
        RepositoryNotFoundError("401 Client Error.\nmore", response=RESPONSE),
        "check its name. If it is private, run `hf auth login`",
    ),
    "not here": (
        LocalEntryNotFoundError("cannot find the requested files in the local cache\nmore"),
        "",
    ),
}
NOT_HERE = "someone/thing is not in the local hub cache and could not be downloaded: "
COMMAND = "download it with `bpgo preflight PRESET --download`"


class Hub:
    """A hub that refuses everything with the error `refusal`, and its empty cache."""

    def __init__(self, cache):
        self.cache = cache
        self.refusal = REFUSALS["not here"][0]

    def refuse(self, *args, **kwargs):
        raise self.refusal

    def put(self, hub_id, source):
        """Put the files of a folder in the cache under an id, as links to blobs like the hub's."""
        place = self.cache / f"models--{hub_id.replace('/', '--')}"
        for name in ("refs", "blobs"):
            (place / name).mkdir(parents=True)
        (place / "refs" / "main").write_text("abc")
        snapshot = place / "snapshots" / "abc"
        files = [file for file in sorted(source.rglob("*")) if file.is_file()]
        for i, file in enumerate(files):
            blob, link = place / "blobs" / f"{i:03}", snapshot / file.relative_to(source)
            shutil.copy(file, blob)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        return snapshot


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.refuse)
    return hub


def truncate(link, left=0.5):
    """Truncate the blob that a link in the cache points to, and return the blob."""
    blob = link.resolve()
    blob.write_bytes(blob.read_bytes()[: int(left * blob.stat().st_size)])
    return blob


# --------------------------------------------------------------------------- absent and gated ids


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_generator_that_cannot_be_downloaded_is_named_with_the_remedy(hub, kind):
    hub.refusal, remedy = REFUSALS[kind]
    with pytest.raises(OSError, match=f"^generator: {NOT_HERE}") as error:
        load_generator("someone/thing")
    message = str(error.value)
    assert COMMAND in message
    assert remedy in message
    assert "\n" not in message
    assert ("hf auth login" in message) == (kind != "not here")


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("name", ["hpsv2", "image_reward", "video_clip_xl", "video_align"])
def test_a_reward_that_cannot_be_downloaded_is_named_with_the_remedy(hub, name, kind):
    hub.refusal, remedy = REFUSALS[kind]
    with pytest.raises(OSError, match=f"^reward '{name}': {NOT_HERE}") as error:
        load_reward(name, "someone/thing")
    assert COMMAND in str(error.value)
    assert remedy in str(error.value)


def test_so_is_one_that_transformers_downloads(hub, monkeypatch):
    def refuse(*args, **kwargs):
        reason = "We couldn't connect to 'https://huggingface.co' to load the files"
        raise OSError(reason) from hub.refusal

    monkeypatch.setattr("transformers.CLIPModel.from_pretrained", refuse)
    message = rf"reward 'pickscore': yuvalkirstain/PickScore_v1 is not in .*{COMMAND}.*couldn't con"
    with pytest.raises(OSError, match=message):
        load_reward("pickscore")


def test_so_is_one_in_a_process_of_its_own(quick_processes):
    config = RewardConfig(name="hpsv2", path="someone/thing", process=True)
    with pytest.raises(OSError, match=rf"reward 'hpsv2': {NOT_HERE}{COMMAND}"):
        load_rewards([config])


@pytest.mark.parametrize("kind", REFUSALS)
def test_the_command_line_says_so(hub, kind, any_precision, tmp_path, capsys):
    hub.refusal, remedy = REFUSALS[kind]
    assert main(["train", "t2i-flux", "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("bpgo train: generator: black-forest-labs/FLUX.1-dev is not in")
    assert COMMAND in message
    assert remedy in message
    overrides = [
        "generator.path=tiny-flux",
        "generator.height=32",
        "generator.width=32",
        "reward.process=false",
        "reward.path=someone/thing",
        "prompts=prompts/train.jsonl",
        "evaluation.prompts=null",
    ]
    assert main(["train", "t2i-flux", "--output", str(tmp_path / "other"), *overrides]) == 2
    message = capsys.readouterr().err
    assert f"bpgo train: reward 'hpsv2': {NOT_HERE}" in message
    assert COMMAND in message
    assert remedy in message


# --------------------------------------------------------------------- truncated files in the cache


def test_a_truncated_generator_is_missing_and_refused_by_file(hub, monkeypatch):
    folder = hub.put("someone/flux", SHIPPED / "tiny-flux")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, name: str(folder / name))
    (files,) = generator_files("someone/flux")
    assert cached_snapshot("someone/flux") == folder
    assert present(files)
    assert damage(files) is None
    blob = truncate(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    message = rf"\.safetensors is truncated or damaged .*: delete {blob} and download it again"
    with pytest.raises(ValueError, match=message):
        check_weights(folder)
    with pytest.raises(ValueError, match=message):
        load_generator("someone/flux")
    assert not present(files)
    assert str(blob) in damage(files)
    blob.unlink()
    assert not present(files)  # the hub downloads it now, because the link leads nowhere


def test_a_truncated_reward_is_missing_and_refused_by_file(hub):
    folder = hub.put("openai/clip-vit-large-patch14", SHIPPED / "tiny-reward")
    blob = truncate(folder / "model.safetensors")
    (files,) = reward_files("clip", None)
    assert not present(files)
    assert str(blob) in damage(files)
    message = rf"model\.safetensors is truncated or damaged .*: delete {blob} and download it again"
    with pytest.raises(ValueError, match=message):
        load_reward("clip")


ZIPPED = {
    "hpsv2": "HPS_v2.1_compressed.pt",
    "video_clip_xl": "VideoCLIP-XL.bin",
    "video_align": "checkpoint-11352/model.pth",
    "image_reward": "ImageReward.pt",
}


@pytest.mark.parametrize("name", ZIPPED)
def test_a_truncated_pt_is_missing_and_refused_by_file(hub, name, tmp_path):
    made = tmp_path / "made" / ZIPPED[name]
    made.parent.mkdir(parents=True)
    torch.save({"weight": torch.rand(1000)}, made)
    files = reward_files(name, None)[0]
    folder = hub.put(files.source, tmp_path / "made")
    assert present(files)
    blob = truncate(folder / ZIPPED[name], 0.9)
    assert not present(files)
    assert str(blob) in damage(files)
    message = rf"{made.name} is damaged or incomplete \(\d+ bytes\): delete {blob} and download it"
    with pytest.raises(ValueError, match=message):
        load_reward(name)


def test_an_older_pt_that_is_not_a_zip_is_not_refused(tmp_path):
    older, other = tmp_path / "pytorch_model.bin", tmp_path / "other.pth"
    torch.save({"weight": torch.rand(1000)}, older, _use_new_zipfile_serialization=False)
    torch.save({"weight": torch.rand(1000)}, other)
    check_weights(tmp_path)
    check_weights(older)
    other.write_bytes(other.read_bytes()[:-1])
    message = r"other\.pth is damaged or incomplete \(\d+ bytes\): download it again"
    with pytest.raises(ValueError, match=message):
        check_weights(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_truncated_folder_of_your_own_is_missing_too(tmp_path, left):
    folder = shutil.copytree(SHIPPED / "tiny-reward", tmp_path / "mine")
    (files,) = reward_files("clip", str(folder))
    full_size = reward_bytes("clip", str(folder))
    assert present(files)
    assert full_size > 0
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    assert not present(files)
    assert "model.safetensors is truncated" in damage(files)
    assert reward_bytes("clip", str(folder)) in (None, full_size)
