"""The stages of `bpgo pretrain`: which function trains what, from which seed, for how many steps.

A module is named after the world and the part that it trains: `shapes_generator`, `clips_rewards`.
"""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """One stage of training.

    function: `module:name` in this package, called with the output folder and the scale. seed: for
    the global generator and for those of the stage. steps: training steps, 0 if
    nothing is trained or the function has a schedule of passes.
    """

    function: str
    seed: int
    steps: int = 0


STAGES = {
    # Shapes. `flux` is the first pass over the generator, and each `refine` is the next one.
    "autoencoder": Stage("shapes_generator:train_autoencoder", 11, 1500),
    "flux": Stage("shapes_generator:train_generator", 12),
    "refine": Stage("shapes_generator:refine_generator", 12),
    "reward": Stage("shapes_rewards:train_reward", 13, 1200),
    "held_out": Stage("shapes_rewards:train_held_out", 14, 1500),
    "prompts": Stage("prompts:write_prompts", 15),
    # Clips. `video_decoder` trains the decoder of the autoencoder further.
    "video_autoencoder": Stage("clips_generator:train_autoencoder", 21, 1500),
    "video_reward": Stage("clips_rewards:train_reward", 25, 1300),
    "video_held_out": Stage("clips_rewards:train_held_out", 26, 1200),
    "video_decoder": Stage("clips_generator:train_decoder", 24, 2000),
    "wan": Stage("clips_generator:train_text_to_video", 22, 3000),
    "wan_image": Stage("clips_generator:train_image_to_video", 23, 1400),
    "video_prompts": Stage("prompts:write_video_prompts", 27),
    # Digits. Only on request, because these need the images of scikit-learn.
    "digits_judge": Stage("digits_oracle:train_judge", 31, 1000),
    "digits_flux": Stage("digits_generator:train_generator", 32, 3000),
    "digits_reward": Stage("digits_rewards:train_reward", 33, 1000),
    "digits_held_out": Stage("digits_rewards:train_held_out", 34, 600),
}
DIGITS = ["digits_judge", "digits_flux", "digits_reward", "digits_held_out"]
DEFAULT = [
    "autoencoder",
    "flux",
    "refine",
    "refine",
    "refine",
    "reward",
    "held_out",
    "prompts",
    "video_autoencoder",
    "video_reward",
    "video_held_out",
    "video_decoder",
    "wan",
    "wan_image",
    "video_prompts",
]
