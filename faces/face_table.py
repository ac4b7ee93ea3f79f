"""The table of faces, as CSV or Parquet: a row for each face, with its image, person and label."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from converter.counts import counted
from converter.errors import RequirementError, SourceError, UsageError
from converter.formats.limits import read_whole

TableFormat = Literal["csv", "parquet"]

TABLE_FORMATS: tuple[TableFormat, ...] = ("csv", "parquet")
ENDINGS = (".csv", ".parquet")
_MOST_BYTES = 1 << 30
_ALIGN = "`facenet-port align` writes a table with the columns that every command needs"
_MOST_NAMED = 3  # files in a message


@dataclass(frozen=True, slots=True)
class FaceTable:
    """A table of faces.

    Attributes:
        path: The file.
        columns: Name of each column to its values, one for each row.
    """

    path: Path
    columns: Mapping[str, Sequence[Any]]

    def require(self, name: str, next_step: str = _ALIGN) -> Sequence[Any]:
        """The values of a column, which may be missing.

        Args:
            name: The column.
            next_step: What to do without it, a clause.

        Raises:
            SourceError: There is no such column.
        """
        if name not in self.columns:
            held = ", ".join(self.columns) or "no columns"
            raise SourceError(
                self.path,
                f"it has no column {name}; its columns are {held}",
                next_step=next_step,
            )
        return self.columns[name]

    def texts(self, name: str) -> list[str]:
        """The values of a column as text without spaces at its ends; empty where a value is missing.

        Raises:
            SourceError: There is no such column.
        """
        return ["" if _is_missing(value) else str(value).strip() for value in self.require(name)]

    def column(self, name: str) -> list[str]:
        """The values of a column, as `texts` gives them, of which none is missing.

        Raises:
            SourceError: There is no such column, or a value of it is missing.
        """
        values = self.texts(name)
        if "" in values:
            problem = f"row {values.index('') + 1} has no {name}"
            raise SourceError(self.path, problem, next_step="Fill it in, or remove the row")
        return values

    def files(self) -> list[Path]:
        """The image of each face: its crop_path if the table has this column, otherwise its image_path.

        A relative path starts at the table's folder, or else at the current one.

        Raises:
            SourceError: There is no such column, or files are missing.
        """
        column = "crop_path" if "crop_path" in self.columns else "image_path"
        self.column(column)  # none is missing
        paths = [self._locate(str(value)) for value in self.columns[column]]  # a file's name may have spaces
        missing = list(dict.fromkeys(str(path) for path in paths if not path.is_file()))
        if missing:
            named = ", ".join(missing[:_MOST_NAMED]) + (", ..." if len(missing) > _MOST_NAMED else "")
            raise SourceError(
                self.path,
                f"{counted(len(missing), 'file')} of its column {column} cannot be found: {named}",
                next_step="Relative paths start at the table's folder, or at the current one",
            )
        return paths

    def _locate(self, value: str) -> Path:
        beside = self.path.parent / value  # an absolute path stays as it is
        return beside if beside.is_file() or not Path(value).is_file() else Path(value)


def _is_missing(value: Any) -> bool:
    """Return whether a cell is empty: None, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def whole_number(label: str) -> str:
    """Write a label that is a whole number in one form: 1 for 01 and 1.0, which pandas makes of 1."""
    match = re.fullmatch(r"(-?)0*([0-9]+)(\.0*)?", label)
    return label if match is None else match[1] + match[2]


def find_table(source: Path) -> Path | None:
    """Find the table of a folder that `align` has written, or take a table as it is.

    Returns:
        The table; None for a folder without one.

    Raises:
        UsageError: The source is neither a folder nor a table by its ending.
    """
    if source.is_dir():
        tables = (source / f"faces{ending}" for ending in ENDINGS)
        return next((table for table in tables if table.is_file()), None)
    if source.suffix.lower() not in ENDINGS:
        endings = " or ".join(ENDINGS)
        if source.exists():
            raise UsageError(f"{source}: this is neither a folder nor a {endings} table.")
        raise UsageError(f"{source}: there is no such folder, and it is no {endings} table.")
    return source


def read_table(path: Path) -> FaceTable:
    """Read a table.

    Args:
        path: A .csv file in UTF-8, with the names of its columns in the first line, or a .parquet file.

    Raises:
        SourceError: The file cannot be read, or holds no rows.
        RequirementError: A .parquet file needs pyarrow, which is not installed.
    """
    columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if not any(map(len, columns.values())):
        raise SourceError(path, "the table has no rows", next_step="Give a table with a row for each face")
    return FaceTable(path, columns)


def _check_names(path: Path, names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        problem = f"it has more than one column {repeated[0]}"
        raise SourceError(path, problem, next_step="Remove or rename all but one")


def _read_csv(path: Path) -> dict[str, list[Any]]:
    content = read_whole(path, _MOST_BYTES, "it is larger than 1 GB")
    step = "Give a table in UTF-8 with commas, and the names of its columns in the first line"
    try:
        header, *rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise SourceError(path, "this is not a CSV table", next_step=step) from error
    header, rows = [name.strip() for name in header], [row for row in rows if row]
    _check_names(path, header)
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            problem = f"row {number} has {counted(len(row), 'field')}, the first line names {len(header)}"
            raise SourceError(path, problem, next_step=step)
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def encode_table(table_format: TableFormat, columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Encode a table as the content of a file.

    Args:
        table_format: "csv": a list is written as JSON, a missing value as nothing. "parquet": as they are.
        columns: Name of each column to its values, all of one length.

    Raises:
        RequirementError: Parquet needs pyarrow, which is not installed.
    """
    if table_format == "parquet":
        check_format(table_format)
        import pyarrow
        import pyarrow.parquet

        content = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(dict(columns)), content)
        return content.getvalue()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([json.dumps(value) if isinstance(value, list) else value for value in row])
    return text.getvalue().encode()


def check_format(table_format: TableFormat, path: Path | None = None) -> None:
    """Refuse a format whose package is missing.

    Raises:
        RequirementError: Parquet needs pyarrow, which is not installed.
    """
    if table_format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise RequirementError(
            f"{'' if path is None else f'{path}: '}pyarrow is needed for Parquet and is not installed: "
            "pip install 'facenet-port[faces]'. A .csv needs nothing more."
        )


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    check_format("parquet", path)
    import pyarrow
    import pyarrow.parquet

    try:
        _check_names(path, pyarrow.parquet.read_schema(path).names)
        return dict(pyarrow.parquet.read_table(path).to_pydict())
    except (pyarrow.ArrowException, OSError) as error:
        problem = f"cannot be read as a Parquet table ({str(error).splitlines()[0]})"
        raise SourceError(path, problem, next_step="Write it again") from error
