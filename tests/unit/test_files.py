"""Files and folders that are whole, or gone, whenever the process dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from axpo.files import append_line, temporary_folder

MAKING = "import sys; from axpo.files import temporary_folder; print(temporary_folder(sys.argv[1]), flush=True); "


def start(prefix: str, then: str) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", MAKING + then, prefix], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_temporary_folders_go_with_their_program_or_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    ended, folder = start("axpo-test-", "pass")
    assert ended.communicate(timeout=20) and not folder.exists()
    killed, left = start("axpo-test-", "import time; time.sleep(60)")
    running, used = start("axpo-test-", "import time; time.sleep(60)")
    foreign = tmp_path / "axpo-test-of-someone"
    foreign.mkdir()
    try:
        killed.kill()
        assert killed.communicate(timeout=20) and killed.returncode == -signal.SIGKILL and left.exists()
        made = temporary_folder("axpo-test-")
        assert not left.exists() and used.exists() and made.exists() and foreign.exists()
    finally:
        running.kill()
        running.communicate(timeout=20)


def test_a_line_goes_behind_the_last_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "a")
    with path.open("a") as file:
        file.write("half")
    append_line(path, "b")
    assert path.read_text() == "a\nb\n"
    path.write_text("half")
    append_line(path, "c")
    assert path.read_text() == "c\n"
