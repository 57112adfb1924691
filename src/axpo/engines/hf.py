"""In-process engine on a transformers model: concurrent requests are decoded together by one worker thread."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from asyncio import AbstractEventLoop, Future
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from axpo.engines.decoding import DecodeBatch, DecodeRow, DecodeStats
from axpo.errors import EngineFault, RecordError, WeightSyncError
from axpo.models.checksums import weights_checksum
from axpo.models.qwen3_vl import ImageFeatureCache, base_model
from axpo.types import Completion, GenerationRequest

if TYPE_CHECKING:
    from axpo.models.preprocessing import ImagePreprocessor
    from axpo.protocols import ImageStore

SETTLING_TURNS = 16
"""Turns of an event loop that a rollout gets to act on a completion and ask for the next one."""
SETTLING_LIMIT_S = 5.0
DRAIN_LIMIT_S = 3600.0
MAX_STEPS_WAITING = 16
"""Steps after which a waiting request joins even when few wait."""

Outcome = Completion | EngineFault
Result = tuple[Future[Completion], Outcome]


class HfEngine:
    """An `axpo.protocols.ChecksummedEngine` that owns `model`, a transformers Qwen3-VL, and decodes in a worker thread.

    Requests join the running batch and leave it when they finish, so neither a long answer nor a slow tool holds up
    other rollouts. After a row has finished, the worker lets the event loop run `SETTLING_TURNS` times before the next
    step. Which requests share a step therefore depends on nothing but the requests as long as whatever happens between
    two turns of a rollout happens in the event loop, and with equal seeds a run repeats bit for bit.

    Cancel the awaiting coroutine to give up on a request.
    """

    def __init__(
        self,
        model: Any,
        *,
        preprocessor: ImagePreprocessor,
        store: ImageStore,
        banned_token_ids: Sequence[int],
        stop_token_ids: Sequence[int],
        max_batch_size: int = 256,
        max_prefill_tokens: int = 16384,
    ) -> None:
        """`max_prefill_tokens`: padded prompt tokens per forward pass; memory only, never the result."""
        self._model = model.eval()
        self._preprocessor = preprocessor
        self._features = ImageFeatureCache(model, preprocessor, store)
        self._batch = DecodeBatch(
            model,
            features=self._features,
            banned_token_ids=banned_token_ids,
            stop_token_ids=stop_token_ids,
            max_prefill_tokens=max_prefill_tokens,
        )
        self._vocab_size: int = base_model(model).config.get_text_config().vocab_size
        self._image_token_id: int = base_model(model).config.image_token_id
        self._row_limit = max_batch_size
        self._policy_version = 0

        # Guards everything below; the worker holds it only between steps.
        self._wake = threading.Condition()
        self._futures: dict[DecodeRow, Future[Completion]] = {}
        self._waiting: deque[DecodeRow] = deque()
        self._settling: dict[object, AbstractEventLoop] = {}
        self._num_steps_waiting = 0
        self._num_updates_waiting = 0
        self._has_mixed_weights = False
        self._is_busy = False
        self._is_closed = False
        self._worker = threading.Thread(target=self._work, name="axpo-hf-engine", daemon=True)
        self._worker.start()

    # -- the protocol -------------------------------------------------------------------------------------------------

    @property
    def policy_version(self) -> int:
        """Version given by the last weight update; 0 at first."""
        return self._policy_version

    @property
    def stats(self) -> DecodeStats:
        """Work done so far."""
        return self._batch.stats

    @property
    def num_encoded_images(self) -> int:
        """Images passed through the vision tower so far."""
        return self._features.num_encoded

    async def generate(self, request: GenerationRequest) -> Completion:
        """Sample one completion.

        Raises `RecordError` for an impossible request, `EngineFault` when the model failed or the engine is closed.
        """
        self._check_request(request)
        loop = asyncio.get_running_loop()
        future: Future[Completion] = loop.create_future()
        with self._wake:
            if self._is_closed:
                raise EngineFault("HfEngine: is closed.")
            if self._has_mixed_weights:
                raise EngineFault("HfEngine: the last weight update failed half-way; update the weights again.")
            row = DecodeRow(request)
            self._futures[row] = future
            self._waiting.append(row)
            if loop not in self._settling.values():
                loop.call_soon(self._settle, loop, self._start_settling(loop), SETTLING_TURNS)
        return await future

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy a full set of weights into the model once no request is being decoded.

        Of tied weights either name will do. Raises `WeightSyncError` for unknown, missing or misshapen weights; the
        engine then refuses requests until an update succeeds.
        """
        with self._wake:
            self._num_updates_waiting += 1
            try:
                if not self._wake.wait_for(lambda: not self._is_busy, timeout=DRAIN_LIMIT_S):
                    raise WeightSyncError(f"HfEngine: still decoding after {DRAIN_LIMIT_S:.0f} s, weights not updated.")
                self._has_mixed_weights = True
                _copy_weights(base_model(self._model), weights)
                self._has_mixed_weights = False
                self._policy_version = version
                self._features.clear()
            finally:
                if self._has_mixed_weights:
                    self._fail(list(self._waiting), "a weight update failed half-way")
                    self._waiting.clear()
                self._num_updates_waiting -= 1
                self._wake.notify_all()

    def weights_checksum(self) -> int:
        """Fingerprint of the weights in the model."""
        return weights_checksum(base_model(self._model).parameters())

    def close(self) -> None:
        """Stop the worker after its current step; requests that are not done fail with `EngineFault`."""
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join(timeout=60)

    def _check_request(self, request: GenerationRequest) -> None:
        name = f"GenerationRequest with seed {request.seed}"
        ids = request.token_ids
        if not ids or request.max_new_tokens < 1 or request.seed < 0:
            raise RecordError(
                f"{name}: needs a prompt, room for a token and a seed >= 0; got {len(ids)} tokens and max_new_tokens "
                f"{request.max_new_tokens}"
            )
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            raise RecordError(f"{name}: ids from {min(ids)} to {max(ids)}, but the model has {self._vocab_size}")
        num_placeholders = ids.count(self._image_token_id)
        num_needed = sum(self._preprocessor.num_tokens(ref) for ref in request.images)
        if num_placeholders != num_needed:
            raise RecordError(
                f"{name}: {num_placeholders} image placeholders, but its {len(request.images)} images are {num_needed} "
                "tokens: each image needs one placeholder per visual token."
            )

    # -- the event loop's side ----------------------------------------------------------------------------------------

    def _start_settling(self, loop: AbstractEventLoop) -> object:
        key = object()
        self._settling[key] = loop
        return key

    def _settle(self, loop: AbstractEventLoop, key: object, turns_left: int) -> None:
        if turns_left:
            loop.call_soon(self._settle, loop, key, turns_left - 1)
            return
        with self._wake:
            self._settling.pop(key, None)
            self._wake.notify_all()

    def _resolve(self, loop: AbstractEventLoop, key: object, results: list[Result]) -> None:
        for future, outcome in results:
            if future.done():
                continue
            if isinstance(outcome, Completion):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
        self._settle(loop, key, SETTLING_TURNS)

    # -- the worker's side --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                if joining := self._take_joining():
                    self._attempt(self._batch.admit, joining)
                if live := self._batch.live_rows:
                    self._attempt(lambda _: self._batch.step(), live)
                if not self._batch.live_rows:
                    self._batch.clear()
        finally:
            with self._wake:
                self._is_closed, self._is_busy = True, False
                self._wake.notify_all()
            self._batch.clear()
            self._fail(list(self._futures), "the engine was closed before the request was done")

    def _wait_for_work(self) -> bool:
        """Wait until the event loops have settled and something is to be done; False once closed."""
        deadline_s = time.monotonic() + SETTLING_LIMIT_S
        with self._wake:
            while not self._is_closed:
                if not self._is_settled() and time.monotonic() < deadline_s:
                    self._wake.wait(timeout=0.01)
                elif self._batch.live_rows or (self._waiting and not self._num_updates_waiting):
                    self._settling.clear()
                    self._is_busy = True
                    return True
                else:
                    self._is_busy = False
                    self._wake.notify_all()
                    self._wake.wait(timeout=60)
                    deadline_s = time.monotonic() + SETTLING_LIMIT_S
        return False

    def _is_settled(self) -> bool:
        """True when no event loop is about to ask for more; a loop that has stopped will not."""
        self._settling = {key: loop for key, loop in self._settling.items() if loop.is_running()}
        return not self._settling or self._num_updates_waiting > 0

    def _drop_cancelled(self) -> None:
        with self._wake:
            cancelled = [row for row, future in self._futures.items() if future.cancelled()]
            for row in cancelled:
                row.is_cancelled = True
                del self._futures[row]
            if cancelled:
                self._waiting = deque(row for row in self._waiting if not row.is_cancelled)

    def _take_joining(self) -> list[DecodeRow]:
        """Waiting requests that join now: all there is room for, once they are worth a prefill of their own."""
        num_live = len(self._batch.live_rows)
        with self._wake:
            if not self._waiting or self._num_updates_waiting:
                return []
            self._num_steps_waiting += 1
            if 8 * len(self._waiting) < num_live and self._num_steps_waiting < MAX_STEPS_WAITING:
                return []
            room = max(0, self._row_limit - num_live)
            if room:
                self._num_steps_waiting = 0
            return [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]

    def _attempt(self, work: Callable[[list[DecodeRow]], list[DecodeRow]], rows: list[DecodeRow]) -> None:
        """Do `work` on behalf of `rows`; a failure is theirs alone, and running out of memory is forgiven once."""
        try:
            finished = work(rows)
        except Exception as error:
            if rows[0] in self._batch.rows:
                self._batch.clear()
            traceback.clear_frames(error.__traceback__)  # they hold tensors
            if isinstance(error, torch.OutOfMemoryError):
                self._retry_smaller(rows, error)
            else:
                self._fail(rows, f"the model failed: {type(error).__name__}: {error}", cause=error)
        else:
            self._deliver([(row, self._complete(row)) for row in finished])

    def _retry_smaller(self, rows: list[DecodeRow], error: torch.OutOfMemoryError) -> None:
        """Send rows back to wait, and from now on decode half as many at once."""
        torch.cuda.empty_cache()
        num_rows = len(rows) + len(self._batch.live_rows)
        self._fail([row for row in rows if row.num_restarts], f"out of memory with {num_rows} rows", cause=error)
        again = [row for row in rows if not row.num_restarts]
        for row in again:
            row.restart()
        with self._wake:
            self._row_limit = max(1, num_rows // 2)
            self._waiting.extendleft(reversed(again))

    def _complete(self, row: DecodeRow) -> Outcome:
        assert row.finish_reason is not None
        try:
            return Completion(
                token_ids=tuple(row.token_ids),
                logprobs=tuple(row.logprobs),
                finish_reason=row.finish_reason,
                policy_version=self._policy_version,
            )
        except RecordError as error:
            return EngineFault(f"HfEngine: the model's output is unusable, its weights may have diverged. {error}")

    def _fail(self, rows: list[DecodeRow], reason: str, *, cause: BaseException | None = None) -> None:
        outcomes: list[tuple[DecodeRow, Outcome]] = []
        for row in rows:
            fault = EngineFault(f"HfEngine: {reason}.")
            fault.__cause__ = cause
            outcomes.append((row, fault))
        self._deliver(outcomes)

    def _deliver(self, outcomes: Sequence[tuple[DecodeRow, Outcome]]) -> None:
        by_loop: defaultdict[AbstractEventLoop, list[Result]] = defaultdict(list)
        with self._wake:
            for row, outcome in outcomes:
                if (future := self._futures.pop(row, None)) is not None:
                    by_loop[future.get_loop()].append((future, outcome))
            for loop, results in by_loop.items():
                key = self._start_settling(loop)
                try:
                    loop.call_soon_threadsafe(self._resolve, loop, key, results)
                except RuntimeError:  # the loop was closed: nobody waits any more
                    del self._settling[key]


def _copy_weights(model: torch.nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    updated: set[int] = set()
    with torch.no_grad():
        for name, tensor in weights:
            parameter = parameters.get(name)
            if parameter is None:
                raise WeightSyncError(f"HfEngine: no weight {name!r} in the model; use the names of its checkpoint.")
            if parameter.shape != tensor.shape:
                raise WeightSyncError(
                    f"HfEngine: weight {name} has shape {tuple(parameter.shape)}, the update {tuple(tensor.shape)}."
                )
            parameter.copy_(tensor)
            updated.add(id(parameter))
    missing = [name for name, parameter in parameters.items() if id(parameter) not in updated]
    if missing:
        raise WeightSyncError(f"HfEngine: the update lacks {len(missing)} weights, among them {missing[0]}.")
