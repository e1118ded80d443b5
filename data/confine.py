"""What the sandbox's server and its children give up for good, as far as this kernel lets them; see sandbox.py.

The last layer is a filter for processes that may only compute: every system call but those in ALLOWED fails with EPERM.
It lists what is allowed, not what is forbidden, so a call this file has never heard of, of any later kernel, is denied.
It needs no rights, cannot be taken off, and holds for machine code as well as for Python. What is left can compute, sleep
and use the files that are open already: no call takes a path, an address, or the number of another process. (fcntl is
missing as it can have signals sent, newfstatat as it takes paths.)
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys

# name: (x86_64, aarch64), from the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h
ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "lseek": (8, 62),
    "fstat": (5, 80),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getrusage": (98, 165),
    "times": (100, 153),
    "gettimeofday": (96, 169),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "getrandom": (318, 278),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "select": (23, 72),
    "poll": (7, 73),  # what older C libraries sleep with; aarch64 has the two above only
}
ARCHITECTURES = {
    "x86_64": (0xC000003E, 0),
    "aarch64": (0xC00000B7, 1),
}  # machine: AUDIT_ARCH, column above
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
KILL_PROCESS, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = (
    1,
    4,
    22,
    38,
    2,
)

libc = own_pid_namespace = bpf = None  # set by confine_server, where they exist


def allowed_calls() -> list[int] | None:
    """The allowed system calls of this machine, or None where there is no filter for it."""
    if sys.platform == "linux" and sys.maxsize > 2**32 and platform.machine() in ARCHITECTURES:
        return [call[ARCHITECTURES[platform.machine()][1]] for call in ALLOWED.values()]


def filter_program() -> bytes:
    """The filter as classic BPF. Calls by another convention (32-bit) end the process: their numbers mean other things;
    those of x32 have a high bit and are in no list."""
    allowed = allowed_calls()
    lines = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, ARCHITECTURES[platform.machine()][0]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
    ]
    lines += [
        (JUMP_IF_EQUAL, len(allowed) - i, 0, number) for i, number in enumerate(allowed)
    ]  # to the last line
    lines += [(RETURN, 0, 0, ERRNO | errno.EPERM), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def install_filter(libc: ctypes.CDLL, bpf: bytes) -> bool:
    """Put the filter on this process, for good; it must have set PR_SET_NO_NEW_PRIVS."""
    buffer = ctypes.create_string_buffer(bpf, len(bpf))
    header = struct.pack("@HP", len(bpf) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    return libc.prctl(PR_SET_SECCOMP, MODE_FILTER, header, 0, 0) == 0


def step_down(chroot: bool) -> list[str]:
    """Root becomes `nobody`, after a chroot where asked; other users, and root of a rootless container, stay."""
    with contextlib.suppress(OSError):
        if chroot:
            os.chroot(".")
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        return ["user", "files"] if chroot else ["user"]
    return []


def confine_server() -> list[str]:
    """Give up what all children can do without, and see what each of them can give up besides; the layers that hold."""
    global libc, own_pid_namespace, bpf
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None)
    namespaces = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    if (
        probe := os.fork()
    ) == 0:  # a throw-away process tries, as each of the two ways in closes the other
        step_down(chroot=False)
        os._exit(libc.unshare(namespaces) != 0)
    allowed = os.waitpid(probe, 0)[1] == 0
    layers = step_down(chroot=not allowed)
    if allowed and libc.unshare(namespaces) == 0:
        if (
            inner := os.fork()
        ) != 0:  # the server is process 1 of its namespace: the kernel ends the others with it
            os.waitpid(inner, 0)
            os._exit(0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
        os.chroot(".")
        layers += ["files", "network", "processes"]
    libc.prctl(PR_SET_DUMPABLE, 0)  # no child can trace the server
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if allowed_calls() is not None:
        if (probe := os.fork()) == 0:
            os._exit(not install_filter(libc, filter_program()))
        if os.waitpid(probe, 0)[1] == 0:
            bpf = filter_program()
            layers.append("system calls")
    return layers


def next_fork_is_alone(alone: bool) -> None:
    """Whether the server's next child gets a process namespace, which ends with it."""
    if own_pid_namespace is not None:
        libc.unshare(CLONE_NEWPID) if alone else libc.setns(own_pid_namespace, CLONE_NEWPID)


def confine_child() -> None:
    if libc is not None:  # no capabilities: header (version 3, this process) and three empty sets
        libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if bpf is not None and not install_filter(libc, bpf):
        os._exit(1)
