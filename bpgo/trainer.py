"""The training loop.

    prompts -> encode -> [rollout -> decode -> reward] -> prior -> objective -> update

`Trainer.step` runs these stages in order, and those in brackets once per micro-batch. The
randomness of sampling depends only on (seed, iteration, group, sample), so the sampler has no state
but the iteration number. Rewards may draw from torch's global generator as well. A
checkpoint holds the iteration, weights, optimiser, averaged weights, prior and generator, and a
resumed run equals an uninterrupted one bit for bit.

The module is over 300 lines because a run's parts, loop, state and logs belong to one object.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from bpgo import checkpoint, guards, monitor, run_folder, setup
from bpgo.averaging import start_average, swapped, update_average
from bpgo.batching import check_divisible, micro_batch_size
from bpgo.config import Config, to_dict
from bpgo.diagnostics import group_diagnostics, non_finite
from bpgo.distributed import distribute, failing_together, full_weights, gather_rows, sharded
from bpgo.evaluation import Metric, Scores, divide_prompts, evaluate
from bpgo.export import export
from bpgo.files import expand, read_log, write_atomic
from bpgo.identity import data_identity, write_identity
from bpgo.logs import append_row, drop_rows_after, evaluation_row
from bpgo.memory import memory_explained
from bpgo.objective import Advantages, sharpness
from bpgo.priors import Prior
from bpgo.prompts import key_of, with_columns
from bpgo.registry import name_of
from bpgo.rewards import Reward, checked, collect, load_rewards, submit, total
from bpgo.rollout import Batch, Part, Rollout, draw_batch, sample_groups
from bpgo.signals import Interruption
from bpgo.starting_model import starting_means
from bpgo.timing import Clock
from bpgo.update import update_policy


class Trainer:
    """One run in one folder. A run with the same config and folder resumes from its checkpoint.

    output: the folder. It will contain config.json, identity.json (digests of the data),
    metrics.jsonl, timing.jsonl, evaluations.jsonl, warnings.jsonl, samples/, checkpoint-*/ and, at
    the end, final/, which plain diffusers can load. No other process can use the folder until
    `train` returns.

    policy, reward, objective, prior, prompts: objects to use in place of those that the config
    names. The names of their classes or functions are recorded in config.json. metrics: further
    metrics for evaluation, each `(pixels, prompts) -> (B,)` or a dict of several.

    Settings, prompts, rewards and metrics are checked before training starts. Raises ValueError
    (ConfigError, CheckpointError, RewardError), TypeError, OSError or MemoryError; the message
    names the setting to change.
    """

    def __init__(
        self,
        config: Config,
        output: str | Path,
        *,
        policy=None,
        reward: Reward | None = None,
        objective: Callable[..., Advantages] | None = None,
        prior: Prior | None = None,
        prompts: list[str] | None = None,
        metrics: dict[str, Metric] | None = None,
        progress: bool = True,
    ):
        config = setup.with_lora(setup.with_names(config, policy, objective, prior, reward))
        self.config = config
        self.output, self.progress = expand(output), progress
        self.iteration, self.saved_iteration, self.optimiser_steps = 0, None, 0
        self.groups: dict[str, Tensor] = {}  # of the last iteration, for the tracker's histograms
        self.prompts, self.evaluation_prompts = setup.load_prompts(config, prompts)
        given = {"generator": policy, "objective": objective, "prior": prior, "reward": reward}
        setup.check_settings(config, given)
        self.identity, self.lock = {}, None
        self.interruption = Interruption()
        if int(os.environ.get("RANK", "0")) == 0:  # the main process, also before they connect
            self.lock = run_folder.open_run(self.output)
        try:
            self._start(given, metrics or {})
        except BaseException:
            self._close()
            raise

    def _start(self, given: dict[str, object], metrics: dict[str, Metric]) -> None:
        """Load everything, and resume from the newest checkpoint, if there is one."""
        config = self.config
        if self.lock is not None:
            prompts = self.prompts, self.evaluation_prompts
            self.identity = data_identity(config, *prompts, given)
            run_folder.check_same_run(self.output, config, self.identity)
        tracker = None if config.tracker == "none" else config.tracker
        # accelerate has one precision per process, so `distribute` applies that of the config.
        self.accelerator = Accelerator(
            mixed_precision="no", log_with=tracker, project_dir=self.output
        )
        check_divisible(config.groups, config.optimiser.updates, self.accelerator.num_processes)
        self.micro_batch = micro_batch_size(config, self.accelerator.num_processes)
        self.keep_on = "cpu" if config.generator.offload else None
        with memory_explained(config):
            self._load(**given, metrics=metrics)
            self._resume()
        if self.accelerator.is_main_process:
            settings = json.dumps(to_dict(config), indent=1)
            write_atomic(self.output / "config.json", settings + "\n")
            write_identity(self.output, self.identity)
        if tracker:
            self.accelerator.init_trackers("bpgo")
        self._note_start()

    def _load(self, generator, reward, objective, prior, metrics: dict[str, Metric]) -> None:
        """Load the components that were not passed in, and check all of them."""
        config, device = self.config, str(self.accelerator.device)
        self.objective = setup.make_objective(config, objective)
        self.policy = generator
        if generator is None:
            self.policy = setup.load_policy(config, self.accelerator)
        if reward is None:
            self.rewards = load_rewards(config.reward, device)
        else:
            name = name_of(reward)
            self.rewards = {name: partial(checked, with_columns(reward, f"reward {name!r}"), name)}
        self.reward = total(self.rewards)
        self.metrics = setup.make_metrics(config, self.reward, metrics, device)
        prompts = self.prompts, self.evaluation_prompts
        setup.check_all_prompts(config, self.policy, self.rewards, self.metrics, *prompts)
        logged = setup.try_metrics(self.policy, self.evaluation_prompts[0], self.metrics)
        setup.check_keep_best(config, logged)
        self._prepare_training()
        prompts = [*self.prompts, *self.evaluation_prompts]
        self.conditions = setup.make_conditions(config, self.policy, prompts, self.accelerator)
        self.prior = prior
        if prior is None:
            # Making a prior may draw random numbers, and loading one from the cache does not. Both
            # must leave the generator in the same state.
            with torch.random.fork_rng(devices=[]):
                self.prior = setup.make_prior(
                    config, self.policy, self.reward, self.prompts, self.conditions
                )

    def _prepare_training(self) -> None:
        """Distribute the modules, and make the optimiser and the average of their weights."""
        modules = dict(self.policy.modules)  # `distribute` may wrap them, which changes names
        offload = self.config.generator.offload
        self.policy.modules = distribute(
            self.accelerator, modules, self.config.precision, keep_device=offload
        )
        self.parameters = {
            f"{part}.{name}": p
            for part, module in modules.items()
            for name, p in module.named_parameters()
            if p.requires_grad
        }
        self.optimiser = setup.make_optimiser(self.config, modules)
        # From the first optimiser step to the end of an iteration, its state cannot be saved.
        self.optimiser.register_step_pre_hook(lambda *_: self.interruption.hold())
        self.optimiser.register_step_post_hook(self._count_step)
        torch.manual_seed(self.config.seed)  # for rewards and metrics that draw random numbers
        self.start = start_average(self.parameters) if self.config.objective.kl else {}
        self.average = {}
        if self.config.optimiser.ema_decay:
            self.average = start_average(self.parameters)

    # ------------------------------------------------------------------------------------- loop

    def train(self) -> None:
        """Train up to config.iterations, with evaluations and checkpoints, and export the model.

        If an error, Ctrl-C or SIGTERM ends the run, its state is saved first, and `train` or the
        same command resumes it. SIGINT and SIGTERM raise `bpgo.signals.Interrupted`.
        """
        if self.lock is not None and not self.lock.is_locked:
            self.lock = run_folder.lock_run(self.output)
        try:
            with self.interruption, self._saved_on_error():
                self._train()
        finally:
            self._close()

    def _train(self) -> None:
        if self.complete:
            if self.progress and self.accelerator.is_main_process:
                print(
                    f"{self.output} is complete: it has all {self.iteration} iterations, and its "
                    f"model is in final/. Set more iterations to continue"
                )
            # A process that exits closes the connection for those that are still starting.
            self.accelerator.wait_for_everyone()
            return
        if sharded(self.accelerator):
            self.interruption.hold()  # until the end of an iteration, see _allow_interruption
        final = self.output / "final"
        shutil.rmtree(final, ignore_errors=True)  # from a shorter run that is being extended
        every = self.config.evaluation.every or self.config.iterations
        show = self.progress and self.accelerator.is_main_process
        with tqdm(total=self.config.iterations, initial=self.iteration, disable=not show) as bar:
            while self.iteration < self.config.iterations:
                if self.iteration % every == 0:
                    self._log_evaluation()
                metrics = self.step()
                bar.update()
                bar.set_postfix(reward=f"{metrics['reward']:.4f}")
                if self.iteration % guards.WINDOW == 0:
                    self._warn()
                if self.iteration % self.config.checkpoint_every == 0:
                    self.save_checkpoint()
        self.save_checkpoint()
        self._log_evaluation()
        self._warn()
        self._export(final)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def step(self) -> dict[str, float]:
        """One iteration. Returns what it logs to metrics.jsonl."""
        clock, parts, answers = Clock(), [], []
        with memory_explained(self.config):
            with failing_together(self.accelerator), clock("sample"):
                batch = self.draw_batch()
                for part in sample_groups(self.policy, batch, self.micro_batch, self.keep_on):
                    with clock("decode"):
                        pixels = self.decode(part)
                    with clock("score"):
                        answers.append(submit(self.rewards, pixels, batch.prompts_of(part.rows)))
                    parts.append(part)
                with clock("score"):
                    scores = collect(answers)
            with clock("advantages"):
                advantages, metrics = self.compute_advantages(batch, scores)
            with clock("update"):
                metrics |= self.update(Rollout(batch, parts), advantages)
        self.iteration += 1
        self._log(metrics, clock.seconds)
        self._note_start()
        self._allow_interruption()
        return metrics

    def draw_batch(self) -> Batch:
        """The prompts of this process in this iteration, encoded, with their steps and seeds."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        return draw_batch(
            self.config, self.prompts, self.iteration, self.conditions, processes, rank
        )

    def decode(self, part: Part) -> Tensor:
        """The pixels of a part. Raises FloatingPointError if the model produces no finite ones."""
        pixels = self.policy.decode(part.latents)
        problem = non_finite(part.latents, pixels)
        if problem:
            raise FloatingPointError(
                f"iteration {self.iteration + 1}: {problem}{self._last_checkpoint()}"
            )
        return pixels

    def compute_advantages(
        self, batch: Batch, scores: dict[str, Tensor]
    ) -> tuple[Advantages, dict[str, float]]:
        """The prior and the objective: advantages (N, G) of a batch, and what to log.

        scores: (B,) by reward, already scaled; their sum is the reward. The objective sees the
        groups of all processes. The prior is evaluated for the prompts of this process, and then
        updated with the rewards of all.
        """
        gather, o = self.accelerator.gather, self.config.objective
        own_rewards = sum(scores.values()).view(-1, batch.group_size)
        rewards = gather(own_rewards)
        prior = self.prior([key_of(prompt) for prompt in batch.prompts], rewards)
        if isinstance(prior, Tensor):  # one value for each prompt of this process
            prior = gather(prior.to(own_rewards))
        k = sharpness(rewards, o.k, o.kappa, implied=self.prior.sharpness(rewards))
        self.prior.update(rewards)
        advantages = self.objective(rewards, prior, k)
        metrics = {"reward": rewards.mean().item(), "reward_std": rewards.std(1).mean().item()}
        metrics |= {"prior": float(torch.as_tensor(prior).mean()), "k": k}
        metrics |= group_diagnostics(rewards, advantages)
        self.groups = {"rewards": rewards, "weights": advantages.weights}
        if len(scores) > 1:
            for name, values in scores.items():
                metrics[f"reward/{name}"] = gather(values).mean().item()
        first = self.accelerator.process_index * len(own_rewards)
        own = slice(first, first + len(own_rewards))
        return Advantages(*(None if a is None else a[own] for a in advantages)), metrics

    def update(self, rollout: Rollout, advantages: Advantages) -> dict[str, float]:
        """Train the policy, then update its averaged weights. Returns what to log."""
        means = starting_means(self.policy, rollout, self.parameters, self.start)
        metrics = update_policy(
            self.policy,
            self.optimiser,
            rollout,
            advantages,
            self.config,
            self.accelerator,
            self.iteration,
            means,
        )
        update_average(self.average, self.parameters, self.config.optimiser.ema_decay)
        return metrics

    # ------------------------------------------------------------------------------------ state

    @property
    def complete(self) -> bool:
        """Whether the run has all its iterations and its exported model."""
        return self.iteration >= self.config.iterations and (self.output / "final").exists()

    def save_checkpoint(self) -> None:
        """Save the complete state, and delete all but the newest checkpoints.

        A signal waits until it is saved. Weights that are not finite are not saved.
        """
        # All processes must agree, and each may see the disk at a different time.
        if self.saved_iteration == self.iteration:
            return
        self.interruption.hold()
        with memory_explained(self.config):
            tensors = checkpoint.pack(self.parameters, self.average, self.optimiser)
        if self.accelerator.is_main_process:
            checkpoint.check_finite(tensors)
            folder = checkpoint.checkpoint_folder(self.output, self.iteration)
            state = {"iteration": self.iteration, "prior": self.prior.state()}
            state["settings"] = to_dict(self.config)
            checkpoint.save_state(folder, tensors, state)
            keep, metric = self.config.keep_checkpoints, self.config.keep_best
            checkpoint.delete_old(self.output, keep, metric)
        self.saved_iteration = self.iteration
        self._allow_interruption()

    def _resume(self) -> None:
        """Restore the newest checkpoint, if there is one, and remove what was logged after it."""
        found = checkpoint.checkpoints(self.output)
        if found:
            tensors, state = checkpoint.load_state(found[-1])
            checkpoint.unpack(tensors, self.parameters, self.average, self.optimiser)
            if state["prior"] is not None:  # a branch with another prior has none
                self.prior.restore(state["prior"])
            self.iteration = self.saved_iteration = state["iteration"]
        if not self.complete and self.accelerator.is_main_process:
            drop_rows_after(self.output, self.iteration)

    def _note_start(self) -> None:
        """Keep what an unfinished iteration changes before its first optimiser step."""
        prior = copy.deepcopy(self.prior.state())
        self._start_of_iteration = torch.get_rng_state(), prior, self.optimiser_steps

    @contextmanager
    def _saved_on_error(self):
        """If the run ends early, save the state after its last complete iteration.

        This is not possible once the next iteration has made an optimiser step.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            random_state, prior_state, steps_made = self._start_of_iteration
            # Saving shards needs all processes, and would wait for those that have not stopped.
            alone = sharded(self.accelerator) and not getattr(error, "on_all_processes", False)
            if self.optimiser_steps == steps_made and not alone:
                self.interruption.hold()
                torch.set_rng_state(random_state)
                self.prior.restore(prior_state)
                self._save_in_spite_of(error)
            raise

    def _save_in_spite_of(self, error: BaseException) -> None:
        """Save a checkpoint, and add to the error where it is, or why there is none."""
        try:
            self.save_checkpoint()
        except Exception as other:  # the first error is the one to report
            error.add_note(f"The state could not be saved: {other}{self._last_checkpoint()}")
        else:
            folder = checkpoint.checkpoint_folder(self.output, self.iteration)
            error.add_note(
                f"The state after iteration {self.iteration} is saved in {folder}. Rerun the same "
                f"command to resume"
            )

    def _allow_interruption(self) -> None:
        """End a hold. The processes of a sharded run are interrupted at the same point."""
        together = sharded(self.accelerator)
        if together:
            self.interruption.share(self.accelerator)
        self.interruption.release(on_all_processes=together)
        if together:
            self.interruption.hold()

    def _last_checkpoint(self) -> str:
        """Which checkpoint there is to go back to, as the end of a message."""
        found = checkpoint.checkpoints(self.output)
        if not found:
            return ". There is no checkpoint yet"
        lower = f"optimiser.learning_rate={self.config.optimiser.learning_rate / 2:g}"
        return f". The last checkpoint is {found[-1]}{run_folder.branch_hint(self.output, lower)}"

    def _count_step(self, *_) -> None:
        self.optimiser_steps += 1

    def _close(self) -> None:
        """Let other processes use the folder."""
        if self.lock is not None:
            run_folder.close_run(self.lock)

    def averaged_weights(self):
        """A context in which the policy has its averaged weights, if the run keeps any."""
        return swapped(self.parameters, self.average)

    def _export(self, folder: Path) -> None:
        trained = [getattr(self.policy.pipeline, name) for name in self.policy.modules]
        with memory_explained(self.config), self.averaged_weights(), full_weights(trained):
            if self.accelerator.is_main_process:
                evaluations = read_log(self.output / "evaluations.jsonl")
                export(self.policy, self.config, self.iteration, evaluations, folder)

    # ----------------------------------------------------------------------- evaluation and logs

    def evaluate(self, keep: int | None = None) -> Scores:
        """Scores of the evaluation prompts under the averaged weights.

        keep: of how many prompts the samples are returned (None: of all). With several processes
        the prompts are divided, and the samples are those of the main process's own prompts.
        """
        e, processes = self.config.evaluation, self.accelerator.num_processes
        own = self.own_evaluation_prompts()
        if not self.accelerator.is_main_process:
            keep = 0
        with self.averaged_weights(), memory_explained(self.config):
            found = evaluate(
                self.policy,
                [self.evaluation_prompts[i] for i in own],
                self.metrics,
                e.samples,
                e.steps,
                self.config.sampling.shift,
                self.micro_batch,
                self.conditions,
                keep=keep,
            )
        return found if processes == 1 else found._replace(scores=gather_rows(own, found.scores))

    def own_evaluation_prompts(self) -> list[int]:
        """Indices of the evaluation prompts of this process."""
        shares = divide_prompts(self.evaluation_prompts, self.accelerator.num_processes)
        return shares[self.accelerator.process_index]

    def _log_evaluation(self) -> None:
        found = self.evaluate(keep=self.config.evaluation.pictures)
        self._append("evaluations", evaluation_row(self.iteration, found))
        means = {f"evaluation/{name}": mean for name, mean in found.means().items()}
        self.accelerator.log(means, step=self.iteration)
        monitor.show(self, found)

    def _log(self, metrics: dict[str, float], seconds: dict[str, float]) -> None:
        timing = {"seconds": sum(seconds.values())} | seconds
        self._append("metrics", {"iteration": self.iteration} | metrics)
        self._append("timing", {"iteration": self.iteration} | timing)
        self.accelerator.log(metrics, step=self.iteration)

    def _warn(self) -> None:
        """Issue the warning of each guard, at most once per run."""
        if not (self.config.guards and self.accelerator.is_main_process):
            return
        for name, message in guards.look(self.output, self.config).items():
            row = {"iteration": self.iteration, "guard": name, "warning": message}
            self._append("warnings", row)
            text = f"{name}, at iteration {self.iteration}: {message}"
            warnings.warn(text, guards.TrainingWarning, stacklevel=3)

    def _append(self, name: str, row: dict) -> None:
        if self.accelerator.is_main_process:
            append_row(self.output, name, row)
