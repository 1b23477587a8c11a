"""A GRPO loop of its own, and the five lines, marked `# BPGO`, that add RAS and CRT to it.

Without the five lines it is plain GRPO. Rewards and advantages are (N, G): N prompts with G samples
each. The policy is a Gaussian whose mean is a small network of the prompt. Half of the prompts are
vague: their reward is low and mostly noise.
"""

import torch
from torch import nn

from bpgo import RunningMean, bpgo, k_from_kappa  # BPGO 1


def reward(prompts, samples):
    """(N, G), about 0 to 1. A clear prompt names a target, and a sample is better the nearer it is.
    For a vague prompt, the reward is mostly noise."""
    near = torch.exp(-(samples - prompts[:, None, :2]).square().sum(-1))
    clear = prompts[:, 2:]
    return clear * near + (1 - clear) * (0.2 * near + 0.1 * torch.randn_like(near))


def log_prob(policy, prompts, samples, std=0.3):
    """(N, G): log-probability of samples (N, G, 2) under the policy, up to a constant."""
    return -(samples - policy(prompts)[:, None]).square().sum(-1) / (2 * std**2)


def draw_prompts(clear):
    """(N, 3): a target in [-1, 1]^2, and whether the prompt is clear (1) or vague (0)."""
    return torch.cat([torch.rand(len(clear), 2) * 2 - 1, clear[:, None]], 1)


def train(iterations=60, alpha=0.5, beta=0.5, seed=0):
    """Mean reward of clear prompts before and after training. alpha = beta = 0 is GRPO."""
    torch.manual_seed(seed)
    policy = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2))
    optimiser = torch.optim.Adam(policy.parameters(), 3e-3)
    test = draw_prompts(torch.ones(64))
    before = reward(test, policy(test)[:, None]).mean().item()
    prior = RunningMean()  # BPGO 2
    for _ in range(iterations):
        prompts = draw_prompts(torch.tensor([0.0, 1.0]).repeat(4))
        with torch.no_grad():
            samples = policy(prompts)[:, None] + 0.3 * torch.randn(8, 12, 2)
            old = log_prob(policy, prompts, samples)
        r = reward(prompts, samples)
        adv = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-8)
        k = k_from_kappa(1.0, r)  # BPGO 3
        adv = bpgo(r, prior(prompts, r), alpha=alpha, k=k, beta=beta).effective  # BPGO 4
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
