"""The sandbox's processes: which walls they stand behind, and that none outlives its purpose."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from axpo.errors import ConfigError, ToolFault
from axpo.tools.python_exec import PythonTool
from axpo.tools.sandbox import Limits, SandboxServer, isolation_level, seccomp
from axpo.types import FailureKind
from sandboxed import PythonRollout


@pytest.fixture(scope="module")
def tool() -> Iterator[PythonTool]:
    tool = PythonTool(memory_mb=256)
    yield tool
    tool.close()


@pytest.fixture
def rollout(tool: PythonTool) -> Iterator[PythonRollout]:
    rollout = PythonRollout(tool)
    yield rollout
    rollout.close()


def parents() -> dict[int, int]:
    """The parent of every process on this machine."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found[int(folder.name)] = int((folder / "stat").read_text().rsplit(") ")[-1].split()[1])
            except (FileNotFoundError, ProcessLookupError):  # it ended
                continue
    return found


def descendants(pid: int) -> set[int]:
    tree = parents()
    found = {pid}
    while more := {child for child, parent in tree.items() if parent in found} - found:
        found |= more
    return found - {pid}


def wait_until(is_done: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_done():
        assert time.monotonic() < deadline, "still waiting"
        time.sleep(0.02)


def pid_of(rollout: PythonRollout) -> int:
    pidfd = rollout.context.state["python"].interpreter._pidfd
    return int(re.findall(r"Pid:\s*(\d+)", Path(f"/proc/self/fdinfo/{pidfd}").read_text())[0])


# -- walls ------------------------------------------------------------------------------------------------------------


def test_this_machine_isolates() -> None:
    assert isolation_level() == (
        "full: user, mount, pid, network, IPC and host-name namespaces, private files, seccomp, rlimits"
    )


def test_an_interpreter_has_given_everything_up(rollout: PythonRollout) -> None:
    rollout.call("1")
    lines = Path(f"/proc/{pid_of(rollout)}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["NSpid"].split()[2:] == ["1"]  # host, fork server, its own
    assert "0" not in status["Uid"].split()
    assert Path(f"/proc/{pid_of(rollout)}/oom_score_adj").read_text() == "1000\n"
    assert os.getpriority(os.PRIO_PROCESS, pid_of(rollout)) == min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19)
    assert "PermissionError" in rollout.failure("import os; os.setpriority(os.PRIO_PROCESS, 0, 5)")[1]
    # files: nowhere three times, the channel
    list_open = "import os\nfound = []\nfor fd in range(256):\n    try: found.append(os.fstat(fd) and fd)\n"
    assert rollout.text(f"{list_open}    except OSError: pass\nfound") == "[0, 1, 2, 3]"


def test_nothing_of_the_environment_gets_in(rollout: PythonRollout) -> None:
    names = rollout.text("import os; sorted(os.environ)")
    assert names == (
        "['HOME', 'LANG', 'MALLOC_ARENA_MAX', 'MKL_NUM_THREADS', 'MPLBACKEND', 'MPLCONFIGDIR', 'NUMEXPR_NUM_THREADS', "
        "'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'PATH', 'PYTHONHASHSEED', 'TMPDIR', 'TZ']"
    )


@pytest.mark.parametrize(
    ("machine", "audit", "numbers"),
    [
        (
            "x86_64",
            0xC000003E,
            {"read": 0, "socket": 41, "execve": 59, "clone": 56, "clone3": 435, "unshare": 272, "flock": 73}
            | {
                "kill": 62,
                "tkill": 200,
                "tgkill": 234,
                "prlimit64": 302,
                "fcntl": 72,
                "ioctl": 16,
                "madvise": 28,
                "mmap": 9,
            }
            | {"pipe2": 293, "fsync": 74, "sendfile": 40},
        ),
        (
            "aarch64",
            0xC00000B7,
            {"read": 63, "socket": 198, "execve": 221, "clone": 220, "clone3": 435, "unshare": 97, "flock": 32}
            | {
                "kill": 129,
                "tkill": 130,
                "tgkill": 131,
                "prlimit64": 261,
                "fcntl": 25,
                "ioctl": 29,
                "madvise": 233,
                "mmap": 222,
            }
            | {"pipe2": 59, "fsync": 82, "sendfile": 71},
        ),
    ],
)
def test_the_filter_allows_and_denies(machine: str, audit: int, numbers: dict[str, int]) -> None:
    allow, refuse, kill = 0x7FFF0000, 0x50000, 0x80000000
    deny, unknown, done = refuse | errno.EPERM, refuse | errno.ENOSYS, refuse

    def verdict(call: str | int, *arguments: int, architecture: int = audit, own_pid: int | None = None) -> int:
        program = seccomp.build_filter(machine, own_pid=own_pid)
        number = numbers[call] if isinstance(call, str) else call
        return run_filter(
            program, struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
        )

    assert verdict("read") == allow
    assert {verdict(name) for name in ("socket", "execve", "unshare", "flock", "pipe2")} == {deny}
    assert verdict("clone3") == verdict(460) == verdict(0x40000000) == unknown
    assert verdict("read", architecture=0x40000003) == kill
    for name in ("kill", "tkill", "tgkill", "prlimit64"):
        assert verdict(name, 9) == allow
        assert {verdict(name, pid, own_pid=70_000) for pid in (0, 70_000)} == {allow}
        others = (1, 69_999, 4464, 2**32 - 1, 2**32 - 70_000, 2**32 + 70_000)
        assert {verdict(name, pid, own_pid=70_000) for pid in others} == {deny}
    # what pthread_create asks for; another bit, one less, one that only a 64-bit comparison sees
    assert verdict("clone", 0x3D0F00) == allow
    assert {verdict("clone", flags) for flags in (0x11, 0x3C0F00, 0x3D0F00 | 0x40000000, 2**40 | 0x3D0F00)} == {deny}
    commands = range(2048)
    assert [command for command in commands if verdict("fcntl", 3, command) == allow] == [0, 1, 2, 3, 4, 5, 1030]
    assert [command for command in commands if verdict("fcntl", 3, command) == done] == [6, 7]
    assert {verdict("fcntl", 3, command) for command in (8, 37, 1024, 1031, 2**31, 2**32, 2**63 + 1)} == {deny}
    assert {verdict("ioctl", 3, request) for request in (0, 0x5401, 0x8901, 0x8912)} == {refuse | errno.ENOTTY}
    assert verdict("mmap", 0, 4096, 3, 0x22) == allow  # MAP_PRIVATE | MAP_ANONYMOUS
    assert {verdict("mmap", 0, 4096, 3, flags) for flags in (0x122, 0x40022, 2**40 | 0x40022)} == {deny}
    assert verdict("madvise", 0, 4096, 4) == allow
    assert {verdict("madvise", 0, 4096, advice) for advice in (12, 20, 21, 25, 100, 2**32 + 4)} == {
        refuse | errno.EINVAL
    }
    assert verdict("fsync") == done
    assert verdict("sendfile") == refuse | errno.ENOTSOCK


def run_filter(program: bytes, data: bytes) -> int:
    """The few instructions of classic BPF that the filter uses."""
    steps = list(struct.iter_unpack("<HBBI", program))
    position = value = 0
    while True:
        code, jump_true, jump_false, operand = steps[position]
        position += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
            continue
        is_true = {0x15: value == operand, 0x25: value > operand, 0x45: value & operand != 0}[code]
        position += jump_true if is_true else jump_false


def test_the_channel_cannot_see_the_network_cards_of_the_machine(rollout: PythonRollout) -> None:
    rollout.call("1")
    list_cards, num_bytes = 0x8912, struct.pack("iP", 0, 0)  # SIOCGIFCONF without room for them: how much they take
    with socket.socket(socket.AF_UNIX) as of_the_machine:
        if fcntl.ioctl(of_the_machine, list_cards, num_bytes) == num_bytes:
            pytest.skip("this machine has no network card that is up")
    channel = rollout.context.state["python"].interpreter._channel
    assert fcntl.ioctl(channel, list_cards, num_bytes) == num_bytes


def test_a_lock_of_the_code_never_reaches_the_kernel(rollout: PythonRollout) -> None:
    rollout.call("import fcntl\nfile = open('f', 'w')\nfcntl.lockf(file, fcntl.LOCK_EX)")
    holders = [line.split()[-4] for line in Path("/proc/locks").read_text().splitlines()]
    assert str(pid_of(rollout)) not in holders


WITHOUT_NAMESPACES = """
import asyncio, os, sys
from axpo.tools.sandbox import jail, kernel
kernel.unshare(kernel.CLONE_NEWUSER)
open('/proc/sys/user/max_user_namespaces', 'w').write('0')
sys.path.insert(0, {tests!r})
from sandboxed import PythonRollout
from axpo.tools.python_exec import PythonTool
from axpo.tools.sandbox import isolation_level
print(isolation_level())
for attempt in (PythonRollout(PythonTool()).text, lambda _: PythonTool().check()):
    try:
        attempt('1')
    except Exception as error:
        print(type(error).__name__, error)
tool = PythonTool(allow_unsafe=True)
print(PythonRollout(tool).text('40 + 2'))
tool.close()
"""


def test_a_machine_that_cannot_isolate_refuses_and_says_what_to_do() -> None:
    script = WITHOUT_NAMESPACES.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    level, error, checked, answer = done.stdout.splitlines()
    assert checked == error
    assert level.startswith("none (seccomp, rlimits with allow_unsafe): tool python: this machine cannot isolate")
    assert error.startswith("ConfigError tool python: this machine cannot isolate Python code (user namespace: ")
    assert "`sysctl user.max_user_namespaces=10000`" in error
    assert error.endswith("set allow_unsafe = true.")
    assert answer == "42"


def test_without_isolation_limits_and_timeouts_still_hold(tmp_path: Path) -> None:
    tool = PythonTool(allow_unsafe=True, memory_mb=256)
    rollout = PythonRollout(tool)
    folder = Path(rollout.text("import os; os.getcwd()").strip("'"))
    assert folder.exists()
    assert "MemoryError" in rollout.failure("'x' * 10**10")[1]
    assert "PermissionError" in rollout.failure("os.fork()")[1]
    assert "PermissionError" in rollout.failure("import socket; socket.socket()")[1]
    assert rollout.failure("while True: pass", timeout=1)[0] is FailureKind.TIMEOUT
    rollout.close()
    wait_until(lambda: not folder.exists())
    folder = Path(rollout.text("import os; os.getcwd()").strip("'"))
    tool.close()  # with a live interpreter
    assert not folder.exists()


HARM = """
import ctypes, fcntl, os, resource, signal, struct
def attempt(name, function, *arguments):
    try:
        print(name, function(*arguments))
    except OSError as error:
        print(name, type(error).__name__)
def overwrite(pid):
    with open(f'/proc/{{pid}}/mem', 'r+b', buffering=0): return 'opened'
libc = ctypes.CDLL(None, use_errno=True)
for pid in ({trainer}, os.getppid(), {keeper}):
    attempt('kill', os.kill, pid, 0)
    attempt('kill -', os.kill, -pid, 0)
    attempt('prlimit', resource.prlimit, pid, resource.RLIMIT_CPU)
    attempt('F_SETOWN', fcntl.fcntl, 3, fcntl.F_SETOWN, pid)
    attempt('FIOSETOWN', fcntl.ioctl, 3, 0x8901, struct.pack('i', pid))
    print('tkill', libc.syscall(200, pid, 0), 'tgkill', libc.syscall(234, pid, pid, 0))
attempt('kill -1', os.kill, -1, 0)
for pid in (os.getppid(), {keeper}):
    attempt('mem', overwrite, pid)
attempt('own limit', resource.setrlimit, resource.RLIMIT_CORE, (1, 1))
"""


def test_without_isolation_the_code_harms_neither_trainer_nor_fork_server() -> None:
    tool = PythonTool(allow_unsafe=True)
    rollout = PythonRollout(tool)
    rollout.call("1")
    keeper = tool._server._keeper._process.pid
    lines = set(rollout.outcome(HARM.format(trainer=os.getpid(), keeper=keeper)).splitlines())
    names = ("kill", "kill -", "prlimit", "F_SETOWN", "kill -1", "mem")
    refused = {"tkill -1 tgkill -1", "FIOSETOWN OSError", *(f"{name} PermissionError" for name in names)}
    assert lines - refused == {"ValueError: not allowed to raise maximum limit"} | {
        line for line in lines if line.startswith(("Traceback", "  "))
    }
    assert rollout.text("os.kill(os.getpid(), 0), os.kill(0, 0), resource.prlimit(0, resource.RLIMIT_CORE)") == (
        "(None, None, (0, 0))"
    )
    assert rollout.text(
        "signal.signal(signal.SIGUSR1, lambda *_: print('mine')); signal.raise_signal(signal.SIGUSR1)"
    ) == ("mine")
    assert "ended its interpreter" in rollout.outcome("os.kill(os.getpid(), 9)")
    assert tool._server._keeper._process.pid == keeper
    tool.close()


# -- life and death ---------------------------------------------------------------------------------------------------


def test_a_closed_tool_leaves_nothing_and_closes_twice() -> None:
    before, fds = descendants(os.getpid()), len(os.listdir("/proc/self/fd"))
    tool = PythonTool()
    rollouts = [PythonRollout(tool) for _ in range(3)]
    for rollout in rollouts:
        rollout.call("1")
    assert len(descendants(os.getpid()) - before) == 5
    rollouts[0].close()
    wait_until(lambda: len(descendants(os.getpid()) - before) == 4)
    tool.close()
    assert descendants(os.getpid()) == before
    tool.close()
    for rollout in rollouts[1:]:
        rollout.close()
    assert len(os.listdir("/proc/self/fd")) == fds


def test_it_outlives_the_thread_that_started_it(tool: PythonTool) -> None:
    own = PythonTool()
    rollout = PythonRollout(own)
    thread = threading.Thread(target=rollout.call, args=("x = 1",))
    thread.start()
    thread.join()
    assert rollout.text("x") == "1"
    own.close()


@pytest.mark.parametrize("victim", ["keeper", "fork server"])
def test_a_lost_fork_server_is_our_fault_and_is_replaced(victim: str) -> None:
    tool = PythonTool()
    old, fresh = PythonRollout(tool), PythonRollout(tool)
    old.call("x = 1")
    fresh.call("1")
    fresh.close()
    keeper = tool._server._keeper._process.pid
    interpreter = pid_of(old)
    inner = min(child for child, parent in parents().items() if parent == keeper)
    os.kill(keeper if victim == "keeper" else inner, signal.SIGKILL)
    wait_until(lambda: interpreter not in parents())
    with pytest.raises(ToolFault, match="its fork server died") as caught:
        old.call("x")
    assert not caught.value.can_retry
    assert fresh.text("1 + 1") == "2"
    assert "NameError" in old.failure("x")[1]
    tool.close()


def stop(server: SandboxServer) -> set[int]:
    """Its processes, which answer no more."""
    keeper = server._keeper._process.pid
    processes = {keeper} | descendants(keeper)
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):  # an interpreter that was just killed
            os.kill(pid, signal.SIGSTOP)
    return processes


@pytest.mark.parametrize("is_full", [False, True], ids=["silent", "no room for requests"])
def test_a_fork_server_that_hangs_is_our_fault_and_is_replaced(monkeypatch: pytest.MonkeyPatch, is_full: bool) -> None:
    server = SandboxServer(has_libraries=False)
    asyncio.run(server.spawn(Limits())).kill()
    processes = stop(server)
    with contextlib.suppress(BlockingIOError):
        while is_full:
            server._control.send(b"{}")
    monkeypatch.setattr("axpo.tools.sandbox.server.START_TIMEOUT_S", 0.2)
    with pytest.raises(ToolFault, match="no interpreter: no answer within") as caught:
        asyncio.run(asyncio.wait_for(server.spawn(Limits()), 20))
    assert caught.value.can_retry
    wait_until(lambda: not processes & parents().keys())
    monkeypatch.undo()
    asyncio.run(server.spawn(Limits())).kill()
    server.close()


def test_rollouts_that_lose_variables_with_a_hung_fork_server_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever notices: those that wait for a fresh interpreter are tried again, nobody gets one unawares."""
    tool = PythonTool()
    old, busy, unused = (PythonRollout(tool) for _ in range(3))
    old.call("x = 1")

    async def hang() -> list[object]:
        await busy.call_async("import time; y = 1")
        running = asyncio.create_task(busy.call_async("time.sleep(15)"))
        await asyncio.sleep(0)
        stop_all = stop(tool._server)
        os.kill(pid_of(busy), signal.SIGCONT)
        monkeypatch.setattr("axpo.tools.sandbox.server.START_TIMEOUT_S", 0.2)
        fresh = [PythonRollout(tool).call_async("1") for _ in range(3)]
        faults = await asyncio.gather(running, *fresh, return_exceptions=True)
        wait_until(lambda: not stop_all & parents().keys())
        return list(faults)

    faults = asyncio.run(hang())
    assert [type(fault) for fault in faults] == [ToolFault] * 4
    assert [fault.can_retry for fault in faults] == [False, True, True, True]
    monkeypatch.undo()
    assert unused.text("1 + 1") == "2"
    with pytest.raises(ToolFault, match="its fork server died") as caught:
        old.call("x")
    assert not caught.value.can_retry
    tool.close()


@pytest.mark.parametrize("num_received", [0, 1])
def test_a_trainer_without_room_for_more_files_is_our_fault(monkeypatch: pytest.MonkeyPatch, num_received: int) -> None:
    receive = socket.recv_fds

    def receive_fewer(*arguments: object) -> tuple[bytes, list[int], int, object]:
        word, fds, flags, address = receive(*arguments)
        for fd in fds[num_received:]:
            os.close(fd)
        return word, fds[:num_received], flags, address

    server = SandboxServer(has_libraries=False)
    with monkeypatch.context() as patch:
        patch.setattr("axpo.tools.sandbox.server.socket.recv_fds", receive_fewer)
        with pytest.raises(ToolFault, match=r"no interpreter: .*Too many open files"):
            asyncio.run(server.spawn(Limits()))
    asyncio.run(server.spawn(Limits())).kill()
    server.close()


def test_an_interpreter_that_cannot_be_confined_is_our_fault() -> None:
    server = SandboxServer(has_libraries=False)
    with pytest.raises(ToolFault, match=r"no interpreter: OSError: .*mount /workspace: Invalid argument"):
        asyncio.run(server.spawn(Limits(tmp_mb=-1)))
    asyncio.run(server.spawn(Limits())).kill()  # the fork server has survived it
    server.close()


def test_a_killed_fork_server_leaves_no_folder_after_the_next_start() -> None:
    """Where it is not isolated; else its files are in memory of its own."""

    async def working_folder(server: SandboxServer) -> Path:
        interpreter = await server.spawn(Limits())
        return Path((await interpreter.execute("import os; print(os.getcwd())", 20)).text.strip())

    servers = [SandboxServer(is_isolated=False, has_libraries=False) for _ in range(3)]
    killed, living = (asyncio.run(working_folder(server)) for server in servers[:2])
    for pid in (servers[0]._keeper._process.pid, *descendants(servers[0]._keeper._process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not servers[0]._is_alive)
    assert killed.parent.exists()
    asyncio.run(working_folder(servers[2]))
    assert not killed.parent.exists()
    assert living.parent.exists()
    for server in servers:
        server.close()
    assert not living.parent.exists()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [path for path in sys.path if "site-packages" not in path])
    monkeypatch.setattr("axpo.tools.sandbox.server.sys.executable", os.path.realpath(sys.executable))
    tool = PythonTool()
    with pytest.raises(ConfigError, match=r"No module named '\w+'. Run `pip install numpy scipy sympy pandas`"):
        tool.check()
    tool.close()


TRAINER = """
import asyncio, os, sys
sys.path.insert(0, {tests!r})
from sandboxed import PythonRollout
from axpo.tools.python_exec import PythonTool

async def main():
    tool = PythonTool()
    rollouts = [PythonRollout(tool) for _ in range(64)]
    await asyncio.gather(*(rollout.call_async('import time') for rollout in rollouts))
    calls = [asyncio.create_task(rollout.call_async('while True: time.sleep(0.01)', 30)) for rollout in rollouts]
    await asyncio.sleep(0)
    print('running', flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    os._exit(0)

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["kill -9", "exit"])
def test_a_trainer_that_dies_in_64_calls_leaves_no_process(end: str) -> None:
    script = TRAINER.format(tests=str(Path(__file__).parents[1]))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    ) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "running\n"
        processes = descendants(trainer.pid)
        assert len(processes) == 66  # keeper, fork server, 64 interpreters
        if end == "kill -9":
            trainer.kill()
        else:
            trainer.stdin.write("\n")
            trainer.stdin.flush()
        trainer.wait()
        wait_until(lambda: not processes & parents().keys(), within_s=5)


def test_a_thousand_calls_leak_nothing(tool: PythonTool) -> None:
    """In 50 rollouts of 20 calls, some of which end badly."""

    def usage() -> tuple[int, int, int, int]:
        server = next(pid for pid, parent in parents().items() if parent == keeper)
        resident_kb = re.findall(r"VmRSS:\s*(\d+)", Path(f"/proc/{server}/status").read_text())[0]
        num_files = len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{server}/fd"))
        return *num_files, len(descendants(keeper)), int(resident_kb)

    def one_rollout() -> None:
        rollout = PythonRollout(tool)
        for number in range(18):
            assert rollout.text(f"x = {number}; print(x)") == str(number)
        rollout.outcome("1 / 0")
        rollout.outcome("import os; os._exit(1)")
        rollout.close()

    one_rollout()
    keeper = tool._server._keeper._process.pid
    wait_until(lambda: len(descendants(keeper)) == 1)
    before = usage()
    for _ in range(50):
        one_rollout()
    wait_until(lambda: all(now <= then for now, then in zip(usage()[:3], before[:3], strict=True)))
    assert usage()[3] - before[3] < 2048  # kB
