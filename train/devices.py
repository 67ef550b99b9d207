"""What GPUs can do at best and hold, by the name their driver gives them: for MFU and for the estimate.

Dense peaks from the makers' data sheets, without sparsity; fp32 is what torch does by default, without TF32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenmill.errors import RecipeError

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of GPU: peak TFLOP/s of bf16 and fp32, memory in GiB as its driver tells it."""

    name: str
    bf16_tflops: float
    fp32_tflops: float
    memory_gib: float
    words: tuple[str, ...] = ()  # that the driver's name has beside the name's own

    def peak_flops(self, precision: Literal["fp32", "bf16"]) -> float:
        """Give operations a second."""
        return (self.bf16_tflops if precision == "bf16" else self.fp32_tflops) * 1e12


DEVICES = (  # the first whose words are all there is meant: the narrower stand before
    Device("B300", 2250.0, 75.0, 268.0),
    Device("GB200", 2500.0, 80.0, 184.0),
    Device("B200", 2250.0, 75.0, 178.0),
    Device("H200", 989.0, 67.0, 139.8),
    Device("H100-NVL", 835.0, 60.0, 93.1, ("H100", "NVL")),
    Device("H100-PCIe", 756.0, 51.0, 79.2, ("H100", "PCIE")),
    Device("H100", 989.0, 67.0, 79.2),
    Device("H20", 148.0, 44.0, 95.6),
    Device("A100-40GB", 312.0, 19.5, 39.4, ("A100", "40GB")),
    Device("A100", 312.0, 19.5, 79.2),
    Device("L40S", 362.0, 91.6, 44.4),
    Device("L4", 121.0, 30.3, 22.2),
    Device("A10", 125.0, 31.2, 22.2),
    Device("A10G", 70.0, 35.0, 22.2),
    Device("RTX-5090", 209.5, 104.8, 31.4, ("RTX", "5090")),
    Device("RTX-4090", 165.2, 82.6, 23.5, ("RTX", "4090")),
    Device("RTX-3090", 71.0, 35.6, 23.6, ("RTX", "3090")),
    Device("MI300X", 1307.0, 163.4, 191.7),
)


def device_of(name: str) -> Device | None:
    """Find a GPU by the name its driver gives it, such as `NVIDIA H100 80GB HBM3`; None where nobody knows it."""
    words = set(name.upper().replace("-", " ").split())
    return next((one for one in DEVICES if words.issuperset(one.words or (one.name.upper(),))), None)


def named_device(name: str) -> Device:
    """Find a GPU by the name in the table or its driver's; raises RecipeError naming those that are known."""
    by_name = {one.name.lower(): one for one in DEVICES}
    found = by_name.get(name.lower()) or device_of(name)
    if found is None:
        raise RecipeError(f"--gpu {name}: known are {', '.join(one.name for one in DEVICES)}")
    return found


def peak_flops_here(precision: Literal["fp32", "bf16"]) -> float | None:
    """Give the peak of this process's GPU, or None where it is unknown or there is none."""
    import torch

    found = device_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return found.peak_flops(precision) if found else None
