"""Cells through a module: batched inference on the devices, while a thread reads on."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray
from scipy import sparse
from tqdm.auto import tqdm

from ginseng.data.slabs import SlabShape, dense_slabs
from ginseng.model.calibration import Geometry
from ginseng.model.ensemble import member_logits_of
from ginseng.utils.ahead import read_ahead
from ginseng.utils.counts import Counts
from ginseng.utils.devices import Devices
from ginseng.utils.genes import GeneMap
from ginseng.utils.precision import in_precision, require_precision
from ginseng.utils.values import require_integer


class Answer(NamedTuple):
    """What a module says of cells.

    Attributes
    ----------
    logits : numpy.ndarray
        Of each cell for each cell type; of several members, the logarithm of their mean probabilities.
    spread : numpy.ndarray
        Standard deviation over members of their probability of the likeliest type.
    coordinates : numpy.ndarray
        Where they lie, and
    distances : numpy.ndarray
        how far they are from training cells, see `Geometry`; 0 where there is none.
    is_empty : numpy.ndarray
        Which cells have no count of the module's genes.
    """

    logits: Float[np.ndarray, "cells classes"]
    spread: Float[np.ndarray, " cells"]
    coordinates: Float[np.ndarray, "cells classes"]
    distances: Float[np.ndarray, " cells"]
    is_empty: Bool[np.ndarray, " cells"]

    def require_finite(self, cell_names: pd.Index, takes_counts: bool) -> None:
        """Raise a ValueError if there is no answer for some cells."""
        is_finite = np.isfinite(self.logits).all(axis=1)
        if not is_finite.all():
            raise ValueError(
                f"The network's answer is not finite for {(~is_finite).sum():,} of {is_finite.size:,} cells, such as "
                f"'{cell_names[np.argmin(is_finite)]}': values too large for it? It takes "
                f"{'raw counts' if takes_counts else 'normalised values'}."
            )


@dataclass(frozen=True)
class Forward:
    """How cells go through a module.

    Attributes
    ----------
    module : eqx.Module
        Of one cell.
    batch_size : int
        Cells per forward pass.
    precision : {"float32", "bfloat16"}
        Of the factors of matrix products.
    devices : Devices
        Which share each batch.
    seed : int, optional
        Of the dropout masks; without one nothing is dropped.
    geometry : Geometry, optional
        Where the logits of training cells lie.
    """

    module: Any
    batch_size: int
    precision: str
    devices: Devices
    seed: int | None
    geometry: Geometry | None = None

    def __post_init__(self):
        require_integer("batch_size", self.batch_size, 1)
        if self.seed is not None:
            require_integer("seed", self.seed, 0, below=2**32)
        require_precision(self.precision)

    def __call__(self, counts: Counts, gene_map: GeneMap, n_classes: int, silent: bool) -> Answer:
        """Ask for every cell of some counts, of which the genes of the module are those that the map says."""
        shape = SlabShape.of(self.batch_size, self.devices.padded(self.batch_size), gene_map.n_inputs, np.float32)
        module = self.devices.replicate(eqx.nn.inference_mode(self.module, self.seed is None))
        key = None if self.seed is None else jr.key(self.seed)
        logits, coordinates = (np.empty((counts.n_cells, n_classes), np.float32) for _ in range(2))
        spread, distances = np.empty(counts.n_cells, np.float32), np.empty(counts.n_cells, np.float32)
        is_empty = np.zeros(counts.n_cells, bool)

        def groups() -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
            for start, stop, block in counts.blocks(shape.n_cells):
                aligned = gene_map.of(block)
                is_empty[start:stop] = ~gene_map.has_counts(aligned)
                yield aligned, np.arange(start, stop)

        slabs = read_ahead(dense_slabs(groups(), shape))
        bar = tqdm(total=counts.n_cells, desc="Annotating", unit="cells", unit_scale=True, disable=silent)
        with closing(slabs), bar:
            for x, cells in slabs:
                n_steps = np.int32(-(-len(cells) // self.batch_size))
                placed = self.devices.place_batches(x)
                of_slab = None if key is None else jr.fold_in(key, cells[0])
                found = _answers(module, placed, n_steps, n_classes, self.precision, of_slab, self.geometry)
                for target, values in zip(
                    (logits, spread, coordinates, distances), map(np.asarray, found), strict=True
                ):
                    target[cells] = values[:, : self.batch_size].reshape(-1, *target.shape[1:])[: len(cells)]
                bar.update(len(cells))
        return Answer(logits, spread, coordinates, distances, is_empty)


@eqx.filter_jit
def _answers(
    module: Any,
    x: Num[Array, "steps width genes"],
    n_steps: Int[Array | np.generic, ""],
    n_classes: int,
    precision: str,
    key: PRNGKeyArray | None,
    geometry: Geometry | None,
) -> list[Float[Array, "steps width ..."]]:
    """Logits, the standard deviation over members of the probability of the likeliest class, places and distances."""

    def step(nth: Array, found: list[Array]) -> list[Array]:
        def of_batch(batch: Array) -> tuple[Array, Array]:
            of_step = None if key is None else jr.fold_in(key, nth)
            of_members = member_logits_of(module, batch, of_step)
            if len(of_members) == 1:
                return of_members[0], jnp.zeros(len(batch))
            log_probabilities = jax.nn.log_softmax(of_members, axis=-1)
            logits = jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(of_members))
            likeliest = logits.argmax(axis=-1)[None, :, None]
            return logits, jnp.exp(jnp.take_along_axis(log_probabilities, likeliest, axis=-1)[..., 0]).std(axis=0)

        logits, spread = in_precision(of_batch, precision)(x[nth].astype(jnp.float32))
        coordinates = jnp.zeros_like(logits) if geometry is None else geometry.coordinates(logits)
        distances = jnp.zeros_like(spread) if geometry is None else geometry.distances(coordinates)
        of_step = logits, spread, coordinates, distances
        return [whole.at[nth].set(part) for whole, part in zip(found, of_step, strict=True)]

    of_cells = x.shape[:2]
    shapes = (*of_cells, n_classes), of_cells, (*of_cells, n_classes), of_cells
    return jax.lax.fori_loop(0, n_steps, step, [jnp.zeros(shape) for shape in shapes])
