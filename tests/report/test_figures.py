"""Pictures: whole or not at all, and nothing of matplotlib stays changed."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from jaxebm.report.figures import drawing, image_grids, labelled_rows, tile, training_curves


def test_a_picture_leaves_matplotlib_as_it_was(tmp_path: Path):
    before = dict(mpl.rcParams)
    with drawing(tmp_path / "a.png", 1, 2, figsize=(2, 1)) as (figure, axes):
        assert axes.shape == (1, 2)
        assert mpl.rcParams["font.size"] == 9
        assert not axes[0, 0].spines["top"].get_visible()
        figure.tight_layout()
    assert dict(mpl.rcParams) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert Image.open(tmp_path / "a.png").format == "PNG"


def test_a_picture_that_fails_is_not_written(tmp_path: Path):
    with pytest.raises(KeyError), drawing(tmp_path / "a.png"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_images_are_laid_side_by_side():
    images = np.arange(3.0).reshape(3, 1, 1, 1) / 4
    sheet = tile(images, columns=2)
    expected = [[1, 1, 1, 1, 1], [1, 0, 1, 0.25, 1], [1, 1, 1, 1, 1], [1, 0.5, 1, 1, 1], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(sheet[..., 0], expected)


def test_sheets_and_rows_take_grey_and_coloured_images(tmp_path: Path):
    grey, coloured = np.zeros((5, 4, 3, 1)), np.ones((5, 4, 3, 3))
    image_grids(tmp_path / "grids.png", {"a": grey, "b": coloured}, columns=2, per_row=1)
    labelled_rows(tmp_path / "rows.png", {"a": coloured, "b": coloured[:2]})
    assert {path.name for path in tmp_path.iterdir()} == {"grids.png", "rows.png"}


def test_metrics_that_nobody_logged_make_no_picture(tmp_path: Path):
    training_curves(tmp_path / "a.png", [{"step": 1, "loss": 1.0}], ["accuracy"])
    assert not list(tmp_path.iterdir())
    training_curves(tmp_path / "a.png", [{"step": 1, "loss": 1.0}, {"step": 2}], ["accuracy", "loss"], [2])
    assert (tmp_path / "a.png").is_file()
