"""The rows of prompt files: text, CSV, TSV, JSON, JSON lines and parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from bpgo.files import PROMPT_FILES
from bpgo.prompts import shortened
from bpgo.text_files import parse_json, read_text

# The place of each row, and the row by column, or what is wrong with it.
Rows = Iterator[tuple[str, dict[str, object] | ValueError]]


def read_rows(place: Path, split: str = "") -> Rows:
    """The rows of a file, by its ending, with the place of each.

    A row that cannot be read stands as a ValueError. Raises ValueError for an unknown ending, a
    split other than train, and for a file that cannot be read as a whole.
    """
    if place.is_dir():
        raise FileNotFoundError(
            f"{place} is a folder, not a prompt file, and not one that Dataset.save_to_disk wrote"
        )
    ending = place.suffix.lower()
    if ending not in PROMPT_FILES:
        raise ValueError(
            f"{place} is no prompt file that can be read: its name must end in "
            f"{', '.join(PROMPT_FILES[:-1])} or {PROMPT_FILES[-1]}. Save it as one of these"
        )
    if split not in ("", "train"):
        raise ValueError(f"{place} has no split {split!r}; it has train")
    if ending == ".parquet":
        return _read_parquet(place)
    lines = _read_lines(place)
    if ending == ".txt":
        return _read_text(place, lines)
    if ending in (".csv", ".tsv"):
        return _read_table(place, lines, "," if ending == ".csv" else "\t")
    return _read_json(place, lines) if ending == ".json" else _read_json_lines(place, lines)


def _read_lines(place: Path) -> list[str]:
    """The lines of a text file, without their ends."""
    try:
        text = read_text(place)
    except OSError as error:
        raise ValueError(f"the prompt file {place} cannot be read: {error.strerror}") from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise ValueError(
                f"{place}, line {number}: there is a NUL character, as in UTF-16 text: "
                f"save the file as UTF-8"
            )
    return lines


def _read_text(place: Path, lines: list[str]) -> Rows:
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if _is_json_row(line):
            raise ValueError(
                f"{place}, line {number}: this is JSON, and a .txt file has plain prompts: "
                f"name the file {place.stem}.jsonl"
            )
        if line:
            yield f"{place.name}, line {number}", {"prompt": line}


def _is_json_row(line: str) -> bool:
    if not (line.startswith("{") and line.endswith("}")):
        return False
    try:
        return "prompt" in json.loads(line)
    except ValueError:
        return False


def _read_table(place: Path, lines: list[str], separator: str) -> Rows:
    """The rows of a .csv or .tsv file. A row may have several lines; its first one is named."""
    text, header, line = "\n".join(lines), None, 1
    limit = csv.field_size_limit(len(text) + 1)  # images as `data:` URIs are longer than usual
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            where, line = f"{place.name}, line {line}", reader.line_num + 1
            if cells and header is None:
                header = _header(cells, str(place))
            elif cells and len(cells) == len(header):
                yield where, dict(zip(header, cells, strict=True))
            elif cells:
                fault = f"there are {len(cells)} instead of {len(header)} cells"
                yield where, ValueError(f"{fault}: put cells with separators in double quotes")
    except csv.Error as error:
        raise ValueError(
            f"{place}, line {line}: {error}. A cell with separators, quotes or line breaks belongs "
            f"in double quotes, and quotes in it are doubled"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _header(cells: list[str], which: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    _refuse_equal_names(names, which)
    if len(names) == 1 and any(mark in names[0] for mark in ";\t,"):
        raise ValueError(
            f"{which}: the columns in its first line, {shortened(names[0])}, are not separated as "
            f"the ending says: by commas in .csv and by tabs in .tsv"
        )
    return names


def _refuse_equal_names(names: list[str], which: str) -> None:
    for name in names:
        if name and names.count(name) > 1:
            raise ValueError(f"{which} has two columns of the name {name!r}: rename one of them")


def _read_json(place: Path, lines: list[str]) -> Rows:
    try:
        found = parse_json("\n".join(lines))
    except ValueError as error:
        several = "Extra data" in str(error)
        hint = ". If it has one object per line, name it .jsonl" if several else ""
        raise ValueError(f"{place}, {error}{hint}") from error
    if not isinstance(found, list):
        raise ValueError(
            f'{place} has no list of prompts: write [{{"prompt": "..."}}, ...], as '
            f'pandas.DataFrame.to_json(orient="records") does'
        )
    for number, row in enumerate(found, 1):
        yield f"{place.name}, entry {number}", _json_row(row)


def _read_json_lines(place: Path, lines: list[str]) -> Rows:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _json_row(parse_json(line))
        except ValueError as error:
            row = ValueError(getattr(error, "problem", str(error)))
        yield f"{place.name}, line {number}", row


def _json_row(row) -> dict | ValueError:
    if isinstance(row, str):
        return {"prompt": row}
    if isinstance(row, dict):
        return row
    return ValueError(f'{shortened(row)} is not of the form {{"prompt": "..."}}')


def _read_parquet(place: Path) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise FileNotFoundError(f"to read {place}: pip install pyarrow") from None
    try:
        with ParquetFile(place) as file:
            table = file.read()
    except (ArrowException, OSError) as error:
        raise ValueError(f"the prompt file {place} cannot be read: {error}") from error
    _refuse_equal_names(table.column_names, str(place))
    for number, row in enumerate(table.to_pylist()):
        yield f"{place.name}, row {number}", row
