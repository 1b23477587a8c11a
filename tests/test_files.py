"""Where checkpoints are found, and which files are refused."""

import ast
import json
import os
import pwd
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
from bpgo.analysis.runs import Run, read_run
from bpgo.config import read_config
from bpgo.files import check_safetensors, expand, resolve
from bpgo.records import read_record, read_records, record
from bpgo.trainer import Trainer

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


# ------------------------------------------------------------------------------------------ expand


def test_a_home_folder_is_expanded_and_anything_else_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~") == tmp_path
    assert expand("~/runs/a") == expand(Path("~/runs/a")) == tmp_path / "runs" / "a"
    assert expand("~root") == Path(pwd.getpwnam("root").pw_dir)
    for path in ("runs/a", "/runs/~a", "runs/~", "$HOME/a", "runs/a b", "runs/ä 猫"):
        assert expand(path) == Path(path)


def test_a_folder_whose_name_starts_with_a_tilde_can_be_written(elsewhere):
    place = expand("./~mine")
    assert place == elsewhere / "work" / "~mine"
    assert expand(place) == place


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "'' is not a path"),
        ("  ", "'  ' is not a path"),
        ("runs/a ", "starts or ends with a space"),
        (" runs/a", "starts or ends with a space"),
        ("runs/a\n", "contains a line break"),
        ("runs\t/a", "contains a line break or another control character"),
        ("runs/\0a", "contains a line break or another control character"),
        ("~nobody-here/runs", "there is no home folder for ~nobody-here"),
    ],
)
def test_a_path_that_nobody_means_is_refused(path, says):
    with pytest.raises(ValueError, match=says):
        expand(path)
    if path:
        with pytest.raises(ValueError, match=says):
            resolve(path)


def test_records_and_logs_are_found_below_the_home_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    record("mine", {"a": 1}, output="~/records")
    assert read_record("~/records/mine.json")["values"] == {"a": 1}
    assert [found["name"] for found in read_records("~/records")] == ["mine"]
    assert not (tmp_path / "~").exists()
    (tmp_path / "run").mkdir()
    for name in Run._fields:
        (tmp_path / "run" / f"{name}.jsonl").write_text('{"iteration": 1}\n')
    assert read_run("~/run").metrics == [{"iteration": 1}]


def test_the_trainer_expands_its_folder():
    with pytest.raises(ValueError, match="there is no home folder for ~nobody-here"):
        Trainer(read_config("t2i-tiny"), "~nobody-here/x")


# ---------------------------------------------------------------------------------------- encoding


def without_encoding(file):
    """The lines of a source file that read or write text in the locale's encoding."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        of_path = isinstance(function, ast.Attribute) and name in ("read_text", "write_text")
        opens = name == "open" and ast.unparse(function) not in LIBRARY_OPENS
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        if of_path or (opens and not any("b" in str(mode) for mode in modes)):
            yield f"{file}:{node.lineno}"


LIBRARY_OPENS = ("os.open", "Image.open", "av.open")


def test_text_is_read_and_written_as_utf_8():
    root = Path(files.__file__).parent.parent
    sources = [*root.glob("bpgo/**/*.py"), *root.glob("reproduce/**/*.py")]
    assert len(sources) > 50
    assert [line for file in sources for line in without_encoding(file)] == []


def test_the_locale_does_not_matter(tmp_path):
    """Presets, prompts and logs with other characters in the locale C, whose encoding is ASCII."""
    prompt = "ein Fuchs 狐 \N{FOX FACE}"
    (tmp_path / "prompts.txt").write_text(f"{prompt}\n", encoding="utf-8")
    preset = (
        f"generator: {{path: tiny-flux, negative_prompt: '{prompt}'}}\nreward: {{name: clip}}\n"
    )
    (tmp_path / "a.yaml").write_text(f"{preset}prompts: prompts.txt\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text(f"{preset}größe: 3\n", encoding="utf-8")
    script = """if True:
        import locale, sys
        from bpgo.__main__ import main
        from bpgo.config import read_config
        from bpgo.files import read_log, write_atomic
        from bpgo.logs import append_row
        from bpgo.prompt_files import read_prompts
        from pathlib import Path
        assert locale.getencoding() != "UTF-8"
        config = read_config("a.yaml")
        assert read_prompts(config.prompts) == [config.generator.negative_prompt]
        append_row(Path(), "metrics", {"prompt": config.generator.negative_prompt})
        assert read_log("metrics.jsonl") == [{"prompt": config.generator.negative_prompt}]
        print(config.generator.negative_prompt.encode().hex())
        sys.exit(main(["bench", "b.yaml"]))
    """
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = os.environ | settings | {"PYTHONPATH": str(Path(files.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert bytes.fromhex(done.stdout).decode() == prompt
    assert (done.returncode, done.stderr.count("\n")) == (2, 2)
    assert "unknown setting 'gr\\xf6\\xdfe'" in done.stderr


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
