"""The evaluation card: its questions, how it is computed, and how it is written."""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.data import Dataset
from jaxebm.report.classes import CLASSES
from jaxebm.report.energies import ENERGIES
from jaxebm.report.environment import describe_environment
from jaxebm.report.likelihood import LIKELIHOOD
from jaxebm.report.long_chains import LONG_CHAINS
from jaxebm.report.markdown import escape_markdown, markdown_table
from jaxebm.report.out_of_distribution import OUT_OF_DISTRIBUTION, outlier_sets
from jaxebm.report.page import render_page
from jaxebm.report.question import Card, Question, Section, plural
from jaxebm.report.robustness import ROBUSTNESS
from jaxebm.report.samples import SAMPLES
from jaxebm.report.settings import ReportSettings
from jaxebm.report.subject import Evaluation, LevelPath, ModelUnderTest, as_logits
from jaxebm.report.tasks import TASKS
from jaxebm.report.training_history import TRAINING_HISTORY
from jaxebm.samplers import Initial, NormalInitial, ReplayBuffer, UniformInitial, sgld
from jaxebm.training import write_atomically
from jaxebm.types import EnergyFn, LogitsFn, MakeKernel, Params

__all__ = ["CARD_FILES", "DEFAULT_KERNEL", "QUESTIONS", "card_text", "evaluate", "summary_text", "write_card"]

SCHEMA = 2
QUESTIONS = (
    CLASSES,
    ROBUSTNESS,
    LIKELIHOOD,
    OUT_OF_DISTRIBUTION,
    ENERGIES,
    SAMPLES,
    LONG_CHAINS,
    TASKS,
    TRAINING_HISTORY,
)
"""The questions of the card, in the order of its sections."""
CARD, TEXT, PAGE = "card.json", "card.md", "report.html"
CARD_FILES = (CARD, TEXT, PAGE, *(name for question in QUESTIONS for name in question.files))
"""The names of all files and folders that an evaluation may write."""
DEFAULT_KERNEL: MakeKernel = partial(
    sgld, step_size=0.2, noise_scale=0.1, gradient_clip=1.0, state_clamp=(-1.0, 1.0)
)
"""The default kernel of the chains."""


def evaluate(
    model: LogitsFn | EnergyFn,
    params: Params,
    dataset: Dataset,
    *,
    folder: str | Path | None = None,
    settings: ReportSettings | None = None,
    kernel: MakeKernel | None = None,
    num_steps: int = 20,
    initial: Initial | None = None,
    buffer: ReplayBuffer | None = None,
    conditional: bool = False,
    path: LevelPath | None = None,
    twin_params: Params | None = None,
    seed: int = 0,
    records: Sequence[Mapping[str, Any]] = (),
    recoveries: Sequence[Mapping[str, Any]] = (),
    details: Mapping[str, Any] | None = None,
    questions: Sequence[Question | str] = QUESTIONS,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates a model on the test split of a data set, and returns the entries of its card.

    The model is any classifier or energy of one image in [-1, 1]. Of logits f(x),

        p(y|x) = softmax(f(x))[y],    E(x) = -logsumexp_y f(x)[y];

    an energy has no classes, so the parts about classes are left out. Nothing is selected on the test split.

    Args:
      model: ``logits(params, x) -> (K,)`` or ``energy(params, x) -> ()``, x of shape (H, W, C) in [-1, 1].
      params: Its parameters.
      dataset: K classes of images, raw as `jaxebm.data.load_dataset` gives them.
      folder: Where pictures and samples are written; it is made if needed. None writes nothing.
      settings: Settings of the evaluation; `ReportSettings()` by default.
      kernel: The sampler, for any target; by default `DEFAULT_KERNEL`, sgld of step 0.2 and noise 0.1.
      num_steps: Steps of the sampler in one update of training; long chains have multiples of this number.
      initial: Where fresh chains start; uniform over [-1, 1] by default, standard normal with a ``path``.
      buffer: The replay buffer at the end of training, or None.
      conditional: Whether the buffer's chains belong to classes.
      path: How a model that is told noise levels draws fresh chains, from noise down to its lowest level;
        ``kernel`` then serves the other chains, on the model's energy. None draws them by ``kernel``, too.
      twin_params: Parameters of the same network trained by cross-entropy alone, to compare with, or None.
      seed: Seed of all random numbers.
      records: The metrics that training logged, each with its ``step``; none where there was no training.
      recoveries: The recoveries that training logged.
      details: Further entries of the card: ``experiment``, ``config``, ``command``, ``updates``, ``seconds``.
      questions: Questions, or their names, such as ``["classes"]``; `QUESTIONS` by default.
      progress: Print each question to standard error when it is asked.

    Returns:
      A dictionary as documented in docs/card.md, of JSON's types; `write_card` writes it.

    Raises:
      TypeError: If an argument is of the wrong type.
      ValueError: If the model cannot be applied to the images, or a setting is out of range.
      FileExistsError: If the folder is a file.
      DatasetNotAvailableError: If one of ``settings.ood_sets`` is not available.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxebm.data import load_dataset
      >>> dataset = load_dataset("digits")
      >>> images, labels = dataset.rescale(dataset.train.image), dataset.train.label
      >>> prototypes = jnp.stack([jnp.mean(images[labels == y], axis=0) for y in range(10)])
      >>> def logits(params, x):
      ...     return -jnp.sum((params - x) ** 2, axis=(1, 2, 3))
      >>> card = evaluate(logits, prototypes, dataset, questions=["classes"])
      >>> round(card["accuracy"], 2)
      0.9
    """
    settings = ReportSettings() if settings is None else settings
    checks.sequence("questions", questions, (Question, str), "questions or their names")
    asked = [_named(question) for question in questions]
    _check(dataset, settings, num_steps, seed)
    for name, value in (("conditional", conditional), ("progress", progress)):
        checks.boolean(name, value)
    for name, value in (("records", records), ("recoveries", recoveries)):
        checks.sequence(name, value, Mapping, "records with a step, such as those of FitResult")
        missing = [record for record in value if "step" not in record]
        if missing:
            raise ValueError(f"{name} has {missing[0]!r}: each record needs its step.")
    details = {} if details is None else details
    checks.instance("details", details, Mapping)
    details = _as_json("details", details)
    logits = as_logits(model, params, dataset)
    if twin_params is not None:
        as_logits(model, twin_params, dataset, name="twin_params")
    if kernel is None:
        kernel = DEFAULT_KERNEL
    checks.kernel_constructor("kernel", kernel)
    checks.function("kernel", kernel, "target")
    if initial is None:
        shape = dataset.image_shape
        initial = UniformInitial(-1.0, 1.0, shape=shape) if path is None else NormalInitial(1.0, shape=shape)
    _check_initial(initial, dataset.image_shape)
    if buffer is not None:
        checks.instance("buffer", buffer, ReplayBuffer)
        if np.shape(buffer.positions)[1:] != dataset.image_shape:
            raise ValueError(
                f"buffer has positions of shape {np.shape(buffer.positions)}: (n, *{dataset.image_shape}), "
                "images of the data set, are needed."
            )
    if path is not None:
        _check_path(path, params, dataset.image_shape)
        for name, smallest in (
            ("num_steps", num_steps),
            ("settings.sample_steps", min(settings.sample_steps)),
        ):
            if smallest < path.least_steps:
                raise ValueError(
                    f"{name}={smallest}: with a path through noise levels at least {path.least_steps} are "
                    "needed."
                )
    subject = ModelUnderTest(
        logits, params, kernel, num_steps, initial, twin_params, buffer, conditional, path
    )
    folder = _checked_folder(folder)
    evaluation = Evaluation(subject, dataset, settings, seed, folder, records, recoveries)
    if settings.ood_sets and OUT_OF_DISTRIBUTION in asked:
        evaluation.once(outlier_sets)  # a missing set is reported before compilation
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {"schema": SCHEMA, "dataset": dataset.name, "seed": seed}
    started = time.monotonic()
    for number, question in enumerate(asked, start=1):
        if progress:
            done = f"{time.monotonic() - started:.0f} s"
            print(f"evaluating {number}/{len(asked)}: {question.name} ({done})", file=sys.stderr, flush=True)
        card |= question.judge(evaluation)
    card["parameters"] = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
    card["environment"] = describe_environment()
    names = [entry.name for entry in dataclasses.fields(ReportSettings)]
    card["evaluation"] = _as_json("settings", {name: getattr(settings, name) for name in names})
    return card | details


def _check_path(path: LevelPath, params: Params, image_shape: tuple[int, ...]) -> None:
    """Raises unless the path has logits of an image at a level, levels that fall, and a weight."""
    checks.instance("path", path, LevelPath)
    checks.positive_number("path.lowest", path.lowest)
    checks.positive_number("path.highest", path.highest)
    if path.lowest >= path.highest:
        raise ValueError(f"path.highest={path.highest!r}: highest must be above lowest={path.lowest!r}.")
    checks.non_negative_number("path.guidance", path.guidance)
    if path.state_clamp is not None:
        checks.interval("path.state_clamp", path.state_clamp)
    if path.num_levels is not None:
        checks.integer("path.num_levels", path.num_levels, 2)
    checks.below_two("path.step_factor", path.step_factor, "longer steps of the conditional chains diverge")
    checks.number("path.mean", path.mean)
    checks.function("path.logits_at", path.logits_at, "params", "x", "level")
    example = jax.ShapeDtypeStruct(image_shape, np.float32)
    found = jax.eval_shape(path.logits_at, params, example, jax.ShapeDtypeStruct((), np.float32))
    if len(jnp.shape(found)) != 1:
        raise ValueError(f"path.logits_at returns shape {jnp.shape(found)}: logits (K,) are needed.")


def _named(question: Question | str) -> Question:
    by_name = {known.name: known for known in QUESTIONS}
    if isinstance(question, Question):
        return question
    if question not in by_name:
        raise ValueError(f"questions has {question!r}: choose among {', '.join(by_name)}.")
    return by_name[question]


def _checked_folder(folder: Any) -> Path | None:
    if folder is None:
        return None
    checks.instance("folder", folder, (str, Path))
    if folder == "":
        raise ValueError("folder='': the path of a folder is needed.")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise FileExistsError(f"folder={folder} is a file: give a folder.")
    return Path(folder)


def _check_initial(initial: Any, image_shape: tuple[int, ...]) -> None:
    checks.function("initial", initial, "rng_key", "label")
    found = jax.eval_shape(initial, jax.random.key(0), jax.ShapeDtypeStruct((), np.int32))
    if not isinstance(found, jax.ShapeDtypeStruct) or found.shape != image_shape:
        raise ValueError(f"initial gives {found}: one image of shape {image_shape} is needed.")


def _as_json(what: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries as JSON's types: numbers and arrays of NumPy and JAX become Python's, paths become text."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray | jax.Array):
            return np.asarray(value).tolist()
        if isinstance(value, Path):
            return str(value)
        raise TypeError

    found: dict[str, Any] = {}
    for name, value in entries.items():
        try:
            found[name] = json.loads(json.dumps(value, default=plain))
        except (TypeError, ValueError):
            raise TypeError(
                f"{what}[{name!r}] is of type {type(value).__name__}: a card holds numbers, text, lists and "
                "dictionaries with text as keys."
            ) from None
    return found


def _check(dataset: Any, settings: Any, num_steps: Any, seed: Any) -> None:
    checks.instance("dataset", dataset, Dataset, "jaxebm.data.dataset_from_arrays makes one.")
    checks.instance("settings", settings, ReportSettings)
    settings.check()
    checks.positive_integer("num_steps", num_steps)
    checks.seed("seed", seed)
    if len(np.shape(dataset.train.image)) != 4:
        raise ValueError(
            f"dataset.train.image has shape {np.shape(dataset.train.image)}: (n, H, W, C) is needed."
        )
    for name in ("train", "validation", "test"):
        images, labels = getattr(dataset, name)
        if images.shape[1:] != dataset.image_shape:
            raise ValueError(
                f"dataset.{name}.image has images of shape {images.shape[1:]}: those of the training split, "
                f"{dataset.image_shape}, are needed."
            )
        checks.one_label_each(f"dataset.{name}.label", labels, len(images))
        checks.integer_labels(f"dataset.{name}.label", labels, dataset.num_classes)


def write_card(folder: str | Path, card: Card, *, questions: Sequence[Question] = QUESTIONS) -> str:
    """Writes a card as ``card.json``, ``card.md`` and ``report.html``, each atomically.

    The page contains the pictures that `evaluate` wrote into the folder; missing ones are left out.

    Args:
      folder: Where the pictures are; it is made if needed.
      card: A card, from `evaluate`.
      questions: The questions of the card.

    Returns:
      The Markdown text of ``card.md``.

    Raises:
      TypeError: If an entry is not of JSON's types, nor a number or an array.
      ValueError: If a number outside ``config`` is not finite.
      FileExistsError: If the folder is a file.
    """
    checks.instance("card", card, Mapping, "jaxebm.report.evaluate makes one.")
    place = _checked_folder(folder)
    if place is None:
        raise TypeError("folder is None: the path of a folder is needed.")
    folder, card = place, _as_json("card", card)
    _check_finite("", {name: value for name, value in card.items() if name != "config"})
    folder.mkdir(parents=True, exist_ok=True)
    text = card_text(card, questions)
    write_atomically(folder / PAGE, render_page(text, folder))
    write_atomically(folder / CARD, json.dumps(card, indent=2, allow_nan=False) + "\n")
    write_atomically(folder / TEXT, text)
    return text


def summary_text(card: Card, questions: Sequence[Question] = QUESTIONS) -> str:
    """Returns the summary of a card as plain text for a terminal: a name, its value and a comparison a line.

    Args:
      card: A card, from `evaluate`.
      questions: The questions of the card.
    """
    from tabulate import tabulate

    rows = [row for question in questions for row in question.summary(card)]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def card_text(card: Card, questions: Sequence[Question] = QUESTIONS) -> str:
    """Returns the card in Markdown: the summary, the sections of each question, and how to reproduce it.

    Args:
      card: A card, from `evaluate`.
      questions: The questions of the card.
    """
    summary = [row for question in questions for row in question.summary(card)]
    lines = [f"# Energy-based model on {escape_markdown(card['dataset'])}", ""]
    lines += [_lead(card), ""]
    if summary:
        lines += [*markdown_table(["", "this model", "for comparison"], summary), ""]
    for question in questions:
        for section in question.sections(card):
            lines += [*_section(section), ""]
    return "\n".join([*lines, *_reproduction(card), ""])


def _lead(card: Card) -> str:
    versions = card["environment"]
    facts = [f"Seed {card['seed']}"]
    if card.get("updates") is not None:
        evaluated = card.get("evaluated_update", card["updates"])
        facts.append(f"{evaluated} of {plural(card['updates'], 'update')}")
    facts.append(plural(f"{card['parameters']:,}", "parameter"))
    return (
        f"{', '.join(facts)}, on {versions['device']} with jaxebm {versions['jaxebm']} and JAX "
        f"{versions['jax']}. All figures are of the test split; all choices were made on the "
        "validation split."
    )


def _section(section: Section) -> list[str]:
    lines = [f"## {section.title}", "", section.meaning]
    for table in section.tables:
        lines += ["", f"### {table.caption}"] if table.caption else []
        lines += ["", *markdown_table(table.header, table.rows)]
    for note in section.notes:
        lines += ["", note]
    for picture in section.pictures:
        lines += ["", f"![{picture.caption}]({picture.name}.png)"]
    return lines


def _reproduction(card: Card) -> list[str]:
    """The command and the settings; the text after the language of a code block is its title on the page."""
    lines = ["## How to get it again", ""]
    if "command" in card:
        lines += ["The command trains and evaluates the model.", "", "```sh", card["command"], "```", ""]
    if "config" in card:
        lines += ["```json Configuration of the run", json.dumps(card["config"], indent=2), "```", ""]
    return [*lines, "```json Settings of the evaluation", json.dumps(card["evaluation"], indent=2), "```"]


def _check_finite(path: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            _check_finite(f"{path}.{name}", entry)
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_finite(f"{path}[{index}]", entry)
    elif isinstance(value, float) and not np.isfinite(value):
        raise ValueError(f"card{path} is {value}: a card holds finite numbers only.")
