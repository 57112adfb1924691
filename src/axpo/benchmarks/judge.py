"""A language model that decides what no rule can: asked once for each question, never believed when it rambles."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from axpo.benchmarks.benchmark import JudgePrompt
from axpo.benchmarks.judge_cache import JudgeCache, question_key
from axpo.benchmarks.judge_prompts import MAX_REPLY_CHARS, SolutionPrompt, bounded
from axpo.dialogue import TokenUsage, Verdict
from axpo.errors import ConfigError, EngineFault
from axpo.protocols import ChatModel, ChatRequest
from axpo.rewards.answers import extract_answer, visible_text
from axpo.types import Content, Message, Problem, SamplingParams

MAX_NEW_TOKENS = 4096
"""Room for the thinking of a judge that thinks; a reply that is cut off does not count."""

_MAX_ECHO_CHARS = 500
_REMINDER = "This was not in the format that was asked for. Reply again, in that format, and with nothing else."

logger = logging.getLogger(__name__)


class Judge:
    """Asks `model` at temperature 0; its replies are kept in the file `cache_path`, see `JudgeCache`.

    A reply has to keep to the prompt's format to the letter. Else it is asked for again, `max_tries` times in all;
    after that, and when the service fails, the answer counts as wrong, by the rule `judge_failed`. Failures are not
    kept: the next run asks again. Equal questions at the same time are asked once.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        model_name: str,
        cache_path: str | Path,
        max_tries: int = 3,
        max_concurrent: int = 16,
    ) -> None:
        if max_tries < 1 or max_concurrent < 1:
            raise ConfigError(
                f"judge: max_tries and max_concurrent must be positive, got {max_tries}, {max_concurrent}"
            )
        self.model_name = model_name
        self.num_asked = 0
        """Questions that were put to the model, however often."""
        self.num_cached = 0
        """Questions that needed no call: their replies were there already."""
        self.num_failed = 0
        """Verdicts `judge_failed`."""
        self.usage = TokenUsage()
        """Of all calls, as far as the service counts."""
        self._model, self._max_tries = model, max_tries
        self._cache = JudgeCache(cache_path)
        self._failures: dict[str, str] = {}
        self._slots = asyncio.Semaphore(max_concurrent)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def settle(self, prompt: JudgePrompt, problem: Problem, verdict: Verdict, final_text: str) -> Verdict:
        """What a scorer left undecided, decided: its reading of the answer and its scores stay."""
        judged = await self.judge(prompt, problem, verdict.answer, final_text)
        scores = {**verdict.scores, **judged.scores}
        return replace(judged, answer=verdict.answer, extraction=verdict.extraction, scores=scores)

    async def judge(self, prompt: JudgePrompt, problem: Problem, answer: str | None, final_text: str) -> Verdict:
        """The verdict on `answer`; on what is visible of `final_text` without one, or when the prompt asks for it.

        Raises `axpo.errors.QuotaError` and `axpo.errors.ConfigError` as the model does.
        """
        shown = visible_text(final_text) if answer is None or isinstance(prompt, SolutionPrompt) else answer
        messages = prompt.build(problem, shown)
        key = question_key(prompt.id, self.model_name, messages)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:  # who waits here finds the reply afterwards
            verdict = await self._decide(prompt, problem, messages, key)
        return replace(verdict, answer=answer, extraction=extract_answer(final_text)[1])

    async def _decide(self, prompt: JudgePrompt, problem: Problem, messages: tuple[Message, ...], key: str) -> Verdict:
        reply = self._cache.get(key)
        verdict = None if reply is None else prompt.parse(problem, reply)
        if verdict is not None or key in self._failures:
            self.num_cached += 1
        else:
            async with self._slots:
                verdict = await self._ask(prompt, problem, messages, key)
        note = f"{self.model_name}, {prompt.id}"
        if verdict is not None:
            return replace(verdict, note=note)
        self.num_failed += 1
        return Verdict(is_correct=False, rule="judge_failed", note=f"{note}: {self._failures[key]}")

    async def _ask(
        self, prompt: JudgePrompt, problem: Problem, messages: tuple[Message, ...], key: str
    ) -> Verdict | None:
        """A verdict whose reply is in the cache, or None with the reason in `_failures`."""
        self.num_asked += 1
        conversation, text = messages, ""
        for number in range(self._max_tries):
            try:
                text, is_whole = await self._reply(conversation, seed=number)
            except EngineFault as error:  # the model has tried again itself
                return self._fail(prompt, problem, key, str(error))
            verdict = prompt.parse(problem, text) if is_whole and len(text) <= MAX_REPLY_CHARS else None
            if verdict is not None:
                put = self._cache.put
                await asyncio.to_thread(put, key, text, prompt_id=prompt.id, model_name=self.model_name)
                return verdict
            echo = Message(role="assistant", content=(Content(text=bounded(text, _MAX_ECHO_CHARS) or "(nothing)"),))
            conversation = (*messages, echo, Message(role="user", content=(Content(text=_REMINDER),)))
        return self._fail(prompt, problem, key, f"no reply in the asked format in {self._max_tries} tries")

    async def _reply(self, messages: tuple[Message, ...], *, seed: int) -> tuple[str, bool]:
        """Its text, and whether the model came to its end."""
        sampling = SamplingParams(temperature=0.0)
        reply = await self._model.reply(
            ChatRequest(messages=messages, tools=(), max_new_tokens=MAX_NEW_TOKENS, sampling=sampling, seed=seed)
        )
        self.usage += reply.usage or TokenUsage()
        return reply.message.text, reply.finish_reason == "stop"

    def _fail(self, prompt: JudgePrompt, problem: Problem, key: str, reason: str) -> None:
        self._failures[key] = reason
        logger.warning("judge %s, prompt %s, question %s: %s", self.model_name, prompt.id, problem.id, reason)
