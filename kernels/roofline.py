"""The least time a GPU can need: operations at its peak rate, or bytes at its memory's, whichever is longer.

    time >= max(operations / peak, bytes / bandwidth)

Peaks are the vendors' published dense ones (no sparsity), with accumulation in fp32 for fp16 where the two differ.
A bound, not a forecast: no kernel reaches it.
"""

from __future__ import annotations

from dataclasses import dataclass

_TERA, _GIGA = 1e12, 1e9


@dataclass(frozen=True, slots=True)
class Gpu:
    """Dense peaks in 1e12 operations a second (a multiply-add is two), memory in GB/s; source: where from."""

    name: str
    fp16_tflops: float
    int8_tops: float
    memory_gbs: float
    source: str


GPUS = (
    Gpu("RTX 4090", 165.2, 660.6, 1008.0, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
    Gpu("L40S", 362.05, 733.0, 864.0, "NVIDIA L40S datasheet, half of the rates with sparsity"),
    Gpu("A100 80GB SXM", 312.0, 624.0, 2039.0, "NVIDIA A100 datasheet"),
    Gpu("H100 SXM", 989.4, 1978.9, 3350.0, "NVIDIA H100 datasheet, half of the rates with sparsity"),
    Gpu("H200 SXM", 989.4, 1978.9, 4800.0, "NVIDIA H200 datasheet, half of the rates with sparsity"),
)


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """One run on one tile. gmacs: convolutions and linears, in 1e9 multiply-adds; attention_gmacs: Q K and P V.

    parameters: those of convolutions and linears, which are read once a run.
    """

    name: str
    gmacs: float
    attention_gmacs: float
    parameters: int


# What one step makes constant in the UNet: the time MLP, 22 time_emb_proj, 16 cross-attentions' to_k and to_v.
_CONSTANT = 2_050_560 + 25_824_960 + 25_559_040
# SD 2.1 at a latent of 64x64 (a 512x512 output), specialized.
SD21 = (
    NetworkCost("encoder", 541.149, 17.180, 34_163_592),
    NetworkCost("UNet", 339.103, 63.026, 865_910_724 - _CONSTANT),
    NetworkCost("decoder", 1240.080, 17.180, 49_490_179),
)


@dataclass(frozen=True, slots=True)
class Bound:
    """compute_ms, memory_ms: each alone; least_ms: the longer of the two."""

    compute_ms: float
    memory_ms: float

    @property
    def least_ms(self) -> float:
        return max(self.compute_ms, self.memory_ms)


def bound_from_work(gpu: Gpu, int8_operations: float, fp16_operations: float, moved_bytes: float) -> Bound:
    """Bound of work that does its int8 and its fp16 operations one after the other."""
    seconds = int8_operations / (gpu.int8_tops * _TERA) + fp16_operations / (gpu.fp16_tflops * _TERA)
    return Bound(seconds * 1e3, moved_bytes / (gpu.memory_gbs * _GIGA) * 1e3)


def bound_of_network(gpu: Gpu, cost: NetworkCost, weight_bits: int) -> Bound:
    """weight_bits 16: all in fp16. 8: convolutions and linears in int8, attention's products in fp16.

    Bytes are those of the weights alone, which no cache holds from one run to the next: activations of a fused
    network are not known here, and would only make the memory's share larger.
    """
    products, attention = cost.gmacs * 2e9, cost.attention_gmacs * 2e9
    weight_bytes = cost.parameters * weight_bits / 8
    if weight_bits == 8:
        return bound_from_work(gpu, products, attention, weight_bytes)
    return bound_from_work(gpu, 0.0, products + attention, weight_bytes)


def table() -> str:
    """Markdown: one line a GPU and network, fp16 beside int8."""
    lines = [
        "| GPU | network | GFLOP | weights, MB | compute, ms | reading weights, ms | least, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for gpu in GPUS:
        totals = [0.0, 0.0]
        for cost in SD21:
            bounds = [bound_of_network(gpu, cost, bits) for bits in (16, 8)]
            totals = [total + bound.least_ms for total, bound in zip(totals, bounds, strict=True)]
            cells = (
                f"{2 * (cost.gmacs + cost.attention_gmacs):.0f}",
                f"{cost.parameters * 2 / 1e6:.0f} / {cost.parameters / 1e6:.0f}",
                *(f"{a:.2f} / {b:.2f}" for a, b in zip(*map(_milliseconds, bounds), strict=True)),
            )
            lines.append(f"| {gpu.name} | {cost.name} | {' | '.join(cells)} |")
        lines.append(f"| {gpu.name} | **all three** | | | | | **{totals[0]:.2f} / {totals[1]:.2f}** |")
    return "\n".join(lines)


def _milliseconds(bound: Bound) -> tuple[float, float, float]:
    return bound.compute_ms, bound.memory_ms, bound.least_ms


if __name__ == "__main__":
    print(table())
