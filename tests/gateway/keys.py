"""Keys of tenants, made as a user makes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

__all__ = ["create_key"]


def create_key(config: Path, tenant: str) -> str:
    """A new key of a tenant of a config."""
    command = [sys.executable, "-m", "airi", "keys", "create", tenant, "--config", str(config), "--json"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return str(json.loads(made.stdout)["key"])
