"""An AnnData .zarr of a .h5ad: data, path."""

import sys

import anndata
from reporting import report

anndata.read_h5ad(sys.argv[1]).write_zarr(sys.argv[2])
report()
