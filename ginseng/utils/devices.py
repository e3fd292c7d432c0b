"""The devices that train together: each takes an equal share of every batch, and all hold the same weights."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ginseng.utils.values import require_integer, require_kind

_AXIS = "cells"
_is_forked = False  # from a process in which JAX runs


def _after_fork() -> None:
    global _is_forked
    bridge = sys.modules.get("jax._src.xla_bridge")  # JAX has no public name for it
    _is_forked = getattr(bridge, "backends_are_initialized", bool)()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)


def require_not_forked() -> None:
    """Raise a RuntimeError in a process that was forked from one that uses JAX, whose threads it lacks: it would hang.

    Examples
    --------
    >>> require_not_forked()
    """
    if _is_forked:
        raise RuntimeError(
            "This process was forked from one that uses JAX, in which JAX hangs: use multiprocessing's 'spawn', as in "
            "multiprocessing.get_context('spawn').Pool(), or fork before JAX is used."
        )


class Devices:
    """Devices of this process, and of the others if `jax.distributed` has been initialised.

    Parameters
    ----------
    devices : int or sequence of jax.Device, optional
        Which to use: so many of those that JAX sees, or these. By default all.
    alone : bool
        Use devices of this process only: each process works for itself.

    Attributes
    ----------
    n_devices : int
        Of all processes.
    share : tuple of int
        Index of this process, and number of processes.
    replicated : NamedSharding
        Of arrays that all devices hold.

    Raises
    ------
    ValueError
        If there are not so many devices, or they are those of other processes than they should be.
    """

    def __init__(self, devices: int | Sequence[Any] | None = None, *, alone: bool = False):
        require_not_forked()
        seen = jax.local_devices() if alone else jax.devices()
        if devices is not None and not isinstance(devices, Sequence):
            require_integer("devices", devices, 1)
            if devices > len(seen):
                raise ValueError(f"`devices` may be at most {len(seen)}, as many as JAX sees, but got {devices}.")
            devices = seen[:devices]
        chosen = seen if devices is None else list(devices)
        for device in chosen:
            require_kind("devices", device, jax.Device)
        if not chosen:
            raise ValueError("`devices` is empty; leave it out to use all.")
        self.n_devices = len(chosen)
        self._mesh = Mesh(np.asarray(chosen), (_AXIS,))
        self._n_local = sum(device.process_index == jax.process_index() for device in chosen)
        processes = {device.process_index for device in chosen}
        if alone and processes != {jax.process_index()}:
            raise ValueError("`devices` must be those of this process, such as jax.local_devices().")
        if not alone and len(processes) != jax.process_count():
            raise ValueError(f"`devices` are those of {len(processes)} of the {jax.process_count()} processes.")
        self.share = (0, 1) if alone else (jax.process_index(), jax.process_count())
        self.replicated = NamedSharding(self._mesh, PartitionSpec())
        self._batches = NamedSharding(self._mesh, PartitionSpec(None, _AXIS))

    def require_equal_shares(self, batch_size: int) -> None:
        """Raise a ValueError unless each process has as many cells of a batch."""
        if batch_size % self.share[1]:
            raise ValueError(f"`batch_size` must be a multiple of the {self.share[1]} processes, but got {batch_size}.")

    def least(self, number: int) -> int:
        """Give the smallest of the numbers of all processes."""
        if self.share[1] == 1:
            return number
        halves = np.array(divmod(number, 2**31), np.int32)  # JAX has no 64-bit integers by default
        return min(int(high) * 2**31 + int(low) for high, low in multihost_utils.process_allgather(halves))

    def padded(self, batch_size: int) -> int:
        """Cells of a batch in this process, up to a multiple of its devices."""
        per_process = batch_size // self.share[1]
        return -(-per_process // self._n_local) * self._n_local

    def place_batches(self, array: np.ndarray) -> jax.Array:
        """Distribute an array of shape ``(steps, cells, ...)`` by cells, of which each process has its share."""
        return jax.make_array_from_process_local_data(self._batches, array)

    def replicate(self, tree: PyTree) -> PyTree:
        """Put arrays, the same in all processes, on all devices."""
        if self.share[1] == 1:
            return _of_arrays(lambda leaf: jax.device_put(leaf, self.replicated), tree)
        place = functools.partial(jax.make_array_from_process_local_data, self.replicated)
        return _of_arrays(lambda leaf: place(np.asarray(leaf)), tree)

    def local(self, tree: PyTree) -> PyTree:
        """Give arrays that all devices hold to this process alone; as they are where there is no other."""
        return tree if self.share[1] == 1 else _of_arrays(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def _of_arrays(function: Callable[[jax.Array], jax.Array], tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: function(leaf) if eqx.is_array(leaf) else leaf, tree)
