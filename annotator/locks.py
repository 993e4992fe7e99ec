"""Which processes are at work on a workspace: each holds the lock of its kind for as long as it lives."""

from pathlib import Path


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
