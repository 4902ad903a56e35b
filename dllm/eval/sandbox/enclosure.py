"""The first wall around a program, where the system has one: a root of its own in namespaces.

And limits on what it may use, everywhere. Loaded by `execution` into a fresh interpreter, without
the package.
"""

from __future__ import annotations

import os
import resource
import sys

TYPE_CHECKING = False  # importing typing takes longer than most programs
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

FILE_BYTES = 2**20
FOLDER = "size=64m,nr_inodes=1k,mode=700"


def enclose(shown: Iterable[str]) -> None:
    """Give up, in namespaces of its own, everything but `shown`, read-only, and a small folder."""
    from ctypes import CDLL, c_char_p, c_int, c_long, c_uint32, c_uint64, c_ulong, get_errno

    libc = CDLL(None, use_errno=True)
    nosuid, nodev, bind, recursive = 2, 4, 4096, 16384  # MS_ of mount.h
    attributes = (c_uint64 * 4)(1 | nosuid | nodev)  # read-only; MOUNT_ATTR_ has the same numbers

    def call(name: str, *arguments: Any) -> None:
        if getattr(libc, name)(*arguments):
            raise OSError(get_errno(), f"{name}: {os.strerror(get_errno())}")

    def mount(
        source: str | None, target: str, kind: str | None, flags: int, more: str = ""
    ) -> None:
        words = (None if word is None else os.fsencode(word) for word in (source, target, kind))
        call("mount", *map(c_char_p, words), c_ulong(flags), c_char_p(more.encode()))

    root = os.getcwd()
    mount("tmpfs", root, "tmpfs", nosuid | nodev, "size=1m,mode=755")
    for place in (*shown, os.devnull):
        target = root + place
        if os.path.isdir(place):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT, 0o600))
        mount(place, target, None, bind | recursive)
        if place != os.devnull:
            path, size = c_char_p(os.fsencode(target)), c_long(32)
            # mount_setattr of the working directory's (-100) paths, AT_RECURSIVE
            call("syscall", c_long(442), c_int(-100), path, c_uint32(0x8000), attributes, size)
    os.makedirs(f"{root}/tmp", exist_ok=True)
    mount("tmpfs", f"{root}/tmp", "tmpfs", nosuid | nodev, FOLDER)
    mount(None, root, None, 32 | bind | 1 | nosuid | nodev)  # MS_REMOUNT, MS_RDONLY
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", 2)  # MNT_DETACH: what was the root
    os.chdir("/tmp")
    call("prctl", 38, c_ulong(1), c_ulong(0), c_ulong(0), c_ulong(0))  # PR_SET_NO_NEW_PRIVS
    call("capset", (c_uint32 * 2)(0x20080522, 0), (c_uint32 * 6)())  # _LINUX_CAPABILITY_VERSION_3


def lock() -> None:
    """Keep other processes of the user, this one's child among them, out of its memory."""
    if sys.platform == "linux":
        try:
            from ctypes import CDLL, c_ulong
        except ImportError:  # a Python that was built without libffi
            return
        CDLL(None).prctl(4, *map(c_ulong, (0, 0, 0, 0)))  # PR_SET_DUMPABLE


def limit(seconds: int, memory: int) -> None:
    """CPU seconds, bytes of address space (not on macOS), bytes of a file; no core dump."""
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # SIGXCPU, then SIGKILL
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (FILE_BYTES, FILE_BYTES),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, most in limits.items():
        try:
            resource.setrlimit(kind, most)
        except (ValueError, OSError):  # a stricter limit stands, or the system has none
            continue
