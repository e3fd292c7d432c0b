"""What a classifier's answers are worth: learnt from cells that it was not trained on, kept with the model."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float, Int
from scipy import special, stats
from scipy.optimize import minimize_scalar

from ginseng.metrics import ece
from ginseng.utils.values import require_number

SOURCES = {
    "groups": "groups (donors, batches) left out in turn",
    "holdout": "the holdout, drawn at random: on other donors expect more errors",
}
LEAST_CELLS = 20  # of a type, to be judged by its own cells
_SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity
_AT_ONCE = 4096
_CERTAINTY = 0.95  # of the bound on the error among kept cells


class Geometry(NamedTuple):
    """Where the logits of training cells lie: a mean for each type, and one covariance within types.

    Attributes
    ----------
    means : numpy.ndarray
        Mean logits of the training cells of each type; NaN for a type without any.
    whitening : numpy.ndarray
        Matrix that takes logits to where the covariance within types is the identity, and types differ most along the
        first axis.
    """

    means: Float[np.ndarray | Array, "classes outputs"]
    whitening: Float[np.ndarray | Array, "outputs outputs"]

    def among(self, is_possible: Bool[np.ndarray, " classes"]) -> "Geometry":
        """The same with the means of some types only."""
        return self._replace(means=np.where(is_possible[:, None], self.means, np.nan))

    def filled(self, other: "Geometry") -> "Geometry":
        """The same with the means of another where it has none."""
        return self._replace(means=np.where(np.isnan(self.means), other.means, self.means))

    def coordinates(self, logits: Float[np.ndarray | Array, "cells outputs"]) -> Float[Array, "cells outputs"]:
        """Where cells lie, in units of the spread within types."""
        return jnp.asarray(logits) @ self.whitening

    def distances(self, coordinates: Float[np.ndarray | Array, "cells outputs"]) -> Float[Array, " cells"]:
        """Mahalanobis distance of cells, by their coordinates, to the nearest mean.

        References
        ----------
        Lee et al., A simple unified framework for detecting out-of-distribution samples, NeurIPS 2018; in the space of
        the logits rather than of the features (see ``benchmarks/recipes.md``).
        """
        between = jnp.asarray(coordinates)[:, None, :] - self.coordinates(self.means)[None, :, :]
        return jnp.sqrt(jnp.nanmin(jnp.square(between).sum(axis=-1), axis=1))


def geometry_of(logits: Float[np.ndarray, "cells outputs"], labels: Int[np.ndarray, " cells"]) -> Geometry:
    """Means and whitening of the logits of labelled cells, at least one.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1], 500)
    >>> geometry = geometry_of(rng.normal(size=(1000, 2)) + 8 * np.eye(2)[labels], labels)
    >>> geometry.distances(geometry.coordinates(jnp.array([[8.0, 0.0], [0.0, 4.0], [8.0, 8.0]]))).round()
    Array([0., 4., 8.], dtype=float32)
    """
    n_classes, logits = logits.shape[1], logits.astype(np.float64)
    n_cells = np.bincount(labels, minlength=n_classes)
    is_of_type = np.eye(n_classes)[labels]
    with np.errstate(invalid="ignore"):
        means = is_of_type.T @ logits / n_cells[:, None]
    within = logits - means[labels]
    covariance = within.T @ within / len(within)
    scale = np.trace(covariance) / n_classes
    shrunk = (1 - _SHRINKAGE) * covariance + (_SHRINKAGE * scale + 1e-6) * np.eye(n_classes)
    values, vectors = np.linalg.eigh(shrunk)
    whitening = vectors / np.sqrt(values)
    between = (means[n_cells > 0] - logits.mean(axis=0)) @ whitening
    whitening = whitening @ np.linalg.svd(between)[2].T
    return Geometry(means.astype(np.float32), whitening.astype(np.float32))


def distances_in_parts(geometry: Geometry, logits: Float[np.ndarray, "cells outputs"]) -> np.ndarray:
    """Distances of any number of cells, a few thousand at a time.

    Examples
    --------
    >>> distances_in_parts(Geometry(np.eye(2), np.eye(2)), np.array([[1.0, 0.0], [0.0, 4.0]]))
    array([0., 3.], dtype=float32)
    """
    parts = np.split(logits.astype(np.float32), np.arange(_AT_ONCE, len(logits), _AT_ONCE))
    return np.concatenate([np.asarray(geometry.distances(geometry.coordinates(part))) for part in parts])


def fitted_temperature(
    logits: Float[np.ndarray, "cells classes"], labels: Int[np.ndarray, " cells"], groups: Int[np.ndarray, " cells"]
) -> float:
    """Find the number to divide logits by under which labels that were not trained on are likeliest.

    Of several groups of cells (donors) it is the median of theirs, so that one for which a network fails does not make
    it doubt all others. A weak prior (log-normal around 1) keeps it finite where all cells are right.

    References
    ----------
    Guo et al., On calibration of modern neural networks, ICML 2017.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(size=(5000, 3)) * 2
    >>> labels = np.array([rng.choice(3, p=row) for row in special.softmax(logits, axis=1)])
    >>> round(fitted_temperature(3 * logits, labels, np.zeros(5000, int)))
    3
    """
    is_of_enough = np.bincount(groups)[groups] >= LEAST_CELLS
    if not is_of_enough.any():
        groups, is_of_enough = np.zeros_like(groups), np.ones(len(groups), bool)
    logarithms = [_log_temperature(logits[groups == n], labels[groups == n]) for n in np.unique(groups[is_of_enough])]
    return float(np.exp(np.median(logarithms)))


def _log_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    logits, cells = logits.astype(np.float64), np.arange(len(labels))

    def loss(logarithm: float) -> float:
        log_probabilities = special.log_softmax(logits / np.exp(logarithm), axis=1)
        return -log_probabilities[cells, labels].sum() + logarithm**2 / 2

    return minimize_scalar(loss, bounds=(-3, 3), method="bounded").x  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What cells that were not trained on tell of a classifier's answers.

    Attributes
    ----------
    source : {"groups", "holdout"}
        Which cells: those of whole groups (donors, batches) left out in turn, or those held out at random, which are
        more like the training cells than new ones will be.
    geometry : Geometry
        Of the training cells.
    logits : numpy.ndarray
        Of the cells, each by a network that was not trained on it.
    labels : numpy.ndarray
        Their true types, as places among the outputs.
    distances : numpy.ndarray
        How far each is from the training cells of that network, see `Geometry`.
    groups : numpy.ndarray
        Number of the group that each is of, from 0 on; 0 for all where groups were not left out.
    temperature : float
        Number that logits are divided by.
    weights : str, optional
        Short name of the weights that it was learnt for, if that is known: of others it is not used.

    Raises
    ------
    ValueError
        If the parts do not fit together.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1], 500)
    >>> logits = (rng.normal(size=(1000, 2)) + 4 * np.eye(2)[labels]).astype("float32")
    >>> geometry = geometry_of(logits, labels)
    >>> donors = np.arange(1000) % 5
    >>> held_out = logits, labels, distances_in_parts(geometry, logits), donors
    >>> calibration = Calibration("groups", geometry, *held_out, fitted_temperature(logits, labels, donors))
    >>> calibration.p_values(np.array([[4, 0], [2, 2]], "float32")) > 0.05
    array([[ True, False],
           [False, False]])
    """

    source: str
    geometry: Geometry
    logits: Float[np.ndarray, "cells classes"]
    labels: Int[np.ndarray, " cells"]
    distances: Float[np.ndarray, " cells"]
    groups: Int[np.ndarray, " cells"]
    temperature: float
    weights: str | None = None

    def __post_init__(self):
        n_cells, n_classes = self.logits.shape
        shapes = [np.shape(part) for part in (*self.geometry, self.labels, self.distances, self.groups)]
        if shapes != [(n_classes, n_classes)] * 2 + [(n_cells,)] * 3:
            raise ValueError("The parts of a calibration must be of the same cells and types.")
        require_number("temperature", self.temperature, "(0, inf)")
        is_known = [np.isfinite(self.geometry.whitening), np.isfinite(self.distances), self.logits < np.inf]
        if not all(part.all() for part in is_known) or not np.isin(self.labels, np.arange(n_classes)).all():
            raise ValueError("A calibration must have finite numbers, and labels among the outputs.")
        if self.groups.dtype.kind not in "iu" or self.groups.min(initial=0) < 0 or self.groups.max(initial=0) > n_cells:
            raise ValueError("The groups of a calibration must be numbered from 0 on.")

    def confidence(self, *, before: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Confidence in the likeliest type of each held-out cell, and whether that is right: as `metrics.ece` takes it.

        With `before`, without the temperature.
        """
        probabilities = special.softmax(self.logits, axis=1) if before else self.probabilities(self.logits)
        return probabilities.max(axis=1), self.logits.argmax(axis=1) == self.labels

    def table(self) -> pd.DataFrame:
        """Expected calibration error and log loss, before and after, of the held-out cells it is fitted to.

        Columns ``ece`` (15 bins of equally many cells) and ``nll`` (mean negative logarithm of the probability of the
        true type).
        """
        rows = {}
        for name, temperature in (("before", 1.0), ("after", self.temperature)):
            log_probabilities = special.log_softmax(self.logits.astype(np.float64) / temperature, axis=1)
            of_truth = log_probabilities[np.arange(len(self.labels)), self.labels]
            rows[name] = {"ece": ece(*self.confidence(before=name == "before")), "nll": float(-of_truth.mean())}
        return pd.DataFrame.from_dict(rows, orient="index")

    def summary(self) -> dict[str, Any]:
        """What a model card tells."""
        table = self.table().round(4).to_dict("index")
        of_fit = {"source": self.source, "cells": len(self.labels), "temperature": round(self.temperature, 4)}
        return {**of_fit, **table}

    def is_of(self, weights: str) -> bool:
        """Whether it was learnt for weights of that name, as far as is known."""
        return self.weights in (None, weights)

    def require_classes(self, n_classes: int) -> None:
        """Raise a ValueError if it is of a network with another number of outputs."""
        if self.logits.shape[1] != n_classes:
            raise ValueError(f"`calibration` is of {self.logits.shape[1]} types, but the model has {n_classes}.")

    def among(self, is_possible: Bool[np.ndarray, " classes"]) -> "Calibration":
        """The same for cells that can be of some types only: as its cells of those are told from each other."""
        kept = is_possible[self.labels]
        logits = np.where(is_possible, self.logits[kept], np.float32(-np.inf))
        return replace(
            self, logits=logits, labels=self.labels[kept], distances=self.distances[kept], groups=self.groups[kept]
        )

    def probabilities(self, logits: Float[np.ndarray, "cells classes"]) -> Float[np.ndarray, "cells classes"]:
        """Calibrated probabilities: the softmax of the logits divided by the temperature."""
        return special.softmax(logits / np.float32(self.temperature), axis=1)

    def novelty(self, distances: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " cells"]:
        """Share of the held-out cells, of all types, that are nearer to the training cells than each cell.

        One minus a conformal p-value: of new cells like the held-out ones at most a share of `error` has ``1 - error``
        or more.
        """
        return 1 - _p_values(-self.distances, -distances)

    def p_values(self, logits: Float[np.ndarray, "cells classes"]) -> Float[np.ndarray, "cells classes"]:
        """Conformal p-value of each type for each cell: the share of its held-out cells that fit it no better.

        How well it fits is its probability. The types of which the p-value is above `error` leave out the true one for
        at most a share of `error` of the cells of each type, as far as new cells are like the held-out ones. Types of
        few cells are pooled.

        References
        ----------
        Vovk, Gammerman & Shafer, Algorithmic learning in a random world, 2005: label-conditional conformal prediction.
        """
        scores, held_out = self.probabilities(logits), self.probabilities(self.logits)
        of_truth = held_out[np.arange(len(held_out)), self.labels]
        n_of_class = np.bincount(self.labels, minlength=scores.shape[1])
        is_of_few = n_of_class[self.labels] < LEAST_CELLS
        if is_of_few.sum() < LEAST_CELLS:
            is_of_few = np.ones(len(held_out), bool)
        columns = [
            _p_values(of_truth[self.labels == nth if n >= LEAST_CELLS else is_of_few], scores[:, nth])
            for nth, n in enumerate(n_of_class)
        ]
        return np.stack(columns, axis=1)

    def least_confidence(self, target_error: float) -> float:
        """The lowest confidence from which on the error among the held-out cells is surely below a target.

        Surely: the upper bound of Clopper and Pearson, at 95 %, is below it, and so is the error of a further group of
        cells (a donor), at 95 %, by the errors of the groups that were left out: cells of one donor err together.
        Infinite where no confidence will do.

        References
        ----------
        Clopper & Pearson, Biometrika 1934; prediction interval of one more observation of a normal sample.
        """
        if not len(self.labels):
            return np.inf
        confidence, is_right = self.confidence()
        order = np.argsort(-confidence, kind="stable")
        confidence, is_wrong = confidence[order], ~is_right[order]
        n_wrong, n_kept = np.cumsum(is_wrong), np.arange(1, len(order) + 1)
        bound = np.where(n_wrong == n_kept, 1.0, stats.beta.ppf(_CERTAINTY, n_wrong + 1, n_kept - n_wrong))
        bound = np.maximum(bound, _bound_of_one_more(is_wrong, self.groups[order]))
        is_last_of_ties = np.append(np.diff(confidence) < 0, True)
        will_do = np.flatnonzero((bound < target_error) & is_last_of_ties)
        return float(confidence[will_do[-1]]) if will_do.size else np.inf


def _bound_of_one_more(is_wrong: Bool[np.ndarray, " cells"], groups: Int[np.ndarray, " cells"]) -> np.ndarray:
    """Upper bound on the share of wrong cells of a further group, for the first one, two, ... cells; 0 of one group."""
    sums, squares, n_groups = np.zeros((3, len(groups)))
    for group in np.unique(groups):
        n_kept = np.cumsum(groups == group)
        error = np.cumsum(is_wrong & (groups == group)) / np.maximum(n_kept, 1)
        sums, squares, n_groups = sums + error, squares + error**2, n_groups + (n_kept > 0)
    if groups.max() == 0:
        return sums * 0
    n_free, mean = np.maximum(n_groups - 1, 1), sums / n_groups
    variance = np.maximum(squares - n_groups * mean**2, 0) / n_free
    margin = stats.t.ppf(_CERTAINTY, n_free) * np.sqrt(variance * (1 + 1 / n_groups))
    return np.where(n_groups > 1, mean + margin, 1.0)


def _p_values(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each new value, the share of the known ones, and of itself, that are not above it."""
    return (1 + np.searchsorted(np.sort(known), new, side="right")) / (1 + len(known))


def calibration_of(
    source: str,
    geometry: Geometry,
    logits: np.ndarray,
    labels: np.ndarray,
    distances: np.ndarray,
    groups: np.ndarray | None = None,
) -> Calibration | None:
    """Learn from cells that were not trained on; None if they are too few to tell anything."""
    if len(labels) < LEAST_CELLS:
        return None
    groups = np.zeros(len(labels), int) if groups is None else np.unique(groups, return_inverse=True)[1]
    return Calibration(source, geometry, logits, labels, distances, groups, fitted_temperature(logits, labels, groups))


def as_tree(calibration: Calibration) -> dict[str, Any]:
    """Its parts as arrays, to be saved.

    Examples
    --------
    >>> as_tree(calibration)["temperature"]  # doctest: +SKIP
    array([1.07])
    """
    return {
        "source": np.frombuffer(calibration.source.encode(), np.uint8),
        "temperature": np.array([calibration.temperature]),
        **calibration.geometry._asdict(),
        **{name: getattr(calibration, name) for name in ("logits", "labels", "distances", "groups")},
    }


def from_tree(tree: dict[str, Any]) -> Calibration:
    """What `as_tree` gives, turned back."""
    parts: dict[str, Any] = {name: np.asarray(value) for name, value in tree.items()}
    geometry = Geometry(parts.pop("means"), parts.pop("whitening"))
    source, temperature = parts.pop("source").astype(np.uint8).tobytes().decode(), float(parts.pop("temperature")[0])
    return Calibration(source, geometry, **parts, temperature=temperature)
