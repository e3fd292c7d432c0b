"""Matching the genes of a data set to those of a model."""

import numpy as np
import pandas as pd
from scipy import sparse

_VERSIONED_ENSEMBL_ID = r"^(ENS[A-Z]*\d{11})\.\d+$"


def match_genes(names: np.ndarray | pd.Index, model_genes: np.ndarray) -> np.ndarray:
    """Find the position of each name among the genes of a model.

    Versions of Ensembl identifiers (``ENSG00000187608.10``) are ignored, unless that would make two genes of the model
    the same.

    Parameters
    ----------
    names : array of str
        Gene names of a data set; may repeat.
    model_genes : array of str
        Unique gene names.

    Returns
    -------
    numpy.ndarray
        For each name its position in `model_genes`, or -1.

    Raises
    ------
    ValueError
        If `model_genes` repeats a name.

    Examples
    --------
    >>> match_genes(np.array(["CD3D", "XIST", "ENSG00000187608.10"]), np.array(["ENSG00000187608", "CD3D"]))
    array([ 1, -1,  0])
    """
    genes = pd.Index(np.asarray(model_genes).astype(str))
    if not genes.is_unique:
        raise ValueError(f"Genes of a model must be unique; repeated: {list(genes[genes.duplicated()].unique()[:5])}.")
    names = pd.Index(np.asarray(names).astype(str))
    unversioned = genes.str.replace(_VERSIONED_ENSEMBL_ID, r"\1", regex=True)
    if unversioned.is_unique:
        genes, names = unversioned, names.str.replace(_VERSIONED_ENSEMBL_ID, r"\1", regex=True)
    return genes.get_indexer(names)


def gene_selector(positions: np.ndarray, n_model_genes: int) -> sparse.csr_matrix:
    """Build the 0/1 matrix that takes counts over a data set's genes to counts over a model's.

    Genes that the data set has more than once are summed, those it lacks are zero.

    Parameters
    ----------
    positions : numpy.ndarray
        From `match_genes`.
    n_model_genes : int
        Number of genes of the model.

    Returns
    -------
    scipy.sparse.csr_matrix
        Of shape ``(len(positions), n_model_genes)`` and type float32.

    Examples
    --------
    >>> gene_selector(np.array([1, -1, 1]), 2).toarray()
    array([[0., 1.],
           [0., 0.],
           [0., 1.]], dtype=float32)
    """
    found = np.flatnonzero(positions >= 0)
    ones = np.ones(len(found), dtype=np.float32)
    return sparse.csr_matrix((ones, (found, positions[found])), shape=(len(positions), n_model_genes))
