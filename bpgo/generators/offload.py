"""Frozen weights on the CPU until they are at work: text encoders, autoencoder and experts need not fit on the device together."""

from __future__ import annotations

import torch
from torch import nn


class Parking:
    """Parts of a pipeline, of which `use` has the named ones on the device. Weights that are trained stay there always.

    The CPU keeps its copy of what is frozen (pinned, for a GPU), so leaving the device copies nothing.
    """

    def __init__(self, parts: dict[str, nn.Module], device: torch.device | str):
        self.device, self.here = torch.device(device), set()
        self.frozen = {name: [] for name in parts}
        for name, part in parts.items():
            for t in (*part.parameters(), *part.buffers()):
                if t.requires_grad:
                    t.data = t.data.to(self.device)
                else:
                    t.data = t.data.pin_memory() if self.device.type == "cuda" else t.data
                    self.frozen[name].append((t, t.data))

    def use(self, *names: str) -> None:
        """Have these parts on the device and no other."""
        for name in self.here - set(names):
            for t, kept in self.frozen[name]:
                t.data = kept
        for name in set(names) - self.here:
            for t, kept in self.frozen[name]:
                t.data = kept.to(self.device, non_blocking=True, copy=True)
        self.here = set(names)


class Placed:
    """A policy over `pipeline` whose parts, `modules` that are trained, `encoders` of text and the vae, lie where they are needed."""

    encoders: tuple[str, ...]
    parking: Parking | None = None

    @property
    def device(self) -> torch.device:
        """Where it works. Weights that are to be sharded may still lie on the CPU."""
        return self.parking.device if self.parking else next(self.pipeline.vae.parameters()).device

    def offload(self, device: torch.device | str) -> None:
        """From now on work on this device, with only what is at work there. Call it when it is settled what is trained."""
        self.parking = Parking(
            {name: getattr(self.pipeline, name) for name in (*self.modules, "vae", *self.encoders)},
            device,
        )

    def at_work(self, *names: str) -> None:
        """Have these parts of the pipeline on the device."""
        if self.parking:
            self.parking.use(*names)
