"""What the settings of other trainers are called here: TRL, Flow-GRPO, DanceGRPO, diffusers, peft.

Only the message for an unknown setting uses it. Nobody's preset is translated.
"""

from __future__ import annotations

from collections.abc import Iterable

# The last part of a name there, and the setting here.
OTHER_NAMES = {
    "lr": "optimiser.learning_rate",
    "adam_beta1": "optimiser.beta1",
    "adam_beta2": "optimiser.beta2",
    "adam_weight_decay": "optimiser.weight_decay",
    "grad_clip": "optimiser.max_grad_norm",
    "clip_grad_norm": "optimiser.max_grad_norm",
    "lr_scheduler": "optimiser.schedule",
    "lr_scheduler_type": "optimiser.schedule",
    "scheduler": "optimiser.schedule",
    "warmup_steps": "optimiser.warmup",
    "warmup_ratio": "optimiser.warmup",
    "lr_warmup_steps": "optimiser.warmup",
    "num_warmup_steps": "optimiser.warmup",
    "ema": "optimiser.ema_decay",
    "use_ema": "optimiser.ema_decay",
    "num_inner_epochs": "optimiser.epochs",
    "num_iterations": "optimiser.epochs",
    "gradient_accumulation": "sampling.micro_batch",
    "gradient_accumulation_steps": "sampling.micro_batch",
    "grad_accum": "sampling.micro_batch",
    "accumulate_grad_batches": "sampling.micro_batch",
    "batch_size": "sampling.micro_batch",
    "train_batch_size": "sampling.micro_batch",
    "per_device_train_batch_size": "sampling.micro_batch",
    "num_inference_steps": "sampling.steps",
    "num_steps": "sampling.steps",
    "sampling_steps": "sampling.steps",
    "flow_shift": "sampling.shift",
    "eta": "sampling.noise_level",
    "sde_type": "sampling.schedule",
    "sde_window_size": "sampling.window",
    "sde_window_range": "sampling.window_range",
    "timestep_fraction": "sampling.trained_share",
    "same_latent": "sampling.shared_noise",
    "init_same_noise": "sampling.shared_noise",
    "kl_coef": "objective.kl",
    "kl_coeff": "objective.kl",
    "kl_weight": "objective.kl",
    "kl_beta": "objective.kl",
    "kl_reward": "objective.kl",
    "beta": "objective.beta",
    "epsilon": "objective.clip_range",
    "clip_eps": "objective.clip_range",
    "cliprange": "objective.clip_range",
    "eval_steps": "evaluation.every",
    "eval_freq": "evaluation.every",
    "eval_num_steps": "evaluation.steps",
    "num_generations": "group_size",
    "num_image_per_prompt": "group_size",
    "num_video_per_prompt": "group_size",
    "num_epochs": "iterations",
    "num_train_epochs": "iterations",
    "max_steps": "iterations",
    "max_train_steps": "iterations",
    "mixed_precision": "precision",
    "bf16": "precision",
    "fp16": "precision",
    "save_steps": "checkpoint_every",
    "save_freq": "checkpoint_every",
    "checkpointing_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "num_checkpoint_limit": "keep_checkpoints",
    "checkpoints_total_limit": "keep_checkpoints",
    "metric_for_best_model": "keep_best",
    "load_best_model_at_end": "keep_best",
    "report_to": "tracker",
    "log_with": "tracker",
    "guidance_scale": "generator.guidance",
    "cfg_scale": "generator.guidance",
    "num_frames": "generator.frames",
    "resolution": "generator.height",
    "model": "generator.path",
    "model_name_or_path": "generator.path",
    "pretrained_model_name_or_path": "generator.path",
    "use_lora": "generator.lora_rank",
    "lora": "generator.lora_rank",
    "lora_r": "generator.lora_rank",
    "r": "generator.lora_rank",
    "rank": "generator.lora_rank",
    "activation_checkpointing": "generator.gradient_checkpointing",
    "reward_fn": "reward",
    "reward_funcs": "reward",
    "reward_weights": "reward.scale",
    "dataset": "prompts",
    "dataset_name": "prompts",
    "prompt_file": "prompts",
}
# What is different here, for names whose meaning is not quite that of the setting.
NOTES = {
    "sampling.micro_batch": "Gradients are accumulated over the micro-batches of an update",
    "optimiser.warmup": "It is a number of optimiser steps",
    "optimiser.schedule": "The names are those of transformers' get_scheduler",
    "objective.beta": "The weight of a KL term, the beta of Flow-GRPO, is objective.kl",
    "generator.lora_rank": "generator.lora names adapters to start from",
    "generator.height": "The other side is generator.width",
    "reward.scale": "Each reward of the list has its own",
}


def suggestion(name: str, settings: Iterable[str]) -> str | None:
    """What to say of an unknown setting that other trainers have, or that is in another group here.

    name: dotted. Only its last part counts, in lower case and with hyphens as underscores.
    settings: all that there are. Returns None if nothing is known of the name.
    """
    last = name.rpartition(".")[2].lower().replace("-", "_")
    elsewhere = [setting for setting in settings if setting.rpartition(".")[2] == last]
    setting = OTHER_NAMES.get(last)
    if setting is None and len(elsewhere) == 1:
        setting = elsewhere[0]
    if setting is None:
        return None
    note = f" {NOTES[setting]}" if setting in NOTES else ""
    return f"did you mean {setting!r}?{note}"
