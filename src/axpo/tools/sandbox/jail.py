"""Walls: the namespaces of the fork server, its tiny file system, what an interpreter gives up before it runs code.

`enter_namespaces` -> fork -> `build_root` -> `become_nobody` make the fork server; each interpreter that it forks calls
`confine`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from axpo.tools.sandbox import kernel, seccomp
from axpo.tools.sandbox.wire import Limits

NOBODY = 65534
WORK = "/workspace"
"""The only folder that code can write to; /tmp leads there."""
CHANNEL_FD = 3
_PROC_FD = 4
_MOUNT_POINT = "/sys"
"""Where the new root is put together: nothing that has to be shown lies below it."""
_SYSTEM_PATHS = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/fonts",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/nix/store",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_MB = 2**20
_MAX_OPEN_FILES = 256
_STACK_BYTES = 8 * _MB
_MAX_FILES = 4096
_NICENESS = 10
"""The trainer goes first."""


class IsolationError(Exception):
    """A wall that this machine does not let us build; the text names it."""


@contextmanager
def _wall(name: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise IsolationError(f"{name}: {error.strerror or error}") from error


# -- the fork server --------------------------------------------------------------------------------------------------


def die_with_parent() -> None:
    """SIGKILL when the thread that started this process ends, however it ends."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


def enter_namespaces() -> None:
    """New user, mount, pid (for the next child), network, IPC and host-name namespaces for this process."""
    if not seccomp.is_supported():  # needed much later; better refused before anything runs
        raise IsolationError("seccomp: this kernel or this architecture has no filters")
    uid, gid = os.geteuid(), os.getegid()
    kinds = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    with _id_mapper() if uid == 0 else contextlib.nullcontext(), _wall("user namespace"):
        kernel.unshare(kernel.CLONE_NEWUSER)
    if uid != 0:
        with _wall("user namespace"):
            _map_own_ids("/proc/self", uid, gid)
    with _wall("mount, pid, network, IPC and host-name namespaces"):
        kernel.unshare(kinds)


@contextmanager
def _id_mapper() -> Generator[None]:
    """A child that, once the block has entered a new user namespace, maps root and nobody into it: two ids need root
    outside.
    """
    pid = os.getpid()
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(ready, 1)
        with contextlib.suppress(BaseException):
            for kind in ("uid", "gid"):
                _write_ids(f"/proc/{pid}/{kind}_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n", f"0 {os.geteuid()} 1\n")
            os._exit(0)
        os._exit(1)
    os.close(ready)
    try:
        yield
    finally:
        os.close(go)
        _, status = os.waitpid(child, 0)
    if status:
        raise IsolationError("user namespace: root cannot map its ids into it")


def _write_ids(path: str, *choices: str) -> None:
    """The first mapping that the kernel takes: inside another container nobody may not exist."""
    for choice in choices:
        with contextlib.suppress(OSError):
            return _write(path, choice)
    raise OSError(f"{path} takes no mapping")


def _map_own_ids(proc_self: str, uid: int, gid: int, *, dir_fd: int | None = None) -> None:
    _write(f"{proc_self}/setgroups", "deny", dir_fd=dir_fd)
    _write(f"{proc_self}/uid_map", f"{uid} {uid} 1", dir_fd=dir_fd)
    _write(f"{proc_self}/gid_map", f"{gid} {gid} 1", dir_fd=dir_fd)


def _write(path: str, text: str, *, dir_fd: int | None = None) -> None:
    fd = os.open(path, os.O_WRONLY, dir_fd=dir_fd)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def build_root(library_paths: Sequence[str]) -> None:
    """Replace the file system by a read-only one that holds libraries, five devices and an empty working folder."""
    with _wall("mount namespace"):
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("tmpfs", _MOUNT_POINT, "tmpfs", kernel.MS_NOSUID, "size=4m,mode=755")
        for path in _without_nested([*_SYSTEM_PATHS, *python_paths(), *library_paths]):
            _show(path, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV)
        for path in _DEVICES:
            _show(path, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID)
        for path in (WORK, "/proc"):
            os.mkdir(_MOUNT_POINT + path)
        with contextlib.suppress(FileExistsError):  # packages lie below /tmp
            os.symlink(WORK, f"{_MOUNT_POINT}/tmp")
        kernel.mount("tmpfs", _MOUNT_POINT + WORK, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=16m,mode=1777")
        kernel.change_root(_MOUNT_POINT)
        kernel.restrict_mount("/", kernel.ATTR_RDONLY, is_recursive=False)


def python_paths() -> list[str]:
    """Where this Python and its packages live."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [f"{sys.base_prefix}/lib", *paths]


def _without_nested(paths: Sequence[str]) -> list[str]:
    """Existing paths in both spellings (as given, symbolic links resolved), none inside another."""
    spelled = {name for path in paths for name in (os.path.normpath(path), os.path.realpath(path))}
    kept: list[str] = []
    for path in sorted(spelled, key=lambda name: name.count("/")):
        if os.path.exists(path) and not any(path.startswith(f"{outer}/") for outer in kept):
            kept.append(path)
    return kept


def _show(path: str, attributes: int) -> None:
    target = Path(_MOUNT_POINT + path)
    if not os.path.exists(path) or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.islink(path) and path in _SYSTEM_PATHS:
        target.symlink_to(os.readlink(path))
        return
    if os.path.isdir(path):
        target.mkdir()
    else:
        target.touch()
    kernel.bind(path, str(target))
    kernel.restrict_mount(str(target), attributes)


def become_nobody() -> None:
    """Where root started us: become nobody, with all capabilities inside our own namespaces and none outside."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # nobody does not exist where root is already a container's
            kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            kernel.regain_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # or /proc/self belongs to root, and interpreters cannot map their ids


# -- an interpreter ---------------------------------------------------------------------------------------------------


def keep_open(channel_fd: int, proc_fd: int) -> None:
    """Close every file but two, which become `CHANNEL_FD` and, until `confine` is done, 4; 0, 1 and 2 lead nowhere."""
    null, channel, proc = os.open("/dev/null", os.O_RDWR), os.dup(channel_fd), os.dup(proc_fd)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (null, null, null, channel, proc)]
    for number, fd in enumerate(high):
        os.dup2(fd, number)
    os.closerange(_PROC_FD + 1, 2**20)


def confine(limits: Limits, *, is_isolated: bool) -> None:
    """Take everything off that the code must not have."""
    os.setsid()  # kill(0, ...) reaches a process group across pid namespaces
    os.nice(_NICENESS)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # or its files in /proc belong to root
    with contextlib.suppress(OSError):
        _write("self/oom_score_adj", "1000", dir_fd=_PROC_FD)
    if is_isolated:
        _enter_own_namespaces(limits)
    statm = os.open("self/statm", os.O_RDONLY, dir_fd=_PROC_FD)
    pages = [int(count) for count in os.read(statm, 200).split()]
    os.close(statm)
    os.close(_PROC_FD)
    _limit_resources(limits, address_space_pages=pages[0], data_pages=pages[5])
    if is_isolated:
        _limit_resource(resource.RLIMIT_NPROC, limits.max_threads)  # counts in its own user namespace only
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    if is_isolated or seccomp.is_supported():
        seccomp.install_filter(sees_others=not is_isolated)


def _enter_own_namespaces(limits: Limits) -> None:
    """A user namespace for a count of threads of its own, a mount namespace for a working folder of its own."""
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
    _map_own_ids("self", uid, gid, dir_fd=_PROC_FD)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", WORK, "tmpfs", flags, f"size={limits.tmp_mb}m,nr_inodes={_MAX_FILES},mode=0700")
    os.chdir(WORK)


def _limit_resources(limits: Limits, *, address_space_pages: int, data_pages: int) -> None:
    """Soft = hard; memory counts from what the libraries take already."""
    page_bytes = resource.getpagesize()
    wanted = {
        resource.RLIMIT_AS: address_space_pages * page_bytes + limits.memory_mb * _MB,
        resource.RLIMIT_DATA: data_pages * page_bytes + limits.memory_mb * _MB,
        resource.RLIMIT_STACK: _STACK_BYTES,
        resource.RLIMIT_FSIZE: limits.tmp_mb * _MB,
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
    }
    for kind, value in wanted.items():
        _limit_resource(kind, value)


def _limit_resource(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
