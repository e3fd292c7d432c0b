"""The documented names of what reads and writes files."""

from ginseng.data.models import _load_pytree, _save_pytree, load_model, save_model
from ginseng.data.outputs import write_adata
from ginseng.data.readers import read_adata
from ginseng.data.tenx import read_10x_h5, read_10x_mtx

__all__ = [
    "_load_pytree",
    "_save_pytree",
    "load_model",
    "read_10x_h5",
    "read_10x_mtx",
    "read_adata",
    "save_model",
    "write_adata",
]
