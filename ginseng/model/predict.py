"""Annotating new cells: gene alignment, batched inference, results in AnnData."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Array, Float

from ginseng.data.matching import matched_genes
from ginseng.data.models import load_model
from ginseng.data.preflight import preflight
from ginseng.data.readers import opened_counts, read_adata
from ginseng.model.annotator import Annotator
from ginseng.model.ensemble import n_members_of
from ginseng.model.forward import Forward
from ginseng.model.judgement import COLUMNS, IN_PROBABILITIES, NOVEL, Judgement, require_key
from ginseng.model.state import GinsengClassifierState
from ginseng.utils.counts import Counts, copy_of, quiet_about_views, require_writable
from ginseng.utils.devices import Devices
from ginseng.utils.genes import GeneMap
from ginseng.utils.messages import warn
from ginseng.utils.names import GeneNames, GeneTable, read_gene_table
from ginseng.utils.values import require_flag, require_integer

_MOST_NOVEL = 1 / 3  # of the cells, before it is the data set that is told to differ


def _gene_map(var: Any, genes: np.ndarray, gene_key: str | None) -> GeneMap:
    """Match the genes of `var` to those of a model, of which one is enough."""
    matched = matched_genes(var, GeneNames(genes), gene_key, 0.0)
    if matched.problems:
        raise ValueError(matched.problems[0])
    return matched.genes


def _get_gene_indices(adata: AnnData, gene_names: np.ndarray, gene_key: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Map the genes of a model to indices within an AnnData object.

    Parameters
    ----------
    adata : AnnData
        The single-cell data.
    gene_names : numpy.ndarray
        Gene names expected by the model, in its order.
    gene_key : str or None
        Column of ``adata.var`` with gene names; None for ``adata.var_names``.

    Returns
    -------
    available_idx : numpy.ndarray
        Indices of the genes of `adata` that the model knows, in the order of the model. A gene that `adata` has more
        than once is there more than once.
    out_positions : numpy.ndarray
        For each of them, its position in the model's input.

    Raises
    ------
    ValueError
        If the column does not exist or there is no gene in common.

    Examples
    --------
    >>> adata = AnnData(np.zeros((1, 3)), var=pd.DataFrame(index=["A", "B", "C"]))
    >>> _get_gene_indices(adata, np.array(["C", "X", "A"]), None)
    (array([2, 0]), array([0, 2]))
    """
    positions = _gene_map(adata.var, gene_names, gene_key).positions
    available_idx = np.flatnonzero(positions >= 0)
    available_idx = available_idx[np.argsort(positions[available_idx], kind="stable")]
    return available_idx, positions[available_idx]


def annotate_iter(
    adata: AnnData,
    gene_names: np.ndarray,
    gene_key: str | None = None,
    layer: str | None = None,
    batch_size: int = 512,
) -> Iterator[tuple[Float[Array, "batch genes"], int, int]]:
    """Iterate over batches of cells with the genes of a model, in its order.

    Genes that the data lack are zero; a gene that they have more than once is summed.

    Parameters
    ----------
    adata : AnnData
        The single-cell data, in any storage: dense, CSR, CSC, backed, a view, Dask.
    gene_names : numpy.ndarray
        Gene names of the model, in its order.
    gene_key : str or None
        Column of ``adata.var`` to match genes by; None for ``adata.var_names``.
    layer : str or None
        Key in ``adata.layers``, or ``"raw"``; None for ``adata.X``.
    batch_size : int
        Number of cells per batch.

    Yields
    ------
    batch_tensor : jax.Array
        Counts of shape ``(batch_size, n_model_genes)``, float32; the last batch may be shorter.
    start, end : int
        Range of the cells in `adata`.

    Raises
    ------
    ValueError
        If a name does not exist, `batch_size` is below 1, there is no gene in common, or a value is not finite.

    Examples
    --------
    >>> adata = AnnData(np.eye(3, dtype="float32"), var=pd.DataFrame(index=["A", "B", "C"]))
    >>> [(batch.shape, start, end) for batch, start, end in annotate_iter(adata, np.array(["C", "X"]), batch_size=2)]
    [((2, 2), 0, 2), ((1, 2), 2, 3)]
    """
    require_integer("batch_size", batch_size, 1)
    counts = Counts(adata, layer)
    gene_map = _gene_map(counts.var, gene_names, gene_key)
    gene_map.warn_of_differences()
    for start, end, block in counts.blocks(batch_size):
        yield jnp.asarray(gene_map.of(block).toarray(), jnp.float32), start, end


def classify(
    model_state: GinsengClassifierState | Annotator | str | Path,
    adata: AnnData | str | Path,
    gene_key: str | None = None,
    layer: str | None = None,
    backed: bool = True,
    normalize: bool | None = None,
    target_sum: float | None = None,
    randomness: bool = False,
    batch_size: int = 256,
    copy: bool = False,
    store_probs: bool = False,
    return_table: bool = False,
    seed: int = 123,
    silent: bool = False,
    *,
    min_overlap: float | None = None,
    gene_map: GeneTable | None = None,
    ignore_case: bool = False,
    fix: bool = False,
    target_error: float | None = None,
    class_error: float | None = None,
    novel_error: float = 0.05,
    calibrate: bool = True,
    key_added: str = "ginseng",
    precision: str = "float32",
    devices: int | Sequence[Any] | None = None,
) -> AnnData | pd.DataFrame | None:
    """Annotate cells with a trained classifier.

    Cells without a count of the model's genes get no type, and a confidence of 0. Genes that the data lack take their
    mean over the training cells if the model knows it, and count as zero if not, as in models of ginseng 0.2.1.

    Genes are matched by their names, or, where that finds a tenth more of the model's, by the other names that the data
    or the model have for them (Ensembl identifiers and symbols, see `ginseng.utils.names.second_names`), with a
    warning.

    Parameters
    ----------
    model_state : GinsengClassifierState, Annotator, str or Path
        A loaded state, the path of a saved one, or any module with the names of its genes and cell types.
    adata : AnnData, str or Path
        Raw counts, or the path or URL of such (.h5ad, 10x .h5, 10x directory, .zarr).
    gene_key : str or None
        Column of ``var`` with gene names, and no other; None for the index.
    layer : str or None
        Key in ``adata.layers`` with the counts, or ``"raw"``; None for ``adata.X``.
    backed : bool
        Where `adata` is the path of an .h5ad file (or, with `return_table`, of a .zarr store), leave the counts on disk
        and read them in blocks.
    normalize : bool or None
        Override the normalisation setting of the model.
    target_sum : float or None
        Override the target sum of the model.
    randomness : bool
        Leave dropout on.
    batch_size : int
        Number of cells per forward pass.
    copy : bool
        Return an annotated copy in memory and leave `adata` as it is.
    store_probs : bool
        Store the probability of every cell type in ``obsm["ginseng_probs"]``.
    return_table : bool
        Return a table and leave `adata` as it is.
    seed : int
        Seed of the dropout masks where `randomness` is True.
    silent : bool
        No progress bar and no warnings.
    min_overlap : float, optional
        Share of the model's genes, in [0, 1], that the data must have; with fewer, or none, they are refused. By
        default 1 %, but at least five genes, or all of a model that has fewer.
    gene_map : str, Path, pandas.DataFrame or mapping, optional
        Synonyms or orthologs: a .csv or .tsv file, or a table, of two columns, the name in the data and the name in the
        model. Names that it does not have stay as they are. Genes of the data that become the same are summed; one with
        several names in the model counts as the first of them that the model has.
    ignore_case : bool
        Match what is not found as it is written without regard to case, where the model has one such gene.
    fix : bool
        Put right what can be, with a warning that says what: take the layer, or raw, that holds raw counts where the
        one that was asked for does not; else undo logarithms and square roots (of which the network's own normalisation
        makes the same input as of the counts); match genes by another column, or without regard to case, where that
        finds clearly more. By default such data are refused.
    precision : {"float32", "bfloat16"}
        "bfloat16" rounds the factors of matrix products, which is faster where the hardware has such products.
    devices : int or sequence of jax.Device, optional
        Devices of this process that share each batch: so many, or these; by default all. Under `jax.distributed` each
        process annotates the data that it is given, on its own.

    Returns
    -------
    AnnData, pandas.DataFrame or None
        With `return_table`, a table indexed by ``obs_names`` with the columns ``ginseng_cell_type``,
        ``ginseng_confidence`` (the probability of that type) and one column of probabilities per cell type. Else the
        annotated AnnData if `copy` is True or `adata` was a path, and None if `adata` was annotated in place. AnnData
        gets ``obs["ginseng_cell_type"]`` and ``obs["ginseng_confidence"]``. A classifier of several members adds
        ``ginseng_spread``, the standard deviation of their probabilities of that type. What was found of the data is in
        ``uns[key_added]["preflight"]``.

    Raises
    ------
    ValueError
        If a file, layer, column or value is not usable, the counts are in the wrong form, or too few genes are known;
        the message says what to do. `adata` is then as it was.

    Examples
    --------
    >>> import ginseng
    >>> table = ginseng.classify("model.h5", "new_cells.h5ad", return_table=True)  # doctest: +SKIP
    """
    with warnings.catch_warnings(), ExitStack() as files:
        if silent:
            warnings.simplefilter("ignore")
        annotator = _annotator(model_state).normalizing(normalize, target_sum)
        if not isinstance(adata, AnnData | str | Path):
            raise ValueError(f"`adata` must be an AnnData or a path, but got a {type(adata).__name__}.")
        require_key(key_added)
        require_flag("calibrate", calibrate)
        calibration = annotator.calibration if calibrate else None
        is_possible = np.ones(len(annotator.labels), bool)
        judgement = Judgement(annotator.labels, is_possible, calibration, target_error, class_error, novel_error)
        if isinstance(adata, AnnData):
            data = adata
        else:  # a table needs the counts only while they are read
            data = files.enter_context(opened_counts(adata)) if return_table and backed else read_adata(adata, backed)
        if not (copy or return_table):
            require_writable(data)
        counts, genes, found = preflight(
            annotator,
            data,
            gene_key,
            layer,
            min_overlap=min_overlap,
            gene_map=None if gene_map is None else read_gene_table(gene_map),
            ignore_case=ignore_case,
            fix=fix,
            file=None if isinstance(adata, AnnData) else adata,
        )
        found.require()
        zeros = annotator.background is None
        genes.warn_of_differences("count as zero" if zeros else "take their mean over the training cells")
        found.warn()
        annotator = annotator.lacking(genes.is_lacking)
        forward = Forward(
            annotator.module,
            batch_size,
            precision,
            Devices(devices, alone=True),
            seed if randomness else None,
            None if calibration is None else calibration.geometry,
        )
        answer = forward(counts, genes, len(annotator.labels), silent)
        _require_finite(answer.logits, data.obs_names, annotator.takes_counts)
        is_empty = answer.is_empty
        if is_empty.any():
            warn(f"{is_empty.sum():,} cells have no count of the model's genes and get no type.")

        columns, probabilities = judgement(answer)
        if n_members_of(annotator.module) > 1:
            columns["spread"] = np.where(is_empty, np.float32(0), answer.spread)
        if "status" in columns:
            _warn_of_another_kind(columns["status"])

    if return_table:
        table = pd.DataFrame(probabilities, columns=pd.Index(annotator.labels), index=data.obs_names, copy=False)
        told = [name for name in columns if name not in IN_PROBABILITIES]
        for place, name in enumerate(told):
            table.insert(place, f"{key_added}_{name}", columns[name])
        return table
    data = copy_of(data) if copy else data
    named = {f"{key_added}_{name}": values for name, values in columns.items()}
    with quiet_about_views():
        stale = [name for name in (f"{key_added}_{column}" for column in COLUMNS) if name not in named]
        obs: Any = data.obs
        data.obs = obs.drop(columns=stale, errors="ignore")  # of another model
        for name, values in named.items():
            data.obs[name] = values
        data.uns[key_added] = {"preflight": found.as_dict()}
        if store_probs:
            data.obsm[f"{key_added}_probs"] = probabilities
    return data if copy or not isinstance(adata, AnnData) else None


def _warn_of_another_kind(status: pd.Categorical) -> None:
    """Warn if so many cells look novel that the data, rather than their cell types, must be of another kind."""
    share = float(np.mean(np.asarray(status) == NOVEL))
    if share > _MOST_NOVEL:
        warn(
            f"{share:.0%} of the cells are further from the training cells than held-out ones: this data set differs "
            "from the training data (another protocol, tissue, condition or species, or a wrong layer?). Confidence "
            "and status are less reliable here, and novel cells need not be new types."
        )


def _annotator(given: GinsengClassifierState | Annotator | str | Path) -> Annotator:
    if isinstance(given, Annotator):
        return given
    if not isinstance(given, GinsengClassifierState | str | Path):
        raise ValueError(
            f"`model_state` must be a state, an Annotator or a path, but got a {type(given).__name__}: a module is "
            "named by Annotator(module, genes, labels)."
        )
    if str(given).endswith(".eqx"):
        raise ValueError(f"{given} is of save_annotator: pass what load_annotator({str(given)!r}, like=...) returns.")
    return Annotator.of(given if isinstance(given, GinsengClassifierState) else load_model(given))


def _require_finite(logits: np.ndarray, cell_names: pd.Index, takes_counts: bool) -> None:
    is_finite = np.isfinite(logits).all(axis=1)
    if not is_finite.all():
        raise ValueError(
            f"The network's answer is not finite for {(~is_finite).sum():,} of {is_finite.size:,} cells, such as "
            f"'{cell_names[np.argmin(is_finite)]}': values too large for it? It takes "
            f"{'raw counts' if takes_counts else 'normalised values'}."
        )
