"""`key=value` overrides of settings, as given on the command line."""

from __future__ import annotations

from collections.abc import Iterable

from bpgo.text_files import ParseError, parse_yaml

LISTS = ("reward", "evaluation.held_out")  # a single entry may be written without a list


class ConfigError(ValueError):
    """A setting that does not exist or cannot have the given value."""


def apply_overrides(tree: dict, overrides: Iterable[str]) -> list[tuple[str, ...]]:
    """Change `tree`, a nested dict of settings, and return the keys of what was overridden.

    Of two values for the same key the last counts, so that a script can add to its defaults. Raises
    ConfigError for an override that cannot be read, and for a key that lies below a value without
    settings.
    """
    given = []
    for override in overrides:
        keys, value = parse_override(override)
        _set(tree, keys, value)
        given.append(keys)
    return given


def parse_override(override: str) -> tuple[tuple[str, ...], object]:
    """The keys and the value of `key.path=value`. The value is YAML; an empty value is None."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r} is not an override: write key=value")
    try:
        value = parse_yaml(text)
    except ParseError as error:
        raise ConfigError(f"{override}: {error.problem}") from None
    if "#" in text and "#" not in str(value):
        raise ConfigError(
            f"{override}: YAML takes what follows # as a comment. Put the text in quotes twice: "
            f"'{key}=\"{text}\"'"
        )
    return tuple(key.strip().split(".")), value


def names_only(keys: tuple) -> tuple[str, ...]:
    """The keys without indices of lists."""
    return tuple(key for key in keys if not str(key).isdigit())


def _set(branch, keys: tuple[str, ...], value, above: str = "") -> None:
    """Set the value at `keys` below `branch`, whose own name is `above`."""
    key, *rest = keys
    if isinstance(branch, list) and len(branch) == 1 and not key.isdigit():
        return _set(branch[0], keys, value, above)
    if isinstance(branch, list):
        if not key.isdigit() or int(key) >= len(branch):
            entries = ", ".join(f"{above}.{index}" for index in range(len(branch)))
            raise ConfigError(f"{above}.{key}: {above} is a list with entries {entries or 'none'}")
        key = int(key)
    elif not isinstance(branch, dict):
        raise ConfigError(f"{above}.{key}: {above} is {branch!r}, which has no settings below it")
    if not rest:
        branch[key] = value
        return None
    name = f"{above}.{key}" if above else str(key)
    below = branch[key] if isinstance(branch, list) else branch.get(key)
    if below is None:
        below = {}
    if name in LISTS and isinstance(below, dict) and rest[0].isdigit():
        below = [below] if below else []
    branch[key] = below
    return _set(below, tuple(rest), value, name)
