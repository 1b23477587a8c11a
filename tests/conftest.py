"""Makes nbval compare the records of a notebook by their own tolerances, and the rest as it always does.

    python -m pytest -p tests.conftest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks/

nbval compares exact strings (in cells tagged `nbval-check-output`), which no trained number would ever pass.
"""

import json

import pytest

from bpgo.records import MIME, agree

try:
    from nbval.plugin import IPyNbCell
except ImportError:  # then no notebook is collected, and there is nothing to compare
    IPyNbCell = None


def _split(outputs):
    """The records among a cell's outputs, and the other outputs."""
    records = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
    return records, [output for output in outputs if MIME not in output.get("data", {})]


def _comparing_records(compare_others):
    def compare_outputs(cell, test, ref, skip_compare=None):
        (came, test), (expected, ref) = _split(test), _split(ref)
        differences = [line for pair in zip(expected, came, strict=False) for line in agree(*pair)]
        if len(came) != len(expected):
            differences.append(f"the notebook holds {len(expected)} records here, {len(came)} came")
        if differences:
            cell.comparison_traceback = differences
            return False
        return compare_others(cell, test, ref, skip_compare)

    return compare_outputs


if IPyNbCell is not None:
    IPyNbCell.compare_outputs = _comparing_records(IPyNbCell.compare_outputs)


@pytest.fixture
def one_thread():
    """Sums come out bit for bit alike only if they are split alike."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -------------------------------------------------------- models of random weights, made once, for the tests of the package


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A FluxPipeline folder: the shipped autoencoder, everything else with random weights."""
    import torch
    from diffusers import AutoencoderKL

    from bpgo.files import SHIPPED
    from bpgo.worlds.pretrain import architectures as tiny

    folder = tmp_path_factory.mktemp("models") / "flux"
    torch.manual_seed(0)
    tiny.flux_pipeline(
        AutoencoderKL.from_pretrained(SHIPPED / "tiny-autoencoder", dtype=torch.float32)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIPModel folder of random weights, with its tokenizer and image processor."""
    import torch
    from transformers import CLIPImageProcessorPil

    from bpgo.worlds.pretrain import architectures as tiny

    folder, tokenizer = tmp_path_factory.mktemp("models") / "clip", tiny.clip_tokenizer()
    torch.manual_seed(1)
    tiny.clip_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_reward_folder(tmp_path_factory):
    """An ImageReward folder of random weights, with its tokenizer."""
    import torch
    from safetensors.torch import save_file

    from bpgo.rewards.image_reward import ImageReward
    from bpgo.worlds.pretrain import architectures as tiny

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(2)
    model = ImageReward(tiny.image_reward_config() | {"mean": 0.25, "std": 2.0})
    for p in model.parameters():  # BLIP draws its vision weights 1e-10 wide: no image would matter
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    (folder / "config.json").write_text(json.dumps(model.config))
    save_file(model.state_dict(), folder / "model.safetensors")
    tiny.bert_tokenizer().save_pretrained(folder)
    return folder


def _tiny_wan(folder, images):
    """A Wan pipeline folder as published: one transformer for text-to-video, two experts for image-to-video."""
    import torch
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanImageToVideoPipeline,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    from bpgo.worlds.pretrain import architectures as tiny

    torch.manual_seed(3)
    tokenizer = tiny.t5_tokenizer()
    shape = dict(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=12 if images else 4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
    )
    parts = dict(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
            )
        ),
        vae=AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            scale_factor_spatial=4,
            scale_factor_temporal=4,
            latents_mean=[0.3, -0.2, 0.1, 0.5],
            latents_std=[0.8, 1.5, 1.1, 0.6],
        ),
        transformer=WanTransformer3DModel(**shape),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    if images:
        parts |= dict(transformer_2=WanTransformer3DModel(**shape), boundary_ratio=0.9)
    for name in {"transformer", "transformer_2"} & set(parts):
        for p in parts[name].parameters():
            p.data *= 2 if p.ndim > 1 else 1  # so that words and pictures matter
    (WanImageToVideoPipeline if images else WanPipeline)(**parts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory):
    """A WanPipeline folder of random weights: text-to-video by one transformer."""
    return _tiny_wan(tmp_path_factory.mktemp("models") / "wan", images=False)


@pytest.fixture(scope="session")
def wan_i2v_folder(tmp_path_factory):
    """A WanImageToVideoPipeline folder of random weights: two experts, the boundary at 0.9."""
    return _tiny_wan(tmp_path_factory.mktemp("models") / "wan-i2v", images=True)
