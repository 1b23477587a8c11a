"""Text, YAML and JSON: what is read, and what is refused with its line."""

import json

import pytest
import yaml

from bpgo.text_files import ParseError, line_of, parse_json, parse_yaml, read_json, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-17", -17),
        ("+3", 3),
        ("0x1F", 31),
        ("1.", 1.0),
        ("-.5", -0.5),
        ("1_000.5", 1000.5),
        ("6.02E+23", 6.02e23),
        ("true", True),
        ("null", None),
        ("~", None),
        ("~/runs", "~/runs"),
        ("1.2.3", "1.2.3"),
        ("012-34", "012-34"),
        ("12:61", "12:61"),
        ("'010'", "010"),
        ("'no'", "no"),
    ],
)
def test_plain_values(text, value):
    found = parse_yaml(text)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("text", ["010", "-07", "00", "1:30", "190:20:30", "1_", "1__0", "0_1"])
def test_a_number_with_several_readings_is_refused(text):
    with pytest.raises(ParseError, match=rf"line 2: {text} can be read in several ways"):
        parse_yaml(f"a: 1\nb: {text}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is given twice, in lines 1 and 3"),
        ("a: 1\n'a': 3", "in lines 1 and 2"),
        ("x:\n  a: 1\n  b: 2\n  a: 1", "in lines 2 and 4"),
        ("- {a: 1, b: 2,\n   a: 3}", "in lines 1 and 2"),
        ("on: 1\non: 2", "the key 'on' is given twice"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x", r"write `<<: \[\*first, \*second\]`"),
        ("1: a", "line 1: a key must be a text"),
        ("x: 1\n? [a]\n: b", "line 2: a key must be a text"),
        ("a: [", "line 1: not valid YAML"),
        ("a: !!python/name:os.system", "line 1: not valid YAML: could not determine"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_refused(text, says):
    with pytest.raises(ParseError, match=says):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}",
        "x: &x {a: 1}\ny: &y {<<: *x, a: 3}\nz: {<<: *y, a: 4}",
        "x: &x {a: 1}\ny: &y {a: 3}\nz: {<<: [*x, *y], b: 4}",
        "a: [1, 2.5, true, null, text]\nb: |\n  several\n  lines\n",
    ],
)
def test_merge_keys_and_everything_else_are_as_in_pyyaml(text):
    expected = yaml.safe_load(text)
    assert parse_yaml(text) == expected


def test_the_line_of_a_value():
    text = "a: 1\nb:\n  c: [1,\n  2]\nr: {n: 1,\n  m: 2}\n"
    assert line_of(text, ("a",)) == 1
    assert line_of(text, ("b", "c")) == 3
    assert line_of(text, ("b", "c", 1)) == 4
    assert line_of(text, ("r", 0, "m")) == 6, "a list of one may be written without a list"
    assert line_of(text, ("b", "missing")) == 2
    assert line_of(text, ("missing",)) is None
    assert line_of(text, ()) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the file is empty"),
        ('{"a": 1,\n"b": 2,\n"a": 3}', "line 3: the key 'a' is given twice, in lines 1 and 3"),
        ('{"a": 1,\n', "line 2: not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_is_refused_with_the_line(tmp_path, text, says):
    with pytest.raises(ParseError, match=says):
        parse_json(text)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json, .*{says}"):
        read_json(tmp_path / "x.json")


def test_files_are_utf_8(tmp_path):
    value = {"prompt": "ein Fuchs \N{FOX FACE}", "twice": {"prompt": "狐"}}
    file = tmp_path / "x.yaml"
    file.write_bytes(json.dumps(value, ensure_ascii=False).encode("utf-8-sig"))
    assert read_json(file) == read_yaml(file) == value
    file.write_bytes("a: 1\nb: ö\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"x\.yaml, line 2: this is not UTF-8 text: save it as"):
        read_yaml(file)
