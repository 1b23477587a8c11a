"""A hub cache that starts empty, and a hub that must not be asked unless a test allows it."""

import shutil

import huggingface_hub
import huggingface_hub.constants
import pytest


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache. A download fails the test."""

    def refuse(*args, **kwargs):
        pytest.fail("it downloads without being told to")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    return tmp_path / "hub"


@pytest.fixture
def put(hub_cache):
    """Copies a folder into the hub cache under a hub id, and returns its place there."""

    def copy(hub_id, source):
        place = hub_cache / f"models--{hub_id.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("abc")
        return shutil.copytree(source, place / "snapshots" / "abc")

    return copy
