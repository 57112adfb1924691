"""A small world to train in, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from workshop import build_workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `workshop.build_workshop`."""
    return build_workshop(tmp_path_factory.mktemp("workshop"))
