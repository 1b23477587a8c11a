"""A tiny Qwen-VL: its tokenizer, videos for it, and patches as transformers makes them."""

import json

import torch
from PIL import Image

from bpgo.rewards.video_align_form import FORM

PROMPTS = ["a red circle", "a {small} crimson box at the top, then a circle; naïve", "a shape"]
TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    rms_norm_eps=1e-6,
)


def qwen_tokenizer(*more):
    """Qwen2's byte-level tokenizer with merges learned from the form, and with more tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([FORM], trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    special = [*TOKENS, *more]
    return Qwen2Tokenizer(vocab=learned["vocab"], merges=merges, additional_special_tokens=special)


def byte_videos(count, height, width, batch=3):
    """Noise around one level per frame and video, at multiples of 1/255."""
    generator = torch.Generator().manual_seed(count * 100 + height)
    levels = torch.rand(batch, count, 3, 1, 1, generator=generator)
    noisy = levels + 0.3 * torch.randn(batch, count, 3, height, width, generator=generator)
    return noisy.clamp(0, 1).mul(255).round() / 255


def pil_image(frame):
    return Image.fromarray(frame.mul(255).round().byte().permute(1, 2, 0).numpy())


def pil_patches(frames, patch, **options):
    """What transformers' PIL processor makes of pairs of frames (T, 3, H, W), and the grid."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(patch_size=patch, do_resize=False, **options)
    made = processor([pil_image(frame) for frame in frames], return_tensors="pt")
    down, right = made["image_grid_thw"][0, 1:].tolist()
    # It repeats each image in time, because it takes them for single ones.
    each = made["pixel_values"].unflatten(0, (len(frames), -1)).unflatten(-1, (3, 2, patch * patch))
    pairs = torch.stack([each[0::2, :, :, 0], each[1::2, :, :, 0]], dim=3)
    return pairs.flatten(0, 1).flatten(1), torch.tensor([[len(frames) // 2, down, right]])
