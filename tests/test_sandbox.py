import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from data import InputError, sandbox
from data.sandbox import confine, isolation, run

GOOD = {"program": "def f(a, b):\n    return a + b\n", "function": "f", "inputs": [[1, 2], ["x", "y"]]}
isolated = pytest.mark.skipif("processes" not in isolation(), reason="this kernel allows no user namespaces")
filtered = pytest.mark.skipif("system calls" not in isolation(), reason="no system-call filter for this machine")
confined = pytest.mark.skipif(not sandbox.contained(), reason="this machine cannot isolate programs")


def job(program: str, *inputs) -> dict:
    return {"program": program, "function": "f", "inputs": [list(args) for args in inputs or [()]]}


def values(program: str, *inputs, **limits) -> list | None:
    """The program's result, after a check that the programs on either side of it are unaffected."""
    before, result, after = run([GOOD, job(program, *inputs), GOOD], **limits)
    assert before == after == [3, "xy"]
    return result


def refused(result: list | None) -> bool:
    return result is None or all(type(output) is dict and output.keys() == {"error"} for output in result)


def test_results_in_the_order_of_the_jobs():
    assert run([]) == []
    jobs = [job(f"import time\ndef f():\n    time.sleep({(i % 3) / 50})\n    return {i}") for i in range(20)]
    assert run(jobs) == [[i] for i in range(20)]


@pytest.mark.parametrize("value", [None, True, False, 0, 1, -(10**3000), 1.0, -0.5, 1e308, "", "é\n\u2028\x00😀",
                                   "\ud800", [], [1, True, 1.0, [None]], {}, {"a": {"b": [1]}}])
def test_values_and_types_survive_both_ways(value):
    result = values("def f(x): return [x, type(x).__name__]", (value,))
    assert repr(result) == repr([[value, type(value).__name__]])


def test_tuples_become_lists():
    assert values("def f(): return (1, ('a', [()]))") == [[1, ["a", [[]]]]]


@pytest.mark.parametrize("expression", [
    "float('nan')", "float('inf')", "{1, 2}", "b'x'", "f", "object()", "{1: 2}", "1j", "10 ** 5000", "[10 ** 5000]",
    "range(3)", "(i for i in [1])", "type('I', (int,), {})(3)", "type('S', (str,), {})('x')",
    "{type('S', (str,), {})('x'): 1}",
    "type('L', (list,), {'__class__': list, '__eq__': lambda *_: True})([1])",
    "type('A', (), {'__eq__': lambda *_: True, '__class__': int})()",
])
def test_only_plain_data_is_an_output(expression):
    assert values(f"def f(): return {expression}") == [{"error": "not plain data"}]


def test_nesting_and_cycles_are_bounded():
    nested = "def f(n):\n    x = 1\n    for _ in range(n): x = [x]\n    return x"
    shallow, deep, deeper = values(nested, (64,), (65,), (100_000,))
    assert str(shallow) == "[" * 64 + "1" + "]" * 64 and deep == deeper == {"error": "not plain data"}
    assert values("def f():\n    x = []\n    x.append(x)\n    return x") == [{"error": "not plain data"}]


def test_a_call_that_raises_does_not_spoil_the_others():
    program = "class Odd(BaseException): pass\ndef f(x):\n    if x == 2: raise Odd\n    return 1 // x"
    assert values(program, (1,), (0,), (2,), (-1,)) == [1, {"error": "ZeroDivisionError"}, {"error": "Odd"}, -1]
    assert values("def f(n): return f(n + 1)", (0,)) == [{"error": "RecursionError"}]
    assert values("def f(): raise KeyboardInterrupt") == [{"error": "KeyboardInterrupt"}]
    assert values("def f(a): return a", (), (1, 2)) == [{"error": "TypeError"}] * 2


def test_an_output_is_fixed_when_the_call_returns():
    program = "seen = []\ndef f(x):\n    seen.append(x)\n    return seen"
    assert values(program, (1,), (2,)) == [[1], [1, 2]]


@pytest.mark.parametrize("program", [
    "def f(:", "g = 1", "1 / 0", "raise SystemExit", "def f(): raise SystemExit", "import sys\ndef f(): sys.exit(0)",
    "import os\ndef f(): os._exit(0)", "import os\ndef f(): os.abort()",
    "def f(): return 'x' * (1 << 20)", "def f(): return bytearray(1 << 30)", "def f(): return [0] * (1 << 28)", "\x00",
    "import ctypes\ndef f(): return ctypes.string_at(0)", "import os\ndef f(): os.write(3, b'[')\ndef g(): 0",
    "import os\ndef f():\n    os.write(3, b'[1, 2]\\n')", "import os\ndef f():\n    os.write(3, b'[NaN]\\n')",
    "import os\ndef f():\n    os.write(3, b'[' * 9000 + b'\\n')", "import os\ndef f(): os.close(3)",
])
def test_programs_that_fail_as_a_whole(program):
    assert values(program, cpu=1) is None


def test_limits_of_time_and_output():
    deaf = ("import signal, time\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\ndef f(): time.sleep(60)")
    loops = ["while True: pass", "def f():\n    while True: print('x' * 1000)", "def f(): return 3 ** (10 ** 9)", deaf]
    start = time.monotonic()
    results = run([GOOD, *map(job, loops), GOOD], cpu=1, wall=1.2)
    assert results == [[3, "xy"], *[None] * len(loops), [3, "xy"]]
    assert time.monotonic() - start < 8


def test_standard_streams_go_nowhere(capfd):
    program = "import sys\ndef f():\n    print('out')\n    print('e', file=sys.stderr)\n    return sys.stdin.read()"
    assert values(program) == [""] and capfd.readouterr() == ("", "")


def test_a_program_sees_neither_our_environment_nor_our_modules_nor_its_predecessor(monkeypatch):
    sandbox.close()
    monkeypatch.setenv("SANDBOX_TEST", "secret")
    program = "import os, sys\ndef f(): return [os.environ.get('SANDBOX_TEST'), 'torch' in sys.modules]"
    assert values(program) == [[None, False]]
    for name in ("passwords", "data", "torch", "numpy"):
        assert values(f"import {name}\ndef f(): return 1") is None
    run([job("import builtins, json, math\nbuiltins.len = json.dumps = math.isfinite = None\ndef f(): return 1")])
    assert values("def f(x): return len(x)", ([1.0],)) == [1]


def test_chance_and_hashes_repeat():
    program = "import random\ndef f(): return [random.random(), list(set('abcdefgh')), list({'x', 'y', 'z'})]"
    assert len({repr(values(program)) for _ in range(3)}) == 1
    first = values(program)
    sandbox.close()
    assert values(program) == first


def test_the_usual_modules_and_dataclasses_work():
    program = ("from __future__ import annotations\nimport collections, dataclasses, datetime, heapq, math, re\n"
               "from typing import *\n@dataclasses.dataclass\nclass P:\n    x: int\n"
               "def f(): return [P(3).x, math.gcd(12, 18), datetime.datetime.strptime('2024', '%Y').year, __name__]")
    assert values(program) == [[3, 6, 2024, "candidate"]]


def test_files_are_not_written(tmp_path):
    target = tmp_path / "x"
    values(f"def f():\n    with open({str(target)!r}, 'w') as file: file.write('x')")
    assert not target.exists() or target.read_text() == ""


@confined
def test_no_file_can_be_read_or_made():
    program = "import os\ndef f(path):\n    return [os.listdir('/'), open(path, 'a' if path == 'new' else 'r').read()]"
    assert refused(values(program, ("/etc/passwd",), ("/proc/self/status",), ("new",), (os.path.abspath(__file__),)))
    assert values("import os\ndef f(): os.chroot('.')") == [{"error": "PermissionError"}]


@isolated
def test_a_program_is_alone_in_its_namespace():
    assert values("import os\ndef f(): return [os.getpid(), os.getppid()]") == [[1, 0]]


CALL = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\ndef check(result):\n    if result < 0: raise OSError\n    return result\n"
CONNECT = CALL + """def f():
    fd = check(libc.socket(2, 1, 0))
    address = (2).to_bytes(2, "little") + (PORT).to_bytes(2, "big") + bytes(HOST) + bytes(8)
    return check(libc.connect(fd, address, 16))"""
ATTACKS = {  # each f() returns if the attack succeeds
    "read /etc/passwd": "def f(): return open('/etc/passwd').read()",
    "read the home": f"import os\ndef f(): return os.listdir({os.path.expanduser('~')!r})",
    "read the tests": f"def f(): return open({os.path.abspath(__file__)!r}).read()",
    "read through an inherited file": "import os\ndef f(): return [os.read(fd, 1) or 1 / 0 for fd in range(16)]",
    "list processes": "import os\ndef f(): return os.listdir('/proc')",
    "connect to the outside": CONNECT.replace("PORT", "53").replace("HOST", "(1, 1, 1, 1)"),
    "send a datagram": CALL + "def f(): return check(libc.sendto(check(libc.socket(2, 2, 0)), b'x', 1, 0, b'\\2\\0\\0\\65\\1\\1\\1\\1' + bytes(8), 16))",
    "fork bomb": "import os\ndef f():\n    for _ in range(100000): os.fork()",
    "fork bomb that hides": "import os\ndef f():\n    while True:\n        try: os.fork()\n        except OSError: pass",
    "memory bomb": "def f():\n    x = [b'x']\n    while True: x += x",
    "memory bomb by mmap": CALL + "libc.mmap.restype = ctypes.c_long\ndef f(): return check(libc.mmap(None, ctypes.c_size_t(1 << 30), 3, 34, -1, 0))",
    "infinite loop": "def f():\n    while True: pass",
    "infinite output": "def f():\n    while True: print('x' * 100000)",
    "infinite result": "import os\ndef f():\n    while True: os.write(3, b'[' + b'1,' * 100000)",
    "huge file": "def f():\n    with open('x', 'wb') as file: return file.write(bytes(1 << 24))",
    "huge file in memory": CALL + "def f(): return check(libc.ftruncate(check(libc.memfd_create(b'x', 0)), 1 << 24))",
    "kill the parent": "import os\ndef f(): os.kill(os.getppid() or 2, 9)",
    "kill everything": "import os\ndef f(): os.kill(-1, 9)",
    "kill by a file's owner": CALL + "def f(): return check(libc.fcntl(3, 8, os.getppid() or 2))",  # F_SETOWN: gets the file's signals
    "ptrace": CALL + "def f(): return check(libc.ptrace(16, os.getppid() or 2, 0, 0))",
    "be traced": CALL + "def f(): return check(libc.ptrace(0, 0, 0, 0))",
    "a shell": "import os\ndef f(): os.execv('/bin/sh', ['sh', '-c', 'echo [1] >&3'])",
    "a shell by system": "import os\ndef f(): return 1 / (os.system('true') == 0)",
    "a shell by spawn": "import os\ndef f(): return os.posix_spawn('/bin/sh', ['sh'], {})",
    "write through /proc": "def f():\n    with open('/proc/self/mem', 'r+b') as file: return file.seek(1)",
    "write a kernel setting": "def f():\n    with open('/proc/sys/kernel/core_pattern', 'w') as file: return file.write('core')",
    "a new namespace": CALL + "def f(): return check(libc.unshare(0x10000000))",
    "mount": CALL + "def f(): return check(libc.mount(b'none', b'/', b'tmpfs', 0, None))",
    "more of a limit": "import resource\ndef f(): resource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))",
    "stop the clock": "import signal\ndef f():\n    signal.setitimer(signal.ITIMER_REAL, 0)\n    while True: pass",
    "a daemon": "import os\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass\n    return 1",
    "a daemon thread": "import threading, time\ndef f(): threading.Thread(target=time.sleep, args=(60,)).start()",
    "a server of its own": CALL + "def f(): return check(libc.listen(check(libc.socket(1, 1, 0)), 1))",
    "shared memory": CALL + "def f(): return check(libc.shmget(1, 4096, 0o1666))",
    "exit before the tests": "import sys\nsys.exit(0)",
    "exit in the test": "import os\ndef f(): os._exit(0)",
    "machine code": CALL + """def f():  # socket(2, 1, 0): the filter sees what no Python function does
    libc.mmap.restype = ctypes.c_void_p
    code = bytes.fromhex("b829000000bf02000000be0100000031d20f05c3")
    page = libc.mmap(None, 4096, 7, 34, -1, 0)
    ctypes.memmove(page, code, len(code))
    return check(ctypes.CFUNCTYPE(ctypes.c_int)(page)())""",
}
@confined
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_contained(attack):
    server = isolation() and sandbox._server.pid
    assert refused(values(ATTACKS[attack], cpu=1, wall=2))
    assert sandbox._server.pid == server


@confined
def test_a_listener_of_this_machine_is_out_of_reach():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        assert refused(values(CONNECT.replace("PORT", str(port)).replace("HOST", "(127, 0, 0, 1)")))
        with pytest.raises(BlockingIOError):
            listener.accept()
        with socket.create_connection(("127.0.0.1", port)):  # this test can fail: the listener is there
            listener.setblocking(True)
            listener.accept()[0].close()


@filtered
def test_every_system_call_that_is_not_allowed_is_denied():
    program = CALL + """def f(allowed):
    def denied(number):
        ctypes.set_errno(0)
        return libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6) == -1 and ctypes.get_errno() == 1
    # 335 and 336 on x86_64: the kernel itself answers uretprobe and uprobe, past any filter, and refuses them
    numbers = {*range(512), 1 << 30, (1 << 30) + 41, (1 << 31) - 1} - {335, 336}
    return [number for number in numbers if number not in allowed and not denied(number)]"""
    assert values(program, (confine.allowed_calls(),)) == [[]]


HEADERS = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"  # the second is aarch64's table


@pytest.mark.skipif(not all(map(os.path.exists, HEADERS)), reason="the kernel's headers are not installed")
def test_the_allowed_numbers_are_the_kernels():
    """On either architecture, as only one can be tried on one machine: a wrong number would let another call through."""
    for column, header in enumerate(HEADERS):
        with open(header) as f:
            numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", f.read()))
        known = {name: calls[column] for name, calls in confine.ALLOWED.items() if column == 0 or name not in ("select", "poll")}
        assert known == {name: int(numbers[name]) for name in known}


@filtered
def test_the_filter_alone_contains_programs():
    """As for a user of a machine without user namespaces: this process itself takes the filter, and nothing else."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            libc = ctypes.CDLL(None)
            libc.prctl(38, 1, 0, 0, 0)
            assert confine.install_filter(libc, confine.filter_program())
            for attack in (lambda: open("/etc/passwd"), socket.socket, os.fork, lambda: os.kill(os.getppid(), 0), lambda: os.listdir("/")):
                with pytest.raises(PermissionError):
                    attack()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_it_refuses_where_nothing_isolates(monkeypatch):
    isolation()
    monkeypatch.setattr(sandbox._server, "layers", ["user", "files"])
    assert not sandbox.contained()
    with pytest.raises(InputError, match="--allow-unsandboxed-code"):
        run([GOOD])
    monkeypatch.setattr(sandbox, "allow_unsandboxed", True)
    assert run([GOOD]) == [[3, "xy"]]
    for layers in (["system calls"], ["files", "network", "processes"]):
        monkeypatch.setattr(sandbox._server, "layers", layers)
        assert sandbox.contained()


def test_the_isolation_is_described_in_one_line(monkeypatch):
    isolation()
    monkeypatch.setattr(sandbox._server, "layers", ["user", "system calls"])
    assert sandbox.describe().endswith("output; as nobody; with only harmless system calls")
    monkeypatch.setattr(sandbox._server, "layers", [])
    assert sandbox.describe().endswith("NO isolation beyond that") and "\n" not in sandbox.describe()


def test_a_slow_machine_gets_more_processor_time(monkeypatch):
    assert 1 <= sandbox.slowness() < 10
    monkeypatch.setattr(sandbox, "REFERENCE_LOOP", sandbox.REFERENCE_LOOP / 100)
    assert sandbox.slowness() > 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what another process has used")
def test_a_starved_program_goes_on_and_a_waiting_one_is_ended():
    works = "import time\ndef f():\n    while time.process_time() < 1.2: pass\n    return 1"
    waits = "import time\ndef f():\n    time.sleep(1.2)\n    return 1"
    assert values(works, cpu=2, wall=0.5) == [1]
    assert values(waits, cpu=2, wall=0.5) is None


def descendants(pid: int) -> list[int]:
    rows = subprocess.run(["ps", "-A", "-o", "ppid=,pid="], capture_output=True, text=True, check=True).stdout
    children = [int(row.split()[1]) for row in rows.splitlines() if int(row.split()[0]) == pid]
    return children + [grandchild for child in children for grandchild in descendants(child)]


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return not (state == "" or state.startswith("Z"))  # an orphan's zombie waits for whoever is process 1 here


def test_no_process_is_left_over():
    run([job("import time\ndef f(): time.sleep(60)")] * 3 + [GOOD], wall=0.2)
    inner = descendants(sandbox._server.pid)
    assert len(inner) == ("processes" in isolation())  # the server itself is process 1 of a namespace
    sandbox.close()
    deadline = time.monotonic() + 2
    while any(map(alive, inner)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, inner))


def test_a_dead_server_is_replaced():
    run([GOOD])
    os.kill(sandbox._server.pid, signal.SIGKILL)
    assert run([GOOD, job("def f(:"), GOOD]) == [[3, "xy"], None, [3, "xy"]]


def test_threads_and_a_forked_worker_may_call_it():
    results = []
    threads = [threading.Thread(target=lambda: results.append(run([GOOD] * 5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[[3, "xy"]] * 5] * 4
    server = sandbox._server.pid
    if (worker := os.fork()) == 0:
        try:
            same = run([GOOD]) == [[3, "xy"]] and sandbox._server.pid != server
            sandbox.close()
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitpid(worker, 0)[1] == 0
    assert run([GOOD]) == [[3, "xy"]] and sandbox._server.pid == server


def test_it_ends_with_its_process():
    root = os.path.dirname(os.path.dirname(os.path.abspath(sandbox.__file__)))
    program = (f"import sys; sys.path.insert(0, {root!r})\nfrom data import sandbox\n"
               "sandbox.isolation(); print(sandbox._server.pid)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
