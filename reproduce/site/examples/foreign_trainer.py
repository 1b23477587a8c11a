"""A GRPO loop that knows nothing of bpgo, and the five lines, marked `# BPGO`, that put RAS and CRT into it.

Delete the five and it is the loop that it was. Rewards are (N, G), N prompts x G samples, and so are advantages. The policy is a Gaussian
whose mean is a small network of the prompt. Half of the prompts are vague: their reward is low and mostly noise.
"""

import torch
from torch import nn

from bpgo.objective import bpgo, k_from_kappa  # BPGO 1: equations 2 to 5, and the sharpness of RAS
from bpgo.priors import RunningMean  # BPGO 2: the reward to expect


def reward(prompts, samples):
    """(N, G), about 0 to 1: how near a sample is to the target that a clear prompt names; of a vague prompt, mostly noise."""
    right = torch.exp(-(samples - prompts[:, None, :2]).square().sum(-1))
    clear = prompts[:, 2:]
    return clear * right + (1 - clear) * (0.2 * right + 0.1 * torch.randn_like(right))


def log_prob(policy, prompts, samples, std=0.3):
    """(N, G): of samples (N, G, 2) under the policy, up to a constant."""
    return -(samples - policy(prompts)[:, None]).square().sum(-1) / (2 * std**2)


def train(iterations=60, alpha=0.5, beta=0.5, seed=0):
    """Mean reward of clear prompts before and after training. alpha = beta = 0 is GRPO."""
    torch.manual_seed(seed)
    policy = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2))
    optimiser = torch.optim.Adam(policy.parameters(), 3e-3)
    test = torch.cat([torch.rand(64, 2) * 2 - 1, torch.ones(64, 1)], 1)
    before = reward(test, policy(test)[:, None]).mean().item()
    prior = RunningMean()  # BPGO 3
    for _ in range(iterations):
        prompts = torch.cat(
            [torch.rand(8, 2) * 2 - 1, torch.tensor([0.0, 1.0]).repeat(4)[:, None]], 1
        )
        with torch.no_grad():
            samples = policy(prompts)[:, None] + 0.3 * torch.randn(8, 12, 2)
            old = log_prob(policy, prompts, samples)
        r = reward(prompts, samples)
        adv = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-8)
        adv = bpgo(
            r, prior(prompts, r), alpha=alpha, k=k_from_kappa(1.0, r), lam=1.0, beta=beta
        ).effective  # BPGO 4: instead of that
        prior.update(r)  # BPGO 5
        for _ in range(4):
            ratio = (log_prob(policy, prompts, samples) - old).exp()
            loss = torch.maximum(-adv * ratio, -adv * ratio.clamp(0.8, 1.2)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return before, reward(test, policy(test)[:, None]).mean().item()


def main():
    before, after = train()
    print(f"mean reward of clear prompts: {before:.3f} before, {after:.3f} after")


if __name__ == "__main__":
    main()
