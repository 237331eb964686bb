"""The state of the machine's GPUs, by NVML; without a driver or nvidia-ml-py a state that says so."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

_FRESH_SECONDS = 0.9  # so many streams at one a second ask the driver once


class Gpu(BaseModel):
    """One GPU; what its driver does not tell is null."""

    index: int
    name: str
    utilization_pct: int | None
    memory_used_mb: float | None  # 1e6 bytes
    memory_total_mb: float | None
    temperature_c: int | None
    power_w: float | None
    sm_clock_mhz: int | None
    mem_clock_mhz: int | None
    pstate: str | None  # "P0" is the fastest


class GpuState(BaseModel):
    available: bool
    reason: str | None = None  # why not, if it is not
    gpus: list[Gpu] = []


def read_gpus() -> GpuState:
    """Asks the driver, which may take milliseconds."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return GpuState(available=False, reason="nvidia-ml-py is not installed: pip install kvfuse[server]")
    try:
        pynvml.nvmlInit()  # counts its calls, and is quick from the second on
        count = pynvml.nvmlDeviceGetCount()
        gpus = [_read_gpu(pynvml, index) for index in range(count)]
    except pynvml.NVMLError as error:
        return GpuState(available=False, reason=f"no GPU that NVML knows: {error}")
    if not gpus:
        return GpuState(available=False, reason="the driver knows no GPU")
    return GpuState(available=True, gpus=gpus)


def _read_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def told(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except nvml.NVMLError_NotSupported:
            return None

    utilization = told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    memory = told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    power_mw = told(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    pstate = told(lambda: nvml.nvmlDeviceGetPerformanceState(handle))
    name = nvml.nvmlDeviceGetName(handle)
    return Gpu(
        index=index,
        name=name.decode() if isinstance(name, bytes) else name,
        utilization_pct=utilization,
        memory_used_mb=None if memory is None else memory.used / 1e6,
        memory_total_mb=None if memory is None else memory.total / 1e6,
        temperature_c=told(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power_w=None if power_mw is None else power_mw / 1e3,
        sm_clock_mhz=told(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        mem_clock_mhz=told(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        pstate=None if pstate is None else f"P{pstate}",
    )


class GpuMonitor:
    """The latest state, asked for as often as anybody wants to know but at most about once a second."""

    def __init__(self, read: Callable[[], GpuState] = read_gpus) -> None:
        self._read = read
        self._lock = asyncio.Lock()
        self._state: GpuState | None = None
        self._read_at = 0.0

    async def state(self) -> GpuState:
        async with self._lock:
            if self._state is None or time.monotonic() - self._read_at > _FRESH_SECONDS:
                self._state = await asyncio.to_thread(self._read)
                self._read_at = time.monotonic()
            return self._state
