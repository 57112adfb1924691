"""The mini family: small cards on large photographs, a model of a few million parameters, a gap to see.

"How many dots are on the red card?" The model sees the photograph scaled down to 160x160 pixels, where a card is a few
pixels wide: from its shade the number of dots can be guessed, but not read. A precise call of `image_zoom_in` shows
the dots. Two further members ask for a distance (`python`) and for a rule of a game (`search`). See
`docs/mini_task.md` for what the task is built to show and what it does not show.
"""

from axpo.tasks.mini.conversations import conversations
from axpo.tasks.mini.lookups import corpus
from axpo.tasks.mini.questions import checkpoint_path, problems

__all__ = ["checkpoint_path", "conversations", "corpus", "problems"]
