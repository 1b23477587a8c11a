"""The shipped graded prompts for real models, what the analysis makes of them, and prompts from datasets."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from bpgo.analysis import runs
from bpgo.files import SHIPPED
from bpgo.prompts import images_of, read_prompts

NAME = "prompts/graded.jsonl"
LEVELS = (0.0, 0.25, 0.5, 1.0)
ROWS = [json.loads(line) for line in (SHIPPED / NAME).read_bytes().decode("ascii").splitlines()]
CHAINS = {
    (r["subject"], r["paraphrase"]): [
        s["prompt"]
        for s in ROWS
        if (s["subject"], s["paraphrase"]) == (r["subject"], r["paraphrase"])
    ]
    for r in ROWS
}
FUNCTION_WORDS = set(
    "a about above across along amid among an and around as at away before behind beneath beside between beyond by down "
    "for from her his in inside into is it its of off on one onto or out over s that the their them they this through to "
    "towards under up upon we where while who with".split()
)


def content(prompt):
    return set(re.findall(r"[a-z]+", prompt.lower())) - FUNCTION_WORDS


# ------------------------------------------------------------------------------------------------------ the graded prompts


def test_fifty_subjects_at_four_levels_in_two_paraphrases():
    assert {tuple(row) for row in ROWS} == {("prompt", "subject", "level", "paraphrase")}
    subjects = list(dict.fromkeys(row["subject"] for row in ROWS))
    assert len(subjects) == 50
    assert [(r["subject"], r["level"], r["paraphrase"]) for r in ROWS] == [
        (s, at, p) for s in subjects for at in LEVELS for p in (1, 2)
    ]


def test_every_prompt_is_plain_text_of_its_own():
    for prompt in (row["prompt"] for row in ROWS):
        assert re.fullmatch(r"[A-Za-z',;:-]+( [A-Za-z',;:-]+)*", prompt)
        assert prompt[0].islower() and prompt[-1].isalpha()
    assert len({" ".join(re.findall(r"[a-z]+", row["prompt"].lower())) for row in ROWS}) == 400


def test_a_text_encoder_of_77_tokens_reads_every_prompt_to_its_end():
    for row in ROWS:
        assert len(row["prompt"].split()) <= 55
        assert (
            len(re.findall(r"\w+|[^\w\s]", row["prompt"])) <= 65
        )  # the longest measured: 68 tokens of CLIP, both ends counted


def test_the_clearer_the_level_the_longer_the_prompt():
    words = np.array([[len(prompt.split()) for prompt in chain] for chain in CHAINS.values()])
    kind, thing, place, scene = words.T
    assert max(kind.max(), thing.max()) < 10
    assert (np.maximum(kind, thing) < place).all()
    assert (place + 10 < scene).all()
    assert place.mean() > 4 * thing.mean()
    assert scene.mean() > 3 * place.mean()


def test_a_scene_still_says_what_its_less_specific_prompt_says():
    for (_, thing, place, scene), (subject, _) in zip(CHAINS.values(), CHAINS, strict=True):
        assert content(place) <= content(scene), subject
        assert content(thing) & content(place), subject


def test_paraphrases_share_few_words():
    pairs = [
        (content(first["prompt"]), content(second["prompt"]))
        for first, second in zip(ROWS[::2], ROWS[1::2], strict=True)
    ]
    shared = np.array([len(a & b) / len(a | b) for a, b in pairs])
    assert shared.max() < 0.25
    assert shared.mean() < 0.05


def test_prompts_and_levels_are_read():
    prompts = read_prompts(NAME)
    assert prompts == [row["prompt"] for row in ROWS]
    assert images_of(prompts) is None
    facts = runs.prompt_facts(NAME, prompts)
    assert facts["level"].tolist() == [row["level"] for row in ROWS]
    assert np.isnan(facts["bits"]).all()
    levels, means, count = runs.by_level(
        facts["level"][None], facts["level"]
    )  # its quarters are these levels
    assert levels.tolist() == list(LEVELS) == means[0].tolist()
    assert count.tolist() == [100] * 4


@pytest.mark.parametrize(
    "name", ["owner/name", "owner/name:train:caption", "saved/folder:train", "p.txt", "p.parquet"]
)
def test_what_grades_no_prompt_has_facts_without_values(name):
    facts = runs.prompt_facts(name, ["a shape", "a thing"])
    assert facts.keys() == {"level", "bits"}
    assert all(np.isnan(values).tolist() == [True, True] for values in facts.values())


# ---------------------------------------------------------------------------------------------------------------- datasets


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, if it is installed: offline, with its cache in tmp_path."""
    found = pytest.importorskip("datasets")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(found.config, "HF_HUB_OFFLINE", True)
    return found


@pytest.mark.parametrize(
    "name", ["owner/name", "owner/name:train:caption", "p.parquet", "saved", "saved:train"]
)
def test_without_the_library_the_command_that_installs_it_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    (tmp_path / "p.parquet").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match="to read it as a dataset: pip install datasets"
    ) as error:
        read_prompts(name)
    assert name.partition(":")[0] in str(error.value)


def test_more_than_a_split_and_a_column_is_refused():
    with pytest.raises(
        ValueError,
        match=r"owner/name:a:b:c is no dataset: write name, name:split or name:split:column",
    ):
        read_prompts("owner/name:a:b:c")


def test_a_colon_in_a_file_name_is_part_of_it(tmp_path):
    (tmp_path / "12:30").mkdir()
    (tmp_path / "12:30" / "p.txt").write_text("a shape")
    assert read_prompts(str(tmp_path / "12:30" / "p.txt")) == ["a shape"]
    with pytest.raises(FileNotFoundError, match=r"no prompt file .*12:30/p\.txt:train"):
        read_prompts(str(tmp_path / "12:30" / "p.txt:train"))


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
    with pytest.raises(ValueError, match="split test, has no column 'text'; it has caption, other"):
        read_prompts(f"{place}:test:text")


def test_the_only_split_is_taken_and_of_several_none_is_guessed(datasets, tmp_path):
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
def test_the_column_of_a_parquet_file(datasets, tmp_path, columns, taken):
    place = str(tmp_path / "p.parquet")
    datasets.Dataset.from_dict({name: [f"of {name}"] for name in columns.split()}).to_parquet(place)
    if taken:
        assert read_prompts(place) == read_prompts(f"{place}:train:{taken}") == [f"of {taken}"]
    else:
        with pytest.raises(
            ValueError, match=f"has no column 'prompt'; it has {', '.join(columns.split())}"
        ):
            read_prompts(place)


@pytest.mark.parametrize("kind", ["saved", "p.parquet"])
def test_pictures_of_a_dataset(datasets, tmp_path, kind):
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8))
        for seed in (0, 1)
    ]
    table = datasets.Dataset.from_dict(
        {"prompt": ["it moves", "it grows", "it"], "image": [*pictures, None]},
        datasets.Features({"prompt": datasets.Value("string"), "image": datasets.Image()}),
    )
    place = str(tmp_path / kind)
    table.to_parquet(place) if kind == "p.parquet" else table.save_to_disk(place)
    found = read_prompts(place)
    assert found == ["it moves", "it grows", "it"]
    assert [np.asarray(p.image).tolist() for p in found[:2]] == [
        np.asarray(p).tolist() for p in pictures
    ]
    assert found[2].image is None
    assert found[0].key != found[0] and found[2].key == "it"


def test_pictures_by_path_lie_beside_the_parquet_file(datasets, tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "one.png")
    place = str(tmp_path / "p.parquet")
    datasets.Dataset.from_dict({"prompt": ["it"], "image": ["one.png"]}).to_parquet(place)
    assert read_prompts(place)[0].image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": None}, "prompt is 'None', not a text"),
        (
            {"prompt": "it", "image": {"bytes": b"hello", "path": None}},
            "is no image that can be read",
        ),
        ({"prompt": "it", "image": {"bytes": None, "path": "nowhere.png"}}, "there is no image"),
        ({"prompt": "it", "image": 3}, "is no image that can be read"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(datasets, tmp_path, row, fault):
    place = str(tmp_path / "p.parquet")
    datasets.Dataset.from_list(
        [{"prompt": "a shape"} | dict.fromkeys(set(row) - {"prompt"}), row]
    ).to_parquet(place)
    with pytest.raises(
        (ValueError, FileNotFoundError), match=rf"p\.parquet, split train, row 1: .*{fault}"
    ):
        read_prompts(place)


def test_a_dataset_that_is_not_there_or_damaged_or_empty_is_named(datasets, tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError,
        match=r"cannot read the dataset 'owner/nowhere': .*if it is gated.*hf auth login",
    ):
        read_prompts("owner/nowhere:train")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"cannot read the dataset '.*damaged\.parquet'"):
        read_prompts(str(damaged))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda _: {"train": datasets.Dataset.from_dict({"prompt": []})}
    )
    with pytest.raises(ValueError, match="the dataset owner/name, split train, has no prompts"):
        read_prompts("owner/name")


def test_a_hub_id_is_loaded_by_its_name_alone(datasets, monkeypatch):
    found = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"prompt": ["a"]})})
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *arguments: asked.append(arguments) or found
    )
    assert read_prompts("owner/name.v2:train:prompt") == read_prompts("owner/name.v2") == ["a"]
    assert asked == [("owner/name.v2",)] * 2
