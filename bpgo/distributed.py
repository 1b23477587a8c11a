"""More than one process: whole copies of the weights (DDP) or shards of them (FSDP2).

`accelerate launch` with a configuration of reproduce/accelerate/ says which. accelerate's own FSDP2 takes one module, and Wan2.2 has two,
so sharding is torch's `fully_shard`, a block at a time.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


def sharded(accelerator: Accelerator) -> bool:
    """Whether `accelerate launch` was given an FSDP configuration. Raises ValueError if not one like reproduce/accelerate/fsdp2.yaml."""
    if accelerator.num_processes == 1 or not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION") != "2":
        raise ValueError(
            "only version 2 of FSDP is supported: set fsdp_version: 2, as in reproduce/accelerate/fsdp2.yaml"
        )
    if parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ValueError(
            "text encoders and rewards would be loaded in the main process only, and be empty in the others: set "
            "fsdp_cpu_ram_efficient_loading: false, as in reproduce/accelerate/fsdp2.yaml"
        )
    return True


def distribute(
    accelerator: Accelerator, modules: dict[str, nn.Module], placed: bool
) -> dict[str, nn.Module]:
    """The modules, ready to be trained by all processes. placed: they lie where they should, and are not to be moved.

    Modules that are sharded may lie on the CPU: a device is given one block after the other, and keeps its shard.
    """
    if not sharded(accelerator):
        return {
            name: accelerator.prepare_model(module, device_placement=not placed)
            for name, module in modules.items()
        }
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for name, module in modules.items():
        if len(dtypes := {p.dtype for p in module.parameters() if p.requires_grad}) > 1:
            raise ValueError(
                f"FSDP2 trains weights of one dtype, and those of {name} are {', '.join(sorted(map(str, dtypes)))}"
            )
        if accelerator.mixed_precision == "bf16":
            module.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(module.forward)
        for blocks in module.children():
            for block in blocks if isinstance(blocks, nn.ModuleList) else ():
                fully_shard(block, mesh=mesh)
        # by default the outermost weights stay gathered after a forward pass: what is then copied into their shards would not reach them
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return modules


def exchange_gradients(module: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass through copies of a module (DDP) ends in an exchange of its gradients: once an update is enough.

    Shards exchange theirs in every backward pass: between passes each process then holds the gradients of its shard only, where without
    an exchange it would hold those of all weights, which is what shards are there to avoid.
    """
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = wanted


def clip_gradients(parameters: list[Tensor], largest: float) -> Tensor:
    """Scale gradients down to this norm, over all shards; returns the norm before."""
    return whole(torch.nn.utils.clip_grad_norm_(parameters, largest))


def whole(number: Tensor) -> Tensor:
    """A sum or a norm over all shards, on every process. Every process must ask."""
    return number.full_tensor() if isinstance(number, DTensor) else number


def gathered(tensor: Tensor) -> Tensor | None:
    """A tensor with all its shards, on the CPU of the main process; None on the others. Every process must ask."""
    main = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor.cpu() if main else None
    group, local = tensor.device_mesh.get_group(), tensor.to_local()
    rows = -(-len(tensor) // group.size())  # of each shard; the last ones may have fewer
    own = local.new_zeros(rows, *tensor.shape[1:])
    own[: len(local)] = local
    parts = [torch.empty_like(own) for _ in range(group.size())] if main else None
    torch.distributed.gather(own, parts, 0, group)
    return torch.cat([part.cpu() for part in parts])[: len(tensor)] if main else None


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, which every process has, placed or sharded as the pattern."""
    if isinstance(pattern, DTensor):
        return distribute_tensor(
            tensor.detach().to(pattern.device),
            pattern.device_mesh,
            pattern.placements,
            src_data_rank=None,
        )
    return tensor.to(pattern.device)


@contextmanager
def whole_weights(modules: list[nn.Module]):
    """Within it, what is trained of sharded modules is saved as if they were whole. Every process must enter, and the main one may save."""
    shards = [
        module for module in modules if any(isinstance(p, DTensor) for p in module.parameters())
    ]
    kinds = [type(module) for module in shards]
    for module in shards:
        frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
        tensors = {
            name: gathered(value)
            for name, value in module.state_dict().items()
            if name not in frozen
        }
        module.state_dict = lambda *_, found=tensors, **__: found
        module.__class__ = next(
            kind for kind in type(module).__mro__ if not kind.__name__.startswith("FSDP")
        )  # its name is saved too
    try:
        yield
    finally:
        for module, kind in zip(shards, kinds, strict=True):
            del module.state_dict
            module.__class__ = kind
