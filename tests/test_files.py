"""Where checkpoints are found, and which files are refused."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bpgo import files
from bpgo.files import check_safetensors, resolve

examples = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, and another with two shipped checkpoints."""
    shipped = tmp_path / "shipped"
    for name in ("tiny-b", "tiny-a"):
        (shipped / name).mkdir(parents=True)
    monkeypatch.setattr(files, "SHIPPED", shipped)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


# ----------------------------------------------------------------------------------------- resolve


def test_a_path_that_exists_is_that_path(elsewhere):
    (elsewhere / "work" / "run" / "final").mkdir(parents=True)
    (elsewhere / "work" / "prompts.txt").write_text("a red circle\n")
    for path in ("run", "run/final", "prompts.txt", str(elsewhere), elsewhere / "work"):
        assert resolve(path) == Path(path)


def test_the_home_folder_is_expanded(elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", str(elsewhere))
    assert resolve("~/shipped") == elsewhere / "shipped"


def test_a_shipped_name_is_the_shipped_folder_unless_one_of_that_name_is_here(elsewhere):
    assert resolve("tiny-a") == elsewhere / "shipped" / "tiny-a"
    (elsewhere / "work" / "tiny-a").mkdir()
    assert resolve("tiny-a") == Path("tiny-a")


@pytest.mark.parametrize(
    "hub_id",
    [
        "black-forest-labs/FLUX.1-dev",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "openai/clip-vit-large-patch14",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "yuvalkirstain/PickScore_v1",
    ],
)
def test_the_names_of_published_models_are_hub_ids(elsewhere, hub_id):
    assert resolve(hub_id) == hub_id


@pytest.mark.parametrize(
    "name",
    [
        "tiny-c",
        "./owner/name",
        "/no/such",
        "/no",
        "~/no-such",
        "../name",
        "a/b/c",
        "prompts/mine.txt",
        "runs/weights.safetensors",
    ],
)
def test_a_name_that_can_be_none_of_these_is_refused_with_the_shipped_names(elsewhere, name):
    with pytest.raises(FileNotFoundError, match=r"tiny-a, tiny-b") as refusal:
        resolve(name)
    assert repr(name) in str(refusal.value)


def test_an_empty_name_is_not_the_working_folder(elsewhere):
    with pytest.raises(FileNotFoundError, match="tiny-a"):
        resolve("")


def test_without_shipped_checkpoints_the_refusal_says_so(elsewhere):
    shutil.rmtree(elsewhere / "shipped")
    with pytest.raises(FileNotFoundError, match=r"\(shipped: none\)"):
        resolve("tiny-a")


# ------------------------------------------------------------------------------------- safetensors


TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.zeros(0, np.float32),
    "c": np.ones(5, np.int64),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a good file."""
    place = tmp_path_factory.mktemp("good") / "model.safetensors"
    save_file(TENSORS, place, metadata={"format": "pt"})
    return place.read_bytes()


def test_good_files_pass(tmp_path, good):
    check_safetensors(tmp_path)  # a folder without any
    (tmp_path / "transformer" / "deep").mkdir(parents=True)
    (tmp_path / "transformer" / "deep" / "model.safetensors").write_bytes(good)
    save_file({}, tmp_path / "empty.safetensors")
    save_file({}, tmp_path / "metadata.safetensors", metadata={"format": "pt"})
    (tmp_path / "broken.bin").write_bytes(b"not looked at")
    check_safetensors(tmp_path)


@examples
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused_and_named(tmp_path, good, data):
    cut = data.draw(st.integers(0, len(good) - 1))
    (tmp_path / "model.safetensors").write_bytes(good[:cut])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        check_safetensors(tmp_path)


@examples
@given(extra=st.binary(min_size=1, max_size=50))
def test_a_file_with_something_behind_it_is_refused(tmp_path, good, extra):
    (tmp_path / "model.safetensors").write_bytes(good + extra)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        check_safetensors(tmp_path)


def is_empty_header(content):
    """Whether this is a safetensors file without tensors.

    That is a length, then that many bytes of an empty JSON object, or of one with metadata alone.
    """
    if len(content) < 10 or struct.unpack("<Q", content[:8])[0] != len(content) - 8:
        return False
    try:
        return set(json.loads(content[8:])) <= {"__metadata__"}
    except (ValueError, TypeError):
        return False


@examples
@given(content=st.binary(max_size=60))
def test_garbage_is_refused(tmp_path, content):
    if not is_empty_header(content):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            check_safetensors(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        "1",
        "[]",
        "null",
        '"text"',
        '{"a": 1}',
        '{"a": {}}',
        '{"a": {"data_offsets": 3}}',
        '{"a": {"data_offsets": [0, "x"]}}',
        "[" * 30,
    ],
)
def test_json_that_is_not_a_header_is_refused(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        check_safetensors(tmp_path)


def test_a_pointer_left_by_git_lfs_is_refused(tmp_path):
    pointer = (
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    )
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        check_safetensors(tmp_path)


def test_the_damaged_one_of_several_is_named(tmp_path, good):
    for i in (1, 2, 3):
        content = good[:-1] if i == 2 else good
        (tmp_path / f"model-0000{i}-of-00003.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="00002-of-00003"):
        check_safetensors(tmp_path)


def test_a_single_file_is_checked_too(tmp_path, good):
    """resolve may return a file."""
    file, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    file.write_bytes(good)
    bad.write_bytes(good[:-1])
    check_safetensors(file)
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        check_safetensors(bad)
