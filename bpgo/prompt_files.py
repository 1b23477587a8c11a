"""Prompt files: text, tables (CSV, TSV, JSON, JSON lines, parquet) and datasets."""

from __future__ import annotations

from pathlib import Path

from bpgo.files import expand, resolve
from bpgo.images import open_image
from bpgo.prompt_rows import Rows, read_rows
from bpgo.prompts import Prompt, list_lines, shortened


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
        which, rows = f"the prompt file {place}", read_rows(place, split)
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


# --------------------------------------------------------------------------------------- datasets


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
