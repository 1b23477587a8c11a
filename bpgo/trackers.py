"""Experiment trackers: whether the package that one needs is installed."""

from __future__ import annotations

from importlib.util import find_spec

# The modules of which any one is enough, as accelerate looks for them. It trains without a tracker,
# and without a word, if there is none.
MODULES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def check_tracker(name: str) -> None:
    """Raise ValueError, naming the command that installs it, if a tracker is not installed.

    name: as `tracker` in a config; none needs nothing. No module is imported.
    """
    modules = MODULES.get(name, ())
    if modules and not any(find_spec(module) for module in modules):
        raise ValueError(
            f"tracker={name} needs a package that is not installed: pip install {modules[0]}, or "
            f"set tracker=none"
        )
