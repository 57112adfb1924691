"""The system calls an interpreter may make: an allow-list as a classic BPF program.

Everything else fails with EPERM, which Python raises as `PermissionError`; system calls that are newer than this list
fail with ENOSYS, so that the C library falls back to older ones. Creating processes, programs, sockets, namespaces,
mounts, keys, tracing and io_uring are simply not on the list. Nor may a file be told to send signals to a process.
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
preadv2:327:286 pwritev2:328:287 open:2:- openat:257:56 close:3:57 close_range:436:436 lseek:8:62 dup:32:23
dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 fcntl:72:25 flock:73:32 fsync:74:82 fdatasync:75:83 ftruncate:77:46
truncate:76:45 fallocate:285:47 fadvise64:221:223 sendfile:40:71 copy_file_range:326:285 ioctl:16:29 poll:7:-
ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21
epoll_wait:232:- epoll_pwait:281:22 eventfd2:290:19

stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439
readlink:89:- readlinkat:267:78 getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83:- mkdirat:258:34 rmdir:84:-
unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 link:86:- linkat:265:37 symlink:88:-
symlinkat:266:36 chmod:90:- fchmod:91:52 fchmodat:268:53 utimensat:280:88 utimes:235:- utime:132:- getdents:78:-
getdents64:217:61 statfs:137:43 fstatfs:138:44 umask:95:166 getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10
listxattr:194:11 llistxattr:195:12 flistxattr:196:13

mmap:9:222 munmap:11:215 mremap:25:216 mprotect:10:226 madvise:28:233 brk:12:214 mincore:27:232 msync:26:227
membarrier:324:283 get_mempolicy:239:236

futex:202:98 set_robust_list:273:99 get_robust_list:274:100 rseq:334:293 set_tid_address:218:96 gettid:186:178
exit:60:93 exit_group:231:94 sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121
sched_getscheduler:145:120 sched_get_priority_max:146:125 sched_get_priority_min:147:126 getpriority:140:141
arch_prctl:158:-

rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigsuspend:130:133
rt_sigtimedwait:128:137 sigaltstack:131:132 kill:62:129 tkill:200:130 tgkill:234:131 pause:34:-
restart_syscall:219:128 wait4:61:260 waitid:247:95

clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115 nanosleep:35:101 gettimeofday:96:169
time:201:- times:100:153 getitimer:36:102 setitimer:38:103 alarm:37:-

getpid:39:172 getppid:110:173 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148
getresgid:120:150 getgroups:115:158 getpgrp:111:- getpgid:121:155 getsid:124:156 getcpu:309:168 uname:63:160
sysinfo:99:179 getrusage:98:165 getrlimit:97:163 setrlimit:160:164 prlimit64:302:261 getrandom:318:278
capget:125:90
"""
"""Name, number on x86_64, number on aarch64 ("-": does not exist there)."""

_ARCHITECTURES = {"x86_64": (0xC000003E, 1, 56), "aarch64": (0xC00000B7, 2, 220)}
"""Audit constant, column in `_ALLOWED`, number of clone."""
_CLONE3 = 435
_NAMES_A_PROCESS = ("kill", "tkill", "tgkill", "prlimit64")
"""Their first argument is a process; 0 is the caller, its group (it is alone there) or nobody."""
_SIGNAL_OWNER = {"fcntl": (8, 15), "ioctl": (0x8901, 0x8902)}
"""F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP: make the kernel send signals to any process of the same user."""
_LAST_KNOWN = 450
_CLONE_THREAD = 0x00010000

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_SET, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE, _OFFSET_FIRST_ARGUMENT, _OFFSET_SECOND_ARGUMENT = 0, 4, 16, 24
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_SECCOMP_MODE_FILTER = 2


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
    audit, column, clone = _ARCHITECTURES[machine]
    rows = [entry.split(":") for entry in _ALLOWED.split()]
    allowed = {row[0]: int(row[column]) for row in rows if row[column] != "-"}
    refused = _ERRNO | errno.EPERM
    steps = [
        (_LOAD, 0, 0, _OFFSET_ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _OFFSET_NUMBER),
        (_JUMP_GREATER, 0, 1, _LAST_KNOWN),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_JUMP_EQUAL, 0, 1, _CLONE3),  # its flags lie in memory, where no filter can look
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for name, commands in _SIGNAL_OWNER.items():
        steps += _judge_argument(allowed[name], _OFFSET_SECOND_ARGUMENT, commands, refused, otherwise=_ALLOW)
    if own_pid is not None:
        for name in _NAMES_A_PROCESS:
            steps += _judge_argument(allowed[name], _OFFSET_FIRST_ARGUMENT, (0, own_pid), _ALLOW, otherwise=refused)
    for number in allowed.values():
        steps += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    steps += [
        (_JUMP_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _OFFSET_FIRST_ARGUMENT),
        (_JUMP_SET, 0, 1, _CLONE_THREAD),  # a thread, not a process
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, refused),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _judge_argument(
    number: int, offset: int, values: Sequence[int], verdict: int, *, otherwise: int
) -> list[tuple[int, int, int, int]]:
    """`verdict` where the argument, of which the kernel reads 32 bits, is among the values."""
    body = [(_LOAD, 0, 0, offset)]
    for value in values:
        body += [(_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, verdict)]
    body.append((_RETURN, 0, 0, otherwise))
    return [(_JUMP_EQUAL, 0, len(body), number), *body]
