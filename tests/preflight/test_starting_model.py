"""What a KL term adds to memory and operations, against what a trainer holds and computes."""

import dataclasses

import pytest

from bpgo.batching import rows_per_process
from bpgo.config import read_config
from bpgo.preflight.flops import flops, trained_steps
from bpgo.preflight.footprints import footprint_of
from bpgo.preflight.launch import Launch
from bpgo.preflight.memory import memory
from bpgo.preflight.sizes import pipeline_of
from bpgo.starting_model import starting_means
from bpgo.trainer import Trainer
from tests.small_trainers import rollout_of

SMALL = ["groups=2", "group_size=2", "sampling.steps=4", "optimiser.updates=1"]
SMALL += ["objective.kl=0.1", "prior.name=running_mean", "sampling.micro_batch=2"]
SMALL += ["evaluation.held_out=[]", "evaluation.metrics=[]"]


def without_kl(config):
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, kl=0.0))


@pytest.mark.parametrize("lora", [0, 2])
def test_the_copy_the_means_and_the_passes_are_counted(tmp_path, lora):
    config = read_config("t2i-tiny", [*SMALL, f"generator.lora_rank={lora}"])
    footprint, plain = footprint_of(config, pipeline_of("tiny-flux")), without_kl(config)
    trainer = Trainer(config, tmp_path / "run", progress=False)
    rollout, passes, velocity = rollout_of(trainer), [], trainer.policy.velocity

    def counted(x, *given):
        passes.append(len(x))
        return velocity(x, *given)

    trainer.policy.velocity = counted
    means = starting_means(trainer.policy, rollout, trainer.parameters, trainer.start)
    needs, less = (memory(c, footprint, rewards=0, prompts=1) for c in (config, plain))
    copied = sum(p.nbytes for p in trainer.start.values())
    assert needs.permanent.starting_weights == copied > 0
    added = needs.permanent.total - less.permanent.total
    assert added == copied + sum(part.nbytes for part in means)

    per_trained_step = 2 if lora else 3
    per_row = config.sampling.steps + per_trained_step * trained_steps(config)
    one_pass = flops(plain, footprint) / rows_per_process(config) / per_row
    more = flops(config, footprint) - flops(plain, footprint)
    assert sum(passes) == pytest.approx(more / one_pass)


def test_shards_share_the_copy():
    config = read_config("t2i-tiny", SMALL)
    footprint = footprint_of(config, pipeline_of("tiny-flux"))
    one, two = (
        memory(config, footprint, 0, prompts=1, launch=launch).permanent
        for launch in (Launch(), Launch(2, sharded=True))
    )
    assert two.starting_weights == one.starting_weights // 2 == one.averaged_weights // 2
