"""Pictures as people have them, against what each format says that they show."""

import base64
import io
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bpgo.images import as_rgb, open_image
from bpgo.prompts import Prompt, pixels_of

HERE = Path(".")


def noise(seed=0, size=(8, 6)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def opened(content):
    """What `open_image` makes of a file's content, as an array."""
    image = open_image(content, HERE, "here")
    assert (image.mode, type(image)) == ("RGB", Image.Image)
    return np.asarray(image)


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, -1)


# ------------------------------------------------------------------------------------- orientation

# What the EXIF standard says of each value: how the stored picture must be turned to be upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("value", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_orientation_of_a_camera_is_applied(kind, value):
    exif = Image.Exif()
    exif[0x0112] = value
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    stored = np.asarray(Image.open(io.BytesIO(saved(noise(), kind, **options))))
    found = opened(saved(noise(), kind, exif=exif, **options))
    np.testing.assert_array_equal(found, UPRIGHT[value](stored))


def test_an_orientation_that_does_not_exist_changes_nothing():
    exif = Image.Exif()
    exif[0x0112] = 77
    np.testing.assert_array_equal(opened(saved(noise(), "PNG", exif=exif)), np.asarray(noise()))


def test_an_image_that_a_user_opened_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(tmp_path / "one.png", exif=exif)
    with Image.open(tmp_path / "one.png") as image:
        expected = np.rot90(np.asarray(noise()), -1)
        np.testing.assert_array_equal(np.asarray(Prompt("it", image).image), expected)
        found = pixels_of([image])[0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(found, expected, atol=1e-4)


# ------------------------------------------------------------------------------------------- range

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0, 257, ..., 65535
LEVELS = np.arange(256).reshape(16, 16)  # the same in 8 bits


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_16_bit_greyscale_keeps_its_range(kind):
    found = opened(saved(Image.fromarray(RAMP), kind))
    np.testing.assert_array_equal(found, grey(LEVELS))


def test_a_dark_16_bit_picture_stays_dark():
    dark = Image.fromarray(np.full((4, 4), 200, np.uint16))
    for kind in ("PNG", "TIFF", "PPM"):
        assert opened(saved(dark, kind)).max() == 1  # 200 / 257


def test_greyscale_of_10_bits_keeps_its_range():
    values = np.array([[0, 511], [512, 1023]], ">u2")
    found = opened(b"P5\n2 2\n1023\n" + values.tobytes())
    np.testing.assert_allclose(found, grey(values / 1023 * 255), atol=0.6)


def test_a_16_bit_png_in_colour_keeps_its_range():
    """Written by hand, because Pillow writes no such file."""
    colours = np.stack([RAMP, RAMP.T, RAMP[::-1]], -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        check = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + check
    np.testing.assert_allclose(opened(content), colours / 257, atol=1)


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.int32),
        LEVELS.astype(np.int32),
        (LEVELS / 255).astype(np.float32),
        LEVELS.astype(np.float32),
        RAMP.astype(np.float32),
    ],
    ids=["int32 to 65535", "int32 to 255", "float to 1", "float to 255", "float to 65535"],
)
def test_32_bits_keep_their_range(values):
    found = opened(saved(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(found, grey(LEVELS))
    np.testing.assert_array_equal(np.asarray(as_rgb(Image.fromarray(values))), grey(LEVELS))


@pytest.mark.parametrize("value", [-1, 70000, np.nan, np.inf])
def test_values_of_which_white_is_not_known_are_refused(value):
    content = saved(Image.fromarray(np.array([[0, value]], np.float32)), "TIFF")
    with pytest.raises(
        ValueError, match=r"the values of its image range from .* PNG with 8 or 16 bits"
    ):
        open_image(content, HERE, "here")


# ------------------------------------------------------------------------------ modes, transparency


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_become_rgb_as_pillow_converts_them(mode):
    image = noise().convert(mode)
    np.testing.assert_array_equal(np.asarray(as_rgb(image)), np.asarray(image.convert("RGB")))
    kind = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    if mode != "HSV":
        expected = Image.open(io.BytesIO(saved(image, kind))).convert("RGB")
        np.testing.assert_array_equal(opened(saved(image, kind)), np.asarray(expected))


def over_white(colours, alpha):
    alpha = np.asarray(alpha)[..., None] / 255
    return colours * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_lie_over_white(kind):
    image, alpha = noise(), np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)
    expected = over_white(np.asarray(image), alpha)
    image.putalpha(Image.fromarray(alpha))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_allclose(opened(saved(image, kind, **options)), expected, atol=1.01)


def test_transparent_greyscale_and_palettes_lie_over_white():
    levels = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    alpha = levels[::-1]
    image = Image.fromarray(levels)
    image.putalpha(Image.fromarray(alpha))
    expected = over_white(grey(levels), alpha)
    np.testing.assert_allclose(opened(saved(image, "PNG")), expected, atol=1.01)
    np.testing.assert_allclose(np.asarray(as_rgb(image.convert("La"))), expected, atol=3)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    for kind in ("PNG", "GIF"):
        found = opened(saved(palette, kind, transparency=0))
        assert found.tolist() == [[[255, 255, 255], [0, 0, 255]]]
    one = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    found = opened(saved(one, "PNG", transparency=(255, 0, 0)))
    assert found.tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_opaque_pixels_keep_their_values():
    image = noise()
    image.putalpha(255)
    np.testing.assert_array_equal(opened(saved(image, "PNG")), np.asarray(noise()))


# ------------------------------------------------------------------------------------------ frames


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_picture_of_several_is_taken(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    np.testing.assert_array_equal(opened(content), np.asarray(frames[0]))


FEW_FILES = """
import json, resource, sys
from bpgo.prompt_files import read_prompts
import PIL.Image
PIL.Image.init()
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
prompts = read_prompts(sys.argv[1])
print(len(prompts), len({prompt.key for prompt in prompts}), prompts[7].image.size)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on open files")
def test_300_animations_leave_no_file_open(tmp_path):
    for i in range(300):
        frames = [Image.new("RGB", (4, 4), (i % 256, i // 256, k)) for k in (0, 99)]
        kind = ("gif", "webp", "tiff")[i % 3]
        options = {"lossless": True} if kind == "webp" else {}
        frames[0].save(tmp_path / f"{i}.{kind}", save_all=True, append_images=frames[1:], **options)
    rows = [f"it moves,{i}.{('gif', 'webp', 'tiff')[i % 3]}" for i in range(300)]
    (tmp_path / "p.csv").write_text("\n".join(["prompt,image", *rows]))
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(tmp_path / "p.csv")], capture_output=True, text=True
    )
    assert done.stdout == "300 300 (4, 4)\n", done.stderr


# ---------------------------------------------------------------------------------------- refusals


@contextmanager
def unprivileged():
    """Act as a user who may not read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs the rights of POSIX files")
def test_an_image_that_may_not_be_read_is_not_called_missing():
    Image.init()  # the modules of Pillow may lie where only this user can read
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = Path(folder) / "one.png"
        noise().save(place)
        place.chmod(0)
        with unprivileged(), pytest.raises(ValueError, match="Permission denied") as refused:
            open_image("one.png", Path(folder), "here")
    assert isinstance(refused.value.__cause__, PermissionError)


def test_a_folder_is_not_called_missing(tmp_path):
    (tmp_path / "one.png").mkdir()
    with pytest.raises(ValueError, match=r"here: 'one\.png' .* as an image: Is a directory"):
        open_image("one.png", tmp_path, "here")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (saved(noise(), "PNG")[:90], "truncated"),
        (b"", "empty, damaged or of a format that Pillow does not read"),
        (b"hello", "empty, damaged or of a format that Pillow does not read"),
        ("data:image/png;base64,@@@", "base64"),
        ("data:image/svg+xml,<svg/>", "must start with data:image/png;base64"),
        ("https://example.org/one.png", "images are not downloaded"),
        ("one\0.png", "control character"),
        ("x" * 5000, "File name too long"),
        (3, "must be a text"),
    ],
)
def test_the_reason_is_passed_on(tmp_path, source, reason):
    with pytest.raises(ValueError, match=f"here: .* cannot be read as an image: .*{reason}") as no:
        open_image(source, tmp_path, "here")
    assert "0x" not in str(no.value)  # no address of an object in memory
    assert len(str(no.value)) < 400


def test_too_many_open_files_is_said(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(24, "Too many open files", "one.png")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ValueError, match="Too many open files"):
        open_image("one.png", tmp_path, "here")


def test_a_missing_image_is_named_with_its_whole_path(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="here: there is no image") as refused:
        open_image("nowhere/one.png", tmp_path, "here")
    assert str(tmp_path / "nowhere" / "one.png") in str(refused.value)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    noise().save(tmp_path / "one.png")
    image = open_image("~/one.png", Path("/nowhere"), "here")
    np.testing.assert_array_equal(np.asarray(image), np.asarray(noise()))


def test_what_is_not_an_image_is_refused():
    for thing in ("photo.png", np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=f"is a {type(thing).__name__}, not a PIL image"):
            as_rgb(thing)


def test_an_upright_rgb_image_is_returned_as_it_is():
    image = noise()
    assert as_rgb(image) is image
    uri = "data:image/png;base64," + base64.b64encode(saved(image, "PNG")).decode()
    np.testing.assert_array_equal(np.asarray(open_image(uri, HERE, "here")), np.asarray(image))
