"""Where checkpoints are found, which files are refused, and that no failure leaves half a file."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bpgo import files
from bpgo.files import check_safetensors, resolve, write_atomic

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


# ------------------------------------------------------------------------------------ resolve


def test_a_path_that_exists_is_that_path(elsewhere):
    (elsewhere / "work" / "run" / "final").mkdir(parents=True)
    (elsewhere / "work" / "prompts.txt").write_text("a red circle\n")
    for path in ("run", "run/final", "prompts.txt", str(elsewhere), elsewhere / "work"):
        assert resolve(path) == Path(path)
    assert resolve(elsewhere / "work" / "prompts.txt").is_file()


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
def test_what_can_be_none_of_these_is_refused_with_the_names_that_are_shipped(elsewhere, name):
    with pytest.raises(FileNotFoundError, match=r"tiny-a, tiny-b") as refusal:
        resolve(name)
    assert repr(name) in str(refusal.value)


def test_an_empty_name_is_not_the_working_folder(elsewhere):
    with pytest.raises(FileNotFoundError, match="tiny-a"):
        resolve("")


def test_without_shipped_checkpoints_the_refusal_says_so(elsewhere):
    shutil.rmtree(elsewhere / "shipped")
    with pytest.raises(FileNotFoundError, match="none"):
        resolve("tiny-a")


# ------------------------------------------------------------------------------------ safetensors


TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.zeros(0, np.float32),
    "c": np.ones(5, np.int64),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good file."""
    place = tmp_path_factory.mktemp("good") / "model.safetensors"
    save_file(TENSORS, place, metadata={"format": "pt"})
    return place.read_bytes()


def test_good_files_pass(tmp_path, whole):
    check_safetensors(tmp_path)  # a folder without any
    (tmp_path / "transformer" / "deep").mkdir(parents=True)
    (tmp_path / "transformer" / "deep" / "model.safetensors").write_bytes(whole)
    save_file({}, tmp_path / "empty.safetensors")
    save_file({}, tmp_path / "metadata.safetensors", metadata={"format": "pt"})
    (tmp_path / "broken.bin").write_bytes(b"not looked at")
    check_safetensors(tmp_path)


@examples
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused_and_named(tmp_path, whole, data):
    cut = data.draw(st.integers(0, len(whole) - 1))
    (tmp_path / "model.safetensors").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        check_safetensors(tmp_path)


@examples
@given(extra=st.binary(min_size=1, max_size=50))
def test_a_file_with_something_behind_it_is_refused(tmp_path, whole, extra):
    (tmp_path / "model.safetensors").write_bytes(whole + extra)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        check_safetensors(tmp_path)


def is_empty_header(content):
    """A safetensors file of no tensors: a length, then that many bytes of an empty JSON object, or of metadata alone."""
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
def test_json_that_is_no_header_is_refused(tmp_path, header):
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


def test_the_damaged_one_of_several_is_named(tmp_path, whole):
    for i in (1, 2, 3):
        content = whole[:-1] if i == 2 else whole
        (tmp_path / f"model-0000{i}-of-00003.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="00002-of-00003"):
        check_safetensors(tmp_path)


def test_a_single_file_is_checked_too(tmp_path, whole):
    """resolve may return a file."""
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    good.write_bytes(whole)
    bad.write_bytes(whole[:-1])
    check_safetensors(good)
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        check_safetensors(bad)


# ------------------------------------------------------------------------------------ writing


def test_text_and_bytes_are_written_and_replaced_with_nothing_left_beside_them(tmp_path):
    place = tmp_path / "state.json"
    for content in ("Grüße × 2\n", b"\x00\xff", ""):
        write_atomic(place, content)
        assert place.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert os.listdir(tmp_path) == ["state.json"]


def test_what_an_earlier_kill_left_behind_is_overwritten(tmp_path):
    (tmp_path / f".state.json.{os.getpid()}.partial").write_text("half of an older, longer file")
    write_atomic(tmp_path / "state.json", "new")
    assert (tmp_path / "state.json").read_text() == "new" and os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_on_an_error_the_old_file_stays_alone(tmp_path, monkeypatch, fails):
    place = tmp_path / "state.json"
    place.write_text("old")

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, fails, fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(place, "new")
    assert place.read_text() == "old" and os.listdir(tmp_path) == ["state.json"]


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_atomic(tmp_path / "nowhere" / "state.json", "new")


LIMITED = """
import resource, sys
from pathlib import Path
from bpgo.files import write_atomic

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(Path(sys.argv[1]), b"x" * 5000)
except OSError as error:
    print("refused:", error.strerror)
"""


@pytest.mark.skipif(not sys.platform.startswith(("linux", "darwin")), reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("old", [None, "old"])
def test_a_write_that_the_disk_refuses_halfway_keeps_the_old_file(tmp_path, old):
    place = tmp_path / "state.bin"
    if old:
        place.write_text(old)
    root = Path(files.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, place],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.stdout.startswith("refused:"), done.stderr
    assert os.listdir(tmp_path) == (["state.bin"] if old else [])
    assert not old or place.read_text() == old


ENDLESS = """
import sys
from pathlib import Path
from bpgo.files import write_atomic

print("writing", flush=True)
while True:
    write_atomic(Path(sys.argv[1]), sys.argv[2][:1] * 500_000)
    write_atomic(Path(sys.argv[1]), sys.argv[2][1:] * 500_000)
"""


def test_a_reader_sees_a_whole_file_at_any_moment_and_so_does_one_after_a_kill(tmp_path):
    place = tmp_path / "state.txt"
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).resolve().parents[1])}
    writer = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, place, "ab"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert writer.stdout.readline() == "writing\n"
        while not place.exists():
            assert writer.poll() is None
        seen = {place.read_text() for _ in range(50)}
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert (seen | {place.read_text()}) <= {"a" * 500_000, "b" * 500_000}
