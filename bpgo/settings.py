"""The list that `bpgo settings` prints: each setting with its values, default and meaning."""

from __future__ import annotations

import json
from typing import NamedTuple

from pydantic import TypeAdapter

BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
WORDS = {"string": "text", "boolean": "true | false", "array": "list", "object": "mapping"}


class Setting(NamedTuple):
    """name: dotted, as in an override. allowed, default: as text. meaning: one sentence."""

    name: str
    allowed: str
    default: str
    meaning: str


def list_settings(config: type) -> list[Setting]:
    """Every setting of a configuration class, in order of definition."""
    schema = TypeAdapter(config).json_schema()
    return _below(schema, schema, "")


def format_settings(config: type) -> str:
    """The settings as text, two lines each: name, allowed values and default; then the meaning."""
    lines = []
    for s in list_settings(config):
        lines += [f"{s.name} = {s.default}    [{s.allowed}]", f"    {s.meaning}"]
    return "\n".join(lines)


def flatten(tree, prefix: str = "") -> dict:
    """Nested settings by dotted name, as in an override: `optimiser.updates`, `reward.1.scale`.

    The entries of a list of groups are numbered if there are several.
    """
    if isinstance(tree, dict) and (tree or not prefix):
        entries = tree.items()
    elif isinstance(tree, list) and tree and all(isinstance(entry, dict) for entry in tree):
        entries = enumerate(tree) if len(tree) > 1 else [("", tree[0])]
    else:
        return {prefix: tree}
    flat = {}
    for name, entry in entries:
        flat |= flatten(entry, ".".join(part for part in (prefix, str(name)) if part))
    return flat


def as_text(value) -> str:
    """A value as `bpgo settings` prints it and as an override takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _below(group: dict, schema: dict, prefix: str) -> list[Setting]:
    found = []
    for name, entry in group["properties"].items():
        inner = _group_of(entry, schema)
        if inner is not None:
            found += _below(inner, schema, f"{prefix}{name}.")
            continue
        required = name in group.get("required", ())
        default = "required" if required else _default(entry)
        meaning = " ".join(entry.get("description", "").split())  # a docstring of several lines
        found.append(Setting(prefix + name, _allowed(entry), default, meaning))
    return found


def _group_of(entry: dict, schema: dict) -> dict | None:
    """The schema of a group of settings, or of the entries of a list of groups."""
    reference = entry.get("$ref") or entry.get("items", {}).get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else None


def _allowed(entry: dict) -> str:
    if "enum" in entry:
        return " | ".join(map(str, entry["enum"]))
    if "anyOf" in entry:
        return " | ".join(map(_allowed, entry["anyOf"]))
    if entry.get("type") == "array" and "items" in entry:
        return f"list of {_allowed(entry['items'])}"
    bounds = [f"{sign} {_number(entry[key])}" for key, sign in BOUNDS.items() if key in entry]
    kind = entry.get("type", "anything")
    return " ".join([WORDS.get(kind, kind), *bounds])


def _number(value: float) -> str:
    return "2**63" if value == 2**63 else f"{value:g}"


def _default(entry: dict) -> str:
    empty = {"object": {}, "array": []}.get(entry.get("type"))
    return as_text(entry.get("default", empty))
