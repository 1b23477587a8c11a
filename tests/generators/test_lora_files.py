"""Runs can start from LoRA files that bpgo, diffusers or another trainer has written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bpgo.generators import load_generator
from bpgo.generators.flux import FluxPolicy
from bpgo.generators.lora_files import NAME, find_lora, load_adapters, read_adapters
from bpgo.generators.wan import WanPolicy
from tests.generators.pipelines import PROMPTS, noise, photos

RANK, ALPHA = 2, 6.0
I2V_SIZE = dict(height=16, width=32, frames=5, guidance=4.0, guidance_2=2.5)


def trained(policy):
    """The weights that are trained, by name."""
    return {
        f"{part}.{name}": p
        for part, module in policy.modules.items()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def new_flux(tiny_folder):
    return load_generator(tiny_folder, height=32, width=32)


def filled(policy):
    """Change what is trained, as training would."""
    generator = torch.Generator().manual_seed(9)
    for p in trained(policy).values():
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    return policy


@pytest.fixture(scope="module")
def flux_lora(tiny_folder, tmp_path_factory):
    """A trained policy with adapters, and the folder that it was saved in."""
    policy, folder = new_flux(tiny_folder), tmp_path_factory.mktemp("lora")
    policy.add_lora(RANK, ALPHA)
    filled(policy).save(folder, lora=True)
    return policy, folder


@pytest.fixture(scope="module")
def wan_lora(wan_i2v_folder, tmp_path_factory):
    """The same with two experts."""
    policy, folder = WanPolicy.load(wan_i2v_folder, **I2V_SIZE), tmp_path_factory.mktemp("lora")
    policy.add_lora(RANK, ALPHA)
    filled(policy).save(folder, lora=True)
    return policy, folder


def assert_same_start(policy, other):
    """Equal adapters, and nothing else is trained."""
    expected, found = trained(other), trained(policy)
    assert expected.keys() == found.keys()
    for name, p in expected.items():
        assert torch.equal(p, found[name]), name
        assert found[name].dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("given", ["folder", "file"])
def test_flux_starts_from_what_bpgo_has_saved(tiny_folder, flux_lora, flux, given):
    other, folder = flux_lora
    policy = new_flux(tiny_folder)
    policy.load_lora(folder if given == "folder" else folder / NAME)
    assert_same_start(policy, other)
    x, cond = noise(2, flux), flux.encode(PROMPTS[:2])
    v = policy.velocity(x, 0.5, cond)
    assert torch.equal(v, other.velocity(x, 0.5, cond))  # which includes alpha
    assert (v - flux.velocity(x, 0.5, cond)).abs().mean() > 0.01


@torch.no_grad()
def test_both_experts_start_from_their_own_adapters(wan_i2v_folder, wan_lora, i2v):
    other, folder = wan_lora
    policy = WanPolicy.load(wan_i2v_folder, **I2V_SIZE)
    policy.load_lora(folder)
    assert_same_start(policy, other)
    x, cond = noise(2, i2v), i2v.encode(PROMPTS[:2], photos(2, i2v))
    for sigma in (0.95, 0.5):
        assert torch.equal(policy.velocity(x, sigma, cond), other.velocity(x, sigma, cond))


def test_what_is_loaded_and_saved_again_is_the_same_file(tiny_folder, flux_lora, tmp_path):
    _, folder = flux_lora
    policy = new_flux(tiny_folder)
    policy.load_lora(folder)
    policy.save(tmp_path, lora=True)
    before, after = load_file(folder / NAME), load_file(tmp_path / NAME)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_adapters(tmp_path / NAME)[1:3] == (RANK, ALPHA)


def test_the_names_in_the_metadata_are_sorted_because_sets_have_no_order(flux_lora):
    from safetensors import safe_open

    with safe_open(flux_lora[1] / NAME, framework="pt") as stored:
        settings = json.loads(stored.metadata()["lora_adapter_metadata"])
    names = settings["transformer.target_modules"]
    assert names == sorted(names)


@torch.no_grad()
@pytest.mark.parametrize("layers", [("attn.to_q", "attn.to_v"), ("ff.net.0.proj", "ff.net.2")])
@pytest.mark.parametrize("writer", ["save_lora_weights", "save_lora_adapter"])
def test_adapters_of_other_layers_act_as_in_diffusers(tiny_folder, flux, tmp_path, layers, writer):
    """`save_lora_weights` writes no metadata, and alpha is then the rank."""
    from diffusers import FluxPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = FluxPipeline.from_pretrained(tiny_folder, dtype=torch.float32)
    transformer = pipeline.transformer
    settings = LoraConfig(
        r=3, lora_alpha=3, target_modules=list(layers), init_lora_weights="gaussian"
    )
    transformer.add_adapter(settings)
    for name, p in transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    theirs = FluxPolicy(FluxPipeline.from_pretrained(tiny_folder, dtype=torch.float32), 32, 32)
    if writer == "save_lora_weights":
        pipeline.save_lora_weights(
            tmp_path, transformer_lora_layers=get_peft_model_state_dict(transformer)
        )
        theirs.pipeline.load_lora_weights(tmp_path)
    else:
        transformer.save_lora_adapter(tmp_path)
        theirs.modules["transformer"].load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)

    policy = new_flux(tiny_folder)
    policy.load_lora(tmp_path)
    assert read_adapters(tmp_path / NAME)[1:3] == (3, 3.0)
    x, cond = noise(2, flux), flux.encode(PROMPTS[:2])
    v = policy.velocity(x, 0.5, cond)
    torch.testing.assert_close(v, theirs.velocity(x, 0.5, cond), atol=1e-5, rtol=0)
    assert (v - flux.velocity(x, 0.5, cond)).abs().mean() > 1e-3


def test_adapters_are_float32_in_a_bfloat16_model(tiny_folder, flux_lora):
    policy = load_generator(tiny_folder, dtype="bfloat16", height=32, width=32)
    policy.load_lora(flux_lora[1])
    assert_same_start(policy, flux_lora[0])


# ---------------------------------------------------------------------------------------- refusals


def rewritten(folder, tmp_path, change, metadata=None):
    """The file of a folder with other tensors. It has no metadata unless they are given."""
    tensors = change(load_file(folder / NAME))
    save_file({name: t.clone() for name, t in tensors.items()}, tmp_path / NAME, metadata)
    return tmp_path / NAME


def renamed(tensors, old, new):
    return {name.replace(old, new): t for name, t in tensors.items()}


def test_adapters_of_a_shallower_model_are_refused_with_the_missing_layers(
    tiny_folder, flux_lora, tmp_path
):
    def first_block(tensors):
        return {n: t for n, t in tensors.items() if "single_transformer_blocks.1" not in n}

    file, policy = rewritten(flux_lora[1], tmp_path, first_block), new_flux(tiny_folder)
    message = (
        r"not of this FluxTransformer2DModel: the file has no adapters for "
        r"single_transformer_blocks\.1\.attn\.to_q, .*\. Use adapters"
    )
    with pytest.raises(ValueError, match=message):
        policy.load_lora(file)
    assert not trained(policy), "nothing was added"


def test_adapters_of_a_deeper_model_are_refused_with_the_unexpected_layers(
    tiny_folder, flux_lora, tmp_path
):
    def deeper(tensors):
        return tensors | renamed(tensors, "blocks.0.", "blocks.7.")

    file = rewritten(flux_lora[1], tmp_path, deeper)
    message = r"the model has no layers single_transformer_blocks\.7\.attn\.to_k, .* more\. Use"
    with pytest.raises(ValueError, match=message):
        new_flux(tiny_folder).load_lora(file)


def test_adapters_of_a_wider_model_are_refused_with_the_shapes(tiny_folder, flux_lora, tmp_path):
    def wider(tensors):
        return {n: t.repeat(1, 2) if "lora_A" in n else t for n, t in tensors.items()}

    file = rewritten(flux_lora[1], tmp_path, wider)
    message = (
        r"the shapes differ for .*to_k \(\(2, 192\) and \(96, 2\), not \(2, 96\) and \(96, 2\)\)"
    )
    with pytest.raises(ValueError, match=message):
        new_flux(tiny_folder).load_lora(file)


def test_adapters_of_flux_are_refused_by_wan(wan_folder, flux_lora):
    policy = WanPolicy.load(wan_folder, height=16, width=16, frames=5)
    message = "not of this WanTransformer3DModel: the model has no layers .* and 19 more"
    with pytest.raises(ValueError, match=message):
        policy.load_lora(flux_lora[1])


def test_adapters_of_the_text_encoder_are_refused(tiny_folder, flux_lora, tmp_path):
    layer = "text_encoder.text_model.layers.0.q_proj"

    def with_encoder(tensors):
        return tensors | {
            f"{layer}.lora_A.weight": torch.zeros(2, 8),
            f"{layer}.lora_B.weight": torch.zeros(8, 2),
        }

    file = rewritten(flux_lora[1], tmp_path, with_encoder)
    with pytest.raises(ValueError, match=f"the model has no layers {layer}"):
        new_flux(tiny_folder).load_lora(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: renamed(t, "transformer.", "lora_unet_") | {"a.alpha": torch.ones(1)}, "alpha"),
        (lambda t: renamed(t, "lora_A.weight", "lora_down.weight"), r"lora_down\.weight"),
        (lambda t: renamed(t, "lora_A.weight", "lora_A.bias"), r"lora_A\.bias"),
    ],
)
def test_other_formats_are_refused_with_a_way_to_convert_them(flux_lora, tmp_path, change, message):
    file = rewritten(flux_lora[1], tmp_path, change)
    with pytest.raises(ValueError, match=f"diffusers' format.*{message}.*save_lora_adapter"):
        read_adapters(file)


def test_a_missing_matrix_is_named(flux_lora, tmp_path):
    def without(tensors):
        del tensors["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"]
        return tensors

    file = rewritten(flux_lora[1], tmp_path, without)
    with pytest.raises(ValueError, match=r"incomplete.*transformer_blocks\.0\.attn\.to_q$"):
        read_adapters(file)


def test_an_empty_file_is_refused(tmp_path):
    save_file({}, tmp_path / NAME)
    with pytest.raises(ValueError, match="it has no adapters"):
        read_adapters(tmp_path / NAME)


def test_several_ranks_are_refused(flux_lora, tmp_path):
    def mixed(tensors):
        layer = "transformer.transformer_blocks.0.attn.to_q"
        tensors[f"{layer}.lora_A.weight"] = torch.zeros(5, 96)
        tensors[f"{layer}.lora_B.weight"] = torch.zeros(96, 5)
        return tensors

    file = rewritten(flux_lora[1], tmp_path, mixed)
    with pytest.raises(ValueError, match=r"ranks 2, 5: only plain LoRA adapters.*fuse_lora"):
        read_adapters(file)


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"alpha_pattern": {"a": 3}}])
def test_other_kinds_of_adapters_are_refused(flux_lora, tmp_path, setting):
    stored = json.dumps({f"transformer.{name}": value for name, value in setting.items()})
    metadata = {"lora_adapter_metadata": stored}
    file = rewritten(flux_lora[1], tmp_path, lambda tensors: tensors, metadata)
    with pytest.raises(ValueError, match=f"has {next(iter(setting))}: only plain LoRA"):
        read_adapters(file)


def test_damaged_metadata_and_files_are_named(flux_lora, tmp_path):
    metadata = {"lora_adapter_metadata": "{"}
    file = rewritten(flux_lora[1], tmp_path, lambda tensors: tensors, metadata)
    with pytest.raises(ValueError, match=f"{file}: its metadata are damaged"):
        read_adapters(file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_adapters(file)


def test_experts_of_different_alpha_are_refused(wan_i2v_folder, wan_lora, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(wan_lora[1], folder)
    tensors = load_file(folder / "transformer_2" / NAME)
    save_file(tensors, folder / "transformer_2" / NAME)  # without metadata, so alpha is the rank
    policy = WanPolicy.load(wan_i2v_folder, **I2V_SIZE)
    with pytest.raises(ValueError, match=r"one rank and one alpha.* has 2 and 6, .* 2 and 2"):
        policy.load_lora(folder)
    assert not trained(policy)


# ----------------------------------------------------------------------------------------- finding


def test_a_second_expert_needs_a_folder_with_its_adapters(wan_lora, flux_lora):
    assert find_lora(wan_lora[1], "transformer_2") == wan_lora[1] / "transformer_2" / NAME
    with pytest.raises(FileNotFoundError, match="two experts: give a folder with"):
        find_lora(wan_lora[1] / NAME, "transformer_2")
    with pytest.raises(FileNotFoundError, match=f"has no file transformer_2/{NAME}"):
        find_lora(flux_lora[1], "transformer_2")


def test_what_is_not_a_lora_is_named(tiny_folder, flux_lora, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a whole pipeline.*set generator\.path"):
        find_lora(tiny_folder)
    shutil.copytree(flux_lora[1], tmp_path / "run" / "final")
    with pytest.raises(FileNotFoundError, match=f"is a run: .* in {tmp_path / 'run' / 'final'}"):
        find_lora(tmp_path / "run")
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"in it: other\.safetensors\)"):
        find_lora(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder or file"):
        find_lora(tmp_path / "nowhere")


def test_a_hub_id_that_cannot_be_fetched_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"generator\.lora: someone/some-lora is not in the local"):
        load_adapters({"transformer": torch.nn.Linear(1, 1)}, "someone/some-lora")
