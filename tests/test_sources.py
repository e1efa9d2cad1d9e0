"""Names of what is fetched."""

from __future__ import annotations

import pytest

from airi._sources import is_remote, is_well_formed, source_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://org/tiny", "tiny"),
        ("hf://org/tiny@main", "tiny"),
        ("oci://localhost:5000/ml/tiny:4", "tiny"),
        (f"oci://r.example/tiny@sha256:{'a' * 64}", "tiny"),
        (f"oci://r.example/a/b/tiny:1@sha256:{'a' * 64}", "tiny"),
        ("models:/tiny/3", "tiny"),
        ("models:/my-tiny@champion", "my-tiny"),
        ("models:/tiny/latest", "tiny"),
    ],
)
def test_what_is_fetched_has_a_name(source: str, name: str) -> None:
    assert is_remote(source)
    assert is_well_formed(source)
    assert source_name(source) == name


@pytest.mark.parametrize(
    "source",
    [
        "hf://tiny",
        "oci://tiny",
        "oci://r/tiny:",
        "oci://r/Tiny",
        "models:/tiny",
        "models:/tiny/0",
        "models:tiny/1",
        "s3://x/y",
    ],
)
def test_what_names_nothing_is_told_apart(source: str) -> None:
    assert not is_well_formed(source)
