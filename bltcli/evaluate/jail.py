"""Run by `sandbox` as a script of its own: builds the walls from the kernel's own means, then runs one program inside.

    python -I -S -B jail.py '{"limits": {...}, "libraries": [...], "python": "..."}' < program

Imports the standard library alone, so that nothing of the caller's is in this process. What it says on stdout is one
JSON object: {"setup": why the walls cannot be built}, {"late": true}, or {"status": wait status, "said": report of the
program's runner}.

    caller ── launcher: new namespaces, a root of its own ── process 1: waits ── process 2: limits, no rights ── program

When process 1 ends, the kernel kills whatever is left in its process namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import time
from typing import Any, Final

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
ANY_NAMESPACE: Final = 0x7E020080
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 0x1, 0x2, 0x4
AT_FDCWD, AT_RECURSIVE, MNT_DETACH, MOUNT_SETATTR = -100, 0x8000, 2, 442
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER_MODE = 1, 22, 38, 2
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97

#: A range that systems keep for users made up on the spot: process limits count per user, so each run has its own.
FIRST_USER, USERS = 61184, 4336
NOBODY = 65534
FOLDER = "/tmp"  # of the new root: the only place to write
DEVICES = ("null", "zero", "random", "urandom")
MOST_SAID = 1 << 16

#: Kernel calls that a program never needs and that could widen its walls: name -> number on x86_64, on aarch64.
DENIED: Final = {
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "ptrace": (101, 117), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219),
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
}  # fmt: skip
#: Audit number of the machine, column of DENIED, and the calls that are looked into: clone, clone3, socket.
MACHINES: Final = {"x86_64": (0xC000003E, 0, 56, 435, 41), "aarch64": (0xC00000B7, 1, 220, 435, 198)}

#: Runs in process 2 with the limits on. Only the first process reports; a program that leaves early reports nothing.
RUNNER: Final = """
import os, sys, types

def main():
    program = sys.stdin.buffer.read()
    report, null, first = os.dup(1), os.open(os.devnull, os.O_RDWR), os.getpid()
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    errors = []
    try:
        exec(compile(program, "program", "exec"), module.__dict__)
    except BaseException as error:
        while error is not None and len(errors) < 4:
            number = getattr(error, "errno", None)
            try:
                text = str(error)[:200]
            except Exception:  # the program's own exception: its text may raise anything
                text = ""
            errors.append([type(error).__name__, number if isinstance(number, int) else None, text])
            error = error.__cause__ or error.__context__
    if os.getpid() == first:
        import json
        os.write(report, json.dumps({"errors": errors}).encode())
    os._exit(0)

main()
"""

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: Any) -> None:
    """A C library function that returns -1 on failure; OSError then."""
    if getattr(libc, name)(*args) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    call(
        "mount", source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags),
        options.encode(),
    )  # fmt: skip


def make_read_only(path: str, *, recursive: bool, more: int = 0) -> None:
    attributes = struct.pack("=QQQQ", ATTR_RDONLY | more, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    call("syscall", MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, ctypes.c_size_t(len(attributes)))


def new_namespaces() -> None:
    """Mounts, processes, network and shared memory of its own; for anyone but root also users, to be allowed these."""
    user, group = os.geteuid(), os.getegid()
    flags = NEWNS | NEWIPC | NEWPID | NEWNET
    call("unshare", flags if user == 0 else flags | NEWUSER)
    if user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{NOBODY} {user} 1"),
            ("gid_map", f"{NOBODY} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def new_root(libraries: list[str], folder_bytes: int, owner: int) -> None:
    """A root of an empty file system, with the libraries read-only and one folder to write in."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", FOLDER, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    os.mkdir(f"{FOLDER}/old")
    call("pivot_root", FOLDER.encode(), f"{FOLDER}/old".encode())
    os.chdir("/")
    os.mkdir(FOLDER)
    options = f"mode=700,size={folder_bytes},nr_inodes=1000,uid={owner},gid={owner}"
    mount("tmpfs", FOLDER, "tmpfs", MS_NOSUID | MS_NODEV, options)
    for path in libraries:  # after the folder, which may hold some
        bring(path, ATTR_NOSUID | ATTR_NODEV)
    for name in DEVICES:
        bring(f"/dev/{name}", ATTR_NOSUID)
    call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    make_read_only("/", recursive=False)


def bring(path: str, attributes: int) -> None:
    """Show `path` of the old root at the same place of the new one, read-only; a link stays a link."""
    old = f"/old{path}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(old):
        os.symlink(os.readlink(old), path)
        return
    if os.path.isdir(old):
        os.makedirs(path, exist_ok=True)
    else:
        os.close(os.open(path, os.O_CREAT))
    mount(old, path, None, MS_BIND | MS_REC)
    make_read_only(path, recursive=True, more=attributes)


def give_up_rights(limits: dict[str, int], owner: int) -> None:
    """Limits, an unprivileged user, no way back, and the filter of kernel calls."""
    others = 0
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(owner, owner, owner)
        os.setresuid(owner, owner, owner)
    else:
        others = 2  # the launcher and process 1 belong to the same user
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for name, value in (
        ("AS", limits["memory_bytes"]),
        ("CPU", limits["cpu_seconds"]),
        ("NPROC", limits["processes"] + others),
        ("FSIZE", limits["folder_bytes"]),
        ("NOFILE", 64), ("CORE", 0), ("MEMLOCK", 0), ("MSGQUEUE", 0),
    ):  # fmt: skip
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is not None:
            resource.setrlimit(number, (value, value + (name == "CPU")))
    install_filter()


def install_filter() -> None:
    code = b"".join(struct.pack("=HBBI", *line) for line in kernel_filter(platform.machine()))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    call("prctl", PR_SET_SECCOMP, FILTER_MODE, program, 0, 0)


def kernel_filter(machine: str) -> list[tuple[int, int, int, int]]:
    """A classic BPF program as (code, jump if true, jump if false, value); see seccomp(2)."""
    if machine not in MACHINES:
        raise OSError(ENOSYS, f"no filter of kernel calls is known for {machine}")
    audit, column, clone, clone3, socket = MACHINES[machine]
    load, equal, larger, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000, 0x80000000
    number, architecture, first_argument = 0, 4, 16

    program = [(load, 0, 0, architecture), (equal, 1, 0, audit), (end, 0, 0, kill), (load, 0, 0, number)]
    if machine == "x86_64":  # a second set of numbers for the same calls
        program += [(larger, 0, 1, 0x40000000), (end, 0, 0, refuse | EPERM)]
    for numbers in DENIED.values():
        program += [(equal, 0, 1, numbers[column]), (end, 0, 0, refuse | EPERM)]
    # its arguments lie in memory, where no filter can look: programs fall back to clone
    program += [(equal, 0, 1, clone3), (end, 0, 0, refuse | ENOSYS)]
    program += [
        (equal, 0, 4, clone), (load, 0, 0, first_argument),
        (any_bit, 0, 1, ANY_NAMESPACE), (end, 0, 0, refuse | EPERM), (end, 0, 0, allow),
    ]  # fmt: skip
    # local and internet sockets live in the network namespace; others, a virtual machine's among them, do not
    program += [
        (equal, 0, 6, socket), (load, 0, 0, first_argument), (equal, 3, 0, 1), (equal, 2, 0, 2), (equal, 1, 0, 10),
        (end, 0, 0, refuse | EAFNOSUPPORT), (end, 0, 0, allow),
    ]  # fmt: skip
    return [*program, (end, 0, 0, allow)]


def run_program(python: str, limits: dict[str, int], owner: int) -> None:
    """Process 1: start process 2, wait for it, pass on what its runner said."""
    read, write = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # so that `ended_in_time` can wait for it
    child = os.fork()
    if not child:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            give_up_rights(limits, owner)
            os.dup2(write, 1)
            os.chdir(FOLDER)
            environment = {"PATH": "/usr/bin:/bin", "HOME": FOLDER, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
            os.execve(python, [python, "-s", "-S", "-P", "-B", "-c", RUNNER], environment)
        except OSError as error:
            os.write(write, json.dumps({"setup": str(error)}).encode())
        os._exit(125)
    status = ended_in_time(child, limits["milliseconds"] / 1000)
    if status is None:
        say({"late": True})
        return
    # not to the end of the pipe: processes that are still there hold it open
    os.set_blocking(read, False)
    said = b""
    with contextlib.suppress(BlockingIOError):
        said = os.read(read, MOST_SAID)
    say({"status": status, "said": said.decode(errors="replace")})


def ended_in_time(child: int, seconds: float) -> int | None:
    """The wait status of a process; None when it is still there after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if (left := end - time.monotonic()) <= 0:
            return None
        signal.sigtimedwait({signal.SIGCHLD}, left)  # any child's end wakes it, also those of orphans


def say(facts: dict[str, Any]) -> None:
    os.write(1, json.dumps(facts).encode())


def main() -> None:
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    options = json.loads(sys.argv[1])
    owner = FIRST_USER + os.getpid() % USERS if os.geteuid() == 0 else NOBODY
    try:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out, it is not others that pay
        new_namespaces()
        new_root(options["libraries"], options["limits"]["folder_bytes"], owner)
    except OSError as error:
        say({"setup": str(error)})
        return
    if child := os.fork():
        os.waitpid(child, 0)
        return
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    run_program(options["python"], options["limits"], owner)
    os._exit(0)


if __name__ == "__main__":
    main()
