"""Batches for several steps at a time, of one shape, on the devices."""

import itertools
from collections.abc import Iterator

import numpy as np

from ginseng.train.devices import Devices
from ginseng.train.step import Slab

_STEPS_PER_CALL = 16  # few enough that a progress bar moves
_BYTES_PER_CALL = 2**24


class Slabs:
    """Cuts a stream of batches into slabs.

    Parameters
    ----------
    devices : Devices
        Where the slabs go.
    batch_size : int
        Cells per step, over all processes.
    n_genes : int
        Counts per cell.
    dtype : numpy.dtype
        Type in which the counts travel.

    Attributes
    ----------
    n_cells : int
        Cells of a full slab, over all processes.
    """

    def __init__(self, devices: Devices, batch_size: int, n_genes: int, dtype: np.dtype):
        self._devices, self._batch_size = devices, batch_size
        width = devices.padded(batch_size)
        n_steps = max(1, min(_STEPS_PER_CALL, _BYTES_PER_CALL // (width * n_genes * dtype.itemsize)))
        self._shape, self._dtype = (n_steps, width, n_genes), dtype
        self.n_cells = n_steps * batch_size

    def cut(
        self,
        batches: Iterator[tuple[np.ndarray, np.ndarray]],
        n_cells: int,
        rates: np.ndarray | None = None,
        n_skipped: int = 0,
    ) -> Iterator[tuple[Slab, int]]:
        """Give slabs, each with the number of its cells over all processes.

        Parameters
        ----------
        batches : iterator
            Counts and classes: all of a batch, or the share of this process.
        n_cells : int
            Cells of the batches over all processes.
        rates : numpy.ndarray, optional
            Learning rate of each step.
        n_skipped : int
            Slabs to leave out.
        """
        rates = np.zeros(-(-n_cells // self._batch_size), np.float32) if rates is None else rates
        n_steps = self._shape[0]
        for nth, first in enumerate(range(0, n_cells, self.n_cells)):
            x, y, mask = (np.zeros(self._shape[:n], t) for n, t in ((3, self._dtype), (2, np.int32), (2, bool)))
            for step, (counts, classes) in enumerate(itertools.islice(batches, n_steps)):
                filled = step, slice(len(classes))
                x[filled], y[filled], mask[filled] = counts, classes, True
            if nth >= n_skipped:
                here = rates[nth * n_steps : (nth + 1) * n_steps]
                padded = np.pad(here, (0, n_steps - len(here)))
                placed = [self._devices.place_batches(array) for array in (x, y, mask)]
                yield (
                    Slab(placed[0], placed[1], placed[2], padded, np.int32(len(here))),
                    min(self.n_cells, n_cells - first),
                )
