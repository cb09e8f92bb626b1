"""A signal while a command is starting ends it with one line.

Importing JAX takes seconds. A signal in that time would end in a traceback of many lines, or without a word.
This module imports nothing that is slow, and is the first import of the package and of every experiment. It
acts only in a process that was started as the command ``jaxebm`` or as a script of the folder experiments/;
other programs keep their handlers. `jaxebm.recipes.command_line.run_experiment` takes over from it.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

__all__ = ["end_at_once", "end_at_once_on_signals", "is_command"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_command(main_file: str | None) -> bool:
    """Returns whether the main program is the command ``jaxebm`` or a script of experiments/.

    Example:
      >>> [is_command(path) for path in ("/usr/bin/jaxebm", "experiments/jem.py", "mine.py", None)]
      [True, True, False, False]
    """
    path = Path(main_file or "")
    return path.stem == "jaxebm" or path.resolve().parent.name == "experiments"


def end_at_once_on_signals() -> None:
    """From now on, SIGINT and SIGTERM print one line and end the process with status 130.

    Only for the time before anything is written. Signals that are ignored (``nohup``) stay so.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_at_once)


def end_at_once(number: int, frame: FrameType | None) -> None:
    """The handler: prints one line and ends the process."""
    del number, frame
    # Not an exception, which the package that is being imported could turn into another one.
    os.write(2, b"\ninterrupted before anything was begun.\n")
    os._exit(130)


if is_command(getattr(sys.modules["__main__"], "__file__", None)):
    end_at_once_on_signals()
