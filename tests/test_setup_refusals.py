"""What `bpgo train` refuses before training starts. It names the setting and writes nothing."""

import json
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
import yaml

from bpgo.config import ConfigError, build_config
from tests import small_runs as runs
from tests.small_trainers import PROMPTS, merged, prompts_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def refused(bpgo_train, resume_presets, clip_folder, image_reward_folder, tmp_path):
    """The message of `bpgo train` for settings that it must refuse.

    The names of files and folders in braces are filled in.
    """
    presets = resume_presets["t2i"].parent
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "unknown.txt").write_text("\n".join([*PROMPTS, "a mauve circle"]))
    (tmp_path / "keyless.jsonl").write_text('{"title": "a shape"}\n')
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a shape"\n')
    files = {path.stem: path for path in tmp_path.iterdir()}
    files |= {"t2v": presets / "t2v.txt", "i2v": presets / "i2v.jsonl"}
    files |= {"clip": clip_folder, "image_reward": image_reward_folder}

    def refused(task, *overrides):
        run = tmp_path / "run"
        given = [override.format(**files) for override in overrides]
        code, message = bpgo_train(run, *given, task=task)
        assert code == 2, message
        assert message.count("\n") == 1, message
        assert not run.exists() or not list(run.iterdir()), "something was written"
        return message

    return refused


# ------------------------------------------------------------------------------------- settings


NOWHERE = "is not a folder or file, not a hub id (owner/name), and not shipped with bpgo (shipped: "
MAUVE = (
    "the text encoder does not know these words, so use others: "
    "unknown.txt, line 5, 'a mauve circle': mauve"
)
NEEDS_IMAGES = "image-to-video needs one image for each of the 4 prompts, not 0"
FOR_IMAGES = (
    "raised ValueError: this reward takes images (batch, 3, height, width) in [0, 1], not (1, "
)
OTHER_WORLD = "the oracle of the clips world reads pixels of shape (B, 9, 3, 32, 32), not (1, "


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["group_size=1"], "group_size = 1: Input should be greater than or equal to 2"),
        (["groups=5"], "groups=5 prompts per iteration, but there are only 4 prompts"),
        (["prompts={empty}"], "empty.txt has no prompts"),
        (["prompts=nowhere.txt"], f"'nowhere.txt' {NOWHERE}"),
        (
            ["prompts={keyless}"],
            "keyless.jsonl has no column 'prompt'; it has 'title'",
        ),
        (["prompts={broken}"], "broken.jsonl, line 1: not valid JSON"),
        (["prompts={unknown}"], f"prompts: {MAUVE}"),
        (["evaluation.prompts={unknown}"], f"evaluation.prompts: {MAUVE}"),
        (["reward.name=clipp"], "reward.name: unknown reward 'clipp': did you mean 'clip'"),
        (["reward.name=clip", "reward.path=nowhere"], f"'nowhere' {NOWHERE}"),
        (["generator.height=30"], "must be positive multiples of 8 pixels, not 30 x 16"),
        (["generator.path=tiny-fluks"], f"'tiny-fluks' {NOWHERE}"),
        (
            ["sampling.window=9"],
            "sampling.window=9 does not fit: of 4 steps, the first 3 can carry",
        ),
    ],
)
def test_bad_input_is_refused_up_front_and_writes_nothing(refused, overrides, says):
    assert says in refused("t2i", *overrides)


def test_settings_that_cannot_be_are_refused_in_python_too(make, trees):
    with pytest.raises(ConfigError, match=r"group_size = 1: .* greater than or equal to 2"):
        build_config(merged(trees["t2i"], {"group_size": 1}))
    for prompts in (["a shape"], []):
        with pytest.raises(ValueError, match=rf"groups=2 .* only {len(prompts)}"):
            make(prompts=prompts)


@pytest.mark.parametrize(
    ("task", "overrides", "says"),
    [
        ("t2v", ["generator.frames=10"], "frames must be 4k+1, such as 9 or 81, not 10"),
        ("i2v", ["generator.height=30"], "height must be a positive multiple of 8 pixels, not 30"),
        (
            "t2v",
            ["generator.guidance_2=2.0"],
            "guidance_2=2.0 would have no effect: it needs a second expert",
        ),
        (
            "t2v",
            ["prior.name=first_frame"],
            "prior.name=first_frame is for image-to-video, and these prompts carry no images",
        ),
        ("t2v", ["prompts={i2v}"], "prompts: this Wan is text-to-video: it takes no images"),
        ("i2v", ["prompts={t2v}"], f"prompts: {NEEDS_IMAGES}"),
        ("i2v", ["evaluation.prompts={t2v}"], f"evaluation.prompts: {NEEDS_IMAGES}"),
        ("i2v", ["reward.name=clip", "reward.path={clip}"], f"reward 'clip' {FOR_IMAGES}"),
        (
            "t2v",
            ["reward.name=image_reward", "reward.path={image_reward}"],
            f"reward 'image_reward' {FOR_IMAGES}",
        ),
        (
            "t2v",
            ["generator.frames=1"],
            "video_clip_xl sees 4 frames of a video, but these have 1: sample at least 4",
        ),
        (
            "t2v",
            ["evaluation.held_out={{name: clip, path: {clip}}}"],
            f"reward 'clip' {FOR_IMAGES}",
        ),
        ("t2v", ["evaluation.metrics=clips"], f"{OTHER_WORLD}5, 3, 16, 16)"),
        ("i2v", ["generator.frames=9", "evaluation.metrics=clips"], f"{OTHER_WORLD}9, 3, 16, 16)"),
    ],
)
def test_settings_that_do_not_fit_videos_are_refused(refused, task, overrides, says):
    assert says in refused(task, *overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["generator.frames=5"], "(FluxPipeline) has no option 'frames': it has "),
        (
            ["generator.negative_prompt=a shape"],
            "(FluxPipeline) has no option 'negative_prompt': it has ",
        ),
        (
            [],
            "reward 'test' raised ValueError: video_clip_xl takes videos "
            "(batch, frames, 3, height, width) in [0, 1], not (1, 3, 16, 16)",
        ),
        (
            ["prompts={i2v}", "reward.name=clip", "reward.path={clip}"],
            "prompts: FLUX is text-to-image: it takes no images",
        ),
    ],
)
def test_settings_of_videos_are_refused_for_images(refused, tiny_folder, overrides, says):
    generator = f"{{{{path: {tiny_folder}, height: 16, width: 16}}}}"
    assert says in refused("t2v", f"generator={generator}", *overrides)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda image: image.resize((32, 16)),
            "prompts: images must be 16 x 16 pixels (use image.resize((16, 16)), or another height "
            "and width): prompts.jsonl, line 2, 'a large blue square': its image is 32 x 16 pixels",
        ),
        (
            lambda image: None,
            "prompts: 1 of 4 prompts have no image: give all one, or none: "
            "prompts.jsonl, line 2, 'a large blue square': no image",
        ),
    ],
    ids=["size", "none"],
)
def test_an_image_that_does_not_fit_is_named_with_its_prompt(refused, tmp_path, change, says):
    rows = []
    for i, prompt in enumerate(prompts_of("i2v")):
        image = change(prompt.image) if i == 1 else prompt.image
        row = {"prompt": prompt}
        if image is not None:
            image.save(tmp_path / f"{i}.png")
            row["image"] = f"{i}.png"
        rows.append(json.dumps(row))
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    message = refused("i2v", f"prompts={tmp_path}/prompts.jsonl")
    assert message.startswith(says)


@pytest.mark.parametrize("boundary", [0, 1, 1.5])
def test_a_boundary_outside_the_noise_levels_is_refused(
    refused, wan_i2v_folder, tmp_path, boundary
):
    folder = shutil.copytree(wan_i2v_folder, tmp_path / "wan")
    index = json.loads((folder / "model_index.json").read_text()) | {"boundary_ratio": boundary}
    (folder / "model_index.json").write_text(json.dumps(index))
    message = refused("i2v", f"generator.path={folder}")
    expected = "boundary_ratio in the pipeline's model_index.json must lie between 0 and 1, not "
    assert f"{expected}{boundary}" in message


def test_a_missing_expert_is_refused_by_its_name(refused, wan_i2v_folder, tmp_path):
    folder = shutil.copytree(wan_i2v_folder, tmp_path / "wan")
    shutil.rmtree(folder / "transformer_2")
    message = refused("i2v", f"generator.path={folder}")
    assert "names transformer_2 (WanTransformer3DModel)" in message
    assert f"there is no folder {folder / 'transformer_2'}: copy it" in message


# --------------------------------------------------------------------------------- output folders


def test_a_resume_with_another_config_is_refused_by_its_keys(bpgo_train, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    changes = ["optimiser.learning_rate=0.5", "objective.name=ras", "iterations=6"]
    code, message = bpgo_train(folder, *changes)
    assert code == 2
    assert "objective.name: 'bpgo' -> 'ras'" in message
    assert "optimiser.learning_rate: 0.001 -> 0.5" in message
    assert "iterations" not in message
    assert (folder / "config.json").read_bytes() == (undisturbed / "config.json").read_bytes()
    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


def test_a_run_that_failed_to_start_does_not_block_its_folder(bpgo_train, tmp_path):
    assert bpgo_train(tmp_path / "run", "generator.path=tiny-fluks")[0] == 2
    code, message = bpgo_train(tmp_path / "run", "iterations=1")
    assert code == 0, message


def test_a_folder_that_cannot_be_written_to_is_refused_and_left_unchanged(
    resume_presets, undisturbed
):
    # The folders of pytest are closed to other users.
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        place.chmod(0o755)
        tree = yaml.safe_load(resume_presets["t2i"].read_text())
        (place / "prompts.txt").write_text("\n".join(PROMPTS))
        (place / "preset.yaml").write_text(
            yaml.safe_dump(tree | {"prompts": f"{place}/prompts.txt"})
        )
        folder = shutil.copytree(undisturbed, place / "run")
        shutil.rmtree(folder / "final")
        rights = stat.S_IMODE(folder.stat().st_mode)
        folder.chmod(0o555)
        command = ["train", place / "preset.yaml", "--output", folder]
        disturbances = [runs.drop_rights] if os.getuid() == 0 else []
        code, output = runs.run(command, place / "log", *disturbances)
        folder.chmod(rights)
        assert code == 2, output
        message = output.rpartition("bpgo train: ")[2]
        assert f"cannot write to the output folder {folder}: Permission denied" in message
        names = {path.name for path in undisturbed.iterdir()} - {"final"}
        assert {path.name for path in folder.iterdir()} == names
        metrics = (undisturbed / "metrics.jsonl").read_bytes()
        assert (folder / "metrics.jsonl").read_bytes() == metrics


def test_a_file_in_the_place_of_the_output_folder_is_refused(bpgo_train, tmp_path):
    (tmp_path / "run").write_text("mine")
    code, message = bpgo_train(tmp_path / "run")
    assert code == 2
    assert "cannot write to the output folder" in message
    assert (tmp_path / "run").read_text() == "mine"
