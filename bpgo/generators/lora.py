"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) with peft, saved with their alpha."""

from __future__ import annotations

from pathlib import Path

from torch import nn


def add_lora(module: nn.Module, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """Add adapters to the linear layers whose names end in `targets`, and train only these.

    The adapters are float32, whatever the dtype of the frozen weights. Raises ValueError if the
    module has none of the layers.
    """
    from peft import LoraConfig

    if not any(name.endswith(targets) for name, _ in module.named_modules()):
        raise ValueError(
            f"{type(module).__name__} has none of the layers for LoRA ({', '.join(targets)}): "
            f"train all weights (generator.lora_rank=0)"
        )
    module.add_adapter(
        LoraConfig(
            r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets)
        )
    )
    for p in module.parameters():
        # peft gives adapters the dtype of their layer. In bfloat16 small updates would round to 0.
        if p.requires_grad:
            p.data = p.data.float()


def save_lora(pipeline, folder: Path, part: str = "transformer") -> None:
    """Write the adapters of one part of a pipeline, with the metadata that contains their alpha."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    module = getattr(pipeline, part)
    metadata = _collate_lora_metadata({"transformer": module})
    (settings,) = metadata.values()
    # peft keeps the names in a set, whose order differs from process to process.
    settings["target_modules"] = sorted(settings["target_modules"])
    pipeline.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(module), **metadata
    )
