"""Rotary position embeddings: from a config's fields to a table of cosines and sines.

Formulas (d = rotary_dim, i = 0, 2, .. d-2; b = theta):

    default   w_i = b^(-i/d)
    linear    w_i / factor
    dynamic   default inside the original window; beyond it the base would change under cached keys: refused
    llama3    long wavelengths divided by factor, short ones kept, smooth in between
    yarn      ramp between w_i / factor and w_i by number of rotations; cos and sin times an attention factor
    longrope  w_i / short_factor_i, or / long_factor_i when opened for more than the original window
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airi.engine.config_json import JsonFields
from airi.engine.spec import RopeSpec

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
# Names that older configs use for the same thing.
_ALIASES = {"su": "longrope", "ntk": "dynamic"}


def parse_rope(
    values: dict[str, Any], source: str, *, head_dim: int, max_position_embeddings: int, default_theta: float
) -> RopeSpec:
    """One rotary embedding from its (already merged) config fields; `source` names them in errors."""
    fields = JsonFields(values, source)
    name = "rope_type" if fields.has("rope_type") else "type"
    kind = fields.string(name, "default")
    kind = _ALIASES.get(kind, kind)
    if kind not in ROPE_KINDS:
        raise fields.fail(name, ", ".join(ROPE_KINDS))
    partial = fields.number("partial_rotary_factor", 1.0)
    rotary_dim = int(head_dim * partial)
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
        raise fields.fail("partial_rotary_factor", f"a share of head_dim {head_dim} that gives an even size")
    original = fields.optional_integer("original_max_position_embeddings", minimum=1)
    if original is None and kind in ("llama3", "yarn", "longrope", "dynamic"):
        original = max_position_embeddings
    longrope = kind == "longrope"
    spec = RopeSpec(
        kind=kind,  # type: ignore[arg-type]
        theta=fields.number("rope_theta", default_theta),
        rotary_dim=rotary_dim,
        max_position_embeddings=max_position_embeddings,
        factor=_factor(fields, kind, original, max_position_embeddings),
        original_max_position_embeddings=original,
        attention_factor=fields.optional_number("attention_factor"),
        low_freq_factor=fields.number("low_freq_factor") if kind == "llama3" else 1.0,
        high_freq_factor=fields.number("high_freq_factor") if kind == "llama3" else 4.0,
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        mscale=fields.optional_number("mscale"),
        mscale_all_dim=fields.optional_number("mscale_all_dim"),
        truncate=fields.boolean("truncate", default=True),
        short_factor=fields.numbers("short_factor") if longrope else (),
        long_factor=fields.numbers("long_factor") if longrope else (),
    )
    if spec.high_freq_factor <= spec.low_freq_factor:
        raise fields.fail("high_freq_factor", f"a number above low_freq_factor {spec.low_freq_factor}")
    for field in ("short_factor", "long_factor") if longrope else ():
        if len(getattr(spec, field)) != rotary_dim // 2:
            raise fields.fail(field, f"{rotary_dim // 2} numbers")
    return spec


def _factor(fields: JsonFields, kind: str, original: int | None, max_position_embeddings: int) -> float:
    if kind in ("linear", "dynamic", "llama3"):
        return fields.number("factor")
    if kind in ("yarn", "longrope") and original is not None:
        return fields.number("factor", max_position_embeddings / original)
    return 1.0


def context_limit(spec: RopeSpec) -> int:
    """The longest sequence this embedding is right for."""
    if spec.kind == "dynamic" and spec.original_max_position_embeddings is not None:
        return min(spec.max_position_embeddings, spec.original_max_position_embeddings)
    if spec.kind == "yarn" and spec.original_max_position_embeddings is not None:
        # Published configs often keep the trained length in max_position_embeddings and add YaRN by hand.
        return max(spec.max_position_embeddings, int(spec.original_max_position_embeddings * spec.factor))
    return spec.max_position_embeddings


def cos_sin_table(spec: RopeSpec, max_model_len: int) -> NDArray[np.float32]:
    """Table [max_model_len, rotary_dim] float32: the first half of a row holds cosines, the second sines.

    The attention factor is folded in. Angles are rounded to float32 before the cosine, as in training.
    """
    inverse = inverse_frequencies(spec, max_model_len)
    half = spec.rotary_dim // 2
    table = np.empty((max_model_len, spec.rotary_dim), np.float32)
    angles = np.arange(max_model_len, dtype=np.float32)[:, None] * inverse.astype(np.float32)[None, :]
    np.cos(angles, out=table[:, :half])
    np.sin(angles, out=table[:, half:])
    scale = attention_factor(spec)
    if scale != 1.0:
        table *= np.float32(scale)
    return table


def attention_factor(spec: RopeSpec) -> float:
    """What cosines and sines are multiplied by (YaRN and LongRoPE; 1 for the others)."""
    if spec.kind == "yarn":
        if spec.attention_factor is not None:
            return spec.attention_factor
        if spec.mscale and spec.mscale_all_dim:
            return _yarn_mscale(spec.factor, spec.mscale) / _yarn_mscale(spec.factor, spec.mscale_all_dim)
        return _yarn_mscale(spec.factor, 1.0)
    if spec.kind == "longrope":
        if spec.attention_factor is not None:
            return spec.attention_factor
        original = spec.original_max_position_embeddings or spec.max_position_embeddings
        return 1.0 if spec.factor <= 1.0 else math.sqrt(1.0 + math.log(spec.factor) / math.log(original))
    return 1.0


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def inverse_frequencies(spec: RopeSpec, max_model_len: int) -> NDArray[np.float64]:
    """Angular frequencies [rotary_dim / 2] in radians per position."""
    dim = spec.rotary_dim
    plain = np.power(spec.theta, -np.arange(0, dim, 2, dtype=np.float64) / dim)
    if spec.kind == "linear":
        return plain / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, plain)
    if spec.kind == "yarn":
        return _yarn(spec, plain)
    if spec.kind == "longrope":
        original = spec.original_max_position_embeddings or spec.max_position_embeddings
        factors = spec.long_factor if max_model_len > original else spec.short_factor
        return np.asarray(plain / np.array(factors))
    return np.asarray(plain)


def _llama3(spec: RopeSpec, plain: NDArray[np.float64]) -> NDArray[np.float64]:
    original = float(spec.original_max_position_embeddings or spec.max_position_embeddings)
    rotations = original * plain / (2.0 * math.pi)
    smooth = (rotations - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return np.asarray((1.0 - smooth) * plain / spec.factor + smooth * plain)


def _yarn(spec: RopeSpec, plain: NDArray[np.float64]) -> NDArray[np.float64]:
    dim = spec.rotary_dim
    original = float(spec.original_max_position_embeddings or spec.max_position_embeddings)

    def dimension_with(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2.0 * math.pi)) / (2.0 * math.log(spec.theta))

    low, high = dimension_with(spec.beta_fast), dimension_with(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return plain / spec.factor * ramp + plain * (1.0 - ramp)
