"""A noise schedule of your own: a `Schedule`, which is how a step is made and how noisy it is.

On the command line, in the folder of this file:

    bpgo train t2i-tiny --output runs/x sampling.schedule=own_schedule:PROPORTIONAL

In Python the name is a setting too, as in `main` below. In a notebook it is
`__main__:PROPORTIONAL`.
"""

import tempfile

import bpgo
from bpgo.files import read_log
from bpgo.sde import Schedule

SMALL = ["iterations=3", "groups=4", "group_size=4", "sampling.steps=4"]
SMALL += ["evaluation.samples=1", "evaluation.steps=2"]


def proportional_noise(sigmas, level):
    """s = level * sigma, one value per step: most noise at first, and less and less of it."""
    return [level * sigma for sigma in sigmas[:-1].tolist()]


# `sde_step` keeps the marginals of the flow for any noise. `cps_step` is the other step there is.
PROPORTIONAL = Schedule(bpgo.sde_step, proportional_noise)


def main(output):
    config = bpgo.read_config("t2i-tiny", [*SMALL, f"sampling.schedule={__name__}:PROPORTIONAL"])
    s = config.sampling
    levels = PROPORTIONAL.noise(bpgo.sigma_grid(s.steps, s.shift), s.noise_level)
    print("noise of each step:", *(f"{level:.3f}" for level in levels))
    trainer = bpgo.Trainer(config, output, progress=False)
    trainer.train()
    for row in read_log(trainer.output / "metrics.jsonl"):
        print(f"reward {row['reward']:.4f}, approximate KL {row['approx_kl']:.2e}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
