"""The sandbox's server: a script that runs jobs in processes of their own; see __init__.py.

It talks with the trainer by lines of JSON: first the layers of isolation that hold, then for each
{"jobs": [job, ...], "limits": {...}} the list of the results.

What holds the jobs is no ancestor of what runs a program. The server forks the zygotes before it
reads its first job; a zygote forks a child for a program, one at a time, and as a fork takes about
as long as a small program there is a zygote for each processor. The child reads its job from a
socket, whose other end only the server has, and writes its outputs back. All that passes between
server and zygote are the numbers of children and the child's end of that socket.
"""

import contextlib
import gc
import importlib
import json
import math
import os
import random
import resource
import selectors
import signal
import socket
import struct
import sys
import time
import types
from dataclasses import dataclass, field
from typing import NamedTuple

import confine  # beside this file, which is a script: its folder is the first place to import from
import harness  # noqa: F401  (programs.py has children import it, when the folder is out of reach)

MAX_BYTES = 1 << 20  # of JSON that one program may return
MAX_BITS = 10_000  # of an int: under Python's limit of 4300 digits, so it can be read back
MAX_DEPTH = 64  # of nesting: far from the recursion limit, however deep the caller's stack
MAX_FILES = 1024  # open in the server; a child gets 16
CHANNEL = 3  # the number of a child's socket
PRELOAD = """__future__ abc array ast base64 bisect calendar cmath collections.abc copy csv
dataclasses datetime decimal _strptime difflib encodings.ascii encodings.latin_1 enum fnmatch
fractions functools glob graphlib hashlib heapq html inspect io itertools logging numbers operator
pathlib pickle pprint queue random re shutil statistics string struct textwrap timeit traceback
typing unicodedata uuid zlib""".split()

# Processor seconds of the loop in `slowness` on the slowest machine that gets no more than `cpu`;
# an AMD EPYC needs 0.009.
REFERENCE_LOOP = 0.012


class Limits(NamedTuple):
    """Of one program; see `run` in __init__.py."""

    cpu: int
    wall: float
    memory_mb: int
    progress: float


def main() -> None:
    """Start the zygotes, then answer the trainer's requests until there are no more."""
    for name in PRELOAD:
        importlib.import_module(name)
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))  # programs import nothing more here
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    null = os.open(os.devnull, os.O_RDWR)
    layers = confine.confine_server()
    zygotes = start_zygotes(int(sys.argv[1]), null)  # before the first job is read
    print(json.dumps(layers), flush=True)

    factor = slowness()
    for line in sys.stdin:
        request = json.loads(line)
        limits = Limits(**request["limits"])
        limits = limits._replace(cpu=math.ceil(limits.cpu * factor))
        print(json.dumps(run_batch(zygotes, request["jobs"], limits)), flush=True)


def slowness() -> float:
    """By what `cpu` is multiplied here; at least 1.

    Busy neighbours cost waiting, not processor time. Only one on the other thread of the same core
    can double what a program needs, at any moment: so `cpu` should be twice what a good one needs.
    """
    times = []
    for _ in range(5):
        start = time.process_time()
        total, seen = 0, {}
        for i in range(100_000):
            total += i * i % 7
            seen[i % 100] = total
        times.append(time.process_time() - start)
    return max(1.0, min(times) / REFERENCE_LOOP)


# ---- the server: it has the jobs and the results


@dataclass
class Child:
    """What the server knows of a program that runs."""

    index: int  # of its job
    job: bytes  # as it is sent
    zygote: socket.socket
    channel: socket.socket
    child_end: socket.socket  # of the channel, kept until the child has it
    pid: int = 0  # once its zygote has told that it is forked
    deadline: float = math.inf  # from then on
    used: float = 0.0  # processor time when the deadline was set
    message: bytearray = field(default_factory=bytearray)  # what it has written


def run_batch(zygotes: list[socket.socket], jobs: list[dict], limits: Limits) -> list[list | None]:
    """The jobs' results, as `run` in __init__.py returns them; as many at a time as zygotes."""
    free = list(zygotes)
    results = [None] * len(jobs)
    started = 0
    running = []
    with selectors.DefaultSelector() as selector:
        while started < len(jobs) or running:
            # Give all zygotes a job.
            while started < len(jobs) and free:
                child = start(free.pop(), started, jobs[started], limits)
                selector.register(child.channel, selectors.EVENT_READ)
                selector.register(child.zygote, selectors.EVENT_READ)
                running.append(child)
                started += 1

            # Wait until a child is forked, writes or is late.
            next_deadline = min(child.deadline for child in running)
            wait = None if next_deadline == math.inf else next_deadline - time.monotonic()
            ready = {key.fileobj for key, _ in selector.select(wait and max(0.0, wait))}

            for child in list(running):
                if not child.pid and child.zygote in ready:
                    selector.unregister(child.zygote)
                    begin(child, limits)

                ended = child.channel in ready and receive(child)
                if ended or is_late(child, limits):
                    selector.unregister(child.channel)
                    child.channel.close()
                    ask(child.zygote)  # to end it
                    count = len(jobs[child.index]["inputs"])
                    results[child.index] = read_outputs(child.message, count)
                    free.append(child.zygote)
                    running.remove(child)
    return results


def start(zygote: socket.socket, index: int, job: dict, limits: Limits) -> Child:
    """Have a child forked, without waiting for it."""
    channel, child_end = socket.socketpair()
    ask(zygote, child_end)
    needed = job["program"], job["function"], job["inputs"]
    return Child(index, json.dumps([needed, limits]).encode(), zygote, channel, child_end)


def begin(child: Child, limits: Limits) -> None:
    """A child is forked: give it its job. Its time runs."""
    child.pid = answer(child.zygote)
    child.child_end.close()
    child.deadline = time.monotonic() + limits.wall
    with contextlib.suppress(OSError):  # it died at once, which its missing result will tell
        child.channel.sendall(child.job)
        child.channel.shutdown(socket.SHUT_WR)


def receive(child: Child) -> bool:
    """Take what the child has written; whether that is all.

    A message ends with its newline. The socket's end may never come, as a grandchild can hold it.
    """
    try:
        chunk = child.channel.recv(1 << 16)
    except ConnectionError:  # it died before it had read its job
        chunk = b""
    child.message += chunk
    return not chunk or chunk.endswith(b"\n") or len(child.message) > MAX_BYTES


def is_late(child: Child, limits: Limits) -> bool:
    """Whether its time is over; a child that made progress gets a new deadline."""
    if time.monotonic() <= child.deadline:
        return False

    now = processor_time(child.pid)
    if now <= child.used + limits.progress * limits.cpu:
        return True
    child.used, child.deadline = now, time.monotonic() + limits.wall
    return False


def processor_time(pid: int) -> float:
    """Seconds that a child has used so far; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0.0
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) does


def read_outputs(message: bytes, count: int) -> list | None:
    """The outputs in a child's message, which the program may have written itself.

    None unless it is a line of UTF-8 with a JSON list of `count` plain values. Raises nothing,
    whatever the bytes are. (Bytes given to json.loads would have it guess among UTF-8, 16 and 32.)
    """
    if not message.endswith(b"\n") or len(message) > MAX_BYTES:
        return None

    try:
        outputs = json.loads(message.decode("utf-8"))
    except (ValueError, RecursionError):
        return None

    if type(outputs) is list and len(outputs) == count and all(map(is_plain, outputs)):
        return outputs
    return None


def is_plain(value, depth: int = 0) -> bool:
    """Whether it is made of None, bool, int, finite float, str, list, tuple and dict of str keys.

    Exactly these types, none that extends them.
    """
    kind = type(value)
    if kind is int:
        return value.bit_length() <= MAX_BITS
    if kind is float:
        return math.isfinite(value)
    if kind is list or kind is tuple:
        return depth < MAX_DEPTH and all(is_plain(item, depth + 1) for item in value)
    if kind is dict:
        named = all(type(key) is str for key in value)
        return named and is_plain(list(value.values()), depth)
    return value is None or kind is bool or kind is str


# ---- a zygote: it has neither

FORK, END = b"f", b"e"  # what the server says; with the first goes the child's end of a socket
NUMBER = struct.Struct("=q")  # what the zygote says: the number of the child that it has forked


def ask(zygote: socket.socket, child_end: socket.socket | None = None) -> None:
    """Have a zygote fork a child that gets `child_end`; without it have it end its child."""
    with contextlib.suppress(ConnectionError):  # the missing answer will tell
        if child_end is None:
            zygote.sendall(END)
        else:
            socket.send_fds(zygote, [FORK], [child_end.fileno()])


def answer(zygote: socket.socket) -> int:
    """The number of the child that a zygote was asked for.

    The server ends with any zygote: it must not fork another, now that it has jobs in its memory.
    """
    reply = b""
    with contextlib.suppress(ConnectionError):
        reply = zygote.recv(NUMBER.size)
    if not reply:
        sys.exit("A zygote of the sandbox has ended.")
    return NUMBER.unpack(reply)[0]


def start_zygotes(count: int, null: int) -> list[socket.socket]:
    """Fork so many; the sockets by which to ask them."""
    zygotes = []
    for _ in range(count):
        server_end, zygote_end = socket.socketpair()
        if os.fork() == 0:
            for other in (*zygotes, server_end):
                other.close()
            be_zygote(zygote_end, null)
        zygote_end.close()
        zygotes.append(server_end)
    return zygotes


def be_zygote(server: socket.socket, null: int) -> None:
    """Fork and end children as the server asks, one at a time; this process ends with it."""
    os.dup2(null, 0)  # these are the server's: jobs come by the one, results go by the other
    os.dup2(null, 1)
    confine.end_with_parent()
    gc.freeze()  # what is here stays: no child's collection touches it, so fewer pages are copied
    child = 0
    with contextlib.suppress(ConnectionError):
        while True:
            message, fds, _, _ = socket.recv_fds(server, 1, 1)
            if message == FORK:
                child = fork_child(*fds, null)
                server.sendall(NUMBER.pack(child))
                continue
            if child:
                end_child(child)
            child = 0
            if message != END:
                break
    os._exit(0)


def fork_child(channel: int, null: int) -> int:
    """Fork a child that reads its job from `channel`; its pid."""
    confine.next_fork_is_alone(True)
    zygote = os.getpid()
    pid = os.fork()
    if pid == 0:
        confine.end_with_parent()
        if os.getppid() not in (0, zygote):  # 0: in a process namespace, which ends with the server
            os._exit(1)  # it ended before
        run_child(channel, null)
    confine.next_fork_is_alone(False)
    os.close(channel)
    return pid


def end_child(pid: int) -> None:
    """Kill a child, whether it still runs or not, and what is in its process group; reap it."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):  # no such group, if it was too early for setsid
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# ---- the child: it has one job


def run_child(channel: int, null: int) -> None:
    """Run one program in this process, which then ends."""
    try:
        # Keep the channel and nothing else.
        os.setsid()
        for fd, source in enumerate((null, null, null, channel)):
            os.dup2(source, fd)
        os.closerange(CHANNEL + 1, MAX_FILES)
        with open(CHANNEL, "rb", closefd=False) as file:
            needed, limits = json.load(file)

        # Give up all rights, before the first line of the program.
        set_limits(Limits(*limits))
        random.seed(0)
        confine.confine_child()

        message = f"[{','.join(outputs_of(*needed))}]\n".encode()
        while message:
            message = message[os.write(CHANNEL, message) :]
    finally:  # whatever was raised: no traceback, no exit handlers
        os._exit(1)


def set_limits(limits: Limits) -> None:
    """The limits of this process, as far as this system has them."""
    if sys.platform != "linux":
        signal.setitimer(signal.ITIMER_REAL, limits.wall + 1)  # in case the server dies first
    values = {
        "CPU": limits.cpu,
        "AS": limits.memory_mb << 20,
        "FSIZE": 0,
        "NPROC": 0,
        "NOFILE": 16,
        "CORE": 0,
    }
    for name, value in values.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS has no working AS
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))


def outputs_of(program: str, name: str, inputs: list[list]) -> list[str]:
    """The function's output for each input, as JSON; raises as the program does outside of it."""
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module  # dataclasses look up their module
    exec(compile(program, "candidate", "exec", dont_inherit=True), vars(module))
    function = vars(module)[name]

    outputs = []
    for args in inputs:
        try:
            output = function(*args)
            if not is_plain(output):
                output = {"error": "not plain data"}
        except (SystemExit, MemoryError):
            os._exit(1)
        except BaseException as error:
            output = {"error": str(type(error).__name__)[:100]}
        outputs.append(json.dumps(output))  # now: the next call may change the same list
    return outputs


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the trainer has left; what is not told to it nobody waits for
        os._exit(0)
