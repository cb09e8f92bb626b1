"""Progress of a training: a bar with rate, loss and time left, or lines of text without a terminal."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from jaxebm import checks

__all__ = ["Progress", "make_progress"]

SHOWN = ("loss", "energy_gap", "gradient_norm", "updates_per_second")


class Progress(Protocol):
    """Receives the metrics of each dispatch."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows that ``step`` updates are done."""
        ...


def _summary(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_per_', '/')}={metrics[name]:.4g}" for name in SHOWN if name in metrics)


class _Silent:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        del step, metrics


class _Lines(_Silent):
    """One line every few seconds, for log files."""

    def __init__(self, first: int, total: int, seconds_between: float = 10.0) -> None:
        self.first, self.total, self.seconds_between = first, total, seconds_between
        self.started = self.last = time.monotonic()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if step < self.total and now - self.last < self.seconds_between:
            return
        self.last = now
        left = (now - self.started) / max(step - self.first, 1) * (self.total - step)
        print(
            f"step {step}/{self.total}  {_summary(metrics)}  {left:.0f} s left", file=sys.stderr, flush=True
        )


class _Bar(_Silent):
    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self.bar.set_postfix_str(_summary(metrics), refresh=False)
        self.bar.update(step - self.bar.n)


def make_progress(shown: bool, *, first: int, total: int) -> Progress:
    """Returns a bar on a terminal that has tqdm, lines of text elsewhere, or nothing.

    Args:
      shown: whether to show anything.
      first: updates that are done already.
      total: total number of updates.

    Returns:
      A context manager with ``update(step, metrics)``.

    Raises:
      TypeError: if ``shown`` is not True or False.
      ValueError: if a number of updates is not an integer of at least 0.

    Example:
      >>> with make_progress(False, first=0, total=10) as progress:
      ...     progress.update(5, {"loss": 0.1})
    """
    checks.boolean("shown", shown)
    checks.integer("first", first, 0)
    checks.integer("total", total, 0)
    if not shown:
        return _Silent()
    if not sys.stderr.isatty():
        return _Lines(first, total)
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # the bar belongs to the `experiments` extra; the loop works without it
        return _Lines(first, total)
    return _Bar(tqdm(total=total, initial=first, unit="step", dynamic_ncols=True, desc="training"))
