"""Times of matrix products and attentions on this machine, by the code that the runner runs.

Weights and caches are read from memory, as those of a model that is larger than a processor's caches: each
call runs over many copies in turn.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from kvfuse import _C, ops
from kvfuse.roofline.inputs import Hardware, int64
from kvfuse.roofline.predict import precisions, predict_gemm

NATIVE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_GPU_BUFFER_BYTES = 1 << 30  # 20 times the second-level cache of an H200
_SAMPLE_FLOPS = 6e9  # of one sample at least, as far as there are copies: some 50 ms of a small CPU
_SAMPLE_CALLS = 256  # of one sample at most; models of such small products fit the caches anyway
_MOST_BYTES = 4 << 30  # of the operands of a product
_MOST_FLOPS = 1e13

Cache = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # K and V and their scales


class Bench:
    """A device and a buffer on it that is larger than its caches."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type == "cpu":
            self.buffer: Tensor = _C.measure.buffer()
        else:
            self.buffer = torch.zeros(_GPU_BUFFER_BYTES, dtype=torch.uint8, device=self.device)

    def copies(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        """As many zeros of this shape as the buffer holds, one behind the other; at least one."""
        count = math.prod(shape)
        size = count * dtype.itemsize
        if size > self.buffer.numel():
            return [torch.zeros(shape, dtype=dtype, device=self.device)]
        fitting = self.buffer.numel() // size
        whole = self.buffer[: fitting * size].view(dtype).view(fitting, *shape)
        return list(whole.unbind())

    def seconds(self, run: Callable[[], object]) -> float:
        """What one call takes; on a GPU between two events."""
        if self.device.type == "cpu":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def bandwidth(self) -> float:
        """Bytes a second that reading memory gives at best; of a GPU, that copying reads and writes."""
        if self.device.type == "cpu":
            return _C.measure.read_bandwidth()
        half = self.buffer.numel() // 2
        source, target = self.buffer[:half], self.buffer[half : 2 * half]
        return 2 * half / min(self.seconds(lambda: target.copy_(source)) for _ in range(4))

    def product(self, precision: str, rows: int, in_: int, out: int, *, step: bool = False) -> "Timed":
        """[rows, in] times the transpose of [out, in]; with ``step`` by the kernels of a decode step."""
        dtype = NATIVE[precision]
        x = torch.zeros(rows, in_, dtype=dtype, device=self.device)
        weights = self.copies((out, in_), dtype)
        weights = weights[: _calls(2 * rows * in_ * out)]
        run = _C.measure.run_step_products if step else _C.measure.run_products
        return Timed(self, lambda: run(x, weights), len(weights), lambda: run(x, weights[:1]))

    def attention(
        self, precision: str, kv: str, *, batch: int, heads: int, head_dim: int, new: int, kv_len: int
    ) -> "Timed":
        """Attention of ``new`` tokens that end at ``kv_len``, over a cache in the format ``kv``."""
        dtype = NATIVE[precision]
        q, k, v = torch.zeros(3, batch, heads, new, head_dim, dtype=dtype, device=self.device).unbind()
        seqlens = torch.full((batch,), kv_len - new, dtype=torch.int32, device=self.device)
        caches = self._caches((batch, heads, kv_len, head_dim), torch.int8 if kv == "int8" else dtype)
        caches = caches[: _calls(4 * batch * heads * head_dim * new * kv_len)]

        def run(some: list[Cache]) -> None:
            with ops.trust_lengths():
                _C.measure.run_attentions(q, k, v, some, seqlens)

        return Timed(self, lambda: run(caches), len(caches), lambda: run(caches[:1]))

    def _caches(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[Cache]:
        keys = self.copies(shape, dtype)
        if len(keys) == 1:
            keys.append(torch.zeros_like(keys[0]))
        if dtype is not torch.int8:
            return [(k, v, None, None) for k, v in zip(keys[::2], keys[1::2], strict=False)]
        scales = [torch.zeros(shape[:-1], device=self.device) for _ in keys]
        return list(zip(keys[::2], keys[1::2], scales[::2], scales[1::2], strict=False))


def _calls(flops: float) -> int:
    """How many calls of so many FLOPs a sample consists of: two at least."""
    return min(_SAMPLE_CALLS, max(2, math.ceil(_SAMPLE_FLOPS / flops)))


class Timed:
    """Something that takes a while, done ``count`` times in a call."""

    def __init__(
        self, bench: Bench, run: Callable[[], object], count: int, warm_up: Callable[[], object]
    ) -> None:
        self._bench, self._run, self._count, self._warm_up = bench, run, count, warm_up
        self.samples: list[float] = []

    def sample(self) -> None:
        """Takes the time of one more call, after one that does not count if it is the first."""
        if not self.samples:
            self._warm_up()
        self.samples.append(self._bench.seconds(self._run) / self._count)

    @property
    def seconds(self) -> float:
        """What one takes: the lower quartile of the samples, since whatever else runs makes some longer."""
        return sorted(self.samples)[len(self.samples) // 4]


@dataclass(frozen=True)
class GemmMeasurement:
    """A matrix product as it was measured; ``emulated``: the machine has no product in the format."""

    measured_time_us: float
    measured_bandwidth_gb_s: float  # of operands and result, as they are in memory
    measured_tflops: float
    emulated: bool


def measure_gemm(
    M: int, N: int, K: int, precision: str, *, device: str = "cpu", samples: int = 5
) -> GemmMeasurement:
    """Times M rows of activations [M, K] times weights [N, K] that are read from memory.

    fp32, fp16 and bf16 are measured as they are. Another format is emulated by the product of its decoded
    weights in float32 (on a GPU in float16): time and bandwidth are that product's.

    Raises:
        ValueError: a size below 1, an unknown format, or a product of more than 4 GiB or 10 TFLOP.
        RuntimeError: the device is not there.
    """
    sizes = {name: int64(name, value) for name, value in {"M": M, "N": N, "K": K}.items()}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"roofline: expected {name} >= 1, got {value}")
    known = [one.name for one in precisions()]
    if precision not in known:
        raise ValueError(f"roofline: precision: expected one of {', '.join(known)}, got {precision!r}")
    emulated = precision not in NATIVE
    stored = ("fp32" if device == "cpu" else "fp16") if emulated else precision
    nbytes = NATIVE[stored].itemsize * (M * K + N * K + M * N)
    if nbytes > _MOST_BYTES or 2 * M * N * K > _MOST_FLOPS:
        raise ValueError(
            f"roofline: expected a product of at most {_MOST_BYTES} bytes and {_MOST_FLOPS:.0e} FLOP to "
            f"measure, got {nbytes} bytes and {2.0 * M * N * K:.3g} FLOP"
        )
    bench = Bench(device)
    timed = bench.product(stored, M, K, N)
    for _ in range(samples):
        timed.sample()
    seconds = timed.seconds
    return GemmMeasurement(1e6 * seconds, nbytes / seconds / 1e9, 2 * M * N * K / seconds / 1e12, emulated)


class GEMMKernel:
    """A matrix product to be measured, beside what is predicted of it."""

    def __init__(self, M: int, N: int, K: int, precision: str, *, device: str = "cpu") -> None:
        self.M, self.N, self.K, self.precision, self.device = M, N, K, precision, device

    def benchmark(self, hardware: Hardware | None = None) -> dict[str, float | bool]:
        """The fields of ``measure_gemm``; with ``hardware`` predicted_time_us and efficiency as well.

        ``efficiency`` is predicted over measured time.

        Raises:
            ValueError, RuntimeError: as ``measure_gemm`` does.
        """
        measured = measure_gemm(self.M, self.N, self.K, self.precision, device=self.device)
        result: dict[str, float | bool] = asdict(measured)
        if hardware is not None:
            predicted = predict_gemm(hardware, self.M, self.N, self.K, self.precision).predicted_time_us
            result |= {
                "predicted_time_us": predicted,
                "efficiency": predicted / measured.measured_time_us,
            }
        return result
