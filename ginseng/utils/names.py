"""What genes are called: symbols and identifiers, tables of synonyms, and which names of data and model fit."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ginseng.utils.genes import GeneMap, match_genes, plain_names
from ginseng.utils.messages import require_one, shorten, warn
from ginseng.utils.pairs import Pairs, read_pairs
from ginseng.utils.values import texts

_IDENTIFIER = re.compile(
    r"(ENS[A-Z]*G\d{11}|FBgn\d{7}|WBGene\d{8})(\.\d+)?"
)  # as Ensembl has them, those of fly and worm too
_BESIDE = re.compile(rf"[\W_]*{_IDENTIFIER.pattern}[\W_]*")
_SEPARATOR = re.compile(r"[\s|;:,/_()]+")
_SYMBOL_COLUMNS = (
    "gene_symbols",
    "gene_symbol",
    "gene_names",
    "gene_name",
    "feature_name",
    "symbol",
    "symbols",
    "gene_short_name",
    "external_gene_name",
    "hgnc_symbol",
)
_N_LOOKED_AT = 2000
_NOT_IN_TABLE = -2  # -1: no gene of the model
_NUMBER = re.compile(r"\d+(\.0)?")
_LIKE_A_NAME = re.compile(r"(?=.*[A-Za-z])(?!(chr)?\w+[:_-]\d+-\d+$)\S+")  # no number, place in a genome or sentence
_MOSTLY = 0.9
_SWAPPED = {"data": "model", "model": "data"}
_CLEARLY = 1.1  # a few names that differ do not outvote the index

GeneTable = Pairs


def kind_of_names(names: Iterable[Any]) -> str:
    """Tell by most of the names whether they are ``"gene_ids"``, as Ensembl has them, or ``"gene_symbols"``.

    Examples
    --------
    >>> kind_of_names(["ENSG00000167286", "ENSMUSG00000032094.8", "CD4"]), kind_of_names(["CD3D", "CD4"])
    ('gene_ids', 'gene_symbols')
    """
    known = [str(name) for name in names if name]
    some = plain_names(pd.Index(known[:: 1 + len(known) // _N_LOOKED_AT], dtype=object))
    n_identifiers = sum(_IDENTIFIER.fullmatch(name) is not None for name in some)
    return "gene_ids" if n_identifiers > len(some) / 2 else "gene_symbols"


def second_column(var: pd.DataFrame) -> pd.Series | None:
    """Find the column of ``var`` with names of the other kind than its index has.

    Where the index has identifiers, a column that is called as one of symbols usually is, such as ``gene_symbols`` or
    ``feature_name``; where it has symbols, the first with identifiers.

    Examples
    --------
    >>> var = pd.DataFrame({"chromosome": ["11", "12"], "id": ["ENSG00000167286", "ENSG00000010610"]}, ["CD3D", "CD4"])
    >>> second_column(var).name, second_column(pd.DataFrame({"Symbol": ["CD3D", "CD4"]}, var["id"])).name
    ('id', 'Symbol')
    """
    columns = {str(name).lower(): column for name, column in var.items() if column.dtype.kind not in "biufcmM"}
    if kind_of_names(var.index) == "gene_symbols":
        return next((column for column in columns.values() if kind_of_names(_texts(column)) == "gene_ids"), None)
    return next((columns[name] for name in _SYMBOL_COLUMNS if name in columns), None)


def second_names(var: pd.DataFrame) -> np.ndarray | None:
    """Other names that genes have: identifiers where the index of ``var`` has symbols, or the other way round.

    Returns
    -------
    numpy.ndarray or None
        A name for each gene, ``""`` where there is none or several genes share it; None if there are no such names.

    Examples
    --------
    >>> var = pd.DataFrame({"gene_ids": ["ENSG00000167286", "ENSG00000010610", np.nan]}, ["CD3D", "CD4", "CD8"])
    >>> second_names(var)
    array(['ENSG00000167286', 'ENSG00000010610', ''], dtype=object)
    """
    column = second_column(var)
    return None if column is None else _told_apart(texts(_texts(column), "gene"))


def names_by_place(var: pd.DataFrame, gene_key: str | None = None) -> dict[str, np.ndarray]:
    """Names of the genes of data by where they are: a column of ``var``, or the index and second names.

    Raises
    ------
    ValueError
        If there is no such column, or it holds numbers.

    Examples
    --------
    >>> list(names_by_place(pd.DataFrame({"gene_ids": ["ENSG00000167286"]}, ["CD3D"])))
    ['adata.var_names', "adata.var['gene_ids']"]
    """
    if gene_key is not None:
        require_one("gene column", gene_key, "adata.var", var.columns)
        if var[gene_key].dtype.kind in "biufcmM":
            raise ValueError(
                f"adata.var['{gene_key}'] holds {var[gene_key].dtype}, where `gene_key` is a column of gene names: "
                "name another one, or make it text if its numbers are names."
            )
        return {f"adata.var['{gene_key}']": texts(_texts(var[gene_key]), "gene")}
    found = {"adata.var_names": texts(var.index, "gene")}
    column, second = second_column(var), second_names(var)
    return found if column is None or second is None else {**found, f"adata.var['{column.name}']": second}


def called_by(var: pd.DataFrame, gene_key: str) -> pd.DataFrame:
    """Take a column of ``var`` as its index, "" where it has no name; what the index was becomes a column.

    Raises
    ------
    ValueError
        If there is no such column.

    Examples
    --------
    >>> called_by(pd.DataFrame({"symbol": ["CD3D", None]}, ["ENSG00000167286", "ENSG00000010610"]), "symbol").index
    Index(['CD3D', ''], dtype='object')
    """
    (names,) = names_by_place(var, gene_key).values()
    before = {} if _share(_NUMBER, var.index) >= _MOSTLY or "gene_symbols" in var else {"gene_symbols": var.index}
    return var.assign(**before).set_axis(pd.Index(names, dtype=object), axis=0)


def are_numbers(names: Iterable[Any]) -> bool:
    """Whether most names are numbers, as an index has that no one has named.

    Examples
    --------
    >>> are_numbers(["0", "1"]), are_numbers(["CD3D", "CD4"])
    (True, False)
    """
    names = list(names)
    return bool(names) and _share(_NUMBER, names) >= _MOSTLY


def column_of_names(var: Any) -> str | None:
    """The column of ``var`` that looks like names of genes, where its index has numbers.

    Examples
    --------
    >>> column_of_names(pd.DataFrame({"chromosome": ["11", "12"], "features": ["CD3D", "CD4"]}, ["0", "1"]))
    'features'
    """
    if not are_numbers(var.index):
        return None
    texts = {name: _texts(column) for name, column in var.items() if column.dtype.kind not in "biufcmM"}
    fit = [name for name, names in texts.items() if _share(_LIKE_A_NAME, names) >= _MOSTLY <= _distinct(names)]
    usual = [name for name in fit if str(name).lower() in _SYMBOL_COLUMNS]
    return next(iter([*usual, *fit]), None)


def _share(pattern: re.Pattern, names: Iterable[Any]) -> float:
    return float(np.mean([pattern.fullmatch(str(name).strip()) is not None for name in names]))


def _distinct(names: np.ndarray) -> float:
    return len(np.unique(names)) / len(names)


def agreed_names(of_inputs: Sequence[np.ndarray]) -> np.ndarray | None:
    """Second names of the same genes in several inputs: those that no input contradicts, but for their versions.

    Examples
    --------
    >>> agreed_names([np.array(["a", "b", "", "d"]), np.array(["a", "x", "c", ""])])
    array(['a', '', 'c', 'd'], dtype=object)
    """
    agreed = np.asarray(of_inputs[0], object)
    is_contradicted = np.zeros(len(agreed), bool)
    for names in of_inputs[1:]:
        is_contradicted |= (agreed != "") & (names != "") & (plain_names(agreed) != plain_names(names))
        agreed = np.where(agreed == "", names, agreed)
    return _told_apart(np.where(is_contradicted, "", agreed))


def require_second_names(names: Iterable[Any], n_genes: int) -> np.ndarray:
    """Second names as an array, or a ValueError if there is not one for each gene, or two genes share one.

    Examples
    --------
    >>> require_second_names(["ENSG00000167286", ""], 2)
    array(['ENSG00000167286', ''], dtype=object)
    """
    found = texts(names, "gene")
    if len(found) != n_genes:
        raise ValueError(f"`second_names` has {len(found):,} names, for {n_genes:,} genes.")
    known = found[found != ""]
    if len(set(known)) != len(known):
        raise ValueError('`second_names` must not name two genes the same; "" stands for a name that is not known.')
    return found


def _texts(column: Any) -> np.ndarray:
    return np.array([str(name) for name in column.astype(object).where(column.notna().to_numpy(), "")], dtype=object)


def _once(names: np.ndarray) -> np.ndarray:
    return np.where(pd.Index(names).duplicated(keep=False), "", names)


def _told_apart(names: np.ndarray) -> np.ndarray | None:
    once = _once(names)
    return once if (once != "").any() else None


def _each(function: Callable[[str], str], names: np.ndarray) -> np.ndarray:
    return np.array([function(str(name)) for name in names], dtype=object)


def read_gene_table(given: GeneTable) -> pd.DataFrame:
    """Names that genes have in the data, and in a model, side by side.

    Parameters
    ----------
    given : str, Path, pandas.DataFrame or mapping
        A .csv or .tsv file or a table, of two columns: the name in the data and the name in the model. A header in a
        file is a line like others, since it names no gene. Lines that lack one of the names are left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If there are not two columns, or the kind of file is another.

    Examples
    --------
    >>> read_gene_table({"Cd3d": "CD3D", "Cd4": "CD4"})["model"].tolist()
    ['CD3D', 'CD4']
    """
    columns = ("the name in the data", "the name in the model")
    return read_pairs(given, "gene_map", "gene names", columns).set_axis(["data", "model"], axis=1)


def _in_r(name: str) -> str:
    """A name as R's ``make.names`` writes it, and Seurat."""
    return re.sub(r"^(?=\d)", "X", re.sub(r"[^A-Za-z0-9]", ".", name))


@dataclass(frozen=True)
class Spelling:
    """A way in which names are written with something around them, or in other signs.

    Attributes
    ----------
    undo : callable
        Gives a name as it is compared.
    of_both : bool
        Whether names of the model are compared so, too.

    Examples
    --------
    >>> SPELLINGS["identifier beside a symbol"].undo("CD3D_ENSG00000167286")
    'ENSG00000167286'
    """

    undo: Callable[[str], str]
    of_both: bool = False


SPELLINGS = {
    "blanks or quotes": Spelling(lambda name: name.strip(" \t\r\n'\"\ufeff")),
    "identifier beside a symbol": Spelling(lambda name: found[0] if (found := _IDENTIFIER.search(name)) else name),
    "symbol beside an identifier": Spelling(lambda name: _BESIDE.sub("", name)),
    "before a separator": Spelling(lambda name: _SEPARATOR.split(name)[0]),
    "after a separator": Spelling(lambda name: _SEPARATOR.split(name)[-1]),
    "after a dash or dot": Spelling(lambda name: re.sub(r"^[^\W_]+[-.]", "", name)),
    "before a dash or dot": Spelling(lambda name: re.sub(r"[-.][^\W_]+$", "", name)),
    "signs of R": Spelling(_in_r, of_both=True),
}


@dataclass(frozen=True)
class GeneNames:
    """What the genes of a model are called, and how names of data are compared with that.

    Parameters
    ----------
    first : sequence of str
        Their names.
    second : sequence of str, optional
        Other names, see `second_names`.
    table : pandas.DataFrame, optional
        See `read_gene_table`. A name that it has stands for what it says, by either name of the model, and for nothing
        else; of several genes of the model for the first.
    ignore_case : bool
        See `match_genes`.
    spelling : Spelling, optional
        How names of the data are read that stand for no gene as they are written.

    Examples
    --------
    >>> model = GeneNames(["CD3D", "CD4"], ["ENSG00000167286", "ENSG00000010610"])
    >>> model.match({"adata.var_names": np.array(["CD4", "XIST"])}).positions
    array([ 1, -1])
    """

    first: Sequence[str] | np.ndarray
    second: Sequence[str] | np.ndarray | None = None
    table: pd.DataFrame | None = None
    ignore_case: bool = False
    spelling: Spelling | None = None

    def match(self, data: Mapping[str, np.ndarray]) -> GeneMap:
        """Match by those names of the data, and of the model, that find most of its genes.

        Parameters
        ----------
        data : mapping of str to numpy.ndarray
            Names of the genes of the data, by what is said of where they are from. The first, with the first names of
            the model, are taken unless others find a tenth more, and a warning then says so. What the table says of
            any of them holds in each case.

        Raises
        ------
        ValueError
            If the table has none of the names.
        """
        if self.table is not None and (self._by_table(data) == _NOT_IN_TABLE).all():
            maps = [f"{of_data} to {of_model}" for of_data, of_model in self.table.to_numpy()]
            is_turned = (self.turned()._by_table(data) != _NOT_IN_TABLE).any()
            hint = " Its columns are swapped: the name in the data comes first." if is_turned else ""
            raise ValueError(
                f"No gene of the data is in `gene_map`, which maps {shorten(maps, 3) or 'nothing'}; the data have "
                f"{shorten(next(iter(data.values())), 3)}.{hint}"
            )
        best, found = self.best(data)
        plain = next(iter(data)), "names"
        if best != plain:
            n_plain = GeneMap.to(self._positions(data[plain[0]], self.first), np.asarray(self.first, object)).n_found
            warn(
                f"Genes are matched by {best[0]} with the {best[1]} of the model, which finds {found.n_found:,} of "
                f"{len(self.first):,}; {plain[0]} with its names finds {n_plain:,}."
            )
        return found

    def best(self, data: Mapping[str, np.ndarray]) -> tuple[tuple[str, str], GeneMap]:
        """As `match`, without a warning, but with the place in the data and ``"names"`` or ``"second names"``."""
        own = {"names": self.first} | ({} if self.second is None else {"second names": self.second})
        by_table = self._by_table(data)
        maps = {}
        for place, names in data.items():
            for kind, genes in own.items():
                positions = np.where(by_table == _NOT_IN_TABLE, self._positions(names, genes), by_table)
                maps[place, kind] = GeneMap.to(positions, np.asarray(self.first, object))
        plain, best = next(iter(maps)), max(maps, key=lambda side: maps[side].n_found)  # the first of equals
        is_clear = maps[best].n_found > _CLEARLY * maps[plain].n_found
        return (best, maps[best]) if is_clear else (plain, maps[plain])

    def turned(self) -> "GeneNames":
        """The same with the columns of the table swapped."""
        return self if self.table is None else replace(self, table=self.table.rename(columns=_SWAPPED))

    def _positions(self, names: np.ndarray, genes: Any) -> np.ndarray:
        """Match names to those of the model, of which "" stands for one that is not known."""
        genes = np.asarray(genes, object)
        positions = self._known(names, genes)
        if self.spelling is None:
            return positions
        names = np.where(positions < 0, _each(self.spelling.undo, names), "")
        genes = _once(_each(self.spelling.undo, genes)) if self.spelling.of_both else genes.copy()
        genes[positions[positions >= 0]] = ""  # is found as it is written
        return np.where(positions < 0, self._known(names, genes), positions)

    def _known(self, names: np.ndarray, genes: np.ndarray) -> np.ndarray:
        known = np.flatnonzero(genes != "")
        return np.append(known, -1)[match_genes(names, genes[known], ignore_case=self.ignore_case)]

    def _by_table(self, data: Mapping[str, np.ndarray]) -> np.ndarray:
        """What the table says for each gene of the data, by any of its names, and to either of the model's."""
        of_genes = np.full(len(next(iter(data.values()))), _NOT_IN_TABLE)
        if self.table is None:
            return of_genes
        targets = self._positions(self.table["model"].to_numpy(), self.first)
        if self.second is not None:
            targets = np.where(targets >= 0, targets, self._positions(self.table["model"].to_numpy(), self.second))
        table = self.table.assign(target=targets).iloc[np.argsort(targets < 0, kind="stable")]  # those found first
        table = table[~table["data"].duplicated()]
        for names in reversed(list(data.values())):  # the first place has the last word
            lines = match_genes(names, table["data"].to_numpy(), ignore_case=self.ignore_case)
            of_genes = np.where(lines >= 0, np.append(table["target"].to_numpy(), -1)[lines], of_genes)
        return of_genes
