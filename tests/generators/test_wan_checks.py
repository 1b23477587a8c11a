"""What the Wan policy refuses: pipelines, options, prompts and images."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bpgo.generators.wan import WanPolicy
from bpgo.prompts import Prompt
from tests.generators.pipelines import PROMPTS, photos, remade, with_index

# --------------------------------------------------------------------------------------- pipelines


def test_a_missing_expert_is_named(wan_i2v_folder, tmp_path):
    folder = shutil.copytree(wan_i2v_folder, tmp_path / "one")
    shutil.rmtree(folder / "transformer_2")
    message = r"names transformer_2 \(WanTransformer3DModel\), but there is no folder .*former_2: c"
    with pytest.raises(FileNotFoundError, match=message):
        WanPolicy.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boundary_ratio": None}, "has transformer_2 but no boundary_ratio"),
        ({"transformer_2": [None, None]}, r"has boundary_ratio 0\.9 but no transformer_2"),
        ({"boundary_ratio": 1.0}, r"must lie between 0 and 1, not 1\.0"),
        ({"boundary_ratio": 0}, "must lie between 0 and 1, not 0"),
        ({"boundary_ratio": 900}, "must lie between 0 and 1, not 900"),
        ({"expand_timesteps": True}, "expand_timesteps .*5B.* not supported"),
        ({"transformer": [None, None]}, "has no transformer"),
        ({"_class_name": "WanPipeline"}, "with 4 latent channels needs in_channels 4, not 12"),
    ],
)
def test_a_pipeline_that_would_not_run_as_published_is_refused(
    wan_i2v_folder, tmp_path, changes, message
):
    folder = with_index(wan_i2v_folder, tmp_path / "other", **changes)
    with pytest.raises(ValueError, match=message):
        WanPolicy.load(folder)


def test_an_image_encoder_is_refused(i2v):
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

    config = dict(i2v.config) | {"image_dim": 8}
    parts = i2v.pipeline.components | {"transformer": WanTransformer3DModel.from_config(config)}
    pipeline = WanImageToVideoPipeline(**parts, boundary_ratio=0.9)
    with pytest.raises(ValueError, match=r"Wan2\.1-I2V\) is not supported"):
        WanPolicy(pipeline)


def test_other_pipelines_are_refused_by_name(tiny_folder):
    with pytest.raises(ValueError, match="FluxPipeline is not a WanPipeline"):
        WanPolicy.load(tiny_folder)


def test_an_empty_text_encoder_is_refused(wan_folder, tmp_path):
    folder = shutil.copytree(wan_folder, tmp_path / "grey")
    (file,) = (folder / "text_encoder").glob("*.safetensors")
    weights = load_file(file)
    embeddings = [name for name in weights if "shared" in name or "embed_tokens" in name]
    assert embeddings
    for name in embeddings:
        weights[name].zero_()
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="embedding is all zeros"):
        WanPolicy.load(folder)


# ----------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(frames=10), r"frames must be 4k\+1, such as 9 or 81, not 10"),
        (dict(frames=0), r"frames must be 4k\+1"),
        (dict(frames=-3), r"frames must be 4k\+1"),
        (dict(height=20), "height must be a positive multiple of 8 pixels, not 20"),
        (dict(width=0), "width must be a positive multiple of 8 pixels, not 0"),
        (dict(width=-16), "width must be a positive multiple of 8 pixels, not -16"),
        (dict(cfg_gradient="none"), "cfg_gradient must be .* not 'none'"),
        (dict(guidance_2=3.0), r"guidance_2=3\.0 would have no effect: it needs a second expert"),
    ],
)
def test_bad_options_are_refused(t2v, options, message):
    with pytest.raises(ValueError, match=message):
        remade(t2v, **options)


def test_a_second_guidance_that_the_pipelines_would_ignore_is_refused(i2v):
    message = r"guidance_2=3\.0 would have no effect: .* guidance above 1, not 1\.0"
    with pytest.raises(ValueError, match=message):
        remade(i2v, guidance=1.0, guidance_2=3.0)


# ------------------------------------------------------------------------------ prompts and images


@pytest.mark.parametrize("bad", [[], [""], ["a red circle", "  "], [None], ["&nbsp;"]])
def test_an_empty_list_or_prompt_is_refused(t2v, bad):
    with pytest.raises(ValueError, match="non-empty list of non-empty strings"):
        t2v.check(bad)


def test_unknown_words_are_named_in_prompts_and_in_the_negative_one(t2v):
    with pytest.raises(ValueError, match=r"does not know these words, .*'a mauve circle': mauve"):
        t2v.encode(["a red circle", "a mauve circle"])
    with pytest.raises(ValueError, match="the negative prompt, 'blurry': blurry"):
        remade(t2v, negative_prompt="blurry").check(PROMPTS)


def test_text_to_video_takes_no_images(t2v):
    with pytest.raises(ValueError, match="takes no images"):
        t2v.encode(PROMPTS[:1], photos(1, t2v))


def bad_images(policy):
    """(message, images) pairs for two prompts."""
    good, tensor = photos(2, policy), photos(2, policy, "tensor")
    turned = good[0].rotate(90, expand=True)
    return [
        ("one image for each of the 2 prompts, not 0", None),
        ("one image for each of the 2 prompts, not 1", good[:1]),
        ("for each of the 2 prompts, not 3", photos(3, policy, "tensor")),
        (
            r"images must be 32 x 16 pixels .*resize\(\(32, 16\)\).*: prompt 1, 'a red circle.*': "
            r"its image is 16 x 32 pixels",
            [turned, good[1]],
        ),
        ("image is a str, not a PIL image", [good[0], "photo.png"]),
        (r"float \(B, 3, 16, 32\), not torch\.float32 \(2, 3, 32, 16\)", tensor.mT),
        (r"images must be float .* not torch\.uint8", (255 * tensor).to(torch.uint8)),
        (r"must lie in \[0, 1\], not \[.*255\]: divide by 255", 255 * tensor.round()),
        (r"must lie in \[0, 1\], not \[-", 2 * tensor - 1),
        (r"must lie in \[0, 1\], not \[nan", tensor * float("nan")),
    ]


@pytest.mark.parametrize("number", range(10))
def test_bad_images_are_refused(i2v, number):
    message, images = bad_images(i2v)[number]
    for refuse in (i2v.check, i2v.encode):
        with pytest.raises(ValueError, match=message):
            refuse(PROMPTS[:2], images)


def test_the_message_about_an_image_names_its_prompt(i2v):
    with pytest.raises(ValueError, match=f"prompt 2, {PROMPTS[1]!r}: its image is a str"):
        i2v.check(PROMPTS[:2], [photos(1, i2v)[0], "photo.png"])


def test_all_images_that_do_not_fit_are_listed(i2v):
    small = photos(1, i2v)[0].resize((4, 4))
    prompts = [Prompt(PROMPTS[0], small, "p.csv, line 2"), Prompt(PROMPTS[1], small)]
    with pytest.raises(ValueError) as refused:
        i2v.check(prompts, [small, small])
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        f"p.csv, line 2, {PROMPTS[0]!r}: its image is 4 x 4 pixels",
        f"prompt 2, {PROMPTS[1]!r}: its image is 4 x 4 pixels",
    ]


def test_images_of_any_mode_are_encoded_as_people_see_them(i2v):
    """A picture with an orientation and transparency is encoded like its upright RGB version."""
    plain = photos(1, i2v)[0]
    turned = plain.rotate(90, expand=True)
    turned.putalpha(255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    turned.info["exif"] = exif.tobytes()
    expected = i2v.encode(PROMPTS[:1], [plain])["image"]
    assert torch.equal(i2v.encode(PROMPTS[:1], [turned])["image"], expected)


@pytest.mark.parametrize("kind", ["pil", "tensor"])
def test_good_images_pass(i2v, kind):
    i2v.check(PROMPTS[:2], photos(2, i2v, kind))
