"""The blood cells that come with scanpy, as a file of counts with `cell_type`: path."""

import sys

from reporting import report

from ginseng.demo import pbmc_counts

adata = pbmc_counts()
adata.obs["cell_type"] = adata.obs.pop("bulk_labels").astype(str)
adata.write_h5ad(sys.argv[1])
report()
