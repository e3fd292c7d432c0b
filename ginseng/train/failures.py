"""Why training stops: losses that are not finite, by step, and what is likely to have led to them."""

import jax
import numpy as np
from jaxtyping import Float

from ginseng.train.step import Slab

_HUGE = 1e7  # counts of one gene in one cell
_N_TOLD = 3


class NotFinite(ValueError, ArithmeticError):
    """A loss that is not finite."""


def not_finite(of: str, loss: float, where: str, why: str | None = None) -> NotFinite:
    """The error of a loss that is not finite.

    Examples
    --------
    >>> not_finite("holdout", float("nan"), "epoch 3")
    NotFinite('The holdout loss is nan in epoch 3: the learning rate may be too large, or the counts may hold values \
that the model cannot take. The weights are those of before that epoch.')
    """
    why = why or "the learning rate may be too large, or the counts may hold values that the model cannot take"
    return NotFinite(f"The {of} loss is {loss} in {where}: {why}. The weights are those of before that epoch.")


def diverged(slab: Slab, losses: Float[np.ndarray, " steps"], epoch: int, n_before: int, n_steps: int) -> NotFinite:
    """The error of the first step of a slab whose loss is not finite.

    Parameters
    ----------
    slab : Slab
        The batches.
    losses : numpy.ndarray
        Sum of the losses of each step.
    epoch : int
        From 0 on.
    n_before, n_steps : int
        Steps of the epoch before the slab, and all of them.
    """
    nth = int(np.argmax(~np.isfinite(losses)))
    n_cells = int(np.asarray(jax.device_get(slab.mask[nth])).sum()) if slab.mask.is_fully_addressable else 1
    where = f"epoch {epoch + 1}, step {n_before + nth + 1:,} of {n_steps:,}"
    return not_finite("training", losses[nth] / max(n_cells, 1), where, _why(slab, losses[:nth] / max(n_cells, 1), nth))


def _why(slab: Slab, before: Float[np.ndarray, " steps"], nth: int) -> str | None:
    """What the batch and the losses before it say."""
    if slab.x.is_fully_addressable:
        x = np.asarray(slab.x[nth])
        if not np.isfinite(x).all():
            rows = np.flatnonzero(~np.isfinite(x).all(axis=1))
            return f"{len(rows):,} of its cells have counts that are not finite"
        if (largest := float(np.abs(x).max())) > _HUGE:
            return f"its counts are as large as {largest:.3g}, which the model cannot take: normalize=True scales them"
    if len(before) > 1 and before.max() > 2 * before[0]:
        told = ", ".join(f"{loss:.3g}" for loss in before[-_N_TOLD:])
        return f"the learning rate may be too large, since losses were rising ({told}): lower it, or set `clip`"
    return None
