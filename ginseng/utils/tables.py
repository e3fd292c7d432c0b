"""Tables as text, which read back as the names that were written, whatever characters these hold."""

import io
from pathlib import Path
from typing import Any

import pandas as pd

from ginseng.utils.files import replacing
from ginseng.utils.messages import in_short

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


def require_table_path(path: Path, argument: str) -> None:
    """Raise a ValueError unless a path names a kind of file that is read and written here."""
    if path.suffix not in SEPARATORS:
        raise ValueError(f"`{argument}` must be a .csv or .tsv file, but got {path}.")


def save_table(table: pd.DataFrame, path: Path, **how: Any) -> None:
    """Write a table beside `path` and rename it; arguments as of `pandas.DataFrame.to_csv`."""
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
        write_table(table, file, sep=SEPARATORS[path.suffix], **how)


def write_table(table: pd.DataFrame, file: io.TextIOBase, **how: Any) -> None:
    r"""Write a table as text; arguments as of `pandas.DataFrame.to_csv`.

    Rows end in a line feed. A name with a carriage return, which other readers take for the end of a row, is quoted:
    Python's writer, before 3.13, quotes no more than what ends its own rows.

    Raises
    ------
    ValueError
        If a name holds the character NUL, at which readers end a text.

    Examples
    --------
    >>> import io
    >>> write_table(pd.DataFrame({"type": ["B"]}, index=["AAAC-1\r"]), file := io.StringIO(newline=""))
    >>> file.getvalue()
    ',type\n"AAAC-1\r",B\n'
    """
    rows: Any = _Rows(file)
    table.to_csv(rows, lineterminator="\r\n", **how)


class _Rows:
    """A file that gets a whole row at a time."""

    def __init__(self, file: io.TextIOBase):
        self._file = file

    def write(self, row: str) -> int:
        if "\0" in row:
            raise ValueError(f"Tables of text hold no NUL character, as in {in_short(row)}; rename it.")
        return self._file.write(row.removesuffix("\r\n") + "\n")

    def __iter__(self):
        return iter(self._file)  # by which pandas knows a file
