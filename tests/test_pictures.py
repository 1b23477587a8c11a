"""Grids and animations, read back with Pillow."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from bpgo.pictures import GAP, animation, grid, save_animation, save_grid


def colours(*shape):
    """Random pixels of 8 bits, which files can hold exactly."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator) / 255


def few_colours(*shape):
    """Random pixels of 8 colours."""
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).float()


def cell(image, row, column, side):
    """One picture of a grid, as (side, side, 3) of 8 bits."""
    top, left = row * (side + GAP), column * (side + GAP)
    return np.asarray(image.convert("RGB"))[top : top + side, left : left + side]


def expected(pixels, factor):
    """(3, H, W) enlarged by a whole factor, as (H, W, 3) of 8 bits."""
    large = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return (large * 255).round().permute(1, 2, 0).numpy()


def test_rows_are_prompts_and_columns_are_samples_with_white_gaps():
    pixels = colours(2, 3, 3, 128, 128)
    image = grid(pixels)
    assert image.size == (3 * 128 + 2 * GAP, 2 * 128 + GAP)
    for row in range(2):
        for column in range(3):
            found = cell(image, row, column, 128)
            np.testing.assert_array_equal(found, expected(pixels[row, column], 1))
    whole = np.asarray(image)
    assert (whole[128 : 128 + GAP] == 255).all()
    assert (whole[:, 128 : 128 + GAP] == 255).all()


@pytest.mark.parametrize(("side", "factor"), [(8, 16), (50, 3), (127, 2), (128, 1), (200, 1)])
def test_tiny_pictures_are_enlarged_by_a_whole_factor_without_smoothing(side, factor):
    pixels = colours(1, 1, 3, side, side)
    image = grid(pixels)
    assert image.size == (factor * side, factor * side)
    np.testing.assert_array_equal(np.asarray(image), expected(pixels[0, 0], factor))


def test_a_wide_picture_is_enlarged_by_its_shorter_side():
    assert grid(colours(1, 1, 3, 16, 40)).size == (320, 128)


@pytest.mark.parametrize("name", ["a.png", "b.webp", "deep/er/c.PNG"])
def test_a_grid_is_read_back_exactly(tmp_path, name):
    pixels = colours(1, 2, 3, 64, 64)
    save_grid(pixels, tmp_path / name)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(grid(pixels)))
    assert [f.name for f in (tmp_path / name).parent.iterdir()] == [(tmp_path / name).name]


def test_a_jpeg_is_a_jpeg(tmp_path):
    save_grid(torch.full((1, 1, 3, 128, 128), 0.5), tmp_path / "a.jpg")
    image = Image.open(tmp_path / "a.jpg")
    assert image.format == "JPEG"
    np.testing.assert_allclose(np.asarray(image), 128, atol=2)


def test_every_frame_of_a_webp_is_exact(tmp_path):
    pixels = colours(1, 2, 5, 3, 64, 64)
    save_animation(pixels, tmp_path / "a.webp", fps=10)
    image = Image.open(tmp_path / "a.webp")
    assert image.n_frames == 5
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame, np.asarray(grid(pixels[:, :, i])))
    assert image.info["loop"] == 0


def test_a_gif_of_few_colours_is_exact_and_has_its_delay(tmp_path):
    pixels = few_colours(2, 2, 4, 3, 16, 16)
    save_animation(pixels, tmp_path / "a.gif", fps=8)
    image = Image.open(tmp_path / "a.gif")
    assert image.n_frames == 4
    for i, frame in enumerate(ImageSequence.Iterator(image)):
        assert frame.info["duration"] == pytest.approx(125, abs=5)
        expected = np.asarray(animation(pixels)[i])
        np.testing.assert_array_equal(np.asarray(frame.convert("RGB")), expected)


def test_a_gif_keeps_the_colours_of_a_small_thing_on_a_large_background(tmp_path):
    """64 colours of a few pixels each, before a dark background with a little noise."""
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    pixels, ramp = 0.08 + 0.04 * noise, torch.linspace(0, 1, 8)
    thing = torch.stack([torch.ones(8, 8), ramp.expand(8, 8), ramp[:, None].expand(8, 8)])
    pixels[:, 28:36, 28:36] = thing
    save_animation(pixels.expand(1, 1, 2, 3, 64, 64), tmp_path / "a.gif")
    image = np.asarray(Image.open(tmp_path / "a.gif").convert("RGB"))[56:72, 56:72]
    difference = image.astype(int) - expected(thing, 2).astype(int)
    assert np.abs(difference).max() <= 16


def test_a_gif_does_not_dither_and_does_not_flicker(tmp_path):
    """A still, smooth picture stays the same in all frames beside one that changes."""
    ramp = torch.linspace(0, 1, 128).expand(3, 128, 128)
    still = ramp.expand(1, 1, 6, 3, 128, 128)
    pixels = torch.cat([still, colours(1, 1, 6, 3, 128, 128)], 1)
    save_animation(pixels, tmp_path / "a.gif")
    frames = ImageSequence.Iterator(Image.open(tmp_path / "a.gif"))
    left = [cell(frame, 0, 0, 128) for frame in frames]
    for frame in left:
        np.testing.assert_array_equal(frame, left[0])
        assert (frame == frame[:1]).all()  # each column has one colour: nothing is dithered


def test_an_mp4_is_read_back(tmp_path):
    av = pytest.importorskip("av")
    pixels = torch.rand(1, 2, 5, 3, 1, 1).expand(1, 2, 5, 3, 129, 129)
    save_animation(pixels, tmp_path / "a.mp4", fps=12.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12.5
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 5
    for frame, image in zip(frames, animation(pixels), strict=True):
        assert frame.shape == (130, 258 + GAP, 3)  # even sides
        known = np.asarray(image)
        np.testing.assert_allclose(frame[64, 64].astype(float), known[64, 64], atol=8)


def test_an_mp4_without_av_names_the_package_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install av.*gif or \.webp"):
        save_animation(few_colours(1, 1, 2, 3, 8, 8), tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("save", "shape", "name"),
    [
        (save_grid, (1, 1, 3, 8, 8), "a.gif"),
        (save_grid, (1, 1, 3, 8, 8), "a"),
        (save_animation, (1, 1, 2, 3, 8, 8), "a.png"),
        (save_animation, (1, 1, 2, 3, 8, 8), "a.mov"),
    ],
)
def test_other_endings_are_refused(tmp_path, save, shape, name):
    with pytest.raises(ValueError, match=r"the ending of the file must be one of \..*, not"):
        save(few_colours(*shape), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 1, 8, 8), (1, 0, 3, 8, 8), (1, 1, 2, 3, 8, 8)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="is made of"):
        grid(torch.zeros(shape))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_pixels_out_of_range_are_refused(value):
    pixels = torch.zeros(1, 1, 3, 8, 8)
    pixels[..., 3, 3] = value
    with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\], not \["):
        grid(pixels)


def test_what_disturbs_a_write_keeps_the_old_file(tmp_path, monkeypatch):
    save_grid(few_colours(1, 1, 3, 8, 8), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("bpgo.files.os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        save_grid(1 - few_colours(1, 1, 3, 8, 8), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["a.png"]
