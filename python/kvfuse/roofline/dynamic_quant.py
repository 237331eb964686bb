"""Precision that follows outliers at run time, under its documented name."""

from kvfuse.roofline.measured import DynamicDecision, DynamicQuantizer

__all__ = ["DynamicDecision", "DynamicQuantizer"]
