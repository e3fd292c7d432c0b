"""Cells of each type in each sample, for MultiQC."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from ginseng.data.annotation import given_types
from ginseng.utils.files import local_path, replacing, require_writable_path
from ginseng.utils.labels import beside, names_in, without_none
from ginseng.utils.messages import printable, require_one, warn

_SUFFIX = "_mqc.json"  # by which MultiQC finds the files
_NO_SAMPLE = "no sample"  # of cells that have none


def mqc(adata: AnnData | pd.DataFrame, path: str | Path, *, sample: str | None = None, key: str = "ginseng") -> None:
    """Write how many cells of each type there are, as MultiQC's custom content: a bar for each sample.

    Parameters
    ----------
    adata : AnnData or pandas.DataFrame
        Annotated by `ginseng.classify`, or the table that it returns.
    path : str or Path
        Ends in ``_mqc.json``, by which MultiQC finds it; replaced if it is there.
    sample : str, optional
        Column with the sample of each cell; by default all are of one, named as the file. Cells without one are
        counted as "no sample", with a warning.
    key : str
        The ``key_added`` of the annotation.

    Raises
    ------
    ValueError
        If there is no annotation of that key, no column of that name, or the file is named otherwise.

    References
    ----------
    Ewels et al., MultiQC: summarize analysis results for multiple tools and samples in a single report, Bioinformatics
    2016.

    Examples
    --------
    >>> import tempfile
    >>> cells = pd.DataFrame({"ginseng_cell_type": ["B", "T", "T"]}, index=["c1", "c2", "c3"])
    >>> path = Path(tempfile.mkdtemp()) / "donor1_mqc.json"
    >>> mqc(cells, path)
    >>> json.loads(path.read_text())["data"]
    {'donor1': {'B': 1, 'T': 2}}
    """
    path = local_path(path)
    require_mqc(path)
    obs: Any = adata.obs if isinstance(adata, AnnData) else adata
    types = given_types(obs, key)
    if sample is None:
        samples = pd.Series(printable(path.name.removesuffix(_SUFFIX)), index=types.index)
    else:
        require_one("column of samples", sample, "the annotated cells", obs.columns)
        named, _ = without_none(names_in(obs[sample], f"column '{sample}' of the annotated cells"))
        samples = pd.Series(named, dtype=object)
        if n_without := int(samples.isna().sum()):
            no_sample = beside(_NO_SAMPLE, named.categories)
            samples = samples.fillna(no_sample)
            warn(f"{n_without:,} cells have no sample in column '{sample}' and are counted as {no_sample!r}.")
    counts = pd.crosstab(samples.to_numpy(), types.to_numpy())
    content = {
        "id": f"{key}_cell_types",
        "section_name": "Cell types",
        "description": "Cells of each type, as annotated by ginseng.",
        "plot_type": "bargraph",
        "pconfig": {"id": f"{key}_cell_types_plot", "title": "ginseng: cell types", "ylab": "Cells"},
        "data": {name: {kind: int(n) for kind, n in row.items()} for name, row in counts.iterrows()},
    }
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def require_mqc(path: str | Path) -> None:
    """Raise a ValueError unless MultiQC would find a file by its name, and it can be written."""
    if not Path(path).name.endswith(_SUFFIX):
        raise ValueError(f"{path} must end in {_SUFFIX}, by which MultiQC finds it.")
    require_writable_path(path)
