"""What is told of annotated cells, as a table or in AnnData."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Float

from ginseng.model.consensus import CELLTYPIST_COLUMNS, celltypist_columns, consensus, novel_by_cluster
from ginseng.model.judgement import NOVEL
from ginseng.utils.counts import whole_changes, with_columns
from ginseng.utils.messages import warn

COLUMNS = (
    *("cell_type", "confidence", "status", "novelty", "candidates", "second", "margin"),
    *("spread", "parent", "cluster", "consensus", "consensus_share"),
)
_IN_PROBABILITIES = ("second", "margin")  # which a table has anyway
_MOST_RECORDED = 1000  # names of types; more are those of cells
_MOST_LEFT_OUT = 0.1  # of the cells, whose likeliest type cannot be
MOST_NOVEL = 1 / 3  # of the cells, before it is the data set that is told to differ


def require_other_names(labels: Sequence[str], key: str, compat: str | None) -> None:
    """Raise a ValueError if a table would have a column of results that is called as one of the types.

    Examples
    --------
    >>> require_other_names(["B", "ginseng_status"], "ginseng", None)
    Traceback (most recent call last):
        ...
    ValueError: The model has a type called 'ginseng_status', which is a column of the table: pass another `key_added`.
    """
    columns = {f"{key}_{name}": "pass another `key_added`" for name in COLUMNS}
    if compat is not None:
        columns |= dict.fromkeys(CELLTYPIST_COLUMNS, "leave `compat` out")
    for label in labels:
        if label in columns:
            raise ValueError(
                f"The model has a type called '{label}', which is a column of the table: {columns[label]}."
            )


def recorded(value: Any) -> Any:
    """What ``uns`` holds of an argument: a number, a text or a list of texts as it is, of others that they were given.

    Examples
    --------
    >>> recorded(0.05), recorded(("B", "T")), recorded(Path("a.csv")), recorded({"B": "lymphocyte"})
    (0.05, ['B', 'T'], 'a.csv', 'given')
    """
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | set | np.ndarray | pd.Index) and all(isinstance(name, str) for name in value):
        return list(map(str, value)) if len(value) < _MOST_RECORDED else "given"
    return value if isinstance(value, bool | int | float | str) else "given"


@dataclass(frozen=True)
class Results:
    """What is told of annotated cells.

    Attributes
    ----------
    labels : sequence of str
        Cell types, in the order of the outputs.
    columns : dict
        Of each cell, by their names without the key.
    probabilities : numpy.ndarray
        Of each cell type.
    is_empty : numpy.ndarray
        Which cells have no count, and so no type.
    embedding : numpy.ndarray, optional
        Where the cells lie.
    about : dict
        How they were annotated.
    clusters : pandas.Categorical, optional
        Over which they agree.
    """

    labels: Sequence[str]
    columns: dict[str, Any]
    probabilities: Float[np.ndarray, "cells classes"]
    is_empty: Bool[np.ndarray, " cells"]
    embedding: Float[np.ndarray, "cells dimensions"] | None
    about: dict[str, Any]
    clusters: Any = field(default=None)

    @property
    def is_novel(self) -> np.ndarray | None:
        """Which cells are novel, if that is known."""
        return np.asarray(self.columns["status"]) == NOVEL if "status" in self.columns else None

    def warn(self, share_left_out: float) -> None:
        """Warn if many cells look like types that were left out, or so many novel that it must be the data."""
        if share_left_out > _MOST_LEFT_OUT:
            warn(
                f"{share_left_out:.0%} of the cells look most like types that `only` or `exclude` leaves out: if these "
                "can be there after all, so are wrong types now."
            )
        share = 0 if self.is_novel is None or not len(self.is_novel) else self.is_novel.mean()
        if share > MOST_NOVEL:
            warn(
                f"{share:.0%} of the cells are further from the training cells than nearly all held-out ones: this "
                "data set differs from the training data (another protocol, tissue, condition or species, or a wrong "
                "layer?). Confidence and status are less reliable here, and novel cells need not be new types."
            )

    def agreed(self, clusters: pd.Categorical, way: str, novel_error: float) -> "Results":
        """The same with what clusters call their cells, and how novel they are."""
        found = consensus(self.probabilities, clusters, way, is_empty=self.is_empty)
        called = pd.Categorical.from_codes(found.codes, categories=pd.Index(self.labels))
        columns = {**self.columns, "consensus": called, "consensus_share": found.share}
        about = dict(self.about)
        if "novelty" in self.columns:
            novelty = self.columns["novelty"]
            about["clusters"] = novel_by_cluster(novelty, clusters, novel_error, is_empty=self.is_empty)
        return dataclasses.replace(self, columns=columns, about=about, clusters=clusters)

    def table(self, cell_names: pd.Index, key: str, compat: str | None) -> pd.DataFrame:
        """A row for each cell: columns, and the probability of each type by its name."""
        table = pd.DataFrame(self.probabilities, columns=pd.Index(self.labels), index=cell_names, copy=False)
        told = self._named(key, compat, [name for name in self.columns if name not in _IN_PROBABILITIES])
        for place, (name, values) in enumerate(told.items()):
            table.insert(place, name, values)
        return table

    def put_into(self, adata: AnnData, key: str, compat: str | None, *, store_probs: bool) -> None:
        """Add columns to ``obs``, the embedding (and probabilities) to ``obsm``, and how it was done to ``uns``.

        If that fails, `adata` is as it was.
        """
        with whole_changes(adata):
            stale = [f"{key}_{name}" for name in COLUMNS if name not in self.columns]  # of another model
            obs: Any = adata.obs
            if _had_other_names(adata, key):
                stale += CELLTYPIST_COLUMNS
            named = self._named(key, compat, list(self.columns))
            adata.obs = with_columns(obs.drop(columns=stale, errors="ignore"), named)
            for name in {f"X_{key}", f"{key}_probs"} & set(adata.obsm):
                del adata.obsm[name]
            if self.embedding is not None:
                adata.obsm[f"X_{key}"] = self.embedding
            if store_probs:
                adata.obsm[f"{key}_probs"] = self.probabilities
            adata.uns[key] = self.about

    def _named(self, key: str, compat: str | None, names: list[str]) -> dict[str, Any]:
        named = {f"{key}_{name}": self.columns[name] for name in names}
        if compat is None:
            return named
        of_clusters = () if self.clusters is None else (self.clusters, self.columns["consensus"])
        return named | celltypist_columns(self.columns["cell_type"], self.columns["confidence"], *of_clusters)


def _had_other_names(adata: AnnData, key: str) -> bool:
    """Whether columns of an earlier annotation are called as CellTypist calls them."""
    earlier = adata.uns.get(key)
    parameters = earlier.get("parameters", {}) if isinstance(earlier, Mapping) else {}
    return isinstance(parameters, Mapping) and "compat" in parameters
