"""The losses of the forward process, written out from their papers' formulas for a whole group at
once, in float64 and with every coupling of its leaves under autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def each(values: Tensor) -> list[Tensor]:
    """Rows, flat."""
    return [row.reshape(-1) for row in values.double()]


def rating(advantage: float, most: float = 5.0) -> float:
    """r̂."""
    return min(1.0, max(0.0, min(most, max(-most, advantage)) / most / 2 + 0.5))


def nft(
    v: Tensor,
    old: Tensor,
    x0: Tensor,
    noise: Tensor,
    t: list[float],
    advantage: list[float],
    *,
    beta: float,
    weighted: bool = True,
) -> Tensor:
    """[n] 5·(r̂·L⁺ + (1 − r̂)·L⁻)/β."""
    losses = []
    for i, (new, kept, clean, added) in enumerate(
        zip(each(v), each(old), each(x0), each(noise), strict=True)
    ):
        noised = (1 - t[i]) * clean + t[i] * added
        parts = []
        for mixed in (
            (1 - beta) * kept + beta * new,
            (1 + beta) * kept - beta * new,
        ):
            predicted = noised - t[i] * mixed
            weight = (predicted - clean).abs().mean().item() if weighted else 1.0
            parts.append(((predicted - clean) ** 2 / max(weight, 1e-5)).mean())
        r = rating(advantage[i])
        losses.append(5 * (r * parts[0] + (1 - r) * parts[1]) / beta)
    return torch.stack(losses)


def matched(v: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """[n] ℓ."""
    return torch.stack(
        [
            ((new - (added - clean)) ** 2).mean()
            for new, clean, added in zip(each(v), each(x0), each(noise), strict=True)
        ]
    )


def log_p(v: Tensor, x0: Tensor, noise: Tensor, t: list[float], weighting: str) -> Tensor:
    """[n] AWM's log p, p = ¼ for `power`."""
    error, level = matched(v, x0, noise), torch.tensor(t, dtype=torch.float64)
    if weighting == "power":
        return -level * 4 * ((error + 1e-10) ** 0.25 - 1e-10**0.25)
    return -error * level ** {"uniform": 0, "t": 1, "t2": 2}[weighting]


def awm(new: Tensor, old: Tensor, advantage: list[float], clip_range: float) -> Tensor:
    """[n] of log p and log p_old."""
    losses = []
    for i, value in enumerate(advantage):
        a = min(5.0, max(-5.0, value)) / 5
        ratio = (new[i] - old[i].item()).exp()
        bounded = ratio.clamp(1 - clip_range, 1 + clip_range)
        losses.append(torch.maximum(-a * ratio, -a * bounded))
    return torch.stack(losses)


def dgpo(v: Tensor, base: Tensor, x0: Tensor, noise: Tensor, advantage: list[float]) -> Tensor:
    """[n] of one group; β = 100."""
    new, ref = matched(v, x0, noise), matched(base, x0, noise)
    drift = sum(a * 100 * (new[i].item() - ref[i].item()) for i, a in enumerate(advantage))
    omega = torch.sigmoid(torch.tensor(drift / len(advantage), dtype=torch.float64))
    return torch.stack([omega * a * new[i] for i, a in enumerate(advantage)])


def crd(
    v: Tensor, old: Tensor, x0: Tensor, noise: Tensor, advantage: list[float], beta: float
) -> Tensor:
    """[n] of one group; both means have their gradient."""
    gains = []
    for new, kept, clean, added in zip(each(v), each(old), each(x0), each(noise), strict=True):
        target = added - clean
        terms = [
            ((one - target) ** 2).mean() / (one.detach() - target).abs().mean().clamp(min=1e-5)
            for one in (new, kept)
        ]
        gains.append(-(terms[0] - terms[1]))
    gain = torch.stack(gains)
    rated = torch.tensor([rating(a) for a in advantage], dtype=torch.float64)
    return 5 / beta * (beta * (gain - gain.mean()) - (rated - rated.mean())) ** 2
