"""The sandbox gives right results, and programs that attack it find nothing and harm nobody.

The attacks are tables of programs, name: source. They run in two batches, one on a new server and
one on the same server afterwards, between jobs that hold a secret: a program and its inputs, and
tests with their reference. An attack's f() returns only if the attack succeeds.
"""

import ctypes
import json
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from data import sandbox
from data.problems import InputError
from data.sandbox import isolation, run

SCRIPTS = os.path.dirname(os.path.abspath(sandbox.__file__))
sys.path.append(SCRIPTS)  # server.py is a script, which imports what is beside it

import confine
import server

GOOD = {
    "program": "def f(a, b):\n    return a + b\n",
    "function": "f",
    "inputs": [[1, 2], ["x", "y"]],
}
isolated = pytest.mark.skipif(
    "processes" not in isolation(), reason="this kernel allows no user namespaces"
)
filtered = pytest.mark.skipif(
    "system calls" not in isolation(), reason="no system-call filter for this machine"
)
confined = pytest.mark.skipif(
    not sandbox.contained(), reason="this machine cannot isolate programs"
)


def job(program: str, *inputs) -> dict:
    return {"program": program, "function": "f", "inputs": [list(args) for args in inputs or [()]]}


def values(program: str, *inputs, **limits) -> list | None:
    """The program's result, after a check that the programs on either side are unaffected."""
    before, result, after = run([GOOD, job(program, *inputs), GOOD], **limits)
    assert before == after == [3, "xy"]
    return result


def refused(result: list | None) -> bool:
    """Whether the program failed as a whole or every call of its function did."""
    if result is None:
        return True
    return all(type(output) is dict and output.keys() == {"error"} for output in result)


# ---- what a program gets and gives


def test_results_in_the_order_of_the_jobs():
    assert run([]) == []
    sleeper = "import time\ndef f():\n    time.sleep({} / 50)\n    return {}"
    jobs = [job(sleeper.format(i % 3, i)) for i in range(20)]
    assert run(jobs) == [[i] for i in range(20)]


VALUES = [
    *(None, True, False, 0, 1, -(10**3000), 1.0, -0.5, 1e308),
    *("", "é\n\u2028\x00😀", "\ud800"),
    *([], [1, True, 1.0, [None]], {}, {"a": {"b": [1]}}),
]


@pytest.mark.parametrize("value", VALUES)
def test_values_and_types_survive_both_ways(value):
    result = values("def f(x): return [x, type(x).__name__]", (value,))
    assert repr(result) == repr([[value, type(value).__name__]])


def test_tuples_become_lists():
    assert values("def f(): return (1, ('a', [()]))") == [[1, ["a", [[]]]]]


def test_jobs_and_results_larger_than_a_socket_holds():
    text = "x" * 900_000
    assert values("def f(x): return x", (text,)) == [text]
    long = "# " + "x" * 5_000_000 + "\ndef f(x): return len(x)"
    assert values(long, (text * 5,)) == [len(text) * 5]


NO_DATA = [
    *("float('nan')", "float('inf')", "{1, 2}", "b'x'", "f", "object()", "{1: 2}", "1j"),
    *("10 ** 5000", "[10 ** 5000]", "range(3)", "(i for i in [1])"),
    *("type('I', (int,), {})(3)", "type('S', (str,), {})('x')", "{type('S', (str,), {})('x'): 1}"),
    "type('L', (list,), {'__class__': list, '__eq__': lambda *_: True})([1])",
    "type('A', (), {'__eq__': lambda *_: True, '__class__': int})()",
]


@pytest.mark.parametrize("expression", NO_DATA)
def test_only_plain_data_is_an_output(expression):
    assert values(f"def f(): return {expression}") == [{"error": "not plain data"}]


def test_nesting_and_cycles_are_bounded():
    nested = "def f(n):\n    x = 1\n    for _ in range(n): x = [x]\n    return x"
    shallow, deep, deeper = values(nested, (64,), (65,), (100_000,))
    assert str(shallow) == "[" * 64 + "1" + "]" * 64
    assert deep == deeper == {"error": "not plain data"}
    dicts = nested.replace("[x]", "{'a': x}")
    shallow, deep = values(dicts, (64,), (65,))
    assert str(shallow).count("{") == 64 and deep == {"error": "not plain data"}
    cycle = "def f():\n    x = []\n    x.append(x)\n    return x"
    assert values(cycle) == [{"error": "not plain data"}]


def test_a_call_that_raises_does_not_spoil_the_others():
    program = (
        "class Odd(BaseException): pass\ndef f(x):\n    if x == 2: raise Odd\n    return 1 // x"
    )
    errors = [1, {"error": "ZeroDivisionError"}, {"error": "Odd"}, -1]
    assert values(program, (1,), (0,), (2,), (-1,)) == errors
    assert values("def f(n): return f(n + 1)", (0,)) == [{"error": "RecursionError"}]
    assert values("def f(): raise KeyboardInterrupt") == [{"error": "KeyboardInterrupt"}]
    assert values("def f(a): return a", (), (1, 2)) == [{"error": "TypeError"}] * 2


def test_an_output_is_fixed_when_the_call_returns():
    program = "seen = []\ndef f(x):\n    seen.append(x)\n    return seen"
    assert values(program, (1,), (2,)) == [[1], [1, 2]]


FAILURES = [
    *("def f(:", "g = 1", "1 / 0", "raise SystemExit", "def f(): raise SystemExit", "\x00"),
    "import sys\ndef f(): sys.exit(0)",
    "import os\ndef f(): os._exit(0)",
    "import os\ndef f(): os.abort()",
    "def f(): return 'x' * (1 << 20)",
    "def f(): return bytearray(1 << 30)",
    "def f(): return [0] * (1 << 28)",
    "import ctypes\ndef f(): return ctypes.string_at(0)",
    "import os\ndef f(): os.write(3, b'[')\ndef g(): 0",
    "import os\ndef f(): os.close(3)",
]


@pytest.mark.parametrize("program", FAILURES)
def test_programs_that_fail_as_a_whole(program):
    assert values(program, cpu=1) is None


def test_limits_of_time_and_output():
    deaf = (
        "import signal, time\n"
        "for s in range(1, 32):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "def f(): time.sleep(60)"
    )
    stubborn = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    loops = [stubborn, deaf]
    start = time.monotonic()
    results = run([GOOD, *map(job, loops), GOOD], cpu=1, wall=1.2)
    assert results == [[3, "xy"], *[None] * len(loops), [3, "xy"]]
    assert time.monotonic() - start < 8


def test_standard_streams_go_nowhere(capfd):
    program = (
        "import sys\ndef f():\n"
        "    print('out')\n    print('e', file=sys.stderr)\n    return sys.stdin.read()"
    )
    assert values(program) == [""]
    assert capfd.readouterr() == ("", "")


def test_a_program_sees_neither_our_environment_nor_our_modules_nor_its_predecessor(monkeypatch):
    sandbox.close()
    monkeypatch.setenv("SANDBOX_TEST", "secret")
    program = (
        "import os, sys\ndef f(): return [os.environ.get('SANDBOX_TEST'), 'torch' in sys.modules]"
    )
    assert values(program) == [[None, False]]
    for name in ("passwords", "server", "data", "torch", "numpy"):
        assert values(f"import {name}\ndef f(): return 1") is None
    spoil = "import builtins, json, math\nbuiltins.len = json.dumps = math.isfinite = None"
    run([job(f"{spoil}\ndef f(): return 1")])
    assert values("def f(x): return len(x)", ([1.0],)) == [1]


def test_chance_and_hashes_repeat():
    program = (
        "import random\n"
        "def f(): return [random.random(), list(set('abcdefgh')), list({'x', 'y', 'z'})]"
    )
    first = values(program)
    assert values(program) == values(program) == first
    sandbox.close()
    assert values(program) == first


def test_the_usual_modules_and_dataclasses_work():
    program = (
        "from __future__ import annotations\n"
        "import collections, dataclasses, datetime, heapq, math, re\n"
        "from typing import *\n"
        "@dataclasses.dataclass\nclass P:\n    x: int\n"
        "def year(): return datetime.datetime.strptime('2024', '%Y').year\n"
        "def f(): return [P(3).x, math.gcd(12, 18), year(), __name__]"
    )
    assert values(program) == [[3, 6, 2024, "candidate"]]


# ---- what a message may do to the server: programs can write their own

FORGERIES = {
    "a zero byte, which looks like UTF-16": b"\x00\n",
    "UTF-16": "[1]\n".encode("utf-16"),
    "UTF-16 without its mark": "[1]".encode("utf-16-be") + b"\n",
    "UTF-32 without its mark": "[1]".encode("utf-32-be") + b"\n",
    "the mark of UTF-8": b"\xef\xbb\xbf[1]\n",
    "no UTF-8": b'["\xff"]\n',
    "a surrogate in UTF-8": b'["\xed\xa0\x80"]\n',
    "no end": b"[1]",
    "half": b"[1,\n",
    "a line": b"\n",
    "too many": b"[1, 2]\n",
    "too few": b"[]\n",
    "two messages": b"[1]\n[1]\n",
    "a zero byte at the end": b"[1]\x00\n",
    "no list": b'{"0": 1}\n',
    "a string": b'"x"\n',
    "a number": b"1\n",
    "null": b"null\n",
    "NaN": b"[NaN]\n",
    "NaN inside": b'[{"a": [NaN]}]\n',
    "infinity": b"[-Infinity]\n",
    "an infinite float": b"[1e999]\n",
    "a huge int": b"[" + b"9" * 4300 + b"]\n",
    "a larger int": b"[" + b"9" * 100_000 + b"]\n",
    "nested lists": b"[" * 9000 + b"\n",
    "closed nested lists": b"[" * 400_000 + b"]" * 400_000 + b"\n",
    "nested objects": b'{"a":' * 100_000 + b"\n",
    "a little too deep": b"[" * 66 + b"]" * 66 + b"\n",
    "a control character": b'["\x01"]\n',
    "too long": b"[1" + b" " * (1 << 20) + b"]\n",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_messages_are_no_results(forgery):
    assert server.read_outputs(FORGERIES[forgery], 1) is None


def test_programs_that_forge_messages_fail_alone():
    isolation()
    pid = sandbox._server.pid
    jobs = []
    for message in FORGERIES.values():
        write = "os.write(3, message.encode('latin-1'))\n    os._exit(0)"
        program = f"import os\ndef f(message):\n    {write}"
        jobs.append(job(program, (message.decode("latin-1"),)))
        jobs.append(GOOD)
    results = run(jobs)
    assert results[::2] == [None] * len(FORGERIES)
    assert results[1::2] == [[3, "xy"]] * len(FORGERIES)
    assert sandbox._server.pid == pid


def hostile_message(rng: random.Random) -> bytes:
    """Bytes of any kind, JSON of the worst kind, or a right message with some bytes changed."""
    pieces = [
        *("[", "]", "{", "}", ",", ":", '"', '"a"', '"\\ud800"', "\\", "\\u", "NaN", "Infinity"),
        *("null", "true", "1", "-0", "1e999", "1e-999", "9" * 5000, '"a":1,"a":2', " ", "\n"),
        *("\x00", "\ufeff", "😀", "[" * 2000, '{"a":' * 2000),
    ]
    kind = rng.randrange(4)
    if kind == 0:
        message = rng.randbytes(rng.randrange(40))
    elif kind == 1:
        message = "".join(rng.choices(pieces, k=rng.randrange(12))).encode()
        if rng.random() < 0.3:
            message = b"[" + message + b"]"
    else:
        message = bytearray(b'[{"a": [1, 2.5, "\\ud800"], "a": null}, [[true], "\xc3\xa9"]]')
        for _ in range(rng.randrange(4)):
            message[rng.randrange(len(message))] = rng.choice(b'\x00\xff[]{}",:\\1eN\xed')
        if kind == 3:
            codec = rng.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7"])
            message = message.decode("latin-1").encode(codec)
    return bytes(message) + b"\n" * rng.randrange(3)


def test_no_message_raises_out_of_the_server():
    rng = random.Random(0)
    accepted = 0
    for _ in range(5000):
        outputs = server.read_outputs(hostile_message(rng), 2)
        if outputs is not None:
            assert len(outputs) == 2 and all(map(server.is_plain, outputs))
            assert json.loads(json.dumps(outputs, allow_nan=False)) == outputs
            accepted += 1
    assert accepted > 100  # some of the right messages are left as they were


# ---- attacks: programs that seek what is not theirs

SECRET = f"hidden{random.Random(0).getrandbits(64):016x}"
JUDGED = {
    "program": "from harness import judge",
    "function": "judge",
    "inputs": [["", f"def g(x): return '{SECRET}'", f"assert g(1) == '{SECRET}'", "g", None, None]],
}
SIBLING = job(
    f"import time\nkept = '{SECRET}'\ndef f(x):\n    time.sleep(0.002)\n    return [kept, x]",
    (SECRET,),
)
CALLS = json.dumps({"tuple": [{"tuple": [1]}, {"dict": []}]})  # what JUDGED returns
CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0: raise OSError
    return result
"""

# look() yields bytes or objects; f() returns a secret in them. Whatever it is given lies in the
# process's own memory, for a check that it can find something.
SEEK = """
import ctypes, gc, re, sys
WANTED = re.compile(rb"hidden[0-9a-f]{16}")
def f(*given):
    for found in look():
        if type(found) is not bytes:
            try: found = repr(found).encode("utf-8", "replace")
            except Exception: continue
        hit = WANTED.search(found)
        if hit: return hit[0].decode()
    raise LookupError
"""

# Walks the mapped pages near some addresses. Whether a page can be read is asked of a system call
# that copies from it and then refuses the rest.
PAGES = """
libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
HERE = ["an object"]
ANCHORS = {
    "heap": libc.sbrk(0) - 4096,
    "objects": id(HERE),
    "static objects": id(0),
    "libraries": ctypes.cast(libc.sbrk, ctypes.c_void_p).value,
    "stack": ctypes.c_void_p.in_dll(libc, "program_invocation_name").value,
}
def readable(page):
    arguments = [ctypes.c_void_p(page if x == "page" else x) for x in PROBE]
    ctypes.set_errno(0)
    libc.syscall(*arguments)
    return ctypes.get_errno() != 14
SEEN = set()
def pages(page, step):
    gap, last = 0, b""
    while gap < 600 and page > 0 and page not in SEEN:
        SEEN.add(page)
        if readable(page):
            gap, here = 0, ctypes.string_at(page, 4096)
            yield here
            yield (last[-64:] + here[:64]) if step > 0 else (here[-64:] + last[:64])
            last = here
        else:
            gap, last = gap + 1, b""
        page += step
def look():
    for name in NAMES:
        page = ANCHORS[name] & ~4095
        yield from pages(page, 4096)
        yield from pages(page - 4096, -4096)
"""
ANCHORS = ["heap", "objects", "static objects", "libraries", "stack"]


def probes() -> dict[str, list]:
    """Name: system call with "page" where the address goes."""
    _, column = confine.ARCHITECTURES.get(platform.machine(), (0, 0))
    number = {name: numbers[column] for name, numbers in confine.ALLOWED.items()}
    return {
        "rt_sigprocmask": [number["rt_sigprocmask"], 99, "page", 0, 8],
        "rt_sigaction": [number["rt_sigaction"], 9, "page", 0, 8],
        "sigaltstack": [number["sigaltstack"], "page", 0],
    }


def memory_attack(probe: list, anchors: list[str]) -> str:
    return f"{SEEK}\nPROBE, NAMES = {probe}, {anchors}\n{PAGES}"


def memory_attacks() -> dict[str, str]:
    attacks = {}
    for name, probe in probes().items():
        attacks[f"walk the memory by {name}"] = memory_attack(probe, ANCHORS)
    for anchor in ANCHORS:
        attacks[f"walk the {anchor}"] = memory_attack(probes()["rt_sigprocmask"], [anchor])
    for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24):
        for sign in ("", "-"):
            start = "id(HERE)" if sign == "" else f"id(HERE) - {size}"
            look = f"HERE = []\ndef look(): yield ctypes.string_at({start}, {size})"
            attacks[f"copy {sign}{size} bytes beside an object"] = f"{SEEK}\n{look}"
    return attacks


LOOKS = {
    "its callers": """
def look():
    frame = sys._getframe()
    while frame:
        yield from (frame.f_locals, frame.f_globals, frame.f_builtins, frame.f_code.co_consts)
        frame = frame.f_back""",
    "the callers of an error": """
def look():
    try: 1 / 0
    except ZeroDivisionError as error: trace = error.__traceback__
    frame = trace.tb_frame
    while frame:
        yield dict(frame.f_locals)
        frame = frame.f_back""",
    "all threads": "def look(): yield from [f.f_locals for f in sys._current_frames().values()]",
    "the stack by inspect": "import inspect\ndef look(): yield from inspect.stack(context=9)",
    "all collected objects": "def look(): yield from gc.get_objects()",
    "all objects ever frozen": """
def look():
    gc.unfreeze()
    yield from gc.get_objects()""",
    "each generation": """
def look():
    for generation in range(3): yield from gc.get_objects(generation)""",
    "what refers to its callers": """
def look():
    frame = sys._getframe()
    while frame:
        yield from gc.get_referrers(frame.f_locals)
        frame = frame.f_back""",
    "what objects refer to": """
def look():
    for thing in gc.get_objects(): yield from gc.get_referents(thing)""",
    "garbage": """
def look():
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    yield from gc.garbage""",
    "subclasses": """
def look():
    for kind in object.__subclasses__(): yield from gc.get_referrers(kind)""",
    "every module": "def look(): yield from [vars(module) for module in sys.modules.values()]",
    "the script": "def look(): yield from vars(sys.modules['__main__']).items()",
    "the server": "import __main__\ndef look(): yield vars(__main__.Running), dir(__main__)",
    "the harness": "import harness\ndef look(): yield from vars(harness).items()",
    "the last error": "def look(): yield from (sys.exc_info(), getattr(sys, 'last_value', 0))",
    "arguments and environment": """
import os
def look(): yield from (sys.argv, sys.orig_argv, dict(os.environ), sys.path)""",
    "standard input": "def look(): yield sys.stdin.read()",
    "the first standard input": "def look(): yield sys.__stdin__.buffer.raw.readall()",
    "buffers of streams": """
def look():
    yield sys.stdin.buffer.peek()
    yield sys.__stdin__.buffer.peek()""",
    "the source cache": "import linecache\ndef look(): yield linecache.cache",
    "the patterns' cache": "def look(): yield vars(re), getattr(re, '_cache2', 0)",
    "cached calls": """
def look():
    for thing in gc.get_objects():
        if hasattr(thing, 'cache_info'): yield from gc.get_referents(thing)""",
    "json's memo": """
import json
def look(): yield vars(json.decoder), gc.get_referents(json.scanner)""",
    "memory that was freed": """
def look():
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    for size in range(16, 20000, 16):
        yield ctypes.string_at(malloc(ctypes.c_size_t(size)), size)""",
    "large memory that was freed": """
def look():
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    for size in range(20000, 1 << 20, 30000):
        yield ctypes.string_at(malloc(ctypes.c_size_t(size)), size)""",
    "objects that were freed": """
def look():
    new = ctypes.pythonapi.PyObject_Malloc
    new.restype = ctypes.c_void_p
    for size in range(16, 513, 16):
        for _ in range(200): yield ctypes.string_at(new(ctypes.c_size_t(size)), size)""",
    "strings that were interned": """
def look():
    for thing in gc.get_objects():
        if type(thing) is dict: yield list(thing)[:100000]""",
    "pages that were mapped before": """
import mmap
def look():
    for _ in range(20): yield mmap.mmap(-1, 1 << 20)[:]""",
}
# These see all of their own process, so they find what they are given.
ABLE = ["its callers", "the callers of an error", "what objects refer to", "each generation"]


def seeking_attacks() -> dict[str, str]:
    return {f"seek in {name}": f"{SEEK}\n{look}" for name, look in LOOKS.items()}


# Every number but the socket's own is closed.
FILES = {
    "read": "os.read(fd, 100)",
    "read at a place": "os.pread(fd, 100, 0)",
    "rewind": "os.lseek(fd, 0, 0) + len(os.read(fd, 1)) + 1",
    "map": "len(mmap.mmap(fd, 4096, prot=1))",
    "duplicate": "os.dup(fd)",
    "receive by": "socket.socket(fileno=fd).recv(100)",
    "receive a file by": "socket.recv_fds(socket.socket(2, fileno=fd), 8, 1)",
    "write into": "os.write(fd, b'x') * (fd > 3)",  # standard output is the null device
    "send by": "socket.socket(1, 1, 0, fileno=fd).send(b'x')",
    "wait for": "select.select([fd], [], [], 0)[0] * (fd > 3)",
    "stat": "os.fstat(fd) if fd > 3 else 0",
}


def file_attacks() -> dict[str, str]:
    attacks = {}
    for name, action in FILES.items():
        attacks[f"{name} an open file"] = f"""
import mmap, os, select, socket
def f():
    for fd in range(1024):
        try: done = {action}
        except (OSError, ValueError): continue
        if done and not (fd == 3 and done == b""): return fd
    raise LookupError"""
    return attacks


PATHS = [
    *("/", ".", "..", "/etc/passwd", "/etc/hostname", "/tmp", "/var/tmp", "/dev/shm", "/dev/mem"),
    *("/dev/null", "/dev/tty", "/sys", "/proc", "/proc/self/mem", "/proc/self/maps", "/proc/kcore"),
    *(
        "/proc/self/environ",
        "/proc/self/cmdline",
        "/proc/self/fd",
        "/proc/self/fd/3",
        "/proc/1/mem",
    ),
    *("/proc/1/environ", "/proc/1/fd/0", "/proc/2/mem", "/proc/2/fd", "/proc/self/task"),
    *(
        "/proc/thread-self/mem",
        "/proc/self/root",
        "/proc/self/cwd",
        "/proc/sys/kernel/core_pattern",
    ),
    *(os.path.expanduser("~"), os.path.abspath(__file__), SCRIPTS, sys.executable),
]


def path_attacks() -> dict[str, str]:
    attacks = {}
    for path in PATHS:
        attacks[f"open {path}"] = f"import os\ndef f(): return os.open({path!r}, os.O_RDONLY)"
    for path in ("x", "/tmp/x", "../x", os.path.expanduser("~/x")):
        attacks[f"create {path}"] = f"def f(): return open({path!r}, 'w').close()"
    return attacks


def signal_attacks() -> dict[str, str]:
    """At a zygote, the server, a sibling, the own group or all; some of them end the program."""
    calls = {
        "kill": "libc.kill(pid, {})",
        "killpg": "libc.killpg(pid, {})",
        "sigqueue": "libc.sigqueue(pid, {}, 0)",
        "fcntl": "libc.fcntl(3, 8, pid)",  # F_SETOWN: gets the file's signals
        "ptrace": "libc.ptrace(16, pid, 0, 0)",
        "process_vm_readv": "libc.process_vm_readv(pid, b'x' * 16, 1, b'x' * 16, 1, 0)",
        "process_vm_writev": "libc.process_vm_writev(pid, b'x' * 16, 1, b'x' * 16, 1, 0)",
        "setpriority": "libc.setpriority(0, pid, 19)",
        "prlimit": "libc.prlimit(pid, 0, bytes(16), None)",
        "sched_setaffinity": "libc.sched_setaffinity(pid, 8, b'\\1' + bytes(7))",
    }
    targets = {"its parent": "os.getppid() or 2", "process 2": "2", "a sibling": "os.getpid() + 1"}
    attacks = {}
    for name, call in calls.items():
        for target, pid in targets.items():
            line = f"def f():\n    pid = {pid}\n    return check({call.format(9)})"
            attacks[f"{name} at {target}"] = CALL + line
    for number in (9, 19, 15, 6, 11):
        attacks[f"signal {number} at all"] = f"import os\ndef f(): os.kill(-1, {number})"
        attacks[f"signal {number} at the parent"] = (
            f"import os\ndef f(): os.kill(os.getppid() or 2, {number})"
        )
    return attacks


CONNECT = (
    CALL
    + """
def f():
    fd = check(libc.socket(2, 1, 0))
    address = (2).to_bytes(2, "little") + (PORT).to_bytes(2, "big") + bytes(HOST) + bytes(8)
    return check(libc.connect(fd, address, 16))"""
)
OTHERS = {
    "connect to the outside": CONNECT.replace("PORT", "53").replace("HOST", "(1, 1, 1, 1)"),
    "send a datagram": CALL
    + """
def f():
    address = b'\\2\\0\\0\\65\\1\\1\\1\\1' + bytes(8)
    return check(libc.sendto(check(libc.socket(2, 2, 0)), b'x', 1, 0, address, 16))""",
    "memory bomb of ints": "def f(): return [0] * (1 << 40)",
    "memory bomb of text": "def f(): return len('x' * (1 << 30))",
    "memory bomb by mmap": CALL
    + """
libc.mmap.restype = ctypes.c_long
def f(): return check(libc.mmap(None, ctypes.c_size_t(1 << 30), 3, 34, -1, 0))""",
    "infinite result": "import os\ndef f():\n    while True: os.write(3, b'[' + b'1,' * 100000)",
    "infinite read": "import os\ndef f():\n    while True: os.read(3, 1) or 1 / 0",
    "huge file": "def f():\n    with open('x', 'wb') as file: return file.write(bytes(1 << 24))",
    "huge file in memory": CALL
    + "def f(): return check(libc.ftruncate(check(libc.memfd_create(b'x', 0)), 1 << 24))",
    "be traced": CALL + "def f(): return check(libc.ptrace(0, 0, 0, 0))",
    "a shell": "import os\ndef f(): os.execv('/bin/sh', ['sh', '-c', 'echo [1] >&3'])",
    "a shell by system": "import os\ndef f(): return 1 / (os.system('true') == 0)",
    "a shell by spawn": "import os\ndef f(): return os.posix_spawn('/bin/sh', ['sh'], {})",
    "a subprocess": "import subprocess\ndef f(): return subprocess.run(['true']).returncode",
    "a pool": "import multiprocessing\ndef f(): return multiprocessing.Pool(1).map(abs, [1])",
    "write a kernel setting": """
def f():
    with open('/proc/sys/kernel/core_pattern', 'w') as file: return file.write('core')""",
    "write to its own memory": """
def f():
    with open('/proc/self/mem', 'r+b') as file: return file.seek(1)""",
    "a new namespace": CALL + "def f(): return check(libc.unshare(0x10000000))",
    "mount": CALL + "def f(): return check(libc.mount(b'none', b'/', b'tmpfs', 0, None))",
    "leave the root": "import os\ndef f(): return os.chroot('.')",
    "more of a limit": """
import resource
def f(): resource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))""",
    "become root": "import os\ndef f(): return os.setuid(0) or os.setresuid(0, 0, 0)",
    "a daemon": """
import os
def f():
    if os.fork() == 0:
        os.setsid()
        while True: pass
    return 1""",
    "a daemon thread": """
import threading, time
def f(): threading.Thread(target=time.sleep, args=(60,)).start()""",
    "a server of its own": CALL
    + "def f(): return check(libc.listen(check(libc.socket(1, 1, 0)), 1))",
    "shared memory by name": """
from multiprocessing import shared_memory
def f(): return shared_memory.SharedMemory('x', create=True, size=9).size""",
    "exit before the tests": "import sys\nsys.exit(0)",
    "exit in the test": "import os\ndef f(): os._exit(0)",
}
# These last until a limit ends them, so they run only once.
LASTING = {
    "fork bomb that hides": """
import os
def f():
    for _ in range(100000):
        try: os.fork()
        except OSError: pass
    os.fork()""",
    "infinite output": "def f():\n    while True: print('x' * 100000)",
    "infinite wait": """
import threading
def f():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()""",
    "recursion": """
import sys
def f():
    sys.setrecursionlimit(1 << 30)
    return f()""",
    "recursion in C": """
import sys
def f():
    sys.setrecursionlimit(1 << 30)
    x = []
    for _ in range(1 << 20): x = [x]
    return len(repr(x))""",
    "memory bomb by zlib": """
import zlib
def f():
    text = zlib.compress(bytes(1 << 26))
    return len(zlib.decompress(text) * 16)""",
    "stop the clock": """
import signal
def f():
    signal.setitimer(signal.ITIMER_REAL, 0)
    while True: pass""",
    "fork bomb": "import os\ndef f():\n    for _ in range(100000): os.fork()",
    "memory bomb": "def f():\n    x = [b'x']\n    while True: x += x",
}
MACHINE_CODE = {  # socket(2, 1, 0): the filter sees what no Python function does
    "machine code": CALL
    + """
def f():
    libc.mmap.restype = ctypes.c_void_p
    code = bytes.fromhex("b829000000bf02000000be0100000031d20f05c3")
    page = libc.mmap(None, 4096, 7, 34, -1, 0)
    ctypes.memmove(page, code, len(code))
    return check(ctypes.CFUNCTYPE(ctypes.c_int)(page)())""",
}

# Harmless where namespaces hold a program; the filter denies them anyway.
LIBC_CALLS = {
    "memfd_create": "b'x', 0",
    "shmget": "1, 4096, 0o1666",
    "msgget": "1, 0o1666",
    "semget": "1, 1, 0o1666",
    "mq_open": "b'/x', 0o102, 0o666, None",
    "eventfd": "0, 0",
    "signalfd": "-1, bytes(128), 0",
    "timerfd_create": "0, 0",
    "inotify_init1": "0",
    "epoll_create1": "0",
    "dup": "0",
    "dup2": "0, 5",
    "pipe": "bytes(8)",
    "socket": "1, 1, 0",
    "socketpair": "1, 1, 0, bytes(8)",
    "prctl": "3, 0, 0, 0, 0",
    "fcntl": "0, 1, 0",
    "ioctl": "0, 0x5401, bytes(64)",
    "send": "3, b'x', 1, 0",
    "shutdown": "3, 2",
    "getsockname": "3, bytes(128), bytes(8)",
    "setsockopt": "3, 1, 7, bytes(4), 4",
    "writev": "0, bytes(16), 0",
    "readv": "0, bytes(16), 0",
    "splice": "0, None, 3, None, 1, 0",
    "tee": "0, 3, 1, 0",
    "sendfile": "3, 0, None, 1",
    "mlock": "b'x', 1",
    "msync": "None, 0, 1",
    "getpgid": "0",
    "setpgid": "0, 0",
    "setsid": "",
    "umask": "0",
    "uname": "bytes(1024)",
    "sysinfo": "bytes(1024)",
    "getrlimit": "0, bytes(16)",
    "setrlimit": "4, bytes(16)",
    "sched_getaffinity": "0, 128, bytes(128)",
    "setuid": "os.getuid() if False else 0",
    "chdir": "b'/'",
    "mkdir": "b'x', 0o777",
    "unlink": "b'x'",
    "symlink": "b'x', b'y'",
    "rename": "b'x', b'y'",
    "mkfifo": "b'x', 0o666",
    "truncate": "b'x', 0",
    "access": "b'/', 0",
    "sethostname": "b'x', 1",
    "reboot": "0",
    "swapoff": "b'x'",
    "acct": "None",
    "klogctl": "3, bytes(64), 64",
    "personality": "-1",
}


def libc_attacks() -> dict[str, str]:
    attacks = {}
    for name, arguments in LIBC_CALLS.items():
        attacks[f"call {name}"] = CALL + f"def f(): return check(libc.{name}({arguments}))"
    return attacks


ATTACKS = (
    memory_attacks()
    | seeking_attacks()
    | file_attacks()
    | path_attacks()
    | signal_attacks()
    | OTHERS
)
FILTERED = libc_attacks()
if platform.machine() == "x86_64":
    FILTERED |= MACHINE_CODE


def outcomes_of(programs: dict[str, str]) -> dict[str, list | None]:
    """Each program's result; they run in one batch, every one between two that have the secret."""
    jobs, expected = [JUDGED], [[[CALLS]]]
    for i, program in enumerate(programs.values()):
        jobs += [job(program), SIBLING if i % 2 == 0 else JUDGED]
        expected.append([[SECRET, SECRET]] if i % 2 == 0 else [[CALLS]])
    results = run(jobs, cpu=1, wall=1)
    assert results[0::2] == expected  # none of the attacks harms what runs beside it
    return dict(zip(programs, results[1::2]))


# What a child finds before it has done anything.
FINGERPRINT = """
import gc, json, os, random, signal, sys
def f():
    handlers = [str(signal.getsignal(number)) for number in range(1, 65)]
    mask = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    functions = [id(json.dumps), id(os.write), id(len), id(sys.modules['__main__'].run_child)]
    settings = [sys.getrecursionlimit(), sys.get_int_max_str_digits(), gc.get_threshold()]
    return [random.random(), handlers, mask, functions, settings, sorted(sys.modules), 3 + 4]
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict]:
    """The attacks' results on a new server and on that server afterwards."""
    sandbox.close()
    isolation()
    pid = sandbox._server.pid
    before = values(FINGERPRINT)
    found = {}
    found["new"] = outcomes_of(ATTACKS | FILTERED)
    found["used"] = outcomes_of(ATTACKS | FILTERED | LASTING)
    assert sandbox._server.pid == pid, "an attack has ended the server"
    assert before is not None and values(FINGERPRINT) == before, "a zygote has changed"
    return found


@confined
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_contained(attack, outcomes):
    assert refused(outcomes["new"][attack])
    assert refused(outcomes["used"][attack])


@confined
@pytest.mark.parametrize("attack", LASTING)
def test_attacks_on_the_limits_are_contained(attack, outcomes):
    assert refused(outcomes["used"][attack])


@filtered
@pytest.mark.parametrize("attack", FILTERED)
def test_calls_are_denied(attack, outcomes):
    assert refused(outcomes["new"][attack])
    assert refused(outcomes["used"][attack])


def able_attacks() -> dict[str, str]:
    seeking = seeking_attacks()
    able = {name: seeking[f"seek in {name}"] for name in ABLE}
    for name, probe in probes().items():
        able[name] = memory_attack(probe, ANCHORS)
    return able


@confined
@pytest.mark.parametrize("attack", able_attacks())
def test_the_seeking_attacks_find_what_is_in_their_own_process(attack):
    assert values(able_attacks()[attack], (SECRET,)) == [SECRET]


# ---- programs that spoil what they run in; only their own result may suffer

SPOIL = {
    "replace json": "import json\njson.dumps = json.loads = lambda *_, **__: '[2]'",
    "replace json's encoder": "import json\njson.JSONEncoder.encode = lambda *_: 'NaN'",
    "replace os.write": "import os\nos.write = lambda fd, data: len(data)",
    "replace os._exit": "import os\nos._exit = lambda status: None",
    "replace os.fork": "import os\nos.fork = lambda: 0",
    "replace is_plain": "import __main__\n__main__.is_plain = lambda *_: True",
    "replace the script": """
import __main__
for name in dir(__main__): setattr(__main__, name, None)""",
    "replace the filter": "import confine\nconfine.bpf = confine.libc = None",
    "replace the harness": "import harness\nharness.judge = lambda *_: [1]",
    "replace types": "import builtins\nbuiltins.type = lambda *_: int",
    "replace errors": "import builtins\nbuiltins.BaseException = builtins.Exception = int",
    "remove builtins": "import builtins\nfor name in dir(builtins): delattr(builtins, name)",
    "remove modules": "import sys\nsys.modules.clear()",
    "replace modules": "import sys\nfor name in list(sys.modules): sys.modules[name] = None",
    "lose standard streams": "import sys\nsys.stdin = sys.stdout = sys.stderr = None",
    "close all files": "import os\nos.closerange(0, 1024)",
    "close the socket": "import os\nos.close(3)",
    "cover the socket": "import os\nos.dup2(0, 3)",
    "exit by sys": "import sys\nsys.exit(0)",
    "exit with text": "import sys\nsys.exit('[1]')",
    "exit with an object": "import sys\nsys.exit(object())",
    "exit by error": "raise SystemExit(None)",
    "exit by quit": "raise type('Exit', (SystemExit,), {})",
    "exit by os": "import os\nos._exit(0)",
    "exit by C": "import ctypes\nctypes.CDLL(None).exit(0)",
    "exit by abort": "import os\nos.abort()",
    "exit by KeyboardInterrupt": "raise KeyboardInterrupt",
    "exit by GeneratorExit": "raise GeneratorExit",
    "crash": "import ctypes\nctypes.string_at(0)",
    "crash by code": "(lambda: 0).__code__.replace(co_code=b'x' * 100)\nexec(bytes(9))",
    "crash by a signal": "import signal\nsignal.raise_signal(11)",
    "work at exit": "import atexit\natexit.register(print, 'x')\natexit.register(lambda: 1 / 0)",
    "die late": "class Late:\n    def __del__(self):\n        while True: pass\nkept = Late()",
    "an alarm": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.001)",
    "a tracer": "import sys\nsys.settrace(lambda *_: 1 / 0)",
    "a profiler": "import sys\nsys.setprofile(lambda *_: 1 / 0)",
    "an audit hook": "import sys\nsys.addaudithook(lambda *_: 1 / 0)",
    "no recursion": "import sys\nsys.setrecursionlimit(30)",
    "short ints": "import sys\nsys.set_int_max_str_digits(640)",
    "no collector": "import gc\ngc.set_threshold(1)\ngc.callbacks.append(lambda *_: 1 / 0)",
    "an error with a bad name": "def f(): raise type('x' * 10**6, (BaseException,), {})",
    "an error with no name": "class Odd(BaseException): __name__ = 1\ndef f(): raise Odd",
    "a bad function": "class Odd:\n    def __call__(self): return Odd()\nf = Odd()",
    "no function": "f = None",
    "a half message": "import os\nos.write(3, b'[')",
    "a message first": "import os\nos.write(3, b'[1]\\n')",
    "a message in pieces": "import os, time\nfor x in (b'[', b'2', b']'):\n    os.write(3, x)",
    "many lines": "import os\nos.write(3, b'\\n' * 100000)",
    "all its memory as a message": """
import ctypes, os
libc = ctypes.CDLL(None)
page = id(libc) & ~4095
while libc.write(3, ctypes.c_void_p(page), 4096) > 0: page += 4096""",
    "zero memory of small ints": "import ctypes\nctypes.memset(id(7), 0, 28)",
    "overwrite its callers": """
import sys
frame = sys._getframe()
while frame:
    frame.f_globals.clear()
    frame = frame.f_back""",
}


def test_programs_that_spoil_their_process_spoil_nothing_else():
    isolation()
    pid = sandbox._server.pid
    before = values(FINGERPRINT)
    jobs = [GOOD]
    for program in SPOIL.values():
        jobs += [job(f"def f(): return 1\n{program}\n"), GOOD]
    results = run(jobs, cpu=1, wall=1)
    assert results[0::2] == [[3, "xy"]] * (len(SPOIL) + 1)
    for result in results[1::2]:
        assert result is None or len(result) == 1 and server.is_plain(result)
    assert values(FINGERPRINT) == before
    assert sandbox._server.pid == pid


# ---- the layers one by one

# Lines that take layers away from the server, as other systems and settings do.
LESS = {
    "only the filter": "confine.enter_namespaces = lambda: False",
    "only namespaces": "confine.allowed_calls = lambda: None",
    "neither": "confine.enter_namespaces = lambda: False; confine.allowed_calls = lambda: None",
    "no Linux": "sys.platform = 'darwin'",
}


# What namespaces alone leave: the empty directory, and a parent that does not trace.
LEFT = {"open /", "open .", "open ..", "be traced"}


@pytest.mark.parametrize("less", LESS)
def test_less_layers(less, monkeypatch):
    """Memory holds nothing whatever the layers, and the filter and namespaces contain alone."""
    start = subprocess.Popen

    def start_with_less(command, **options):
        lines = f"import sys; sys.path.insert(0, {SCRIPTS!r}); import confine, server"
        script = f"{lines}; {LESS[less]}; server.main()"
        return start([*command[:-2], "-c", script, command[-1]], **options)

    attacks = able_attacks()
    if less == "only the filter" and "system calls" in isolation():
        attacks |= ATTACKS
    if less == "only namespaces" and "processes" in isolation():
        attacks |= {name: ATTACKS[name] for name in ATTACKS.keys() - LEFT}

    sandbox.close()
    monkeypatch.setattr(subprocess, "Popen", start_with_less)
    monkeypatch.setattr(sandbox, "allow_unsandboxed", True)
    try:
        assert sandbox.contained() == (len(attacks) > len(able_attacks()))
        pid = sandbox._server.pid
        for attack, result in outcomes_of(attacks).items():
            assert refused(result), attack
        assert values("import time\ntime.sleep(60)", wall=0.2) is None
        assert sandbox._server.pid == pid
    finally:
        sandbox.close()


@confined
def test_no_file_can_be_read_or_made():
    program = (
        "import os\ndef f(path):\n"
        "    return [os.listdir('/'), open(path, 'a' if path == 'new' else 'r').read()]"
    )
    paths = ["/etc/passwd", "/proc/self/status", "new", os.path.abspath(__file__)]
    assert refused(values(program, *[(path,) for path in paths]))
    assert values("import os\ndef f(): os.chroot('.')") == [{"error": "PermissionError"}]


def test_files_are_not_written(tmp_path):
    target = tmp_path / "x"
    values(f"def f():\n    with open({str(target)!r}, 'w') as file: file.write('x')")
    assert not target.exists() or target.read_text() == ""


@isolated
def test_a_program_is_alone_in_its_namespace():
    assert values("import os\ndef f(): return [os.getpid(), os.getppid()]") == [[1, 0]]


@confined
def test_a_listener_of_this_machine_is_out_of_reach():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        program = CONNECT.replace("PORT", str(port)).replace("HOST", "(127, 0, 0, 1)")
        assert refused(values(program))
        with pytest.raises(BlockingIOError):
            listener.accept()
        with socket.create_connection(("127.0.0.1", port)):  # the listener is there
            listener.setblocking(True)
            listener.accept()[0].close()


@filtered
def test_every_system_call_that_is_not_allowed_is_denied():
    program = (
        CALL
        + """
def denied(number):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    return result == -1 and ctypes.get_errno() == 1
def f(allowed):
    # 335 and 336 on x86_64: the kernel itself answers uretprobe and uprobe, past any filter, and
    # refuses them
    numbers = {*range(512), 1 << 30, (1 << 30) + 41, (1 << 31) - 1} - {335, 336}
    return [number for number in numbers if number not in allowed and not denied(number)]"""
    )
    assert values(program, (confine.allowed_calls(),)) == [[]]


HEADERS = (  # the second is aarch64's table
    "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "/usr/include/asm-generic/unistd.h",
)


@pytest.mark.skipif(not all(map(os.path.exists, HEADERS)), reason="no headers of the kernel here")
def test_the_allowed_numbers_are_the_kernels():
    """On either architecture, as only one can be tried on one machine: a wrong number would let
    another call through."""
    for column, header in enumerate(HEADERS):
        with open(header) as file:
            numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", file.read()))
        for name, calls in confine.ALLOWED.items():
            if column == 0 or name not in ("select", "poll"):
                assert calls[column] == int(numbers[name]), name


@filtered
def test_the_filter_alone_contains_programs():
    """As for a user of a machine without user namespaces: this process itself takes the filter, and
    nothing else."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            libc = ctypes.CDLL(None)
            libc.prctl(confine.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            assert confine.install_filter(libc, confine.filter_program())
            attacks = [
                (open, "/etc/passwd"),
                (socket.socket,),
                (os.fork,),
                (os.kill, os.getppid(), 0),
                (os.listdir, "/"),
            ]
            for attack, *args in attacks:
                with pytest.raises(PermissionError):
                    attack(*args)
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
    assert sandbox.describe().endswith("NO isolation beyond that")
    assert "\n" not in sandbox.describe()


# ---- time, and what happens to the server


def test_a_slow_machine_gets_more_processor_time(monkeypatch):
    assert 1 <= server.slowness() < 10
    monkeypatch.setattr(server, "REFERENCE_LOOP", server.REFERENCE_LOOP / 100)
    assert server.slowness() > 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what another process used")
def test_a_starved_program_goes_on_and_a_waiting_one_is_ended():
    works = "import time\ndef f():\n    while time.process_time() < 1.2: pass\n    return 1"
    waits = "import time\ndef f():\n    time.sleep(1.2)\n    return 1"
    assert values(works, cpu=2, wall=0.5) == [1]
    assert values(waits, cpu=2, wall=0.5) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what another process used")
def test_a_programs_time_begins_when_it_is_forked():
    """A zygote that is stopped for longer than `wall` costs no program its answer."""
    run([GOOD])
    zygotes = [pid for pid in descendants(sandbox._server.pid) if not descendants(pid)]
    for pid in zygotes:
        os.kill(pid, signal.SIGSTOP)
    results = []
    thread = threading.Thread(target=lambda: results.append(run([GOOD] * 3, wall=0.3)))
    thread.start()
    time.sleep(1.0)
    for pid in zygotes:
        os.kill(pid, signal.SIGCONT)
    thread.join()
    assert results == [[[3, "xy"]] * 3]


def descendants(pid: int) -> list[int]:
    command = ["ps", "-A", "-o", "ppid=,pid="]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for row in rows.splitlines():
        parent, child = map(int, row.split())
        if parent == pid:
            found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    # An orphan's zombie waits for whoever is process 1 here.
    return state != "" and not state.startswith("Z")


def test_no_process_is_left_over():
    run([job("import time\ndef f(): time.sleep(60)")] * 3 + [GOOD], wall=0.2)
    # The zygotes; and where there are namespaces the server itself, as process 1 of its own.
    usual = sandbox.at_a_time() + ("processes" in isolation())
    deadline = time.monotonic() + 10  # they end the last children behind the answer
    while len(inner := descendants(sandbox._server.pid)) > usual and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(inner) == usual
    sandbox.close()
    deadline = time.monotonic() + 2
    while any(map(alive, inner)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, inner))


def test_ranks_share_the_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for ranks, programs in (("1", 8), ("3", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert sandbox.at_a_time() == programs


def test_a_large_job_does_not_wait_for_a_dead_zygote():
    """One of more than a socket's buffer."""
    large = GOOD | {"inputs": [[1, "x" * 1_000_000]]}
    run([GOOD])
    for pid in descendants(sandbox._server.pid):
        if not descendants(pid):
            os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    [result] = run([large])
    assert time.monotonic() - began < 20 and result is not None


def test_a_dead_server_is_replaced():
    run([GOOD])
    os.kill(sandbox._server.pid, signal.SIGKILL)
    assert run([GOOD, job("def f(:"), GOOD]) == [[3, "xy"], None, [3, "xy"]]


def test_a_server_ends_with_its_zygote_and_is_replaced(capfd):
    sandbox.close()  # a new one writes its errors to where this test reads them
    run([GOOD])
    old = sandbox._server.pid
    seen, still = [], descendants(old)
    while seen != still:  # the child that ran the program may not be gone yet
        time.sleep(0.3)
        seen, still = still, descendants(old)
    os.kill(still[-1], signal.SIGKILL)
    assert run([GOOD, job("def f(:"), GOOD]) == [[3, "xy"], None, [3, "xy"]]
    assert sandbox._server.pid != old
    assert capfd.readouterr().err == "A zygote of the sandbox has ended.\n"


def test_threads_and_a_forked_worker_may_call_it():
    results = []
    threads = []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: results.append(run([GOOD] * 5))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[[3, "xy"]] * 5] * 4

    pid = sandbox._server.pid
    worker = os.fork()
    if worker == 0:
        try:
            same = run([GOOD]) == [[3, "xy"]] and sandbox._server.pid != pid
            sandbox.close()
            os._exit(0 if same else 1)
        finally:
            os._exit(2)
    assert os.waitpid(worker, 0)[1] == 0
    assert run([GOOD]) == [[3, "xy"]] and sandbox._server.pid == pid


def test_it_ends_with_its_process():
    root = os.path.dirname(os.path.dirname(SCRIPTS))
    program = (
        f"import sys; sys.path.insert(0, {root!r})\nfrom data import sandbox\n"
        "sandbox.isolation(); print(sandbox._server.pid)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_a_trainer_that_leaves_before_it_is_told_is_no_error():
    script = os.path.join(SCRIPTS, "server.py")
    command = [sys.executable, "-B", "-s", "-S", script, "1"]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    server.stdout.close()
    server.stdin.close()
    assert server.wait(60) == 0 and server.stderr.read() == ""
    server.stderr.close()
