"""What every world must do: the interface that `bpgo.worlds` states, checked on all of them."""

import inspect
import math
import random
import subprocess
import sys
from collections import defaultdict

import pytest
import torch

from bpgo import worlds
from bpgo.registry import TABLES
from bpgo.worlds import load_world
from tests.worlds.common import WORLDS, entropy, generator

INTERFACE = {  # module -> function -> its first parameters
    "scenes": {
        "all_scenes": [],
        "describes": ["description", "scene"],
        "sample_scenes": ["n", "generator"],
        "sample_pixels": ["scenes", "generator"],
    },
    "captions": {
        "wordings": ["description"],
        "omissions": ["scene"],
        "parse": ["caption"],
        "sample_wording": ["description", "rng"],
        "sample_caption": ["scene", "rng"],
        "prompt_bits": ["caption"],
        "scene_bits": ["scene"],
        "graded_prompts": ["n", "seed", "specified"],
    },
    "oracle": {
        "read": ["pixels"],
        "measure": ["pixels", "prompts"],
        "share_right": ["pixels", "prompts"],
        "diversity": ["scenes", "prompt"],
        "error_rate": ["pixels", "scenes"],
    },
}
SCENES = {"shapes": 240 + 1152, "clips": 312, "digits": 10}
VAGUE = {"shapes": "a shape", "clips": "it", "digits": "a digit"}
CLOSED = {"shapes": "a small red circle in the middle", "clips": "a red circle stays still"}
CLOSED["digits"] = "a four"
PIXELS = {"shapes": (3, 32, 32), "clips": (9, 3, 32, 32), "digits": (3, 32, 32)}
NOT_CAPTIONS = ("", "a dog", "four", "circle", "a a a", "red", "a mauve circle", "a ten")


@pytest.fixture(params=WORLDS)
def name(request):
    return request.param


@pytest.fixture
def world(name):
    return load_world(name)


def some_scenes(world, n, seed=0):
    return random.Random(seed).choices(world.scenes.all_scenes(), k=n)


def test_the_metric_table_names_every_world():
    for name in WORLDS:
        assert TABLES["metric"][name] == f"bpgo.worlds.{name}.oracle:measure"
        assert load_world(name).oracle.__name__ == f"bpgo.worlds.{name}.oracle"
    with pytest.raises(ValueError, match="unknown world 'shape': known worlds are shapes, clips"):
        load_world("shape")


@pytest.mark.parametrize("part", INTERFACE)
def test_functions_have_the_names_and_parameters_of_the_interface(world, part):
    for function, expected in INTERFACE[part].items():
        parameters = inspect.signature(getattr(getattr(world, part), function)).parameters
        assert list(parameters)[: len(expected)] == expected, function
        optional = list(parameters.values())[len(expected) :]
        assert all(p.default is not p.empty for p in optional), function
        assert f"{function}(" in worlds.__doc__


def test_imports_have_no_side_effects():
    """In a new process: no module changes the tables of another, or the random numbers."""
    modules = [f"{name}.{part}" for name in WORLDS for part in INTERFACE]
    modules += [f"pretrain.{world}_generator" for world in WORLDS]
    modules += [f"pretrain.{world}_rewards" for world in WORLDS]
    modules += ["pretrain.digits_oracle", "pretrain.prompts"]
    program = f"""
import copy, importlib, random, torch
from bpgo.worlds.pretrain import stages
before = copy.deepcopy(vars(stages)["STAGES"]), torch.get_rng_state(), random.getstate()
known = {{}}
for module in {modules}:
    loaded = importlib.import_module("bpgo.worlds." + module)
    tables = {{k: v for k, v in vars(loaded).items() if k.isupper() and isinstance(v, dict)}}
    for other, saved in known.items():
        assert vars(importlib.import_module(other)).items() >= saved.items(), (module, other)
    known[loaded.__name__] = copy.deepcopy(tables)
assert vars(stages)["STAGES"] == before[0]
assert torch.equal(torch.get_rng_state(), before[1]) and random.getstate() == before[2]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# ------------------------------------------------------------------------------------------ scenes


def test_all_scenes_are_distinct_and_counted(world, name):
    scenes = world.scenes.all_scenes()
    assert len(set(scenes)) == len(scenes) == SCENES[name]


def test_samples_are_scenes_and_drawings_of_them(world, name):
    scenes = world.scenes.sample_scenes(50, generator(1))
    assert len(scenes) == 50
    assert set(scenes) <= set(world.scenes.all_scenes())
    assert len(set(scenes)) > 5
    pixels = world.scenes.sample_pixels(scenes, generator(2))
    assert pixels.shape == (50, *PIXELS[name])
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() < 0.2 < 0.8 < pixels.max() <= 1


def test_the_generator_alone_decides_the_samples(world):
    scenes = world.scenes.sample_scenes(20, generator(1))
    assert scenes == world.scenes.sample_scenes(20, generator(1))
    assert scenes != world.scenes.sample_scenes(20, generator(2))
    pixels = world.scenes.sample_pixels(scenes, generator(3))
    assert torch.equal(pixels, world.scenes.sample_pixels(scenes, generator(3)))
    assert not torch.equal(pixels, world.scenes.sample_pixels(scenes, generator(4)))


# ---------------------------------------------------------------------------------------- captions


def test_omissions_describe_their_scene_and_their_probabilities_sum_to_one(world):
    for scene in some_scenes(world, 20):
        descriptions = world.captions.omissions(scene)
        assert math.isclose(math.fsum(descriptions.values()), 1)
        assert min(descriptions.values()) > 0
        assert all(world.scenes.describes(description, scene) for description in descriptions)


def test_wordings_parse_back_and_their_probabilities_sum_to_one(world):
    rng = random.Random(0)
    for scene in some_scenes(world, 20, seed=1):
        description = rng.choice(list(world.captions.omissions(scene)))
        wordings = world.captions.wordings(description)
        assert math.isclose(math.fsum(wordings.values()), 1)
        assert min(wordings.values()) > 0
        assert world.captions.sample_wording(description, rng) in wordings
        for caption in wordings:
            assert world.scenes.describes(world.captions.parse(caption), scene), caption
            assert set(caption.split()) <= set(world.captions.VOCABULARY)


def test_sampled_captions_describe_their_scene(world):
    rng = random.Random(2)
    captions = set()
    for scene in some_scenes(world, 100, seed=3):
        caption = world.captions.sample_caption(scene, rng)
        captions.add(caption)
        assert world.scenes.describes(world.captions.parse(caption), scene), caption
    assert len(captions) > 30


def test_prompt_bits_are_zero_only_if_one_scene_fits(world):
    rng = random.Random(4)
    bits = []
    for scene in some_scenes(world, 60, seed=5):
        caption = world.captions.sample_caption(scene, rng)
        description = world.captions.parse(caption)
        fitting = sum(world.scenes.describes(description, s) for s in world.scenes.all_scenes())
        bits.append(world.captions.prompt_bits(caption))
        assert 0 <= bits[-1] <= math.log2(fitting) + 1e-9
        assert (bits[-1] == 0) == (fitting == 1), caption
    assert 0 < sum(value == 0 for value in bits) < 60


def test_scene_bits_are_the_entropy_of_the_captions(world):
    for scene in some_scenes(world, 5, seed=6):
        probabilities = defaultdict(float)
        for description, p in world.captions.omissions(scene).items():
            for caption, q in world.captions.wordings(description).items():
                probabilities[caption] += p * q
        expected = entropy(probabilities.values())
        assert expected > 2
        assert world.captions.scene_bits(scene) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("caption", NOT_CAPTIONS)
def test_text_that_is_not_a_caption_is_refused(world, name, caption):
    with pytest.raises(ValueError, match=f"not a caption of the {name} world: '{caption}'"):
        world.captions.parse(caption)


def test_graded_prompts_are_what_their_rows_state(world):
    rows = world.captions.graded_prompts(120, 3, 0.75)
    assert len(rows) == 120
    assert sum(row["bits"] == 0 for row in rows) == 90
    assert len({row["level"] for row in rows}) >= 4
    for row in rows:
        assert row["bits"] == round(world.captions.prompt_bits(row["prompt"]), 4)
        assert (row["level"] == 1) == (row["bits"] == 0)
        assert 0 <= row["level"] <= 1
    assert any(row["bits"] for row in rows[:90])  # shuffled


def test_graded_prompts_depend_on_the_seed_alone(world):
    rows = world.captions.graded_prompts(40, 3)
    assert sum(row["bits"] == 0 for row in rows) == 20
    assert rows == world.captions.graded_prompts(40, 3)
    assert rows != world.captions.graded_prompts(40, 4)


# ------------------------------------------------------------------------------------------ oracle


@pytest.fixture(scope="module", params=WORLDS)
def seen(request):
    """The name of a world, 100 scenes, their pixels, and one caption of each."""
    world, rng = load_world(request.param), random.Random(0)
    scenes = world.scenes.sample_scenes(100, generator(1))
    captions = [world.captions.sample_caption(scene, rng) for scene in scenes]
    return request.param, scenes, world.scenes.sample_pixels(scenes, generator(2)), captions


def test_the_oracle_reads_drawings(seen):
    name, scenes, pixels, _ = seen
    oracle = load_world(name).oracle
    reading = oracle.read(pixels)
    wrong = sum(a != b for a, b in zip(reading.scenes, scenes, strict=True))
    assert wrong <= (3 if name == "digits" else 0)
    assert reading.distance.shape == (100,)
    assert reading.distance.max() < (0.3 if name == "digits" else 0.1)
    assert oracle.error_rate(pixels, scenes)["misread"] == wrong / 100


def test_errors_are_counted(seen):
    name, scenes, pixels, _ = seen
    oracle = load_world(name).oracle
    read = oracle.read(pixels).scenes
    pixels = pixels[:20].clone()
    pixels[0] = 0.5
    labels = read[:20]
    labels[0] = labels[1]
    labels[5] = next(scene for scene in scenes if scene != labels[5])
    rates = oracle.error_rate(pixels, labels)
    assert rates == {"misread": 2 / 20, "unrecognised": 1 / 20}


def test_accuracy_is_one_where_the_prompt_describes_what_is_read(seen):
    name, _, pixels, captions = seen
    world = load_world(name)
    read = world.oracle.read(pixels).scenes
    for prompts in (captions, captions[1:] + captions[:1]):
        expected = []
        for prompt, scene in zip(prompts, read, strict=True):
            fits = scene is not None
            fits = fits and world.scenes.describes(world.captions.parse(prompt), scene)
            expected.append(float(fits))
        accuracy = world.oracle.measure(pixels, prompts)["accuracy"]
        assert accuracy.tolist() == expected
    own = world.oracle.measure(pixels, captions)["accuracy"].mean()
    assert own >= 0.97
    assert accuracy.mean() < 0.6  # the captions of other scenes


def test_the_share_that_is_right_is_one_for_own_captions_and_less_for_others(seen):
    name, _, pixels, captions = seen
    oracle = load_world(name).oracle
    own = oracle.share_right(pixels, captions)
    assert own.shape == (100,)
    assert own.mean() > 0.97
    assert own.max() <= 1 + 1e-6
    others = captions[1:] + captions[:1]
    share, accuracy = oracle.share_right(pixels, others), oracle.measure(pixels, others)["accuracy"]
    assert share.mean() < own.mean() - 0.2
    if name != "digits":  # there a share is a probability
        assert (share >= accuracy).all()
        assert ((share == 1) & (accuracy == 0)).sum() <= 2  # attributes of a pair in either order
        assert ((share > 0) & (share < 1)).sum() > 20


def test_metrics_have_one_value_per_sample_and_distance_is_that_of_the_reading(seen):
    name, _, pixels, captions = seen
    oracle = load_world(name).oracle
    metrics = oracle.measure(pixels, captions)
    assert {"accuracy", "diversity"} <= metrics.keys()
    assert all(values.shape == (100,) for values in metrics.values())
    if name != "clips":
        assert list(metrics) == ["accuracy", "distance", "diversity"]
        assert torch.equal(metrics["distance"], oracle.read(pixels).distance)


def test_groups_are_adjacent_samples_of_a_prompt(seen):
    name, _, pixels, _ = seen
    oracle = load_world(name).oracle
    vague, closed = VAGUE[name], CLOSED[name]
    pixels = pixels[[0, 0, 0, 0, 1, 2, 3, 4, 5]]
    diversity = oracle.measure(pixels, [vague] * 4 + [closed] * 2 + [vague] * 3)["diversity"]
    last = oracle.diversity(oracle.read(pixels[6:]).scenes, vague)
    assert last > 0
    assert diversity[:4].tolist() == [0] * 4
    assert diversity[4:6].isnan().all()
    assert diversity[6:].tolist() == pytest.approx([last] * 3)


def test_half_precision_is_read_and_no_gradient_is_kept(seen):
    name, _, pixels, captions = seen
    oracle = load_world(name).oracle
    halved = pixels[:8].half().requires_grad_()
    assert oracle.read(halved).scenes == oracle.read(pixels[:8]).scenes
    metrics = oracle.measure(halved, captions[:8])
    assert not any(values.requires_grad for values in metrics.values())


def test_pixels_of_another_shape_are_refused(world, name):
    shape = PIXELS[name]
    others = [shape, (2, *shape[:-2], 16, 16), (2, 1, *shape), (2, *shape[:-3], 1, 32, 32)]
    expected = ", ".join(["B", *map(str, shape)])
    for other in others:
        with pytest.raises(ValueError, match=rf"the {name} world reads .* \({expected}\), not \("):
            world.oracle.read(torch.zeros(other))


@pytest.mark.parametrize("kind", ["noise", "black", "white", "grey"])
def test_nothing_is_read_where_nothing_of_the_world_is_shown(world, name, kind):
    shape = (3, *PIXELS[name])
    pixels = {
        "noise": torch.rand(shape, generator=generator()),
        "black": torch.zeros(shape),
        "white": torch.ones(shape),
        "grey": torch.full(shape, 0.5),
    }[kind]
    assert world.oracle.read(pixels).scenes == [None] * 3
    metrics = world.oracle.measure(pixels, [VAGUE[name]] * 3)
    assert metrics["accuracy"].tolist() == [0.0] * 3
    assert metrics["diversity"].isnan().all()


def test_diversity_is_one_on_average_in_the_world_and_zero_if_all_are_alike(world, name):
    rng, scenes = random.Random(1), world.scenes.all_scenes()
    description = world.captions.parse(VAGUE[name])
    fitting = [scene for scene in scenes if world.scenes.describes(description, scene)]
    groups = [world.oracle.diversity(rng.choices(fitting, k=4), VAGUE[name]) for _ in range(1500)]
    assert sum(groups) / len(groups) == pytest.approx(1, abs=0.03)  # unbiased for small groups
    assert world.oracle.diversity([fitting[0]] * 5, VAGUE[name]) == 0
    assert world.oracle.diversity([fitting[0]] * 2 + [None] * 3, VAGUE[name]) == 0


def test_diversity_is_not_defined_if_nothing_is_open_or_too_little_is_read(world, name):
    closed = world.captions.parse(CLOSED[name])
    [scene] = [s for s in world.scenes.all_scenes() if world.scenes.describes(closed, s)]
    assert world.oracle.diversity([scene] * 4, CLOSED[name]) is None
    assert world.oracle.diversity([scene, None, None], VAGUE[name]) is None
    assert world.oracle.diversity([None] * 4, VAGUE[name]) is None
