"""Which hits a budget of tokens is spent on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Packed", "pack", "weights_of"]


class Packed(NamedTuple):
    """Items by their numbers, the densest one first."""

    order: list[int]
    """All of them."""
    chosen: list[int]
    value: float
    """Of what is chosen."""
    bound: float
    """No choice has a higher value."""


def weights_of(scores: Sequence[float]) -> list[float]:
    """The scores, from the lowest one where that is negative: a knapsack's values are not."""
    lowest = min(0.0, *scores) if scores else 0.0
    return [score - lowest for score in scores]


def pack(weights: Sequence[float], costs: Sequence[int], room: int, names: Sequence[str]) -> Packed:
    """Items whose costs fit `room`, by weight per cost, or by weight where that is worth more.

    The one with the highest weight that fits is the first by weight, so the value is at least half of the best one
    there is. Equal ones go by name: the same items give the same choice in any order.
    """
    dense = sorted(range(len(costs)), key=lambda i: (-weights[i] / max(costs[i], 1), -weights[i], names[i]))
    heavy = sorted(range(len(costs)), key=lambda i: (-weights[i], costs[i], names[i]))
    by_density, by_weight = _fill(dense, costs, room), _fill(heavy, costs, room)
    chosen = max(by_density, by_weight, key=lambda each: sum(weights[i] for i in each))
    rank = {item: place for place, item in enumerate(dense)}
    chosen = sorted(chosen, key=rank.__getitem__)
    return Packed(dense, chosen, sum(weights[i] for i in chosen), _bound(dense, weights, costs, room))


def _fill(order: Sequence[int], costs: Sequence[int], room: int) -> list[int]:
    chosen = []
    for item in order:
        if costs[item] <= room:
            chosen.append(item)
            room -= costs[item]
    return chosen


def _bound(dense: Sequence[int], weights: Sequence[float], costs: Sequence[int], room: int) -> float:
    """The value where the first item that does not fit could be cut (Dantzig's bound)."""
    value = 0.0
    left = room
    for item in dense:
        if costs[item] > room:
            continue  # it fits no choice at all
        if costs[item] > left:
            return value + weights[item] * left / costs[item]
        value += weights[item]
        left -= costs[item]
    return value
