"""The six strategies and the 17 operators that each gives a format, under their documented name."""

from kvfuse.roofline.predict import op_names, strategies
from kvfuse.roofline.results import Precisions, Strategy

__all__ = ["Precisions", "Strategy", "op_names", "strategies"]
