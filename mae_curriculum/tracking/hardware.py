"""What a device can do and what it uses: peak arithmetic, memory, energy."""

import math
import re
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress

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
"""FLOP/s of dense matrix products in bfloat16, from NVIDIA's data sheets; the first in a device's name counts."""

SIDES, PEAK_SECONDS = {"cpu": 1024, "cuda": 8192}, 0.5
"""Of the square matrices by which the peak of other devices is measured; how long."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Tell the FLOP/s that a device can do: from its data sheet, else measured by the best of some matrix products."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAK_BFLOAT16.items():
            if re.search(rf"\b{known}\b", name) and "MIG" not in name:
                return peak
    side = SIDES.get(device.type, SIDES["cpu"])
    matrix = torch.ones((side, side), device=device, dtype=dtype)
    seconds = [math.inf]
    end = time.perf_counter() + PEAK_SECONDS
    while (begun := time.perf_counter()) < end:
        float((matrix @ matrix)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return 2 * side**3 / min(seconds)


def memory_bytes(device: torch.device) -> int:
    """Tell the most memory that this process has held: the device's, or on a CPU the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class EnergyMeter:
    """The energy that a GPU uses, counted by itself."""

    def __init__(self, device: torch.device) -> None:
        """Find the GPU's counter; without GPU, NVML (package nvidia-ml-py) or counter there is nothing to read."""
        self._joules: Callable[[], float] | None = None
        with suppress(Exception):  # whatever is missing
            import pynvml  # only now: an optional package

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

            def read() -> float:
                return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000

            self._before, self._joules = read(), read

    def since_last(self) -> float | None:
        """Tell the joules since this was last asked; None where nobody counts."""
        if self._joules is None:
            return None
        try:
            before, self._before = self._before, self._joules()
        except Exception:  # whatever the driver says, energy is worth no run; the next answer covers this time, too
            return None
        return self._before - before
