"""Data sets: images, two-dimensional densities, and batches drawn inside the compiled step."""

from jaxebm.data.arrays import dataset_from_arrays
from jaxebm.data.augment import (
    gaussian_blur,
    random_blur,
    random_colour,
    random_crop,
    random_flip,
    random_translation,
    translate,
)
from jaxebm.data.datasets import DATASETS, DatasetNotAvailableError, load_dataset
from jaxebm.data.examples import Examples, Sampler, as_examples
from jaxebm.data.folder import load_folder
from jaxebm.data.images import Dataset, ImageSpace, Split
from jaxebm.data.outliers import load_outliers
from jaxebm.data.resizing import to_image_shape
from jaxebm.data.splits import stratified_holdout, stratified_split, stratified_subset
from jaxebm.data.stream import StreamState, init_stream, next_batch
from jaxebm.data.toy import (
    TOY_DENSITIES,
    ToyDensity,
    checkerboard,
    eight_gaussians,
    pinwheel,
    rings,
    spiral,
    two_moons,
)

__all__ = [
    "DATASETS",
    "TOY_DENSITIES",
    "Dataset",
    "DatasetNotAvailableError",
    "Examples",
    "ImageSpace",
    "Sampler",
    "Split",
    "StreamState",
    "ToyDensity",
    "as_examples",
    "checkerboard",
    "dataset_from_arrays",
    "eight_gaussians",
    "gaussian_blur",
    "init_stream",
    "load_dataset",
    "load_folder",
    "load_outliers",
    "next_batch",
    "pinwheel",
    "random_blur",
    "random_colour",
    "random_crop",
    "random_flip",
    "random_translation",
    "rings",
    "spiral",
    "stratified_holdout",
    "stratified_split",
    "stratified_subset",
    "to_image_shape",
    "translate",
    "two_moons",
]
