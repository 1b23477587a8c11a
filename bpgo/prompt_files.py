"""Prompt files: text, tables (CSV, TSV, JSON, JSON lines, parquet) and datasets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from bpgo.files import PROMPT_FILES, expand, resolve
from bpgo.images import open_image
from bpgo.prompts import Prompt, list_lines, shortened
from bpgo.text_files import parse_json, read_text

# The place of each row, and the row by column, or what is wrong with it.
Rows = Iterator[tuple[str, dict[str, object] | ValueError]]


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a file or a dataset.

    The ending of a file, in upper or lower case, states what it is:

    - .txt has one prompt per line. Blank lines are skipped, and spaces around a prompt are dropped.
    - .csv and .tsv are tables whose first line names the columns. A cell with separators, quotes or
      line breaks is in double quotes, and quotes in it are doubled. All values are texts.
    - .jsonl (or .ndjson) has one JSON object per line, and .json a list of them. A prompt without
      further columns may be a text instead of an object.
    - .parquet needs the package `pyarrow`.

    Text is UTF-8. Tables and objects have these columns, whose names may be capitalised:

    - prompt: the text. If there is no such column: text or caption, if there is just one of them.
    - image, for image-to-video: a path, relative to the folder of the file, or a `data:` URI.
      An empty one is no image. See `bpgo.images` for what is done with pictures.
    - All others are kept in `Prompt.columns`, from which rewards and metrics can take them
      (`bpgo.prompts.with_columns`). A null, and a column without a name, is left out.

    A dataset is a hub id or a folder that `Dataset.save_to_disk` wrote, and needs the package
    `datasets`. A split and a column of prompts may follow a name: `owner/name`, `owner/name:test`,
    `owner/name:train:caption`, `prompts.csv::caption`. The default split is train, or the only one.

    Each prompt knows its place, `Prompt.where`: "prompts.csv, line 12". The lines of a file and the
    entries of a JSON list are counted from 1, the rows of parquet files and datasets from 0.

    Raises FileNotFoundError for what is missing: a file, a dataset, images or one of those
    packages. Raises ValueError for an unknown ending, for content that cannot be read (listing all
    rows that cannot be used) and if there are no prompts.
    """
    name, split, column = _split_name(str(path))
    place = resolve(name)
    folder = place.parent if isinstance(place, Path) else Path()
    if isinstance(place, str) or _is_dataset(place):
        which, rows = _read_dataset(place, split)
    else:
        which, rows = f"the prompt file {place}", _read_file(place, split)
    rows = list(rows)
    if not rows:
        raise ValueError(f"{which} has no prompts")
    return _prompts(rows, which, column, folder)


def _split_name(path: str) -> tuple[str, str, str]:
    """The name of a file or dataset, and the split and column that follow it after colons.

    The name of an existing file may contain colons; the longest one is taken.
    """
    pieces = path.split(":")
    count = len(pieces)
    while count > 1 and not expand(":".join(pieces[:count])).exists():
        count -= 1
    split, column, *more = [*pieces[count:], "", ""]
    if len(more) > 2:
        raise ValueError(f"{path} is not a dataset: write name, name:split or name:split:column")
    return ":".join(pieces[:count]), split, column


def _is_dataset(place: Path) -> bool:
    markers = ("state.json", "dataset_dict.json")  # `Dataset.save_to_disk` writes one of them
    return any((place / name).is_file() for name in markers)


# ---------------------------------------------------------------------------------------- prompts


def _prompts(rows: list, which: str, column: str, folder: Path) -> list[Prompt]:
    """The prompts of rows. Raises an error that lists the rows that cannot be used."""
    names: dict[str, None] = {}
    for _, row in rows:
        if isinstance(row, dict):
            names |= dict.fromkeys(row)
    if not names:
        _raise_all(which, [(where, row) for where, row in rows], folder)
    text, image = _text_column(list(names), column, which), _column_like(names, "image", which)
    prompts, faults = [], []
    for where, row in rows:
        try:
            prompts.append(_prompt(row, where, text, image, folder))
        except (FileNotFoundError, ValueError) as error:
            faults.append((where, error))
    if faults:
        _raise_all(which, faults, folder)
    return prompts


def _prompt(row, where: str, text: str, image: str | None, folder: Path) -> Prompt:
    if isinstance(row, ValueError):
        raise row
    words, source = row.get(text), row.get(image)
    if words is None:
        raise ValueError(f"there is no {text!r}; the columns of this row: {', '.join(row)}")
    if not isinstance(words, str):
        raise ValueError(f"{text} is {shortened(words)}, not a text")
    if not words.strip():
        raise ValueError(f"{text} is blank")
    if any("\ud800" <= letter <= "\udfff" for letter in words):
        raise ValueError(f"{text} has half a character (a lone surrogate): {shortened(words)}")
    further = {
        name: value
        for name, value in row.items()
        if name not in (text, image, "") and value is not None
    }
    picture = None
    if isinstance(source, dict):  # how `datasets` stores an image
        source = source.get("bytes") or source.get("path")
    if source not in (None, ""):
        picture = open_image(source, folder, shortened(words))
    return Prompt(words, picture, where, further)


def _raise_all(which: str, faults: list[tuple[str, Exception]], folder: Path) -> None:
    """Raise one error for all rows that cannot be used."""
    missing = all(isinstance(error, FileNotFoundError) for _, error in faults)
    kind = FileNotFoundError if missing else ValueError
    lines = [f"{where}: {error}" for where, error in faults]
    if len(lines) == 1:
        place = "" if folder == Path() else f"{folder}/"
        raise kind(place + lines[0]) from faults[0][1]
    raise kind(list_lines(f"{which} has {len(lines)} rows that cannot be used", lines))


def _text_column(names: list[str], column: str, which: str) -> str:
    """The name of the column with the prompts."""
    if column:
        found = column if column in names else None
    else:
        found = _column_like(names, "prompt", which)
        others = [_column_like(names, name, which) for name in ("text", "caption")]
        if found is None and others.count(None) == 1:
            found = others[0] or others[1]
    if found is None:
        raise ValueError(
            f"{which} has no column {column or 'prompt'!r}; it has "
            f"{', '.join(shortened(name) for name in names[:20])}. Rename the one with the "
            f"prompts, or write its name after two colons, as in prompts.csv::title"
        )
    return found


def _column_like(names, wanted: str, which: str) -> str | None:
    """The column of this name, or else of the same name in other case; None if there is none."""
    if wanted in names:
        return wanted
    found = [name for name in names if name.lower() == wanted]
    if len(found) > 1:
        raise ValueError(f"{which} has the columns {' and '.join(found)}: rename one to {wanted}")
    return found[0] if found else None


# ------------------------------------------------------------------------------------------ files


def _read_file(place: Path, split: str) -> Rows:
    """The rows of a file, by its ending."""
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
                header = _header(cells, f"{place}")
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
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"{which} has two columns of the name {twice[0]!r}: rename one of them")
    if len(names) == 1 and any(mark in names[0] for mark in ";\t,"):
        raise ValueError(
            f"{which}: the columns in its first line, {shortened(names[0])}, are not separated as "
            f"the ending says: by commas in .csv and by tabs in .tsv"
        )
    return names


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


# --------------------------------------------------------------------------------------- datasets


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
    _header(table.column_names, str(place))
    for number, row in enumerate(table.to_pylist()):
        yield f"{place.name}, row {number}", row


def _read_dataset(place: Path | str, split: str) -> tuple[str, Rows]:
    """The rows of a dataset, and how messages refer to it."""
    table, split = _table(_load_dataset(place), split, place)
    for name, feature in table.features.items():
        if hasattr(feature, "decode"):
            # Not decoded here, because open_image names the row that it cannot decode.
            table = table.cast_column(name, type(feature)(decode=False))
    name = place.name if isinstance(place, Path) else place
    rows = ((f"{name}, split {split}, row {i}", row) for i, row in enumerate(table))
    return f"the dataset {place}, split {split},", rows


def _load_dataset(place: Path | str):
    """The dataset of a hub id or a saved folder."""
    try:
        import datasets
    except ImportError:
        raise FileNotFoundError(
            f"{str(place)!r} is not a prompt file. To read it as a dataset: pip install datasets"
        ) from None
    try:
        if isinstance(place, str):
            return datasets.load_dataset(place)
        return datasets.load_from_disk(place)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        message = f"cannot read the dataset {str(place)!r}: {error}"
        if isinstance(place, str):
            raise FileNotFoundError(
                f"{message}; if it is gated, accept its terms on its page, then: hf auth login"
            ) from error
        raise ValueError(message) from error


def _table(dataset, split: str, place: Path | str):
    """The split of a dataset, and its name."""
    tables = dataset if isinstance(dataset, dict) else {str(dataset.split or "train"): dataset}
    if not split:
        split = next(iter(tables)) if len(tables) == 1 else "train"
    if split not in tables:
        raise ValueError(f"the dataset {place} has no split {split!r}; it has {', '.join(tables)}")
    return tables[split], split
