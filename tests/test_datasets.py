"""Prompts from datasets: saved folders, parquet files and the hub."""

import sys

import numpy as np
import pytest
from PIL import Image

from bpgo.prompt_files import read_prompts


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library `datasets`, if it is installed: offline, with its cache in tmp_path."""
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(found.config, "HF_HUB_OFFLINE", True)
    return found


@pytest.mark.parametrize("name", ["owner/name", "owner/name:train:caption", "saved", "saved:train"])
def test_without_the_library_the_command_that_installs_it_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match="To read it as a dataset: pip install datasets"
    ) as error:
        read_prompts(name)
    assert name.partition(":")[0] in str(error.value)


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "p.parquet").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"p\.parquet: pip install pyarrow"):
        read_prompts(str(tmp_path / "p.parquet"))


def test_more_than_a_split_and_a_column_is_refused():
    with pytest.raises(
        ValueError,
        match=r"owner/name:a:b:c is not a dataset: write name, name:split or name:split:column",
    ):
        read_prompts("owner/name:a:b:c")


def test_a_colon_in_a_file_name_is_part_of_it(tmp_path):
    (tmp_path / "12:30").mkdir()
    (tmp_path / "12:30" / "p.txt").write_text("a shape")
    assert read_prompts(str(tmp_path / "12:30" / "p.txt")) == ["a shape"]
    with pytest.raises(ValueError, match=r"12:30/p\.txt has no split 'test'; it has train"):
        read_prompts(str(tmp_path / "12:30" / "p.txt:test"))


def test_a_saved_folder_is_read_by_split_and_column(datasets, tmp_path):
    tables = {
        "train": datasets.Dataset.from_dict({"caption": ["a", "b"], "other": ["c", "d"]}),
        "test": datasets.Dataset.from_dict({"caption": ["e"], "other": ["f"]}),
    }
    place = str(tmp_path / "saved")
    datasets.DatasetDict(tables).save_to_disk(place)
    for tail, found in {
        "": ["a", "b"],
        ":test": ["e"],
        ":test:other": ["f"],
        "::other": ["c", "d"],
        ":train:": ["a", "b"],
    }.items():
        assert read_prompts(place + tail) == found
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test"):
        read_prompts(f"{place}:dev")
    with pytest.raises(
        ValueError, match="split test, has no column 'text'; it has 'caption', 'other'"
    ):
        read_prompts(f"{place}:test:text")


def test_the_only_split_is_taken_but_none_is_guessed_among_several(datasets, tmp_path):
    table, place = datasets.Dataset.from_dict({"prompt": ["a"]}), str(tmp_path / "saved")
    table.save_to_disk(place)
    assert read_prompts(place) == ["a"]
    for names in (["dev"], ["dev", "test"]):
        datasets.DatasetDict(dict.fromkeys(names, table)).save_to_disk(f"{place}-{len(names)}")
    assert read_prompts(f"{place}-1") == ["a"]
    with pytest.raises(ValueError, match="has no split 'train'; it has dev, test"):
        read_prompts(f"{place}-2")


@pytest.mark.parametrize(
    ("columns", "taken"),
    [
        ("prompt text caption", "prompt"),
        ("text other", "text"),
        ("caption other", "caption"),
        ("text caption", None),
        ("other", None),
    ],
)
def test_the_column_of_prompts_is_found_by_its_name(datasets, tmp_path, columns, taken):
    place = str(tmp_path / "p.parquet")
    datasets.Dataset.from_dict({name: [f"of {name}"] for name in columns.split()}).to_parquet(place)
    if taken:
        assert read_prompts(place) == read_prompts(f"{place}:train:{taken}") == [f"of {taken}"]
    else:
        with pytest.raises(
            ValueError,
            match=f"has no column 'prompt'; it has {', '.join(map(repr, columns.split()))}",
        ):
            read_prompts(place)


@pytest.mark.parametrize("kind", ["saved", "p.parquet"])
def test_images_of_a_dataset(datasets, tmp_path, kind):
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8))
        for seed in (0, 1)
    ]
    table = datasets.Dataset.from_dict(
        {"prompt": ["it moves", "it grows", "it"], "image": [*images, None]},
        datasets.Features({"prompt": datasets.Value("string"), "image": datasets.Image()}),
    )
    place = str(tmp_path / kind)
    table.to_parquet(place) if kind == "p.parquet" else table.save_to_disk(place)
    found = read_prompts(place)
    assert found == ["it moves", "it grows", "it"]
    assert [np.asarray(p.image).tolist() for p in found[:2]] == [
        np.asarray(p).tolist() for p in images
    ]
    assert found[2].image is None
    assert found[0].key != found[0] and found[2].key == "it"


def test_paths_of_images_start_from_the_folder_of_the_parquet_file(datasets, tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "one.png")
    place = str(tmp_path / "p.parquet")
    datasets.Dataset.from_dict({"prompt": ["it"], "image": ["one.png"]}).to_parquet(place)
    assert read_prompts(place)[0].image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": None}, "there is no 'prompt'"),
        (
            {"prompt": "it", "image": {"bytes": b"hello", "path": None}},
            "cannot be read as an image",
        ),
        ({"prompt": "it", "image": {"bytes": None, "path": "nowhere.png"}}, "there is no image"),
        ({"prompt": "it", "image": 3}, "cannot be read as an image"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(datasets, tmp_path, row, fault):
    place = str(tmp_path / "p.parquet")
    datasets.Dataset.from_list(
        [{"prompt": "a shape"} | dict.fromkeys(set(row) - {"prompt"}), row]
    ).to_parquet(place)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"p\.parquet, row 1: .*{fault}"):
        read_prompts(place)


def test_a_missing_or_damaged_or_empty_dataset_is_named(datasets, tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError,
        match=r"cannot read the dataset 'owner/nowhere': .*if it is gated.*hf auth login",
    ):
        read_prompts("owner/nowhere:train")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"damaged\.parquet cannot be read: Parquet"):
        read_prompts(str(damaged))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda _: {"train": datasets.Dataset.from_dict({"prompt": []})}
    )
    with pytest.raises(ValueError, match="the dataset owner/name, split train, has no prompts"):
        read_prompts("owner/name")


def test_a_hub_id_is_loaded_without_split_and_column(datasets, monkeypatch):
    found = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"prompt": ["a"]})})
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *arguments: asked.append(arguments) or found
    )
    assert read_prompts("owner/name.v2:train:prompt") == read_prompts("owner/name.v2") == ["a"]
    assert asked == [("owner/name.v2",)] * 2
