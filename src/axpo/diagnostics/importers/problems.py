"""What could not be read: counted, the first few kept to be shown, never fatal."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_SHOWN = 5
_MAX_CHARS = 200


@dataclass(slots=True)
class Problems:
    """Counts and examples of what was skipped."""

    num_malformed: int = 0
    """Lines, rows or samples."""
    malformed: list[str] = field(default_factory=list[str])
    """The first few, with place and reason."""
    num_skipped: int = 0
    """Files."""
    skipped: list[str] = field(default_factory=list[str])
    """The first few, with the reason."""

    def add_malformed(self, place: str, reason: object) -> None:
        """A row that is none."""
        self.num_malformed += 1
        if len(self.malformed) < MAX_SHOWN:
            self.malformed.append(f"{plain(place)}: {plain(str(reason))}")

    def add_skipped(self, path: object, reason: object) -> None:
        """A file that is not read."""
        self.num_skipped += 1
        if len(self.skipped) < MAX_SHOWN:
            self.skipped.append(f"{plain(str(path))}: {plain(str(reason))}")


def plain(text: str, max_chars: int = _MAX_CHARS) -> str:
    """`text` without control characters and surrogates, cut: what a file holds may be written to a terminal.

    >>> plain("a\\x1b[31mb")
    'a?[31mb'
    """
    cut = text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."
    return "".join(character if character.isprintable() else "?" for character in cut)
