"""The split of a dataset, stored with it: replaced in one step, whatever other processes do to it meanwhile."""

import errno
import time
import uuid
from typing import Any

import numpy as np
import zarr

from ginseng.data.store import require_unchanged
from ginseng.data.typed import folder_of, values_of
from ginseng.utils.digest import digest, require_digest
from ginseng.utils.files import replacing
from ginseng.utils.messages import in_short, warn

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_ATTEMPTS = 200  # at a split that other processes are replacing
_MOMENT = 0.02  # seconds between two of them


def write_split(root: zarr.Group, train: np.ndarray, test: np.ndarray) -> None:
    """Store the cells of the two parts of a split, in place of an earlier one.

    On this machine the split is written beside the earlier one and renamed: other processes find either the one or the
    other whole (see `read_split`), and of several that write at once one wins.
    """
    require_unchanged(root)
    parts = {"train": train.astype(np.int32), "test": test.astype(np.int32)}
    folder = folder_of(root)
    if folder is None:
        _fill(root.create_group("split", overwrite=True), parts)
        return
    with replacing(folder / "split") as fresh:
        _fill(zarr.open_group(fresh, mode="w", zarr_format=root.metadata.zarr_format), parts)


def _fill(group: zarr.Group, parts: dict[str, np.ndarray]) -> None:
    group.attrs.update({"id": uuid.uuid4().hex, "digest": digest(*parts.values())})
    for part, cells in parts.items():
        group.create_array(part, data=cells)


def keep_split(root: zarr.Group, train: np.ndarray, test: np.ndarray) -> None:
    """Store a split, or warn where nothing can be written."""
    try:
        if not root.read_only:
            write_split(root, train, test)
            return
    except OSError as error:
        if error.errno not in _DENIED:
            raise
    warn(f"{root.store} cannot be written to: the split holds for this object only.")


def warn_of_genes(root: zarr.Group, test: np.ndarray, before: np.ndarray | None) -> None:
    """Warn where cells are held out by whose labels, unlike those `before`, genes were chosen."""
    is_new = before is None or not np.array_equal(np.sort(test), np.sort(before))
    if is_new and test.size and root.attrs.get("genes_chosen_by") == "markers":
        warn(
            f"The genes of {root.store} were chosen by the labels of other cells than those now trained on: the "
            "held-out figures will flatter. Split first: GinsengDataset.create(..., split={'fraction': 0.1})."
        )


def read_split(root: zarr.Group, n_cells: int) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Read the cells of the two parts of the split, or None twice if there is no whole one.

    If the split is being replaced by another process meanwhile, it is read again.
    """
    n_undisturbed = 0
    for _ in range(_ATTEMPTS):
        before, problem, parts = _split_id(root), None, None
        try:
            parts = _read_parts(root, n_cells)
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            problem = error  # perhaps an array of one split was read with the chunk of another
        if _split_id(root) == before:
            if parts is not None:
                return parts
            n_undisturbed += 1
            if n_undisturbed == 2:  # not just between two renames
                if problem is not None:
                    raise ValueError(
                        f"The split of {root.store} is damaged: delete its folder, split, and make another "
                        f"({in_short(problem)})."
                    ) from problem
                return None, None
        time.sleep(_MOMENT)
    raise RuntimeError(f"The split of {root.store} is being replaced by other processes again and again.")


def _read_parts(root: zarr.Group, n_cells: int) -> tuple[np.ndarray, np.ndarray] | None:
    if "split" not in root:
        folder = folder_of(root)
        if folder is not None and any((folder / "split").glob("*")):
            raise ValueError("its metadata have gone")
        return None
    train, test = values_of(root, "split/train"), values_of(root, "split/test")
    attributes: dict[str, Any] = dict(root["split"].attrs)
    require_digest(attributes.get("digest"), digest(train, test), "its cells")
    cells = np.concatenate([train, test])
    if cells.dtype.kind not in "iu" or cells.ndim != 1:
        raise ValueError(f"it holds {cells.dtype} of {cells.ndim} dimensions")
    if len(cells) and (cells.min() < 0 or cells.max() >= n_cells):
        raise ValueError(f"it names cells from {cells.min()} to {cells.max()}, of {n_cells:,}")
    if len(np.unique(cells)) != len(cells):
        raise ValueError("it names a cell twice")
    return train, test


def _split_id(root: zarr.Group) -> Any:
    try:
        return root["split"].attrs.get("id")
    except (KeyError, OSError, TypeError, ValueError):
        return None
