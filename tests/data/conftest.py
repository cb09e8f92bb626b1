"""What the tests of data sets share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxebm.data import Dataset, DatasetNotAvailableError, Split, load_dataset


@pytest.fixture(autouse=True)
def _no_writing_to_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAXEBM_CACHE_DIR", str(tmp_path / "default_cache"))


def _parts_of(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.validation, dataset.test


@pytest.fixture(scope="session")
def parts_of() -> Callable[[Dataset], tuple[Split, Split, Split]]:
    """``parts_of(dataset)``: train, validation and test."""
    return _parts_of


def _one_line_of(name: str, **options: Any) -> str:
    with pytest.raises(DatasetNotAvailableError) as caught:
        load_dataset(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="session")
def one_line_of() -> Callable[..., str]:
    """``one_line_of(name, **options)``: why the data set cannot be had; fails unless that is one line."""
    return _one_line_of
