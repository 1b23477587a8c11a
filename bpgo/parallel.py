"""More than one process: whole copies of the weights (DDP) or shards of them (FSDP2), gradients exchanged once an update.

`accelerate launch` with a configuration of reproduce/accelerate/ says which. accelerate's own FSDP2 takes one module, and Wan2.2 has two,
so sharding is torch's `fully_shard`, a block at a time.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


def sharded(accelerator: Accelerator) -> bool:
    """Whether `accelerate launch` was given an FSDP configuration. Raises ValueError if not of version 2."""
    if accelerator.num_processes == 1 or not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION") != "2":
        raise ValueError("only version 2 of FSDP is supported: set fsdp_version: 2, as in reproduce/accelerate/fsdp2.yaml")
    return True


def distribute(accelerator: Accelerator, modules: dict[str, nn.Module], placed: bool) -> dict[str, nn.Module]:
    """The modules, ready to be trained by all processes. placed: they lie where they should, and are not to be moved."""
    if not sharded(accelerator):
        return {name: accelerator.prepare_model(module, device_placement=not placed) for name, module in modules.items()}
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for name, module in modules.items():
        if len(dtypes := {p.dtype for p in module.parameters()}) > 1:
            raise ValueError(f"FSDP2 shards weights of one dtype, and {name} has {', '.join(sorted(map(str, dtypes)))}: "
                             "set generator.dtype=float32, or launch with reproduce/accelerate/ddp.yaml")  # fmt: skip
        if accelerator.mixed_precision == "bf16":
            module.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(module.forward)
        module.to(accelerator.device)
        for blocks in module.children():
            for block in blocks if isinstance(blocks, nn.ModuleList) else ():
                fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
    return modules


def exchange_gradients(module: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass through a distributed module ends in an exchange of its gradients."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = wanted
    elif hasattr(module, "set_requires_gradient_sync"):  # FSDP2
        module.set_requires_gradient_sync(wanted)


def clip_gradients(parameters: list[Tensor], largest: float) -> Tensor:
    """Scale gradients down to this norm, over all shards; returns the norm before."""
    return whole(torch.nn.utils.clip_grad_norm_(parameters, largest))


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards. Every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, placed or sharded as the pattern."""
    if isinstance(pattern, DTensor):
        return distribute_tensor(tensor.detach().to(pattern.device), pattern.device_mesh, pattern.placements)
    return tensor.to(pattern.device)


@contextmanager
def whole_weights(modules: list[nn.Module]):
    """Within it, sharded modules are saved as if they were whole. Every process must enter, and one may save."""
    shards = [module for module in modules if any(isinstance(p, DTensor) for p in module.parameters())]
    kinds = [type(module) for module in shards]
    for module in shards:
        tensors = {name: whole(value) for name, value in module.state_dict().items()}
        module.state_dict = lambda *_, found=tensors, **__: found
        module.__class__ = next(kind for kind in type(module).__mro__ if not kind.__name__.startswith("FSDP"))  # its name is saved too
    try:
        yield
    finally:
        for module, kind in zip(shards, kinds, strict=True):
            del module.state_dict
            module.__class__ = kind
