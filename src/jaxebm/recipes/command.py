"""The command ``jaxebm``: train, evaluate and sample, with the same functions as in a notebook.

    jaxebm train --recipe jem --network convnet --output runs/jem
    jaxebm evaluate runs/jem --evaluation.ood-sets mnist
    jaxebm sample runs/jem --label 3

The scripts experiments/jem.py and experiments/evaluate.py are the same as ``jaxebm train`` and ``evaluate``.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

import jaxebm
from jaxebm import checks
from jaxebm.recipes.command_line import refuse_existing, run_experiment
from jaxebm.recipes.config import Config
from jaxebm.recipes.judge import Evaluate, evaluate_run, open_finished
from jaxebm.recipes.published import base_config
from jaxebm.report.settings import ReportSettings

__all__ = ["evaluate_command", "main", "sample_command", "train_command"]

NO_RUN = Path("RUN")
"""What the folder is called where none was given."""
COLUMNS = 10
"""Images in each row of the picture."""
USAGE = """usage: jaxebm COMMAND [flags]

  train      train and evaluate an energy-based model of images (a JEM) in a folder
  evaluate   evaluate a run again, with any settings of the evaluation
  sample     draw images from a trained model

jaxebm COMMAND --help shows the flags of each; jaxebm --version the version.
"""

RunArgument: TypeAlias = Annotated[
    Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="(required)")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateFlags(Evaluate):
    """Evaluate a run of `jaxebm train` from its checkpoint; flags that are not given are those of the run."""

    run: RunArgument
    """Folder of the run."""
    evaluation: ReportSettings = dataclasses.field(default_factory=ReportSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleFlags:
    """Draw images from a run of `jaxebm train`: fresh chains, by the sampler that trained it."""

    run: RunArgument
    """Folder of the run."""
    count: int = 100
    """Number of images to draw."""
    label: int | None = None
    """Class of the images; none draws from p(x)."""
    num_steps: int = 100
    """Sampler steps."""
    seed: int = 0
    """Seed of all random numbers."""
    select: Literal["last", "best"] | None = None
    """Newest checkpoint (last) or that of the least validation NLL (best); default: that of the run."""
    output: Path | None = None
    """File of the images (arrays `image` and `label`), also drawn as a PNG; RUN/drawn.npz by default."""
    overwrite: bool = False
    """Replace the file."""


def train_command(arguments: Sequence[str] | None = None, program: str = "jaxebm train") -> None:
    """``jaxebm train``: `jaxebm.recipes.train` of a configuration from the command line.

    Args:
      arguments: instead of ``sys.argv[1:]``.
      program: the program name in the help text.
    """

    def train(config: Config) -> None:
        from jaxebm.recipes.run import train  # flags of XLA must be set before JAX starts

        train(config)

    run_experiment(
        Config, train, arguments, base=_of_recipe, small_networks=has_small_network, program=program
    )


def evaluate_command(arguments: Sequence[str] | None = None, program: str = "jaxebm evaluate") -> None:
    """``jaxebm evaluate``: `jaxebm.recipes.evaluate_run` from the command line.

    Args:
      arguments: instead of ``sys.argv[1:]``.
      program: the program name in the help text.
    """

    def evaluate(flags: EvaluateFlags) -> None:
        _need_run(flags.run)
        evaluate_run(flags)

    run_experiment(
        EvaluateFlags,
        evaluate,
        arguments,
        base=_of_run,
        default=EvaluateFlags(run=NO_RUN),
        small_networks=lambda flags: _is_small(flags.run),
        program=program,
        folder=lambda flags: flags.run / "evaluation" if flags.output is None else flags.output,
    )


def sample_command(arguments: Sequence[str] | None = None, program: str = "jaxebm sample") -> None:
    """``jaxebm sample``: draws images from `jaxebm.load` and writes them to a file and a picture.

    Args:
      arguments: instead of ``sys.argv[1:]``.
      program: the program name in the help text.
    """
    run_experiment(
        SampleFlags,
        _sample,
        arguments,
        base=lambda flags: flags,
        default=SampleFlags(run=NO_RUN),
        small_networks=lambda flags: _is_small(flags.run),
        program=program,
    )


def has_small_network(config: Config) -> bool:
    """Whether to set flags of XLA for small networks."""
    return config.network == "mlp" or (config.network == "convnet" and config.dataset == "digits")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script ``jaxebm``.

    Args:
      arguments: instead of ``sys.argv[1:]``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "train": train_command,
        "evaluate": evaluate_command,
        "sample": sample_command,
    }
    if given[:1] == ["--version"]:
        print(f"jaxebm {jaxebm.__version__}")
    elif given[:1] in ([], ["--help"], ["-h"]):
        print(USAGE, end="")
    elif given[0] in commands:
        commands[given[0]](given[1:])
    else:
        known = ", ".join(commands)
        print(f"error: there is no command {given[0]}: choose one of {known}, or --help.", file=sys.stderr)
        sys.exit(2)


def _of_recipe(first: Config) -> Config:
    return base_config(first.recipe, network=first.network, dataset=first.dataset, task=first.task)


def _of_run(first: EvaluateFlags) -> EvaluateFlags:
    """The evaluation settings of the run; the defaults of the package if there is no run."""
    try:
        _, config = open_finished(first.run)
    except (OSError, ValueError):
        return EvaluateFlags(run=first.run)  # the command itself reports the error
    return EvaluateFlags(run=first.run, evaluation=config.evaluation)


def _is_small(run: Path) -> bool:
    """Whether to set flags of XLA for small networks: the same as in the training of the run."""
    try:
        _, config = open_finished(run)
    except (OSError, ValueError):
        return False  # the command itself reports the error
    return has_small_network(config)


def _need_run(run: Path) -> None:
    if run == NO_RUN:
        raise ValueError("the folder of a run is needed: jaxebm evaluate RUN, jaxebm sample RUN.")


def _sample(flags: SampleFlags) -> None:
    import jax
    import numpy as np

    from jaxebm.recipes.reading import load
    from jaxebm.report.figures import image_grid
    from jaxebm.report.question import plural
    from jaxebm.training import read_run, write_atomically

    _need_run(flags.run)
    checks.positive_integer("count", flags.count)
    output = flags.run / "drawn.npz" if flags.output is None else flags.output
    if output.suffix != ".npz":
        raise ValueError(f"output={output}: the name of an .npz file is needed.")
    picture = output.with_suffix(".png")
    for path in (output, picture):
        refuse_existing("output", path, overwrite=flags.overwrite)
    model = load(flags.run, select=flags.select)
    key = jax.random.key(flags.seed)
    images = model.sample(key, flags.count, label=flags.label, num_steps=flags.num_steps)
    labels = np.full(len(images), -1 if flags.label is None else flags.label, np.int32)
    if flags.output is None:
        read_run(flags.run).claim(output.name, picture.name)  # removed when the run is replaced
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, _as_npz(image=images, label=labels))
    low, high = model.space.value_range
    of_class = "p(x)" if flags.label is None else f"class {model.class_names[flags.label]}"
    shown = np.clip((images - low) / (high - low), 0.0, 1.0)
    image_grid(
        picture, shown, columns=COLUMNS, title=f"{of_class}, {plural(flags.num_steps, 'step')} from noise"
    )
    drawn = f"{plural(len(images), 'image')} of {of_class} after {plural(flags.num_steps, 'sampler step')}"
    print(f"{drawn}: {output}, {picture}")


def _as_npz(**arrays: object) -> bytes:
    import io

    import numpy as np

    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()
