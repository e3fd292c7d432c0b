"""Datasets on disk, and reading counts and models."""

from ginseng.data.dataset import GinsengDataset

__all__ = ["GinsengDataset"]
