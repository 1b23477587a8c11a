"""Command line: `bpgo train|preflight|branch|export|sample|report|...`, or `python -m bpgo`."""

from __future__ import annotations

import argparse
import io
import os
import select
import sys
from difflib import get_close_matches

from bpgo import __version__
from bpgo.files import expand
from bpgo.signals import Interruption

ERRORS = (ValueError, TypeError, OSError, FloatingPointError, MemoryError)
TRAINING = ("train", "pretrain")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    2: an error that the user can fix, which is printed as one message. 1: an unexpected error,
    whose traceback is written to a file. 130 and 143: interrupted by SIGINT or SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with Interruption():
            code = _run(arguments)
        print(end="", flush=True)
        return code
    except KeyboardInterrupt as error:
        code, text = getattr(error, "code", 130), _message(error, "interrupted")
    except BrokenPipeError as error:
        if _reader_left():
            return 141 if arguments[0] in TRAINING else 0
        code, text = 2, str(error)
    except ERRORS as error:
        code, text = 2, _message(error, type(error).__name__)
    except SystemExit:  # of argparse, which may have printed its help
        _reader_left()
        raise
    except Exception as error:  # a defect of this package or of a library
        code, text = 1, _unexpected(error, arguments)
    # Only now are the progress bars closed, with a line break, over which the error was raised.
    print(f"{' '.join(['bpgo', *arguments[:1]])}: {text}", file=sys.stderr)
    return code


def _message(error: BaseException, otherwise: str) -> str:
    """The text of an error, and its notes, such as where the state of a run is saved."""
    return "\n".join([str(error) or otherwise, *getattr(error, "__notes__", ())])


def _run(arguments: list[str]) -> int:
    from bpgo.caches import redirect_caches

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that module:attribute is found, as by `python -m`
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale may lack characters of a prompt
            stream.reconfigure(errors="backslashreplace")
    options = _parse(arguments)
    note = redirect_caches()
    if note:
        print(f"bpgo {options.command}: {note}", file=sys.stderr)
    return options.run(options)


def _reader_left() -> bool:
    """Whether the reader of stdout has closed it, as `head` does. Then nothing more is written."""
    try:
        number = sys.stdout.fileno()
    except (OSError, AttributeError):  # it is closed or, as in a notebook, not a file
        return False
    poll = select.poll()
    poll.register(number, 0)
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return left


def _unexpected(error: Exception, arguments: list[str]) -> str:
    """Write the traceback of an error to a file. Returns the message for the user."""
    from bpgo.error_log import write_error_log

    output = getattr(_parse(arguments), "output", None)
    run = expand(output) if arguments[0] == "train" else None
    what = str(error).strip().partition("\n")[0]
    what = f"{type(error).__name__}: {what}" if what else type(error).__name__
    line = f"unexpected error: {what} (traceback: {write_error_log(error, run)})"
    return "\n".join([line, *getattr(error, "__notes__", ())])


# --------------------------------------------------------------------------------------- arguments


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bpgo", description="Bayesian Prior-Guided Optimization (arXiv 2511.18919)"
    )
    parser.add_argument("--version", action="version", version=f"bpgo {__version__}")
    commands = parser.add_subparsers(dest="command")
    _add_commands_of_presets(commands)
    _add_commands_of_runs(commands)
    _add_other_commands(commands)
    known = list(commands.choices)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        near = get_close_matches(arguments[0], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        parser.error(f"unknown command {arguments[0]!r}: {hint}")
    options, rest = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    for argument in rest:
        if argument.startswith("-") or "overrides" not in options:
            parser.error(f"unrecognized arguments: {argument}{_hint(argument, options)}")
    if rest:  # argparse accepts key=value only before the options
        options.overrides += rest
    return options


def _add_commands_of_presets(commands) -> None:
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


def _add_commands_of_runs(commands) -> None:
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
    sample.add_argument("-o", "--output", help="file: .png, for videos .gif (default: in RUN)")
    sample.add_argument("-n", "--samples", type=int, default=8, help="per prompt (default 8)")
    sample.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    sample.add_argument("--image", metavar="FILE", help="first frame, for image-to-video")
    sample.add_argument("--steps", type=int, help="ODE steps (default: as in evaluations)")
    _takes_iteration(sample)

    report = _command(commands, _report, "write one HTML page about one or more runs")
    report.add_argument("folders", metavar="RUN", nargs="+", help="folders of runs")
    report.add_argument("-o", "--output", default="report.html", help="file (default report.html)")


def _add_other_commands(commands) -> None:
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


def _hint(argument: str, options: argparse.Namespace) -> str:
    """The end of a message about an argument that does not exist."""
    name, equals, value = argument.lstrip("-").partition("=")
    near = get_close_matches(name, vars(options).keys() - {"command", "run", "overrides"}, 1)
    if near:
        return f" (did you mean --{near[0]}?)"
    if "overrides" in options and argument.startswith("-"):
        return f" (for a setting, write {name}={value if equals else 'VALUE'}, without dashes)"
    return ""


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
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings, see `bpgo settings`. Values are YAML, and an empty value is null. Entries "
        "of a list are counted from 0: reward.1.scale=0.5, evaluation.held_out.0.device=cpu",
    )


def _takes_iteration(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--at", type=int, metavar="N", help="iteration of the checkpoint (default: the newest)"
    )


def _config(options):
    from bpgo.config import read_config

    return read_config(options.preset, options.overrides)


def _train(options) -> int:
    config = _config(options)
    expand(options.output)  # a wrong path or setting is refused before torch is imported
    from bpgo.trainer import Trainer

    Trainer(config, options.output).train()
    return 0


def _preflight(options) -> int:
    config = _config(options)
    launch = None if options.launch is None else str(expand(options.launch))
    from bpgo.preflight import run

    return run(config, options.download, launch, options.gigabytes, options.teraflops)


def _branch(options) -> int:
    folder, output = expand(options.folder), expand(options.output)
    from bpgo.branch import branch

    branch(folder, output, options.at, options.overrides)
    return 0


def _export(options) -> int:
    folder = expand(options.folder)
    output = None if options.output is None else expand(options.output)
    from bpgo.export import export_run

    print(export_run(folder, output, options.at))
    return 0


def _sample(options) -> int:
    folder = expand(options.folder)
    output = None if options.output is None else expand(options.output)
    from bpgo.sample import sample_run, with_image

    o = options
    prompts = o.prompts if o.image is None else with_image(o.prompts, expand(o.image))
    print(sample_run(folder, prompts, output, o.at, o.seed, o.samples, o.steps))
    return 0


def _report(options) -> int:
    folders, output = [expand(folder) for folder in options.folders], expand(options.output)
    from bpgo.report import write_report

    print(write_report(folders, output))
    return 0


def _pretrain(options) -> int:
    output = expand(options.output)
    from bpgo.worlds.pretrain import pretrain

    pretrain(options.stages, output, options.scale)
    return 0


def _bench(options) -> int:
    config = _config(options)
    from bpgo.bench import bench

    print(bench(config, options.rounds))
    return 0


def _settings(options) -> int:
    from bpgo.config import Config
    from bpgo.settings import format_settings

    print(format_settings(Config))
    return 0


def _presets(options) -> int:
    from bpgo.config import list_presets

    presets = list_presets()
    width = max(map(len, presets))
    for name, summary in presets.items():
        print(f"{name:{width}}  {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
