"""Wider types above the labels of a model: the sum of what is below them, and what to say where a cell is unsure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ginseng.utils.files import local_path, naming
from ginseng.utils.messages import shorten, unknown_name, warn
from ginseng.utils.pairs import Pairs, read_pairs
from ginseng.utils.values import require_number


@dataclass(frozen=True)
class Hierarchy:
    """Labels and the types above them.

    Attributes
    ----------
    nodes : tuple of str
        Labels and the types above them, from the narrowest to the widest.
    below : numpy.ndarray
        For each of them, which labels it covers.
    """

    nodes: tuple[str, ...]
    below: Bool[np.ndarray, "nodes labels"]

    @classmethod
    def of(cls, parents: dict[str, set[str]], labels: Sequence[str]) -> "Hierarchy":
        """Arrange labels, and those types above them that `parents` names.

        Raises
        ------
        ValueError
            If a type is above itself.

        Examples
        --------
        >>> Hierarchy.of({"CD4 T": {"T"}, "CD8 T": {"T"}}, ["B", "CD4 T", "CD8 T"]).nodes
        ('CD4 T', 'CD8 T', 'B', 'T')
        """
        try:
            downwards = list(TopologicalSorter(dict.fromkeys(labels, ()) | parents).static_order())
        except CycleError as error:
            raise ValueError(f"`hierarchy` has a type above itself: {' -> '.join(error.args[1][::-1])}.") from error
        below = {node: np.asarray(labels, object) == node for node in downwards}
        for node in reversed(downwards):
            for parent in parents.get(node, ()):
                below[parent] |= below[node]
        depth = {}
        for node in downwards:
            depth[node] = 1 + max((depth[parent] for parent in parents.get(node, ())), default=0)
        covering = [node for node in downwards if below[node].any()]
        nodes = sorted(covering, key=lambda node: (below[node].sum(), -depth[node], node))
        return cls(tuple(nodes), np.array([below[node] for node in nodes]))

    def probabilities(self, of_labels: Float[np.ndarray, "cells labels"]) -> Float[np.ndarray, "cells nodes"]:
        """Probability of every type: the sum over the labels that it covers, so never less than that of a child.

        Examples
        --------
        >>> above = Hierarchy.of({"CD4 T": {"T"}, "CD8 T": {"T"}}, ["B", "CD4 T", "CD8 T"])
        >>> above.probabilities(np.array([[0.25, 0.5, 0.25]])).tolist()
        [[0.5, 0.25, 0.25, 0.75]]
        """
        return of_labels @ self.below.T.astype(of_labels.dtype)

    def backed_off(self, of_labels: Float[np.ndarray, "cells labels"], least: float = 0.5) -> pd.Categorical:
        """The narrowest type at or above each cell's likeliest label that is as probable as stated.

        Parameters
        ----------
        of_labels : numpy.ndarray
            Probability of each label for each cell.
        least : float
            Probability that the type must reach.

        Returns
        -------
        pandas.Categorical
            Missing where no type reaches it.

        Raises
        ------
        ValueError
            If `least` does not lie between 0 and 1.

        Examples
        --------
        >>> above = Hierarchy.of({"CD4 T": {"T"}, "CD8 T": {"T"}}, ["B", "CD4 T", "CD8 T"])
        >>> above.backed_off(np.array([[0.1, 0.8, 0.1], [0.1, 0.5, 0.4], [0.4, 0.3, 0.3]]), 0.7).tolist()
        ['CD4 T', 'T', nan]
        """
        require_number("least", least, "(0, 1)")
        likeliest = of_labels.argmax(axis=1)
        return self._narrowest(
            lambda covered: covered[likeliest] & (of_labels @ covered.astype(of_labels.dtype) >= least),
            len(of_labels),
        )

    def common_parent(self, is_candidate: Bool[np.ndarray, "cells labels"]) -> pd.Categorical:
        """The narrowest type that covers all labels that a cell may be.

        Parameters
        ----------
        is_candidate : numpy.ndarray
            For each cell, which labels it may be.

        Returns
        -------
        pandas.Categorical
            The label itself where there is one; missing where there is none, or no type covers them all.

        Examples
        --------
        >>> above = Hierarchy.of({"CD4 T": {"T"}, "CD8 T": {"T"}}, ["B", "CD4 T", "CD8 T"])
        >>> above.common_parent(np.array([[False, True, True], [True, False, False], [True, True, False]])).tolist()
        ['T', 'B', nan]
        """
        is_any = is_candidate.any(axis=1)
        return self._narrowest(lambda covered: is_any & ~is_candidate[:, ~covered].any(axis=1), len(is_candidate))

    def _narrowest(self, fits: Callable[[np.ndarray], Any], n_cells: int) -> pd.Categorical:
        """Of the types that fit a cell, by the labels that they cover."""
        found = np.full(n_cells, -1)
        for node in reversed(range(len(self.nodes))):
            found[fits(self.below[node])] = node
        return pd.Categorical.from_codes(found, categories=list(self.nodes))


def read_hierarchy(given: Pairs | Hierarchy, labels: Sequence[str]) -> Hierarchy:
    """Types above the labels of a model.

    Parameters
    ----------
    given : str, Path, pandas.DataFrame, mapping or Hierarchy
        A .csv or .tsv file, a table or a dictionary of each type and its parent (in a file, a first line "child" and
        "parent" is a header), on as many levels as there are; or an ontology (.obo), such as the Cell Ontology, of
        which the labels are identifiers or names.
    labels : sequence of str
        Of the model. One that is not in a table has no parent.

    Returns
    -------
    Hierarchy
        Of the labels and the types above them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a type is unknown, is above itself, or has two parents in a table, or an ontology has none of the labels.

    Examples
    --------
    >>> read_hierarchy({"CD4 T": "T", "CD8 T": "T", "T": "Lymphocyte"}, ["B", "CD4 T", "CD8 T"]).nodes
    ('CD4 T', 'CD8 T', 'B', 'T', 'Lymphocyte')
    """
    if isinstance(given, Hierarchy):
        return given
    if isinstance(given, str | Path) and Path(given).suffix == ".obo":
        return Hierarchy.of(_parents_in_ontology(local_path(given), labels), labels)
    table = read_pairs(given, "hierarchy", "types and their parents", ("child", "parent"))
    if len(table) and table.iloc[0].str.lower().tolist() == ["child", "parent"]:
        table = table.iloc[1:]
    known = {*labels, *table["parent"]}
    parents: dict[str, set[str]] = {}
    for child, parent in table.itertuples(index=False):
        if child not in known:
            raise unknown_name("child", child, "the labels of the model or the parents of `hierarchy`", known)
        if parents.setdefault(child, {parent}) != {parent}:
            raise ValueError(
                f"`hierarchy` has two parents of '{child}', '{parents[child].pop()}' and '{parent}': leave one."
            )
    return Hierarchy.of(parents, labels)


def _parents_in_ontology(path: Path, labels: Sequence[str]) -> dict[str, set[str]]:
    """Parents, by `is_a`, called as the labels are: by identifiers or by names."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}, which `hierarchy` names.")
    names: dict[str, str] = {}
    is_a: dict[str, set[str]] = {}
    with naming(path, "is no ontology in OBO format"):
        for stanza in path.read_text(encoding="utf-8").split("\n[")[1:]:
            kind, *lines = stanza.splitlines()
            entries: list[tuple[str, str]] = [
                (key, value) for key, _, value in (line.partition(": ") for line in lines)
            ]
            term = dict(reversed(entries))  # the first of several
            if kind == "Term]" and term.get("is_obsolete") != "true":
                names[term["id"]] = term.get("name", term["id"])
                is_a[term["id"]] = {value.split()[0] for key, value in entries if key == "is_a"}
    if not names.keys().isdisjoint(labels):
        names = {term: term for term in names}
    unmatched = sorted({*labels} - {*names.values()})
    if len(unmatched) == len(labels):
        raise ValueError(
            f"{path} has none of the labels as an identifier or a name: {shorten(labels)}. Pass a table of each label "
            "and its parent."
        )
    if unmatched:
        warn(f"{path} does not have these labels, which get no parent: {shorten(unmatched)}.")
    return {names[term]: {names[parent] for parent in above if parent in names} for term, above in is_a.items()}
