"""Reading text, YAML and JSON: as UTF-8, with the file and the line in every error.

PyYAML reads YAML 1.1, in which 010 is 8, 12:30 is 750, 1e-4 is a text, no is false, and the second
of two equal keys wins. Here, values are read as a person reads them, or refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import yaml

STANDARD = "tag:yaml.org,2002:"
TEXT_TAGS = (f"{STANDARD}str", f"{STANDARD}merge", "!word")
MOST_DIGITS = 300  # of an integer; with more, it could not become a float
DIGITS = r"\d+(_\d+)*"
# Which unquoted values are not texts. The first pattern that fits counts.
PATTERNS = {
    f"{STANDARD}null": r"~|null|Null|NULL|",
    f"{STANDARD}merge": r"<<",
    f"{STANDARD}bool": r"true|True|TRUE|false|False|FALSE",
    f"{STANDARD}int": r"[-+]?(0b[01]+|0x[0-9a-fA-F]+|0|[1-9]\d*(_\d+)*)",
    f"{STANDARD}float": rf"[-+]?({DIGITS}\.\d*|\.\d+|{DIGITS}(?=[eE]))([eE][-+]?\d+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "!word": r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF",
    "!unclear": r"[-+]?\d[\d_]*(:[0-5]?\d)*(\.[\d_]*)?",
}


class ParseError(ValueError):
    """What is wrong in a text, and in which line (from 1)."""

    def __init__(self, line: int, problem: str):
        super().__init__(f"line {line}: {problem}")
        self.line, self.problem = line, problem


class Word(str):
    """An unquoted yes, no, on or off. A setting takes it as a text, or as true or false."""


class Loader(yaml.SafeLoader):
    """YAML as a person reads it."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        None: [(tag, re.compile(f"(?:{pattern})$", re.ASCII)) for tag, pattern in PATTERNS.items()]
    }

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        _check_keys(node)
        return node

    def construct_word(self, node):
        return Word(node.value)

    def construct_integer(self, node):
        if len(node.value) > MOST_DIGITS:
            raise ParseError(_line(node), f"{node.value[:20]}... is too large for a number")
        return self.construct_yaml_int(node)

    def construct_float(self, node):
        number = self.construct_yaml_float(node)
        if math.isinf(number) and "inf" not in node.value.lower():
            raise ParseError(_line(node), f"{node.value} is too large for a number")
        return number

    def refuse(self, node):
        raise ParseError(
            _line(node),
            f"{node.value} can be read in several ways (010 is octal in YAML, and 1:30 is 90): "
            f"write a decimal number without leading zeros, or a text in quotes",
        )


Loader.add_constructor("!word", Loader.construct_word)
Loader.add_constructor("!unclear", Loader.refuse)
Loader.add_constructor(f"{STANDARD}int", Loader.construct_integer)
Loader.add_constructor(f"{STANDARD}float", Loader.construct_float)


# ---------------------------------------------------------------------------------------- reading


def read_text(file: str | Path) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark.

    Raises OSError, and ValueError naming the file and the line for other encodings.
    """
    content = Path(file).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}, line {line}: this is not UTF-8 text: save it as UTF-8") from None


def read_yaml(file: str | Path):
    """The contents of a YAML file. Raises OSError, and ValueError naming the file and the line."""
    return _parsed(file, parse_yaml)


def read_json(file: str | Path):
    """The contents of a JSON file. Raises OSError, and ValueError naming the file and the line."""
    return _parsed(file, parse_json)


def _parsed(file: str | Path, parse: Callable[[str], object]):
    text = read_text(file)
    try:
        return parse(text)
    except ParseError as error:
        raise ValueError(f"{file}, {error}") from None


def parse_yaml(text: str):
    """The value of one YAML document; None if there is none. Raises ParseError."""
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ParseError(mark.line + 1, _explain(error.problem, text, mark.line)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ParseError(
            line, f"not valid YAML: the character {chr(error.character)!r} is not allowed"
        ) from None
    except RecursionError:
        raise ParseError(1, "not valid YAML: it is nested too deeply") from None


def parse_json(text: str):
    """The value of a JSON document. Raises ParseError, also for a key that is given twice."""
    if not text.strip():
        raise ParseError(1, "the file is empty")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ParseError(error.lineno, f"not valid JSON: {error.msg}") from None
    except RecursionError:
        raise ParseError(1, "not valid JSON: it is nested too deeply") from None
    except KeyError as error:
        parse_yaml(text)  # JSON is YAML, and this names the lines
        raise ParseError(1, f"the key {error.args[0]!r} is given twice") from None


def line_of(text: str, keys: tuple) -> int | None:
    """The line of the value at `keys` (names and indices) in a YAML text, or of its nearest parent.

    None if the text has not even the first key.
    """
    node, line = yaml.compose(text, Loader), None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = [pair for pair in node.value if pair[0].value == key]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            found = [(child, child) for child in node.value[key : key + 1]]
        else:
            found = []
        if not found and isinstance(key, int):
            continue  # a single entry may be written without a list
        if not found:
            break
        line, node = _line(found[-1][0]), found[-1][1]
    return line


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse keys that occur twice, are not texts, or lack the space after the colon."""
    lines = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, _line(key_node)
        if key_node.tag not in TEXT_TAGS:
            raise ParseError(line, "a key must be a text: put it in quotes")
        if key in lines:
            remedy = "write `<<: [*first, *second]`" if key == "<<" else "remove one of them"
            where = f"lines {lines[key]} and {line}" if lines[key] != line else f"line {line}"
            raise ParseError(line, f"the key {key!r} is given twice, in {where}: {remedy}")
        if ":" in key and key_node.style is None and value_node.value == "":
            raise ParseError(line, f"write a space after the colon of {key!r}")
        lines[key] = line


def _unique(pairs: list[tuple]) -> dict:
    """A JSON object. Raises KeyError for a key that occurs twice."""
    found = {}
    for key, value in pairs:
        if key in found:
            raise KeyError(key)
        found[key] = value
    return found


def _explain(problem: str, text: str, line: int) -> str:
    """PyYAML's description of a problem, with a remedy for the usual causes."""
    near = text.split("\n")[max(0, line - 1) : line + 1]
    if "\\t" in problem or any(row.startswith("\t") for row in near):
        return "not valid YAML: indent with spaces instead of tabs"
    if "but found another document" in problem:
        return "a second document starts here (`---`): write one document per file"
    if any(re.match(r"\s*[\w.]+:[^\s/]", row) for row in near):
        return f"not valid YAML: {problem}. Write a space after the colon of a key"
    return f"not valid YAML: {problem}"
