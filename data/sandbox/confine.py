"""What the sandbox's server, zygote and children give up for good, as far as this kernel lets them.

See __init__.py for what that stops.

The last layer is a filter for processes that may only compute: every system call but those in
ALLOWED fails with EPERM. It lists what is allowed, not what is forbidden, so a call this file has
never heard of, of any later kernel, is denied. It needs no rights, cannot be taken off, and holds
for machine code as well as for Python. What is left can compute, sleep and use the files that are
open already: no call takes a path, an address, or the number of another process. (fcntl is missing
as it can have signals sent, newfstatat as it takes paths.)
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys

# name: (x86_64, aarch64), from the kernel's arch/x86/entry/syscalls/syscall_64.tbl and
# include/uapi/asm-generic/unistd.h
# fmt: off
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "fstat": (5, 80),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "mremap": (25, 216), "madvise": (28, 233),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "futex": (202, 98), "sched_yield": (24, 124),
    "exit": (60, 93), "exit_group": (231, 94),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178),
    "getrusage": (98, 165), "times": (100, 153), "gettimeofday": (96, 169),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "getrandom": (318, 278),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "pselect6": (270, 72),
    "ppoll": (271, 73),
    # What older C libraries sleep with; aarch64 has the two above only.
    "select": (23, 72), "poll": (7, 73),
}
# fmt: on
ARCHITECTURES = {  # machine: AUDIT_ARCH, column above
    "x86_64": (0xC000003E, 0),
    "aarch64": (0xC00000B7, 1),
}
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
KILL_PROCESS, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
CLONE_NEWIPC, CLONE_NEWUSER = 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
NOBODY = 65534

# Set by confine_server, where they exist.
libc = own_pid_namespace = bpf = None


def allowed_calls() -> list[int] | None:
    """The allowed system calls of this machine, or None where there is no filter for it."""
    known = sys.platform == "linux" and platform.machine() in ARCHITECTURES
    if not known or sys.maxsize <= 2**32:
        return None

    _, column = ARCHITECTURES[platform.machine()]
    return [numbers[column] for numbers in ALLOWED.values()]


def filter_program() -> bytes:
    """The filter as classic BPF.

    Calls by another convention (32-bit) end the process: their numbers mean other things. Those of
    x32 have a high bit and are in no list.
    """
    allowed = allowed_calls()
    audit_arch, _ = ARCHITECTURES[platform.machine()]

    lines = [  # operation, lines to skip if equal, else, operand
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, audit_arch),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
    ]
    for i, number in enumerate(allowed):
        lines.append((JUMP_IF_EQUAL, len(allowed) - i, 0, number))  # to the last line

    lines.append((RETURN, 0, 0, ERRNO | errno.EPERM))
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def install_filter(libc: ctypes.CDLL, bpf: bytes) -> bool:
    """Put the filter on this process, for good; it must have set PR_SET_NO_NEW_PRIVS."""
    buffer = ctypes.create_string_buffer(bpf, len(bpf))
    header = struct.pack("@HP", len(bpf) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    return libc.prctl(PR_SET_SECCOMP, MODE_FILTER, header, 0, 0) == 0


def step_down(chroot: bool) -> list[str]:
    """Root becomes `nobody`, after a chroot where asked; the layers that this gives.

    Other users, and root of a rootless container, stay what they are.
    """
    with contextlib.suppress(OSError):
        if chroot:
            os.chroot(".")
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return ["user", "files"] if chroot else ["user"]
    return []


def works(attempt, *args) -> bool:
    """Whether attempt(*args) gives true, which a throw-away process tries: it cannot be undone."""
    probe = os.fork()
    if probe == 0:
        try:
            os._exit(0 if attempt(*args) else 1)
        finally:
            os._exit(1)

    _, status = os.waitpid(probe, 0)
    return status == 0


def enter_namespaces() -> bool:
    """Own users, processes, network and System V objects; False where this is not allowed."""
    return libc.unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC) == 0


def step_down_and_enter() -> bool:
    """Whether both are possible, one after the other."""
    step_down(chroot=False)
    return enter_namespaces()


def confine_server() -> list[str]:
    """Give up what all children can do without, and see what each of them can give up besides.

    The layers that hold, of LAYERS in __init__.py. Where there are process namespaces, what returns
    is a new process.
    """
    global libc, own_pid_namespace, bpf
    if sys.platform != "linux":
        return []

    libc = ctypes.CDLL(None)
    allowed = works(step_down_and_enter)
    layers = step_down(chroot=not allowed)
    if allowed and enter_namespaces():
        # The server is process 1 of its namespace: the kernel ends the others with it.
        inner = os.fork()
        if inner != 0:
            os.waitpid(inner, 0)
            os._exit(0)
        end_with_parent()
        own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
        os.chroot(".")
        layers += ["files", "network", "processes"]

    libc.prctl(PR_SET_DUMPABLE, 0)  # no child can trace the server or a zygote
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if allowed_calls() is not None and works(install_filter, libc, filter_program()):
        bpf = filter_program()
        layers.append("system calls")
    return layers


def end_with_parent() -> None:
    """The kernel ends this process when its parent ends; to be set anew after a fork."""
    if libc is not None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def next_fork_is_alone(alone: bool) -> None:
    """Whether the next child gets a process namespace, which ends with it."""
    if own_pid_namespace is None:
        return
    if alone:
        libc.unshare(CLONE_NEWPID)
    else:
        libc.setns(own_pid_namespace, CLONE_NEWPID)


def confine_child() -> None:
    """Give up everything that this kernel allows to give up; ends the process if that fails."""
    if libc is not None:
        # No capabilities: header (version 3, this process) and three empty sets.
        libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
        end_with_parent()
    if bpf is not None and not install_filter(libc, bpf):
        os._exit(1)
