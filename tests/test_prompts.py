"""Prompts: texts that may carry an image."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from bpgo.prompts import Prompt, images_of, key_of, pixels_of


def noise_image(seed=0, size=(8, 8), mode="RGB"):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def pixels(image):
    return np.asarray(image).tolist()


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
    for mixed in ([first, "a shape", second], [Prompt("a shape"), first, second]):
        with pytest.raises(
            ValueError, match=r"1 of 3 prompts have no image.*, 'a shape': no image"
        ):
            images_of(mixed)


def test_all_prompts_without_an_image_are_listed():
    mixed = [Prompt("it moves", noise_image()), Prompt("it", where="p.csv, line 3"), "a shape"]
    with pytest.raises(ValueError, match="2 of 3 prompts have no image: give all one") as refused:
        images_of(mixed)
    lines = [line.strip() for line in str(refused.value).splitlines()[1:]]
    assert lines == ["p.csv, line 3, 'it': no image", "prompt 3, 'a shape': no image"]


def test_the_image_of_a_prompt_is_what_a_model_sees():
    """Pictures with equal bytes may show different things."""
    picture = noise_image(0, (8, 8), "L")
    palettes = []
    for colours in (range(256), range(255, -1, -1)):
        turned = picture.copy()
        turned.putpalette([value for colour in colours for value in (colour, 0, 0)])
        palettes.append(Prompt("it moves", turned))
    assert palettes[0].image.mode == "RGB"
    assert palettes[0].key != palettes[1].key
    tagged = noise_image()
    tagged.info["exif"] = orientation(3)
    prompt = Prompt("it moves", tagged)
    assert pixels(prompt.image) == pixels(noise_image().rotate(180))
    assert prompt.key != Prompt("it moves", noise_image()).key


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


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
