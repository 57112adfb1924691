"""A chat service over real sockets: what is sent to it, and what each of its moods leads to."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from axpo.engines.connections import Connections
from axpo.engines.http import HttpChatModel
from axpo.engines.refusals import RequestRefused
from axpo.engines.wire import WireOptions
from axpo.errors import AxpoError, ConfigError, EngineFault, QuotaError
from axpo.http import Answer, HttpFailure
from axpo.images import ContentImageStore
from axpo.protocols import ChatModel, ChatReply, ChatRequest
from axpo.rollout.calls import read_call
from axpo.types import Content, ImageRef, Message, SamplingParams
from search_servers import Reply, Request, Server, serving

KEY = "sk-secret-0123456789"
DONE = {
    "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "Four."}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}


def error(status: int, message: str, **fields: Any) -> Reply:
    return Reply(status, {"error": {"message": message, **fields}})


def ask(text: str = "What?", *images: ImageRef, **changes: Any) -> ChatRequest:
    content = (Content(text=text), *(Content(image=image) for image in images))
    fields = {
        "messages": (Message(role="user", content=content),),
        "tools": (),
        "max_new_tokens": 50,
        "sampling": SamplingParams(),
        "seed": 0,
    }
    return ChatRequest(**{**fields, **changes})


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(lambda _: Reply(body=DONE)) as server:
        yield server


class World:
    """A model at a server, and the pauses that it made instead of sleeping."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.store = ContentImageStore()
        self.pauses: list[float] = []

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def model(self, **options: Any) -> HttpChatModel:
        given = {"store": self.store, "read_call": read_call, "sleep": self.pause, "timeout_s": 20.0} | options
        return HttpChatModel(given.pop("url", f"{self.server.url}/v1/"), "tiny", **given)

    def reply(self, request: ChatRequest | None = None, **options: Any) -> ChatReply:
        async def run() -> ChatReply:
            model = self.model(**options)
            try:
                return await model.reply(request or ask())
            finally:
                await model.close()

        return asyncio.run(run())

    @property
    def sent(self) -> list[dict[str, Any]]:
        return [request.json for request in self.server.requests]


@pytest.fixture
def world(server: Server) -> World:
    return World(server)


def in_order(*replies: Reply) -> Callable[[Request], Reply]:
    """One after the other; the last one for ever."""
    rest = itertools.chain(replies, itertools.repeat(replies[-1]))
    lock = threading.Lock()

    def respond(_: Request) -> Reply:
        with lock:
            return next(rest)

    return respond


class TestAsking:
    def test_it_is_a_chat_model(self, world: World) -> None:
        assert isinstance(world.model(), ChatModel)

    def test_an_answer_is_a_message_with_its_usage(self, world: World) -> None:
        reply = world.reply()
        assert (reply.message.text, reply.finish_reason) == ("Four.", "stop")
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 2
        assert world.server.requests[0].path == "/v1/chat/completions"

    def test_the_key_travels_in_its_header_only(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_KEY", KEY)
        world.reply(api_key_env="SOME_KEY")
        (request,) = world.server.requests
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert KEY.encode() not in request.body

    def test_without_a_key_no_header_is_sent(self, world: World) -> None:
        world.reply()
        assert "authorization" not in world.server.requests[0].headers

    def test_extra_fields_are_added_and_replace_what_is_there(self, world: World) -> None:
        world.reply(extra_body={"chat_template_kwargs": {"enable_thinking": True}, "temperature": 0.2})
        assert world.sent[0]["chat_template_kwargs"] == {"enable_thinking": True}
        assert world.sent[0]["temperature"] == 0.2

    def test_parameters_can_be_left_out(self, world: World) -> None:
        world.reply(omit=("seed", "temperature"))
        assert {"seed", "temperature"}.isdisjoint(world.sent[0])

    def test_no_more_requests_than_allowed_are_under_way(self, world: World) -> None:
        running = peak = 0

        async def post(*_: Any) -> Answer:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            for _ in range(20):
                await asyncio.sleep(0)
            running -= 1
            return Answer(status=200, headers={}, body=json.dumps(DONE).encode())

        async def run() -> None:
            model = world.model(max_concurrent=3)
            model._connections.post = post
            await asyncio.gather(*(model.reply(ask(str(number))) for number in range(12)))

        asyncio.run(run())
        assert peak == 3


class TestPictures:
    def url_of(self, world: World, image: ImageRef, **options: Any) -> tuple[str, bytes]:
        world.reply(ask("Look.", image), **options)
        url: str = world.sent[-1]["messages"][0]["content"][1]["image_url"]["url"]
        kind, data = url.removeprefix("data:").split(";base64,")
        return kind, base64.b64decode(data)

    def add(self, world: World, picture: Image.Image, image_format: str, **options: Any) -> ImageRef:
        buffer = io.BytesIO()
        picture.save(buffer, format=image_format, **options)
        return world.store.add_bytes(buffer.getvalue())

    @pytest.mark.parametrize(("image_format", "kind"), [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp")])
    def test_the_stored_bytes_are_sent(self, world: World, image_format: str, kind: str) -> None:
        image = self.add(world, Image.new("RGB", (40, 30), "red"), image_format)
        assert self.url_of(world, image) == (f"image/{kind}", world.store.encoded(image)[0])

    @pytest.mark.parametrize("image_format", ["BMP", "TIFF", "GIF"])
    def test_what_services_do_not_take_becomes_png(self, world: World, image_format: str) -> None:
        picture = Image.new("RGB", (40, 30), (255, 0, 0))
        kind, data = self.url_of(world, self.add(world, picture, image_format))
        assert kind == "image/png"
        sent = Image.open(io.BytesIO(data))
        assert (sent.size, sent.getpixel((3, 3))) == ((40, 30), (255, 0, 0))

    def test_a_picture_taken_sideways_is_sent_upright(self, world: World) -> None:
        picture = Image.new("RGB", (64, 32), "black")
        picture.paste("white", (0, 0, 32, 32))
        exif = Image.Exif()
        exif[0x0112] = 6
        image = self.add(world, picture, "JPEG", exif=exif)
        sent = Image.open(io.BytesIO(self.url_of(world, image)[1]))
        assert sent.size == (32, 64) == (image.width_px, image.height_px)
        assert sent.getexif().get(0x0112, 1) == 1
        assert [sent.convert("L").getpixel((16, y)) > 128 for y in (8, 56)] == [True, False]

    def test_a_large_picture_is_scaled_down_and_the_pixels_are_told(self, world: World) -> None:
        image = self.add(world, Image.new("RGB", (400, 100)), "PNG")
        small = self.add(world, Image.new("RGB", (10, 10)), "PNG")
        sent = Image.open(io.BytesIO(self.url_of(world, image, max_image_px=10_000)[1]))
        assert sent.size == (200, 50)
        assert world.model(max_image_px=10_000).effective_px([image, small]) == 10_000 + 100
        assert world.model().effective_px([image, small]) == 40_000 + 100

    def test_a_picture_is_encoded_once_while_there_is_room(self, world: World) -> None:
        loads: list[str] = []

        class Store(ContentImageStore):
            def encoded(self, ref: ImageRef) -> tuple[bytes, str]:
                loads.append(ref.sha256)
                return super().encoded(ref)

        store = world.store = Store()
        images = [store.add_image(Image.effect_noise((60, 60), sigma)) for sigma in (50, 60, 70)]

        async def run(max_bytes: int) -> int:
            model = world.model(max_cached_bytes=max_bytes)
            loads.clear()
            for _ in range(3):
                await model.reply(ask("x", *images))
            await model.close()
            return len(loads)

        assert asyncio.run(run(2**20)) == 3
        assert asyncio.run(run(1)) == 9

    def test_a_picture_that_is_gone_is_a_fault_of_ours(self, world: World) -> None:
        with pytest.raises(EngineFault, match="cannot be sent"):
            world.reply(ask("x", ImageRef(sha256="0" * 64, width_px=1, height_px=1)))


class TestTryingAgain:
    @pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
    def test_what_may_pass_is_tried_again_with_growing_pauses(self, world: World, status: int) -> None:
        bad = error(status, "busy")
        world.server.respond = in_order(bad, bad, bad, Reply(body=DONE))
        assert world.reply(backoff_s=1.0).message.text == "Four."
        assert len(world.server.requests) == 4
        assert all(base / 2 <= pause <= base for base, pause in zip([1, 2, 4], world.pauses, strict=True))

    def test_after_the_last_try_it_is_a_fault(self, world: World) -> None:
        world.server.respond = lambda _: error(503, "no worker is ready")
        with pytest.raises(EngineFault, match=r"HTTP 503: no worker is ready \(3 tries\)"):
            world.reply(max_retries=2)
        assert len(world.server.requests) == 3

    @pytest.mark.parametrize(
        ("asked", "bounds"), [("7", (7, 7)), ("100000", (60, 60)), ("0", (0, 1)), ("soon", (6, 6))]
    )
    def test_the_service_may_ask_for_a_longer_pause(
        self, world: World, asked: str, bounds: tuple[float, float]
    ) -> None:
        busy = Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": asked})
        world.server.respond = in_order(busy, Reply(body=DONE))
        world.reply(backoff_s=1.0)
        assert bounds[0] <= world.pauses[0] <= bounds[1]

    def test_a_service_that_does_not_answer_in_time_is_asked_again(self, world: World) -> None:
        first = threading.Event()

        def respond(_: Request) -> Reply:
            if not first.is_set():
                first.set()
                world.server.ended.wait(30)
            return Reply(body=DONE)

        world.server.respond = respond
        assert world.reply(timeout_s=0.5).message.text == "Four."

    def test_a_lost_connection_is_tried_again(self, world: World) -> None:
        def cut() -> Iterator[bytes]:
            yield b'{"choices": ['
            raise ConnectionResetError

        def respond(_: Request) -> Reply:
            is_first = len(world.server.requests) == 1
            return Reply(body=cut(), headers={"Content-Length": "1000"}) if is_first else Reply(body=DONE)

        world.server.respond = respond
        assert world.reply().message.text == "Four."
        assert len(world.server.requests) == 2

    def test_a_host_that_takes_no_connection_is_told_before_the_model_would_be_slow(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("axpo.engines.connections.CONNECT_TIMEOUT_S", 0.3)
        with socket.socket() as full:  # a backlog of one that is never emptied: further connections hang
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            waiting = [socket.socket() for _ in range(4)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(full.getsockname())

            async def run() -> None:
                connections = Connections(f"http://127.0.0.1:{full.getsockname()[1]}", timeout_s=60.0, max_bytes=10)
                try:
                    await connections.post("/", b"", {})
                finally:
                    await connections.close()

            with pytest.raises(HttpFailure, match=r"took no connection in 0\.3 s"):
                asyncio.run(run())
            for one in waiting:
                one.close()

    def test_nobody_at_the_address_is_a_fault(self, world: World) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(EngineFault, match=r"127\.0\.0\.1"):
            world.reply(url=url, max_retries=1)
        assert len(world.pauses) == 1


class TestRefusals:
    @pytest.mark.parametrize("status", [401, 403])
    def test_a_wrong_key_names_its_variable_and_never_itself(
        self, world: World, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOME_KEY", KEY)
        world.server.respond = lambda _: error(status, f"Incorrect key {KEY} provided")
        with pytest.raises(ConfigError, match="SOME_KEY") as caught:
            world.reply(api_key_env="SOME_KEY")
        assert KEY not in str(caught.value)
        assert len(world.server.requests) == 1

    def test_a_missing_key_is_told_before_anything_is_sent(self, world: World) -> None:
        world.server.respond = lambda _: error(401, "no key")
        with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE"):
            world.model(api_key_env="NO_SUCH_VARIABLE")
        with pytest.raises(ConfigError, match="api_key_env"):
            world.reply()

    @pytest.mark.parametrize(
        "reply",
        [
            error(404, "The model `tiny` does not exist.", code="model_not_found"),
            error(400, "The model `tiny` does not exist."),
            Reply(404, {"detail": "Not Found"}),
            Reply(404, b"<html>nothing here</html>"),
        ],
    )
    def test_an_unknown_model_names_model_and_address(self, world: World, reply: Reply) -> None:
        world.server.respond = lambda _: reply
        with pytest.raises(ConfigError, match="'tiny'") as caught:
            world.reply()
        assert f"{world.server.url}/v1" in str(caught.value)

    @pytest.mark.parametrize(
        "reply",
        [
            error(402, "Payment required"),
            error(429, "You exceeded your current quota", type="insufficient_quota", code="insufficient_quota"),
            Reply(body={"error": {"message": "Insufficient credits", "code": 402}}),
        ],
    )
    def test_a_used_up_plan_ends_the_run(self, world: World, reply: Reply) -> None:
        world.server.respond = lambda _: reply
        with pytest.raises(QuotaError, match="same command again"):
            world.reply()
        assert len(world.server.requests) == 1

    @pytest.mark.parametrize(
        ("reply", "name"),
        [
            (error(400, "Unsupported parameter: 'seed' is not supported with this model.", param="seed"), "seed"),
            (error(400, "Unrecognized request argument supplied: top_k"), "top_k"),
            (error(422, "Extra inputs are not permitted: presence_penalty"), "presence_penalty"),
        ],
    )
    def test_an_unknown_parameter_is_named_with_what_to_do(self, world: World, reply: Reply, name: str) -> None:
        world.server.respond = lambda _: reply
        with pytest.raises(ConfigError, match=rf"omit = \['{name}'\]"):
            world.reply(ask(sampling=SamplingParams(top_k=5, presence_penalty=1.0)))

    def test_a_server_without_a_tool_parser_says_which_flags_it_needs(self, world: World) -> None:
        words = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        world.server.respond = lambda _: error(400, words)
        with pytest.raises(ConfigError, match="--tool-call-parser hermes"):
            world.reply()
        assert len(world.server.requests) == 1

    @pytest.mark.parametrize(("status", "is_refused"), [(400, True), (422, True), (418, False)])
    def test_a_request_of_the_wrong_form_is_told_from_other_faults(
        self, world: World, status: int, is_refused: bool
    ) -> None:
        world.server.respond = lambda _: error(status, "Image URLs are only allowed for messages with role 'user'.")
        with pytest.raises(EngineFault) as caught:
            world.reply()
        assert isinstance(caught.value, RequestRefused) is is_refused

    def test_any_other_refusal_is_a_fault_with_the_services_words(self, world: World) -> None:
        world.server.respond = lambda _: error(400, "image\nis\x00 broken " + "x" * 10_000)
        with pytest.raises(EngineFault, match="HTTP 400: image is broken") as caught:
            world.reply()
        assert len(str(caught.value)) < 500
        assert len(world.server.requests) == 1

    def test_a_request_that_is_too_large_says_what_to_do(self, world: World) -> None:
        world.server.respond = lambda _: error(413, "Payload Too Large")
        with pytest.raises(EngineFault, match="max_image_px"):
            world.reply()

    @pytest.mark.parametrize(
        "body", [b"<html>gateway</html>", b"", b"[" * 100_000, b'{"choices": []}', b'{"object": "nothing"}', b"7"]
    )
    def test_an_answer_that_is_no_completion_is_a_fault(self, world: World, body: bytes) -> None:
        world.server.respond = lambda _: Reply(body=body)
        with pytest.raises(EngineFault, match="answered"):
            world.reply()

    def test_an_endless_answer_is_a_fault(self, world: World) -> None:
        world.server.respond = lambda _: Reply(body=itertools.repeat(b" " * 2**20))
        with pytest.raises(EngineFault, match="larger than"):
            world.reply()
        assert len(world.server.requests) == 1

    def test_a_redirect_is_not_followed_with_the_key(self, world: World) -> None:
        world.server.respond = lambda _: Reply(307, b"", {"Location": f"{world.server.url}/elsewhere"})
        with pytest.raises(EngineFault, match="HTTP 307"):
            world.reply()
        assert len(world.server.requests) == 1

    @pytest.mark.parametrize(
        "options",
        [
            {"url": "file:///etc"},
            {"url": "http://x/v1?key=secret"},
            {"omit": ("messages",)},
            {"timeout_s": 0},
            {"max_concurrent": 0},
            {"max_image_px": 0},
        ],
    )
    def test_options_that_cannot_be_are_told_at_once(self, world: World, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            world.model(**options)


class TestRoomsName:
    def test_a_service_that_wants_the_newer_name_gets_it_from_then_on(self, world: World) -> None:
        def respond(request: Request) -> Reply:
            if "max_tokens" in request.json:
                return error(400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                                  "'max_completion_tokens' instead.", code="unsupported_parameter")  # fmt: skip
            return Reply(body=DONE)

        world.server.respond = respond
        assert world.reply().message.text == "Four."
        assert [fields.get("max_completion_tokens") for fields in world.sent] == [None, 50]

    def test_a_service_that_takes_neither_is_a_fault(self, world: World) -> None:
        world.server.respond = lambda _: error(400, "max_completion_tokens and max_tokens: both are unsupported")
        with pytest.raises(EngineFault, match="both are unsupported"):
            world.reply()
        assert len(world.server.requests) == 2


class TestFullContext:
    @pytest.mark.parametrize(
        "reply",
        [
            error(400, "This model's maximum context length is 4096 tokens.", code="context_length_exceeded"),
            Reply(400, {"object": "error", "message": "maximum context length is 4096 tokens. However, you requested"}),
            error(400, "The input (9000 tokens) is longer than the model's limit (4096 tokens)."),
            error(400, "the request exceeds the available context size", type="exceed_context_size_error"),
        ],
    )
    def test_a_conversation_that_is_too_long_ends_by_length(self, world: World, reply: Reply) -> None:
        world.server.respond = lambda _: reply
        got = world.reply()
        assert (got.finish_reason, got.message.content, got.usage) == ("length", (), None)
        assert ["max_tokens" in fields for fields in world.sent] == [True, False]

    def test_when_only_the_room_was_too_much_the_service_takes_what_there_is(self, world: World) -> None:
        def respond(request: Request) -> Reply:
            has_room = "max_completion_tokens" not in request.json
            return Reply(body=DONE) if has_room else error(400, "maximum context length is 4096 tokens")

        world.server.respond = respond
        assert world.reply(options=WireOptions(max_tokens_name="max_completion_tokens")).message.text == "Four."
        assert len(world.server.requests) == 2


def test_no_answer_makes_anything_but_an_error_of_ours(world: World) -> None:
    bodies = [b"\xff\xfe", b'{"error": 7}', b'{"error": {"message": {"a": 1}}}', b"null", json.dumps([1] * 9).encode()]
    for status, body in itertools.product((200, 302, 400, 404, 418, 422, 500), bodies):
        world.server.respond = lambda _, status=status, body=body: Reply(status, body)
        with pytest.raises(AxpoError):
            world.reply(max_retries=0)
