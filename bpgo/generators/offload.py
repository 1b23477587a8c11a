"""Frozen weights that stay on the CPU until they are needed.

Text encoders, autoencoder and experts then need not fit on the device together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bpgo.config import Config

SHARE_THE_MEMORY = ("cpu", "mps")  # kinds of devices that have no memory of their own


def offloads(config: Config, device: torch.device | str) -> bool:
    """Whether a run with this config keeps on the CPU what is not in use.

    generator.offload has no effect on a device that shares the memory of the CPU: there a second
    copy of what is in use would only cost memory.
    """
    return config.generator.offload and torch.device(device).type not in SHARE_THE_MEMORY


class Parking:
    """The parts of a pipeline, kept on the CPU until `use` moves some of them to the device.

    Weights that are trained stay on the device. The CPU keeps its copy of the frozen ones (in
    pinned memory for a GPU), so that nothing is copied when they leave the device.
    """

    def __init__(self, parts: dict[str, nn.Module], device: torch.device | str):
        self.device = torch.device(device)
        self.here: set[str] = set()  # the parts on the device
        self.frozen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # each tensor and its CPU copy
        for name, part in parts.items():
            self.frozen[name] = []
            for t in (*part.parameters(), *part.buffers()):
                if t.requires_grad:
                    t.data = t.data.to(self.device)
                    continue
                if self.device.type == "cuda":
                    t.data = t.data.pin_memory()
                self.frozen[name].append((t, t.data))

    def use(self, *names: str) -> None:
        """Move these parts to the device, and all others off it."""
        for name in self.here - set(names):
            for t, kept in self.frozen[name]:
                t.data = kept
        for name in set(names) - self.here:
            for t, kept in self.frozen[name]:
                t.data = kept.to(self.device, non_blocking=self.device.type == "cuda", copy=True)
        self.here = set(names)


class Placed:
    """Base class of policies over a diffusers `pipeline`, which can offload its parts.

    The parts of the pipeline are its `modules`, which are trained, the text `encoders` and the vae.
    """

    encoders: tuple[str, ...]
    parking: Parking | None = None

    @property
    def device(self) -> torch.device:
        """Where the policy computes. Weights that will be sharded may still be on the CPU."""
        return self.parking.device if self.parking else next(self.pipeline.vae.parameters()).device

    def offload(self, device: torch.device | str) -> None:
        """Compute on this device, and keep only the parts in use on it.

        Call it after the trained weights have been chosen.
        """
        names = (*self.modules, "vae", *self.encoders)
        self.parking = Parking({name: getattr(self.pipeline, name) for name in names}, device)

    def at_work(self, *names: str) -> None:
        """Move these parts of the pipeline to the device, if the policy offloads."""
        if self.parking:
            self.parking.use(*names)
