"""Building a local search index from a JSONL file or a folder."""

from __future__ import annotations

import base64
import contextlib
import difflib
import glob
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from axpo.errors import ConfigError, DataError, UserError
from axpo.tools.search.local import INDEX_FILE, INDEX_FORMAT, Document, IndexInfo, analyzer, load_tantivy
from axpo.tools.search.results import MAX_URL_CHARS, clean, one_line
from axpo.tools.search.text import decode, tidy
from axpo.workers import WorkError, text_workers

MAX_DOCUMENT_CHARS = 1_000_000
_TEXT_SUFFIXES = (".txt", ".md", ".html", ".htm")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_HEAP_BYTES = 512_000_000
_PROGRESS_EVERY = 1000
_FIELDS = {"text": ("title", "text", "url", "id"), "caption": ("image", "caption", "title", "url", "id")}
"""Fields of a row: of a document, which has `text`, and of an image, which has `caption`."""
_READ_CPU_S = 20.0
"""Processor time that reading one HTML file may take."""

Progress = Callable[[int], None]
"""Called with the number of documents done."""


def index_command(
    source: Path, out: Path, *, language: str = "english", progress: Progress = lambda num_documents: None
) -> IndexInfo:
    """What `axpo index SOURCE --out DIR` does: build, and open what was built."""
    from axpo.tools.search.local import LocalIndex

    build_index(source, out, language=language, progress=progress)
    return LocalIndex.open(out).info


def build_index(
    source: Path, folder: Path, *, language: str = "english", progress: Progress = lambda num_documents: None
) -> None:
    """Index a source into `folder`; an index that lies there is replaced when the new one is complete.

    Source: JSONL rows `{"title", "text", "url"?, "id"?}` or `{"image": path, "caption", "title"?, "url"?}` (paths
    relative to the file), or a folder with .txt, .md, .html files, or one with pictures, whose captions are in a .txt
    file of the same name (without one, the name is the caption). Raises `DataError` with file and line.
    """
    analyzer(language)
    if not source.exists():
        raise ConfigError(f"index: source {source} does not exist. Give a JSONL file or a folder.")
    _refuse_foreign(folder)
    _clear_killed(folder)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        (partial / "tantivy").mkdir(parents=True)
        info = _write(source, partial / "tantivy", language, progress)
        (partial / INDEX_FILE).write_text(json.dumps(asdict(info), indent=1) + "\n", encoding="utf-8")
        _refuse_foreign(folder)
        if folder.exists():
            old = folder.with_name(f"{folder.name}.{os.getpid()}.old")
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(folder)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # the engine reports a full disk as a ValueError
        if isinstance(error, UnicodeError):
            raise DataError(f"{source}: holds text or a file name that is not UTF-8 ({error}). Correct it.") from error
        raise ConfigError(f"index: {folder} cannot be written: {error}. Free some space or choose another.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear_killed(folder: Path) -> None:
    """Remove what killed builds of `folder` left. An index that was about to be replaced is put back first."""
    for path in folder.parent.glob(f"{glob.escape(folder.name)}.*"):
        match = re.fullmatch(r"\.(\d+)\.(partial|old)", path.name.removeprefix(folder.name))
        if match is None or _is_running(int(match[1])):
            continue
        if match[2] == "old" and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return pid != os.getpid()  # this process: it got the id of the killed one


def left_out(source: Path) -> dict[str, int]:
    """Files of a folder that are not indexed, by their suffix; empty for a JSONL file."""
    if not source.is_dir():
        return {}
    files = _files(source)
    read = {path.with_suffix(suffix) for path in files.read for suffix in (path.suffix, ".txt")}
    return dict(Counter(path.suffix.lower() or path.name for path in files.all if path not in read))


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / INDEX_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"index: {folder} exists and is no search index. Choose another folder.")


def _write(source: Path, folder: Path, language: str, progress: Progress) -> IndexInfo:
    tantivy = load_tantivy()
    schema = tantivy.SchemaBuilder()
    for field in ("title", "text"):
        schema.add_text_field(field, stored=True, tokenizer_name="axpo", index_option="freq")
    schema.add_text_field("url", stored=True, tokenizer_name="raw", index_option="basic")
    schema.add_bytes_field("image", stored=True)
    schema.add_integer_field("ordinal", fast=True)
    index = tantivy.Index(schema.build(), path=str(folder))
    index.register_tokenizer("axpo", analyzer(language))
    writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)  # one thread: documents stay in order
    sha256 = hashlib.sha256()
    try:
        num_documents, num_images = _add_documents(writer, _read_source(source, sha256.update), progress)
        if num_images not in (0, num_documents):
            raise DataError(f"{source}: {num_images} of {num_documents} entries are pictures. Index them apart.")
        if num_documents == 0:
            texts = ", ".join(_TEXT_SUFFIXES)
            raise DataError(f"{source}: nothing to index. Expected JSONL rows, or {texts}, or pictures.")
        writer.commit()
    finally:
        writer.wait_merging_threads()  # whatever happened: its threads write into the folder
    progress(num_documents)
    return IndexInfo(
        format=INDEX_FORMAT,
        engine=f"tantivy {version('tantivy')}",
        source=source.name,
        source_sha256=sha256.hexdigest(),
        num_documents=num_documents,
        language=language,
        has_images=num_images > 0,
    )


def _add_documents(writer: Any, documents: Iterable[Document], progress: Progress) -> tuple[int, int]:
    """How many documents, and how many of them pictures."""
    tantivy = load_tantivy()
    num_documents, num_images = 0, 0
    for num_documents, document in enumerate(documents, start=1):
        num_images += bool(document.image)
        entry = tantivy.Document(title=document.title, text=document.text, url=document.url, ordinal=num_documents)
        if document.image:
            entry.add_bytes("image", os.fsencode(document.image))
        writer.add_document(entry)
        if num_documents % _PROGRESS_EVERY == 0:
            progress(num_documents)
    return num_documents, num_images


# -- sources ----------------------------------------------------------------------------------------------------------


def _read_source(source: Path, update_hash: Callable[[bytes], object]) -> Iterator[Document]:
    seen: set[str] = set()
    for origin, document in _read_folder(source, update_hash) if source.is_dir() else _read_jsonl(source, update_hash):
        if len(document.text) > MAX_DOCUMENT_CHARS:
            raise DataError(f"{origin}: {len(document.text)} characters, at most {MAX_DOCUMENT_CHARS}. Split it.")
        if not document.text and not document.title:
            raise DataError(f"{origin}: neither title nor text. Remove it.")
        if document.url in seen:
            raise DataError(f"{origin}: another document has the address {document.url}. Make url or id unique.")
        seen.add(document.url)
        yield document


def _read_jsonl(path: Path, update_hash: Callable[[bytes], object]) -> Iterator[tuple[str, Document]]:
    with _naming(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            update_hash(line)
            if not line.strip():
                continue
            origin = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{origin}: not JSON: {error}. Write one object a line.") from error
            if not isinstance(row, dict):
                raise DataError(f"{origin}: expected a JSON object with title and text.")
            yield origin, _read_row(cast("dict[str, Any]", row), number, origin, path.parent, update_hash)


def _read_row(
    row: dict[str, Any], number: int, origin: str, folder: Path, update_hash: Callable[[bytes], object]
) -> Document:
    body = "caption" if "image" in row else "text"
    for field in row:
        if field not in _FIELDS[body]:
            near = difflib.get_close_matches(field, _FIELDS[body], n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(_FIELDS[body])}."
            raise DataError(f"{origin}: unknown field {field!r}. {hint}")
    for field in (body, *(name for name in ("title", "url", "image") if name in row)):
        if not isinstance(row.get(field), str):
            raise DataError(f"{origin}: {field} must be text, got {json.dumps(row.get(field))[:40]}.")
    identifier = row.get("id", number)
    if isinstance(identifier, bool) or not isinstance(identifier, (str, int)):
        raise DataError(f"{origin}: id must be text or a whole number, got {json.dumps(identifier)[:40]}.")
    image = str(_checked_image(folder / row["image"], origin, update_hash)) if "image" in row else ""
    return Document(
        title=one_line(row.get("title", "")),
        url=_checked_url(row.get("url") or f"local:{identifier}", origin),
        text=tidy(row[body]),
        image=image,
    )


def _read_folder(folder: Path, update_hash: Callable[[bytes], object]) -> Iterator[tuple[str, Document]]:
    files = _files(folder)
    for path in files.read:
        name = _readable(path.relative_to(folder).as_posix(), path)
        update_hash(name.encode() + b"\0")
        if files.are_pictures:
            _checked_image(path, name, update_hash)
            caption = path.with_suffix(".txt")
            data = caption.read_bytes() if caption.is_file() else b""
            update_hash(data)
            text = tidy(decode(data)) or path.stem.replace("_", " ").replace("-", " ")
            title, image = "", str(path.resolve())
        else:
            with _naming(path):
                data = path.read_bytes()
            update_hash(data)
            is_html = path.suffix.lower() in (".html", ".htm")
            title, text = _read_html(data, path) if is_html else ("", tidy(decode(data)))
            title, image = title or path.stem, ""
        yield str(path), Document(title=title, url=_checked_url(f"local:{name}", name), text=text, image=image)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """The files of a folder. Images are read if there are any, else texts."""

    all: list[Path]
    read: list[Path]
    are_pictures: bool


def _files(folder: Path) -> _Files:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in _IMAGE_SUFFIXES]
    texts = [path for path in files if path.suffix.lower() in _TEXT_SUFFIXES]
    return _Files(all=files, read=pictures or texts, are_pictures=bool(pictures))


def _readable(name: str, path: Path) -> str:
    """The name of a file, which becomes its address. Raises `DataError` unless it is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{str(path)!a}: the name of this file is not UTF-8. Rename it.") from error
    return name


def _read_html(data: bytes, path: Path) -> tuple[str, str]:
    """Title and text, read in a worker process."""
    body = base64.b64encode(data).decode()
    try:
        title, text = text_workers.run("axpo.tools.search.text:read_html", body, cpu_s=_READ_CPU_S)
    except WorkError as error:
        raise DataError(f"{path}: its text cannot be read: {error}. Remove it from the folder.") from error
    return title, text


def _checked_image(path: Path, origin: str, update_hash: Callable[[bytes], object]) -> Path:
    from axpo.images import ContentImageStore

    ref = ContentImageStore().add_file(path, origin=origin)
    if max(ref.width_px, ref.height_px) > 200 * min(ref.width_px, ref.height_px):
        raise DataError(f"{origin}: the picture is a mere stripe ({ref.width_px}x{ref.height_px} px). Remove it.")
    update_hash(ref.sha256.encode())
    return path.resolve()


def _checked_url(url: str, origin: str) -> str:
    url = clean(url).strip()
    if (any(c.isspace() for c in url) and not url.startswith("local:")) or len(url) > MAX_URL_CHARS:
        raise DataError(f"{origin}: url must have no spaces and at most {MAX_URL_CHARS} characters: {url[:80]!r}.")
    return url


@contextlib.contextmanager
def _naming(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
