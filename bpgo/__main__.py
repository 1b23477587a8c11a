"""Command line: `bpgo train|preflight|branch|export|sample|report|...`, or `python -m bpgo`."""

from __future__ import annotations

import argparse
import os
import sys

from bpgo.config import Config, list_presets, read_config
from bpgo.files import expand

ERRORS = (ValueError, TypeError, OSError, FloatingPointError, MemoryError)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    An error that the user can fix is printed as one message, and the exit code is 2.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that module:attribute is found, as by `python -m`
    options = _parse(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ERRORS as error:
        print(f"bpgo {options.command}: {error}", file=sys.stderr)
        return 2


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bpgo", description="Bayesian Prior-Guided Optimization (arXiv 2511.18919)"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    train = _command(commands, _train, "train a preset, or resume its run")
    _takes_preset(train)
    train.add_argument("--output", required=True, help="folder of the run")

    preflight = _command(
        commands, _preflight, "report what a preset needs and what is missing here"
    )
    _takes_preset(preflight)
    preflight.add_argument("--download", action="store_true", help="fetch missing files")
    preflight.add_argument("--launch", help="`accelerate launch` configuration file to plan for")
    preflight.add_argument(
        "--gigabytes", type=float, help="memory of the device to plan for, in GB"
    )
    preflight.add_argument(
        "--teraflops", type=float, help="matmul rate of the device to plan for, in TFLOP/s"
    )

    branch = _command(commands, _branch, "start a new run, with other settings, from a checkpoint")
    branch.add_argument("folder", metavar="RUN", help="folder of the run")
    _takes_overrides(branch)
    branch.add_argument("--output", required=True, help="folder of the new run")
    _takes_iteration(branch)

    export = _command(commands, _export, "write the model of a run for plain diffusers")
    export.add_argument("folder", metavar="RUN", help="folder of the run")
    export.add_argument("--output", help="folder of the model (default: one in the run's folder)")
    _takes_iteration(export)

    sample = _command(commands, _sample, "sample from the model of a run, into one picture")
    sample.add_argument("folder", metavar="RUN", help="folder of the run")
    sample.add_argument("prompts", metavar="PROMPT", nargs="+", help="one row of samples each")
    sample.add_argument("-o", "--output", default="grid.png", help="file (default grid.png)")
    sample.add_argument("-n", "--samples", type=int, default=8, help="per prompt (default 8)")
    sample.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    sample.add_argument("--steps", type=int, help="ODE steps (default: as in evaluations)")
    _takes_iteration(sample)

    report = _command(commands, _report, "write one HTML page about one or more runs")
    report.add_argument("folders", metavar="RUN", nargs="+", help="folders of runs")
    report.add_argument("-o", "--output", default="report.html", help="file (default report.html)")

    pretrain = _command(commands, _pretrain, "train the tiny checkpoints that the package ships")
    pretrain.add_argument("stages", nargs="*", help="stages in order; all of them by default")
    pretrain.add_argument("--output", required=True, help="folder of the checkpoints")
    pretrain.add_argument("--scale", type=float, default=1.0, help="fraction of the training steps")

    bench = _command(
        commands, _bench, "compare the time of an iteration with that of its model calls"
    )
    _takes_preset(bench, default="t2i-tiny")
    bench.add_argument("--rounds", type=int, default=8, help="interleaved rounds (default 8)")

    _command(commands, _settings, "list every setting with its allowed values and default")
    _command(commands, _presets, "list the shipped presets")

    options, rest = parser.parse_known_args(arguments)
    if any(argument.startswith("-") for argument in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse accepts key=value only before the options
        options.overrides += rest
    return options


def _command(commands, run, summary: str) -> argparse.ArgumentParser:
    command = commands.add_parser(run.__name__.strip("_"), help=summary, description=summary)
    command.set_defaults(run=run)
    return command


def _takes_preset(command: argparse.ArgumentParser, default: str | None = None) -> None:
    optional = {} if default is None else {"nargs": "?", "default": default}
    command.add_argument("preset", help="a YAML file or a name from `bpgo presets`", **optional)
    _takes_overrides(command)


def _takes_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings, see `bpgo settings`"
    )


def _takes_iteration(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--at", type=int, metavar="N", help="iteration of the checkpoint (default: the newest)"
    )


def _train(options) -> int:
    config = read_config(options.preset, options.overrides)  # check it before importing torch
    from bpgo.trainer import Trainer

    Trainer(config, options.output).train()
    return 0


def _preflight(options) -> int:
    config = read_config(options.preset, options.overrides)
    from bpgo.preflight import run

    return run(config, options.download, options.launch, options.gigabytes, options.teraflops)


def _branch(options) -> int:
    from bpgo.branch import branch

    branch(expand(options.folder), expand(options.output), options.at, options.overrides)
    return 0


def _export(options) -> int:
    from bpgo.export import export_run

    output = None if options.output is None else expand(options.output)
    print(export_run(expand(options.folder), output, options.at))
    return 0


def _sample(options) -> int:
    from bpgo.sample import sample_run

    folder, output = expand(options.folder), expand(options.output)
    print(
        sample_run(
            folder,
            options.prompts,
            output,
            options.at,
            options.seed,
            options.samples,
            options.steps,
        )
    )
    return 0


def _report(options) -> int:
    from bpgo.report import write_report

    print(write_report([expand(folder) for folder in options.folders], expand(options.output)))
    return 0


def _pretrain(options) -> int:
    from bpgo.worlds.pretrain import pretrain

    pretrain(options.stages, options.output, options.scale)
    return 0


def _bench(options) -> int:
    config = read_config(options.preset, options.overrides)
    from bpgo.bench import bench

    print(bench(config, options.rounds))
    return 0


def _settings(options) -> int:
    from bpgo.settings import format_settings

    print(format_settings(Config))
    return 0


def _presets(options) -> int:
    presets = list_presets()
    width = max(map(len, presets))
    for name, summary in presets.items():
        print(f"{name:{width}}  {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
