"""Names of devices, such as cuda:1: their form, and whether this machine has the device."""

from __future__ import annotations

import re
from difflib import get_close_matches

KINDS = ("cpu", "cuda", "mps", "xpu")
OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "amd": "cuda", "rocm": "cuda", "metal": "mps"}


def check_device_name(name: str | None) -> str | None:
    """Return `name` if it has the form of a device: cpu, cuda, cuda:1, mps, xpu or xpu:1; or None.

    torch is not imported. Raises ValueError with the nearest name otherwise.
    """
    if name is None or (isinstance(name, str) and re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", name)):
        return name
    kind, _, index = str(name).strip().lower().partition(":")
    if kind.isdigit():
        kind, index = "cuda", kind
    near = get_close_matches(OTHER_NAMES.get(kind.rstrip("0123456789"), kind), KINDS, 1)
    number = f":{index}" if index.isdigit() and near and near[0] in ("cuda", "xpu") else ""
    hint = f"did you mean {near[0] + number!r}?" if near else f"write {', '.join(KINDS)} or cuda:1"
    raise ValueError(f"unknown device {name!r}: {hint}")


def check_device(name: str | None, setting: str) -> None:
    """Raise ValueError, naming the setting, if this machine has no such device.

    name: as in a config. None, which stands for the policy's device, is always there.
    """
    import torch

    kind, _, index = (check_device_name(name) or "cpu").partition(":")
    if kind == "cpu":
        return
    found = _count(torch, kind)
    if int(index or 0) < found:
        return
    there = ", ".join(f"{kind}:{i}" for i in range(found)) or f"no {kind} device that torch can use"
    remedy = f"set {setting}=null (the policy's device) or {setting}=cpu"
    raise ValueError(f"{setting}={name}: this machine has {there}: {remedy}")


def _count(torch, kind: str) -> int:
    """How many devices of a kind torch can use."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return getattr(torch, kind).device_count()


def as_float64(tensor):
    """A tensor in float64: where it is, or on the CPU if its device has no float64 (MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
