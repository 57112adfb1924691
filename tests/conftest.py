"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-VL of some 200,000 parameters in the layout of a published checkpoint."""
    from axpo.models.scratch import save_scratch_checkpoint

    return save_scratch_checkpoint(tmp_path_factory.mktemp("tiny-qwen3-vl"))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to train in: a configuration, data, and a tiny model that has learnt to answer (`workshop.py`)."""
    from workshop import build_workshop

    return build_workshop(tmp_path_factory.mktemp("workshop"))
