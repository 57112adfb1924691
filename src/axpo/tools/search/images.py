"""`image_search`: pictures for a query, from a local index of captions or an endpoint of the user's."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from axpo.errors import ConfigError, DataError, ToolFault
from axpo.http import check_url, read_key
from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.threads import run_in_daemon_thread
from axpo.tools.search.http import HttpClient, read_json
from axpo.tools.search.local import LocalIndex
from axpo.tools.search.pages import PageFetcher
from axpo.tools.search.proof import PROBE_QUERY
from axpo.tools.search.results import (
    MAX_QUERY_CHARS,
    Domains,
    read_count,
    read_query,
    refuse_unknown,
    shorten,
)
from axpo.tools.search.service import CacheMode, Service
from axpo.types import Content, JsonValue, ToolCall, ToolSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_RESULTS = 10
MAX_FETCHED_PX = 50_000_000
"""Larger pictures of an endpoint are left out undecoded."""
_MAX_ASPECT_RATIO = 200
_MAX_JSON_BYTES = 64_000_000
_MAX_IMAGE_BYTES = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hit:
    caption: str
    picture: Image | None


class ImageSearchTool:
    """Captions with their pictures, which become pictures of the dialogue (`img_idx` is told before each).

    Either `index`, a folder made by `axpo index` of captioned pictures, or `url`: it is sent
    `{"query", "max_results"}` by POST and answers `{"results": [{"title", "url"?, "image_url" | "image_base64"}]}`.
    Pictures above `max_pixels` are scaled down. The other options are those of `SearchTool`.
    """

    bounds_its_time: Literal[True] = True

    def __init__(
        self,
        *,
        name: str = "image_search",
        index: str | None = None,
        url: str | None = None,
        api_key_env: str | None = None,
        max_pixels: int = 512 * 32 * 32,
        max_snippet_chars: int = 300,
        cache: str | None = None,
        cache_mode: CacheMode = "live",
        max_requests: int | None = None,
        requests_per_second: float | None = None,
        cost_per_request: float = 0.0,
        timeout_s: float = 20.0,
        allow_hosts: Sequence[str] = (),
    ) -> None:
        if (index is None) == (url is None):
            raise ConfigError(f"{name}: give either index (made by: axpo index SOURCE --out DIR) or url.")
        if max_pixels < 1 or max_snippet_chars < 1 or timeout_s <= 0:
            raise ConfigError(f"{name}: max_pixels, max_snippet_chars and timeout_s must be above 0.")
        self.spec = _spec(name)
        self._max_pixels = max_pixels
        self._max_snippet_chars = max_snippet_chars
        self._index = _open_index(name, index) if index is not None else None
        self._endpoint: _Endpoint | None = None
        if url is None:
            if cache is not None:
                raise ConfigError(f"{name}: cache is for an endpoint (url); a local index needs none. Leave it out.")
            return
        if api_key_env is not None and cache_mode != "replay":
            read_key(name, api_key_env)
        self._endpoint = _Endpoint(
            name, check_url(f"{name}: url", url), api_key_env, timeout_s, allow_hosts, max_pixels=max_pixels
        )
        self._service = Service(
            name,
            probe=partial(self._endpoint.items, PROBE_QUERY, 1),
            cache=cache,
            cache_mode=cache_mode,
            max_requests=max_requests,
            requests_per_second=requests_per_second,
            cost_per_request=cost_per_request,
        )

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """For each result its caption, the index of its picture, and the picture."""
        name = self.spec.name
        refuse_unknown(name, call.arguments, self.spec.parameters["properties"])
        query = read_query(name, call.arguments)
        max_results = read_count(name, call.arguments, "max_results", default=3, maximum=MAX_RESULTS)
        if self._endpoint is None:
            # In the event loop, not in a thread, so that runs stay reproducible.
            hits = self._search_index(query, max_results)
        else:
            request = {**self._endpoint.identity, "query": query, "max_results": max_results}
            ask = partial(self._endpoint.search, query, max_results)
            hits = _read_stored(await self._service.answer(request, ask, context))
        return self._to_content(hits, context)

    def stats(self) -> dict[str, float]:
        """As `SearchTool.stats`."""
        return self._service.stats() if self._endpoint is not None else {}

    def close(self) -> None:
        """Close connections and cache."""
        if self._endpoint is not None:
            self._service.close(self._endpoint.close())

    def _search_index(self, query: str, max_results: int) -> list[_Hit]:
        assert self._index is not None
        hits: list[_Hit] = []
        for document, _ in self._index.search(query, max_results):
            try:
                picture = read_picture(Path(document.image).read_bytes(), max_pixels=self._max_pixels)
            except Exception as error:  # decoders raise what they like
                raise ConfigError(
                    f"{self.spec.name}: picture {document.image} of the index cannot be read: {error}. "
                    f"Restore it, or build {self._index.folder} again."
                ) from error
            hits.append(_Hit(caption=f"{document.title} {document.text}", picture=picture))
        return hits

    def _to_content(self, hits: Sequence[_Hit], context: ToolContext) -> tuple[Content, ...]:
        content: list[Content] = []
        index = len(context.images)
        for number, hit in enumerate(hits, start=1):
            caption = f"{number}. {shorten(hit.caption, self._max_snippet_chars)}".rstrip()
            if hit.picture is None:
                content.append(Content(text=f"{caption}\n(its picture cannot be shown)"))
                continue
            content.append(Content(text=f"{caption}\nimg_idx {index}:"))
            content.append(Content(image=context.store.add_image(hit.picture)))
            index += 1
        return tuple(content) or (Content(text="No results."),)


class _Endpoint:
    """The user's own image search over HTTP."""

    def __init__(
        self,
        name: str,
        url: str,
        key_env: str | None,
        timeout_s: float,
        allow_hosts: Sequence[str],
        *,
        max_pixels: int,
    ) -> None:
        self._name = name
        self._url = url
        self._key_env = key_env
        self._max_pixels = max_pixels
        self._client = HttpClient(timeout_s=timeout_s, max_bytes=_MAX_JSON_BYTES)
        self._image_client = HttpClient(timeout_s=timeout_s, max_bytes=_MAX_IMAGE_BYTES, use_proxies=False)
        hosts = [*allow_hosts, urlsplit(url).netloc]
        self._fetcher = PageFetcher(self._image_client, Domains(), allow_hosts=hosts)

    @property
    def identity(self) -> Mapping[str, JsonValue]:
        return {"backend": "image_endpoint", "url": self._url, "max_pixels": self._max_pixels}

    async def search(self, query: str, max_results: int) -> JsonValue:
        """Captions and pictures (PNG in base 64, scaled down) as JSON."""
        return [await self._read_item(item) for item in await self.items(query, max_results)]

    async def items(self, query: str, max_results: int) -> list[dict[str, Any]]:
        """The endpoint's own results."""
        key = read_key(self._name, self._key_env) if self._key_env else None
        answer = await self._client.request(
            "POST",
            self._url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            json={"query": query, "max_results": max_results},
        )
        body = read_json(answer, service=self._name, key_hint="Check api_key_env.", secret=key)
        items = cast("dict[str, Any]", body).get("results") if isinstance(body, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in cast("list[Any]", items)):
            raise ToolFault(f"{self._name}: the endpoint's answer has no list of results")
        return cast("list[dict[str, Any]]", items)[:max_results]

    async def _read_item(self, item: Mapping[str, Any]) -> dict[str, JsonValue]:
        title = item.get("title")
        caption = shorten(title, 1000) if isinstance(title, str) else ""
        try:
            # not in the loop, which serves all searches: decoding takes seconds
            png = await run_in_daemon_thread(_to_png, await self._image_bytes(item), self._max_pixels)
        except Exception:  # a picture's decoder raises what it likes; the others are shown
            return {"caption": caption, "png": None}
        return {"caption": caption, "png": png}

    async def _image_bytes(self, item: Mapping[str, Any]) -> bytes:
        encoded, url = item.get("image_base64"), item.get("image_url")
        if isinstance(encoded, str):
            try:
                return base64.b64decode(encoded.rpartition(",")[2], validate=True)
            except binascii.Error as error:
                raise DataError(f"{self._name}: image_base64 is no base 64") from error
        if isinstance(url, str):
            return (await self._fetcher.fetch(url)).body
        raise DataError(f"{self._name}: a result has neither image_url nor image_base64")

    async def close(self) -> None:
        await self._client.close()
        await self._image_client.close()


def _to_png(data: bytes, max_pixels: int) -> str:
    buffer = io.BytesIO()
    read_picture(data, max_pixels=max_pixels, max_px=MAX_FETCHED_PX).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def read_picture(data: bytes, *, max_pixels: int, max_px: int | None = None) -> Image:
    """The picture, upright and scaled down to `max_pixels`. Raises `DataError` when it is none, or above `max_px`; its
    decoder may raise anything.
    """
    from PIL.Image import Resampling

    store = ContentImageStore(max_decoded_px=1)
    ref = store.add_bytes(data, origin="picture")
    width, height = ref.width_px, ref.height_px
    if max(width, height) > _MAX_ASPECT_RATIO * min(width, height) or (max_px is not None and width * height > max_px):
        raise DataError(f"picture: {width}x{height} px is a stripe or above the limit of {max_px} px.")
    image = store.load(ref)
    scale = math.sqrt(max_pixels / (width * height))
    if scale >= 1:
        return image
    new_width, new_height = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
    # rounding must not make a stripe of what was none
    size = (min(new_width, _MAX_ASPECT_RATIO * new_height), min(new_height, _MAX_ASPECT_RATIO * new_width))
    return image.resize(size, Resampling.BICUBIC)


def _open_index(name: str, folder: str) -> LocalIndex:
    index = LocalIndex.open(folder)
    if not index.info.has_images:
        raise ConfigError(f"{name}: index {folder} holds texts, not pictures. Build one from captioned pictures.")
    return index


def _read_stored(stored: JsonValue) -> list[_Hit]:
    hits: list[_Hit] = []
    for entry in cast("list[dict[str, Any]]", stored):
        data = base64.b64decode(entry["png"]) if entry["png"] else None
        picture = read_picture(data, max_pixels=MAX_FETCHED_PX) if data is not None else None
        hits.append(_Hit(caption=entry["caption"], picture=picture))
    return hits


def _spec(name: str) -> ToolSpec:
    return ToolSpec(
        name=name,
        description="Search for images. Returns captions and the images, which later calls can use.",
        parameters={
            "type": "object",
            "properties": {
                "query": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_QUERY_CHARS,
                    "description": "What the image should show.",
                },
                "max_results": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MAX_RESULTS,
                    "default": 3,
                    "description": f"How many images, 1 to {MAX_RESULTS}.",
                },
            },
            "required": ["query"],
        },
    )
