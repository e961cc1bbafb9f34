"""What a call computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a call computes, moves and holds."""

    matrix: float = 0.0  # FLOPs of matrix products and convolutions in 16 bits
    matrix_32: float = 0.0  # the same in float32
    attention: float = 0.0  # FLOPs of fused attention
    moved: float = 0.0  # bytes that all other operations read and write
    peak: float = 0.0  # bytes of tensors made on the way that are alive at once, at most

    @property
    def flops(self) -> float:
        """All of them."""
        return self.matrix + self.matrix_32 + self.attention

    def plus(self, other: Work, times: float = 1.0) -> Work:
        """Field by field, `times` of the other."""
        return Work(
            **{name: value + times * vars(other)[name] for name, value in vars(self).items()}
        )
