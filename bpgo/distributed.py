"""Training with several processes: full copies of the weights (DDP) or shards of them (FSDP2).

The configuration given to `accelerate launch` decides which (see reproduce/accelerate/).
accelerate's own FSDP2 accepts a single module, and Wan2.2 has two, so sharding uses torch's
`fully_shard`, block by block.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from bpgo.signals import Interrupted


def sharded(accelerator: Accelerator) -> bool:
    """Whether the weights are sharded. This needs an FSDP configuration and several processes.

    Raises ValueError for an FSDP configuration that is not supported.
    """
    if accelerator.num_processes == 1 or not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    _check_fsdp()
    return True


def check_launch() -> None:
    """Raise ValueError for an FSDP configuration that is not supported.

    Called before the processes connect, because one that leaves then stops the others with an
    error of its connection.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        _check_fsdp()


def _check_fsdp() -> None:
    loads_once = bool(parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"))
    check_fsdp(os.environ.get("FSDP_VERSION", "1"), loads_once)


def check_fsdp(version: str, loads_once: bool) -> None:
    """Raise ValueError for an FSDP configuration that is not supported.

    loads_once: whether fsdp_cpu_ram_efficient_loading is set.
    """
    if version != "2":
        raise ValueError(
            "only version 2 of FSDP is supported: set fsdp_version: 2, "
            "as in reproduce/accelerate/fsdp2.yaml"
        )
    if loads_once:
        raise ValueError(
            "text encoders and rewards would be loaded in the main process only and be empty in "
            "the others: set fsdp_cpu_ram_efficient_loading: false, "
            "as in reproduce/accelerate/fsdp2.yaml"
        )


class OtherProcessError(ChildProcessError):
    """Another process of the run has failed."""


@contextmanager
def failing_together(accelerator: Accelerator):
    """If this block fails in any process, it fails in all of them, so that all can save the state.

    All processes must enter it. Where it has not failed, OtherProcessError or Interrupted is
    raised. The attribute `on_all_processes` of all these errors is true.
    """
    failure = None
    try:
        yield
    except (Exception, Interrupted) as error:
        failure = error
    if accelerator.num_processes > 1:
        signal = failure.code - 128 if isinstance(failure, Interrupted) else 0
        reports = gather_object([None if failure is None else (str(failure), signal)])
        failed = [(rank, *report) for rank, report in enumerate(reports) if report]
        if failed and failure is None:
            rank, text, signal = failed[0]
            failure = OtherProcessError(f"process {rank} has failed: {text}")
            if signal:
                failure = Interrupted(signal)
    if failure is not None:
        failure.on_all_processes = True
        raise failure


def distribute(
    accelerator: Accelerator, modules: dict[str, nn.Module], precision: str, keep_device: bool
) -> dict[str, nn.Module]:
    """The modules, prepared for training with all processes.

    precision: "bf16" for autocast to bfloat16, "no" for none. keep_device: the modules are not
    moved. Modules that will be sharded may be on the CPU; a device receives one block at a time and
    keeps its shard. Raises ValueError if the trained weights of a module that will be sharded have
    several dtypes.
    """
    if precision == "bf16":
        for module in modules.values():
            autocast = torch.autocast(accelerator.device.type, torch.bfloat16)
            module.forward = autocast(module.forward)
    if not sharded(accelerator):
        return {
            name: accelerator.prepare_model(module, device_placement=not keep_device)
            for name, module in modules.items()
        }
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for name, module in modules.items():
        dtypes = {p.dtype for p in module.parameters() if p.requires_grad}
        if len(dtypes) > 1:
            found = ", ".join(sorted(map(str, dtypes)))
            raise ValueError(
                f"FSDP2 needs trained weights of one dtype, but those of {name} are {found}"
            )
        _shard(module, mesh)
    return modules


def _shard(module: nn.Module, mesh) -> None:
    from torch.distributed.fsdp import fully_shard

    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                fully_shard(block, mesh=mesh)
    # By default the outermost weights stay gathered after a forward pass, and values that are
    # then copied into their shards would not reach them.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def exchange_gradients(module: nn.Module, wanted: bool) -> None:
    """Set whether the next backward pass through a DDP module exchanges its gradients.

    One exchange per update is enough. Sharded modules exchange in every backward pass, because
    otherwise each process would hold the gradients of all weights between passes.
    """
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = wanted


def clip_gradients(parameters: list[Tensor], max_norm: float) -> Tensor:
    """Clip gradients to this norm over all shards. Returns the norm before clipping."""
    return full_number(torch.nn.utils.clip_grad_norm_(parameters, max_norm))


def full_number(number: Tensor) -> Tensor:
    """A sum or norm over all shards, on every process. All processes must call it."""
    return number.full_tensor() if isinstance(number, DTensor) else number


def gather_tensor(tensor: Tensor) -> Tensor | None:
    """The complete tensor on the CPU of the main process, and None on the others.

    All processes must call it.
    """
    main = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor.cpu() if main else None
    group, local = tensor.device_mesh.get_group(), tensor.to_local()
    rows_per_shard = -(-len(tensor) // group.size())  # the last shards may have fewer
    own = local.new_zeros(rows_per_shard, *tensor.shape[1:])
    own[: len(local)] = local
    parts = [torch.empty_like(own) for _ in range(group.size())] if main else None
    torch.distributed.gather(own, parts, 0, group)
    return torch.cat([part.cpu() for part in parts])[: len(tensor)] if main else None


def place_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A tensor that is complete on every process, on the device or in the shards of `pattern`."""
    if not isinstance(pattern, DTensor):
        return tensor.to(pattern.device)
    local = tensor.detach().to(pattern.device)
    mesh, placements = pattern.device_mesh, pattern.placements
    return distribute_tensor(local, mesh, placements, src_data_rank=None)


def gather_rows(indices: list[int], tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather tables whose rows are divided over processes, in the order of their indices.

    tables: by name. indices: which rows of the complete tables this process has.
    """
    rows: dict[str, dict[int, Tensor]] = {name: {} for name in tables}
    for their_indices, their_tables in gather_object([(indices, tables)]):
        for name, table in their_tables.items():
            rows[name] |= dict(zip(their_indices, table, strict=True))
    return {
        name: torch.stack([found[i] for i in range(len(found))]) for name, found in rows.items()
    }


@contextmanager
def full_weights(modules: list[nn.Module]):
    """Within this context, saving a sharded module saves its trained weights in full.

    All processes must enter it; the main one may save.
    """
    shards = [m for m in modules if any(isinstance(p, DTensor) for p in m.parameters())]
    classes = [type(module) for module in shards]
    for module in shards:
        frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
        tensors = {
            name: gather_tensor(value)
            for name, value in module.state_dict().items()
            if name not in frozen
        }
        module.state_dict = lambda *_, found=tensors, **__: found
        module.__class__ = _without_fsdp(type(module))  # the name of the class is saved too
    try:
        yield
    finally:
        for module, original in zip(shards, classes, strict=True):
            del module.state_dict
            module.__class__ = original


def _without_fsdp(wrapped: type) -> type:
    """The class that `fully_shard` made this one from."""
    return next(c for c in wrapped.__mro__ if not c.__name__.startswith("FSDP"))
