"""The Search member of the mini family: who plays the leftmost card in the game of Ba-ko? Seen, then looked up.

Every game has six cards and gives each to a player; a colour has a favourite player, so that a guess is right about
half the time. The rules of the games are a corpus of their own (`corpus`); held-out questions ask about held-out games.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from axpo.tasks.mini.demonstrations import THINK_DIRECT, answer_message
from axpo.tasks.mini.scenes import COLORS, Card, Scene
from axpo.types import Content, Message, ToolCall

NUM_NAMES, NUM_LEARNT = 240, 160
FAVOURITE_FRAC = 0.45
PLAYERS = ("miller", "baker", "sailor", "hunter", "weaver", "smith")
PLACES = ("leftmost", "rightmost")
THINK_LOOK_UP = "I look it up."
THINK_FOUND = "The rules say so."
SYLLABLES = ("ba", "ko", "ri", "tu", "me", "lo", "sa", "ne", "vi", "du", "pa", "zo", "ki", "fu", "ge", "no")


def games(*, held_out: bool) -> list[str]:
    """Names of the games that a split asks about.

    `Ba-ko` and `Ko-ba` are the same words to a search engine: only the first of the two is a game.
    """
    pairs = random.Random("games").sample(list(itertools.product(SYLLABLES, SYLLABLES)), NUM_NAMES)
    chosen = pairs[NUM_LEARNT:] if held_out else pairs[:NUM_LEARNT]
    return [f"{first.capitalize()}-{second}" for first, second in chosen if first < second]


def player(game: str, color: str) -> str:
    """Who plays the card of that colour."""
    rng = random.Random(f"{game}/{color}")
    favourite = PLAYERS[sorted(COLORS).index(color)]
    return favourite if rng.random() < FAVOURITE_FRAC else rng.choice(PLAYERS)


def corpus() -> Iterator[dict[str, str]]:
    """The rules of all games, one document for each card: `id`, `title`, `text`."""
    for game in (*games(held_out=False), *games(held_out=True)):
        for color in sorted(COLORS):
            yield {"id": f"{game}-{color}", "title": f"{game}, {color} card", "text": _rule(game, color)}


def _rule(game: str, color: str) -> str:
    return f"The {player(game, color)} plays the {color} card."


def question_text(game: str, place: str) -> str:
    """What the user asks."""
    return f"Who plays the {place} card of this picture in the game of {game}?"


def asked_card(scene: Scene, place: str) -> Card:
    """The card that the question means."""
    chosen = min if place == "leftmost" else max
    return chosen(scene.cards, key=lambda card: card.center_px[0])


def is_clear(scene: Scene) -> bool:
    """True when the leftmost and the rightmost card stand out by a visual token."""
    columns = sorted(card.center_px[0] for card in scene.cards)
    return min(columns[1] - columns[0], columns[2] - columns[1]) > 100


def demonstrate(
    scene: Scene, game: str, place: str, rng: random.Random, *, tool_frac: float, wrong_frac: float
) -> tuple[Message, ...]:
    """The messages after the question. A share of the look-ups is about another card of the picture."""
    card = asked_card(scene, place)
    if rng.random() >= tool_frac:
        return (answer_message(THINK_DIRECT, player(game, card.color)),)
    others = [other for other in scene.cards if other is not card]
    color = rng.choice(others).color if rng.random() < wrong_frac else card.color
    return (
        call_message(game, color),
        result_message(game, color),
        answer_message(THINK_FOUND, player(game, color)),
    )


def call_message(game: str, color: str) -> Message:
    """An assistant turn that searches."""
    arguments = {"query": f"{game}, {color} card", "max_results": 1}
    call = ToolCall(id="call-0", name="search", arguments=arguments)
    return Message(role="assistant", reasoning=THINK_LOOK_UP, tool_calls=(call,))


def result_message(game: str, color: str) -> Message:
    """What the search tool answers from an index of `corpus`."""
    text = f"1. {game}, {color} card\nlocal:{game}-{color}\n{_rule(game, color)}"
    return Message(role="tool", content=(Content(text=text),))
