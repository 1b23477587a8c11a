"""The graded prompt files that are shipped, and the images in them."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from bpgo.__main__ import main
from bpgo.files import SHIPPED
from bpgo.images import open_image
from bpgo.prompt_files import read_prompts
from bpgo.prompts import images_of, pixels_of
from bpgo.worlds.clips.captions import graded_scenes
from bpgo.worlds.clips.oracle import read
from bpgo.worlds.pretrain.prompts import data_uri
from bpgo.worlds.pretrain.stages import STAGES

FILES = [("train", 512, 0, 0.75), ("evaluation", 64, 1, 0.5)]


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_data_uris_keep_every_level():
    image = torch.arange(768, dtype=torch.float32).view(3, 16, 16) % 256 / 255
    source = data_uri(image)
    assert source.startswith("data:image/png;base64,")
    decoded = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    torch.testing.assert_close(pixels_of([decoded])[0], image)


def test_the_prompts_are_what_their_command_makes(tmp_path):
    """Exactly, but for images, where rounding on another processor may change a level by one."""
    assert main(["pretrain", "prompts", "video_prompts", "--output", str(tmp_path)]) == 0
    made = {path.name for path in (tmp_path / "prompts").iterdir()}
    written_by_hand = {"graded.jsonl", "graded-evaluation.jsonl"}
    assert made == {path.name for path in (SHIPPED / "prompts").glob("*.jsonl")} - written_by_hand
    for name in made:
        kept, found = (rows_of(folder / "prompts" / name) for folder in (SHIPPED, tmp_path))
        for expected, row in zip(kept, found, strict=True):
            images = [r.pop("image", None) for r in (expected, row)]
            assert row == expected
            if images[0]:
                a, b = (np.array(open_image(i, tmp_path, "here"), dtype=int) for i in images)
                assert np.abs(a - b).max() <= 1


@pytest.mark.parametrize(("name", "n", "offset", "specified"), FILES)
def test_images_show_the_start_of_the_scene_that_their_prompt_describes(name, n, offset, specified):
    graded = graded_scenes(n, STAGES["video_prompts"].seed + offset, specified, images=True)
    prompts = read_prompts(f"prompts/image-clip-{name}.jsonl")
    assert prompts == [row["prompt"] for _, row in graded]
    assert len({prompt.key for prompt in prompts}) == n  # no two images are alike
    assert {(p.image.mode, p.image.size) for p in prompts} == {("RGB", (32, 32))}
    still = pixels_of(images_of(prompts))[:, None].expand(-1, 9, -1, -1, -1)
    for shown, (scene, _) in zip(read(still).scenes, graded, strict=True):
        assert (shown.shape, shown.colour, shown.motion) == (scene.shape, scene.colour, "still")


@pytest.mark.parametrize("file", ["clip", "image-clip"])
@pytest.mark.parametrize(("name", "n", "offset", "specified"), FILES)
def test_the_share_that_leaves_nothing_open_is_exact(file, name, n, offset, specified):
    rows = rows_of(SHIPPED / "prompts" / f"{file}-{name}.jsonl")
    assert len(rows) == n
    assert sum(row["bits"] == 0 for row in rows) == n * specified
    assert all(("image" in row) == (file == "image-clip") for row in rows)


def test_digits_have_prompts_of_every_ambiguity():
    for name, n in (("train", 256), ("evaluation", 64)):
        bits = [row["bits"] for row in rows_of(SHIPPED / "prompts" / f"digits-{name}.jsonl")]
        assert len(bits) == 2 * bits.count(0) == n
        assert set(bits) == {0, 1, 2, 2.3219, 3.3219}
