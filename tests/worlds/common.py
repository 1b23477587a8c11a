"""What the tests of the worlds share."""

import math

import torch
from hypothesis import settings

WORLDS = ("shapes", "clips", "digits")
examples = settings(max_examples=60, deadline=None, derandomize=True)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def entropy(weights):
    """In bits, written independently of `bpgo.worlds.shared`."""
    weights = list(weights)
    total = math.fsum(weights)
    return -math.fsum(w / total * math.log2(w / total) for w in weights if w)
