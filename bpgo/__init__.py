"""Bayesian Prior-Guided Optimization (arXiv 2511.18919) for image and video generators.

GRPO post-training that learns which rewards to trust. Train a shipped tiny pipeline in minutes:

    import bpgo

    config = bpgo.read_config("t2i-tiny", ["iterations=20", "objective.alpha=0.3"])
    trainer = bpgo.Trainer(config, "runs/first")
    trainer.train()
    print(trainer.evaluate().means())

Or use only the method in your own training loop. Rewards are (N, G), for N prompts with G samples
each:

    prior = bpgo.RunningMean()
    k = bpgo.k_from_kappa(1.0, rewards)
    advantages = bpgo.bpgo(rewards, prior(prompts, rewards), k=k).effective
    prior.update(rewards)

The command line has the same settings: `bpgo train t2i-tiny --output runs/first`. `bpgo presets`
lists the presets and `bpgo settings` all settings.
"""

import lazy_loader

__version__ = "0.1.0"

# The public names, listed in __init__.pyi, are imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
