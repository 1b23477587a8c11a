"""What the tests of clips share."""

import itertools

import torch
from PIL import Image

from bpgo.worlds.clips.scenes import DIRECTIONS, MOVING, VALUES, Scene, all_scenes, track

EVERY = all_scenes()
LOOKS = list(itertools.product(VALUES["shape"], VALUES["colour"]))
WAYS = [
    (None, None),
    ("still", None),
    *itertools.product((MOVING, *DIRECTIONS, "bounce", "grow"), (None, "slow", "fast")),
]
DESCRIPTIONS = [
    Scene(shape, colour, *way)
    for shape, colour, way in itertools.product(
        (None, *VALUES["shape"]), (None, *VALUES["colour"]), WAYS
    )
]


def fits(description, scene):
    """`describes`, as a table of what each word for a motion allows."""
    moving = {*DIRECTIONS, "bounce", "grow"}
    allowed = {None: {*moving, "still"}, MOVING: moving}
    return (
        scene.motion in allowed.get(description.motion, {description.motion})
        and description.shape in (None, scene.shape)
        and description.colour in (None, scene.colour)
        and description.speed in (None, scene.speed)
    )


def path_of(scene, centre):
    """The path (9, 3) of a scene that starts at this centre, in pixels."""
    path = track(scene.motion, scene.speed).clone()
    path[:, :2] += torch.as_tensor(centre, dtype=torch.float32)
    return path


def image_of(frame):
    """A frame (3, H, W) in [0, 1] as a PIL image."""
    return Image.fromarray((frame * 255).round().byte().permute(1, 2, 0).numpy())
