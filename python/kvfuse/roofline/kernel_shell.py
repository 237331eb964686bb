"""A matrix product to be measured, under its documented name."""

from kvfuse.roofline.measure import GEMMKernel

__all__ = ["GEMMKernel"]
