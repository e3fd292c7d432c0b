"""Making a dataset of labelled counts: which cells are held out, then which genes are kept, then the counts."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from scipy import sparse
from tqdm.auto import tqdm

from ginseng.data import store
from ginseng.data.annotation import Genes, require_list
from ginseng.data.outputs import require_key
from ginseng.data.sampling import draw_split
from ginseng.data.sources import WAYS_TO_CHOOSE, Source, Sources
from ginseng.data.splits import write_split
from ginseng.utils.files import is_url, local_path, replacing, require_writable_place
from ginseng.utils.messages import unknown_name, warn
from ginseng.utils.values import WrongValue, require_flags, require_integer

_WAYS_TO_SPLIT = ("fraction", "seed", "stratify_group", "stratify_label", "keep_rare")
_OF_ZARR = ("zarr.json", ".zgroup", ".zattrs")


def create_dataset(
    path: str | Path,
    adata: Source | Iterable[Source],
    label_key: str,
    layer: str | None,
    genes: Genes,
    group_key: str | None,
    chunk_size: int,
    overwrite: bool,
    *,
    missing_labels: str,
    mapping: Any,
    unlabeled: str | Sequence[str],
    further: Sequence[str],
    gene_key: str | None,
    select: str,
    split: Mapping[str, Any] | None,
    other_genes: bool,
    normalize: bool,
    fix: bool,
    silent: bool,
) -> None:
    """Write a dataset at `path`, see `GinsengDataset.create`."""
    require_flags(overwrite=overwrite, other_genes=other_genes, normalize=normalize, fix=fix, silent=silent)
    adata = [adata] if isinstance(adata, str | Path | AnnData) else list(adata)
    require_apart(path, adata)
    path = free_place(path, overwrite)
    require_integer("chunk_size", chunk_size, 1)
    require_list(further)
    for key in (label_key, *([] if group_key is None else [group_key]), *further):
        require_key(path, ".zarr", "obs", str(key))
    if select not in WAYS_TO_CHOOSE:
        raise WrongValue(f"`select` must be one of {', '.join(WAYS_TO_CHOOSE)}, but got {select!r}.")
    how: dict[str, Any] = {"mapping": mapping, "unlabeled": unlabeled, "further": further, "gene_key": gene_key}
    how |= {"normalize": normalize, "fix": fix}
    with Sources(adata, label_key, group_key, layer, genes, missing_labels, **how) as sources:
        if len(sources.labels.categories) == 1:
            warn(
                f"All cells have the same label, '{sources.labels.categories[0]}': the dataset serves to fine-tune a "
                "classifier, not to train one from scratch."
            )
        codes = {"labels": sources.labels.codes}
        obs = {label_key: sources.labels}
        if group_key is not None and sources.groups is not None:
            obs[group_key], codes["groups"] = sources.groups, sources.groups.codes
        obs |= sources.further
        parts = None if split is None else draw_split(codes["labels"], codes.get("groups"), **_checked(split))
        is_chosen = sources.keep_best(select, chunk_size, None if parts is None else parts[0], silent=silent)
        if other_genes:
            sources.add_others()
        attributes = {
            "label_names": list(sources.labels.categories),
            "group_names": None if sources.groups is None else list(sources.groups.categories),
            "gene_names": sources.gene_names,
            "second_names": sources.second_names,
            "n_cells": len(sources.labels),
            "n_genes": len(sources.gene_names),
            "layer_used": sources.findings[0].used.removeprefix("layer "),
            "preflight": [found.as_dict() for found in sources.findings],
            **({"genes_chosen_by": select} if is_chosen else {}),
        }
        with (
            replacing(path) as fresh,
            tqdm(total=sources.n_read, desc="Writing", unit="cells", unit_scale=True, disable=silent) as bar,
        ):
            n_empty = 0

            def blocks() -> Iterator[sparse.csr_matrix]:
                nonlocal n_empty
                for n_read, block in sources.blocks(chunk_size):
                    n_empty += int((np.diff(block.indptr) == 0).sum())
                    yield block
                    bar.update(n_read)

            table = pd.DataFrame(obs, index=sources.cell_names.astype(object).rename(None))  # not as a column may be
            store.write_store(fresh, blocks(), table, sources.gene_names, attributes, codes, chunk_size)
            if n_empty == len(table):
                raise ValueError("No gene that is kept has a count in any cell: there is nothing to train on.")
            if n_empty:
                warn(
                    f"{n_empty:,} of {len(table):,} cells have no count of the genes that are kept, which tells "
                    "nothing of their type: leave them out."
                )
            if parts is not None:
                write_split(zarr.open_group(fresh, mode="r+", use_consolidated=False), *parts)


def free_place(path: str | Path, overwrite: bool = True) -> Path:
    """Where a dataset may be written: nothing else is ever replaced."""
    if is_url(path):
        raise ValueError(f"A dataset is created on this machine, not at {path}: create it here and copy it there.")
    path = local_path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it.")
    if path.exists() and not store.is_store(path):
        raise FileExistsError(f"{path} exists and is not a ginseng dataset; it is not replaced. Name another path.")
    require_writable_place(path)
    return path


def require_apart(path: str | Path, inputs: Iterable[Any]) -> None:
    """Raise a ValueError if a dataset would be written over one of its inputs, into it, or around it."""
    if is_url(path):
        return
    out = Path(os.path.realpath(local_path(path)))
    for source in inputs:
        named = source.filename if isinstance(source, AnnData) else source
        if not isinstance(named, str | Path) or is_url(named):
            continue
        place = Path(os.path.realpath(local_path(named)))
        is_same = place == out or (out.exists() and place.exists() and out.samefile(place))
        is_inside = out.is_relative_to(place) and any((place / name).exists() for name in _OF_ZARR)
        if is_same or is_inside or place.is_relative_to(out):
            raise ValueError(
                f"{path} is the input {named}, holds it, or lies in it: the dataset would replace what it is made of, "
                "whatever `overwrite` says. Name another path."
            )


def _checked(split: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(split, Mapping):
        raise ValueError(
            f"`split` must be a dict of what make_split takes, such as {{'fraction': 0.1}}, but got {split!r}."
        )
    for name in split:
        if name not in _WAYS_TO_SPLIT:
            raise unknown_name("option of `split`", name, "what make_split takes", _WAYS_TO_SPLIT)
    return split
