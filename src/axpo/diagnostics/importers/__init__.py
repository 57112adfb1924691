"""Rollouts that other people's trainers wrote, as `SeenRollout` records; `read_dump` is the way in."""

from axpo.diagnostics.importers.detection import FORMATS, OpenDump, open_dump
from axpo.diagnostics.importers.files import DumpFile, find_dumps
from axpo.diagnostics.importers.problems import Problems
from axpo.diagnostics.importers.seen import SeenCall, SeenRollout

__all__ = ["FORMATS", "DumpFile", "OpenDump", "Problems", "SeenCall", "SeenRollout", "find_dumps", "open_dump"]
