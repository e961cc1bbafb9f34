"""GPUs: how much they hold, and how fast they are."""

from __future__ import annotations

from dataclasses import dataclass

from branchgrpo.errors import UserError, one_line
from branchgrpo.estimate.work import Work

MIB = 1 << 20

MATRIX, ATTENTION, FLOAT32, TRAFFIC = 0.61, 0.38, 0.67, 0.78
"""Share of the printed rate that eager code is taken to reach, by kind of work. On an H100 that is
600, 380 and 45 TFLOP/s and 2.6 TB/s: what is commonly measured there for large products,
FlashAttention 2 with backward, float32 without TF32, and elementwise kernels."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """As its maker's data sheet has it: rates without sparsity, memory as the driver reports it."""

    name: str
    memory: float  # bytes
    matrix: float  # FLOP/s of bfloat16 matrix products with float32 sums
    float32: float  # FLOP/s of float32 outside tensor cores
    bandwidth: float  # bytes/s of its memory

    def seconds(self, work: Work) -> float:
        """Of this work; kinds of it one after the other, as in eager code. ± 40 %."""
        return (
            work.matrix / (MATRIX * self.matrix)
            + work.attention / (ATTENTION * self.matrix)
            + work.matrix_32 / (FLOAT32 * self.float32)
            + work.moved / (TRAFFIC * self.bandwidth)
        )


def _card(name: str, mib: int, matrix: float, float32: float, bandwidth: float) -> Card:
    """mib: memory; TFLOP/s twice; TB/s."""
    return Card(
        name=name,
        memory=float(mib * MIB),
        matrix=matrix * 1e12,
        float32=float32 * 1e12,
        bandwidth=bandwidth * 1e12,
    )


CARDS = {
    card.name: card
    for card in (
        _card("b200", 183359, 2250, 75, bandwidth=8.0),  # HGX B200 data sheet
        _card("h200", 143771, 989, 67, bandwidth=4.8),  # H200 SXM data sheet
        _card("h100", 81559, 989, 67, bandwidth=3.35),  # H100 SXM5 data sheet
        _card("h100-pcie", 81559, 756, 51, bandwidth=2.0),  # H100 PCIe data sheet
        _card("h20", 97871, 148, 44, bandwidth=4.0),  # as its sellers print it
        _card("a100", 81920, 312, 19.5, bandwidth=2.039),  # A100 80GB SXM data sheet
        _card("a100-40gb", 40960, 312, 19.5, bandwidth=1.555),  # A100 40GB SXM data sheet
        _card("l40s", 46068, 362, 91.6, bandwidth=0.864),  # L40S data sheet
        _card("rtx5090", 32607, 210, 105, bandwidth=1.792),  # Blackwell RTX white paper
        _card("rtx4090", 24564, 165, 82.6, bandwidth=1.008),  # Ada white paper
        _card("l4", 23034, 121, 30.3, bandwidth=0.3),  # L4 data sheet
    )
}


def card(name: str) -> Card:
    """Of --card. Raises UserError for one that is not known."""
    found = CARDS.get(name.lower())
    if not found:
        raise UserError(f"--card: expected one of {', '.join(CARDS)}, got {one_line(name)!r}")
    return found


def recognised(name: str) -> Card | None:
    """The card that a driver, or Ray's accelerator_type, calls so: "NVIDIA H100 80GB HBM3",
    "A100-40G". None for others."""
    words = name.lower().replace("-", " ").replace("geforce ", "")
    joined = words.replace("rtx ", "rtx")
    if "a100" in words and "40g" in words:
        return CARDS["a100-40gb"]
    if "h100" in words and "pcie" in words:
        return CARDS["h100-pcie"]
    return next((CARDS[word] for word in joined.split() if word in CARDS), None)
