"""Files and folders are complete or not there, whatever happens while they are written."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from bpgo import files
from bpgo.files import atomic_folder, write_atomic
from tests import small_runs as runs

ROOT = Path(files.__file__).resolve().parents[1]


def run_python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def no_space(*args):
    raise OSError("no space left on device")


# ------------------------------------------------------------------------------------------- files


def test_text_and_bytes_are_written_and_replaced_with_nothing_left_beside_them(tmp_path):
    place = tmp_path / "state.json"
    for content in ("Grüße × 2\n", b"\x00\xff", ""):
        write_atomic(place, content)
        assert place.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert os.listdir(tmp_path) == ["state.json"]


def test_what_an_earlier_kill_left_behind_is_overwritten(tmp_path):
    (tmp_path / f".state.json.{os.getpid()}.partial").write_text("half of an older, longer file")
    write_atomic(tmp_path / "state.json", "new")
    assert (tmp_path / "state.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_on_an_error_the_old_file_stays_alone(tmp_path, monkeypatch, fails):
    place = tmp_path / "state.json"
    place.write_text("old")
    monkeypatch.setattr(files.os, fails, no_space)
    with pytest.raises(OSError, match="no space"):
        write_atomic(place, "new")
    assert place.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.json"]


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
    if old is not None:
        place.write_text(old)
    done = run_python(LIMITED, place)
    assert done.stdout.startswith("refused:"), done.stderr
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == (
        {} if old is None else {"state.bin": old}
    )


ENDLESS = """
import sys
from pathlib import Path
from bpgo.files import write_atomic

print("writing", flush=True)
while True:
    write_atomic(Path(sys.argv[1]), sys.argv[2][:1] * 500_000)
    write_atomic(Path(sys.argv[1]), sys.argv[2][1:] * 500_000)
"""


def test_a_reader_sees_a_complete_file_at_any_moment_and_so_does_one_after_a_kill(tmp_path):
    place = tmp_path / "state.txt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ENDLESS, place, "ab"]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
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


# ----------------------------------------------------------------------------------------- folders


def write_folder(folder, text):
    """Write two files, one of them in a folder within."""
    with atomic_folder(folder) as partial:
        (partial / "a.txt").write_text(text)
        (partial / "inner").mkdir()
        (partial / "inner" / "b.txt").write_text(text)


def tree(folder):
    """The text of every file below a folder, hidden ones included, by relative path."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            found[str(file.relative_to(folder))] = file.read_text()
    return found


def complete(text):
    return {"final/a.txt": text, "final/inner/b.txt": text}


def test_a_folder_is_written_and_replaced_with_nothing_left_beside_it(tmp_path):
    final = tmp_path / "final"
    write_folder(final, "old")
    (final / "only in the old one.txt").write_text("")
    write_folder(str(final), "new")
    assert tree(tmp_path) == complete("new")
    assert os.listdir(tmp_path) == ["final"]


def test_it_is_written_under_another_name_beside_the_old_one(tmp_path):
    final = tmp_path / "final"
    write_folder(final, "old")
    with atomic_folder(final) as partial:
        assert partial == tmp_path / ".final.partial"
        assert list(partial.iterdir()) == []
        (partial / "a.txt").write_text("new")
        assert (final / "a.txt").read_text() == "old"
    assert tree(tmp_path) == {"final/a.txt": "new"}


@pytest.fixture
def umask():
    """Set the umask until the end of the test."""
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


def mode(place):
    return stat.S_IMODE(place.stat().st_mode)


@pytest.mark.parametrize(
    ("mask", "of_files", "of_folders"),
    [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)],
)
def test_everything_in_a_folder_has_the_rights_that_the_umask_allows(
    tmp_path, umask, mask, of_files, of_folders
):
    umask(mask)
    with atomic_folder(tmp_path / "final") as partial:
        save_file({"x": torch.zeros(2)}, partial / "model.safetensors")
        (partial / "inner").mkdir(mode=0o700)
        (partial / "inner" / "private.txt").touch(mode=0o600)
    write_atomic(tmp_path / "state.json", "{}")
    assert mode(tmp_path / "final") == mode(tmp_path / "final" / "inner") == of_folders
    files_written = ["final/model.safetensors", "final/inner/private.txt", "state.json"]
    assert {name: mode(tmp_path / name) for name in files_written} == dict.fromkeys(
        files_written, of_files
    )


def test_the_target_of_a_link_and_the_group_of_a_folder_stay_as_they_are(tmp_path, umask):
    umask(0o022)
    secret = tmp_path / "secret.txt"
    secret.touch(mode=0o600)
    (tmp_path / "secrets").mkdir(mode=0o700)
    with atomic_folder(tmp_path / "final") as partial:
        (partial / "link").symlink_to(secret)
        (partial / "links").symlink_to(tmp_path / "secrets")
        (partial / "dangling").symlink_to(tmp_path / "nowhere")
        (partial / "shared").mkdir()
        (partial / "shared").chmod(0o2700)  # new files get the group of the folder
    assert mode(secret) == 0o600
    assert mode(tmp_path / "secrets") == 0o700
    assert mode(tmp_path / "final" / "shared") == 0o2755


def test_parents_are_created(tmp_path):
    write_folder(tmp_path / "run" / "of" / "mine" / "final", "new")
    assert tree(tmp_path / "run" / "of" / "mine") == complete("new")


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_on_an_error_the_old_folder_stays_alone(tmp_path, old, error):
    if old:
        write_folder(tmp_path / "final", "old")
    with pytest.raises(error), atomic_folder(tmp_path / "final") as partial:
        (partial / "a.txt").write_text("half")
        raise error
    assert tree(tmp_path) == (complete("old") if old else {})
    assert os.listdir(tmp_path) == (["final"] if old else [])


@pytest.mark.parametrize(("owner", "name"), [(files.os, "fsync"), (Path, "mkdir")])
def test_an_error_of_the_disk_keeps_the_old_folder(tmp_path, monkeypatch, owner, name):
    write_folder(tmp_path / "final", "old")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *args, **named: no_space())
        with pytest.raises(OSError, match="no space"):
            write_folder(tmp_path / "final", "new")
    assert tree(tmp_path) == complete("old")
    assert os.listdir(tmp_path) == ["final"]


@pytest.mark.parametrize("number", [1, 2])
def test_an_error_of_a_rename_keeps_the_old_folder(tmp_path, monkeypatch, number):
    """The old folder is renamed first, then the new one."""
    write_folder(tmp_path / "final", "old")
    rename, calls = Path.rename, []

    def failing(self, target):
        calls.append(self.name)
        if len(calls) == number:
            no_space()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        write_folder(tmp_path / "final", "new")
    assert calls[:2] == ["final", ".final.partial"][:number]
    assert tree(tmp_path) == complete("old")
    assert os.listdir(tmp_path) == ["final"]


def test_an_error_of_safetensors_is_an_oserror(tmp_path):
    write_folder(tmp_path / "final", "old")
    message = f"^cannot write {tmp_path / 'final'}: No space left on device$"
    with pytest.raises(OSError, match=message) as error, atomic_folder(tmp_path / "final"):
        raise SafetensorError("No space left on device")
    assert isinstance(error.value.__cause__, SafetensorError)
    assert tree(tmp_path) == complete("old")


def test_every_file_is_flushed_to_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def noted(number):
        flushed.append(Path(os.readlink(f"/proc/self/fd/{number}")).relative_to(tmp_path))
        assert not (tmp_path / "final").exists()
        fsync(number)

    monkeypatch.setattr(files.os, "fsync", noted)
    write_folder(tmp_path / "final", "new")
    partial = Path(".final.partial")
    assert flushed == [partial / "a.txt", partial / "inner" / "b.txt"]


# ------------------------------------------------------------------------------------------- kills


def killed(folder, *disturbances):
    """Write a folder in another process that is disturbed; it must be killed."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_write, args=(folder, disturbances))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def _write(folder, disturbances):
    for disturb in disturbances:
        disturb()
    write_folder(folder, "new")


@pytest.mark.parametrize("moment", [("fsync", ".final.partial"), ("rename", "final")])
@pytest.mark.parametrize("old", [True, False])
def test_a_kill_leaves_the_old_folder_and_the_next_write_cleans_up(tmp_path, moment, old):
    """Before a file is flushed, and just before the first rename."""
    final = tmp_path / "final"
    if old:
        write_folder(final, "old")
    killed(final, partial(runs.kill_before, *moment))
    assert tree(final) == ({"a.txt": "old", "inner/b.txt": "old"} if old else {})
    write_folder(final, "newer")
    assert tree(tmp_path) == complete("newer")
    assert os.listdir(tmp_path) == ["final"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    """The next write puts the old folder back before it begins."""
    final = tmp_path / "final"
    write_folder(final, "old")
    killed(final, partial(runs.kill_before, "rename", ".final.partial"))
    assert not final.exists()
    with pytest.raises(ValueError, match="refused"), atomic_folder(final):
        raise ValueError("refused")
    assert tree(tmp_path) == complete("old")
    assert os.listdir(tmp_path) == ["final"]


def test_a_kill_before_the_old_folder_is_deleted_keeps_the_new_one(tmp_path):
    final = tmp_path / "final"
    write_folder(final, "new")
    (tmp_path / ".final.previous").mkdir()
    (tmp_path / ".final.previous" / "a.txt").write_text("half of the old one")
    write_folder(final, "newer")
    assert tree(tmp_path) == complete("newer")
    assert os.listdir(tmp_path) == ["final"]
