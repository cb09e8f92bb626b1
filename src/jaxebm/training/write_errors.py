"""Readable messages for errors of the operating system, with advice on what to do."""

import errno
import os
import re
import shutil
from pathlib import Path

__all__ = []

ADVICE = {
    errno.ENOSPC: "free some space on the disk",
    errno.EDQUOT: "free some of the quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EACCES: "give back the permission to write there",
    errno.EPERM: "give back the permission to write there",
    errno.EROFS: "mount it writable",
    errno.ENOENT: "put the folder back",
}


def error_number(error: BaseException | None) -> int | None:
    """The number of the operating system's error that is behind an exception, if there is one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        # TensorStore reports "RESOURCE_EXHAUSTED: ... [os_error_code='28']" or "NOT_FOUND: ...".
        found = re.search(r"os_error_code='(\d+)'", str(error))
        if found:
            return int(found[1])
        if isinstance(error, FileNotFoundError) or str(error).startswith("NOT_FOUND:"):
            return errno.ENOENT
        error = error.__cause__  # not the context, which may be another error that is being handled
    return None


def check_space(like: Path) -> None:
    """Raises ``OSError`` if the disk has less free space than a folder as large as ``like`` takes."""
    if shutil.disk_usage(like).free < sum(file.stat().st_size for file in like.rglob("*")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def explain(number: int) -> str:
    """Returns the meaning of an errno and its name.

    Example:
      >>> explain(errno.ENOSPC)
      'No space left on device (ENOSPC)'
    """
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def advise(number: int) -> str:
    """Returns what the user can do about an errno, as the end of a sentence; empty where that is unknown.

    Example:
      >>> advise(errno.ENOSPC)
      ': free some space on the disk, then resume'
    """
    return f": {ADVICE[number]}, then resume" if number in ADVICE else ""
