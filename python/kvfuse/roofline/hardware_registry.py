"""Machines under their documented names. ``BLACKWELL_B10`` has the published figures of GB10 (287 GB/s)."""

from kvfuse.roofline import get_hardware
from kvfuse.roofline.inputs import Hardware, HardwareRegistry

BLACKWELL_B10 = get_hardware("b10", "reference")

__all__ = ["BLACKWELL_B10", "Hardware", "HardwareRegistry", "get_hardware"]
