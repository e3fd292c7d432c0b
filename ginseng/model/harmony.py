"""Two label vocabularies side by side: which names of one study are which names of another."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ginseng.data.models import annotator_of
from ginseng.data.readers import opened_counts
from ginseng.model.annotator import Annotator
from ginseng.model.predict import classify
from ginseng.model.state import GinsengClassifierState
from ginseng.utils.labels import in_terms_of, names_in
from ginseng.utils.messages import require_one, shorten, warn
from ginseng.utils.values import require_flags, require_number

SAME, FINER, COARSER, NONE = "same", "finer", "coarser", "none"
_MOSTLY = 0.5  # of the cells of a finer type are called by the coarser one
_PART = 0.1  # of the cells of a coarser type are of a finer one, lest errors make a type and its equal part of it
SIGNS = {SAME: "=", FINER: "<", COARSER: ">"}


@dataclass(frozen=True)
class Harmony:
    """How two label vocabularies, A and B, relate.

    Attributes
    ----------
    table : pandas.DataFrame
        A row for each pair of labels, the best first: ``a``, ``b``; ``a_to_b``, the share of the cells of `a` that the
        model of B calls `b`, and ``b_to_a``, the reverse; ``score``, their geometric mean; ``relation``, which is
        "same", "finer" (`a` is one of several types, or a part, of `b`), "coarser" (the reverse) or "none".

    Examples
    --------
    >>> labels = ["B", "T"], ["CD19+", "CD3+"]
    >>> a_to_b = pd.DataFrame([[0.9, 0.1], [0.0, 1.0]], *labels)
    >>> Harmony.of(a_to_b, a_to_b.T, 0.25).mapping
    {'CD3+': 'T', 'CD19+': 'B'}
    """

    table: pd.DataFrame

    @classmethod
    def of(cls, a_to_b: pd.DataFrame, b_to_a: pd.DataFrame, threshold: float) -> "Harmony":
        """Compare the shares of the cells of each label (rows) that are called each label of the other (columns)."""
        forth = a_to_b.to_numpy(float)
        back = b_to_a.loc[a_to_b.columns, a_to_b.index].to_numpy(float).T
        score = np.sqrt(forth * back)
        is_linked = (score >= threshold) & (score > 0)
        is_best_of_a = is_linked & (np.arange(score.shape[1]) == score.argmax(axis=1)[:, None])
        is_best_of_b = is_linked & (np.arange(score.shape[0])[:, None] == score.argmax(axis=0))
        a_within_b = is_best_of_a & (forth >= _MOSTLY)
        b_within_a = is_best_of_b & (back >= _MOSTLY)
        a_is_part = a_within_b & (back >= _PART)
        b_is_part = b_within_a & (forth >= _PART)
        a_is_one_of_several = a_is_part & (a_is_part.sum(axis=0) > 1)
        b_is_one_of_several = b_is_part & (b_is_part.sum(axis=1, keepdims=True) > 1)
        is_same = is_best_of_a & is_best_of_b & (a_is_one_of_several == b_is_one_of_several)
        relation = np.select(
            [is_same, a_is_one_of_several, b_is_one_of_several, a_within_b, b_within_a],
            [SAME, FINER, COARSER, FINER, COARSER],
            NONE,
        )
        table = pd.DataFrame(
            {
                "a": np.repeat(a_to_b.index.to_numpy(), score.shape[1]),
                "b": np.tile(a_to_b.columns.to_numpy(), score.shape[0]),
                "a_to_b": forth.ravel(),
                "b_to_a": back.ravel(),
                "score": score.ravel(),
                "relation": relation.ravel(),
            }
        )
        return cls(table.sort_values("score", ascending=False, kind="stable", ignore_index=True))

    @property
    def pairs(self) -> pd.DataFrame:
        """The rows of the table that are related, the same ones first."""
        found: Any = self.table[self.table["relation"] != NONE]
        return pd.concat([found[found["relation"] == SAME], found[found["relation"] != SAME]], ignore_index=True)

    @property
    def matrix(self) -> pd.DataFrame:
        """The score of each label of A (rows) and of B (columns), in an order that has partners side by side."""
        rows, columns = (dict.fromkeys([*self.pairs[side], *sorted(self.table[side])]) for side in ("a", "b"))
        return self.table.pivot(index="a", columns="b", values="score").loc[list(rows), list(columns)]

    @property
    def mapping(self) -> dict[str, str]:
        """The label of A for each label of B that is the same; ``obs[label].replace(mapping)`` takes it."""
        return self._named(SAME)

    @property
    def merging(self) -> dict[str, str]:
        """The same with those of B that are finer than one of A, which then have its name."""
        return self._named(SAME, COARSER)

    def report(self) -> str:
        """What is the same, what is finer, what stands alone, and which names are not to be mixed up.

        Examples
        --------
        >>> shares = pd.DataFrame([[0.9, 0.0], [0.0, 0.0]], index=["B", "T"], columns=["CD19+", "T"])
        >>> print(Harmony.of(shares, shares.T, 0.25).report())
        1 pair of the same type; A has 2 labels, B has 2.
        A B = B CD19+ (0.90 of the cells of A, 0.90 of those of B)
        Only in A: T.
        Only in B: T.
        Not the same in A and B, though called so in both: T. Rename before the two are combined.
        """
        pairs = self.pairs
        n_same = int((pairs["relation"] == SAME).sum())
        n_a, n_b = self.table["a"].nunique(), self.table["b"].nunique()
        told = [f"{n_same} pair{'' if n_same == 1 else 's'} of the same type; A has {n_a} labels, B has {n_b}."]
        told += [
            f"A {a} {SIGNS[relation]} B {b} ({forth:.2f} of the cells of A, {back:.2f} of those of B)"
            for a, b, forth, back, relation in pairs[["a", "b", "a_to_b", "b_to_a", "relation"]].to_numpy()
        ]
        for side in ("a", "b"):
            if alone := sorted(set(self.table[side]) - set(pairs[side])):
                told.append(f"Only in {side.upper()}: {shorten(alone)}.")
        namesakes = set(self.table["a"]) & set(self.table["b"]) - set(self.mapping)
        if namesakes:
            told.append(
                f"Not the same in A and B, though called so in both: {shorten(sorted(namesakes))}. Rename before the "
                "two are combined."
            )
        return "\n".join(told)

    def _named(self, *relations: str) -> dict[str, str]:
        chosen: Any = self.table[self.table["relation"].isin(relations)]
        return dict(zip(chosen["b"], chosen["a"], strict=True))


def harmonize(
    model_a: GinsengClassifierState | Annotator | str | Path,
    data_a: AnnData | str | Path,
    model_b: GinsengClassifierState | Annotator | str | Path,
    data_b: AnnData | str | Path,
    *,
    label_a: str,
    label_b: str | None = None,
    layer_a: str | None = None,
    layer_b: str | None = None,
    gene_key: str | Sequence[str | None] | None = None,
    threshold: float = 0.25,
    silent: bool = False,
) -> Harmony:
    """Tell which cell types of two studies are the same, whatever they are called.

    Each model annotates the cells of the other study. Two labels are the same if each is the other's best, by the
    geometric mean of both shares, which is low where only one of the models calls the cells so: a type that the other
    study lacks gets some name there, but no cells of that name get its own. If most cells of several labels are called
    by one of the other study, they are finer.

    Cells count as they are called, be they novel or not. A model of PBMC 3k finds half of the cells of Kang et al.
    novel, and calls four in five of those rightly; if they counted as of no type, four of eight pairs would be lost.

    Parameters
    ----------
    model_a, model_b : GinsengClassifierState, Annotator, str or Path
        What `ginseng.classify` takes, trained on these data or on others with the same labels.
    data_a, data_b : AnnData, str or Path
        Raw counts, which stay as they are.
    label_a, label_b : str
        Column of ``obs`` with the labels of the model; by default that of B is called as that of A.
    layer_a, layer_b : str, optional
        Layer with the counts, as of `ginseng.classify`.
    gene_key : str or sequence of str, optional
        Column of ``var`` with gene names, of both data or of each; None for the index.
    threshold : float
        Least score of labels that are related, in (0, 1]. Of blood cells of two studies, pairs score .30 (of rare,
        ill-labelled cells) to .99, and others .14 at most.
    silent : bool
        No progress bar and no warnings.

    Returns
    -------
    Harmony
        Table, mapping and report. Types that are each in one study only can be taken for related where both models
        have no better name for them, as studies of different tissues do (beta cells and B cells): look at the pairs.

    Raises
    ------
    ValueError
        If a column does not exist, no cell has a label of its model, or the data cannot be annotated.

    Examples
    --------
    >>> import ginseng
    >>> harmony = ginseng.harmonize(
    ...     "a.h5", a, "b.h5", b, label_a="cell_type", label_b="type"
    ... )  # doctest: +SKIP
    >>> b.obs["type"] = b.obs["type"].replace(harmony.mapping)  # doctest: +SKIP
    """
    require_flags(silent=silent)
    require_number("threshold", threshold, "(0, 1]")
    of_a, of_b = annotator_of(model_a), annotator_of(model_b)
    label_b = label_a if label_b is None else label_b
    keys = (gene_key, gene_key) if gene_key is None or isinstance(gene_key, str) else tuple(gene_key)
    if len(keys) != 2:
        raise ValueError(f"`gene_key` must be a column of both data, or a pair of columns, but got {gene_key!r}.")
    called_by_b = _shares_called(of_a, data_a, of_b, label_a, layer_a, keys[0], "a", silent)
    called_by_a = _shares_called(of_b, data_b, of_a, label_b, layer_b, keys[1], "b", silent)
    a, b = called_by_b.index, called_by_a.index
    return Harmony.of(called_by_b.reindex(columns=b), called_by_a.reindex(columns=a), threshold)


def _shares_called(
    own: Annotator,
    data: AnnData | str | Path,
    other: Annotator,
    label: str,
    layer: str | None,
    gene_key: str | None,
    side: str,
    silent: bool,
) -> pd.DataFrame:
    """The share of the cells of each label (rows) that another model calls each of its labels (columns)."""
    with nullcontext(data) if isinstance(data, AnnData) else opened_counts(data) as adata:
        obs: Any = adata.obs
        require_one("label column", label, f"obs of `data_{side}`", obs.columns)
        named = names_in(obs[label], f"obs['{label}'] of `data_{side}`")
        as_known = in_terms_of(named.categories, own.labels)
        labels = pd.Series(named, dtype=object).map(lambda name: as_known.get(name, name), na_action="ignore")
        is_known = labels.isin(own.labels).to_numpy()
        if not is_known.any():
            raise ValueError(
                f"No cell of `data_{side}` has a label of `model_{side}` in obs['{label}'], which has "
                f"{shorten(labels.dropna().unique(), 5)}, where the model has {shorten(own.labels, 5)}: let "
                f"`label_{side}` be the column that it was trained on."
            )
        present = [name for name in own.labels if name in set(labels)]
        how: dict[str, Any] = {"return_table": True, "silent": silent, "calibrate": False}
        told: Any = classify(other, adata, gene_key, layer, **how)
    if not silent and not is_known.all():
        warn(f"{(~is_known).sum():,} cells of `data_{side}` have no label of `model_{side}` and are left out.")
    if not silent and len(present) < len(own.labels):
        absent = [name for name in own.labels if name not in present]
        warn(f"`data_{side}` has no cells of {shorten(absent)}, which are left out.")
    calls = pd.get_dummies(told["ginseng_cell_type"], dtype=float).set_axis(list(other.labels), axis=1)
    return calls.groupby(labels.to_numpy()).mean().loc[present]
