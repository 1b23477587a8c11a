"""Fixtures that several test modules share, and the comparison of notebook records under nbval.

    python -m pytest -p tests.conftest --nbval-lax --nbval-current-env \\
        --nbval-cell-timeout=600 notebooks/

In cells tagged `nbval-check-output`, nbval compares exact strings, and numbers that are trained are
never equal to the last digit. Records are therefore compared by their own tolerances.
"""

import json
import os

import pytest

from bpgo.records import MIME, agree

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network

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
            differences.append(f"expected {len(expected)} records here, found {len(came)}")
        if differences:
            cell.comparison_traceback = differences
            return False
        return compare_others(cell, test, ref, skip_compare)

    return compare_outputs


if IPyNbCell is not None:
    IPyNbCell.compare_outputs = _comparing_records(IPyNbCell.compare_outputs)


@pytest.fixture
def one_thread():
    """One thread. Sums are equal bit for bit only if they are split in the same way."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------- models of random weights


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
    """A Wan pipeline folder: one transformer, or two experts for image-to-video."""
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
            p.data *= 2 if p.ndim > 1 else 1  # so that texts and images matter
    (WanImageToVideoPipeline if images else WanPipeline)(**parts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory):
    """A WanPipeline folder of random weights: text-to-video with one transformer."""
    return _tiny_wan(tmp_path_factory.mktemp("models") / "wan", images=False)


@pytest.fixture(scope="session")
def wan_i2v_folder(tmp_path_factory):
    """A WanImageToVideoPipeline folder of random weights: two experts, the boundary at 0.9."""
    return _tiny_wan(tmp_path_factory.mktemp("models") / "wan-i2v", images=True)


# ------------------------------------------------------------------------------ small training runs


@pytest.fixture(scope="session")
def video_reward_folder(tmp_path_factory):
    """A VideoCLIP folder of random weights that uses 4 frames, with its tokenizer."""
    import torch
    from safetensors.torch import save_file

    from bpgo.rewards.video_clip_xl import VideoCLIP
    from bpgo.worlds.pretrain import architectures as tiny

    folder, tokenizer = tmp_path_factory.mktemp("models") / "video-reward", tiny.clip_tokenizer()
    folder.mkdir()
    torch.manual_seed(4)
    config = tiny.video_clip_config(tokenizer)
    config["vision"] |= {"image_size": 16}
    model = VideoCLIP(config)
    torch.nn.init.normal_(model.temporal, std=0.5)
    (folder / "config.json").write_text(json.dumps(model.config))
    save_file(model.state_dict(), folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def shared_cache(tmp_path_factory, monkeypatch):
    """Cached rewards and conditions go to a folder of this test session."""
    monkeypatch.setenv("BPGO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def trees(tiny_folder, wan_folder, wan_i2v_folder):
    """The settings of a small run of each task, as nested dicts."""
    from tests.small_trainers import settings_of

    folders = {"t2i": tiny_folder, "t2v": wan_folder, "i2v": wan_i2v_folder}
    return {task: settings_of(task, folder) for task, folder in folders.items()}


@pytest.fixture
def make(trees, tmp_path):
    """A trainer of a task in a new folder. Sections of the config are keywords."""
    from bpgo.config import build_config
    from bpgo.trainer import Trainer
    from tests.small_trainers import merged, prompts_of, redness

    def make(task="t2i", reward=redness, prompts=None, metrics=None, output=None, **changes):
        folder = output or tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        config = build_config(merged(trees[task], changes))
        prompts = prompts_of(task) if prompts is None else prompts
        return Trainer(
            config, folder, reward=reward, prompts=prompts, metrics=metrics, progress=False
        )

    return make


@pytest.fixture(scope="session")
def resume_presets(trees, clip_folder, video_reward_folder, tmp_path_factory):
    """A preset file of each task whose runs have every kind of state, with the reward `test`.

    For image-to-video only one step is trained at a time, and so mostly one expert alone.
    """
    import yaml

    from tests.small_trainers import merged, write_prompts

    folder, presets = tmp_path_factory.mktemp("presets"), {}
    of_task = {
        "t2i": {"generator": {"height": 16, "width": 16}},
        "t2v": {"prior": {"name": "running_mean"}},
        "i2v": {"prior": {"name": "first_frame"}, "sampling": {"window": 1}},
    }
    for task, tree in trees.items():
        prompts = write_prompts(folder / f"{task}{'.jsonl' if task == 'i2v' else '.txt'}", task)
        reward = clip_folder if task == "t2i" else video_reward_folder
        changes = {
            "prompts": str(prompts),
            "reward": {"name": "test", "path": str(reward)},
            "iterations": 4,
            "checkpoint_every": 2,
            "evaluation": {"every": 2},
            "optimiser": {"ema_decay": 0.5},
        }
        presets[task] = folder / f"{task}.yaml"
        tree = merged(merged(tree, changes), of_task[task])
        presets[task].write_text(yaml.safe_dump(tree))
    return presets


@pytest.fixture(scope="session")
def train(resume_presets, tmp_path_factory):
    """Train a preset in a separate process. Returns its exit code and output."""
    from tests import small_runs

    log = tmp_path_factory.mktemp("logs") / "log"

    def train(output, *disturbances, task="t2i", overrides=()):
        command = ["train", resume_presets[task], "--output", output, *overrides]
        return small_runs.run(command, log, *disturbances)

    return train


@pytest.fixture(scope="session")
def undisturbed(train, tmp_path_factory):
    """The folder of a finished text-to-image run. Copy it before you change it."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, output = train(folder)
    assert code == 0, output
    return folder


@pytest.fixture(scope="session")
def shorter(train, tmp_path_factory):
    """The folder of a run that was finished after two iterations. Copy it before you change it."""
    folder = tmp_path_factory.mktemp("runs") / "shorter"
    code, output = train(folder, overrides=["iterations=2"])
    assert code == 0, output
    return folder


@pytest.fixture
def bpgo_train(resume_presets, monkeypatch, capsys):
    """`bpgo train` in this process. Returns its exit code and message."""
    from bpgo.__main__ import main
    from bpgo.registry import TABLES
    from tests import small_runs

    monkeypatch.setitem(TABLES["reward"], "test", None)  # removed after the test

    def bpgo_train(output, *overrides, task="t2i", reward=(None, None)):
        small_runs.register_reward(*reward)
        capsys.readouterr()
        code = main(["train", str(resume_presets[task]), *overrides, "--output", str(output)])
        message = capsys.readouterr().err.rpartition("bpgo train: ")[2]
        assert "Traceback" not in message
        return code, message

    return bpgo_train


@pytest.fixture
def quick_processes(monkeypatch):
    """Rewards in processes of their own start from a server that has already imported torch.

    A process of a run is spawned instead, which takes seconds. The environment of the server is
    that of the first test that started it.
    """
    import multiprocessing

    from tests.small_runs import HEAVY

    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(HEAVY)
    monkeypatch.setattr("torch.multiprocessing.get_context", lambda method: server)


@pytest.fixture
def any_precision():
    """Forget the precision of runs before and of this one: accelerate keeps that of the first."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
