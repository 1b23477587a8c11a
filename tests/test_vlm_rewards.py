"""Rewards that read a video with Qwen-VL, against transformers (and peft) run on tiny random models in the published layouts."""

import hashlib
import json
import math
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cosine_similarity

from bpgo.rewards import REWARDS, RewardError, load_reward, qwen3_vl_embedding, video_align
from bpgo.rewards.video_align import (
    FORM,
    LOW,
    NORMS,
    PUBLISHED,
    SPECIAL,
    VideoReward,
    fit,
    patchify,
    smart_resize,
)

PROMPTS = ["a red circle", "a {small} crimson box at the top, then a circle; naïve", "a shape"]
TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
NAMES = {"video_align": 0, "video_align_vq": 1, "video_align_mq": 2, "video_align_ta": 3}


def qwen_tokenizer(*more):
    """Qwen2's byte-level tokenizer with merges learnt from the form."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [FORM], trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    learnt = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    return Qwen2Tokenizer(
        vocab=learnt["vocab"], merges=merges, additional_special_tokens=[*TOKENS, *more]
    )


def videos(count, height, width, batch=3):
    """Noise around a level for each frame and video, of whole bytes."""
    generator = torch.Generator().manual_seed(count * 100 + height)
    levels = torch.rand(batch, count, 3, 1, 1, generator=generator)
    noisy = levels + 0.3 * torch.randn(batch, count, 3, height, width, generator=generator)
    return noisy.clamp(0, 1).mul(255).round() / 255


def picture(frame):
    return Image.fromarray(frame.mul(255).round().byte().permute(1, 2, 0).numpy())


def pil_patches(frames, patch, **options):
    """What transformers' PIL image processor makes of pairs of frames (T, 3, H, W), and their grid."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(patch_size=patch, do_resize=False, **options)
    made = processor([picture(frame) for frame in frames], return_tensors="pt")
    grid = made["image_grid_thw"]
    each = (
        made["pixel_values"].unflatten(0, (len(frames), -1)).unflatten(-1, (3, 2, patch * patch))
    )  # it shows each picture twice
    pairs = torch.stack([each[0::2, :, :, 0], each[1::2, :, :, 0]], dim=3)
    return pairs.flatten(0, 1).flatten(1), torch.tensor([[len(frames) // 2, *grid[0, 1:].tolist()]])


class Code:
    def __reduce__(self):
        return print, ("code in a checkpoint ran",)


# ----------------------------------------------------------------------------------- VideoAlign: the published layout, on disk

SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    rms_norm_eps=1e-6,
)
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
    """A model_config.json, with other values at the names in `changes`."""
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


@pytest.fixture(scope="module")
def qwen2():
    return qwen_tokenizer(*SPECIAL)


def peft_model(tokenizer, outputs):
    """Qwen2-VL with a head and with peft's LoRA on all linear layers of its text model; every weight is random and a bfloat16 number."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(5)
    config = Qwen2VLConfig.from_dict(
        BASE | {"vocab_size": len(tokenizer), "torch_dtype": "float32"}
    )
    config.video_token_id = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    model = Qwen2VLForConditionalGeneration(config)
    model.rm_head = nn.Linear(32, outputs, bias=False)
    layers = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "language_model" in n
    ]
    peft = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=layers)
    ).eval()
    for name, p in peft.named_parameters():
        p.data = (
            (
                torch.randn_like(p) * (0.5 if p.ndim < 2 or "rm_head" in name else 0.25)
                + ("norm" in name)
            )
            .bfloat16()
            .float()
        )
    assert (
        len(layers) == 14
        and not peft.base_model.model.model.visual.blocks[0].attn.qkv.weight.eq(0).any()
    )
    return peft


def published_state(peft):
    """Its state dict as VideoAlign saves one: transformers 4.45 had the vision and the text model side by side; bfloat16."""
    renamed = {
        "base_model.model.model.visual.": "base_model.model.visual.",
        "base_model.model.model.language_model.": "base_model.model.model.",
    }
    state = {}
    for name, tensor in peft.state_dict().items():
        for new, old in renamed.items():
            name = name.replace(new, old)
        state[name] = tensor.bfloat16()
    return state


def write(folder, tokenizer, state, made):
    (folder / "checkpoint-11352").mkdir(parents=True)
    (folder / "model_config.json").write_text(json.dumps(made))
    (folder / "config.json").write_text(json.dumps(BASE))
    torch.save(state, folder / "checkpoint-11352/model.pth")
    tokenizer.save_pretrained(folder / "checkpoint-11352/tokenizer")
    return folder


@pytest.fixture(scope="module")
def peft(qwen2):
    return peft_model(qwen2, 1)


@pytest.fixture(scope="module")
def align_folder(qwen2, peft, tmp_path_factory):
    return write(
        tmp_path_factory.mktemp("align") / "VideoReward", qwen2, published_state(peft), settings()
    )


@pytest.fixture
def align_copy(align_folder, tmp_path):
    return shutil.copytree(align_folder, tmp_path / "copy")


@torch.no_grad()
def published_scores(peft, tokenizer, frames, prompt, norms, flat=True):
    """Overall, VQ, MQ, TA of one video (T, 3, H, W), by peft's model, transformers' own patches and ids put together by hand."""
    model = peft.base_model.model
    patches, grid = pil_patches(frames, 14)
    start, end, see, seen, pad = tokenizer.convert_tokens_to_ids(TOKENS)

    def words(text):
        return tokenizer(text)["input_ids"]

    form = FORM.replace("{text_prompt}", prompt)
    ids = [
        start,
        *words("system\nYou are a helpful assistant."),
        end,
        *words("\n"),
        start,
        *words("user\n"),
        see,
        *[pad] * int(grid.prod() // 4),
        seen,
        *words(form),
        end,
        *words("\n"),
        start,
        *words("assistant\n"),
    ]
    ids = torch.tensor([ids])
    place = {"position_ids": torch.arange(ids.shape[1]).view(1, 1, -1).expand(3, 1, -1)}
    if not flat:
        place = {"mm_token_type_ids": (ids == pad).int() * 2}
    states = model.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=patches,
        video_grid_thw=grid,
        **place,
    )
    raw = model.rm_head(states.last_hidden_state)[0]
    scores = []
    for i, token in enumerate(SPECIAL):
        (at,) = (ids[0] == tokenizer.convert_tokens_to_ids(token)).nonzero()
        name = token[2:4]
        scores.append(
            (raw[at, i % raw.shape[1]].item() - norms[f"{name}_mean"]) / norms[f"{name}_std"]
        )
    return torch.tensor([sum(scores), *scores])


FRAMES = [0, 3, 5, 8]  # of 9


def test_video_align_is_the_published_score(peft, qwen2, align_folder):
    pixels = videos(9, 308, 336)  # needs no resizing
    expected = torch.stack(
        [
            published_scores(peft, qwen2, v[FRAMES], p, MEANS)
            for v, p in zip(pixels, PROMPTS, strict=True)
        ]
    )
    for name, column in NAMES.items():
        torch.testing.assert_close(
            load_reward(name, align_folder)(pixels, PROMPTS),
            expected[:, column],
            atol=1e-5,
            rtol=1e-5,
        )
    assert expected.std(0).min() > 1e-3
    turned = published_scores(peft, qwen2, pixels[0, FRAMES], PROMPTS[0], MEANS, flat=False)
    assert (turned - expected[0]).abs().min() > 1e-3  # Qwen2-VL's 3-D positions are other scores


def test_video_align_with_an_output_for_each_dimension(qwen2, align_copy):
    """As VideoAlign's train.sh trains it; and without inference_config the published mean and std hold."""
    peft, pixels = peft_model(qwen2, 3), videos(9, 308, 336, batch=1)
    torch.save(published_state(peft), align_copy / "checkpoint-11352/model.pth")
    made = settings(output_dim=3)
    del made["inference_config"]
    (align_copy / "model_config.json").write_text(json.dumps(made))
    expected = published_scores(peft, qwen2, pixels[0, FRAMES], PROMPTS[0], NORMS)
    came = torch.cat([load_reward(name, align_copy)(pixels, PROMPTS[:1]) for name in NAMES])
    torch.testing.assert_close(came, expected, atol=1e-5, rtol=1e-5)


def test_video_align_of_a_batch_is_that_of_each(align_folder):
    """At sides that are resized; prompts of different lengths are padded. Only TA sees the prompt."""
    pixels, reward = videos(9, 100, 180), load_reward("video_align", align_folder)
    came = reward(pixels, PROMPTS)
    assert torch.equal(reward(pixels, PROMPTS), came) and came.dtype == torch.float32
    single = torch.cat([reward(pixels[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(single, came, atol=1e-5, rtol=1e-5)
    assert reward(pixels.bfloat16(), PROMPTS).dtype == torch.float32
    other = ["a shape", "a red circle", PROMPTS[1]]
    for name in ("video_align_vq", "video_align_mq", "video_align_ta"):
        scores = load_reward(name, align_folder)
        changed = (scores(pixels, PROMPTS) - scores(pixels, other)).abs().max()
        assert changed > 1e-4 if name.endswith("ta") else changed < 1e-5, name


@pytest.mark.parametrize(
    ("count", "fps", "number"),
    [
        (81, 16, 10),
        (81, 24, 6),
        (49, 16, 6),
        (33, 16, 4),
        (17, 16, 4),
        (5, 16, 4),
        (3, 16, 2),
        (2, 16, 2),
    ],
)
def test_video_align_sees_two_frames_a_second(count, fps, number):
    came = video_align.frame_indices(count, fps).tolist()
    assert came == [round(i * (count - 1) / (number - 1)) for i in range(number)]


def test_fps_decides_which_frames_are_seen(peft, qwen2, align_folder):
    pixels = videos(33, 308, 336, batch=1)
    _, score = video_align.load(align_folder, fps=8.0)  # 33 / 8 * 2 = 8.25 frames
    frames = pixels[0, [0, 5, 9, 14, 18, 23, 27, 32]]
    expected = published_scores(peft, qwen2, frames, PROMPTS[0], MEANS)[:1]
    torch.testing.assert_close(score(pixels, PROMPTS[:1]), expected, atol=1e-5, rtol=1e-5)


RESIZED = {
    (480, 832): (336, 588),
    (832, 480): (588, 336),
    (720, 1280): (336, 588),
    (100, 180): (252, 448),
    (32, 32): (336, 336),
}


@pytest.mark.parametrize(("size", "fitted"), RESIZED.items())
def test_frames_are_resized_as_upstream_does(size, fitted):
    """To multiples of 28, of 100,352-200,704 pixels; within one byte of PIL, which rounds between its two passes."""
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as theirs

    assert (
        smart_resize(*size, 28, LOW, 448 * 448)
        == fitted
        == theirs.smart_resize(*size, 28, LOW, 448 * 448)
    )
    pixels = (videos(2, *size, batch=1) * 127).round().add(
        64
    ) / 255  # grey: PIL also cuts off between them
    came = fit(pixels, 28, LOW, 448 * 448)
    seen = np.array(picture(pixels[0, 0]).resize(fitted[::-1], Image.Resampling.BICUBIC)).transpose(
        2, 0, 1
    )
    difference = came[0, 0].mul(255) - torch.from_numpy(seen)
    assert (
        came.shape[-2:] == fitted
        and difference.abs().max() <= 1.001
        and difference.mean().abs() < 0.01
    )
    assert torch.equal(
        fit(pixels + 0.001, 28, LOW, 448 * 448), came
    )  # bytes are seen, as in a file
    patches, grid = patchify(came, 14)
    assert grid.tolist() == [[1, fitted[0] // 14, fitted[1] // 14]] and patches.shape == (
        grid.prod(),
        1176,
    )


def test_wan_s_frames_are_252_tokens_a_pair():
    _, grid = patchify(torch.zeros(1, 10, 3, *smart_resize(480, 832, 28, LOW, 448 * 448)), 14)
    assert grid.tolist() == [[5, 24, 42]] and 24 * 42 // 4 == 252


def test_frames_too_long_are_refused():
    with pytest.raises(ValueError, match="aspect up to 200, not 2 x 500"):
        smart_resize(2, 500, 28, LOW, 448 * 448)


def test_the_published_form_and_size():
    """The form is prompt_template.py's of KwaiVGI/VideoAlign; Qwen2-VL-2B with 151,660 tokens has 2,208,561,664 numbers."""
    assert (
        hashlib.sha256(FORM.encode()).hexdigest()
        == "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"
    )
    with torch.device("meta"):
        model = VideoReward(PUBLISHED, 151660, 1, 151656, [151657, 151658, 151659])
    assert sum(p.numel() for p in model.backbone.parameters()) == 2_208_561_664
    assert model.rm_head.weight.shape == (1, 1536)


LORA = "base_model.model.model.layers.1.mlp.up_proj"


def test_both_formats_of_torch_save_load_alike(peft, align_copy):
    file, pixels = align_copy / "checkpoint-11352/model.pth", videos(9, 56, 84)
    zipped = load_reward("video_align", align_copy)(pixels, PROMPTS)
    torch.save(published_state(peft), file, _use_new_zipfile_serialization=False)
    assert torch.equal(load_reward("video_align", align_copy)(pixels, PROMPTS), zipped)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"model\.pth is damaged.*download it again"):
        load_reward("video_align", align_copy)


def test_a_model_pth_that_is_not_whole_is_refused(peft, align_copy, capsys):
    file, state = align_copy / "checkpoint-11352/model.pth", published_state(peft)
    whole = file.read_bytes()
    for broken in (
        whole[: len(whole) // 2],
        whole[:1000],
        b"",
        b"no checkpoint",
        b"version https://git-lfs.github.com/spec/v1\n",
    ):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.pth is damaged.*download it again"):
            load_reward("video_align", align_copy)
    for content in (state | {"code": Code()}, Code(), [1, 2], torch.zeros(3)):
        torch.save(content, file)
        with pytest.raises(
            ValueError,
            match=r"model\.pth is damaged, or holds more than tensors \(code in it is not run\)",
        ):
            load_reward("video_align", align_copy)
    for lost, said in {
        f"{LORA}.lora_A.default.weight": rf"model\.pth holds no whole LoRA of {LORA}\.base_layer\.weight: download it again",
        f"{LORA}.lora_B.default.weight": rf"model\.pth holds no whole LoRA of {LORA}\.base_layer\.weight: download it again",
        f"{LORA}.base_layer.weight": r"holds no whole VideoReward: .* such as backbone\.language_model\.layers\.1\.mlp\.up_proj\.",
        "base_model.model.rm_head.weight": r"holds no whole VideoReward: 1 of its tensors .* such as rm_head\.weight",
        "base_model.model.visual.merger.ln_q.bias": r"1 of its tensors .* such as backbone\.visual\.merger\.ln_q\.bias",
    }.items():
        torch.save({name: tensor for name, tensor in state.items() if name != lost}, file)
        with pytest.raises(ValueError, match=said):
            load_reward("video_align", align_copy)
    torch.save(state | {f"{LORA}.lora_A.default.weight": torch.zeros(3, 32)}, file)
    with pytest.raises(ValueError, match="holds no whole LoRA"):
        load_reward("video_align", align_copy)
    torch.save({name: tensor for name, tensor in state.items() if "lm_head" not in name}, file)
    assert load_reward("video_align", align_copy)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "{",
            r"model_config\.json is damaged, or no VideoReward's: JSONDecodeError.*Download it again",
        ),
        ("[]", "is damaged, or no VideoReward's: TypeError"),
        ('{"data_config": {}}', r"is damaged, or no VideoReward's: KeyError\('model_config'\)"),
        (json.dumps(settings(lora_r=0)), "is damaged, or no VideoReward's: ZeroDivisionError"),
        (
            json.dumps(settings(prompt_template_type="simple")),
            "has prompt_template_type 'simple': video_align scores only with 'det",
        ),
        (
            json.dumps(settings(sample_type="multi_pts")),
            "has sample_type 'multi_pts': video_align scores only with 'uniform'",
        ),
        (json.dumps(settings(num_frames=8)), "has num_frames 8: video_align scores only with None"),
        (json.dumps(settings(use_special_tokens=False)), "has use_special_tokens False"),
        (
            json.dumps(settings(output_dim=3)),
            r"1 of its tensors are missing, unknown or misshapen, such as rm_head\.weight",
        ),
    ],
)
def test_a_model_config_that_is_not_published_s_is_refused(content, said, align_copy):
    (align_copy / "model_config.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        load_reward("video_align", align_copy)


def test_the_lora_s_scale(tmp_path):
    file = tmp_path / "model_config.json"
    for rslora, scale in ((False, 2.0), (True, 4.0)):
        file.write_text(json.dumps(settings(use_rslora=rslora)))
        assert video_align.read_settings(file)[2] == scale


def test_missing_files_are_named(qwen2, align_folder, align_copy, tmp_path, clip_folder):
    for place in (clip_folder, tmp_path):
        with pytest.raises(
            FileNotFoundError,
            match=r"holds no checkpoint-<step>/model\.pth, as KwaiVGI/VideoReward does",
        ):
            load_reward("video_align", place)
    words = align_copy / "checkpoint-11352/tokenizer"
    qwen_tokenizer().save_pretrained(words)  # the three special tokens are added, as upstream does
    same = load_reward("video_align", align_copy)(videos(9, 100, 180), PROMPTS)
    assert torch.equal(same, load_reward("video_align", align_folder)(videos(9, 100, 180), PROMPTS))
    qwen_tokenizer("<|one_more|>").save_pretrained(words)
    with pytest.raises(
        ValueError,
        match=r"1 of its tensors .* such as backbone\.language_model\.embed_tokens\.weight",
    ):
        load_reward("video_align", align_copy)
    shutil.rmtree(words)
    with pytest.raises(
        FileNotFoundError, match=r"tokenizer holds no tokenizer: download it beside model\.pth"
    ):
        load_reward("video_align", align_copy)
    shutil.copytree(clip_folder, words)
    with pytest.raises(
        ValueError, match=r"has no token <\|video_pad\|>, so is no Qwen2-VL tokenizer"
    ):
        load_reward("video_align", align_copy)
    (align_copy / "model_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model_config\.json"):
        load_reward("video_align", align_copy)


def test_what_video_align_cannot_score_is_refused(align_folder):
    reward, pixels = load_reward("video_align", align_folder), videos(9, 28, 28)
    with pytest.raises(RewardError, match=r"takes videos \(batch, frames, 3, height, width\)"):
        reward(pixels[:, 0], PROMPTS)
    with pytest.raises(RewardError, match="sees pairs of frames and this video has 1"):
        reward(pixels[:, :1], PROMPTS)
    with pytest.raises(
        RewardError,
        match=r"a prompt holds <\|MQ_reward\|>, at which VideoReward is read: leave it out",
    ):
        reward(pixels, [*PROMPTS[:2], "good <|MQ_reward|>"])
    with pytest.raises(ValueError, match="no dimension 'all': give overall, vq, mq, ta"):
        video_align.load(align_folder, dimension="all")


def test_the_newest_checkpoint_and_the_hub(align_folder, align_copy, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(align_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    pixels = videos(9, 100, 180)
    came = load_reward("video_align_ta")(pixels, PROMPTS)
    assert asked == [
        (
            "KwaiVGI/VideoReward",
            ["*config.json", "checkpoint-*/model.pth", "checkpoint-*/tokenizer/*"],
        )
    ]
    for step in ("checkpoint-900", "checkpoint-last"):
        (align_copy / step).mkdir()
        (align_copy / step / "model.pth").write_bytes(b"not read")
    assert torch.equal(load_reward("video_align_ta", align_copy)(pixels, PROMPTS), came)


# ------------------------------------------------------------------------------------------------------- Qwen3-VL-Embedding


@pytest.fixture(scope="module")
def qwen3():
    """A tokenizer that ends all it reads with <|endoftext|>, as the paper has it."""
    from tokenizers import processors

    tokenizer = qwen_tokenizer()
    ends = [("<|endoftext|>", tokenizer.pad_token_id)]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=ends
    )
    return tokenizer


@pytest.fixture(scope="module")
def qwen3_folder(qwen3, tmp_path_factory):
    """A Qwen3VLForConditionalGeneration folder, which is what is published, with its tokenizer."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = SIZES | {
        "head_dim": 16,
        "vocab_size": len(qwen3),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    }
    vision = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=32,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1],
    )
    ids = {"video_token_id": qwen3.convert_tokens_to_ids("<|video_pad|>"), "image_token_id": 0}
    torch.manual_seed(6)
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    )
    for name, p in model.named_parameters():
        p.data = torch.randn_like(p) * 0.25 + ("norm" in name)
    folder = tmp_path_factory.mktemp("qwen3")
    model.save_pretrained(folder)
    qwen3.save_pretrained(folder)
    return folder


@torch.no_grad()
def qwen3_scores(
    folder, tokenizer, pixels, prompts, indices, fps, asked="Represent the user's input."
):
    """Cosines by transformers' model, patches, times and tokens, one video and one prompt after the other."""
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    model = (
        Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval().model
    )
    parts = dict(
        zip(("vision_start_token", "vision_end_token", "video_token"), TOKENS[2:], strict=True)
    )
    sizes = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    times = partial(Qwen3VLProcessor._calculate_timestamps, None)
    stub = SimpleNamespace(**parts, video_processor=sizes, _calculate_timestamps=times)

    def embed(instruction, content, **seen):
        text = f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        assert ids[0, -1] == tokenizer.pad_token_id
        kinds = (
            {"mm_token_type_ids": (ids == model.config.video_token_id).int() * 2} if seen else {}
        )
        return model(input_ids=ids, **seen, **kinds).last_hidden_state[0, -1]

    scores = []
    for video, prompt in zip(pixels, prompts, strict=True):
        patches, grid = pil_patches(video[indices], 16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        metadata = [SimpleNamespace(frames_indices=list(indices), fps=fps)]
        content = Qwen3VLProcessor.replace_video_token(
            stub, {"video_grid_thw": grid, "video_metadata": metadata}, 0
        )
        read = embed(
            "Represent the user's input.", content, pixel_values_videos=patches, video_grid_thw=grid
        )
        scores.append(cosine_similarity(read, embed(asked, prompt), dim=0))
    return torch.stack(scores)


def test_qwen3_vl_embedding_is_the_published_cosine(qwen3, qwen3_folder):
    pixels = videos(49, 352, 384)  # needs no resizing
    expected = qwen3_scores(qwen3_folder, qwen3, pixels, PROMPTS, [0, 16, 32, 48], 16)
    torch.testing.assert_close(
        load_reward("qwen3_vl_embedding", qwen3_folder)(pixels, PROMPTS),
        expected,
        atol=1e-5,
        rtol=0,
    )
    assert expected.std() > 1e-3 and expected.abs().max() < 1
    query = "Retrieve images or text relevant to the user's query."
    _, score = qwen3_vl_embedding.load(qwen3_folder, instruction=query, fps=8.0)
    expected = qwen3_scores(
        qwen3_folder, qwen3, pixels[:1], PROMPTS[:1], [0, 10, 19, 29, 38, 48], 8, query
    )
    torch.testing.assert_close(score(pixels[:1], PROMPTS[:1]), expected, atol=1e-5, rtol=0)


def test_qwen3_vl_embedding_of_a_batch_is_that_of_each(qwen3_folder):
    """At sides that are resized; prompts of different lengths are padded."""
    pixels, reward = videos(9, 100, 180), load_reward("qwen3_vl_embedding", qwen3_folder)
    came = reward(pixels, PROMPTS)
    assert torch.equal(reward(pixels, PROMPTS), came) and came.dtype == torch.float32
    single = torch.cat([reward(pixels[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(single, came, atol=1e-5, rtol=0)
    assert (reward(pixels, PROMPTS[::-1]) - came).abs().max() > 1e-4 and (
        reward(pixels.flip(1), PROMPTS) - came
    ).abs().min() > 1e-6


@pytest.mark.parametrize(
    ("count", "fps", "number"),
    [(81, 16, 4), (161, 16, 10), (121, 24, 4), (49, 8, 6), (2000, 16, 64), (3, 16, 2), (2, 16, 2)],
)
def test_qwen3_vl_embedding_sees_a_frame_a_second(count, fps, number):
    came = qwen3_vl_embedding.frame_indices(count, fps).tolist()
    assert (
        came == torch.linspace(0, count - 1, number).round().int().tolist() and len(came) == number
    )


def test_patches_are_those_of_qwen3_s_video_processor():
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    frames = torch.rand(2, 4, 3, 64, 96)
    expected, *grid = Qwen3VLVideoProcessor.patchify(None, frames, 16, 2, 2)
    patches, came = patchify(frames, 16)
    assert torch.equal(patches, expected.flatten(0, 1)) and came.tolist() == [grid] * 2
    assert smart_resize(480, 832, 32, 128 * 32 * 32, 768 * 32 * 32) == (480, 832)


def test_times_stand_before_pairs_of_frames():
    came = qwen3_vl_embedding.describe(torch.tensor([0, 27, 53, 80]), 16.0, 2)
    seen = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    assert came == f"<0.8 seconds>{seen}<4.2 seconds>{seen}" and math.isclose(
        (53 + 80) / 32, 4.2, abs_tol=0.05
    )


def test_a_qwen3_folder_that_is_not_whole_is_refused(qwen3_folder, tmp_path, clip_folder):
    name, cut = "qwen3_vl_embedding", shutil.copytree(qwen3_folder, tmp_path / "cut")
    with pytest.raises(
        ValueError, match="holds a clip, no qwen3_vl: give Qwen/Qwen3-VL-Embedding-2B"
    ):
        load_reward(name, clip_folder)
    with pytest.raises(ValueError, match=r"model\.safetensors is a file: give its folder"):
        load_reward(name, qwen3_folder / "model.safetensors")
    file = cut / "model.safetensors"
    weights, lost = load_file(file), "model.visual.merger.norm.bias"
    for changed in (
        {k: v for k, v in weights.items() if k != lost},
        weights | {lost: torch.zeros(5)},
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(
            ValueError,
            match=r"no whole Qwen3VLModel: 1 of its tensors .* such as .*merger\.norm\.bias",
        ):
            load_reward(name, cut)
    file.write_bytes((qwen3_folder / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        load_reward(name, cut)
    shutil.copy(qwen3_folder / "model.safetensors", file)
    qwen_tokenizer("<|one_more|>").save_pretrained(cut)
    with pytest.raises(
        ValueError, match=r"does not read <\|video_pad\|> as token \d+: download the model's own"
    ):
        load_reward(name, cut)
    for words in cut.glob("tokenizer*"):
        words.unlink()
    with pytest.raises(ValueError, match="download the model's own"):
        load_reward(name, cut)
    file.unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_reward(name, cut)


def test_what_qwen3_vl_embedding_cannot_score_is_refused(qwen3_folder):
    reward, pixels = load_reward("qwen3_vl_embedding", qwen3_folder), videos(9, 28, 28)
    with pytest.raises(RewardError, match=r"takes videos \(batch, frames, 3, height, width\)"):
        reward(pixels[:, 0], PROMPTS)
    with pytest.raises(RewardError, match="sees pairs of frames and this video has 1"):
        reward(pixels[:, :1], PROMPTS)
    with pytest.raises(
        RewardError, match=r"a prompt holds <\|video_pad\|>, which stands for a video"
    ):
        reward(pixels, [*PROMPTS[:2], "<|video_pad|>"])


NEAR = {
    "videoalign": "video_align",
    "video_align_qv": "video_align_vq",
    "qwen3_vl": "qwen3_vl_embedding",
}


@pytest.mark.parametrize(("name", "near"), NEAR.items())
def test_the_rewards_are_listed(name, near):
    assert NAMES.keys() | {"qwen3_vl_embedding"} <= REWARDS.keys()
    with pytest.raises(ValueError, match=f"did you mean {near!r}"):
        load_reward(name)
