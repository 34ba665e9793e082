"""What a check of a kernel is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intsr.arrays import Array
from intsr.kernels.launches.launch import Device, Plan

Random = np.random.Generator


@dataclass(frozen=True, slots=True)
class Tolerance:
    # The largest difference of any two numbers.
    max_error: float = 0.0
    # The share of numbers that may differ at all.
    max_share: float = 1.0


EXACT = Tolerance()
# exp and 1/x of the device are good to a few units in the last place: a value at a tie takes the next code.
NEXT_CODE = Tolerance(1.0, 0.005)


@dataclass(frozen=True, slots=True)
class Check:
    """A kernel's plan and its reference over the same inputs."""

    name: str
    shape: str
    inputs: tuple[Array, ...]
    # Of a device and the inputs, uploaded in that order.
    planner: Callable[..., Plan]
    # Of the inputs, which it leaves as they are.
    reference: Callable[..., Array]
    tolerance: Tolerance = EXACT

    def plan(self, device: Device) -> Plan:
        return self.planner(device, *map(device.upload, self.inputs))

    def expected(self) -> Array:
        return self.reference(*self.inputs)
