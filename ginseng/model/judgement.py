"""From what a classifier says of cells to what is told of them: type, confidence, novelty, status."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from ginseng.model.annotator import Annotator
from ginseng.model.calibration import Calibration, Geometry
from ginseng.model.choice import chosen_labels, probabilities_over
from ginseng.model.forward import Answer
from ginseng.model.hierarchy import Hierarchy, read_hierarchy
from ginseng.utils.values import require_number

ASSIGNED, AMBIGUOUS, NOVEL = STATUSES = ("assigned", "ambiguous", "novel")
_TARGET_ERROR = 0.05
SEPARATOR = "; "  # between the types that an ambiguous cell may be


@dataclass(frozen=True)
class Judgement:
    """How the answers for cells are judged.

    Attributes
    ----------
    labels : sequence of str
        Cell types, in the order of the outputs.
    is_possible : numpy.ndarray
        Which of them the cells can be.
    calibration : Calibration, optional
        Without it there is no novelty and no status, and probabilities are the network's own.
    target_error : float, optional
        Cells are ambiguous below the confidence above which surely fewer of the held-out cells are wrong; by default
        5 %.
    class_error : float, optional
        In place of that: cells are ambiguous if several types remain once those are left out which at most such a share
        of their held-out cells fits as badly.
    novel_error : float
        Cells are novel if at most such a share of the held-out cells is as far from the training cells.
    hierarchy : Hierarchy, optional
        Types above these.
    """

    labels: Sequence[str]
    is_possible: Bool[np.ndarray, " classes"]
    calibration: Calibration | None = None
    target_error: float | None = None
    class_error: float | None = None
    novel_error: float = 0.05
    hierarchy: Hierarchy | None = None

    def __post_init__(self):
        require_number("novel_error", self.novel_error, "(0, 1)")
        errors = {"target_error": self.target_error, "class_error": self.class_error}
        given = [name for name, error in errors.items() if error is not None]
        for name in given:
            require_number(name, errors[name], "(0, 1)")
        if len(given) > 1:
            raise ValueError("`target_error` and `class_error` are two promises: choose one.")
        if given and self.calibration is None:
            raise ValueError(
                f"`{given[0]}` needs a model that is calibrated, as training with cells held out does; this one is "
                "of ginseng 0.2.1, or of few cells."
            )

    @classmethod
    def of(
        cls,
        annotator: Annotator,
        only: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        hierarchy: Any = None,
        target_error: float | None = None,
        class_error: float | None = None,
        novel_error: float = 0.05,
        *,
        calibrate: bool = True,
    ) -> "Judgement":
        """How the answers of an annotator are judged; arguments as of `ginseng.classify`."""
        above = None if hierarchy is None else read_hierarchy(hierarchy, annotator.labels)
        is_possible = chosen_labels(annotator.labels, only, exclude, above)
        calibration = annotator.own_calibration if calibrate else None
        return cls(annotator.labels, is_possible, calibration, target_error, class_error, novel_error, above)

    @property
    def geometry(self) -> Geometry | None:
        """Where the cells of the types lie that there can be."""
        return None if self.calibration is None else self.calibration.geometry.among(self.is_possible)

    @cached_property
    def _known(self) -> Calibration | None:
        """What is known of the cells of the types that there can be."""
        return None if self.calibration is None else self.calibration.among(self.is_possible)

    @property
    def _target_error(self) -> float:
        return _TARGET_ERROR if self.target_error is None else self.target_error

    @cached_property
    def _least_confidence(self) -> float:
        return np.inf if self._known is None else self._known.least_confidence(self._target_error)

    def thresholds(self) -> dict[str, float]:
        """The confidence from which on cells are assigned, where that is what is promised."""
        if self._known is None or self.class_error is not None:
            return {}
        return {"least_confidence": self._least_confidence}

    def share_left_out(self, answer: Answer) -> float:
        """Share of the cells whose likeliest type is among those that cannot be."""
        is_left_out = ~self.is_possible[answer.logits.argmax(axis=1)] & ~answer.is_empty
        return float(is_left_out.mean()) if len(is_left_out) else 0.0

    def __call__(self, answer: Answer) -> tuple[dict[str, Any], np.ndarray]:
        """Columns by their names, and the probability of each type for each cell."""
        logits = np.where(self.is_possible, answer.logits, np.float32(-np.inf))
        calibration = self._known
        if calibration is None or not len(calibration.labels):
            probabilities = probabilities_over(answer.logits, self.is_possible)
            columns = self._ranked(probabilities, logits, answer.is_empty)
            if self.hierarchy is not None:
                parent = self.hierarchy.backed_off(probabilities)
                columns["parent"] = _categories(parent.codes, answer.is_empty, parent.categories)
            return columns, probabilities
        probabilities = calibration.probabilities(logits)
        columns = self._ranked(probabilities, logits, answer.is_empty)
        best = logits.argmax(axis=1)
        has_mean: Any = np.isfinite(np.asarray(calibration.geometry.means)).all(axis=1)  # a type with training cells
        novelty = np.where(answer.is_empty | ~has_mean[best], np.nan, calibration.novelty(answer.distances))
        fits = self._fitting(calibration, logits, probabilities)
        fits[np.arange(len(fits)), best] = True
        status = np.where(novelty >= 1 - self.novel_error, 2, np.where(fits.sum(axis=1) > 1, 1, 0))
        columns["status"] = _categories(status, answer.is_empty, STATUSES)
        columns["novelty"] = novelty.astype(np.float32)
        columns["candidates"] = self._named(fits, (status == 1) & ~answer.is_empty)
        if self.hierarchy is not None:
            fits[status == 0] &= np.eye(len(self.labels), dtype=bool)[logits[status == 0].argmax(axis=1)]
            parent = self.hierarchy.common_parent(fits)
            columns["parent"] = _categories(parent.codes, answer.is_empty | (status == 2), parent.categories)
        return columns, probabilities

    def _ranked(self, probabilities: np.ndarray, logits: np.ndarray, is_empty: np.ndarray) -> dict[str, Any]:
        """The likeliest type and the second, how likely the first is, and how much likelier."""
        cells, best = np.arange(len(logits)), logits.argmax(axis=1)
        others = logits.copy()
        others[cells, best] = -np.inf
        second = others.argmax(axis=1)
        has_second = self.is_possible.sum() > 1
        margin = probabilities[cells, best] - (probabilities[cells, second] if has_second else 0)
        return {
            "cell_type": _categories(best, is_empty, self.labels),
            "confidence": np.where(is_empty, np.float32(0), probabilities[cells, best]),
            "second": _categories(second, is_empty if has_second else np.ones_like(is_empty), self.labels),
            "margin": np.where(is_empty, np.float32(0), margin),
        }

    def _fitting(self, calibration: Calibration, logits: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Which types each cell may be."""
        if self.class_error is not None:
            return (calibration.p_values(logits) > self.class_error) & self.is_possible
        is_sure = probabilities.max(axis=1) >= self._least_confidence
        order = np.argsort(-probabilities, axis=1, kind="stable")
        before = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
        needed = np.empty(probabilities.shape, bool)  # until they are together as likely as asked for; two at least
        is_needed = np.concatenate([np.ones((len(order), 2), bool), before[:, 1:-1] < 1 - self._target_error], axis=1)
        np.put_along_axis(needed, order, is_needed[:, : order.shape[1]], axis=1)
        return needed & self.is_possible & ~is_sure[:, None]

    def _named(self, fits: np.ndarray, is_ambiguous: np.ndarray) -> np.ndarray:
        """Names of the types that ambiguous cells may be; "" for others."""
        sets, of_cells = np.unique(fits[is_ambiguous], axis=0, return_inverse=True)
        names = np.array([SEPARATOR.join(np.asarray(self.labels, object)[which]) for which in sets], dtype=object)
        found = np.full(len(fits), "", dtype=object)
        if len(names):
            found[is_ambiguous] = names[of_cells.ravel()]
        return found


def require_key(key: str) -> None:
    """Raise a ValueError unless columns can be named by `key`, in R too.

    Examples
    --------
    >>> require_key("ginseng")
    """
    if not isinstance(key, str) or re.fullmatch(r"[A-Za-z][A-Za-z0-9_.]*", key) is None:
        raise ValueError(f"`key_added` must be letters, digits, _ and ., beginning with a letter, but got {key!r}.")


def _categories(codes: np.ndarray, is_unknown: np.ndarray, names: Any) -> pd.Categorical:
    return pd.Categorical.from_codes(np.where(is_unknown, -1, codes), categories=pd.Index(names))
