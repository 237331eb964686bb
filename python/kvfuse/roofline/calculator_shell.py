"""The calculator under its documented name; ``python -m kvfuse.roofline.calculator_shell`` demonstrates it.

>>> from kvfuse.roofline.calculator_shell import RooflineCalculator
>>> from kvfuse.roofline.hardware_registry import BLACKWELL_B10
>>> calculator = RooflineCalculator(BLACKWELL_B10)
>>> round(calculator.predict_gemv(4096, 4096, "FP16")["predicted_time_us"], 2)
116.97
"""

from dataclasses import asdict
from typing import Any

from kvfuse.roofline.hardware_registry import BLACKWELL_B10
from kvfuse.roofline.inputs import Hardware
from kvfuse.roofline.predict import predict_gemm


class RooflineCalculator:
    """Matrix products on one machine; results are mappings with the fields of ``GemmPrediction``."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware

    def predict_gemv(self, N: int, K: int, precision: str) -> dict[str, Any]:
        """A matrix [N, K] times a vector.

        Raises:
            ValueError: a size out of range, an unknown format, or one that the machine cannot compute.
        """
        return self.predict_gemm(1, N, K, precision)

    def predict_gemm(self, M: int, N: int, K: int, precision: str) -> dict[str, Any]:
        """[M, K] times the transpose of [N, K]; raises as ``predict_gemv``."""
        return asdict(predict_gemm(self.hardware, M, N, K, precision))


def main() -> None:
    calculator = RooflineCalculator(BLACKWELL_B10)
    print(f"{BLACKWELL_B10.info.title}, published figures, [4096, 4096] times a vector:")
    for precision in ("FP16", "FP8", "INT4", "NVFP4"):
        got = calculator.predict_gemv(4096, 4096, precision)
        print(
            f"{precision:>6}: {got['predicted_time_us']:7.2f} us, {got['ai']:.2f} FLOPs a byte, "
            f"bound by {got['bottleneck']}"
        )


if __name__ == "__main__":
    main()
