"""Where a result comes from: versions, device, day, and the commit of the code."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import jax

from jaxebm.training import describe_versions

__all__ = ["describe_environment"]


def describe_environment() -> dict[str, str | int | None]:
    """Returns the environment on which the numbers of a run may depend.

    Returns:
      Versions of ``jaxebm``, ``jax``, ``flax`` and ``python``; the ``device`` and their number; the
      ``processors`` of this host that the run may use; the ``date`` (UTC); and the ``commit`` of the checkout
      that the package runs from, with a "+" where files differ from it. The commit is None where the package
      is installed elsewhere, and where there is no git.
    """
    versions = describe_versions()
    return {
        **{name: versions[name] for name in ("jaxebm", "jax", "flax", "python")},
        "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
        "processors": _processors(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(Path(__file__).resolve()),
    }


def _processors() -> int:
    """The number that XLA uses: PJRT_NPROC sets the threads of its CPU client."""
    asked = os.environ.get("PJRT_NPROC", "")
    return int(asked) if asked.isdigit() and int(asked) else os.cpu_count() or 1


def _commit(source: Path) -> str | None:
    """The commit of the repository that tracks a source file; None where none does.

    A virtual environment may be inside another repository, which does not track the file.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(source.parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None  # there is no git
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", source.name) is None:
        return None
    commit = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return commit if not (commit and changed) else commit + "+"
