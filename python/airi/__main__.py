"""`python -m airi` is `airi`."""

from __future__ import annotations

import sys

from airi.cli import main

sys.exit(main())
