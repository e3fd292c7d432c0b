"""Tables of two names a line: from files, frames and mappings."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ginseng.utils.bounds import read_table
from ginseng.utils.files import local_path, naming
from ginseng.utils.tables import SEPARATORS, save_table

Pairs = str | Path | pd.DataFrame | Mapping[str, str]


def read_pairs(given: Pairs, argument: str, what: str, columns: tuple[str, str]) -> pd.DataFrame:
    """Read two columns of names.

    Parameters
    ----------
    given : str, Path, pandas.DataFrame or mapping
        A .csv or .tsv file or a table, of two columns. A header in a file is a line like others. Lines that lack one of
        the names are left out.
    argument : str
        What the caller typed, for messages.
    what : str
        What the names are of, for messages.
    columns : tuple of str
        What the columns hold; the names of the columns that are returned.

    Returns
    -------
    pandas.DataFrame
        Of text.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If there are not two columns, or the kind of file is another.

    Examples
    --------
    >>> read_pairs({"CD4 T": "T"}, "hierarchy", "types", ("child", "parent"))
       child parent
    0  CD4 T      T
    """
    return _table(given, argument, what, columns).dropna().astype(str).reset_index(drop=True)


def read_mapping(path: str | Path, argument: str, columns: tuple[str, str]) -> dict[str, str | None]:
    r"""Read what names stand for: a table of two columns without a header, of which the second may be empty (None).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If there are not two columns, the kind of file is another, or a name is there twice.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "names.csv"
    >>> _ = path.write_text("CD4 T,T\ndoublet,\n")
    >>> read_mapping(path, "mapping", ("label", "new name"))
    {'CD4 T': 'T', 'doublet': None}
    """
    table = _table(path, argument, "names", columns)
    names, new = (table[column].where(table[column].notna(), None).tolist() for column in columns)
    if None in names:
        raise ValueError(f"A line of {path} has no {columns[0]}, which is its first column.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} has '{twice}' twice; `{argument}` takes one {columns[1]} for each {columns[0]}.")
    return dict(zip(names, new, strict=True))


def write_mapping(path: Path, mapping: Mapping[str, str]) -> None:
    """Write what names stand for, as `read_mapping` reads it."""
    save_table(pd.DataFrame(list(mapping.items())), path, header=False, index=False)


def _table(given: Pairs, argument: str, what: str, columns: tuple[str, str]) -> pd.DataFrame:
    if isinstance(given, Mapping):
        table = pd.DataFrame(list(given.items()), columns=pd.Index(columns))
    elif isinstance(given, pd.DataFrame):
        table = given
    elif not isinstance(given, str | Path):
        raise ValueError(f"`{argument}` must be a file, a table of two columns or a dictionary, but got {given!r}.")
    else:
        path = local_path(given)
        separator = next((SEPARATORS[suffix] for suffix in path.suffixes[-2:] if suffix in SEPARATORS), None)
        if separator is None:
            raise ValueError(f"`{argument}` must be a .csv or .tsv file, a table or a dictionary, but got {path}.")
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}, which `{argument}` names.")
        with naming(path, f"is no table of {what}"):
            table = read_table(path, separator, na_values=[""])
    if table.shape[1] != 2:
        raise ValueError(f"`{argument}` must have two columns, {' and '.join(columns)}, but has {table.shape[1]}.")
    return table.set_axis(list(columns), axis=1).replace("", np.nan)
