"""Prompt files of every kind: what is read, and what is refused."""

import base64
import csv
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bpgo.files import PROMPT_FILES
from bpgo.images import open_image
from bpgo.prompt_files import read_prompts
from bpgo.prompts import Prompt


def noise_image(seed=0, size=(8, 8), mode="RGB"):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def uri(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def pixels(image):
    return np.asarray(image).tolist()


@pytest.fixture
def file(tmp_path):
    """A function that writes a file and returns its path; rows are written as JSON lines."""

    def write(name, content):
        if isinstance(content, list):
            rows = [row if isinstance(row, str) else json.dumps(row) for row in content]
            content = "".join(row + "\n" for row in rows)
        place = tmp_path / name
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(place)

    return write


GOOD = png(noise_image(0, (16, 16)))


def refusal(place):
    """The message with which a file is refused."""
    with pytest.raises(ValueError) as refused:
        read_prompts(place)
    return str(refused.value)


# -------------------------------------------------------------------------------- text, JSON lines


def test_a_text_file_has_one_prompt_per_line(file):
    found = read_prompts(file("p.txt", "\n a red circle\t\n\n  \r\na blue square\r\nit, moves"))
    assert found == ["a red circle", "a blue square", "it, moves"]
    for prompt in found:
        assert isinstance(prompt, Prompt)
        assert prompt.image is None
        assert prompt.key == prompt


def test_only_a_line_break_ends_a_line(file):
    odd = "one\u2028two\x0cthree\x85four"
    assert read_prompts(file("p.txt", f"{odd}\nnext")) == [odd, "next"]
    row = json.dumps({"prompt": odd}, ensure_ascii=False)
    assert read_prompts(file("p.jsonl", row + "\n" + row)) == [odd, odd]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_files_are_utf_8_with_or_without_a_mark(file, name):
    line = "ein grüner Kreis 圆"
    text = line if name.endswith("txt") else json.dumps({"prompt": line}, ensure_ascii=False)
    for content in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
        assert read_prompts(file(name, content)) == [line]
    place = file(name, "grün".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name}, line 1: this is not UTF-8 text"):
        read_prompts(place)


def test_json_lines_carry_images(file, tmp_path):
    (tmp_path / "images").mkdir()
    noise_image(1).save(tmp_path / "images" / "one.png")
    rows = [
        {"prompt": "it moves", "image": "images/one.png", "level": 0.5},
        {"prompt": "it grows", "image": str(tmp_path / "images" / "one.png")},
        {"prompt": " it falls ", "image": uri(png(noise_image(2)))},
        {"prompt": "a shape"},
        {"prompt": "a thing", "image": None},
    ]
    found = read_prompts(file("p.jsonl", rows))
    assert found == [row["prompt"] for row in rows]
    for prompt, seed in zip(found, (1, 1, 2), strict=False):
        assert pixels(prompt.image) == pixels(noise_image(seed))
        assert prompt.key != prompt
    assert [prompt.image for prompt in found[3:]] == [None, None]


def test_a_relative_image_lies_beside_the_file_and_not_in_the_working_folder(
    file, tmp_path, monkeypatch
):
    noise_image(1).save(tmp_path / "one.png")
    place = file("p.jsonl", [{"prompt": "it", "image": "one.png"}])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    noise_image(2).save("one.png")
    assert pixels(read_prompts(place)[0].image) == pixels(noise_image(1))


# ------------------------------------------------------------------------------------------ tables

ROWS = [
    {"prompt": "a sign, red", "answer": 'it says "stop"', "target": "STOP"},
    {"prompt": "two\nlines", "answer": "", "target": "ja, natürlich"},
    {"prompt": "ein grüner Kreis 圆", "answer": "x", "target": "1"},
]


def table(rows, separator=",", **options):
    """Rows as the csv module writes them."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator, **options)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def write_as(name, rows, tmp_path):
    """A file of this name with these rows, written by the library that people write it with."""
    place, ending = tmp_path / name, Path(name).suffix.lower()
    if ending == ".parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), place)
        return str(place)
    content = {
        ".csv": lambda: table(rows),
        ".tsv": lambda: table(rows, "\t"),
        ".json": lambda: json.dumps(rows, indent=1),
        ".jsonl": lambda: "\n".join(map(json.dumps, rows)),
        ".ndjson": lambda: "\n".join(map(json.dumps, rows)),
    }[ending]()
    place.write_bytes(content.encode())
    return str(place)


@pytest.mark.parametrize(
    "name", [f"p{ending}" for ending in PROMPT_FILES[1:]] + ["P.CSV", "p.Jsonl"]
)
def test_the_same_content_gives_the_same_prompts_in_every_format(tmp_path, name):
    noise_image(3).save(tmp_path / "one.png")
    rows = [
        row | {"image": image}
        for row, image in zip(ROWS, ("one.png", "one.png", uri(GOOD)), strict=True)
    ]
    found = read_prompts(write_as(name, rows, tmp_path))
    expected = [Prompt(row["prompt"], open_image(row["image"], tmp_path, "here")) for row in rows]
    assert found == expected
    assert [p.key for p in found] == [p.key for p in expected]
    assert [p.columns for p in found] == [
        {"answer": row["answer"], "target": row["target"]} for row in rows
    ]
    assert all(p.where.startswith(f"{name}, ") for p in found)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("p.csv", ["line 2", "line 3", "line 5"]),  # the second prompt has two lines
        ("p.jsonl", ["line 1", "line 2", "line 3"]),
        ("p.json", ["entry 1", "entry 2", "entry 3"]),
        ("p.parquet", ["row 0", "row 1", "row 2"]),
    ],
)
def test_prompts_know_their_place(tmp_path, name, places):
    found = read_prompts(write_as(name, ROWS, tmp_path))
    assert [prompt.where for prompt in found] == [f"{name}, {place}" for place in places]


def test_the_lines_of_a_text_file_are_counted_with_blank_ones(file):
    found = read_prompts(file("p.TXT", "\na\n\r\n b\rc"))
    assert [(p, p.where) for p in found] == [
        ("a", "p.TXT, line 2"),
        ("b", "p.TXT, line 4"),
        ("c", "p.TXT, line 5"),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tables_of_every_system_are_read_alike(file, end, mark):
    content = mark + end.join(["prompt,answer", '"a, b",x', "", '"two', 'lines",y', ""])
    found = read_prompts(file("p.csv", content))
    assert [(p, p.where, p.columns) for p in found] == [
        ("a, b", "p.csv, line 2", {"answer": "x"}),
        ("two\nlines", "p.csv, line 4", {"answer": "y"}),
    ]


def test_spaces_after_separators_and_names_in_capitals_are_understood(file):
    content = 'Prompt, Image, Class name\na red circle, , "disc, round"\n'
    (found,) = read_prompts(file("p.csv", content))
    assert (found, found.image) == ("a red circle", None)
    assert found.columns == {"Class name": "disc, round"}


def test_a_cell_may_be_longer_than_the_csv_module_allows_by_default(file):
    limit = csv.field_size_limit()
    image = uri(png(noise_image(0, (256, 256))))
    assert len(image) > limit
    (found,) = read_prompts(file("p.csv", f'prompt,image\nit,"{image}"\n'))
    assert pixels(found.image) == pixels(noise_image(0, (256, 256)))
    assert csv.field_size_limit() == limit


def test_a_list_of_texts_is_enough(file):
    assert read_prompts(file("p.json", '["a", {"prompt": "b"}]')) == ["a", "b"]
    assert read_prompts(file("p.jsonl", '"a"\n{"prompt": "b"}')) == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("prompt,text,caption", "prompt"),
        ("other,TEXT", "TEXT"),
        ("Caption,other", "Caption"),
        ("text,caption", None),
        ("other,titles", None),
        ("a red circle,a blue one", None),
    ],
)
def test_the_column_of_prompts_is_found_by_its_name(file, header, taken):
    names = header.split(",")
    place = file("p.csv", "\n".join([header, ",".join(f"of {name}" for name in names)]))
    if taken:
        (found,) = read_prompts(place)
        assert found == f"of {taken}"
        assert found.columns == {name: f"of {name}" for name in names if name != taken}
        return
    message = refusal(place)
    assert "has no column 'prompt'; it has " + ", ".join(map(repr, names)) in message
    assert read_prompts(f"{place}::{names[1]}") == [f"of {names[1]}"]  # what the message advises


def test_values_keep_their_type_and_null_is_no_value(file):
    row = {"prompt": "a", "level": 0.5, "tags": ["x"], "box": {"w": 1}, "ok": True, "none": None}
    (found,) = read_prompts(file("p.jsonl", [row]))
    assert found.columns == {"level": 0.5, "tags": ["x"], "box": {"w": 1}, "ok": True}


def test_shipped_prompts_carry_their_columns():
    found = read_prompts("prompts/graded-evaluation.jsonl")[0]
    assert found.columns == {"subject": "puppy", "level": 0.0, "paraphrase": 1}


# ---------------------------------------------------------------------------------------- refusals


NOT_ROWS = {
    '{"text": "a shape"}': "there is no 'prompt'; the columns of this row: text",
    '{"prompt": "a shape"': "not valid JSON: ",
    '["a shape"]': "['a shape'] is not of the form",
    "a shape": "not valid JSON: ",
    "null": "None is not of the form",
    '{"prompt": 3}': "prompt is 3, not a text",
    '{"prompt": null}': "there is no 'prompt'",
    '{"prompt": ["a"]}': "prompt is ['a'], not a text",
    '{"prompt": " \\t "}': "prompt is blank",
    '{"prompt": "a", "prompt": "b"}': "the key 'prompt' is given twice",
    '{"prompt": "\\ud800"}': "prompt has half a character",
}


@pytest.mark.parametrize("row", NOT_ROWS)
def test_what_is_not_a_row_is_named_by_file_and_line(file, row):
    place = file("p.jsonl", [{"prompt": "a shape"}, "", "  ", row])
    assert refusal(place).startswith(f"{place}, line 4: {NOT_ROWS[row]}")


def bitmap_header(width, height):
    """The first bytes of a bitmap of 24 bits per pixel."""
    size = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return b"BM" + bytes(12) + (40).to_bytes(4, "little") + size + b"\x01\0\x18\0" + bytes(24)


BROKEN = {
    "cut": uri(GOOD[: len(GOOD) // 2]),
    "header only": uri(GOOD[:8]),
    "a chunk of another name": uri(GOOD[:37] + b"\xc6w\xa1#" + GOOD[41:]),
    "a text": uri(b"hello"),
    "empty": uri(b""),
    "not base64": "data:image/png;base64,@@@",
    "no data": "data:",
    "svg": "data:image/svg+xml,<svg/>",
    "a bomb": uri(bitmap_header(400_000, 400_000)),
    "a text file": "p.jsonl",
    "a folder": ".",
    "not a file name": "a\0b",
    "a number": 3,
    "a list": ["x.png"],
    "long": "x" * 5000,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_an_image_is_named_by_file_and_line(file, kind):
    place = file("p.jsonl", ["", {"prompt": "a shape"}, {"prompt": "it", "image": BROKEN[kind]}])
    message = r"p\.jsonl, line 3: 'it': .* cannot be read as an image: \w+"
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(place)
    assert place in str(error.value)
    assert len(str(error.value)) < 2 * len(place) + 250


def test_a_missing_image_is_named(file, tmp_path):
    rows = [{"prompt": "a shape"}, "", {"prompt": "it", "image": "nowhere/one.png"}]
    place = file("p.jsonl", rows)
    with pytest.raises(
        FileNotFoundError, match=r"p\.jsonl, line 3: 'it': there is no image"
    ) as error:
        read_prompts(place)
    assert str(tmp_path / "nowhere" / "one.png") in str(error.value)


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_a_file_without_prompts_is_refused(file, name, content):
    place = file(name, content)
    with pytest.raises(ValueError, match=f"the prompt file .*{name} has no prompts"):
        read_prompts(place)


def test_missing_files_and_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)  # owner/nowhere may be a hub id
    for name in (str(tmp_path / "nowhere.txt"), "nowhere.jsonl", "owner/nowhere", str(tmp_path)):
        with pytest.raises(FileNotFoundError) as error:
            read_prompts(name)
        assert name in str(error.value)


# ------------------------------------------------------------------------------ refusals of tables

TABLES = {
    "too many cells": ("prompt,a\nx,y\nx,y,z\n", "line 3: there are 3 instead of 2 cells"),
    "too few cells": ("prompt,a\n\nx\n", "line 3: there are 1 instead of 2 cells"),
    "a blank prompt": ("a,prompt\nx,y\nx,\n", "line 3: prompt is blank"),
    "only separators": ("a,prompt\nx,y\n,\n", "line 3: prompt is blank"),
    "an open quote": ('prompt,a\nx,y\n"x,y\nx,y\n', "line 3: unexpected end of data"),
    "a quote inside": ('prompt,a\n"x" y,z\n', "line 2: ',' expected after '\"'"),
    "two equal names": ("prompt,a,a\nx,y,z\n", " has two columns of the name 'a'"),
    "two names in capitals": ("Prompt,PROMPT\nx,y\n", " has the columns Prompt and PROMPT"),
    "semicolons": ("prompt;a\nx;y\n", " are not separated as the ending says: by commas"),
    "only a header": ("prompt,a\n", " has no prompts"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_may_be_misread_is_refused_with_its_line(file, kind):
    content, fault = TABLES[kind]
    place = file("p.csv", content)
    message = refusal(place)
    assert place in message and fault in message
    assert "\n" not in message


def test_all_rows_that_cannot_be_used_are_listed(file, tmp_path):
    noise_image().save(tmp_path / "one.png")
    content = "prompt,image\na,one.png\nb,nowhere.png\n,\nc,p.csv\nd,one.png,x\n"
    first, *lines = refusal(file("p.csv", content)).splitlines()
    assert first.endswith("p.csv has 4 rows that cannot be used:")
    assert [line.strip().split(": ")[0] for line in lines] == [
        f"p.csv, line {number}" for number in (3, 4, 5, 6)
    ]
    many = refusal(file("q.csv", "prompt,a\n" + ",x\n" * 2001))
    assert many.endswith("and 1981 more") and len(many) < 2000


def test_images_that_are_all_missing_are_a_missing_file(file):
    place = file("p.csv", "prompt,image\na,one.png\nb,two.png\n")
    with pytest.raises(FileNotFoundError, match="2 rows that cannot be used"):
        read_prompts(place)


@pytest.mark.parametrize("name", ["p.yaml", "p.md", "p.xlsx", "p.csv.gz", "p", "p.CSVX"])
def test_an_unknown_ending_is_refused_with_those_that_are_known(file, name):
    message = refusal(file(name, "prompt\na\n"))
    assert name in message
    assert all(ending in message for ending in PROMPT_FILES)


def test_a_file_of_another_kind_than_its_name_says_is_refused(file):
    row = '{"prompt": "a"}'
    assert "p.txt, line 2: this is JSON" in refusal(file("p.txt", f"a\n{row}"))
    assert "p.json, line 2: not valid JSON: Extra data. If it has one object per line" in refusal(
        file("p.json", f"{row}\n{row}")
    )
    assert 'write [{"prompt": "..."}, ...]' in refusal(file("p.json", '{"prompt": {"0": "a"}}'))
    assert "p.parquet cannot be read" in refusal(file("p.parquet", "prompt\na\n"))
    for encoding in ("utf-16", "utf-16-le"):
        assert "save" in refusal(file("p.csv", "prompt\na\n".encode(encoding)))


def test_a_prompt_may_look_like_json(file):
    lines = ['{"subject": "a cat"}', "{a cat}", '"a"']
    assert read_prompts(file("p.txt", "\n".join(lines))) == lines


def test_a_split_that_a_file_does_not_have_is_refused(file):
    place = file("p.csv", "prompt\na\n")
    assert read_prompts(f"{place}:train") == ["a"]
    assert "has no split 'test'; it has train" in refusal(f"{place}:test")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs the rights of POSIX files")
def test_a_file_that_may_not_be_read_is_not_called_missing():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = Path(folder) / "p.csv"
        place.write_text("prompt\na\n")
        place.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            assert "p.csv cannot be read: Permission denied" in refusal(str(place))
        finally:
            if root:
                os.seteuid(0)


def test_a_folder_is_not_called_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder, not a prompt file"):
        read_prompts(str(tmp_path))


@pytest.mark.parametrize("name", ["data/p.csv", "data/p.TSV", "data/p.parquet", "data/p.ndjson"])
def test_a_missing_file_is_not_looked_for_on_the_hub(name, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is not a folder or file"):
        read_prompts(name)
