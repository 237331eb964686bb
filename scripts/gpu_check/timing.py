"""Times of device work with a cold L2 cache, sides in turn, and their statistics."""

import time
from collections.abc import Callable

import numpy
import torch

RESAMPLES = 2000
MIB, GIB = 1 << 20, 1 << 30

# Clock cycles for which the device waits before a timed call, so that the host, slower than most calls, has
# enqueued all of it: about half a millisecond.
HEAD_START_CYCLES = 1_000_000


class CudaClock:
    """Time between two events around a call that finds nothing of use in the L2 cache: before it the device
    goes over four times the size of that."""

    def __init__(self):
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self.flushed = torch.empty(max(l2_bytes, 32 * MIB), dtype=torch.float32, device="cuda")
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time_us(self, call: Callable[[], object]) -> float:
        self.flushed.fill_(1)
        self.flushed.sum()  # nor with lines that have yet to be written back
        torch.cuda._sleep(HEAD_START_CYCLES)
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) * 1e3


class CpuClock:
    """The same on the CPU, to try the code."""

    def __init__(self):
        self.flushed = torch.empty(MIB, dtype=torch.uint8)

    def time_us(self, call: Callable[[], object]) -> float:
        self.flushed.fill_(1)
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6


Clock = CudaClock | CpuClock


def make_clock(device: str) -> Clock:
    return CudaClock() if device == "cuda" else CpuClock()


def sample_in_turn(
    sides: dict[str, Callable[[], object]], clock: Clock, rounds: int, deadline: float
) -> dict[str, list[float]]:
    """Microseconds of each side: one of each a round, so that a slow moment meets all of them, and another
    one first in each round. The first round is not kept; the rest is cut short at the deadline."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds + 1):
        if number > 1 and time.monotonic() > deadline:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = clock.time_us(sides[name])
            if number > 0:
                samples[name].append(elapsed)
    return samples


def copy_bandwidth(device: str, size: int, rounds: int) -> float:
    """Bytes read and written per second by the best of several copies within the device's memory."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    clock = make_clock(device)
    clock.time_us(lambda: target.copy_(source))
    best_us = min(clock.time_us(lambda: target.copy_(source)) for _ in range(rounds))
    return 2 * size / (best_us * 1e-6)


def medians(samples: list[float], random: numpy.random.Generator) -> numpy.ndarray:
    """Medians of samples drawn with replacement from `samples`."""
    return numpy.median(random.choice(samples, size=(RESAMPLES, len(samples))), axis=1)


def summary(samples: list[float]) -> dict[str, float]:
    """The median with its bootstrap 95 % interval."""
    low, high = numpy.quantile(medians(samples, numpy.random.default_rng(0)), [0.025, 0.975])
    return {"median": float(numpy.median(samples)), "low": float(low), "high": float(high)}


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times as long `slow` takes: ratio of medians with its bootstrap 95 % interval."""
    random = numpy.random.default_rng(0)
    low, high = numpy.quantile(medians(slow, random) / medians(fast, random), [0.025, 0.975])
    value = numpy.median(slow) / numpy.median(fast)
    return {"value": float(value), "low": float(low), "high": float(high)}
