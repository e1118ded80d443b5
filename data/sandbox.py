"""The one door through which model-written Python runs: `run(jobs)`.

The coding models of Greenblatt et al. 2024 (arXiv 2405.19550) are graded by running what they write. A program gets
inputs and gives plain JSON outputs; the expected outputs never enter its process, so it answers and cannot judge.
Each trainer process starts (by Popen, so its threads and CUDA do not matter) one server, this file run as a script with
an empty environment, which imports the common standard modules once and forks a child for each program.

Stopped everywhere: over `cpu` seconds of processor time, `wall` seconds of waiting or 1 MiB of results; writing into
files; inheriting the trainer's memory, environment or open files. Hash seed and `random` are fixed: results repeat.
Stopped on Linux: over `memory_mb`; on x86_64 and aarch64 also every system call that opens a path or a socket, starts a
process or thread, signals, traces, mounts or is unknown here (data/confine.py). That filter needs no rights.
Stopped where Linux allows user namespaces, a second time and by other means: network; files (by chroot to an empty
deleted directory); seeing or signalling other processes; capabilities. Root becomes `nobody` in any case; root without
user namespaces (many containers) still gets that chroot.
Where there is neither the filter nor namespaces (macOS, other processors), `run` refuses unless `allow_unsandboxed`.

NOT stopped: a bug of the kernel in one of the few calls that are left, or of the processor (Spectre and its like);
timing side channels; slowing the machine down within the limits (a program that works a little and waits by turns can
last `wall` / PROGRESS seconds); reading what this process read before: the standard modules, the kernel's version.
NOT stopped with `allow_unsandboxed`: reading what the user can read; creating, truncating and deleting the user's files;
the network; killing the user's processes, this server included; outliving the program in a process of its own.
"""

import atexit
import contextlib
import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types

MAX_BYTES = 1 << 20  # of JSON that one program may return
MAX_BITS = 10_000  # of one integer: under CPython's limit of 4300 digits, so what is let out can be read back
MAX_DEPTH = 64  # of nesting: far from the recursion limit, however deep the caller's stack
MAX_FILES = 1024  # open in the server; a child gets 16
PROGRESS = 0.05  # of its processor time in `wall` seconds: a program that used less is not starved, it waits
PRELOAD = """__future__ abc array ast base64 bisect calendar cmath collections.abc copy csv dataclasses datetime decimal
_strptime difflib encodings.ascii encodings.latin_1 enum fractions functools hashlib heapq inspect io itertools numbers
operator pprint queue random re statistics string struct textwrap traceback typing unicodedata uuid zlib""".split()
LAYERS = {
    "user": "as nobody",
    "files": "in an empty file system",
    "network": "without network",
    "processes": "alone in a process namespace",
    "system calls": "with only harmless system calls",
}
REFERENCE_LOOP = 0.012  # processor seconds of the loop in `slowness` on the slowest machine that gets no more than `cpu`; an AMD EPYC needs 0.009

allow_unsandboxed = False  # run generated programs even where nothing but limits holds them
_lock = threading.Lock()
_server = None  # this process's Popen


# ---- the trainer's side
def run(
    jobs: list[dict], *, cpu: int = 2, wall: float = 10.0, memory_mb: int = 512
) -> list[list | None]:
    """Run each job; results in their order, None for a program that failed as a whole (syntax, exit, a limit).

    A job is {"program": "def f(a, b): return a + b", "function": "f", "inputs": [[1, 2], [3, "x"]]} and its result
    [3, {"error": "TypeError"}]: one output per input, plain JSON of exact built-in types (True stays True, 1.0 stays
    1.0, tuples become lists), or an "error" where that call raised or returned anything else.
    Processor time is the tight bound: `cpu` seconds, and more, rounded up, on a machine slower than REFERENCE_LOOP says.
    A program that used hardly any of it in `wall` seconds waits for something and is ended; one that is only starved by
    others goes on. So neither a slow machine nor a busy one changes a result.
    """
    with _lock:
        results = _ask(jobs, cpu, wall, memory_mb)
        if (
            results is None
        ):  # the server died: only the job that can kill it is lost, so one job per request
            results = [(_ask([job], cpu, wall, memory_mb) or [None])[0] for job in jobs]
    return results


@atexit.register
def close() -> None:
    """Stop the server and all it runs; the next `run` starts a new one."""
    global _server
    server, _server = _server, None
    if server is not None:
        server.kill()
        server.communicate()  # closes the pipes and reaps


def isolation() -> list[str]:
    """Start the server unless it runs; what holds beyond the limits, of LAYERS."""
    global _server
    if _server is None:
        with (
            tempfile.TemporaryDirectory() as empty
        ):  # gone once the server is in it: a deleted directory stays empty
            os.chmod(empty, 0o555)
            command = [sys.executable, "-B", "-s", "-S", os.path.abspath(__file__)]
            _server = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=empty,
                env={"PYTHONHASHSEED": "0"},
                start_new_session=True,
            )  # Ctrl-C is for the trainer
            hello = _server.stdout.readline()
        if not hello:
            close()
            raise RuntimeError("The sandbox server did not start; its own error is printed above.")
        _server.layers = json.loads(hello)
    return _server.layers


def contained() -> bool:
    return "system calls" in isolation() or {"files", "network", "processes"} <= set(isolation())


def describe() -> str:
    """One line: the isolation in force for generated programs."""
    held = "; ".join(LAYERS[layer] for layer in isolation())
    return f"generated programs run with limits of time, memory and output; {held or 'NO isolation beyond that'}"


def _ask(jobs: list[dict], cpu: int, wall: float, memory_mb: int) -> list | None:
    """The server's answer, or None if it died or hung."""
    request = json.dumps([jobs, cpu, wall, memory_mb], allow_nan=False).encode() + b"\n"
    if not contained() and not allow_unsandboxed:
        from data import InputError  # here, as this file is also a script

        raise InputError(
            "This machine cannot isolate generated programs (no seccomp, no user namespaces), so they could read and delete "
            "your files: use Linux, or, in a virtual machine with nothing to lose, --allow-unsandboxed-code."
        )
    watchdog = threading.Timer(60 + wall / PROGRESS * len(jobs), _server.kill)
    watchdog.start()
    results = None
    try:
        _server.stdin.write(request)
        _server.stdin.flush()
        results = json.loads(_server.stdout.readline())
    except (OSError, ValueError):
        pass
    finally:  # also on KeyboardInterrupt: a pipe with half a message in it is never used again
        watchdog.cancel()
        if results is None:
            close()
    return results


# A forked process (a data loader's worker, say) must neither talk through its parent's pipes nor stop its server.
os.register_at_fork(after_in_child=lambda: globals().update(_server=None, _lock=threading.Lock()))


# ---- the server's side
def slowness() -> float:
    """By what `cpu` is multiplied here; at least 1. Busy neighbours cost waiting, not processor time: they change little."""
    times = []
    for _ in range(5):
        start = time.process_time()
        total, seen = 0, {}
        for i in range(100_000):
            total += i * i % 7
            seen[i % 100] = total
        times.append(time.process_time() - start)
    return max(1.0, min(times) / REFERENCE_LOOP)


def is_plain(value, depth: int = 0) -> bool:
    """Whether `value` is made of None, bool, int, finite float, str, list, tuple and dict of str keys, exactly."""
    kind = type(value)
    if kind is int:
        return value.bit_length() <= MAX_BITS
    if kind is float:
        return math.isfinite(value)
    if kind is list or kind is tuple:
        return depth < MAX_DEPTH and all(is_plain(item, depth + 1) for item in value)
    if kind is dict:
        return depth < MAX_DEPTH and all(
            type(k) is str and is_plain(v, depth + 1) for k, v in value.items()
        )
    return value is None or kind is bool or kind is str


def run_child(job: dict, pipe: int, null: int, cpu: int, wall: float, memory_mb: int) -> None:
    """Run one program in this process, which then ends."""
    try:
        os.setsid()
        for fd, source in enumerate((null, null, null, pipe)):
            os.dup2(source, fd)
        os.closerange(4, MAX_FILES)
        if sys.platform != "linux":
            signal.setitimer(signal.ITIMER_REAL, wall + 1)  # in case the server dies first
        limits = (
            ("CPU", cpu),
            ("AS", memory_mb << 20),
            ("FSIZE", 0),
            ("NPROC", 0),
            ("NOFILE", 16),
            ("CORE", 0),
        )
        for name, value in limits:
            with contextlib.suppress(
                AttributeError, ValueError, OSError
            ):  # macOS has no working AS
                resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
        sys.modules["random"].seed(0)
        confine.confine_child()
        module = sys.modules["candidate"] = types.ModuleType(
            "candidate"
        )  # dataclasses look up their module
        exec(compile(job["program"], "candidate", "exec", dont_inherit=True), module.__dict__)
        function, outputs = module.__dict__[job["function"]], []
        for args in job["inputs"]:
            try:
                output = function(*args)
                output = output if is_plain(output) else {"error": "not plain data"}
            except (SystemExit, MemoryError):
                os._exit(1)
            except BaseException as error:
                output = {"error": str(type(error).__name__)[:100]}
            outputs.append(json.dumps(output))  # now: the next call may change the same list
        message = f"[{','.join(outputs)}]\n".encode()
        while message:
            message = message[os.write(3, message) :]
    finally:  # whatever was raised: no traceback, no exit handlers
        os._exit(1)


def processor_time(pid: int) -> float:
    """Seconds that a child has used so far; 0 where the system does not say."""
    return (
        time.clock_gettime(~pid << 3 | 2) if sys.platform == "linux" else 0.0
    )  # as clock_getcpuclockid(3) does


def run_batch(
    jobs: list[dict], slots: int, null: int, cpu: int, wall: float, memory_mb: int
) -> list[list | None]:
    results, waiting, running = (
        [None] * len(jobs),
        enumerate(jobs),
        {},
    )  # running: pipe -> [index, pid, data, deadline, used]
    with selectors.DefaultSelector() as selector:
        while True:
            while len(running) < slots and (item := next(waiting, None)):
                pipe, child_pipe = os.pipe()
                confine.next_fork_is_alone(True)
                if (pid := os.fork()) == 0:
                    run_child(item[1], child_pipe, null, cpu, wall, memory_mb)
                confine.next_fork_is_alone(False)
                os.close(child_pipe)
                running[pipe] = [item[0], pid, bytearray(), time.monotonic() + wall, 0.0]
                selector.register(pipe, selectors.EVENT_READ)
            if not running:
                return results
            next_deadline = min(deadline for *_, deadline, _ in running.values())
            ready = {
                key.fd for key, _ in selector.select(max(0.0, next_deadline - time.monotonic()))
            }
            for pipe, (index, pid, data, deadline, used) in list(running.items()):
                data += (chunk := os.read(pipe, 65536) if pipe in ready else b"")
                # A message ends with its newline; the pipe's end may never come, as a grandchild can hold it open.
                ended = (
                    data.endswith(b"\n") or len(data) > MAX_BYTES or (pipe in ready and not chunk)
                )
                late = time.monotonic() > deadline
                if late and not ended and (now := processor_time(pid)) > used + PROGRESS * cpu:
                    running[pipe][3:] = time.monotonic() + wall, now
                elif ended or late:
                    selector.unregister(pipe)
                    os.close(pipe)
                    os.kill(pid, signal.SIGKILL)
                    with contextlib.suppress(
                        OSError
                    ):  # no such group, if it was too early for setsid
                        os.killpg(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    results[index] = read_outputs(data, len(jobs[index]["inputs"]))
                    del running[pipe]


def read_outputs(data: bytes, count: int) -> list | None:
    """The outputs in a child's message, which the program may have written itself: checked as a stranger's."""
    with contextlib.suppress(ValueError, RecursionError):
        outputs = json.loads(data) if data.endswith(b"\n") and len(data) <= MAX_BYTES else None
        if type(outputs) is list and len(outputs) == count and all(map(is_plain, outputs)):
            return outputs


def serve() -> None:
    global confine
    import confine  # as this file is the script, its folder is the first place to import from
    import harness  # noqa: F401  (for programs.py, by its name in sys.modules)

    del sys.modules["confine"]
    sys.path.remove(
        os.path.dirname(os.path.abspath(__file__))
    )  # programs import nothing else of this repository
    for name in PRELOAD:
        __import__(name)
    slots = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    null = os.open(os.devnull, os.O_RDWR)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    print(json.dumps(confine.confine_server()), flush=True)
    factor = slowness()
    for request in sys.stdin:
        jobs, cpu, wall, memory_mb = json.loads(request)
        print(
            json.dumps(run_batch(jobs, slots, null, math.ceil(cpu * factor), wall, memory_mb)),
            flush=True,
        )


if __name__ == "__main__":
    serve()
