"""Annotating new cells: gene alignment, batched inference, results in AnnData."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Array, Float

import ginseng
from ginseng.data.matching import matched_genes
from ginseng.data.models import annotator_of
from ginseng.data.preflight import preflight
from ginseng.data.readers import opened_counts, read_adata
from ginseng.model.annotator import Annotator
from ginseng.model.consensus import clusters_in, is_to_be_made, require_compat, require_way
from ginseng.model.ensemble import n_members_of
from ginseng.model.forward import Forward
from ginseng.model.judgement import Judgement, require_key
from ginseng.model.results import Results, recorded, require_other_names
from ginseng.model.state import GinsengClassifierState
from ginseng.utils.counts import Counts, copy_of, require_writable
from ginseng.utils.devices import Devices
from ginseng.utils.genes import GeneMap, kinds_of_others
from ginseng.utils.messages import warn
from ginseng.utils.names import GeneNames, GeneTable, read_gene_table
from ginseng.utils.values import require_flags, require_integer

_RECORDED = (
    *("layer", "gene_key", "normalize", "target_sum", "min_overlap", "gene_map", "ignore_case", "fix", "only"),
    *("exclude", "hierarchy", "target_error", "class_error", "novel_error", "calibrate", "over", "consensus", "compat"),
    "precision",
)
_MOST_DIMENSIONS = 64
_VERSIONED = ("ginseng-eqx", "jax", "equinox", "anndata", "numpy")


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
    available_idx = np.flatnonzero((positions >= 0) & (kinds_of_others(adata.var) == ""))
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
    if counts.left_out:
        warn(counts.left_out)
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
    only: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    hierarchy: Any = None,
    target_error: float | None = None,
    class_error: float | None = None,
    novel_error: float = 0.05,
    calibrate: bool = True,
    over: Any = None,
    consensus: str = "soft",
    key_added: str = "ginseng",
    compat: str | None = None,
    precision: str = "float32",
    devices: int | Sequence[Any] | None = None,
    part_of: AnnData | None = None,
) -> AnnData | pd.DataFrame | None:
    """Annotate cells with a trained classifier.

    Cells without a count of the model's genes get no type, and a confidence of 0. Genes that the data lack take their
    mean over the training cells if the model knows it, and count as zero if not, as in models of ginseng 0.2.1.

    Features that ``var["feature_types"]`` does not call genes (antibodies, peaks) are left out, with a warning.

    Genes are matched by their names, without versions of identifiers and prefixes of genomes, or, where that finds a
    tenth more of the model's, by the other names that the data or the model have for them (Ensembl identifiers and
    symbols, see `ginseng.utils.names.second_names`), with a warning.

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
        default 1 %, but at least five genes, or all of a model that has fewer; and 5 %, as other names find fewer by
        chance, unless the genes found carry 5 % of the model's weight, or are 2 % of the data's, as of a panel.
    gene_map : str, Path, pandas.DataFrame or mapping, optional
        Synonyms or orthologs: a .csv or .tsv file, or a table, of two columns, the name in the data and the name in the
        model. Names that it does not have stay as they are. Genes of the data that become the same are summed; one with
        several names in the model counts as the first of them that the model has.
    ignore_case : bool
        Match what is not found as it is written without regard to case, where the model has one such gene.
    fix : bool
        Put right what can be, with a warning that says what: take the layer, or raw, that holds raw counts, or clearly
        more of the model's genes, where the one that was asked for does not; undo logarithms and square roots (of which
        the network's own normalisation makes the same input as of the counts); match genes by another column, without
        regard to case, without what is written around their names (``CD3D_ENSG00000167286``), or by `gene_map` with its
        columns swapped, where that finds clearly more. By default such data are refused, or the better matrix is named.
    only, exclude : str or sequence of str, optional
        Cell types (or types above them in `hierarchy`) that can, or cannot, be in the data: probabilities are
        renormalised over those that can.
    hierarchy : str, Path, pandas.DataFrame or mapping, optional
        Types above the model's: a .csv or .tsv file, table or dictionary of each type and its parent, or an ontology
        (.obo). Unsure cells are then named by a wider type, too, in ``ginseng_parent``.
    target_error : float, optional
        Cells are "assigned" from the confidence on above which surely (Clopper-Pearson, 95 %) fewer of the cells that
        the model was not trained on are wrong, and "ambiguous" below it; by default 0.05. It is a promise about all
        cells that are assigned together.
    class_error : float, optional
        In its place, a promise for each type: the types that a cell may be leave out the true one for at most so many
        of the cells of any type, and cells for which several remain are "ambiguous". Types that are hard to tell then
        keep many cells ambiguous.
    novel_error : float
        Cells are "novel" if they are as far from the training cells as this share of the held-out cells.
    calibrate : bool
        Whether the model's calibration is used: without it confidence is the network's own, as of ginseng 0.2.1, and
        there is no status and no novelty.
    over : str or array-like, optional
        Clusters to agree over: a column of ``obs`` such as "leiden", the cluster of each cell, or "auto" to make small
        ones (with the extra `cluster`).
    consensus : {"soft", "majority"}
        Average the probabilities of a cell with the mean of its cluster, which keeps rare types, or call all cells of a
        cluster by its most frequent type, which does not.
    key_added : str
        Beginning of the names of columns, and key in ``uns``.
    compat : {"celltypist"}, optional
        Add columns as CellTypist calls them: ``predicted_labels``, ``conf_score``, and with `over` ``over_clustering``
        and ``majority_voting``.
    precision : {"float32", "bfloat16"}
        "bfloat16" rounds the factors of matrix products, which is faster where the hardware has such products.
    devices : int or sequence of jax.Device, optional
        Devices of this process that share each batch: so many, or these; by default all. Under `jax.distributed` each
        process annotates the data that it is given, on its own.
    part_of : AnnData, optional
        Data of which `adata` is some of the cells: the form of the counts is told, and genes are matched, once for all
        of them, so that parts that are annotated apart are treated alike.

    Returns
    -------
    AnnData, pandas.DataFrame or None
        With `return_table`, a table indexed by ``obs_names``; else the annotated AnnData if `copy` is True or `adata`
        was a path, and None if `adata` was annotated in place. Columns, of the table and of ``obs``, with `key_added`
        in place of ``ginseng``:

        - ``ginseng_cell_type`` and ``ginseng_confidence``, the probability of that type;
        - of a calibrated model ``ginseng_status`` ("assigned", "ambiguous" or "novel"), ``ginseng_novelty`` (the share
          of held-out cells, of other donors where these were left out, that are nearer to the training cells) and
          ``ginseng_candidates`` (the types that an ambiguous cell may be);
        - in ``obs`` ``ginseng_second``, the second likeliest type, and ``ginseng_margin``, how much less likely it is;
          in a table the probability of every type, by its name;
        - of several members ``ginseng_spread``, the standard deviation of their probabilities of that type;
        - with `hierarchy` ``ginseng_parent``;
        - with `over` ``ginseng_consensus``, ``ginseng_consensus_share`` (the share of the cells of the cluster that are
          called so on their own) and, if clusters were made, ``ginseng_cluster``.

        ``obsm["X_ginseng"]`` has where the cells lie, in which neighbours and UMAP are found; ``uns["ginseng"]`` the
        model, parameters, versions, what was found of the data, and how novel each cluster is.

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
    given = locals()
    require_flags(backed=backed, randomness=randomness, copy=copy, store_probs=store_probs, return_table=return_table)
    require_flags(silent=silent, ignore_case=ignore_case, fix=fix, calibrate=calibrate)
    asked = {name: recorded(given[name]) for name in _RECORDED if given[name] is not None}
    with warnings.catch_warnings(), ExitStack() as files:
        if silent:
            warnings.simplefilter("ignore")
        annotator = annotator_of(model_state).normalizing(normalize, target_sum)
        if not isinstance(adata, AnnData | str | Path):
            raise ValueError(f"`adata` must be an AnnData or a path, but got a {type(adata).__name__}.")
        require_key(key_added)
        if calibrate and annotator.calibration is None and not isinstance(model_state, Annotator):
            warn(
                "The model is not calibrated: there is no status and no novelty, and cells of types that it does not "
                "know get one that it knows. Labelled cells calibrate it: ginseng finetune MODEL CELLS --label COLUMN "
                "--epochs 0 -o NEW (in Python ginseng.finetune with epochs=0). To go without: calibrate=False."
            )
        promises = target_error, class_error, novel_error
        judgement = Judgement.of(annotator, only, exclude, hierarchy, *promises, calibrate=calibrate)
        calibration = judgement.calibration
        require_way(consensus)
        require_compat(compat)
        if return_table:
            require_other_names(annotator.labels, key_added, compat)
        if isinstance(adata, AnnData):
            data = adata
        else:  # a table needs the counts only while they are read
            data = (
                files.enter_context(opened_counts(adata))
                if return_table and backed
                else read_adata(adata, backed and not copy)
            )
        if not (copy or return_table):
            require_writable(data)
        obs: Any = data.obs
        makes_clusters = ginseng.cluster.leiden if is_to_be_made(over) else None  # before the work: it needs an extra
        clusters = None if over is None or makes_clusters else clusters_in(obs, over)
        counts, genes, found = preflight(
            annotator,
            data if part_of is None else part_of,
            gene_key,
            layer,
            min_overlap=min_overlap,
            gene_map=None if gene_map is None else read_gene_table(gene_map),
            ignore_case=ignore_case,
            fix=fix,
            file=None if isinstance(adata, AnnData) else adata,
        )
        found.require()
        counts = counts if part_of is None else counts.of(data)
        zeros = annotator.background is None
        genes.warn_of_differences("count as zero" if zeros else "take their mean over the training cells")
        found.warn()
        model_id = annotator.id
        annotator = annotator.lacking(genes.is_lacking)
        forward = Forward(
            annotator.module,
            batch_size,
            precision,
            Devices(devices, alone=True),
            seed if randomness else None,
            judgement.geometry,
        )
        answer = forward(counts, genes, len(annotator.labels), silent)
        answer.require_finite(data.obs_names, annotator.takes_counts)
        is_empty = answer.is_empty
        if is_empty.any():
            warn(f"{is_empty.sum():,} cells have no count of the model's genes and get no type.")

        columns, probabilities = judgement(answer)
        if n_members_of(annotator.module) > 1:
            columns["spread"] = np.where(is_empty, np.float32(0), answer.spread)
        about = {
            "model": model_id,
            "labels": annotator.labels,
            "parameters": asked,
            **judgement.thresholds(),
            "versions": {package: version(package) for package in _VERSIONED},
            "preflight": found.as_dict(),
        }
        embedding = None if calibration is None else answer.coordinates[:, :_MOST_DIMENSIONS]
        results = Results(annotator.labels, columns, probabilities, is_empty, embedding, about)
        results.warn(judgement.share_left_out(answer))
        if makes_clusters:
            places, made = answer.logits if embedding is None else embedding, np.full(len(obs), None, dtype=object)
            made[~is_empty] = makes_clusters(places[~is_empty])
            clusters = columns["cluster"] = pd.Categorical(made)
        if clusters is not None:
            results = results.agreed(clusters, consensus, novel_error)

    if return_table:
        return results.table(data.obs_names, key_added, compat)
    data = copy_of(data) if copy and isinstance(adata, AnnData) else data
    results.put_into(data, key_added, compat, store_probs=store_probs)
    return data if copy or not isinstance(adata, AnnData) else None
