"""Readable text of web pages and files."""

from __future__ import annotations

import base64
import contextlib
import re
from itertools import islice
from typing import Any

from axpo.errors import MissingExtraError
from axpo.tools.search.results import clean

MAX_TEXT_CHARS = 200_000
_DROPPED = frozenset(
    re.findall(r"\w+", "script style noscript template svg math head nav header footer aside form button select iframe")
)
_BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "address article blockquote br caption dd div dl dt figcaption figure h1 h2 h3 h4 h5 h6 hr li main ol p pre "
        "section table tbody td tfoot th thead tr ul",
    )
)
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?([\w-]{1,30})""", re.IGNORECASE)
_KNOWN_CHARSETS = re.compile(
    r"utf-?8|utf-?16(le|be)?|us-ascii|ascii|latin-?1|iso-8859-\d+|windows-125\d|cp125\d|koi8-[ru]|shift[_-]jis|euc-(jp|kr)|"
    r"gbk|gb2312|gb18030|big5",
    re.IGNORECASE,
)
_MIN_ARTICLE_CHARS = 200


def read_page(body: str, is_html: bool, charset: str | None) -> str:
    """Title and text of a web page, given in base 64. Work for `axpo.workers`: parsers take any time on some pages."""
    data = base64.b64decode(body)
    if not is_html:
        return tidy(decode(data, charset=charset))[:MAX_TEXT_CHARS]
    title, text = html_text(data, charset=charset)
    return f"{title}\n\n{text}".strip()[:MAX_TEXT_CHARS]


def read_html(body: str) -> tuple[str, str]:
    """`html_text` of a file, given in base 64. Work for `axpo.workers`."""
    return html_text(base64.b64decode(body))


def html_text(data: bytes, *, charset: str | None = None) -> tuple[str, str]:
    """Title and text of an HTML page: its main part where it marks one, without menus, scripts and forms."""
    html = _lxml_html()
    parser = html.HTMLParser(no_network=True, remove_comments=True, remove_pis=True, encoding="utf-8")
    try:
        root = html.document_fromstring(decode(data, charset=charset).encode(), parser=parser)
    except (ValueError, html.etree.ParserError):
        return "", ""
    title = clean(" ".join((root.findtext(".//title") or "").split()))
    main = max((_node_text(node) for node in islice(root.iter("main", "article"), 5)), key=len, default="")
    return title, main if len(main) >= _MIN_ARTICLE_CHARS else _node_text(root)


def decode(data: bytes, *, charset: str | None = None) -> str:
    """Text in the given character set, else in the one an HTML page names, else UTF-8; wrong bytes become �."""
    named = _CHARSET.search(data[:2000])
    for name in (charset, named[1].decode() if named else None):
        if name and _KNOWN_CHARSETS.fullmatch(name):
            with contextlib.suppress(LookupError):  # Python lacks a few of them, iso-8859-12 for example
                return data.decode(name, "replace")
    return data.decode("utf-8-sig", "replace")


def tidy(text: str) -> str:
    """Lines without surplus space, at most one empty line between them."""
    lines = (" ".join(line.split()) for line in clean(text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _node_text(top: Any) -> str:
    parts: list[str] = []
    pending: list[Any] = [top]
    while pending:  # a stack, not recursion; a string is the text behind an element
        node = pending.pop()
        if isinstance(node, str):
            parts.append(node)
            continue
        if node.tail and node is not top:
            pending.append(node.tail.replace("\n", " "))
        if node.tag in _DROPPED:
            continue
        if node.tag in _BLOCKS:
            parts.append("\n")
            pending += [] if node.tag == "br" else ["\n"]
        pending.extend(reversed(list(node)))
        parts.append((node.text or "").replace("\n", " "))
    return tidy("".join(parts))


def _lxml_html() -> Any:
    try:
        import lxml.html
    except ImportError as error:
        raise MissingExtraError("search: reading HTML needs lxml. Run: pip install 'axpo[search]'") from error
    return lxml.html
