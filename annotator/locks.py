"""Which processes are at work on a workspace: each holds the lock of its kind for as long as it lives."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from annotator.errors import WorkspaceBusyError


@contextlib.contextmanager
def only_one(path: Path, who: str) -> Iterator[None]:
    """Hold the lock of a file; it goes with the process, whatever ends it.

    Args:
        path: the lock file, in the workspace that is worked on.
        who: what the holder is, for the error: "learner".

    Raises:
        WorkspaceBusyError: another process holds it.
    """
    # Never truncated and never deleted: the lock is on the file itself.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            process = f" (process {holder})" if holder else ""
            raise WorkspaceBusyError(f"another {who}{process} works on {path.parent}; stop it first") from error
        os.pwrite(descriptor, f"{os.getpid():<19}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def lock_held(path: Path) -> bool:
    """Tell whether a process holds the `flock` of a file, without touching the lock.

    Trying the lock instead would make a learner that starts at this moment believe that another one runs. Where the
    system does not list its locks (only Linux does), a file that is there counts as held.
    """
    try:
        inode = path.stat().st_ino
    except OSError:
        return False
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return True
    return any(
        fields[1] == "FLOCK" and fields[5].rsplit(":", 1)[-1] == str(inode)
        for fields in (line.split() for line in lines)
        if len(fields) > 5
    )
