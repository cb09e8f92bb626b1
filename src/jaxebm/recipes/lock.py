"""One writer a folder: a second process that would write into it is refused while the first one lives."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["only_writer"]


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Locks a folder for a block; it is made if needed.

    The lock is one of the operating system on the folder itself: there is no file, and it ends with the
    process, also after a kill. Where the system or the file system has no such locks, there is none.

    Args:
      folder: the folder of a run or of an evaluation.

    Raises:
      FileExistsError: if another block of this process or of another one holds the lock.

    Example:
      >>> import tempfile
      >>> place = tempfile.mkdtemp()
      >>> with only_writer(place), only_writer(place):
      ...     pass
      Traceback (most recent call last):
      FileExistsError: ... is being written by another process: wait for its end, or choose another folder.
    """
    handle, made = None, not Path(folder).exists()
    with suppress(OSError, ImportError):  # what else is wrong with the folder, `open_run` reports
        import fcntl

        Path(folder).mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            handle = -1
    if handle == -1:
        raise FileExistsError(
            f"output={folder} is being written by another process: wait for its end, or choose another "
            "folder."
        )
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)  # which unlocks it
        if made:
            with suppress(OSError):  # it is not empty, unless what was to be written was refused
                os.rmdir(folder)
