"""The loop: sample, score, anchor, step.

    prompts -> encode -> rollout -> decode -> reward -> prior -> objective -> optimiser

All randomness is a function of (seed, iteration, prompt, sample), so the sampler's state is the iteration number; a checkpoint
holds weights, optimiser, averaged weights, prior and torch's generator, and a resumed run is the undisturbed one, bit for bit.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from bpgo import checkpoint, guards, objective
from bpgo.config import Config, to_dict
from bpgo.distributed import distribute, sharded, whole_weights
from bpgo.evaluation import Metric, Scores, check_prompts, evaluate, shares, try_metrics
from bpgo.export import export
from bpgo.files import read_log, write_atomic
from bpgo.prompts import key_of, read_prompts
from bpgo.reference import make_prior
from bpgo.rewards import Reward, RewardError, checked, load_rewards, submit, total
from bpgo.rollout import Plan, Rollout, micro_batches, plan, sample_groups, seed_of
from bpgo.sde import sigma_grid
from bpgo.setup import load_policy, make_conditions, memory_explained, open_output
from bpgo.update import update_policy


class Trainer:
    """One run in one folder. The same config and folder go on from the newest checkpoint; another config is refused.

    output: metrics.jsonl, timing.jsonl, evaluations.jsonl, warnings.jsonl, config.json, checkpoint-*/ and, at the end, final/ for plain
    diffusers.
    reward, prompts, policy: instead of what the config names. metrics: further measures `(pixels, prompts) -> (B,)`, or a dict of several,
    for evaluation. Reward and measures are tried on noise before anything is written.
    """

    def __init__(
        self,
        config: Config,
        output: str | Path,
        *,
        reward: Reward | None = None,
        metrics: dict[str, Metric] | None = None,
        prompts: list[str] | None = None,
        policy=None,
        progress: bool = True,
    ):
        self.config, self.output, self.progress = config, Path(output), progress
        self.prompts = read_prompts(config.prompts) if prompts is None else list(prompts)
        self.evaluation_prompts = (
            read_prompts(config.evaluation.prompts) if config.evaluation.prompts else self.prompts
        )
        if len(self.prompts) < config.groups:
            raise ValueError(
                f"groups={config.groups} prompts an iteration, but there are only {len(self.prompts)}"
            )
        open_output(self.output, config)
        tracker = None if config.tracker == "none" else config.tracker
        self.accelerator = Accelerator(
            mixed_precision=config.precision, log_with=tracker, project_dir=self.output
        )
        if config.groups % (config.optimiser.updates * self.accelerator.num_processes):
            raise ValueError(
                f"groups={config.groups} cannot be split over optimiser.updates={config.optimiser.updates} times "
                f"{self.accelerator.num_processes} processes"
            )
        self.iteration, self.saved = 0, None
        self.sigmas = sigma_grid(config.sampling.steps, config.sampling.shift)
        self._plan(random.Random())  # refuses what does not fit
        with memory_explained(config):
            self._load(policy, reward, metrics or {})
            self._resume()
        if self.accelerator.is_main_process:
            write_atomic(self.output / "config.json", json.dumps(to_dict(config), indent=1) + "\n")
        if tracker:
            self.accelerator.init_trackers("bpgo")

    # ---------------------------------------------------------------------------------------------------- setting up

    def _load(self, policy, reward: Reward | None, metrics: dict[str, Metric]) -> None:
        """What a run works with; all of it is tried before anything is written."""
        config, device = self.config, str(self.accelerator.device)
        self.policy = policy or load_policy(config, self.accelerator)
        check_prompts(self.policy, self.prompts, "prompts")
        check_prompts(self.policy, self.evaluation_prompts, "evaluation.prompts")
        first = config.reward[0].name
        self.rewards = (
            {first: lambda *given: checked(reward, first, *given)}
            if reward
            else load_rewards(config.reward, device)
        )
        self.reward = total(self.rewards)
        held_out = load_rewards(config.evaluation.held_out, device)
        self.metrics = {"reward": self.reward} | (
            held_out if len(held_out) != 1 else {"held_out": next(iter(held_out.values()))}
        )
        self.metrics |= metrics
        try_metrics(self.policy, self.prompts[0], self.metrics)
        self._prepare()
        self.conditions = make_conditions(
            config, self.policy, [*self.prompts, *self.evaluation_prompts], self.accelerator
        )
        with torch.random.fork_rng([]):  # a prior that is found in the cache draws nothing
            self.prior = make_prior(config, self.policy, self.reward, self.prompts, self.conditions)

    def _prepare(self) -> None:
        o, placed = self.config.optimiser, self.config.generator.offload
        plain = dict(self.policy.modules)
        self.policy.modules = distribute(self.accelerator, plain, placed)
        named = (
            (f"{part}.{name}", p)
            for part, module in plain.items()
            for name, p in module.named_parameters()
        )
        self.parameters = {name: p for name, p in named if p.requires_grad}
        groups = [
            {"params": [p for p in module.parameters() if p.requires_grad]}
            for module in plain.values()
        ]
        self.optimiser = torch.optim.AdamW(
            groups, o.learning_rate, (o.beta1, o.beta2), weight_decay=o.weight_decay, fused=True
        )
        torch.manual_seed(self.config.seed)  # for rewards and measures that draw
        self.ema = (
            {name: p.detach().clone() for name, p in self.parameters.items()} if o.ema_decay else {}
        )

    # ---------------------------------------------------------------------------------------------------------- loop

    def train(self) -> None:
        """Run to config.iterations; evaluate, checkpoint and log on the way; leave `final/` for plain diffusers."""
        if self.finished:
            self.accelerator.wait_for_everyone()  # the first to leave would cut off who is still looking
            return
        final = self.output / "final"
        shutil.rmtree(final, ignore_errors=True)  # of a shorter run that is now gone on with
        bar = tqdm(
            total=self.config.iterations,
            initial=self.iteration,
            disable=not (self.progress and self.accelerator.is_main_process),
        )
        every = self.config.evaluation.every or self.config.iterations
        while self.iteration < self.config.iterations:
            if self.iteration % every == 0:
                self._log_evaluation()
            metrics = self.step()
            bar.update()
            bar.set_postfix(reward=f"{metrics['reward']:.4f}")
            if self.iteration % guards.WINDOW == 0:
                self._guard()
            if self.iteration % self.config.checkpoint_every == 0:
                self.save_checkpoint()
        bar.close()
        self.save_checkpoint()
        self._log_evaluation()
        self._guard()
        trained = [getattr(self.policy.pipeline, name) for name in self.policy.modules]
        with memory_explained(self.config), self.averaged_weights(), whole_weights(trained):
            if self.accelerator.is_main_process:
                export(self.policy, self.config, read_log(self.output / "evaluations.jsonl"), final)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def step(self) -> dict[str, float]:
        """One iteration: a rollout of every prompt's group, then the updates. Logged to metrics.jsonl and returned.

        An error before the first update (a reward that fails, a disk that is full) saves the state as it was, then is raised.
        """
        o, started, random_state = self.config.optimiser, time.perf_counter(), torch.get_rng_state()
        answers, spent = [], {"decode": 0.0, "score": 0.0}

        def score(latents: Tensor, prompts: list[str]) -> None:
            began = time.perf_counter()
            pixels = self.policy.decode(latents)
            decoded = time.perf_counter()
            answers.append(submit(self.rewards, pixels, prompts))
            spent["decode"] += decoded - began
            spent["score"] += time.perf_counter() - decoded

        try:
            with memory_explained(self.config):
                prompts, plan, cond, rollout = self.collect(score)
                sampled = time.perf_counter()
                parts = [answer() for answer in answers]
            scores = {
                name: torch.cat([part[name] for part in parts]).view(len(prompts), -1)
                for name in self.rewards
            }
            rewards = sum(scores.values())
            spent["sample"] = sampled - started - sum(spent.values())
            spent["score"] += time.perf_counter() - sampled
            advantages, metrics = self.weigh(prompts, rewards)
        except (RewardError, OSError, ValueError, MemoryError):
            torch.set_rng_state(random_state)
            if not sharded(
                self.accelerator
            ):  # where saving takes all processes, and the others may know of no error
                self.save_checkpoint()
            raise
        if len(scores) > 1:
            metrics |= {
                f"reward/{name}": self.accelerator.gather(values).mean().item()
                for name, values in scores.items()
            }
        rows = list(self._micro_batches())
        per_update = len(rows) // o.updates
        batches = [rows[i : i + per_update] for i in range(0, len(rows), per_update)] * o.epochs
        began = time.perf_counter()
        with memory_explained(self.config):
            metrics |= update_policy(
                self.policy,
                self.accelerator,
                self.optimiser,
                rollout,
                plan,
                cond,
                advantages,
                batches,
                self.config.objective.clip_range,
                o.max_grad_norm,
            )
        spent["update"] = time.perf_counter() - began
        self.prior.update(self.accelerator.gather(rewards))
        if self.ema:
            live = [
                p.detach() for p in self.parameters.values()
            ]  # or autograd would follow the averages through the whole run
            torch._foreach_lerp_(list(self.ema.values()), live, 1 - o.ema_decay)
        self.iteration += 1
        self._log("metrics.jsonl", {"iteration": self.iteration, **metrics})
        self._log(
            "timing.jsonl",
            {"iteration": self.iteration, "seconds": time.perf_counter() - started, **spent},
        )
        self.accelerator.log(metrics, step=self.iteration)
        return metrics

    def collect(
        self, finished: Callable[[Tensor, list[str]], None] | None = None
    ) -> tuple[list[str], Plan, dict[str, Tensor], Rollout]:
        """This iteration's prompts (of this process), its plan, their conditions, and their trajectories.

        finished: called with the latents and prompts of each micro-batch as soon as it is sampled.
        """
        c, s, i = self.config, self.config.sampling, self.iteration
        rng = random.Random(seed_of(c.seed, "iteration", i))
        prompts = rng.sample(self.prompts, c.groups)
        scheme = self._plan(rng)
        an_update = c.groups // c.optimiser.updates
        share = (
            an_update // self.accelerator.num_processes
        )  # of each update's groups, so that updates are those of a single process
        firsts = range(share * self.accelerator.process_index, c.groups, an_update)
        groups = [g for first in firsts for g in range(first, first + share)]
        own = [prompts[g] for g in groups]
        flat = [p for p in own for _ in range(c.group_size)]
        seeds = [seed_of(c.seed, i, g, j) for g in groups for j in range(c.group_size)]
        starts = (
            [seed_of(c.seed, i, g) for g in groups for _ in range(c.group_size)]
            if s.shared_noise
            else None
        )
        cond = self.conditions(own)
        done = finished and (lambda rows, latents: finished(latents, flat[rows]))
        keep_on = "cpu" if c.generator.offload else None
        rollout = sample_groups(
            self.policy, cond, c.group_size, scheme, seeds, starts, self._micro_batch, done, keep_on
        )
        return own, scheme, cond, rollout

    def _plan(self, rng: random.Random) -> Plan:
        s = self.config.sampling
        return plan(
            self.sigmas, s.schedule, s.noise_level, s.trained_share, s.window, rng, s.window_range
        )

    def weigh(
        self, prompts: list[str], rewards: Tensor
    ) -> tuple[objective.Advantages, dict[str, float]]:
        """Rewards (N, G) to advantages by the objective and its prior; and what to log of them."""
        o = self.config.objective
        everyone = self.accelerator.gather(rewards)
        prior = self.prior([key_of(p) for p in prompts], everyone)
        k = self.prior.sharpness(everyone)
        k = objective.sharpness(o.k, o.kappa, everyone) if k is None else k
        if isinstance(prior, Tensor):
            prior = self.accelerator.gather(prior.to(rewards))
        advantages = objective.OBJECTIVES[o.name](
            everyone, prior, alpha=o.alpha, k=k, lam=o.lam, beta=o.beta
        )
        anchor = float(torch.as_tensor(prior).mean())
        spread = everyone.std(1).mean().item()
        metrics = {"reward": everyone.mean().item(), "reward_std": spread, "prior": anchor, "k": k}
        metrics |= objective.group_diagnostics(everyone, advantages)
        first = self.accelerator.process_index * len(rewards)
        own = (
            None if values is None else values[first : first + len(rewards)]
            for values in advantages
        )
        return objective.Advantages(*own), metrics

    @property
    def finished(self) -> bool:
        return self.iteration >= self.config.iterations and (self.output / "final").exists()

    @property
    def _rows(self) -> int:
        return self.config.groups // self.accelerator.num_processes * self.config.group_size

    @property
    def _micro_batch(self) -> int:
        """Rows of one model call: a divisor of an update's rows, so that rollout and update see the same batches."""
        per_update = self._rows // self.config.optimiser.updates
        size = min(self.config.sampling.micro_batch or per_update, per_update)
        return next(n for n in range(size, 0, -1) if per_update % n == 0)

    def _micro_batches(self):
        return micro_batches(self._rows, self._micro_batch)

    # --------------------------------------------------------------------------------------------------------- state

    def save_checkpoint(self) -> None:
        """The whole state, as checkpoint-<iteration>; the two newest are kept."""
        if (
            self.saved == self.iteration
        ):  # not what is on disk, which processes would see at different moments
            return
        self.saved = self.iteration
        place = self.output / f"checkpoint-{self.iteration:06d}"
        with memory_explained(self.config):
            tensors = checkpoint.pack(self.parameters, self.ema, self.optimiser)
        if not self.accelerator.is_main_process:
            return
        checkpoint.save_state(
            place, tensors, {"iteration": self.iteration, "prior": self.prior.state()}
        )
        for old in checkpoint.checkpoints(self.output)[:-2]:
            shutil.rmtree(old)

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; log lines after it are dropped, they will be written again."""
        found = checkpoint.checkpoints(self.output)
        if found:
            tensors, state = checkpoint.load_state(found[-1])
            checkpoint.unpack(tensors, self.parameters, self.ema, self.optimiser)
            self.prior.restore(state["prior"])
            self.iteration = self.saved = state["iteration"]
        if self.finished:
            return
        for name, kept in (
            ("metrics", self.iteration + 1),
            ("timing", self.iteration + 1),
            ("warnings", self.iteration + 1),
            ("evaluations", self.iteration),
        ):
            file = self.output / f"{name}.jsonl"
            if file.exists() and self.accelerator.is_main_process:
                lines = [line for line in file.read_text().splitlines(True) if line.endswith("\n")]
                write_atomic(
                    file, "".join(line for line in lines if json.loads(line)["iteration"] < kept)
                )

    @contextmanager
    def averaged_weights(self):
        """Within it, the policy has its averaged weights (if it keeps any)."""
        if not self.ema:
            yield
            return
        live = {name: p.detach().clone() for name, p in self.parameters.items()}
        _copy(self.parameters, self.ema)
        try:
            yield
        finally:
            _copy(self.parameters, live)

    def evaluate(self, keep: bool = True) -> Scores:
        """Scores of the evaluation prompts under the current (averaged) weights and, if asked to keep them, the samples.

        Several processes share the prompts, and keep no samples.
        """
        e, shift, count = (
            self.config.evaluation,
            self.config.sampling.shift,
            self.accelerator.num_processes,
        )
        own = shares(self.evaluation_prompts, count)[self.accelerator.process_index]
        prompts, keep = [self.evaluation_prompts[i] for i in own], keep and count == 1
        with self.averaged_weights(), memory_explained(self.config):
            found = evaluate(
                self.policy,
                prompts,
                self.metrics,
                e.samples,
                e.steps,
                shift,
                self._micro_batch,
                self.conditions,
                keep,
            )
        if count == 1:
            return found
        every = {
            i: row
            for indices, table in gather_object([(own, found.scores)])
            for i, row in zip(indices, _rows(table), strict=True)
        }
        return Scores(
            found.pixels,
            {m: torch.stack([every[i][m] for i in range(len(every))]) for m in found.scores},
        )

    def _log_evaluation(self) -> None:
        found = self.evaluate(keep=False)
        scores = {
            name: [[None if math.isnan(v) else v for v in row] for row in values.tolist()]
            for name, values in found.scores.items()
        }
        means = {name: None if math.isnan(mean) else mean for name, mean in found.means().items()}
        self._log("evaluations.jsonl", {"iteration": self.iteration, **means, "scores": scores})
        self.accelerator.log(
            {f"evaluation/{k}": v for k, v in found.means().items()}, step=self.iteration
        )

    def _guard(self) -> None:
        """Say what the guards see in the logs, each of them once a run."""
        if not (self.config.guards and self.accelerator.is_main_process):
            return
        for name, words in guards.look(self.output, self.config).items():
            self._log(
                "warnings.jsonl", {"iteration": self.iteration, "guard": name, "warning": words}
            )
            warnings.warn(
                f"{name}, at iteration {self.iteration}: {words}",
                guards.TrainingWarning,
                stacklevel=3,
            )

    def _log(self, name: str, row: dict) -> None:
        if self.accelerator.is_main_process:
            with (self.output / name).open("a") as stream:
                stream.write(json.dumps(row) + "\n")


@torch.no_grad()
def _copy(target: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    for name, p in target.items():
        p.copy_(source[name])


def _rows(table: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
