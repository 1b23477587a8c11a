"""Prompts: text that may carry an image, and the files they are read from."""

import base64
import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from bpgo.prompts import Prompt, images_of, key_of, pixels_of, read_prompts


def image(seed=0, size=(8, 8), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def uri(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def pixels(picture):
    return np.asarray(picture).tolist()


@pytest.fixture
def file(tmp_path):
    """Writes a file and gives its path as a string; rows are written as JSON lines."""

    def write(name, content):
        if isinstance(content, list):
            content = "".join(
                (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content
            )
        place = tmp_path / name
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(place)

    return write


# ----------------------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_is_its_words():
    bare, pictured = Prompt("a red circle"), Prompt("a red circle", image())
    for prompt in (bare, pictured):
        assert isinstance(prompt, str)
        assert prompt == "a red circle"
        assert hash(prompt) == hash("a red circle")
        assert f"{prompt}!" == "a red circle!"
        assert json.loads(json.dumps(prompt)) == "a red circle"
    assert bare.image is None
    assert bare.key == "a red circle" == key_of(bare) == key_of("a red circle")


def test_a_key_tells_words_and_pictures_apart():
    first, again, other = (Prompt("it moves", image(seed)) for seed in (0, 0, 1))
    assert first.key == again.key == key_of(first)
    assert first.key.startswith("it moves [")
    different = [
        first,
        other,
        Prompt("it moves"),
        Prompt("it grows", image()),
        Prompt("it moves", image().convert("L")),
        Prompt("it moves", image().resize((4, 16))),
        Prompt("it moves", image(0, (16, 4))),
    ]
    flipped = image()
    flipped.putpixel((7, 7), tuple(255 - v for v in flipped.getpixel((7, 7))))
    assert len({p.key for p in [*different, Prompt("it moves", flipped)]}) == len(different) + 1
    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))  # of the same bytes
    assert Prompt("it", wide).key != Prompt("it", high).key


def test_a_prompt_survives_a_copy_to_another_process():
    prompt = Prompt("it moves", image())
    copy = pickle.loads(pickle.dumps(prompt))
    assert (copy, copy.key) == (prompt, prompt.key)
    assert pixels(copy.image) == pixels(prompt.image)


def test_images_of_prompts():
    first, second = Prompt("it moves", image(0)), Prompt("it grows", image(1))
    assert images_of([first, second]) == [first.image, second.image]
    assert images_of(["a shape", Prompt("it")]) is None
    assert images_of([]) is None
    for mixed in ([first, "a shape", second], [Prompt("a shape"), first, second]):
        with pytest.raises(
            ValueError, match=r"prompt 'a shape' has no image, and others have \(1 of 3 without\)"
        ):
            images_of(mixed)


def test_pixels_are_channels_first_and_in_the_unit_interval():
    pictures = [image(0), image(1)]
    found = pixels_of(pictures)
    assert found.shape == (2, 3, 8, 8)
    assert found.dtype == torch.float32
    for i, picture in enumerate(pictures):
        for x, y in ((0, 0), (7, 0), (2, 5)):
            assert found[i, :, y, x].tolist() == pytest.approx(
                [v / 255 for v in picture.getpixel((x, y))]
            )
    given = torch.rand(2, 3, 8, 8)
    assert pixels_of(given) is given


# ------------------------------------------------------------------------------------------------------------------- files


def test_a_text_file_is_a_prompt_a_line(file):
    found = read_prompts(file("p.txt", "\n a red circle\t\n\n  \r\na blue square\r\nit, moves"))
    assert found == ["a red circle", "a blue square", "it, moves"]
    assert all(isinstance(p, Prompt) and p.image is None and p.key == p for p in found)


def test_only_a_line_break_ends_a_line(file):
    odd = "one\u2028two\x0cthree\x85four"
    assert read_prompts(file("p.txt", f"{odd}\nnext")) == [odd, "next"]
    row = json.dumps({"prompt": odd}, ensure_ascii=False)
    assert read_prompts(file("p.jsonl", row + "\n" + row)) == [odd, odd]


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_files_are_utf_8_with_or_without_a_mark(file, name):
    line = "ein grüner Kreis 圆"
    text = line if name.endswith("txt") else json.dumps({"prompt": line}, ensure_ascii=False)
    assert (
        read_prompts(file(name, text))
        == read_prompts(file(name, b"\xef\xbb\xbf" + text.encode()))
        == [line]
    )
    place = file(name, "grün".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name} is not UTF-8"):
        read_prompts(place)


def test_json_lines_carry_pictures(file, tmp_path):
    (tmp_path / "pictures").mkdir()
    image(1).save(tmp_path / "pictures" / "one.png")
    rows = [
        {"prompt": "it moves", "image": "pictures/one.png", "level": 0.5},
        {"prompt": "it grows", "image": str(tmp_path / "pictures" / "one.png")},
        {"prompt": " it falls ", "image": uri(png(image(2)))},
        {"prompt": "a shape"},
        {"prompt": "a thing", "image": None},
    ]
    found = read_prompts(file("p.jsonl", rows))
    assert found == ["it moves", "it grows", " it falls ", "a shape", "a thing"]
    assert [pixels(p.image) for p in found[:3]] == [pixels(image(seed)) for seed in (1, 1, 2)]
    assert [p.image for p in found[3:]] == [None, None]
    assert found[0].key != found[0]


def test_a_relative_picture_lies_beside_the_file_and_not_where_one_works(
    file, tmp_path, monkeypatch
):
    image(1).save(tmp_path / "one.png")
    place = file("p.jsonl", [{"prompt": "it", "image": "one.png"}])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    image(2).save("one.png")
    assert pixels(read_prompts(place)[0].image) == pixels(image(1))


@pytest.mark.parametrize(
    "row",
    [
        '{"text": "a shape"}',
        '{"prompt": "a shape"',
        '["a shape"]',
        '"prompt"',
        "a shape",
        '{"prompt": 3}',
        '{"prompt": null}',
        '{"prompt": ["a"]}',
    ],
)
def test_what_is_no_row_is_named_by_file_and_line(file, row):
    place = file("p.jsonl", [{"prompt": "a shape"}, "", "  ", row])
    with pytest.raises(
        ValueError, match=r'p\.jsonl is not JSON lines with the key "prompt".* \(line 4\)'
    ) as error:
        read_prompts(place)
    assert place in str(error.value)


GOOD = png(image(0, (16, 16)))
BROKEN = {
    "cut": uri(GOOD[: len(GOOD) // 2]),
    "header only": uri(GOOD[:8]),
    "a chunk of another name": uri(GOOD[:37] + b"\xc6w\xa1#" + GOOD[41:]),
    "no picture": uri(b"hello"),
    "empty": uri(b""),
    "not base64": "data:image/png;base64,@@@",
    "no data": "data:",
    "svg": "data:image/svg+xml,<svg/>",
    "a bomb": uri(
        b"BM"
        + bytes(12)
        + (40).to_bytes(4, "little")
        + (400000).to_bytes(4, "little") * 2
        + b"\x01\0\x18\0"
        + bytes(24)
    ),
    "a text file": "p.jsonl",
    "a folder": ".",
    "no file name": "a\0b",
    "a number": 3,
    "a list": ["x.png"],
    "long": "x" * 5000,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_picture_is_named_by_file_and_line(file, kind):
    place = file("p.jsonl", ["", {"prompt": "a shape"}, {"prompt": "it", "image": BROKEN[kind]}])
    with pytest.raises(
        ValueError, match=r"p\.jsonl, line 3: .* is no image that can be read"
    ) as error:
        read_prompts(place)
    assert place in str(error.value)
    assert len(str(error.value)) < len(place) + 150


def test_a_missing_picture_is_named(file, tmp_path):
    place = file(
        "p.jsonl", [{"prompt": "a shape"}, "", {"prompt": "it", "image": "nowhere/one.png"}]
    )
    with pytest.raises(FileNotFoundError, match=r"p\.jsonl, line 3: there is no image") as error:
        read_prompts(place)
    assert str(tmp_path / "nowhere" / "one.png") in str(error.value)


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_a_file_without_prompts_is_refused(file, name, content):
    place = file(name, content)
    with pytest.raises(ValueError, match=f"the prompt file .*{name} has no prompts"):
        read_prompts(place)


def test_a_missing_file_and_a_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)  # owner/nowhere may be a hub id
    for name in (str(tmp_path / "nowhere.txt"), "nowhere.jsonl", "owner/nowhere", str(tmp_path)):
        with pytest.raises(FileNotFoundError) as error:
            read_prompts(name)
        assert name in str(error.value)
