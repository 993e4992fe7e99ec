"""The store: the only code that speaks SQL."""

from annotator.store.images import GivenAs, KnownFile, PoolTable, Source, Truth
from annotator.store.store import LabelStore

__all__ = ["GivenAs", "KnownFile", "LabelStore", "PoolTable", "Source", "Truth"]
