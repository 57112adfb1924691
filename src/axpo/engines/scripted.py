"""An engine that replays what it is told: for tests, and for trying tools, rewards and recipes without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from axpo.errors import EngineFault
from axpo.types import Completion, GenerationRequest

if TYPE_CHECKING:
    from torch import Tensor

Reply = Sequence[int] | str


class ScriptedEngine:
    """An `axpo.protocols.InferenceEngine` whose completions come from a script.

    `reply` is a function of the request, or a mapping from the last token ids of a prompt to the reply; the longest
    match counts and the key `()` matches every prompt. A reply is token ids, or a text when `encode` turns texts into
    ids. It is cut at the request's `max_new_tokens`, and only then finishes by "length". An exception of `reply` passes
    through `generate`.

    `logprob` is that of every token in nats, or a function of request and token id; `delay_s` is how long a completion
    takes, or a function of the request; one that takes longer than the request's time limit is cut in proportion, and
    finishes by "length". `requests` and `weight_updates` record what happened, in order.

    >>> import asyncio
    >>> from axpo.types import SamplingParams
    >>> engine = ScriptedEngine({(): [5, 6, 9], (7,): "hi"}, encode=lambda text: [ord(c) for c in text])
    >>> def ask(*token_ids: int, max_new_tokens: int = 8) -> Completion:
    ...     request = GenerationRequest(
    ...         token_ids=token_ids, images=(), max_new_tokens=max_new_tokens, sampling=SamplingParams(), seed=0
    ...     )
    ...     return asyncio.run(engine.generate(request))
    >>> ask(1, 2).token_ids, ask(1, 7).token_ids
    ((5, 6, 9), (104, 105))
    >>> ask(1, 2, max_new_tokens=2).finish_reason
    'length'
    >>> len(engine.requests)
    3
    """

    def __init__(
        self,
        reply: Callable[[GenerationRequest], Reply] | Mapping[tuple[int, ...], Reply],
        *,
        encode: Callable[[str], Sequence[int]] | None = None,
        logprob: float | Callable[[GenerationRequest, int], float] = -0.5,
        delay_s: float | Callable[[GenerationRequest], float] = 0.0,
    ) -> None:
        self.requests: list[GenerationRequest] = []
        self.weight_updates: list[tuple[int, tuple[str, ...]]] = []
        """(version, names of the weights) of each update."""
        self._reply = reply
        self._encode = encode
        self._logprob = logprob
        self._delay_s = delay_s
        self._policy_version = 0
        self._is_closed = False

    @property
    def policy_version(self) -> int:
        """Version given by the last weight update; 0 at first."""
        return self._policy_version

    async def generate(self, request: GenerationRequest) -> Completion:
        """The scripted completion. Raises `EngineFault` after `close` and when the script has no reply."""
        if self._is_closed:
            raise EngineFault("ScriptedEngine: is closed.")
        self.requests.append(request)
        delay_s = self._delay_s(request) if callable(self._delay_s) else self._delay_s
        await asyncio.sleep(min(delay_s, request.time_limit_s))
        reply = self._to_ids(self._reply(request) if callable(self._reply) else self._look_up(request, self._reply))
        is_late = delay_s > request.time_limit_s
        num_in_time = max(1, int(len(reply) * request.time_limit_s / delay_s)) if is_late else len(reply)
        token_ids = tuple(reply)[: min(num_in_time, request.max_new_tokens)]
        logprob = self._logprob
        return Completion(
            token_ids=token_ids,
            logprobs=tuple(logprob(request, token_id) if callable(logprob) else logprob for token_id in token_ids),
            finish_reason="length" if is_late or len(reply) > request.max_new_tokens else "stop",
            policy_version=self._policy_version,
        )

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Record the update; nothing else changes."""
        self.weight_updates.append((version, tuple(name for name, _ in weights)))
        self._policy_version = version

    def close(self) -> None:
        """Refuse further requests."""
        self._is_closed = True

    def _look_up(self, request: GenerationRequest, script: Mapping[tuple[int, ...], Reply]) -> Reply:
        matches = [end for end in script if request.token_ids[len(request.token_ids) - len(end) :] == end]
        if not matches:
            raise EngineFault(f"ScriptedEngine: no reply for a prompt that ends with {request.token_ids[-8:]}.")
        return script[max(matches, key=len)]

    def _to_ids(self, reply: Reply) -> Sequence[int]:
        if not isinstance(reply, str):
            return reply
        if self._encode is None:
            raise EngineFault("ScriptedEngine: the reply is a text; pass encode= to turn texts into token ids.")
        return self._encode(reply)
