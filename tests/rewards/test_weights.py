"""Reading published files: both formats of torch.save; damaged, incomplete and foreign files."""

import pytest
import torch

from bpgo.rewards import RewardError, load_reward
from tests.rewards.layouts import FILES, LONG, PROMPTS, Code, noisy_images


def scores(name, place):
    return load_reward(name, place)(noisy_images(32, 32), PROMPTS)


@pytest.mark.parametrize("name", FILES)
def test_an_image_s_reward_does_not_depend_on_its_batch(published, name):
    reward = load_reward(name, published[name][0])
    pixels, prompts = noisy_images(40, 50), [PROMPTS[2], PROMPTS[1], LONG]
    together = reward(pixels, prompts)
    alone = torch.cat([reward(pixels[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    for changed in (reward(pixels, prompts[::-1]), reward(pixels.flip(0), prompts)):
        assert (changed - together).abs().max() > 1e-3
    with pytest.raises(RewardError, match=r"takes images \(batch, 3, height, width\)"):
        reward(torch.zeros(3, 9, 3, 32, 32), prompts)


@pytest.mark.parametrize("name", FILES)
def test_pixels_of_any_precision_make_float32_rewards_without_gradients(published, name):
    reward, pixels = load_reward(name, published[name][0]), noisy_images(40, 50)
    expected = reward(pixels, PROMPTS)
    doubled = reward(pixels.double().requires_grad_(), PROMPTS)
    torch.testing.assert_close(doubled, expected, atol=1e-5, rtol=0)
    for came in (expected, doubled, reward(pixels.bfloat16(), PROMPTS)):
        assert came.dtype == torch.float32
        assert not came.requires_grad


# ------------------------------------------------------------------------------------- torch.save


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_zip", [True, False])
def test_both_formats_of_torch_save_load(copied, name, is_zip, published):
    folder, file = copied(name)
    content = {"state_dict": published[name][1]} if "hps" in name else published[name][1]
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    expected = scores(name, published[name][0])
    torch.testing.assert_close(scores(name, folder), expected, atol=1e-5, rtol=0)


TEXTS = (
    b"no checkpoint",
    b"a red circle\n",
    b"hello",
    b"version https://git-lfs.github.com/spec/v1\n",
    "ü".encode(),
    b"r",
    bytes(99),
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_damaged_file_is_refused_by_name(copied, published, name, is_zip):
    folder, file = copied(name)
    torch.save({"state_dict": published[name][1]}, file, _use_new_zipfile_serialization=is_zip)
    content = file.read_bytes()
    lengths = (0, 1, 20, 1000, len(content) // 2, len(content) - 5)
    for damaged in [content[:length] for length in lengths] + list(TEXTS):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{file.name} is damaged,? or .*: download it again"):
            load_reward(name, folder)


@pytest.mark.parametrize("name", FILES)
def test_code_in_a_file_is_refused_and_not_run(copied, name, capsys):
    folder, file = copied(name)
    message = rf"{file.name} is damaged, or contains more than tensors \(code in it is not run\)"
    with_code = [{"state_dict": {}, "code": Code()}, {"state_dict": {"code": Code()}}, Code()]
    for content in [*with_code, [1, 2], torch.zeros(3)]:
        torch.save(content, file)
        with pytest.raises(ValueError, match=message):
            load_reward(name, folder)
    assert "ran" not in capsys.readouterr().out


# ------------------------------------------------------------------------------ incomplete models


MISSING = [  # a tensor by its published name, and by the one in the message if that is another
    ("clip", "visual_projection.weight", None),
    ("clip", "text_model.encoder.layers.1.mlp.fc2.bias", None),
    ("clip", "logit_scale", None),
    ("pickscore", "text_model.final_layer_norm.bias", None),
    ("hpsv2", "text_projection", "text_projection.weight"),
    ("hpsv2", "visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    (
        "hpsv2",
        "visual.positional_embedding",
        "vision_model.embeddings.position_embedding.weight",
    ),
    ("hpsv2", "token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("hpsv2", "logit_scale", None),
    (
        "hpsv2",
        "transformer.resblocks.0.mlp.c_fc.weight",
        "text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    (
        "hpsv2",
        "visual.transformer.resblocks.1.attn.in_proj_bias",
        "vision_model.encoder.layers.1.self_attn.k_proj.bias",
    ),
    ("hpsv2.0", "ln_final.bias", "text_model.final_layer_norm.bias"),
    ("image_reward", "blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("image_reward", "blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    (
        "image_reward",
        "blip.visual_encoder.blocks.0.mlp.fc1.weight",
        "vision.encoder.layers.0.mlp.fc1.weight",
    ),
    (
        "image_reward",
        "blip.text_encoder.encoder.layer.2.crossattention.self.key.bias",
        "text.encoder.layer.2.crossattention.self.key.bias",
    ),
    ("image_reward", "mlp.layers.7.weight", "head.4.weight"),
    ("image_reward", "mlp.layers.2.bias", "head.1.bias"),
]


@pytest.mark.parametrize(("name", "tensor", "called"), MISSING)
def test_a_missing_or_unknown_tensor_is_named(copied, published, name, tensor, called):
    folder, file = copied(name)
    state = dict(published[name][1])

    def save(state):
        torch.save({"state_dict": state} if "hps" in name else state, file)

    save(state | {"another": torch.zeros(1)})
    message = r"1 are unknown, such as another\. Check the path, or download"
    with pytest.raises(ValueError, match=message):
        load_reward(name, folder)
    del state[tensor]
    save(state)
    called = (called or tensor).replace(".", r"\.")
    message = rf"{FILES[name]}.* is not a complete .*{called}.*[dD]ownload"
    with pytest.raises(ValueError, match=message):
        load_reward(name, folder)


@pytest.mark.parametrize("name", FILES)
def test_another_file_or_another_reward_s_folder_is_refused(published, tmp_path, name):
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes\n")
    message = rf"notes\.txt is (damaged, or|a file: {name} needs a folder with config\.json)"
    with pytest.raises(ValueError, match=message):
        load_reward(name, notes)
    for other in FILES.keys() - {name}:
        if {name, other} == {"clip", "pickscore"}:
            continue  # they have the same architecture
        with pytest.raises((ValueError, OSError), match=str(published[other][0])):
            load_reward(name, published[other][0])
    with pytest.raises(OSError, match=str(tmp_path)):
        load_reward(name, tmp_path)
