"""Muon for the matrices inside the layers, AdamW for the embedding and the norms."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic iteration that pulls singular values towards 1


def orthogonalised(stack: Tensor, steps: int = 5) -> Tensor:
    """Each matrix of float [count, rows, columns] with its singular values moved close to 1."""
    a, b, c = _COEFFICIENTS
    x = stack.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Momentum whose update of each matrix is orthogonalised; matrices of one shape are handled together.

    Thread safety: none.
    """

    def __init__(self, parameters: list[nn.Parameter], momentum: float, weight_decay: float) -> None:
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape].append(parameter)
        self._groups = list(groups.values())
        self._momentum, self._weight_decay = momentum, weight_decay
        self.buffers = [torch.zeros(len(g), *g[0].shape) for g in self._groups]

    def step(self, rate: float) -> None:
        """Applies the gradients with this learning rate."""
        with torch.no_grad():
            for group, buffer in zip(self._groups, self.buffers, strict=True):
                self._update(group, buffer, rate)

    def clear(self) -> None:
        """Forgets the gradients."""
        for group in self._groups:
            for parameter in group:
                parameter.grad = None

    def _update(self, group: list[nn.Parameter], buffer: Tensor, rate: float) -> None:
        gradient = torch.stack([p.grad for p in group if p.grad is not None])
        buffer.lerp_(gradient, 1 - self._momentum)
        update = orthogonalised(gradient.lerp_(buffer, self._momentum))
        scale = max(1.0, group[0].shape[0] / group[0].shape[1]) ** 0.5
        for parameter, change in zip(group, update, strict=True):
            parameter.mul_(1 - rate * self._weight_decay).add_(change, alpha=-rate * scale)


class Optimiser:
    """Both optimisers behind one step; rates are given as a share of their peak."""

    def __init__(self, model: nn.Module, muon_rate: float, adam_rate: float) -> None:
        inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        outer = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        self._muon_rate, self._adam_rate = muon_rate, adam_rate
        self.muon = Muon(inner, momentum=0.95, weight_decay=0.01)
        self.adam = torch.optim.AdamW(outer, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, share: float) -> None:
        """One update at `share` of the peak rates."""
        self.muon.step(self._muon_rate * share)
        for group in self.adam.param_groups:
            group["lr"] = self._adam_rate * share
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.muon.clear()
