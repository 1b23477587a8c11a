"""The loop: sample, score, anchor, step.

    prompts -> encode -> rollout -> decode -> reward -> prior -> objective -> optimiser

All randomness is a function of (seed, iteration, prompt, sample), so the sampler's state is the iteration number; a checkpoint
holds weights, optimiser, averaged weights, prior and torch's generator, and a resumed run is the undisturbed one, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from . import checkpoint, objective
from .config import Config, differences, to_dict
from .evaluation import Metric, Scores, check_prompts, encode_each, evaluate, try_metrics
from .files import write_atomic
from .generators import load_generator
from .prompts import key_of, read_prompts
from .reference import make_prior
from .rewards import Reward, RewardError, checked, load_reward
from .rollout import Plan, Rollout, micro_batches, plan, sample_groups, seed_of
from .sde import sigma_grid
from .update import update_policy

POLICY_SETTINGS = ("height", "width", "frames", "guidance", "guidance_2", "cfg_gradient", "negative_prompt", "max_sequence_length")
EXTENDABLE = ("iterations:", "checkpoint_every:", "tracker:")  # settings that may change when a run is gone on with


class Trainer:
    """One run in one folder. The same config and folder go on from the newest checkpoint; another config is refused.

    output: metrics.jsonl, timing.jsonl, evaluations.jsonl, config.json, checkpoint-*/ and, at the end, final/ for plain diffusers.
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
        self.evaluation_prompts = read_prompts(config.evaluation.prompts) if config.evaluation.prompts else self.prompts
        if len(self.prompts) < config.groups:
            raise ValueError(f"groups={config.groups} prompts an iteration, but there are only {len(self.prompts)}")
        self._open_output()
        tracker = None if config.tracker == "none" else config.tracker
        self.accelerator = Accelerator(mixed_precision=config.precision, log_with=tracker, project_dir=self.output)
        if config.groups % self.accelerator.num_processes:
            raise ValueError(f"groups={config.groups} cannot be split over {self.accelerator.num_processes} processes")
        self.policy = policy or self._load_policy()
        check_prompts(self.policy, self.prompts, "prompts")
        check_prompts(self.policy, self.evaluation_prompts, "evaluation.prompts")
        device = str(self.accelerator.device)
        score = reward or load_reward(config.reward.name, config.reward.path, device)
        self.reward = lambda pixels, prompts: checked(score, config.reward.name, pixels, prompts)
        self.metrics = {"reward": self.reward}
        if config.evaluation.held_out:
            self.metrics["held_out"] = load_reward(config.evaluation.held_out.name, config.evaluation.held_out.path, device)
        self.metrics |= metrics or {}
        try_metrics(self.policy, self.prompts[0], self.metrics)
        self.sigmas = sigma_grid(config.sampling.steps, config.sampling.shift)
        self._plan(random.Random())  # refuses what does not fit
        self.iteration, self.cond = 0, {}
        self._prepare()
        with torch.random.fork_rng([]):  # a prior that is found in the cache draws nothing
            self.prior = make_prior(config, self.policy, self.reward, self.prompts)
        self._resume()
        if self.accelerator.is_main_process:
            write_atomic(self.output / "config.json", json.dumps(to_dict(config), indent=1) + "\n")
        if tracker:
            self.accelerator.init_trackers("bpgo")

    # ---------------------------------------------------------------------------------------------------- setting up

    def _open_output(self) -> None:
        """Refuse at the door a folder that cannot be written to, or that holds a run of another config."""
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            probe = self.output / f".writable-{os.getpid()}"  # each process of a run its own
            write_atomic(probe, "")
            probe.unlink()
        except OSError as error:
            raise OSError(f"cannot write to the output folder {self.output}: {error.strerror}. Choose another") from error
        place = self.output / "config.json"
        if place.exists():
            new = json.loads(json.dumps(to_dict(self.config)))
            changed = [d for d in differences(json.loads(place.read_text()), new) if not d.startswith(EXTENDABLE)]
            if changed:
                raise checkpoint.CheckpointError(
                    f"{self.output} holds a run with other settings ({'; '.join(changed)}): choose another output folder, or delete it"
                )

    def _load_policy(self):
        g = self.config.generator
        given = {name: getattr(g, name) for name in POLICY_SETTINGS if getattr(g, name) is not None}
        policy = load_generator(g.path, dtype=g.dtype, device=str(self.accelerator.device), **given)
        for module in policy.modules.values():
            if g.gradient_checkpointing:
                module.enable_gradient_checkpointing()
            if not g.lora_rank:
                module.float().requires_grad_(True)
        if g.lora_rank:
            torch.manual_seed(self.config.seed)  # adapters start from the seed
            policy.add_lora(g.lora_rank, g.lora_alpha or 2 * g.lora_rank)
        return policy

    def _prepare(self) -> None:
        o, modules = self.config.optimiser, self.policy.modules
        named = ((f"{part}.{name}", p) for part, module in modules.items() for name, p in module.named_parameters())
        self.parameters = {name: p for name, p in named if p.requires_grad}
        groups = [{"params": [p for p in module.parameters() if p.requires_grad]} for module in modules.values()]
        optimiser = torch.optim.AdamW(groups, lr=o.learning_rate, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay, fused=True)
        torch.manual_seed(self.config.seed)  # for rewards and measures that draw
        *prepared, self.optimiser = self.accelerator.prepare(*modules.values(), optimiser)
        self.policy.modules = dict(zip(modules, prepared, strict=True))
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()} if o.ema_decay else {}

    # ---------------------------------------------------------------------------------------------------------- loop

    def train(self) -> None:
        """Run to config.iterations; evaluate, checkpoint and log on the way; leave `final/` for plain diffusers."""
        if self.finished:
            return
        final = self.output / "final"
        shutil.rmtree(final, ignore_errors=True)  # of a shorter run that is now gone on with
        bar = tqdm(
            total=self.config.iterations, initial=self.iteration, disable=not (self.progress and self.accelerator.is_main_process)
        )
        every = self.config.evaluation.every or self.config.iterations
        while self.iteration < self.config.iterations:
            if self.iteration % every == 0:
                self._log_evaluation()
            metrics = self.step()
            bar.update()
            bar.set_postfix(reward=f"{metrics['reward']:.4f}")
            if self.iteration % self.config.checkpoint_every == 0:
                self.save_checkpoint()
        bar.close()
        self.save_checkpoint()
        self._log_evaluation()
        if self.accelerator.is_main_process:
            partial = self.output / ".final.partial"
            shutil.rmtree(partial, ignore_errors=True)
            try:
                with self.averaged_weights():
                    self.policy.save(partial, lora=bool(self.config.generator.lora_rank))
            except SafetensorError as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise OSError(f"cannot write {final}: {error}") from error
            partial.rename(final)
        self.accelerator.end_training()

    def step(self) -> dict[str, float]:
        """One iteration: a rollout of every prompt's group, then the updates. Logged to metrics.jsonl and returned.

        An error before the first update (a reward that fails, a disk that is full) saves the state as it was, then is raised.
        """
        o, times, random_state = self.config.optimiser, [time.perf_counter()], torch.get_rng_state()
        try:
            prompts, plan, cond, rollout = self.collect()
            times.append(time.perf_counter())
            pixels = torch.cat([self.policy.decode(rollout.latents[rows]) for rows in self._micro_batches()])
            times.append(time.perf_counter())
            rewards = self.reward(pixels, [p for p in prompts for _ in range(self.config.group_size)])
            rewards = rewards.view(len(prompts), self.config.group_size)
            times.append(time.perf_counter())
            advantages, metrics = self.weigh(prompts, rewards)
        except (RewardError, OSError, ValueError):
            torch.set_rng_state(random_state)
            self.save_checkpoint()
            raise
        rows = list(self._micro_batches())
        per_update = len(rows) // o.updates
        batches = [rows[i : i + per_update] for i in range(0, len(rows), per_update)] * o.epochs
        metrics |= update_policy(
            self.policy, self.accelerator, self.optimiser, rollout, plan, cond, advantages, batches,
            self.config.objective.clip_range, o.max_grad_norm,
        )  # fmt: skip
        times.append(time.perf_counter())
        self.prior.update(self.accelerator.gather(rewards))
        if self.ema:
            live = [p.detach() for p in self.parameters.values()]  # or autograd would follow the averages through the whole run
            torch._foreach_lerp_(list(self.ema.values()), live, 1 - o.ema_decay)
        self.iteration += 1
        phases = zip(("sample", "decode", "score", "update"), (b - a for a, b in pairwise(times)), strict=True)
        self._log("metrics.jsonl", {"iteration": self.iteration, **metrics})
        self._log("timing.jsonl", {"iteration": self.iteration, "seconds": times[-1] - times[0], **dict(phases)})
        self.accelerator.log(metrics, step=self.iteration)
        return metrics

    def collect(self) -> tuple[list[str], Plan, dict[str, Tensor], Rollout]:
        """This iteration's prompts (of this process), its plan, their conditions, and their trajectories."""
        c, s, i = self.config, self.config.sampling, self.iteration
        rng = random.Random(seed_of(c.seed, "iteration", i))
        prompts = rng.sample(self.prompts, c.groups)
        scheme = self._plan(rng)
        share = c.groups // self.accelerator.num_processes
        first = share * self.accelerator.process_index
        own = prompts[first : first + share]
        for prompt in own:
            if key_of(prompt) not in self.cond:
                self.cond[key_of(prompt)] = encode_each(self.policy, [prompt])
        cond = {name: torch.cat([self.cond[key_of(p)][name] for p in own]) for name in self.cond[key_of(own[0])]}
        groups = range(first, first + share)
        seeds = [seed_of(c.seed, i, g, j) for g in groups for j in range(c.group_size)]
        starts = [seed_of(c.seed, i, g) for g in groups for _ in range(c.group_size)] if s.shared_noise else None
        return own, scheme, cond, sample_groups(self.policy, cond, c.group_size, scheme, seeds, starts, self._micro_batch)

    def _plan(self, rng: random.Random) -> Plan:
        s = self.config.sampling
        return plan(self.sigmas, s.schedule, s.noise_level, s.trained_share, s.window, rng, s.window_range)

    def weigh(self, prompts: list[str], rewards: Tensor) -> tuple[objective.Advantages, dict[str, float]]:
        """Rewards (N, G) to advantages by the objective and its prior; and what to log of them."""
        o = self.config.objective
        everyone = self.accelerator.gather(rewards)
        prior = self.prior([key_of(p) for p in prompts], everyone)
        k = objective.sharpness(o.k, o.kappa, everyone)
        if isinstance(prior, Tensor):
            prior = prior.to(rewards)
        advantages = objective.OBJECTIVES[o.name](rewards, prior, alpha=o.alpha, k=k, lam=o.lam, beta=o.beta)
        anchor = float(torch.as_tensor(prior).mean())
        spread = everyone.std(1).mean().item()
        metrics = {"reward": everyone.mean().item(), "reward_std": spread, "prior": anchor, "k": k}
        return advantages, metrics | objective.group_diagnostics(rewards, advantages)

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
        place = self.output / f"checkpoint-{self.iteration:06d}"
        if not self.accelerator.is_main_process or place.exists():
            return
        tensors = {f"weights/{name}": p for name, p in self.parameters.items()}
        tensors |= {f"ema/{name}": p for name, p in self.ema.items()}
        for name, p in self.parameters.items():
            tensors |= {f"optimiser/{key}/{name}": value for key, value in self.optimiser.state[p].items()}
        tensors["rng"] = torch.get_rng_state()
        checkpoint.save_state(place, tensors, {"iteration": self.iteration, "prior": self.prior.state()})
        for old in checkpoint.checkpoints(self.output)[:-2]:
            shutil.rmtree(old)

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; log lines after it are dropped, they will be written again."""
        found = checkpoint.checkpoints(self.output)
        if found:
            tensors, state = checkpoint.load_state(found[-1])
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(tensors[f"weights/{name}"])
                    keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"optimiser/{key}/{name}" in tensors]
                    self.optimiser.state[p] |= {key: tensors[f"optimiser/{key}/{name}"].to(p.device) for key in keys}
                for name, p in self.ema.items():
                    p.copy_(tensors[f"ema/{name}"])
            torch.set_rng_state(tensors["rng"])
            self.prior.restore(state["prior"])
            self.iteration = state["iteration"]
        if self.finished:
            return
        for name, kept in (("metrics", self.iteration + 1), ("timing", self.iteration + 1), ("evaluations", self.iteration)):
            file = self.output / f"{name}.jsonl"
            if file.exists() and self.accelerator.is_main_process:
                lines = [line for line in file.read_text().splitlines(True) if line.endswith("\n")]
                write_atomic(file, "".join(line for line in lines if json.loads(line)["iteration"] < kept))

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

    def evaluate(self) -> Scores:
        """Pictures and scores of the evaluation prompts under the current (averaged) weights."""
        e, shift = self.config.evaluation, self.config.sampling.shift
        with self.averaged_weights():
            return evaluate(self.policy, self.evaluation_prompts, self.metrics, e.samples, e.steps, shift, self._micro_batch)

    def _log_evaluation(self) -> None:
        found = self.evaluate()
        scores = {
            name: [[None if math.isnan(v) else v for v in row] for row in values.tolist()]
            for name, values in found.scores.items()
        }
        means = {name: None if math.isnan(mean) else mean for name, mean in found.means().items()}
        self._log("evaluations.jsonl", {"iteration": self.iteration, **means, "scores": scores})
        self.accelerator.log({f"evaluation/{k}": v for k, v in found.means().items()}, step=self.iteration)

    def _log(self, name: str, row: dict) -> None:
        if self.accelerator.is_main_process:
            with (self.output / name).open("a") as stream:
                stream.write(json.dumps(row) + "\n")


@torch.no_grad()
def _copy(target: dict[str, Tensor], source: dict[str, Tensor]) -> None:
    for name, p in target.items():
        p.copy_(source[name])


def read_log(file: str | Path) -> list[dict]:
    """The rows of a run's metrics.jsonl, timing.jsonl or evaluations.jsonl."""
    return [json.loads(line) for line in Path(file).read_text().splitlines()]
