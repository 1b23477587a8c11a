"""The size and the patches of frames, against transformers' own processors."""

import numpy as np
import pytest
import torch
from PIL import Image

from bpgo.rewards.qwen_vl import fit, patchify, smart_resize
from bpgo.rewards.video_align import HIGH, LOW
from tests.rewards.qwen import byte_videos, pil_image

FITTED = {
    (480, 832): (336, 588),
    (832, 480): (588, 336),
    (720, 1280): (336, 588),
    (100, 180): (252, 448),
    (32, 32): (336, 336),
}


@pytest.mark.parametrize(("size", "fitted"), FITTED.items())
def test_frames_are_resized_as_upstream_does(size, fitted):
    """To multiples of 28, of 100,352-200,704 pixels.

    The result is within one byte of PIL, which rounds between its two passes. The frames are grey,
    because PIL also clips between them.
    """
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as theirs

    assert smart_resize(*size, 28, LOW, HIGH) == fitted
    assert theirs.smart_resize(*size, 28, LOW, HIGH) == fitted
    pixels = (byte_videos(2, *size, batch=1) * 127).round().add(64) / 255
    came = fit(pixels, 28, LOW, HIGH)
    assert came.shape[-2:] == fitted
    image = pil_image(pixels[0, 0]).resize(fitted[::-1], Image.Resampling.BICUBIC)
    difference = came[0, 0].mul(255) - torch.from_numpy(np.array(image).transpose(2, 0, 1))
    assert difference.abs().max() <= 1.001
    assert difference.mean().abs() < 0.01
    # The input is rounded to bytes, as in a file.
    torch.testing.assert_close(fit(pixels + 0.001, 28, LOW, HIGH), came, atol=1e-6, rtol=0)


def test_wan_s_frames_are_252_tokens_per_pair():
    _, grid = patchify(torch.zeros(1, 10, 3, *smart_resize(480, 832, 28, LOW, HIGH)), 14)
    assert grid.tolist() == [[5, 24, 42]]
    assert 24 * 42 // 4 == 252


def test_frames_too_long_are_refused():
    with pytest.raises(ValueError, match="aspect ratio of up to 200, not 2 x 500"):
        smart_resize(2, 500, 28, LOW, HIGH)


@pytest.mark.parametrize(("patch", "size"), [(16, (64, 96)), (14, (56, 84))])
def test_patches_are_those_of_qwen3_s_video_processor(patch, size):
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    frames = torch.rand(2, 4, 3, *size)
    expected, *grid = Qwen3VLVideoProcessor.patchify(None, frames, patch, 2, 2)
    patches, came = patchify(frames, patch)
    assert torch.equal(patches, expected.flatten(0, 1))
    assert came.tolist() == [grid] * 2
    assert patches.shape == (came.prod(1).sum(), 6 * patch**2)


def test_qwen3_s_frames_of_wan_s_size_are_not_resized():
    assert smart_resize(480, 832, 32, 128 * 32 * 32, 768 * 32 * 32) == (480, 832)
