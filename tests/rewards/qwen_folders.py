"""Tiny random models in the published layouts of VideoAlign and Qwen3-VL-Embedding."""

import json

import torch
from torch import nn

from tests.rewards.qwen import SIZES, qwen_tokenizer

WEIGHTS = "checkpoint-11352/model.pth"

# ------------------------------------------------------------------------------------- VideoAlign

VISION = dict(
    depth=2,
    embed_dim=32,
    mlp_ratio=2,
    num_heads=2,
    in_chans=3,
    hidden_size=32,
    patch_size=14,
    spatial_merge_size=2,
    spatial_patch_size=14,
    temporal_patch_size=2,
)
BASE = SIZES | {  # as Qwen2-VL-2B's config.json: flat, in bfloat16
    "model_type": "qwen2_vl",
    "vision_config": VISION,
    "vocab_size": 2000,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "video_token_id": 7,
}
MEANS = {
    "VQ_mean": 0.5,
    "VQ_std": 2.0,
    "MQ_mean": -1.0,
    "MQ_std": 0.25,
    "TA_mean": 0.1,
    "TA_std": 3.0,
}


def settings(**changes):
    """A model_config.json, with other values for the names in `changes`."""
    made = {
        "data_config": {
            "meta_data": "train.csv",
            "data_dir": "videos",
            "max_frame_pixels": 200704,
            "num_frames": None,
            "fps": 2.0,
            "eval_dim": ["VQ", "MQ", "TA"],
            "prompt_template_type": "detailed_special",
            "sample_type": "uniform",
        },
        "training_args": {},
        "model_config": {"output_dim": 1, "use_special_tokens": True, "reward_token": "special"},
        "peft_lora_config": {
            "lora_enable": True,
            "lora_r": 4,
            "lora_alpha": 8,
            "use_rslora": False,
        },
        "inference_config": MEANS,
    }
    for part in made.values():
        part |= {name: value for name, value in changes.items() if name in part}
    return made


def peft_model(tokenizer, outputs):
    """Qwen2-VL with a head, and with peft's LoRA on all linear layers of its text model.

    Every weight is random and a bfloat16 number.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(5)
    changes = {"vocab_size": len(tokenizer), "torch_dtype": "float32"}
    config = Qwen2VLConfig.from_dict(BASE | changes)
    config.video_token_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    model = Qwen2VLForConditionalGeneration(config)
    model.rm_head = nn.Linear(32, outputs, bias=False)
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "language_model" in name:
            layers.append(name)
    assert len(layers) == 14
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=layers)
    peft = get_peft_model(model, lora).eval()
    for name, p in peft.named_parameters():
        width = 0.5 if p.ndim < 2 or "rm_head" in name else 0.25
        centre = 1.0 if "norm" in name else 0.0
        p.data = (torch.randn_like(p) * width + centre).bfloat16().float()
    return peft


def published_state(peft):
    """Its state dict as VideoAlign saves one, in bfloat16.

    In transformers 4.45, the vision model and the text model were side by side.
    """
    state = {}
    for name, tensor in peft.state_dict().items():
        name = name.replace("base_model.model.model.visual.", "base_model.model.visual.")
        name = name.replace("base_model.model.model.language_model.", "base_model.model.model.")
        state[name] = tensor.bfloat16()
    return state


def write_video_align(folder, tokenizer, peft):
    """The published files, and a config.json of the tiny sizes."""
    (folder / WEIGHTS).parent.mkdir(parents=True)
    (folder / "model_config.json").write_text(json.dumps(settings()))
    (folder / "config.json").write_text(json.dumps(BASE))
    torch.save(published_state(peft), folder / WEIGHTS)
    tokenizer.save_pretrained(folder / "checkpoint-11352/tokenizer")
    return folder


# ------------------------------------------------------------------------------ Qwen3-VL-Embedding


def ending_tokenizer():
    """A tokenizer that appends <|endoftext|> to all it reads, as in the paper."""
    from tokenizers import processors

    tokenizer = qwen_tokenizer()
    ends = [("<|endoftext|>", tokenizer.pad_token_id)]
    append = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=ends)
    tokenizer._tokenizer.post_processor = append
    return tokenizer


def write_qwen3(folder, tokenizer):
    """A Qwen3VLForConditionalGeneration, which is what is published, and its tokenizer."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    text = SIZES | {"head_dim": 16, "vocab_size": len(tokenizer), "rope_parameters": rope}
    vision = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=32,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1],
    )
    ids = {"video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"), "image_token_id": 0}
    torch.manual_seed(6)
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    )
    for name, p in model.named_parameters():
        p.data = torch.randn_like(p) * 0.25 + (1.0 if "norm" in name else 0.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
