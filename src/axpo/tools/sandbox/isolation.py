"""Which walls this machine can build, and what to do about those it cannot."""

from __future__ import annotations

import asyncio
from pathlib import Path

from axpo.errors import ConfigError, ToolFault

_SWITCHES = (
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
    ),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "`sysctl kernel.unprivileged_userns_clone=1`"),
    ("/proc/sys/user/max_user_namespaces", "0", "`sysctl user.max_user_namespaces=10000`"),
)
_FULL = "full: user, mount, pid, network, IPC and host-name namespaces, private files, seccomp, rlimits"


def isolation_level() -> str:
    """One line: the walls around Python code on this machine, or what is missing and how to get it.

    Starts a fork server without libraries and one interpreter, which takes a few tenths of a second. Not to be called
    from an event loop.
    """
    # the server imports this module
    from axpo.tools.sandbox import seccomp
    from axpo.tools.sandbox.server import SandboxServer
    from axpo.tools.sandbox.wire import Limits

    server = SandboxServer(has_libraries=False)

    async def spawn() -> None:
        (await server.spawn(Limits())).kill()

    try:
        asyncio.run(spawn())
    except (ConfigError, ToolFault) as error:
        remaining = "seccomp, rlimits" if seccomp.is_supported() else "rlimits"
        return f"none ({remaining} with allow_unsafe): {error}"
    finally:
        server.close()
    return _FULL


def how_to_isolate(wall: str) -> str:
    """What to do where `wall` cannot be built."""
    return f"this machine cannot isolate Python code ({wall}). {_advice()}"


def _advice() -> str:
    switches = [command for path, blocked, command in _SWITCHES if _read(path) == blocked]
    if switches:
        first = f"As root, run {' and '.join(switches)}"
    else:
        first = (
            "It takes Linux 5.14 or later on x86_64 or aarch64, and a container that allows user namespaces and mounts "
            "in them (Docker: `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`)"
        )
    return f"{first}. Where the model's code may see all files that you can see, set allow_unsafe = true."


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
