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
    """max_error: largest difference of any two numbers. max_share: of numbers that may differ at all."""

    max_error: float = 0.0
    max_share: float = 1.0


EXACT = Tolerance()
# exp and 1/x of the device are good to a few units in the last place: a value at a tie takes the next code.
NEXT_CODE = Tolerance(1.0, 0.005)


@dataclass(frozen=True, slots=True)
class Check:
    """plan: uploads the inputs and prepares the launches; expected: what the reference gives for the same inputs.

    moved_bytes: the least the operation must read and write. operations: on int8, a multiply-add being two.
    """

    name: str
    shape: str
    plan: Callable[[Device], Plan]
    expected: Callable[[], Array]
    tolerance: Tolerance
    moved_bytes: int
    operations: int = 0
