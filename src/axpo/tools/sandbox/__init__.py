"""Python interpreters for code that nobody trusts: one per rollout, forked in milliseconds from a warm parent.

    trainer      server.py       starts the fork server, talks to interpreters, decides who is to blame
    fork server  zygote.py       pid 1 of its own namespaces, has the scientific stack imported, forks on request
    interpreter  interpreter.py  confines itself (jail.py, seccomp.py), then runs cells (cells.py, pictures.py)

`wire.py` is the format of what they say to each other. `docs/security.md` has the layers and what they hold against.
"""

from axpo.tools.sandbox.isolation import isolation_level
from axpo.tools.sandbox.server import CellResult, Interpreter, InterpreterLost, InterpreterTimeout, SandboxServer
from axpo.tools.sandbox.wire import Limits

__all__ = [
    "CellResult",
    "Interpreter",
    "InterpreterLost",
    "InterpreterTimeout",
    "Limits",
    "SandboxServer",
    "isolation_level",
]
