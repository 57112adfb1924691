"""`axpo doctor`: what this installation can do, and the command that adds what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from axpo.tools.sandbox import isolation_level

REQUIRED = (
    "torch",
    "transformers",
    "numpy",
    "pillow",
    "pydantic",
    "rich",
    "jinja2",
    "safetensors",
    "math-verify",
    "pyarrow",
    "jsonschema",
    "huggingface_hub",
)
EXTRAS = {
    "lora": ("peft",),
    "python": ("scipy", "sympy", "pandas", "matplotlib"),
    "search": ("tantivy", "httpx2", "lxml"),
    "mcp": ("mcp",),
    "endpoint": ("aiohttp",),
    "inspect": ("inspect_ai",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}
"""Extra -> the packages it brings."""


def print_diagnosis() -> None:
    """Print one line per finding."""
    from rich.console import Console

    console = Console(highlight=False)
    for name, finding in diagnose():
        console.print(f"{name:<18} {finding}", markup=False, soft_wrap=True)


def diagnose() -> Iterator[tuple[str, str]]:
    """What was found, as (name, finding)."""
    yield "axpo", _version("axpo") or "not installed"
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in REQUIRED:
        yield name, _version(name) or f"missing: pip install {name}"
    yield from _diagnose_torch()
    yield "memory", _describe_memory()
    yield "disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB free in {Path.cwd()}"
    yield "sandbox", isolation_level()
    for extra, packages in EXTRAS.items():
        for name in packages:
            yield f"extra {extra}", name + " " + (_version(name) or f"missing: pip install 'axpo[{extra}]'")


def _diagnose_torch() -> Iterator[tuple[str, str]]:
    import torch

    yield "threads", f"{torch.get_num_threads()} of torch, {os.cpu_count()} logical CPUs"
    yield "CPU kernels", torch.backends.cpu.get_cpu_capability()
    if not torch.cuda.is_available():
        yield "device", "cpu (no CUDA device)"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield "device", f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _describe_memory() -> str:
    page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    available = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else total
    return f"{total * page / 2**30:.0f} GiB, {available * page / 2**30:.0f} GiB free"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
