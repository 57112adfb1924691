"""How to reach an MCP server, as a configuration says it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from axpo.errors import ConfigError

BYTES_PER_MB = 1_000_000
MAX_CALL_TIMEOUT_S = 300.0
MAX_START_TIMEOUT_S = 120.0
"""With these a call ends in time even where it waits for a server of its own, see `axpo.protocols.Tool.run`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpOptions:
    """All values as TOML has them. Either `command` or `url`."""

    name: str = "mcp"
    """Of the server, in messages."""
    command: Sequence[str] = ()
    """Program and arguments of a server that speaks over standard input and output."""
    url: str = ""
    """Endpoint of a server that speaks streamable HTTP."""
    env: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    """Environment of the command, beside PATH, HOME, LOGNAME, SHELL, TERM, USER. Nothing else is passed on."""
    env_from: Sequence[str] = ()
    """Names of variables of our environment that the command may have, such as a token."""
    cwd: str = ""
    """Folder in which the command runs."""
    headers_env: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    """HTTP header -> name of the environment variable that holds its value."""
    tools: Sequence[str] = ()
    """Which of the server's tools are offered; empty: all."""
    prefix: str = ""
    """Put before each tool's name, where two servers have tools of one name."""
    start_timeout_s: float = 30.0
    call_timeout_s: float = 60.0
    max_result_mb: float = 16.0
    """Largest message taken from the server, in 10⁶ bytes; pictures count in base64."""

    def __post_init__(self) -> None:
        self._check_types()
        if bool(self.command) == bool(self.url):
            raise self.error("needs either command or url", "Give one of them.")
        if self.url and (self.env or self.env_from or self.cwd):
            raise self.error("env, env_from and cwd are for a command, and it has a url", "Remove them.")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise self.error(f"url is {self.url!r}", "It starts with http:// or https://.")
        if self.headers_env and not self.url:
            raise self.error("headers_env is for a url, and it has a command", "Use env_from.")
        highest = {
            "start_timeout_s": MAX_START_TIMEOUT_S,
            "call_timeout_s": MAX_CALL_TIMEOUT_S,
            "max_result_mb": math.inf,
        }
        for option, maximum in highest.items():
            value: object = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= maximum:
                rule = "above 0" if maximum == math.inf else f"above 0, at most {maximum:g}"
                raise self.error(f"{option} is {value!r}", f"It is a number {rule}.")

    def _check_types(self) -> None:
        for option in ("name", "url", "cwd", "prefix"):
            value: object = getattr(self, option)
            if not isinstance(value, str):
                raise self.error(f"{option} is {value!r}", "It is a text.")
        for option in ("command", "env_from", "tools"):
            value = getattr(self, option)
            if isinstance(value, str) or not _are_texts(value):
                raise self.error(f"{option} is {value!r}", 'It is a list of texts, e.g. ["python", "server.py"].')
        for option in ("env", "headers_env"):
            value = getattr(self, option)
            if not isinstance(value, Mapping) or not _are_texts([*value.keys(), *value.values()]):
                raise self.error(f"{option} does not have texts only", 'Quote its values, e.g. { LEVEL = "3" }.')

    def error(self, what: str, advice: str) -> ConfigError:
        """What is wrong with these options."""
        return ConfigError(f"MCP server {self.name}: {what}. {advice}")

    @property
    def place(self) -> str:
        """The server as messages name it."""
        return f"MCP server {self.name} ({self.url or ' '.join(self.command)})"

    @property
    def max_message_bytes(self) -> int:
        """`max_result_mb` in bytes."""
        return int(self.max_result_mb * BYTES_PER_MB)

    def environment(self) -> dict[str, str]:
        """What the command gets to see. Raises `ConfigError` naming a variable that is not set."""
        from mcp.client.stdio import get_default_environment

        return get_default_environment() | dict(self.env) | {key: self._variable(key) for key in self.env_from}

    def headers(self) -> dict[str, str]:
        """HTTP headers of every request. Raises `ConfigError` naming a variable that is not set."""
        return {header: self._variable(key) for header, key in self.headers_env.items()}

    def _variable(self, key: str) -> str:
        if key not in os.environ:
            raise self.error(f"the environment variable {key} is not set", f"Set it, e.g. export {key}=...")
        return os.environ[key]

    def check_environment(self) -> None:
        """Raise `ConfigError` where this machine lacks what the options name."""
        if self.url:
            self.headers()
            return
        if self.cwd and not Path(self.cwd).is_dir():
            raise self.error(f"cwd {self.cwd!r} is no folder", "Create it, or correct the path.")
        program = self.command[0]
        found = Path(self.cwd, program) if "/" in program else program
        if shutil.which(found, path=self.environment().get("PATH")) is None:
            raise self.error(f"there is no program {program!r}", "Install it, or correct command[0].")


def _are_texts(values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, str) for value in values)
