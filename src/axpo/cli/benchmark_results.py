"""What `axpo eval` shows of evaluated benchmarks: one folder's results, a table over several, two compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
