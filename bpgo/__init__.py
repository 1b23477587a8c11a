"""bpgo: Bayesian Prior-Guided Optimization (arXiv 2511.18919) for image and video generators. Start with the notebooks."""

__version__ = "0.1.0"
