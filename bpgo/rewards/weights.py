"""The files of rewards: present, of the right model and complete, or refused by name.

No code in a file is run. Messages say what is expected, what is there and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from bpgo.files import check_safetensors, from_hub, read_pt
from bpgo.text_files import read_json

CONFIG, SAFE, OLD = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX = "model.safetensors.index.json"  # of weights in several files
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")  # one of them is enough
MOST_LISTED = 12  # files of a folder


# ------------------------------------------------------------------------------- files in a folder


def require(folder: Path, reward: str, *needed: tuple[str, ...], instead: str = "") -> None:
    """Check that a folder has the files of a reward.

    needed: for each file the names that it may have, one of which is enough. instead: another
    possibility, for the message, such as "or else the published ImageReward.pt". Raises ValueError
    for a file in place of the folder; FileNotFoundError for missing files, with those that are
    needed and those that are there.
    """
    names = "; ".join(" or ".join(alternatives) for alternatives in needed)
    expected = f"{reward} needs a folder with {names}{instead and f' ({instead})'}"
    if folder.is_file():
        raise ValueError(f"{folder} is a file: {expected}")
    lacking = [alternatives for alternatives in needed if not _has_any(folder, alternatives)]
    if not lacking:
        return
    missing = "; ".join(" or ".join(alternatives) for alternatives in lacking)
    raise FileNotFoundError(
        f"{folder} has no {missing}. {expected}. {found_in(folder)}. Check the path, or download "
        f"the files again"
    )


def found_in(folder: Path) -> str:
    """A sentence that lists the first files of a folder, for messages."""
    if not folder.is_dir():
        return "There is no such folder"
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    if not names:
        return "It is empty"
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"It has {', '.join(names[:MOST_LISTED])}{more}"


def read_config(file: Path, reward: str, keys: Iterable[str] = ()) -> dict:
    """The object in a JSON file of a reward.

    Raises ValueError, naming the file, if it is not JSON, not an object, or lacks one of the keys.
    """
    config = read_json(file)
    if not isinstance(config, dict):
        raise ValueError(
            f"{file} is not a config of {reward}: it holds a {type(config).__name__} where names "
            f"and values are expected. Download it again"
        )
    missing = sorted(set(keys) - config.keys())
    if missing:
        model = f" (it is of a {config['model_type']} model)" if "model_type" in config else ""
        raise ValueError(
            f"{file.parent} is not of {reward}: its {file.name} lacks {', '.join(missing)}{model}. "
            f"Check the path"
        )
    return config


@contextmanager
def reading(source: str | Path, what: str) -> Iterator[None]:
    """Name the source in the errors of libraries for contents of another form.

    source: a file, a folder or a hub id. what: the expected contents, such as "a config of clip".
    Raises ValueError.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        AttributeError,
        ArithmeticError,
        LookupError,
        RuntimeError,
        StrictDataclassError,
        TypeError,
        ValueError,
    ) as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise ValueError(
            f"{source} is not {what} ({type(error).__name__}: {reason[:200]}). Check the path, or "
            f"download it again"
        ) from error


# -------------------------------------------------------------------------------------- tokenizers


def read_tokenizer(place: str | Path):
    """The tokenizer of a folder or hub id.

    Raises FileNotFoundError if the folder has none, where transformers would make an empty one, and
    ValueError if it is damaged.
    """
    from transformers import AutoTokenizer

    if isinstance(place, Path) or Path(place).is_dir():
        require(Path(place), "a tokenizer", TOKENIZERS)
    with reading(place, "a place with a tokenizer that transformers can read"):
        return AutoTokenizer.from_pretrained(place)


def read_tokenizer_of(folder: Path, otherwise: str):
    """The tokenizer in a folder of weights, or if there is none that of a hub id.

    Raises errors as `read_tokenizer` does, and OSError if the hub id cannot be fetched.
    """
    if any(folder.glob("tokenizer*")):
        return read_tokenizer(folder)
    with from_hub(otherwise, f"the tokenizer of the weights in {folder}"):
        return read_tokenizer(otherwise)


# ----------------------------------------------------------------------------------------- weights


def read_tensors(file: Path, within: str | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pt, .pth or .bin file by name, on the CPU.

    within: the dictionary in the file that holds the tensors; None if they are at the top level.
    Raises ValueError if the file is damaged, contains code (which is not run), or has no such
    dictionary.
    """
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        check_safetensors(file)
        return load_file(file)
    content = read_pt(file)
    if within is not None:
        found = [str(name) for name in content][:5]
        content = content.get(within)
        if not isinstance(content, dict):
            raise ValueError(
                f"{file} has no dictionary {within!r} of tensors, but {', '.join(found) or 'none'}"
                f": check that it is the published file, or download it again"
            )
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if not all(isinstance(name, str) for name in tensors):
        raise ValueError(f"{file} has tensors without names: download it again")
    return tensors


def fill(model: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Load weights into a model, as float32 and for inference.

    source: where the weights come from, for the message. Raises ValueError if tensors are missing,
    unknown or of another shape, with one of each.
    """
    expected = model.state_dict()
    misshapen = []
    for name in sorted(expected.keys() & weights.keys()):
        if weights[name].shape != expected[name].shape:
            misshapen.append((name, weights[name].shape, expected[name].shape))
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or misshapen or unknown:
        raise _unfit(source, type(model), missing, misshapen, unknown)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    model.eval().requires_grad_(False)


def read_folder(
    folder: Path,
    reward: str,
    make: Callable[[dict], nn.Module],
    keys: Iterable[str],
    published: str,
):
    """The model and the tokenizer of a reward in the layout of this project.

    make: the model of a config. keys: settings that the config must have. published: the files that
    could be there instead, for messages. Raises ValueError and FileNotFoundError for wrong files.
    """
    require(folder, reward, (CONFIG,), (SAFE,), TOKENIZERS, instead=f"or the published {published}")
    config = read_config(folder / CONFIG, reward, keys)
    with reading(folder / CONFIG, f"a config of {reward}"):
        model = make(config)
    fill(model, read_tensors(folder / SAFE), folder / SAFE)
    return model, read_tokenizer(folder)


def read_pretrained(kind: type, path: str | Path, reward: str) -> nn.Module:
    """The transformers model of a folder or hub id, in float32 and for inference.

    kind: its class. Raises ValueError for the config of another model, for damaged files, and if
    tensors are missing or of another shape, where transformers would initialise them at random;
    OSError for missing files.
    """
    if Path(path).is_dir():
        _check_shards(Path(path))
    check_model_type(kind, path, reward)
    with reading(path, f"a {kind.__name__}"):
        model, report = kind.from_pretrained(
            path, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise _unfit(path, kind, report["missing_keys"], sorted(report["mismatched_keys"]), ())
    return model.eval().requires_grad_(False)


def check_model_type(kind: type, path: str | Path, reward: str) -> None:
    """Check that the config.json of a folder or hub id is of this class of transformers.

    Raises ValueError for that of another model: transformers would make one of its default size.
    """
    if Path(path).is_dir():
        config = read_config(Path(path) / CONFIG, reward)
    else:
        config, _ = kind.config_class.get_config_dict(path)
    expected, found = kind.config_class.model_type, config.get("model_type")
    if found != expected:
        model = f"a {found} model" if found else "a model that it does not name"
        raise ValueError(
            f"{path} is not of {reward}: its {CONFIG} describes {model}, not a {expected} model. "
            f"Check the path"
        )


def renamed(name: str, patterns: dict[str, str]) -> str:
    """The name after all substitutions (pattern: replacement), applied in order."""
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name


def split_attention(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Query, key and value of an `in_proj_weight` or `in_proj_bias`, as transformers names them."""
    parts = {}
    for letter, part in zip("qkv", tensor.chunk(3), strict=True):
        parts[name.replace("in_proj_", f"{letter}_proj.")] = part
    return parts


def _has_any(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in names)


def _check_shards(folder: Path) -> None:
    """Check the .safetensors files of a folder, and that it has all that its index names."""
    check_safetensors(folder)
    if (folder / SAFE).is_file() or not (folder / INDEX).is_file():
        return
    index = read_config(folder / INDEX, "weights in several files", ["weight_map"])
    with reading(folder / INDEX, "an index of weights in several files"):
        names = sorted(set(index["weight_map"].values()))
    require(folder, "the index of its weights", *[(name,) for name in names])


def _unfit(
    source: str | Path, kind: type, missing: Iterable, misshapen: list, unknown: Iterable
) -> ValueError:
    """The error for tensors that are not those of the model, with one example of each fault."""
    faults, missing, unknown = [], sorted(missing), sorted(unknown)
    if missing:
        faults.append(f"{len(missing)} tensors are missing, such as {missing[0]}")
    if misshapen:
        name, found, expected = misshapen[0]
        shapes = f"{tuple(found)}, not {tuple(expected)}"
        faults.append(f"{len(misshapen)} have another shape, such as {name} ({shapes})")
    if unknown:
        faults.append(f"{len(unknown)} are unknown, such as {unknown[0]}")
    return ValueError(
        f"{source} is not a complete {kind.__name__}: {'; '.join(faults)}. Check the path, or "
        f"download it again"
    )
