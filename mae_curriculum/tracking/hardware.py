"""Hardware metrics: peak FLOP/s, memory, energy."""

import math
import re
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch

PEAK_BFLOAT16 = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""FLOP/s of dense matrix products in bfloat16, from NVIDIA's data sheets; the first key in a device's name counts."""

PEAK_MATRIX_SIZES = {"cpu": 1024, "cuda": 8192}
"""Rows of the square matrices whose products measure the peak of other devices."""
PEAK_SECONDS = 0.1
"""Duration of that measurement."""


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak FLOP/s of a device: from its data sheet, else measured once as the fastest matrix product."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAK_BFLOAT16.items():
            if re.search(rf"\b{known}\b", name) and "MIG" not in name:
                return peak
    size = PEAK_MATRIX_SIZES.get(device.type, PEAK_MATRIX_SIZES["cpu"])
    matrix = torch.ones((size, size), device=device, dtype=dtype)
    fastest = math.inf
    start = time.perf_counter()
    end = start + PEAK_SECONDS
    while start < end:
        float((matrix @ matrix)[0, 0])  # waits for the device
        now = time.perf_counter()
        fastest = min(fastest, now - start)
        start = now
    return 2 * size**3 / fastest


def memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: on the GPU, or without one, in the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class EnergyMeter:
    """The energy used by a GPU, from its own counter."""

    def __init__(self, device: torch.device) -> None:
        """Find the GPU's counter; it is missing without a GPU, NVML (package nvidia-ml-py) or support by the GPU."""
        self._joules: Callable[[], float] | None = None
        with suppress(Exception):  # no GPU, no package, no driver, no counter
            import pynvml  # an optional package

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

            def read() -> float:
                return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000

            self._before, self._joules = read(), read

    def since_last(self) -> float | None:
        """Return the joules used since the last call; None if they cannot be read."""
        if self._joules is None:
            return None
        try:
            before, self._before = self._before, self._joules()
        except Exception:  # a driver error must not end a run; the next call includes this time
            return None
        return self._before - before
