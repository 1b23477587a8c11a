"""The oracle of drawings: what it reads on clean, autoencoded and foreign images."""

import random

import pytest
import torch

from bpgo.files import SHIPPED
from bpgo.worlds.forms import BACKGROUND, SIDE
from bpgo.worlds.pretrain.fit import roundtrip
from bpgo.worlds.shapes import oracle
from bpgo.worlds.shapes.captions import parse
from bpgo.worlds.shapes.scenes import (
    Scene,
    Thing,
    all_scenes,
    describes,
    draw,
    sample_pixels,
    sample_scenes,
)
from tests.worlds.common import generator

STILL = torch.zeros(1, 2, 2)


@pytest.fixture(scope="module")
def seen():
    """512 scenes, their drawings, and these once through the shipped autoencoder."""
    from diffusers import AutoencoderKL

    scenes = sample_scenes(512, generator(1))
    images = sample_pixels(scenes, generator(2))
    vae = AutoencoderKL.from_pretrained(SHIPPED / "tiny-autoencoder", dtype=torch.float32).eval()
    return scenes, images, roundtrip(vae, images)


def test_the_oracle_reads_clean_and_autoencoded_drawings(seen):
    scenes, clean, decoded = seen
    for images in (clean, decoded):
        assert oracle.error_rate(images, scenes)["misread"] <= 0.01
    assert (decoded - clean).abs().mean() < 0.02


def test_the_distance_is_to_the_nearest_drawing(seen):
    """By brute force over the whole-pixel shifts of the scene itself."""
    scenes, images, _ = seen
    single = [i for i, scene in enumerate(scenes) if len(scene.things) == 1][:15]
    shifts = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 2)
    for i, distance in zip(single, oracle.read(images[single]).distance, strict=True):
        drawn = draw([scenes[i]] * 9, shifts[:, None].expand(-1, 2, -1))
        expected = (drawn - images[i]).square().mean((1, 2, 3)).sqrt().min().item()
        assert distance == pytest.approx(expected, abs=2e-3)


def not_a_scene():
    empty = torch.full((3, SIDE, SIDE), BACKGROUND)
    half = empty.clone()
    half[:, :, 16:] = 0.9
    alone = draw([Scene((Thing("circle", "red", "large", "middle"),))], STILL)[0]
    copies = [alone, alone.roll(9, 1), alone.roll(-9, 2), alone.roll((9, 9), (1, 2))]
    return {
        "empty": empty,
        "half": half,
        "crowd": torch.stack(copies).amax(0),
        "negative": 1 - alone,
    }


@pytest.mark.parametrize("kind", not_a_scene())
def test_nothing_is_read_where_there_is_no_scene(kind):
    image = not_a_scene()[kind][None]
    assert oracle.read(image).scenes == [None]
    assert oracle.measure(image, ["a shape"])["accuracy"].tolist() == [0.0]


def test_the_share_that_is_right_counts_attributes():
    image = draw([Scene((Thing("circle", "red", "small", "left"),))], STILL)
    shares = {
        "a small red circle on the left": 1,
        "a small red square on the left": 3 / 4,
        "a large blue circle": 1 / 3,
        "a shape": 1,
        "a red circle above a blue box": 0,
        "a green thing": 0,
    }
    found = oracle.share_right(image.expand(6, -1, -1, -1), list(shares))
    assert found.tolist() == pytest.approx(list(shares.values()))
    assert oracle.share_right(torch.full((1, 3, 32, 32), 0.5), ["a shape"]).tolist() == [0.0]
    images = sample_pixels(all_scenes(1)[::17], generator())
    for prompt in shares:
        prompts = [prompt] * len(images)
        accuracy = oracle.measure(images, prompts)["accuracy"]
        assert torch.equal(oracle.share_right(images, prompts) == 1, accuracy == 1)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle",
        "a thing at the left",
        "a shape and a thing",
        "a red circle and a shape",
        "a red shape above a thing",
    ],
)
def test_diversity_is_one_for_what_the_prompt_leaves_open(prompt):
    rng, description = random.Random(1), parse(prompt)
    fitting = [s for s in all_scenes(len(description.things)) if describes(description, s)]
    assert oracle.diversity(rng.choices(fitting, k=3000), prompt) == pytest.approx(1, abs=0.03)
    assert oracle.diversity([fitting[0]] * 5, prompt) == 0


def test_diversity_is_less_where_an_open_attribute_varies_less():
    red = [scene for scene in all_scenes(1) if scene.things[0].colour == "red"]
    found = oracle.diversity(random.Random(1).choices(red, k=3000), "a shape")
    assert found == pytest.approx(3 / 4, abs=0.02)  # three of four open attributes vary


def test_diversity_needs_the_number_of_things_that_the_prompt_names():
    assert oracle.diversity([all_scenes(2)[0]] * 4, "a shape") is None
    pair = [all_scenes(2)[0], all_scenes(2)[0], all_scenes(1)[0]]
    assert oracle.diversity(pair, "a shape and a shape") == 0
