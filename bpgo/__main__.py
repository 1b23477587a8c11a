"""Command line: `python -m bpgo train|preflight|pretrain|bench|settings`. The same presets as the notebooks."""

from __future__ import annotations

import argparse
import sys

from bpgo.config import Config, ConfigError, flatten, read_config


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code. Errors a user can mend are printed as one message, with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m bpgo", description="Bayesian Prior-Guided Optimization (arXiv 2511.18919)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    overrides = dict(
        nargs="*", metavar="key=value", help="settings, as listed by `python -m bpgo settings`"
    )

    train = commands.add_parser(
        "train", help="train a preset; the same command goes on where it was stopped"
    )
    train.add_argument("preset", help="a YAML file, or the name of one in bpgo/presets")
    train.add_argument("--output", required=True, help="folder of the run")
    train.add_argument("overrides", **overrides)

    preflight = commands.add_parser(
        "preflight", help="what a preset needs and what is missing, before any money is spent"
    )
    preflight.add_argument("preset", help="a YAML file, or the name of one in bpgo/presets")
    preflight.add_argument(
        "--download", action="store_true", help="fetch the files that are missing"
    )
    preflight.add_argument(
        "--launch",
        help="the accelerate configuration it will be launched with, such as reproduce/accelerate/ddp.yaml",
    )
    preflight.add_argument(
        "--gigabytes", type=float, help="plan for a device of this memory instead of the one here"
    )
    preflight.add_argument("--teraflops", type=float, help="and of this matmul rate")
    preflight.add_argument("overrides", **overrides)

    pretrain = commands.add_parser(
        "pretrain", help="train the tiny checkpoints that the package ships"
    )
    pretrain.add_argument(
        "stages", nargs="*", help="of those that a wrong name lists, all in order by default"
    )
    pretrain.add_argument("--output", required=True, help="folder of the checkpoints")
    pretrain.add_argument(
        "--scale", type=float, default=1.0, help="share of the training steps (default 1)"
    )

    bench = commands.add_parser(
        "bench", help="time an iteration against its model calls alone, and BPGO against GRPO"
    )
    bench.add_argument("preset", nargs="?", default="t2i-tiny")
    bench.add_argument("--rounds", type=int, default=8, help="interleaved rounds (default 8)")
    bench.add_argument("overrides", **overrides)

    commands.add_parser("settings", help="list every setting of a preset with what it means")

    options, rest = parser.parse_known_args(arguments)
    if any(argument.startswith("-") for argument in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes key=value before --output only
        options.overrides += rest
    try:
        return COMMANDS[options.command](options)
    except (
        ConfigError,
        FileNotFoundError,
        ValueError,
        OSError,
        FloatingPointError,
        MemoryError,
    ) as error:
        print(f"bpgo {options.command}: {error}", file=sys.stderr)
        return 2


def _train(options) -> int:
    from bpgo.trainer import Trainer

    config = read_config(options.preset, options.overrides)
    Trainer(config, options.output, metrics=world_metrics(config)).train()
    return 0


def _preflight(options) -> int:
    from bpgo.preflight.report import run

    config = read_config(options.preset, options.overrides)
    return run(config, options.download, options.launch, options.gigabytes, options.teraflops)


def world_metrics(config: Config) -> dict:
    """The measures of the shapes world or of handwriting, if config.evaluation.oracle asks for them."""
    if not config.evaluation.oracle:
        return {}
    if config.evaluation.oracle == "digits":
        from bpgo.worlds.digits import judge

        return judge.METRICS
    from bpgo.worlds.clips import oracle as clip_oracle
    from bpgo.worlds.shapes import oracle

    return clip_oracle.METRICS if config.generator.frames else oracle.METRICS


def _pretrain(options) -> int:
    from bpgo.worlds.pretrain import pretrain

    pretrain(options.stages, options.output, options.scale)
    return 0


def _bench(options) -> int:
    from bpgo.bench import bench

    print(bench(read_config(options.preset, options.overrides), options.rounds))
    return 0


def _settings(options) -> int:
    meanings = flatten(Config)
    width = max(map(len, meanings)) + 2
    for name, meaning in meanings.items():
        print(f"{name:{width}}{meaning}")
    return 0


COMMANDS = {
    "train": _train,
    "preflight": _preflight,
    "pretrain": _pretrain,
    "bench": _bench,
    "settings": _settings,
}

if __name__ == "__main__":
    sys.exit(main())
