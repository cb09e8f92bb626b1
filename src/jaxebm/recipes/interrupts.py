"""What becomes of a command that is interrupted: one line with what is kept and the command to go on."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxebm.signals_at_start import end_at_once

__all__ = ["command_to_go_on", "ignore_signals", "signals_as_interrupts", "what_is_kept"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = ("resume", "overwrite")
"""Flags that say what becomes of the folder: of these, the command to go on has its own."""


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Within a block, SIGTERM raises ``KeyboardInterrupt`` as SIGINT does; ignored signals stay ignored.

    An interrupt in a finaliser or in a callback of the garbage collector, where Python only prints errors, is
    raised again after it.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heeded = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, signal.default_int_handler)
    print_lost = sys.unraisablehook

    def raise_again(lost: "sys.UnraisableHookArgs") -> None:
        if heeded and issubclass(lost.exc_type, KeyboardInterrupt):
            # A little later: raised at once, it would be lost in this function, too.
            again = threading.Timer(0.1, os.kill, (os.getpid(), heeded[0]))
            again.daemon = True
            again.start()
        else:
            print_lost(lost)

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = print_lost
        for number, handler in before.items():
            # That of the start says that nothing was begun. After the last line the process only ends.
            signal.signal(number, signal.SIG_IGN if handler is end_at_once else handler)


def ignore_signals() -> None:
    """From now on, signals do nothing: the process prints its last line and ends."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def command_to_go_on(program: str | None, arguments: Sequence[str], flag: str) -> str:
    """Returns the command line that was given, with ``flag`` for what becomes of the folder.

    Example:
      >>> command_to_go_on("jaxebm train", ["--seed", "3", "--overwrite"], "--resume")
      'jaxebm train --seed 3 --resume'
    """
    kept = []
    skips = False
    for one in arguments:
        name, equals, _ = one.partition("=")
        stem = name.removeprefix("--").removeprefix("no-").replace("_", "-")
        if skips:
            skips = False
        elif name.startswith("--") and stem.rpartition(".")[2] == "resume-step":
            skips = not equals  # its value follows
        elif not (name.startswith("--") and stem in AGAIN):
            kept.append(one)
    script = ["python", sys.argv[0]] if program is None or " " not in program else program.split()
    return shlex.join([*script, *kept, flag])


def what_is_kept(config: Any, folder: Path | None, since: float, again: str, go_on: str) -> str:
    """Returns what an interrupted command has left in its folder, and how to go on, as one line.

    Args:
      config: the configuration; one with a field ``resume`` can be resumed.
      folder: of the run; None if the command writes none.
      since: when the process began, seconds since the epoch. What is older is not its own.
      again: the command with ``--overwrite``.
      go_on: the command with ``--resume``.
    """
    begun = folder / "config.json" if folder is not None else None
    resumes = getattr(config, "resume", None)
    if begun is None or not begun.is_file() or not (resumes or begun.stat().st_mtime >= since):
        return "interrupted before anything was written: give the same command again."
    if resumes is None:
        return f"interrupted: {folder} is not complete. Begin again: {again}"
    checkpoints = begun.parent.rglob("checkpoints/*/default")
    steps = [int(path.parent.name) for path in checkpoints if path.parent.name.isdecimal()]
    cells = len(list(begun.parent.glob("cells/*.json")))
    if not steps and cells:
        return f"interrupted: {folder} keeps {cells} finished cell{'s' * (cells > 1)}. Go on: {go_on}"
    if not steps:
        return f"interrupted: {folder} has no checkpoint yet. Begin again: {go_on}"
    newest = max(steps)
    return f"interrupted: {folder} keeps what was done up to the checkpoint of step {newest}. Go on: {go_on}"
