"""Pictures of a run's model, compared with plain diffusers."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageSequence

from bpgo import pictures
from bpgo.__main__ import main
from bpgo.checkpoint import CheckpointError
from bpgo.config import build_config
from bpgo.prompts import Prompt
from bpgo.rollout import row_noise, seed_of
from bpgo.sample import sample_run, with_image
from bpgo.sde import sigma_grid
from bpgo.trainer import Trainer
from tests.generators.pipelines import ask_flux
from tests.small_trainers import PROMPTS, merged, prompts_of, random_image, redness

pytestmark = pytest.mark.usefixtures("one_thread")
A, B = PROMPTS[:2]
FACTOR, SIDE, GAP = 4, 128, pictures.GAP  # 32 pixels, enlarged


@pytest.fixture(scope="module")
def finished_run(trees, tmp_path_factory):
    """The folder of a finished run of a task."""
    folders = {}

    def finished_run(task):
        if task in folders:
            return folders[task]
        changes = {
            "optimiser": {"ema_decay": 0.5, "learning_rate": 3e-2},
            "evaluation": {"steps": 4},
            "checkpoint_every": 1,
        }
        folder = folders[task] = tmp_path_factory.mktemp("finished") / "run"
        config = build_config(merged(trees[task], changes))
        Trainer(config, folder, reward=redness, prompts=prompts_of(task), progress=False).train()
        return folder

    return finished_run


@pytest.fixture
def run(finished_run):
    return finished_run("t2i")


def cells(file, rows, columns):
    """The pictures of a grid, (rows, columns, 32, 32, 3) of 8 bits."""
    image = np.asarray(Image.open(file)).astype(int)
    assert image.shape[:2] == (rows * (SIDE + GAP) - GAP, columns * (SIDE + GAP) - GAP)
    found = np.zeros((rows, columns, 32, 32, 3), int)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (SIDE + GAP), j * (SIDE + GAP)
            found[i, j] = image[top : top + SIDE : FACTOR, left : left + SIDE : FACTOR]
    return found


def of_diffusers(folder, prompt, seed, samples, steps):
    """The same pictures from a folder that plain diffusers loads."""
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    noise = row_noise([seed_of("sample", seed, prompt, i) for i in range(samples)], (4, 8, 8), 1)[0]
    sigmas = sigma_grid(steps)[:-1].tolist()
    pixels = ask_flux(pipeline, noise, [prompt] * samples, sigmas, 3.5, "pt")
    return (255 * pixels).permute(0, 2, 3, 1).numpy()


def test_the_newest_checkpoint_samples_as_the_exported_model_in_diffusers(run, tmp_path):
    file = sample_run(run, [A, B], tmp_path / "grid.png", seed=5, samples=3)
    assert file == tmp_path / "grid.png"
    found = cells(file, 2, 3)
    for row, prompt in enumerate((A, B)):
        expected = of_diffusers(run / "final", prompt, 5, 3, steps=4)
        np.testing.assert_allclose(found[row], expected, atol=0.51)


def test_iteration_0_samples_as_the_starting_model_from_the_same_noise(run, tiny_folder, tmp_path):
    """It needs no checkpoint, and other prompts and samples change nothing."""
    shutil.copytree(run, tmp_path / "run")
    for place in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(place)
    with pytest.raises(CheckpointError, match="no checkpoint yet; --at 0"):
        sample_run(tmp_path / "run", [B])
    start = cells(sample_run(tmp_path / "run", [B], at=0, samples=2, steps=3), 1, 2)
    expected = of_diffusers(tiny_folder, B, 0, 2, steps=3)
    np.testing.assert_allclose(start[0], expected, atol=0.51)
    trained = cells(sample_run(run, [B], tmp_path / "a.png", samples=2, steps=3), 1, 2)
    assert abs(trained - start).max() > 2


def test_a_sample_depends_on_its_prompt_seed_and_number_alone(run, tmp_path):
    settings = json.loads((run / "config.json").read_text())
    settings["sampling"]["micro_batch"] = 2
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    both = cells(sample_run(run, [A, B], tmp_path / "both.png", samples=3), 2, 3)
    alone = cells(sample_run(tmp_path / "run", [B], tmp_path / "b.png", samples=5), 1, 5)
    assert abs(alone[0, :3] - both[1]).max() <= 1  # another batch may round otherwise
    assert abs(both[0] - both[1]).max() > 10
    assert abs(both[1, 0] - both[1, 1]).max() > 10
    other = cells(sample_run(run, [B], tmp_path / "c.png", seed=1, samples=3), 1, 3)
    assert abs(other[0] - both[1]).max() > 10


def test_the_default_file_says_what_it_shows_and_is_in_the_folder_of_the_run(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    file = sample_run(tmp_path / "run", [A], at=1, seed=7, samples=1, steps=1)
    assert file == tmp_path / "run" / "sample-a-red-circle-000001-seed7.png"


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_videos_become_an_animation(finished_run, task, tmp_path):
    run, prompts = finished_run(task), prompts_of(task)[:1]
    file = sample_run(run, prompts, tmp_path / "a.webp", samples=2, steps=2)
    image = Image.open(file)
    assert image.n_frames == 5
    assert image.size == (2 * 128 + GAP, 128)  # 16 pixels, enlarged
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    assert image.info["duration"] == 200  # ms, known once a frame is read: five last a second
    assert abs(frames[0].astype(int) - frames[-1]).max() > 2
    if task == "i2v":
        other = [Prompt(str(prompts[0]), random_image(9))]
        again = sample_run(run, other, tmp_path / "b.webp", samples=2, steps=2)
        first = np.asarray(Image.open(again).convert("RGB"))
        assert abs(first.astype(int) - frames[0]).max() > 2


def test_a_picture_of_videos_is_refused_and_so_is_an_animation_of_images(finished_run, tmp_path):
    with pytest.raises(ValueError, match=r"must be one of \.gif, \.webp, \.mp4, not '\.png'"):
        sample_run(finished_run("t2v"), [A], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"must be one of \.png, .*, not '\.gif'"):
        sample_run(finished_run("t2i"), [A], tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, r"number of samples \(-n\) must be at least 1, not 0"),
        ({"steps": 0}, r"number of steps \(--steps\) must be at least 1, not 0"),
        ({"prompts": []}, "no prompt to sample"),
        ({"prompts": ["a zebra"]}, "a zebra"),
        ({"prompts": [""]}, "prompt"),
        ({"prompts": with_image}, "takes no images"),
        ({"at": 9}, "no checkpoint of iteration 9. Its checkpoints: 1, 2;"),
        ({"output": "a.txt"}, "the ending of the file must be one of"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(run, tmp_path, arguments, message):
    random_image(0).save(tmp_path / "image.png")
    arguments = {"prompts": [A], "output": "a.png"} | arguments
    if callable(arguments["prompts"]):
        arguments["prompts"] = arguments["prompts"]([A], tmp_path / "image.png")
    arguments["output"] = tmp_path / arguments["output"]
    with pytest.raises(ValueError, match=message):
        sample_run(run, **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]


def test_the_command_samples_and_names_the_file(finished_run, tmp_path, capsys):
    random_image(0).save(tmp_path / "first.png")
    run, file = str(finished_run("i2v")), tmp_path / "a.gif"
    command = ["sample", run, A, B, "-n", "1", "--steps", "1", "--seed", "3", "-o", str(file)]
    assert main([*command, "--image", str(tmp_path / "first.png")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(file)
    assert Image.open(file).size == (128, 2 * 128 + GAP)
    assert main([*command, "--image", str(tmp_path / "nowhere.png")]) == 2
    assert "nowhere.png" in capsys.readouterr().err
    assert main(command) == 2
    assert "image-to-video needs one image" in capsys.readouterr().err
