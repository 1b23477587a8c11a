"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by peft, saved so that diffusers finds their alpha again."""

from __future__ import annotations

from pathlib import Path

from torch import nn


def add_lora(module: nn.Module, rank: int, alpha: float, targets: tuple[str, ...]) -> None:
    """Add adapters to the named linear layers; only they are trained, in float32 whatever the frozen weights are.

    Raises ValueError if none of the names is there.
    """
    from peft import LoraConfig

    if not any(name.endswith(targets) for name, _ in module.named_modules()):
        raise ValueError(
            f"none of the LoRA targets {', '.join(targets)} is in {type(module).__name__}"
        )
    module.add_adapter(
        LoraConfig(
            r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets)
        )
    )
    for p in module.parameters():
        if (
            p.requires_grad
        ):  # peft gives adapters their layer's dtype: in bfloat16 small steps would round to none
            p.data = p.data.float()


def save_lora(pipeline, folder: Path, part: str = "transformer") -> None:
    """Write the adapters of a pipeline's transformer, or of another part of it, with the metadata that carries alpha."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    module = getattr(pipeline, part)
    pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(module),
        **_collate_lora_metadata({"transformer": module}),
    )
