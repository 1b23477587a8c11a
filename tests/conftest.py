"""Makes nbval compare the records of a notebook by their own tolerances, and the rest as it always does.

    python -m pytest -p tests.conftest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks/

nbval compares exact strings (in cells tagged `nbval-check-output`), which no trained number would ever pass.
"""

import json
import sys
from pathlib import Path

import pytest

from bpgo.records import MIME, agree

try:
    from nbval.plugin import IPyNbCell
except ImportError:  # then no notebook is collected, and there is nothing to compare
    IPyNbCell = None

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reproduce"))  # its scripts are modules here


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


# -------------------------------------------------------- models of random weights, made once, for the tests of the package


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A FluxPipeline folder: the shipped autoencoder, everything else with random weights."""
    import torch
    from diffusers import AutoencoderKL

    from bpgo.files import SHIPPED
    from bpgo.shapes import tiny

    folder = tmp_path_factory.mktemp("models") / "flux"
    torch.manual_seed(0)
    tiny.flux_pipeline(AutoencoderKL.from_pretrained(SHIPPED / "tiny-autoencoder", dtype=torch.float32)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIPModel folder of random weights, with its tokenizer and image processor."""
    import torch
    from transformers import CLIPImageProcessorPil

    from bpgo.shapes import tiny

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
    from bpgo.shapes import tiny

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(2)
    model = ImageReward(tiny.image_reward_config() | {"mean": 0.25, "std": 2.0})
    for p in model.parameters():
        p.data *= 4 if p.ndim > 1 else 1  # so that pictures and words matter
    (folder / "config.json").write_text(json.dumps(model.config))
    save_file(model.state_dict(), folder / "model.safetensors")
    tiny.bert_tokenizer().save_pretrained(folder)
    return folder
