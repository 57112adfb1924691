"""The system calls that Python has no function for. Every one raises `OSError` with its own name."""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 0x1, 0x2, 0x4

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_MOUNT_SETATTR = 442
_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def unshare(flags: int) -> None:
    """Move this process (for CLONE_NEWPID: its next child) into new namespaces."""
    _check("unshare", _libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, kind: int) -> None:
    """Move this process (for CLONE_NEWPID: its next child) into the namespace behind `fd`."""
    _check("setns", _libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)))


def prctl(option: int, value: int = 0, third: int | ctypes.Structure = 0) -> None:
    """`prctl(option, value, third, 0, 0)`."""
    pointer = ctypes.c_ulong(third) if isinstance(third, int) else ctypes.byref(third)
    zero = ctypes.c_ulong(0)
    _check("prctl", _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), pointer, zero, zero))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """`mount(2)`."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _check(f"mount {target}", _libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]))


def bind(source: str, target: str) -> None:
    """Show `source`, with all that is mounted below it, at `target` as well."""
    mount(source, target, None, MS_BIND | MS_REC)


def restrict_mount(target: str, attributes: int, *, is_recursive: bool = True) -> None:
    """Add attributes such as read-only to a mount."""
    request = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if is_recursive else 0
    _syscall("mount_setattr", _SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), flags, request, len(request))


def change_root(new_root: str) -> None:
    """Make a mount the root and let go of everything outside it."""
    os.chdir(new_root)
    _syscall("pivot_root", _SYS_PIVOT_ROOT[os.uname().machine], b".", b".")
    _check("umount2", _libc.umount2(b".", ctypes.c_int(MNT_DETACH)))
    os.chdir("/")


def regain_capabilities() -> None:
    """Make all permitted capabilities effective: those kept by PR_SET_KEEPCAPS when the user id changed."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    _check("capget", _libc.capget(header, data))
    _, permitted_low, inheritable_low, _, permitted_high, inheritable_high = struct.unpack("=6I", data.raw)
    new = (permitted_low, permitted_low, inheritable_low, permitted_high, permitted_high, inheritable_high)
    _check("capset", _libc.capset(header, struct.pack("=6I", *new)))


def drop_capabilities() -> None:
    """Give up all of them for good."""
    _check("capset", _libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)))


def _syscall(name: str, number: int, *arguments: int | bytes) -> None:
    converted = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    _check(name, _libc.syscall(ctypes.c_long(number), *converted))


def _check(name: str, result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
