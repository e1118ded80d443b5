"""The one door through which model-written Python runs: `run(jobs)`.

The coding models of Greenblatt et al. 2024 (arXiv 2405.19550) are graded by running what they
write. A program gets inputs and gives plain JSON outputs. The expected outputs never enter its
process, so it answers and cannot judge.

    trainer        this file; starts the server by Popen, so its threads and CUDA do not matter
      server       server.py, a script with an empty environment; holds the jobs and the results
        zygotes    forked before the server reads its first job; they never see one
          child    one for each program; its job comes through a socket of its own

A child inherits the memory of a zygote, which holds no job. So on a used server as on a new one
a program finds only its own job (all of its inputs at once): no other program, no test and no
reference. Tests run in a child of their own (harness.py).

Stopped everywhere: over `cpu` seconds of processor time, `wall` seconds of waiting or 1 MiB of
results; writing into files; inheriting the trainer's memory, environment or open files. Hash seed
and `random` are fixed: results repeat, but for a program that writes into its own results' pipe.

Stopped on Linux: over `memory_mb`; on x86_64 and aarch64 also every system call that opens a path
or a socket, starts a process or thread, signals, traces, mounts or is unknown here (confine.py).
That filter needs no rights.

Stopped where Linux allows user namespaces, a second time and by other means: network; files (by
chroot to an empty deleted directory); seeing or signalling other processes; capabilities. Root
becomes `nobody` in any case; root without user namespaces (many containers) still gets that chroot.

Where there is neither the filter nor namespaces (macOS, other processors), `run` refuses unless
`allow_unsandboxed`.

NOT stopped: a bug of the kernel in one of the few calls that are left, or of the processor (Spectre
and its like); timing side channels; slowing the machine down within the limits (a program that
works a little and waits by turns can last `wall` / PROGRESS seconds); reading what a zygote holds
(the standard modules, this package, its own path); writing its own outputs to the socket in place
of returning them.
NOT stopped with namespaces but no filter: programs that agree to can leave each other messages.
NOT stopped with `allow_unsandboxed`: reading what the user can read; creating, truncating and
deleting the user's files; the network; killing the user's processes, this server included;
outliving the program in a process of its own.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading

from data import InputError

PROGRESS = 0.05  # a program that used less of its processor time in `wall` seconds waits: end it
LAYERS = {
    "user": "as nobody",
    "files": "in an empty file system",
    "network": "without network",
    "processes": "alone in a process namespace",
    "system calls": "with only harmless system calls",
}

allow_unsandboxed = False  # run generated programs even where nothing but limits holds them
_lock = threading.Lock()
_server = None  # this process's Popen


def run(
    jobs: list[dict], *, cpu: int = 2, wall: float = 10.0, memory_mb: int = 512
) -> list[list | None]:
    """Run each job; results in their order, None for a program that failed as a whole.

    A job is {"program": "def f(a, b): return a + b", "function": "f", "inputs": [[1, 2], [3, "x"]]}
    and its result [3, {"error": "TypeError"}]: one output per input, plain JSON of exact built-in
    types (True stays True, 1.0 stays 1.0, tuples become lists), or an "error" where that call
    raised or returned anything else. A program fails as a whole by its syntax, by what it does
    outside the function, by an exit, and by a limit.

    Processor time is the tight bound: `cpu` seconds, and more, rounded up, on a slow machine
    (server.slowness). A program that used hardly any of it in `wall` seconds waits for something
    and is ended; one that is only starved by others goes on. So neither a slow machine nor a busy
    one changes a result.

    Raises InputError where this machine cannot isolate programs and `allow_unsandboxed` is not set.
    """
    if not jobs:
        return []
    with _lock:
        results = _ask(jobs, cpu, wall, memory_mb)
        if results is not None:
            return results

        # The server died. Only the job that can kill it is lost, so one job per request.
        results = []
        for job in jobs:
            alone = _ask([job], cpu, wall, memory_mb)
            results.append(alone[0] if alone is not None else None)
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
    if _server is not None:
        return _server.layers

    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "server.py")
    # The directory goes once the server is in it: a deleted directory stays empty.
    with tempfile.TemporaryDirectory() as empty:
        os.chmod(empty, 0o555)
        _server = subprocess.Popen(
            [sys.executable, "-B", "-s", "-S", script, str(at_a_time())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=empty,
            env={"PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C is for the trainer
        )
        hello = _server.stdout.readline()
    if not hello:
        close()
        raise RuntimeError("The sandbox server did not start; its own error is printed above.")
    _server.layers = json.loads(hello)
    return _server.layers


def at_a_time() -> int:
    """Programs that run together: one for each processor, which a machine's ranks share."""
    processors = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    return max(1, processors // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def contained() -> bool:
    """Whether a program can reach no file, network or process here: by the filter or namespaces."""
    layers = set(isolation())
    return "system calls" in layers or {"files", "network", "processes"} <= layers


def describe() -> str:
    """One line: the isolation in force for generated programs."""
    held = "; ".join(LAYERS[layer] for layer in isolation()) or "NO isolation beyond that"
    return f"generated programs run with limits of time, memory and output; {held}"


def _ask(jobs: list[dict], cpu: int, wall: float, memory_mb: int) -> list | None:
    """The server's answer, or None if it died or hung."""
    limits = {"cpu": cpu, "wall": wall, "memory_mb": memory_mb, "progress": PROGRESS}
    request = json.dumps({"jobs": jobs, "limits": limits}, allow_nan=False).encode() + b"\n"
    if not contained() and not allow_unsandboxed:
        raise InputError(
            "This machine cannot isolate generated programs (no seccomp, no user namespaces), so "
            "they could read and delete your files: use Linux, or, in a virtual machine with "
            "nothing to lose, --allow-unsandboxed-code."
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


def _forget_server() -> None:
    """In a forked process (a data loader's worker): it must neither talk through its parent's
    pipes nor stop its parent's server."""
    global _server, _lock
    _server, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_server)
