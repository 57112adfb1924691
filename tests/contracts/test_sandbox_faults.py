"""Hostile code: each attack with its outcome. None harms another rollout, the machine or the trainer.

`docs/security.md` has the same attacks as a table. Every outcome is the model's own (a text or a `ToolError`): a
`ToolFault` would let it dodge its reward, and fails these tests by passing through.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from axpo.tools.python_exec import PythonTool
from axpo.types import FailureKind
from sandboxed import PythonRollout, owned_library, start_as_ordinary_user

SECRET = "violet-otter-7731"
GONE = "The code ended its interpreter"
KILLED = "its interpreter was killed"

RAW = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def raw(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in args))
    return errno.errorcode.get(ctypes.get_errno(), result) if result < 0 else result
"""
FORGE = """
import os, struct
def forge(number, status=0, text=b'', images=(), claimed=None):
    sizes = b''.join(struct.pack('<II', *size) for size in images)
    os.write(3, struct.pack('<IBBII', number, status, 0, claimed or len(text), len(images)) + sizes + text)
"""


@dataclass(frozen=True)
class Attack:
    name: str
    code: str
    outcome: str
    """What the model reads, as a regular expression."""
    timeout_s: int = 20
    is_lasting: bool = False
    """The code has broken its own interpreter for the rest of the rollout."""


PROCESSES = [
    Attack("fork", "import os\nwhile True: os.fork()", "PermissionError"),
    Attack("fork by multiprocessing", "import multiprocessing as m\nm.Process(target=print).start()", "Permission|sem"),
    Attack("fork by the C library", "import ctypes\nctypes.CDLL(None).fork()", r"^-1$"),
    Attack("subprocess", "import subprocess\nsubprocess.run(['/bin/sh'])", "PermissionError"),
    Attack("os.system", "import os\nos.system('id')", r"^-1$|^127$|^32512$"),
    Attack("exec", "import os, sys\nos.execv('/usr/lib/libc.so', ['x'])", "PermissionError"),
    Attack(
        "thread bomb",
        "import threading, time\nthreading.stack_size(2**16)\n"
        "try:\n    while True: threading.Thread(target=time.sleep, args=(99,)).start()\n"
        "except RuntimeError as e: print(e, threading.active_count())",
        r"can't start new thread (\d|1[0-6])$",
    ),
    Attack("kill the parent", "import os\nos.kill(os.getppid(), 9)\n'on'", "on"),
    Attack("kill everything", "import os\nos.kill(-1, 9)", "ProcessLookupError"),
    Attack(
        "kill by number",
        "import os\nfound = []\nfor pid in range(2, 40_000):\n    try: os.kill(pid, 9); found.append(pid)\n"
        "    except ProcessLookupError: pass\nfound",
        r"^\[\]$",
    ),
    Attack("kill the process group", "import os\nos.killpg(0, 9)\nos.kill(0, 15)\n'on'", "on"),
    Attack("kill itself", "import os\nos.kill(os.getpid(), 9)\n'on'", "on"),
    Attack("stop itself", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n'on'", "on"),
    Attack("scan /proc", "import os\nos.listdir('/proc'), os.path.exists('/sys'), os.getpid()", r"\(\[\], False, 1\)"),
]
RESOURCES = [
    Attack("memory bomb", "a = []\nwhile True: a.append(bytearray(10**7))", "MemoryError"),
    Attack("shared memory bomb", "import mmap\na = [mmap.mmap(-1, 10**8) for _ in range(100)]", "OSError|MemoryError"),
    Attack("10 GB string", "'x' * 10**10", "MemoryError"),
    Attack("10 GB array", "import numpy as np\nnp.ones(10**10 // 8)", "MemoryError"),
    Attack("infinite loop", "while True: pass", "Timeout: the code was stopped after 1 s", 1),
    Attack("infinite loop in C", "sum(iter(int, 1))", "Timeout", 1),
    Attack("long loop in C", "n = 3 ** 20_000_000\nn ** 9", f"Timeout|{KILLED}", 1),
    Attack(
        "infinite output", "while True: print('x' * 1000)", r"(?s)x\n\[\.\.\. \d+ bytes left out \.\.\.\].*Timeout", 1
    ),
    Attack("deep recursion", "def f(n): return f(n + 1)\nf(0)", "RecursionError"),
    Attack(
        "deep recursion in C",
        "import sys\nsys.setrecursionlimit(10**9)\na = []\nfor _ in range(10**6): a = [a]\nrepr(a) == ''",
        f"{GONE}|RecursionError|MemoryError",
    ),
    Attack("deeply nested code", "eval('(' * 10**5)\n", "SyntaxError|MemoryError|RecursionError"),
    Attack("large file", "with open('f', 'wb') as f:\n    while True: f.write(bytes(10**6))", "OSError"),
    Attack("many files", "for i in range(10**6): open(str(i), 'w').close()", "No space left"),
    Attack("many open files", "a = []\nwhile True: a.append(open('/dev/null'))", "Too many open files"),
    Attack(
        "raised limits",
        "import resource as r\nfor kind in (r.RLIMIT_AS, r.RLIMIT_NPROC, r.RLIMIT_FSIZE, r.RLIMIT_NOFILE):\n"
        "    try: r.setrlimit(kind, (r.RLIM_INFINITY, r.RLIM_INFINITY)); print('raised')\n"
        "    except (ValueError, PermissionError): print('no')",
        r"^no\nno\nno\nno$",
    ),
    Attack(
        "killed by its own limit",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass",
        GONE,
    ),
    Attack(
        "POSIX shared memory",
        "from multiprocessing import shared_memory as s\ns.SharedMemory(create=True, size=9)",
        "Error",
    ),
    Attack(
        "figure per millisecond", "import matplotlib.pyplot as plt\nwhile True: plt.figure()", "Timeout|MemoryError", 2
    ),
    Attack(
        "picture of 100,000 x 100,000", "from PIL import Image\nImage.new('RGB', (100_000, 100_000))", "MemoryError|too"
    ),
    Attack(
        "compressed picture of 100,000 x 100,000",
        "import struct, zlib, io\nfrom PIL import Image\n"
        "def chunk(kind, data):\n"
        "    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))\n"
        "png = b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 10**5, 10**5, 8, 2, 0, 0, 0))\n"
        "Image.open(io.BytesIO(png + chunk(b'IDAT', zlib.compress(bytes(10**6))) + chunk(b'IEND', b'')))",
        "DecompressionBomb",
    ),
]
FILES = [
    Attack("read /etc", "open('/etc/passwd').read()", "FileNotFoundError"),
    Attack("read a planted file", "print(open(planted_path).read())", "FileNotFoundError"),
    Attack(
        "search the file system",
        "import os\nfiles = [f for _, _, files in os.walk('/') for f in files]\n"
        "[f for f in files if 'axpo-planted' in f or f in ('shadow', '.bashrc')], len(files) > 1000",
        r"^\(\[\], True\)$",
    ),
    Attack("read the environment", "import os, ctypes\nstr(dict(os.environ))", r"^(?!.*violet).*'HOME': '/workspace'"),
    Attack("go up", "import os\nos.chdir('/' + '../' * 20)\nsorted(os.listdir()) == sorted(os.listdir('/'))", "True"),
    Attack(
        "write everywhere",
        "import os\nwritten = set()\nfor d, _, files in os.walk('/'):\n"
        "    try: open(d + '/w', 'w').close(); written.add(d)\n    except OSError: pass\nwritten",
        r"^\{'/workspace'\}$",
    ),
    Attack("change a library", "import json\nopen(json.__file__, 'a')", "Read-only file system|PermissionError"),
    Attack("chmod a library", "import json, os\nos.chmod(json.__file__, 0o777)", "PermissionError|Read-only"),
    Attack("symbolic link", "import os\nos.symlink('/etc/shadow', 'l')\nopen('l').read()", "FileNotFoundError"),
    Attack("hard link", "import os, json\nos.link(json.__file__, 'h')", "Invalid cross-device link"),
    Attack("link in place of the pictures", "import os, shutil\nos.symlink('/usr/lib', 'images')\n'on'", "on"),
    Attack(
        "device file", "import os, stat\nos.mknod('d', 0o600 | stat.S_IFBLK, os.makedev(254, 0))", "PermissionError"
    ),
    Attack(
        "run a file of its own",
        "import mmap, os\nopen('x', 'wb').write(bytes(4096))\nf = os.open('x', os.O_RDONLY)\n"
        "mmap.mmap(f, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)",
        "PermissionError",
    ),
    Attack("chroot", "import os\nos.chroot('/tmp')", "PermissionError"),
]
KERNEL = [
    Attack(
        "sockets of every family",
        "import socket\nmade = []\nfor family in range(46):\n    for kind in range(1, 6):\n"
        "        try: made.append(socket.socket(family, kind))\n        except PermissionError: pass\nmade",
        r"^\[\]$",
    ),
    Attack("socket pair", "import socket\nsocket.socketpair()", "PermissionError"),
    Attack("name lookup", "import urllib.request\nurllib.request.urlopen('http://example.com')", "Error"),
    Attack(
        "system calls",
        RAW
        + "import platform\nnumbers = {'x86_64': dict(clone=56, fork=57, vfork=58, execve=59, socket=41, connect=42, "
        "ptrace=101, unshare=272, setns=308, mount=165, pivot_root=155, chroot=161, bpf=321, perf_event_open=298, "
        "userfaultfd=323, keyctl=250, memfd_create=319, io_uring_setup=425, process_vm_readv=310, pidfd_open=434, "
        "open_by_handle_at=304, kexec_load=246, init_module=175, reboot=169, personality=135, setuid=105, "
        "quotactl=179, swapon=167, acct=163, syslog=103, shmget=29, mq_open=240, prctl=157, seccomp=317)}"
        "[platform.machine()]\n{raw(number, 0, 0, 0) for number in numbers.values()}",
        r"^\{'EPERM'\}$",
    ),
    Attack(
        "system calls with memory or state outside the limits",
        RAW + "import platform\nnumbers = {'x86_64': dict(flock=73, pipe=22, pipe2=293, socketpair=53, eventfd2=290, "
        "epoll_create1=291, inotify_init1=294, fanotify_init=300, timerfd_create=283, signalfd4=289, timer_create=222, "
        "shmget=29, semget=64, msgget=68, mq_open=240, add_key=248, mincore=27, fadvise64=221, readahead=187, "
        "setxattr=188, mlock=149, remap_file_pages=216, vmsplice=278, splice=275, tee=276, sync=162, membarrier=324)}"
        "[platform.machine()]\n{raw(number, 0, 0, 0) for number in numbers.values()}",
        r"^\{'EPERM'\}$",
    ),
    Attack(
        "newer system calls",
        RAW + "raw(435, 0, 0), raw(451, 0), raw(0x40000000 + 57)",
        r"^\('ENOSYS', 'ENOSYS', 'ENOSYS'\)$",
    ),
    Attack("thread in a new namespace", RAW + "raw(56, 0x10000000 | 17, 0)", "EPERM"),
    Attack(
        "32-bit system call",
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(bytes.fromhex('b814000000cd80c3'))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()",
        GONE,
    ),
    Attack("segmentation fault", "import ctypes\nctypes.string_at(0)", GONE),
    Attack("abort", "import os\nos.abort()", GONE),
]
OWNED = "import fcntl, os, struct, owned_library\nfile = open(owned_library.__file__)\n"
"""Opens a file of the libraries that belongs to the user who runs the code, where that is an ordinary user."""
SHARED = [
    Attack("lease on a library", OWNED + "fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)", "PermissionError"),
    Attack(
        "every other command of fcntl",
        OWNED + "allowed = []\nfor command in [*range(6, 100), *range(1024, 1030), *range(1031, 1100)]:\n"
        "    try: fcntl.fcntl(file, command, bytes(64)); allowed.append(command)\n    except PermissionError: pass\n"
        "allowed",
        r"^\[6, 7\]$",  # F_SETLK, F_SETLKW
    ),
    Attack(
        "lock that others see",
        OWNED
        + "for attempt in (fcntl.flock, fcntl.lockf):\n    try: attempt(file, fcntl.LOCK_SH); print('no effect')\n"
        "    except PermissionError: print('refused')",
        "^refused\nno effect$",
    ),
    Attack(
        "lock bomb",
        "import fcntl, struct\nfile = open('f', 'w')\n"
        "for start in range(0, 10**5, 2):\n"
        "    fcntl.fcntl(file, fcntl.F_SETLK, struct.pack('hhqqi', fcntl.F_WRLCK, 0, start, 1, 0))\n"
        "fcntl.fcntl(file, 37, struct.pack('hhqqi', fcntl.F_WRLCK, 0, 0, 1, 0))",  # F_OFD_SETLK
        "PermissionError",
    ),
    Attack(
        "network cards of the machine",
        "import fcntl\nfor request in (0x8912, 0x8910, 0x8927, 0x8933):\n"  # SIOCGIFCONF, ..NAME, ..HWADDR, ..INDEX
        "    try: print(fcntl.ioctl(3, request, bytes(40)))\n    except OSError as error: print(error)",
        r"^(\[Errno 25\] Inappropriate ioctl for device\n?){4}$",
    ),
    Attack(
        "every ioctl",
        OWNED + "allowed = []\nfor fd in (0, 3, file.fileno()):\n"
        "    for kind in (0x54, 0x66, 0x89, 0x94, 0x12, 0x58):\n        for number in range(256):\n"
        "            try: fcntl.ioctl(fd, kind * 256 + number, bytes(64)); allowed.append((fd, kind, number))\n"
        "            except OSError as error: assert error.errno == 25, error\nallowed",
        r"^\[\]$",
    ),
    Attack("pipe bomb", "import os\npipes = []\nwhile True: pipes.append(os.pipe())", "PermissionError"),
    Attack(
        "epoll, eventfd",
        "import os, select\nfor attempt in (select.epoll, lambda: os.eventfd(0)):\n"
        "    try: print(attempt())\n    except PermissionError: print('refused')",
        "^refused\nrefused$",
    ),
    Attack(
        "huge pages of the machine",
        "import mmap\nmmap.mmap(-1, 2**21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)",
        "PermissionError",
    ),
    Attack(
        "library pushed out of memory",
        OWNED + "import ctypes, mmap\npage = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)\n"
        "for attempt in (lambda: page.madvise(21), lambda: os.posix_fadvise(file.fileno(), 0, 0, 4)):\n"
        "    try: print(attempt())\n    except OSError as error: print(error.errno)",  # MADV_PAGEOUT, DONTNEED
        "^22\n1$",
    ),
]
RUNNER = [
    Attack("os._exit", "import os\nos._exit(0)", GONE),
    Attack("sys.exit", "import sys\nsys.exit(3)", "SystemExit: 3"),
    Attack(
        "ignored signals",
        "import signal\nfor s in (signal.SIGALRM, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        KILLED,
        1,
    ),
    Attack("stopped alarm", "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True: pass", KILLED, 1),
    Attack(
        "swallowed timeout",
        "while True:\n    try:\n        while True: pass\n    except BaseException: continue",
        f"Timeout.*({KILLED}|stopped)",
        1,
    ),
    Attack("endless repr", "class A:\n    def __repr__(self):\n        while True: pass\nA()", "Timeout", 1),
    Attack("exit from str", "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", "E"),
    Attack(
        "endless str",
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        r"E: <exception str\(\) failed>|Timeout",
        1,
    ),
    Attack("closed files", "import os\nos.closerange(0, 256)", GONE),
    Attack(
        "garbage to every file",
        "import os\nfor fd in range(256):\n    try: os.write(fd, b'\\xff' * 10_000)\n    except OSError: pass",
        GONE,
    ),
    Attack("zeros for ever", "import os\nwhile True: os.write(3, bytes(10**6))", GONE),
    Attack("forged result", FORGE + "forge(1, 0, b'forged')\nos._exit(0)", "forged"),
    Attack("forged length", FORGE + "forge(1, 0, b'', claimed=2**32 - 1)\nos._exit(0)", "broken reply"),
    Attack("forged status", FORGE + "forge(1, 77)\nos._exit(0)", "broken reply"),
    Attack("forged number", FORGE + "forge(5)\nos._exit(0)", "broken reply"),
    Attack("forged picture", FORGE + "forge(1, images=[(100_000, 100_000)])\nos._exit(0)", "100000x100000"),
    Attack("forged empty picture", FORGE + "forge(1, images=[(0, 5)])\nos._exit(0)", "0x5 px"),
    Attack("forged thin picture", FORGE + "forge(1, images=[(1, 1000)])\nos._exit(0)", "1x1000 px"),
    Attack("forged number of pictures", FORGE + "forge(1, images=[(1, 1)] * 99)\nos._exit(0)", "99 images"),
    Attack("half a result", FORGE + "forge(1, 0, b'abc', claimed=50)\nos._exit(0)", GONE),
    Attack(
        "half a result, then nothing",
        FORGE + "import time\nforge(1, 0, b'abc', claimed=50)\ntime.sleep(99)",
        f"{GONE}|Timeout|x",
        1,
    ),
    Attack("invalid Unicode", FORGE + "forge(1, 0, b'\\xff\\xfe\\x00a')\nos._exit(0)", r"\\x00a"),
    Attack("NUL and half characters", "print('\\0\\ud800')", r"^\\x00\\ud800$"),
    Attack(
        "pickle",
        "import pickle, os\nclass A:\n    def __reduce__(self): return os.system, ('id',)\n"
        "pickle.loads(pickle.dumps(A()))",
        r"-1|127|32512",
    ),
    Attack(
        "changed builtins",
        "import builtins, json\n"
        "for name in ('len', 'print', 'open', 'isinstance', 'repr', 'bytes', 'range', 'getattr'):\n"
        "    setattr(builtins, name, lambda *a, **k: 'forged')\njson.dumps = json.loads = None\n1 / 0",
        "ZeroDivisionError: division by zero",
    ),
    Attack("changed traceback", "import traceback\ntraceback.format_exception = None\n1 / 0", "ZeroDivisionError"),
    Attack(
        "changed modules",
        "import struct, os, sys\nos.read = os.write = None\nstruct.Struct = None\nsys.modules.clear()\nprint(1)",
        "1",
    ),
    Attack("no builtins", "__builtins__.__dict__.clear()", f"{GONE}|Error|no output"),
    Attack("closed output", "import sys\nsys.stdout.close()\nprint(1)", "ValueError"),
    Attack("foreign output", "import sys\nsys.stdout = sys.stderr = None\n1 / 0", "ZeroDivisionError"),
    Attack(
        "audit hook",
        "import sys\ndef hook(*a): raise RuntimeError('no')\nsys.addaudithook(hook)",
        f"{GONE}|no",
        is_lasting=True,
    ),
    Attack(
        "broken runner",
        "import gc\nfor o in gc.get_objects():\n"
        "    if type(o).__name__ in ('CellRunner', 'Gallery'): o.__dict__.clear()",
        f"{GONE}|Error",
    ),
    Attack(
        "frames of the runner",
        "import sys\nf = sys._getframe()\nwhile f.f_back: f = f.f_back\nf.f_globals.clear()",
        f"{GONE}|Error|no output",
    ),
]
ATTACKS = [*PROCESSES, *RESOURCES, *FILES, *KERNEL, *SHARED, *RUNNER]
X86_ONLY = (
    "system calls",
    "system calls with memory or state outside the limits",
    "newer system calls",
    "thread in a new namespace",
    "32-bit system call",
)


@pytest.fixture(scope="module")
def account(request: pytest.FixtureRequest) -> str:
    """Who starts the sandbox; by default the user who runs the tests."""
    return getattr(request, "param", "")


@pytest.fixture(scope="module")
def tool(account: str) -> Iterator[PythonTool]:
    with pytest.MonkeyPatch.context() as patch, owned_library(patch):
        if account == "ordinary user":
            start_as_ordinary_user(patch)
        patch.setenv("AXPO_TEST_SECRET", SECRET)
        tool = PythonTool(memory_mb=256, tmp_mb=16, max_output_chars=4000)
        yield tool
        tool.close()


@pytest.fixture(scope="module")
def witness(tool: PythonTool) -> Iterator[PythonRollout]:
    """Another rollout, which must notice nothing."""
    rollout = PythonRollout(tool)
    rollout.call(f"secret = {SECRET!r}\nopen('mine.txt', 'w').write(secret)")
    yield rollout
    rollout.close()


@pytest.fixture
def rollout(tool: PythonTool) -> Iterator[PythonRollout]:
    rollout = PythonRollout(tool)
    yield rollout
    rollout.close()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(attack: Attack, rollout: PythonRollout, witness: PythonRollout, tmp_path: Path) -> None:
    check_attack(attack, rollout, witness, tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="all tests of this file run as an ordinary user")
@pytest.mark.parametrize("account", ["ordinary user"], indirect=True, scope="module")
@pytest.mark.parametrize("attack", [*PROCESSES, *FILES, *KERNEL, *SHARED], ids=lambda attack: attack.name)
def test_attack_as_the_owner_of_a_library(
    attack: Attack, rollout: PythonRollout, witness: PythonRollout, tmp_path: Path
) -> None:
    """Those whose outcome could depend on the user."""
    check_attack(attack, rollout, witness, tmp_path)


def check_attack(attack: Attack, rollout: PythonRollout, witness: PythonRollout, tmp_path: Path) -> None:
    if attack.name in X86_ONLY and platform.machine() != "x86_64":
        pytest.skip("its numbers are those of x86_64")
    planted = tmp_path / "axpo-planted.txt"
    planted.write_text(SECRET)
    planted.chmod(0o644)
    prefix = f"planted_path = {str(planted)!r}\n" if "planted_path" in attack.code else ""
    seen = rollout.outcome(prefix + attack.code, attack.timeout_s)
    assert re.search(attack.outcome, seen), seen
    assert SECRET not in seen
    if not attack.is_lasting:
        assert rollout.outcome("1 + 1") == "2" or rollout.text("1 + 1") == "2"  # at worst a fresh interpreter
    assert witness.text("secret == open('mine.txt').read()") == "True"


def test_every_attack_is_in_the_table_of_the_documentation() -> None:
    documented = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    assert [attack.name for attack in ATTACKS if f"| {attack.name} |" not in documented] == []


def test_files_of_a_rollout_are_its_own(tool: PythonTool, witness: PythonRollout, rollout: PythonRollout) -> None:
    assert rollout.text("import os; os.getcwd(), os.listdir('.')") == "('/workspace', [])"


def state_of_task(folder: Path) -> str:
    return (folder / "stat").read_text().rsplit(") ")[-1][0]


def test_threads_are_stopped_between_calls(rollout: PythonRollout) -> None:
    rollout.call("import threading\ndef burn():\n    while True: pass\nthreading.Thread(target=burn).start()")
    pidfd = rollout.context.state["python"].interpreter._pidfd
    (pid,) = re.findall(r"Pid:\s*(\d+)", Path(f"/proc/self/fdinfo/{pidfd}").read_text())
    while {state_of_task(task) for task in Path(f"/proc/{pid}/task").iterdir()} != {"T"}:
        time.sleep(0.01)
    assert rollout.text("threading.active_count()") == "2"


def test_a_picture_is_written_where_the_code_put_a_link(rollout: PythonRollout) -> None:
    from PIL import Image

    rollout.call("import os\nos.symlink('/usr/lib', 'images')\n_images.clear()")
    rollout.context.images.append(rollout.context.store.add_image(Image.new("RGB", (8, 8))))
    assert rollout.text("_pil_images[0].size") == "(8, 8)"


def test_a_forged_result_does_not_shift_the_following_ones(rollout: PythonRollout) -> None:
    rollout.call(FORGE + "forge(1, 0, b'early')\nx = 1")
    kind, message = rollout.failure("'mine'")  # reads what the first call really answered
    assert (kind, message[: len(GONE)]) == (FailureKind.EXECUTION_ERROR, GONE)
    assert rollout.text("'mine'") == "'mine'"
