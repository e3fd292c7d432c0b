"""Reading counts, choosing genes, writing files safely."""

from ginseng.utils.hvg import select_hvgs

__all__ = ["select_hvgs"]
