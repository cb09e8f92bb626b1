"""What the card says to a reader, section by section: card_text.py and card_html.py write the same ones."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from card_classes import CLASS_MEASURES
from card_samples import SAMPLE_MEASURES

__all__ = ["NORMS", "Card", "Picture", "Section", "Table", "sections_of"]

Card = Mapping[str, Any]
SCORES = {
    "log_density": "log p(x)",
    "confidence": "max p(y|x)",
    "gradient_norm": "-||d log p/dx||",
    "joint_maximum": "max log p(x, y)",
    "typicality": "typicality",
}
"""The scores in the order and under the names in which they are shown."""
NORMS = {"linf": "L-infinity", "l2": "L2"}
FEATURE_MEASURES = ("precision", "recall", "density", "coverage", "frechet_distance")


class Table(NamedTuple):
    """Cells as text, the first column being names."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG beside the card, without its ending, and what it shows."""

    name: str
    caption: str


class Section(NamedTuple):
    """A question that the evaluation answers.

    Attributes:
      title: the question's name.
      meaning: how to read the answer.
      notes: what this run says beside numbers.
      tables: the numbers.
      pictures: the pictures.
    """

    title: str
    meaning: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def sections_of(card: Card) -> list[Section]:
    """Returns the sections that a card has something to say in."""
    makers = (
        *(_classes, _robustness, _likelihood, _strangeness, _samples, _long_run),
        *(_inpainting, _denoising, _composition, _training),
    )
    return [section for make in makers if (section := make(card)) is not None]


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"


def _refinement(steps: str) -> str:
    return "JEM alone" if steps == "0" else f"JEM after {steps} sampler steps"


def _row(name: str, *values: Any) -> list[str]:
    return [name, *(_number(value) for value in values)]


def _classes(card: Card) -> Section | None:
    if card["accuracy"] is None:
        return None
    scaled: Mapping[str, Any] = card["temperature_scaled"]
    columns: dict[str, Mapping[str, Any]] = {"JEM": card}
    notes = []
    for name, title in (("model", "JEM"), ("twin", "cross-entropy twin")):
        if scaled[name] is None:  # no twin
            continue
        if name == "twin":
            columns[title] = card["twin"]
        if scaled[name]["temperature"] is None:
            notes.append(f"No temperature fits {title}: {scaled[name]['reason']}")
        else:
            columns[f"{title}, T = {scaled[name]['temperature']:.3g}"] = scaled[name]
    rows = [
        _row(label, *(column[name] for column in columns.values())) for name, label in CLASS_MEASURES.items()
    ]
    return Section(
        "Classes",
        "p(y|x) = softmax f(x) on the test split. ECE is the mean distance between how sure the classifier "
        "is and how often it is right. The temperature T is fitted on the validation split: what a "
        "classifier could have had without any generative training.",
        notes,
        [Table("Test split", ["", *columns], rows)],
        [Picture("reliability", "Accuracy in each bin of confidence; on the dashed line it keeps its word.")],
    )


def _robustness(card: Card) -> Section | None:
    found = card["robustness"]
    if found is None:
        return None
    tables = []
    for norm, name in NORMS.items():
        entry = found[norm]
        if entry is None:
            continue
        rows = [_row(_refinement(steps), *curve) for steps, curve in entry["refined"].items()]
        for kind in ("adaptive", "transfer"):
            rows += [_row(f"of which {kind}, {steps} steps", *curve) for steps, curve in entry[kind].items()]
        if entry["twin"] is not None:
            rows.append(_row("cross-entropy twin", *entry["twin"]))
        header = ["accuracy at radius", *(f"{radius:g}" for radius in entry["radii"])]
        tables.append(Table(f"{name} attacks", header, rows))
    return Section(
        "Robustness",
        f"Projected gradient descent, {found['steps']} steps, {found['restarts']} random starts, on the "
        f"first {found['images']} test images. Radii are of pixels in [-1, 1]: 8/255 of pixels in [0, 1] is "
        "16/255 = 0.0627 here. Refinement runs the sampler from the input before the classifier looks. The "
        "adaptive attack differentiates through it and averages over "
        f"{found['expectation_samples']} draws of its noise; the transferred one fools the classifier alone. "
        "A curve is the lower of the two, and an upper bound: a stronger attack may find more.",
        tables=tables,
        pictures=[Picture("robustness", "Accuracy that is left at each radius; higher is better.")],
    )


def _likelihood(card: Card) -> Section | None:
    likelihood = card["likelihood"]
    if likelihood is None:
        return None

    def between(entry: Mapping[str, float], kind: str) -> str:
        return f"{entry['low']:{kind}} to {entry['high']:{kind}}"

    rows = []
    for temperature, entry in likelihood["by_temperature"].items():
        kinds = {"bits_per_dimension": ".3f", "nats": ".2f", "log_partition": ".2f"}
        bounds = [between(entry[name], kind) for name, kind in kinds.items()]
        if not entry["consistent"]:
            bounds[0] += " (the bounds contradict each other: not converged)"
        weights = entry["effective_sample_size"]
        of_chains = f"{weights['forward']:.0f} and {weights['reverse']:.0f} of {likelihood['chains']}"
        settling = "{mean:+.2f} ({standard_error:.2f})".format(**entry["settling"])
        rows.append(_row(temperature, *bounds, of_chains, settling))
    header = ["T", "bits per dimension", "nats an image", "log Z", "effective weights", "settling, nats (se)"]
    return Section(
        "Likelihood",
        "Test images under exp(-E / T), on the box of their cells. Annealed importance sampling over "
        f"{likelihood['steps']} temperatures, forward and reverse; uniform noise costs "
        f"{likelihood['uniform_bits_per_dimension']:.3f} bits. Settling: by how much log p rose in the "
        "chains that the reverse run starts from; far from 0, the upper bound of log Z means little.",
        tables=[Table("An interval, not a number", header, rows)],
    )


def _strangeness(card: Card) -> Section | None:
    found = card["ood"]
    scores = [name for name in SCORES if name in found]
    sets = list(card["ood_sets"])
    header = ["score", *(name.replace("_", " ") for name in sets)]
    kinds = {
        "": "AUROC: the chance that a test image scores above a strange one; 0.5 is blind",
        "_auprc": "AUPR: area under precision-recall, test images positive",
        "_fpr95": "FPR95: strange images accepted where 95% of test images are; lower is better",
    }
    tables = [
        Table(
            caption,
            header,
            [_row(SCORES[name], *(found[name + kind][key] for key in sets)) for name in scores],
        )
        for kind, caption in kinds.items()
    ]
    return Section(
        "Out of distribution",
        "Each score is higher for what looks more like the data. log p(x) is known up to log Z, and so "
        "equals minus the energy. Typicality is minus the distance from the training images' mean log p(x). "
        "Generative models often find simple images likelier than their own data: below 0.5 the score points "
        "the wrong way.",
        tables=tables,
        pictures=[
            Picture("ood", "Scores of test images (filled) and of the other sets, with the AUROC."),
            Picture("energies", "Energies of all sets on one axis; low is likely."),
        ],
    )


def _samples(card: Card) -> Section | None:
    samples = card["samples"]
    chains: dict[str, Mapping[str, Any]] = {}
    for kind, name in (("fresh", "fresh, by class"), ("unconditional", "fresh, p(x)")):
        if samples[kind] is not None:
            chains |= {f"{name}, {steps} steps": one for steps, one in samples[kind]["by_steps"].items()}
    if samples["buffer"] is not None:
        chains["replay buffer (training chains)"] = samples["buffer"]
    chains["test images, for comparison"] = samples["test"]
    header = ["chains", "count", *(name.replace("_", " ") for name in SAMPLE_MEASURES)]
    rows = [
        _row(name, str(entry["count"]), *(entry.get(measure) for measure in SAMPLE_MEASURES))
        for name, entry in chains.items()
    ]
    tables = [Table("Against training images (of their class), pixel space, k = 5", header, rows)]
    if samples["judge"] is not None:
        header = ["chains", *(name.replace("_", " ") for name in FEATURE_MEASURES)]
        rows = [
            _row(name, *(entry["features"].get(measure) for measure in FEATURE_MEASURES))
            for name, entry in chains.items()
        ]
        tables.append(Table("In the features of an independent network", header, rows))
    near = card["nearest_training_image"]
    notes = [
        f"Median distance to the nearest training image: fresh samples {near['fresh_median_distance']:.3g}, "
        f"test images {near['test_median_distance']:.3g}; far smaller for samples would mean copying."
    ]
    if samples["judge"] is not None:
        notes.append(f"The independent network: {samples['judge']}. Not comparable with published FID.")
    if samples["exported"] is not None:
        exported = samples["exported"]
        notes.append(f"{exported['count']} files in {exported['folder']}/: {exported['rule']}.")
    return Section(
        "Samples",
        "Fresh chains start from noise and never trained the model; the replay buffer's chains did. "
        "Precision and density: are samples like data? Recall and coverage: is all of the data among them? "
        "Class agreement: an independent classifier sees the class that was asked for.",
        notes,
        tables,
        [
            Picture("samples", "The first samples of each kind, a row a class; none is selected."),
            Picture("neighbours", "Fresh samples, each with its nearest training image on its right."),
        ],
    )


def _long_run(card: Card) -> Section | None:
    found = card["long_run"]
    if found is None:
        return None
    measures = ("energy", "saturated", "in_range", "precision", "coverage")
    rows = [
        _row(f"{factor} x training", str(entry["steps"]), *(entry[name] for name in measures))
        for factor, entry in found["by_factor"].items()
    ]
    header = [
        "chains of p(x)",
        "steps",
        "mean energy",
        "pixels at the edge",
        "in range",
        "precision",
        "coverage",
    ]
    return Section(
        "Long chains",
        f"{found['chains']} new chains, run for many times the length of one update of training. A converged "
        f"model keeps them on the data, where test images have energy {found['test_energy']:.4g}; chains "
        "that sink far below it, or that saturate, say that the model's own density is elsewhere.",
        tables=[Table("", header, rows)],
        pictures=[Picture("long_run", "The same chains at each length.")],
    )


def _inpainting(card: Card) -> Section | None:
    if card["tasks"] is None:
        return None
    entry = card["tasks"]["inpainting"]
    rows = [
        _row("one chain", entry["mse"], entry["class_kept"]),
        _row(f"mean of {entry['draws']} chains", entry["mse_of_mean"], None),
        _row("mean training image", entry["mse_mean_fill"], entry["class_kept_mean_fill"]),
        _row("whole image", 0.0, entry["class_kept_whole"]),
    ]
    return Section(
        "Inpainting",
        f"The lower half of {card['tasks']['images']} test images is hidden; chains of p(x) given the upper "
        f"half fill it in, {card['tasks']['steps']} steps from noise. Class kept: an independent classifier "
        "still sees the image's class.",
        tables=[Table("Of the hidden half", ["filled in by", "mean squared error", "class kept"], rows)],
        pictures=[Picture("inpainting", "The first test images; one chain each, none is selected.")],
    )


def _denoising(card: Card) -> Section | None:
    if card["tasks"] is None:
        return None
    entry = card["tasks"]["denoising"]
    steps = list(entry["mse"])
    header = ["sampler steps", *steps]
    rows = [_row("mean squared error", *entry["mse"].values())]
    if entry["accuracy"] is not None:
        rows.append(_row("accuracy", *entry["accuracy"].values()))
    tables = [Table(f"Gaussian noise of standard deviation {entry['noise']:g}", header, rows)]
    return Section(
        "Denoising",
        "The sampler starts from a noisy image and climbs log p(x), with noise of its own. Accuracy is that "
        "of the model's own classifier.",
        tables=tables,
        pictures=[Picture("denoising", "The first test images, with noise, and after the sampler.")],
    )


def _composition(card: Card) -> Section | None:
    entry = (card["tasks"] or {}).get("composition")
    if entry is None:
        return None
    this, that = entry["this_class"], entry["that_class"]
    titles = {
        "this": this,
        "and": f"{this} AND {that}",
        "or": f"{this} OR {that}",
        "not": f"{this} AND NOT {that}",
    }
    rows = [
        _row(
            title,
            *(
                entry[name][f"{kind}_{which}"]
                for kind in ("share", "probability")
                for which in ("this", "that")
            ),
        )
        for name, title in titles.items()
    ]
    header = ["energy", f"judged {this}", f"judged {that}", f"p({this}|x)", f"p({that}|x)"]
    return Section(
        "Composition",
        "Energies add up: AND is E(x, a) + E(x, b), OR is -logsumexp of both, AND NOT is "
        "E(x, a) - log(1 - p(b|x)). The two classes are those whose mean images are closest. Judged: by "
        "an independent classifier; p(y|x): by the model itself, in the mean.",
        tables=[Table("Shares of the samples", header, rows)],
        pictures=[Picture("composition", "The first chains of each composed energy.")],
    )


def _training(card: Card) -> Section | None:
    pictures = [Picture("training", "Metrics of training; dotted lines are recoveries.")]
    if card["telemetry"]:
        pictures.append(Picture("telemetry", "Looks at the chains while training, on validation images."))
    told = ["No update was sick: the run never had to recover."]
    if card["recoveries"]:
        told = [f"The run recovered {len(card['recoveries'])} times (lines in the pictures)."]
        told += [
            f"{one['said']}: back to step {one['back_to']} with {one['remedy']}; "
            f"in force: {one['in_force'] or 'nothing else'}."
            for one in card["recoveries"]
        ]
    if not card["config"].get("recovery", True):
        told = ["Recovery was off (`--no-recovery`)."]
    return Section(
        "Training",
        "The energy gap, E(data) - E(samples), should move about 0: far below it samples are too easy to "
        "tell from data, far above it they are likelier than data.",
        told,
        pictures=pictures,
    )
