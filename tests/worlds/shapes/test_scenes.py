"""Scenes of drawings, and what is drawn of them."""

import math

import pytest
import torch

from bpgo.worlds.forms import BACKGROUND, SIDE
from bpgo.worlds.shapes.scenes import VALUES, Scene, Thing, all_scenes, draw, sample_scenes
from tests.worlds.common import generator

STILL = torch.zeros(1, 2, 2)


def test_the_world_has_as_many_scenes_as_its_attributes_allow():
    assert len(set(all_scenes(1))) == 4 * 6 * 2 * 5 == 240
    assert len(set(all_scenes(2))) == (4 * 6) ** 2 * 2 == 1152
    assert all_scenes() == all_scenes(1) + all_scenes(2)


def test_drawings_are_in_the_unit_interval_and_every_attribute_shows():
    scenes = [*all_scenes(1), *all_scenes(2)[::7]]
    drawings = torch.cat([draw([scene], STILL) for scene in scenes])
    assert drawings.shape == (len(scenes), 3, SIDE, SIDE)
    assert 0 <= drawings.min() <= drawings.max() <= 1
    assert (drawings[:, :, 0, 0] == BACKGROUND).all()
    flat = drawings.flatten(1)
    distances = torch.cdist(flat, flat) + 1e9 * torch.eye(len(flat))
    assert distances.min() / math.sqrt(flat.shape[1]) > 0.02  # RMS of the two most alike


@pytest.mark.parametrize(
    ("position", "side_x", "side_y"),
    [("left", -1, 0), ("right", 1, 0), ("top", 0, -1), ("bottom", 0, 1), ("middle", 0, 0)],
)
def test_a_thing_is_drawn_at_its_position(position, side_x, side_y):
    scene = Scene((Thing("square", "white", "small", position),))
    rows, columns = (draw([scene], STILL)[0, 0] > 0.5).nonzero(as_tuple=True)
    for side, places in ((side_x, columns), (side_y, rows)):
        offset = places.float().mean().item() + 0.5 - 16
        assert offset * side > 4 if side else abs(offset) < 0.01


def test_the_things_of_a_pair_are_drawn_on_their_sides():
    red, blue = Thing("circle", "red"), Thing("circle", "blue")
    above = draw([Scene((red, blue), "above")], STILL)[0]
    assert above[0, :16].max() > 0.8 > above[0, 16:].max()
    assert above[2, 16:].max() > 0.9 > above[2, :16].max()
    left = draw([Scene((red, blue), "left")], STILL)[0]
    assert left[0, :, :16].max() > 0.8 > left[0, :, 16:].max()
    assert left[2, :, 16:].max() > 0.9 > left[2, :, :16].max()


def test_offsets_are_in_pixels():
    scene = Scene((Thing("cross", "red", "large", "middle"),))
    moved = draw([scene], torch.tensor([[[1.0, -2.0], [0.0, 0.0]]]))[0]
    torch.testing.assert_close(moved, draw([scene], STILL)[0].roll((-2, 1), (1, 2)))


def test_scenes_are_sampled_uniformly():
    found = sample_scenes(20000, generator(), pairs=0.3)
    single = [scene for scene in found if len(scene.things) == 1]
    assert 1 - len(single) / len(found) == pytest.approx(0.3, abs=0.015)
    for name, values in VALUES.items():
        expected = len(single) / len(values)
        for value in values:
            count = sum(scene.attributes[name] == value for scene in single)
            assert abs(count - expected) < 5 * math.sqrt(expected)
