"""What several engines serve and count, as if they were one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from airi.transport.messages import EngineStats, ModelInfo, ModelStats, TierStats

__all__ = ["difference", "merge_models", "merge_stats"]

_ALIKE = ("architecture", "vocab_size", "eos_token_ids")
_COUNTS = tuple(f.name for f in msgspec.structs.fields(ModelStats) if f.type is int)
_TIER_COUNTS = tuple(field.name for field in msgspec.structs.fields(TierStats))


def difference(one: ModelInfo, other: ModelInfo) -> str | None:
    """In what two models of one name cannot be replicas of each other; None where they can."""
    for field in _ALIKE:
        if getattr(one, field) != getattr(other, field):
            return f"{field} is {getattr(one, field)!r} and {getattr(other, field)!r}"
    return None


def merge_models(served: Iterable[Sequence[ModelInfo]]) -> list[ModelInfo]:
    """Each model once, in the order of their coming, with the window that all its replicas have."""
    found: dict[str, ModelInfo] = {}
    for models in served:
        for model in models:
            known = found.setdefault(model.name, model)
            if model.max_model_len < known.max_model_len:
                found[model.name] = msgspec.structs.replace(known, max_model_len=model.max_model_len)
    return list(found.values())


def merge_stats(stats: Iterable[EngineStats | None]) -> EngineStats | None:
    """The sums of what engines count; a model is awake where one of them has it awake."""
    by_name: dict[str, list[ModelStats]] = {}
    for each in stats:
        for model in () if each is None else each.models:
            by_name.setdefault(model.name, []).append(model)
    if not by_name:
        return None
    return EngineStats([_sum(models) for models in by_name.values()])


def _sum(models: Sequence[ModelStats]) -> ModelStats:
    tiers = [model.tiers for model in models if model.tiers is not None]
    states = [model.state for model in models]
    return msgspec.structs.replace(
        models[0],
        **{name: sum(getattr(model, name) for model in models) for name in _COUNTS},
        state="awake" if "awake" in states else states[0],
        tiers=TierStats(**{name: sum(getattr(each, name) for each in tiers) for name in _TIER_COUNTS})
        if tiers
        else None,
    )
