import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from data import sandbox
from data.sandbox import isolation, run

GOOD = {"program": "def f(a, b):\n    return a + b\n", "function": "f", "inputs": [[1, 2], ["x", "y"]]}
isolated = pytest.mark.skipif("processes" not in isolation(), reason="this kernel allows no user namespaces")
confined = pytest.mark.skipif("files" not in isolation(), reason="no user namespaces and not root")


def job(program: str, *inputs) -> dict:
    return {"program": program, "function": "f", "inputs": [list(args) for args in inputs or [()]]}


def values(program: str, *inputs, **limits) -> list | None:
    """The program's result, after a check that the programs on either side of it are unaffected."""
    before, result, after = run([GOOD, job(program, *inputs), GOOD], **limits)
    assert before == after == [3, "xy"]
    return result


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
    assert values(program, ("/etc/passwd",), ("/proc/self/status",), ("new",), (os.path.abspath(__file__),)) \
        == [{"error": "FileNotFoundError"}] * 4
    assert values("import os\ndef f(): return os.listdir('/') + os.listdir('..')") == [[]]
    assert values("import os\ndef f(): os.chroot('.')") == [{"error": "PermissionError"}]


@isolated
def test_no_network_process_or_signal():
    assert values("import os\ndef f(): return os.fork()") == [{"error": "BlockingIOError"}]
    assert values("import threading\ndef f(): threading.Thread(target=f).start()") == [{"error": "RuntimeError"}]
    assert values("import os\ndef f(): return [os.getpid(), os.getppid()]") == [[1, 0]]
    server = sandbox._server.pid
    assert values(f"import os\ndef f(): os.kill({server}, 9)") == [{"error": "ProcessLookupError"}]
    assert values("import os\ndef f(): os.kill(-1, 9)") == [{"error": "ProcessLookupError"}]
    connect = ("import _socket\ndef f():\n    s = _socket.socket()\n    s.settimeout(1)\n"
               "    return s.connect_ex(('127.0.0.1', 9)) in (101, 100)")
    assert values(connect) in ([True], None)  # unreachable, or there is no _socket to import
    assert sandbox._server.pid == server


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
