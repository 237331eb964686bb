"""kvfuse.roofline.server: the state of GPUs, with a driver and without one."""

import asyncio
import sys
from types import SimpleNamespace

from kvfuse.roofline.server import gpu_state


class FakeNvml(SimpleNamespace):
    """Of pynvml what is used, for one GPU that does not tell its power."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    NVML_TEMPERATURE_GPU = NVML_CLOCK_SM = 0
    NVML_CLOCK_MEM = 2

    def __init__(self):
        super().__init__(nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 1)
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetUtilizationRates = lambda _: SimpleNamespace(gpu=7)
        self.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(used=2_000_000, total=80_000_000_000)
        self.nvmlDeviceGetPerformanceState = lambda _: 8
        self.nvmlDeviceGetName = lambda _: "A GPU"
        self.nvmlDeviceGetTemperature = lambda _, sensor: 40
        self.nvmlDeviceGetClockInfo = lambda _, clock: 1000 + clock

    def nvmlDeviceGetPowerUsage(self, _):
        raise self.NVMLError_NotSupported


def test_state_of_gpus(monkeypatch):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu_state.read_gpus().model_dump() == {
        "available": True,
        "reason": None,
        "gpus": [
            {
                "index": 0,
                "name": "A GPU",
                "utilization_pct": 7,
                "memory_used_mb": 2.0,
                "memory_total_mb": 80_000.0,
                "temperature_c": 40,
                "power_w": None,
                "sm_clock_mhz": 1000,
                "mem_clock_mhz": 1002,
                "pstate": "P8",
            }
        ],
    }
    nvml.nvmlDeviceGetCount = lambda: 0
    assert gpu_state.read_gpus().reason == "the driver knows no GPU"

    def no_driver():
        raise nvml.NVMLError("no library")

    nvml.nvmlInit = no_driver
    assert gpu_state.read_gpus() == gpu_state.GpuState(
        available=False, reason="no GPU that NVML knows: no library"
    )
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install kvfuse[server]" in gpu_state.read_gpus().reason


def test_status_is_200_with_or_without_a_gpu(client):
    response = client.get("/api/nvml/status")
    assert response.status_code == 200
    state = response.json()
    assert state["available"] == bool(state["gpus"]) == (state["reason"] is None)


def test_streams_share_one_reading():
    reads = []

    def read():
        reads.append(1)
        return gpu_state.GpuState(available=False, reason="none")

    async def ask_often():
        monitor = gpu_state.GpuMonitor(read)
        await asyncio.gather(*(monitor.state() for _ in range(20)))

    asyncio.run(ask_often())
    assert len(reads) == 1
