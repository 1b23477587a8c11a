"""Prompts: texts that may carry an image, and the files they are read from."""

import base64
import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from bpgo.prompts import Prompt, images_of, key_of, pixels_of, read_prompts


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


# ----------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("image", [None, noise_image()])
def test_a_prompt_is_its_text(image):
    prompt = Prompt("a red circle", image)
    assert isinstance(prompt, str)
    assert prompt == "a red circle"
    assert hash(prompt) == hash("a red circle")
    assert f"{prompt}!" == "a red circle!"
    assert json.loads(json.dumps(prompt)) == "a red circle"
    assert prompt.image is image


def test_without_an_image_the_key_is_the_text():
    assert Prompt("a red circle").key == "a red circle"
    assert key_of(Prompt("a red circle")) == "a red circle"
    assert key_of("a red circle") == "a red circle"


def test_a_key_distinguishes_texts_and_images():
    first, again = Prompt("it moves", noise_image(0)), Prompt("it moves", noise_image(0))
    assert first.key == again.key == key_of(first)
    assert first.key.startswith("it moves [")
    one_pixel = noise_image()
    one_pixel.putpixel((7, 7), tuple(255 - value for value in one_pixel.getpixel((7, 7))))
    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))  # of the same bytes
    different = [
        first,
        Prompt("it moves", noise_image(1)),
        Prompt("it moves"),
        Prompt("it grows", noise_image()),
        Prompt("it moves", noise_image().convert("L")),
        Prompt("it moves", noise_image().resize((4, 16))),
        Prompt("it moves", noise_image(0, (16, 4))),
        Prompt("it moves", one_pixel),
        Prompt("it moves", wide),
        Prompt("it moves", high),
    ]
    assert len({prompt.key for prompt in different}) == len(different)


def test_a_prompt_survives_a_copy_to_another_process():
    prompt = Prompt("it moves", noise_image())
    copy = pickle.loads(pickle.dumps(prompt))
    assert (copy, copy.key) == (prompt, prompt.key)
    assert pixels(copy.image) == pixels(prompt.image)


def test_images_of_prompts():
    first, second = Prompt("it moves", noise_image(0)), Prompt("it grows", noise_image(1))
    assert images_of([first, second]) == [first.image, second.image]
    assert images_of(["a shape", Prompt("it")]) is None
    assert images_of([]) is None
    message = r"prompt 'a shape' has no image, but others have one \(1 of 3 without\)"
    for mixed in ([first, "a shape", second], [Prompt("a shape"), first, second]):
        with pytest.raises(ValueError, match=message):
            images_of(mixed)


def test_pixels_are_channels_first_and_in_the_unit_interval():
    images = [noise_image(0), noise_image(1)]
    found = pixels_of(images)
    assert (found.shape, found.dtype) == ((2, 3, 8, 8), torch.float32)
    for i, image in enumerate(images):
        for x, y in ((0, 0), (7, 0), (2, 5)):
            expected = [value / 255 for value in image.getpixel((x, y))]
            assert found[i, :, y, x].tolist() == pytest.approx(expected)
    given = torch.rand(2, 3, 8, 8)
    assert pixels_of(given) is given


# ------------------------------------------------------------------------------------------- files


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
    with pytest.raises(ValueError, match=f"{name} is not UTF-8"):
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


# ---------------------------------------------------------------------------------------- refusals


NOT_ROWS = [
    '{"text": "a shape"}',
    '{"prompt": "a shape"',
    '["a shape"]',
    '"prompt"',
    "a shape",
    '{"prompt": 3}',
    '{"prompt": null}',
    '{"prompt": ["a"]}',
]


@pytest.mark.parametrize("row", NOT_ROWS)
def test_what_is_not_a_row_is_named_by_file_and_line(file, row):
    place = file("p.jsonl", [{"prompt": "a shape"}, "", "  ", row])
    message = r'p\.jsonl is not JSON lines with a text under the key "prompt" \(line 4\)'
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(place)
    assert place in str(error.value)


def bitmap_header(width, height):
    """The first bytes of a bitmap of 24 bits per pixel."""
    size = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return b"BM" + bytes(12) + (40).to_bytes(4, "little") + size + b"\x01\0\x18\0" + bytes(24)


GOOD = png(noise_image(0, (16, 16)))
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
    message = r"p\.jsonl, line 3: .* cannot be read as an image"
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(place)
    assert place in str(error.value)
    assert len(str(error.value)) < len(place) + 150


def test_a_missing_image_is_named(file, tmp_path):
    rows = [{"prompt": "a shape"}, "", {"prompt": "it", "image": "nowhere/one.png"}]
    place = file("p.jsonl", rows)
    with pytest.raises(FileNotFoundError, match=r"p\.jsonl, line 3: there is no image") as error:
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
