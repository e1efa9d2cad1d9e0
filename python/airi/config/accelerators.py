"""Devices that a config may name, and how much memory each has."""

from __future__ import annotations

__all__ = ["ACCELERATORS", "ANY", "CPU", "is_known"]

ANY = "any"
CPU = "cpu"

_GB = 10**9
ACCELERATORS = {
    "B200": 180 * _GB,
    "H200": 141 * _GB,
    "GH200": 96 * _GB,
    "H100-NVL": 94 * _GB,
    "H100": 80 * _GB,
    "A100-80G": 80 * _GB,
    "A100": 40 * _GB,
    "L40S": 48 * _GB,
    "A6000": 48 * _GB,
    "A40": 48 * _GB,
    "RTX-5090": 32 * _GB,
    "RTX-4090": 24 * _GB,
    "A10G": 24 * _GB,
    "L4": 24 * _GB,
    "MI325X": 256 * _GB,
    "MI300X": 192 * _GB,
}
"""Bytes as their makers say; a name without a size is the smallest that is sold under it."""


def is_known(name: str) -> bool:
    """Whether a name, in upper or lower case, is that of a device here."""
    return name.lower() in (ANY, CPU) or name.upper() in ACCELERATORS
