"""What probes of a checkpoint say: the diversity of calls (D3), recovery (D4) and what confidence has to do with both.

arXiv:2605.28774, section 2. Every rate is a total over a total with its 95 % interval; prefixes of one question hang
together, so the question (or what its metadata calls its cluster) is the unit, as in `axpo.measures.sums`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from axpo.diagnostics.call_clusters import Diversity, diversity
from axpo.evaluation.estimators import pass_at_k
from axpo.evaluation.rank_correlation import clustered_spearman
from axpo.measures.intervals import Interval
from axpo.measures.rates import Addends
from axpo.measures.sums import PairSums, Rate, RatioSums

PASS_AT = (1, 2, 4, 8, 16)
MALFORMED, UNKNOWN_TOOL = "malformed", "unknown tool"
"""What stands for the tool of a call that names none that is offered."""
TERCILES = ("least sure", "middle", "surest")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCluster:
    """Continuations of one prefix whose first calls are alike."""

    num_calls: int
    num_correct: int
    """Continuations among them that are right."""
    is_malformed: bool
    example: str
    """The text of one of the calls, cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixOutcome:
    """One failed prefix and its continuations."""

    source_id: str
    problem_id: str
    question_cluster: str
    """Prefixes with one label are resampled together."""
    tool: str
    """That the source called, `MALFORMED` or `UNKNOWN_TOOL`."""
    confidence: float
    """Of the source's call, 0..1."""
    num_tokens: int
    """Of the prefix, prompt included."""
    num_lost: int
    """Continuations lost to faults of ours: neither right nor wrong."""
    clusters: tuple[CallCluster, ...]
    """Largest first."""
    judged_sizes: tuple[int, ...] | None = None
    """Cluster sizes after a judge joined what means the same; None without a judge."""

    @property
    def num_continuations(self) -> int:
        """Those that ended."""
        return sum(cluster.num_calls for cluster in self.clusters)

    @property
    def num_correct(self) -> int:
        """Right ones."""
        return sum(cluster.num_correct for cluster in self.clusters)

    @property
    def diversity(self) -> Diversity | None:
        """Of the calls; None without continuations."""
        return diversity([cluster.num_calls for cluster in self.clusters])


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshOutcome:
    """A probed question sampled anew from its prompt."""

    problem_id: str
    num_rollouts: int
    num_tool: int
    num_correct: int
    num_correct_tool: int
    """Right, and with a call: what Proposition 1 compares with."""
    num_lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiversityNumbers:
    """D3 over prefixes."""

    num_prefixes: int
    clusters: Rate
    """Clusters of a prefix."""
    single_cluster: Rate
    """Prefixes whose calls are all alike."""
    largest_share: Rate
    entropy: Rate
    """Normalised, 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassAtK:
    """Chance of at least one right sample of `k`: continuations of a prefix, and fresh rollouts of its question."""

    k: int
    continued: Rate
    fresh_tool: Rate
    """A fresh rollout counts when it is right and called a tool."""
    fresh_any: Rate
    """A fresh rollout counts when it is right."""
    difference: Rate
    """`continued` minus `fresh_tool`."""
    difference_any: Rate
    """`continued` minus `fresh_any`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryNumbers:
    """D4."""

    num_prefixes: int
    prefixes: Rate
    """With at least one right continuation."""
    questions: Rate
    """With at least one such prefix."""
    pass_at: tuple[PassAtK, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TercileNumbers:
    """A third of the prefixes by confidence."""

    name: str
    min_confidence: float
    max_confidence: float
    diversity: DiversityNumbers
    recovery: RecoveryNumbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """Spearman's rank correlation of a prefix's confidence with the entropy of its calls."""

    interval: Interval
    num_prefixes: int
    num_questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeNumbers:
    """Everything that was measured."""

    diversity: DiversityNumbers
    judged_diversity: DiversityNumbers | None
    by_tool: Mapping[str, DiversityNumbers]
    """By `PrefixOutcome.tool`."""
    malformed: Rate
    """Calls, of all continuations."""
    recovery: RecoveryNumbers
    terciles: tuple[TercileNumbers, ...]
    """Empty with fewer than three prefixes."""
    correlation: Correlation


def measure(
    prefixes: Sequence[PrefixOutcome], fresh: Mapping[str, FreshOutcome], *, num_continuations: int
) -> ProbeNumbers:
    """All numbers of a probe.

    Args:
        prefixes: the failed prefixes.
        fresh: by problem id; a question that is missing takes no part in comparisons.
        num_continuations: K, the largest k of Pass@k.
    """
    has_judge = any(prefix.judged_sizes is not None for prefix in prefixes)
    tools = sorted({prefix.tool for prefix in prefixes})
    return ProbeNumbers(
        diversity=_diversity_numbers(prefixes, _diversity_of),
        judged_diversity=_diversity_numbers(prefixes, _judged_diversity_of) if has_judge else None,
        by_tool={tool: _diversity_numbers([p for p in prefixes if p.tool == tool], _diversity_of) for tool in tools},
        malformed=_rate(prefixes, lambda p: (sum(c.num_calls for c in p.clusters if c.is_malformed), _size(p))),
        recovery=_recovery_numbers(prefixes, fresh, num_continuations),
        terciles=_terciles(prefixes, fresh, num_continuations),
        correlation=_correlation(prefixes),
    )


# -- D3 ---------------------------------------------------------------------------------------------------------------


def _diversity_numbers(
    prefixes: Sequence[PrefixOutcome], diversity_of: Callable[[PrefixOutcome], Diversity | None]
) -> DiversityNumbers:
    found = {prefix.source_id: value for prefix in prefixes if (value := diversity_of(prefix)) is not None}
    known = [prefix for prefix in prefixes if prefix.source_id in found]

    def of(prefix: PrefixOutcome) -> Diversity:
        return found[prefix.source_id]

    def entropy(prefix: PrefixOutcome) -> Addends:
        value = of(prefix).entropy
        return (0, 0) if value is None else (value, 1)

    return DiversityNumbers(
        num_prefixes=len(known),
        clusters=_rate(known, lambda p: (of(p).num_clusters, 1), is_share=False),
        single_cluster=_rate(known, lambda p: (of(p).num_clusters == 1, 1)),
        largest_share=_rate(known, lambda p: (of(p).largest_share, 1)),
        entropy=_rate(known, entropy),
    )


def _diversity_of(prefix: PrefixOutcome) -> Diversity | None:
    return prefix.diversity


def _judged_diversity_of(prefix: PrefixOutcome) -> Diversity | None:
    return diversity(prefix.judged_sizes or ())


# -- D4 ---------------------------------------------------------------------------------------------------------------


def _recovery_numbers(
    prefixes: Sequence[PrefixOutcome], fresh: Mapping[str, FreshOutcome], num_continuations: int
) -> RecoveryNumbers:
    known = [prefix for prefix in prefixes if prefix.num_continuations]
    by_question: dict[str, list[PrefixOutcome]] = {}
    for prefix in known:
        by_question.setdefault(prefix.problem_id, []).append(prefix)
    questions = [members[0] for members in by_question.values()]
    ks = sorted({k for k in PASS_AT if k <= num_continuations} | {num_continuations})
    return RecoveryNumbers(
        num_prefixes=len(known),
        prefixes=_rate(known, lambda p: (p.num_correct > 0, 1)),
        questions=_rate(questions, lambda p: (any(o.num_correct for o in by_question[p.problem_id]), 1)),
        pass_at=tuple(_pass_at(known, fresh, k) for k in ks),
    )


def _pass_at(prefixes: Sequence[PrefixOutcome], fresh: Mapping[str, FreshOutcome], k: int) -> PassAtK:
    """Each prefix against fresh rollouts of its own question, so that both sides have the same mix of questions."""
    able = [
        (prefix, fresh[prefix.problem_id])
        for prefix in prefixes
        if prefix.num_continuations >= k and prefix.problem_id in fresh and fresh[prefix.problem_id].num_rollouts >= k
    ]
    continued = {p.source_id: pass_at_k(p.num_continuations, p.num_correct, k) for p, _ in able}
    with_tool = {p.source_id: pass_at_k(f.num_rollouts, f.num_correct_tool, k) for p, f in able}
    with_any = {p.source_id: pass_at_k(f.num_rollouts, f.num_correct, k) for p, f in able}
    both = [prefix for prefix, _ in able]
    against_tool, against_any = _paired(both, continued, with_tool), _paired(both, continued, with_any)
    return PassAtK(
        k=k,
        continued=against_tool.first.rate(is_share=True),
        fresh_tool=against_tool.second.rate(is_share=True),
        fresh_any=against_any.second.rate(is_share=True),
        difference=against_tool.difference(),
        difference_any=against_any.difference(),
    )


def _paired(prefixes: Sequence[PrefixOutcome], first: Mapping[str, float], second: Mapping[str, float]) -> PairSums:
    sums = PairSums()
    for members in _by_cluster(prefixes):
        size = len(members)
        totals = [sum(side[prefix.source_id] for prefix in members) for side in (first, second)]
        sums.add((totals[0], size), (totals[1], size))
    return sums


# -- confidence -------------------------------------------------------------------------------------------------------


def _terciles(
    prefixes: Sequence[PrefixOutcome], fresh: Mapping[str, FreshOutcome], num_continuations: int
) -> tuple[TercileNumbers, ...]:
    """Thirds by rank, equal confidences by id; the middle ones take what does not divide."""
    ordered = sorted(prefixes, key=lambda prefix: (prefix.confidence, prefix.source_id))
    if len(ordered) < len(TERCILES):
        return ()
    size = len(ordered) // len(TERCILES)
    parts = (ordered[:size], ordered[size : len(ordered) - size], ordered[len(ordered) - size :])
    return tuple(
        TercileNumbers(
            name=name,
            min_confidence=part[0].confidence,
            max_confidence=part[-1].confidence,
            diversity=_diversity_numbers(part, _diversity_of),
            recovery=_recovery_numbers(part, fresh, num_continuations),
        )
        for name, part in zip(TERCILES, parts, strict=True)
    )


def _correlation(prefixes: Sequence[PrefixOutcome]) -> Correlation:
    pairs = [
        (prefix, of.entropy) for prefix in prefixes if (of := prefix.diversity) is not None and of.entropy is not None
    ]
    clusters = [prefix.question_cluster for prefix, _ in pairs]
    interval = clustered_spearman(
        [prefix.confidence for prefix, _ in pairs], [entropy for _, entropy in pairs], clusters
    )
    return Correlation(interval=interval, num_prefixes=len(pairs), num_questions=len(set(clusters)))


# -- totals -----------------------------------------------------------------------------------------------------------


def _rate(
    prefixes: Sequence[PrefixOutcome], addends: Callable[[PrefixOutcome], Addends], *, is_share: bool = True
) -> Rate:
    sums = RatioSums()
    for members in _by_cluster(prefixes):
        pairs = [addends(prefix) for prefix in members]
        numerator, denominator = sum(n for n, _ in pairs), sum(d for _, d in pairs)
        sums.add(numerator, denominator)
    return sums.rate(is_share=is_share)


def _by_cluster(prefixes: Sequence[PrefixOutcome]) -> list[list[PrefixOutcome]]:
    members: dict[str, list[PrefixOutcome]] = {}
    for prefix in prefixes:
        members.setdefault(prefix.question_cluster, []).append(prefix)
    return list(members.values())


def _size(prefix: PrefixOutcome) -> int:
    return prefix.num_continuations
