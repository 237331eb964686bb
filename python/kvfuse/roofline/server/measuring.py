"""Measuring on this machine for a request: one product at a time."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from kvfuse.roofline.server.errors import Refused, about
from kvfuse.roofline.server.schemas import Measurement
from kvfuse.roofline.server.settings import Limits


class Measuring:
    """One thread measures, so that two measurements never share the machine; who leaves is not waited for."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvfuse-measure")
        self._waiting = 0

    async def gemm(self, M: int, N: int, K: int, precision: str) -> Measurement:
        limits = self._limits
        elements = M * K + N * K + M * N
        flops = 2 * M * N * K
        if elements > limits.measured_elements or flops > limits.measured_flops:
            sentence = (
                f"expected a measured product of at most {limits.measured_elements} elements and "
                f"{limits.measured_flops:g} FLOPs, got {elements} and {flops}"
            )
            raise Refused(422, sentence, "body", "measure")
        if self._waiting >= limits.waiting_measurements:
            raise Refused(
                503, f"{self._waiting} measurements wait already: ask again later", "body", "measure"
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, _measure, M, N, K, precision
            )
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _measure(M: int, N: int, K: int, precision: str) -> Measurement:
    from kvfuse.roofline.measure import measure_gemm  # loads torch's kernels

    with about("measure"):
        return Measurement(**asdict(measure_gemm(M, N, K, precision)))
