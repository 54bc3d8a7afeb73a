"""Hardware metrics."""

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from mae_curriculum.tracking.hardware import EnergyMeter, peak_flops


def meter(monkeypatch: pytest.MonkeyPatch, read: Callable[[object], int]) -> EnergyMeter:
    """Build a meter of a GPU whose counter, in millijoules, is read by `read`."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="0"))
    stub = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )
    monkeypatch.setitem(sys.modules, "pynvml", stub)
    return EnergyMeter(torch.device("cpu"))


def test_energy_is_the_increase_of_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([1_000, 4_500, 5_000])
    counted = meter(monkeypatch, lambda _: next(counts))
    assert [counted.since_last(), counted.since_last()] == [3.5, 0.5]


@pytest.mark.parametrize("good", [0, 1])
def test_a_counter_that_fails_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    left = [1_000] * good
    counted = meter(monkeypatch, lambda _: left.pop())  # IndexError, once there are none
    assert [counted.since_last(), counted.since_last()] == [None, None]


def test_a_counter_that_fails_once_loses_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError("the driver is busy")

    answers: Iterator[Callable[[], int]] = iter([lambda: 1_000, fail, lambda: 4_000])
    counted = meter(monkeypatch, lambda _: next(answers)())
    assert [counted.since_last(), counted.since_last()] == [None, 3.0]


def test_without_a_gpu_there_is_no_energy() -> None:
    assert EnergyMeter(torch.device("cpu")).since_last() is None


def test_the_peak_of_a_cpu_is_measured_once() -> None:
    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert 1e8 < peak < 1e15
    assert peak_flops(torch.device("cpu"), torch.float32) == peak
