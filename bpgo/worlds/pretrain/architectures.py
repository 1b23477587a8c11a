"""The tiny architectures, small enough to train in minutes on two cores.

Every class is the published one of diffusers or transformers, and only the widths differ.
Tokenizers are built from the vocabulary of a world, so nothing is downloaded.
"""

from __future__ import annotations

import json

from bpgo.worlds.clips.captions import VOCABULARY as VIDEO_VOCABULARY
from bpgo.worlds.shapes.captions import VOCABULARY

TOKENS = 16  # the longest caption of a drawing has 11 words, and there are at most 2 special tokens
VIDEO_TOKENS = 12  # the longest caption of a clip has 7 words
BOUNDARY = 0.8  # sigma between the two experts: each takes 4 of 8 steps at a shift of 3


def t5_tokenizer(vocabulary: list[str] = VOCABULARY, tokens: int = TOKENS):
    """T5's tokenizer with one token per word, and `<unk>` for words outside the vocabulary."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0), ("▁", -50.0)]
    pieces = special + [(f"▁{word}", -1.0) for word in vocabulary]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=tokens)


def clip_tokenizer(vocabulary: list[str] = VOCABULARY, tokens: int = TOKENS):
    """CLIP's byte-pair tokenizer, with merges learnt such that each word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix="</w>", special_tokens=special, show_progress=False
    )
    bpe.train_from_iterator(vocabulary, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    # The trainer's ids depend on how it breaks ties, so new ones are assigned.
    words = [f"{word}</w>" for word in sorted(vocabulary)]
    rest = sorted(learnt["vocab"].keys() - {*special, *words})
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(special + words + rest)},
        merges=merges,
        model_max_length=tokens,
    )


def bert_tokenizer(vocabulary: list[str] = VOCABULARY, tokens: int = TOKENS):
    """BERT's word-piece tokenizer with one token per word."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(
        vocab={t: i for i, t in enumerate(special + vocabulary)}, model_max_length=tokens
    )


def autoencoder():
    """AutoencoderKL with a factor of 4 and 4 channels: 32 x 32 pixels become an 8 x 8 latent."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=32,
        layers_per_block=1,
        norm_num_groups=8,
        block_out_channels=(16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def flux_pipeline(vae):
    """A FluxPipeline with random weights around a trained autoencoder.

    It has 2 double and 2 single blocks, and 4 heads of width 24.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=TOKENS,
                projection_dim=32,
                bos_token_id=clip.bos_token_id,
                eos_token_id=clip.eos_token_id,
                pad_token_id=clip.pad_token_id,
            )
        ),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=len(t5),
                d_model=64,
                d_kv=16,
                d_ff=128,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
            )
        ),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=24,
            num_attention_heads=4,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 10, 10),
            guidance_embeds=True,
        ),
    )


def clip_model(tokenizer):
    """CLIPModel, the training reward: width 64, 2 text and 3 vision layers, patches of 4 pixels."""
    from transformers import CLIPConfig, CLIPModel

    ids = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4)
    text = dict(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        max_position_embeddings=TOKENS,
        **size,
        **ids,
    )
    vision = dict(image_size=32, patch_size=4, num_hidden_layers=3, **size)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def image_reward_config() -> dict:
    """ImageReward, the held-out reward: BLIP vision, text with cross-attention, a linear head."""
    size = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3)
    return {
        "vision": dict(image_size=32, patch_size=8, **size),
        "text": dict(
            vocab_size=5 + len(VOCABULARY),
            **size,
            max_position_embeddings=TOKENS,
            pad_token_id=0,
            bos_token_id=2,
            sep_token_id=3,
            eos_token_id=3,
        ),
        "head": [32, 16, 1],
        "max_length": TOKENS,
        "mean": 0.0,
        "std": 1.0,
    }


def video_clip_config(tokenizer) -> dict:
    """VideoCLIP, the training reward of the video tasks.

    It has width 64, 2 text and 3 vision layers, and 4 frames in patches of 8 pixels.
    """
    ids = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4)
    return {
        "vision": dict(image_size=32, patch_size=8, num_hidden_layers=3, **size),
        "text": dict(vocab_size=len(tokenizer), num_hidden_layers=2, **size, **ids),
        "projection_dim": 64,
        "frames": 4,
        "max_length": VIDEO_TOKENS,
    }


def image_grid_config(side: int) -> dict:
    """The held-out reward of the video tasks: ImageReward on grids of side x side pixels.

    Its patches have 16 pixels.
    """
    config = image_reward_config()
    config["vision"] |= {"image_size": side, "patch_size": 16}
    config["text"] |= {
        "vocab_size": 5 + len(VIDEO_VOCABULARY),
        "max_position_embeddings": VIDEO_TOKENS,
    }
    return config | {"max_length": VIDEO_TOKENS}


def video_autoencoder():
    """AutoencoderKLWan with a factor of 4 in space and in time, and 8 channels.

    9 frames of 32 x 32 pixels become a 3 x 8 x 8 latent.
    """
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=8,
        z_dim=8,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8,
        scale_factor_spatial=4,
        scale_factor_temporal=4,
    )


def _wan_transformer(channels: int):
    """WanTransformer3DModel with random weights: 4 blocks, 4 heads of width 24, 8 channels out."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=channels,
        out_channels=8,
        text_dim=64,
        freq_dim=64,
        ffn_dim=256,
        num_layers=4,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def _wan_parts(vae) -> dict:
    """The parts that both Wan pipelines have: autoencoder, text encoder, tokenizer, scheduler."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = t5_tokenizer(VIDEO_VOCABULARY, VIDEO_TOKENS)
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
    )
    return dict(
        vae=vae,
        tokenizer=tokenizer,
        text_encoder=encoder,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def wan_pipeline(vae):
    """A WanPipeline with random weights around a trained autoencoder."""
    from diffusers import WanPipeline

    return WanPipeline(**_wan_parts(vae), transformer=_wan_transformer(8))


def wan_image_pipeline(vae):
    """A WanImageToVideoPipeline with random weights and two experts, for high and for low noise.

    Their input has 8 noisy, 4 mask and 8 image channels.
    """
    from diffusers import WanImageToVideoPipeline

    experts = {name: _wan_transformer(20) for name in ("transformer", "transformer_2")}
    return WanImageToVideoPipeline(
        **_wan_parts(vae),
        **experts,
        image_encoder=None,
        image_processor=None,
        boundary_ratio=BOUNDARY,
    )
