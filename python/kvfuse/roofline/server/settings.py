"""What a server may be told, and the limits that it keeps."""

from dataclasses import dataclass, field

from kvfuse.roofline.inputs import HardwareRegistry
from kvfuse.roofline.measured import Calibration

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Limits:
    """What one client can ask for at most, so that the others are still answered."""

    body_bytes: int = 1 << 20
    request_seconds: float = 30  # from a request's head to the first byte of its answer
    seq_len: int = 1 << 26  # the library's own limit, under the name that requests have for it
    sweep_points: int = 4096
    contexts: int = 512  # of a KV-cache chart
    measured_points: int = 16  # of a sweep
    measured_elements: int = 1 << 26  # of the three matrices of a measured product
    measured_flops: float = 4e11
    waiting_measurements: int = 8
    streams: int = 32
    buffered_bytes: int = 64 << 20  # of all bodies that are held at a time


@dataclass(frozen=True)
class Settings:
    """A server.

    Args:
        host: the address that it is bound to; without a request's Host naming it the answer is 400.
        allowed_hosts: further names that a Host header may have.
        cors_origins: origins whose pages may read answers, such as "https://example.org"; none by default.
        measure: whether requests may measure on this machine.
        registry: the machines to offer.
        calibration: this machine's rates, by which it is offered as "here" and results files are checked.
    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    measure: bool = True
    registry: HardwareRegistry = field(default_factory=HardwareRegistry)
    calibration: Calibration | None = None
    limits: Limits = Limits()
