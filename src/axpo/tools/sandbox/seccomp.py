"""The system calls an interpreter may make: an allow-list as a classic BPF program.

Everything else fails with EPERM, which Python raises as `PermissionError`. System calls that are newer than this list
fail with ENOSYS, so that the C library falls back to older ones. Three kinds of call are not on the list:

- what reaches out: processes, programs, sockets, namespaces, mounts, keys, tracing, BPF, io_uring;
- what makes the kernel allocate memory that no limit of the process counts, or that is counted per user, so that one
  rollout takes it from all others: locks, leases, pipes, epoll, eventfd, timers, message queues, `memfd_create`;
- what changes the state of a file that other rollouts see as well, such as a library: locks, leases, its place in the
  page cache. The kernel allows the owner of a file more of this, and an ordinary user owns the libraries.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

from axpo.tools.sandbox import kernel

_ALLOWED = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
open:2:- openat:257:56 close:3:57 close_range:436:436 lseek:8:62 dup:32:23 dup2:33:- dup3:292:24 ftruncate:77:46
truncate:76:45 fallocate:285:47 poll:7:- ppoll:271:73 select:23:- pselect6:270:72

stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439
readlink:89:- readlinkat:267:78 getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83:- mkdirat:258:34 rmdir:84:-
unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 link:86:- linkat:265:37 symlink:88:-
symlinkat:266:36 chmod:90:- fchmod:91:52 fchmodat:268:53 utimensat:280:88 utimes:235:- utime:132:- getdents:78:-
getdents64:217:61 statfs:137:43 fstatfs:138:44 umask:95:166 getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10
listxattr:194:11 llistxattr:195:12 flistxattr:196:13

munmap:11:215 mremap:25:216 mprotect:10:226 brk:12:214 get_mempolicy:239:236

futex:202:98 set_robust_list:273:99 get_robust_list:274:100 rseq:334:293 set_tid_address:218:96 gettid:186:178
exit:60:93 exit_group:231:94 sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121
sched_getscheduler:145:120 sched_get_priority_max:146:125 sched_get_priority_min:147:126 getpriority:140:141
arch_prctl:158:-

rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigsuspend:130:133
rt_sigtimedwait:128:137 sigaltstack:131:132 pause:34:- restart_syscall:219:128 wait4:61:260 waitid:247:95

clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115 nanosleep:35:101 gettimeofday:96:169
time:201:- times:100:153 getitimer:36:102 setitimer:38:103 alarm:37:-

getpid:39:172 getppid:110:173 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148
getresgid:120:150 getgroups:115:158 getpgrp:111:- getpgid:121:155 getsid:124:156 getcpu:309:168 uname:63:160
sysinfo:99:179 getrusage:98:165 getrlimit:97:163 setrlimit:160:164 getrandom:318:278 capget:125:90
"""
"""Name, number on x86_64, number on aarch64 ("-": does not exist there)."""

_JUDGED = """
clone:56:220 fcntl:72:25 mmap:9:222 madvise:28:233 kill:62:129 tkill:200:130 tgkill:234:131 prlimit64:302:261
"""
"""Calls that are allowed with some arguments only: `_judge`."""
_ANSWERED = """
clone3:435:435 preadv2:327:286 pwritev2:328:287 ioctl:16:29 sendfile:40:71 copy_file_range:326:285
fsync:74:82 fdatasync:75:83 msync:26:227
"""
"""Calls that never reach the kernel's code, but get an answer with which programs can continue: `_ANSWERS`."""
_ANSWERS = {
    # its flags are in memory, where no filter can look; the C library then calls clone
    "clone3": errno.ENOSYS,
    # their flags can ask whether another rollout has read a library file lately; the C library then calls preadv
    "preadv2": errno.ENOSYS,
    "pwritev2": errno.ENOSYS,
    # no file here has controls: this is what a file says that is not a terminal. A socket would tell of network cards,
    # a library file would take flags from its owner
    "ioctl": errno.ENOTTY,
    # both allocate a pipe per thread, which counts against the user; Python then copies by reading and writing
    "sendfile": errno.ENOTSOCK,
    "copy_file_range": errno.EXDEV,
    # done: the working folder is memory, there is nothing to write back. A library's disk would be made to flush
    "fsync": 0,
    "fdatasync": 0,
    "msync": 0,
}

_ARCHITECTURES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}
"""Audit constant, column in the tables."""
_THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
"""Flags that pthread_create passes to clone (glibc, musl): a thread that shares everything. Nothing else is created."""
_FILE_COMMANDS = (0, 1, 2, 3, 4, 5, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_DUPFD_CLOEXEC: what duplicating, inheriting and blocking
take. F_GETLK finds nothing, because no rollout can lock; SQLite asks in its write-ahead mode.

All others are refused. Leases make every `open` of that file on the machine wait. Open-file-description locks take
kernel memory without limit. F_SETOWN and its kind send signals. F_SETPIPE_SZ takes memory of the user. F_NOTIFY and
F_SET_RW_HINT change what others see.
"""
_RECORD_LOCKS = (6, 7)
"""F_SETLK, F_SETLKW succeed without a lock. SQLite does not work without them. They exclude other processes, and no
other process can open a file of the working folder; locks on other files would be seen by other rollouts."""
_REFUSED_MAPPINGS = 0x00100 | 0x40000
"""MAP_GROWSDOWN, MAP_HUGETLB: a gap of a megabyte around each page, which takes page tables; the machine's huge pages.
"""
_MEMORY_ADVICE = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 18, 19)
"""NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE, DONTDUMP, DODUMP, WIPEONFORK, KEEPONFORK:
what allocators use.

Not MERGEABLE, which shares equal pages with other processes and lets code measure that they are equal, nor COLD and
PAGEOUT, with which the owner of a library pushes it out of the memory of all.
"""
_NAMES_A_PROCESS = ("kill", "tkill", "tgkill", "prlimit64")
"""Their first argument is a process; 0 is the caller, its group (it is alone there) or nobody."""
_LAST_KNOWN = 450

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE, _OFFSET_ARGUMENTS = 0, 4, 16
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_DONE, _REFUSED = _ERRNO | 0, _ERRNO | errno.EPERM
_SECCOMP_MODE_FILTER = 2

_Step = tuple[int, int, int, int]
"""Operation, steps to skip where a comparison holds, where it does not, operand."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install_filter(*, sees_others: bool) -> None:
    """Confine this process, its threads to come included, for good. Needs no_new_privs.

    `sees_others`: it is not alone in its pid namespace, and has to leave other processes in peace.
    """
    instructions = build_filter(os.uname().machine, own_pid=os.getpid() if sees_others else None)
    program = _Program(len(instructions) // 8, instructions)
    kernel.prctl(kernel.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program)


def is_supported() -> bool:
    """True when this kernel takes filters and this architecture has a table."""
    if os.uname().machine not in _ARCHITECTURES:
        return False
    try:
        kernel.prctl(kernel.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, 0)
    except OSError as error:
        return error.errno == errno.EFAULT  # it tried to read the program
    return False


def build_filter(machine: str, *, own_pid: int | None = None) -> bytes:
    """The program; its numbers are those of one architecture, and any other entry (32 bit, x32) is refused.

    `own_pid`: signals and limits may concern that process only; None: any that it sees.
    """
    audit, column = _ARCHITECTURES[machine]
    steps = [
        (_LOAD, 0, 0, _OFFSET_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _OFFSET_NUMBER),
        (_JUMP_GREATER, 0, 1, _LAST_KNOWN),  # x32 too: its numbers start at 2**30
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in _numbers(_ALLOWED, column).values():
        steps += _where_equal(number, [(_RETURN, 0, 0, _ALLOW)])
    for name, number in _numbers(_ANSWERED, column).items():
        steps += _where_equal(number, [(_RETURN, 0, 0, _ERRNO | _ANSWERS[name])])
    for name, number in _numbers(_JUDGED, column).items():
        steps += _where_equal(number, _judge(name, own_pid))
    steps.append((_RETURN, 0, 0, _REFUSED))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _numbers(table: str, column: int) -> dict[str, int]:
    rows = [entry.split(":") for entry in table.split()]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _where_equal(value: int, body: list[_Step]) -> list[_Step]:
    """`body`, which ends with a verdict, where the loaded number equals the value."""
    return [(_JUMP_EQUAL, 0, len(body), value), *body]


def _judge(name: str, own_pid: int | None) -> list[_Step]:
    """The verdict on a system call that is allowed with some arguments only."""
    if name == "clone":
        return _judge_argument(0, {_ALLOW: _THREAD_FLAGS}, _REFUSED)
    if name == "fcntl":
        return _judge_argument(1, {_ALLOW: _FILE_COMMANDS, _DONE: _RECORD_LOCKS}, _REFUSED)
    if name == "mmap":
        flags = (_LOAD, 0, 0, _OFFSET_ARGUMENTS + 8 * 3)
        return [flags, (_JUMP_ANY_BIT, 0, 1, _REFUSED_MAPPINGS), (_RETURN, 0, 0, _REFUSED), (_RETURN, 0, 0, _ALLOW)]
    if name == "madvise":
        return _judge_argument(2, {_ALLOW: _MEMORY_ADVICE}, _ERRNO | errno.EINVAL)  # as for unknown advice
    assert name in _NAMES_A_PROCESS
    return [(_RETURN, 0, 0, _ALLOW)] if own_pid is None else _judge_argument(0, {_ALLOW: (0, own_pid)}, _REFUSED)


def _judge_argument(position: int, verdicts: dict[int, Sequence[int]], otherwise: int) -> list[_Step]:
    """The verdict that lists the argument, else `otherwise`.

    The upper 32 bits must be zero: of some arguments the kernel reads all 64, and no listed value has any there.
    """
    offset = _OFFSET_ARGUMENTS + 8 * position
    steps = [
        (_LOAD, 0, 0, offset + 4),  # both architectures are little-endian
        (_JUMP_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, otherwise),
        (_LOAD, 0, 0, offset),
    ]
    for verdict, values in verdicts.items():
        for value in values:
            steps += _where_equal(value, [(_RETURN, 0, 0, verdict)])
    return [*steps, (_RETURN, 0, 0, otherwise)]
