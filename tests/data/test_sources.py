"""The names of a user's own data, with their options."""

from pathlib import Path

import pytest

from jaxebm.data import load_dataset
from jaxebm.data.datasets import is_loadable
from jaxebm.data.sources import Source, as_source, suggested_source


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("npz:mine.npz", Source("npz", "mine.npz", {})),
        ("npz:a:b?.npz", Source("npz", "a:b?.npz", {})),
        ("npz:mine.npz?value_range=0,255", Source("npz", "mine.npz", {"value_range": (0.0, 255.0)})),
        ("folder:/a b/c?value_range=-1,1.5", Source("folder", "/a b/c", {"value_range": (-1.0, 1.5)})),
        ("folder:cats?size=28", Source("folder", "cats", {"size": (28, 28)})),
        (
            "folder:who?/cats?size=28x32&channels=1",
            Source("folder", "who?/cats", {"size": (28, 32), "channels": 1}),
        ),
        ("tfds:emnist/letters?channels=3", Source("tfds", "emnist/letters", {"channels": 3})),
        ("digits", None),
        ("npz:", None),
        ("zip:mine", None),
    ],
)
def test_parts_of_a_name(name: str, expected: Source | None) -> None:
    assert as_source(name) == expected
    assert is_loadable(name) == (expected is not None or name == "digits")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:cats?sise=28", "'sise' is no option; folder: takes size and channels and value_range"),
        ("npz:mine.npz?size=28", "'size' is no option; npz: takes value_range"),
        ("folder:cats?size=big", "size=big is no size; write size=28, or size=28x32, height x width"),
        ("folder:cats?size=28&size=32", "size is there twice"),
        ("folder:cats?channels=2", "channels=2 is neither 1 nor 3"),
        ("npz:mine.npz?value_range=255", "value_range=255 is no range; write value_range=0,255"),
    ],
)
def test_unfit_options_are_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(name)
    assert repr(name) in str(caught.value)


def test_what_was_perhaps_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert suggested_source("cats") == suggested_source("") == ""
    (tmp_path / "cats").mkdir()
    assert suggested_source("cats") == " Did you mean folder:cats?"
    assert suggested_source("mine.npz") == " Did you mean npz:mine.npz?"
    assert suggested_source("./cats") == " Did you mean folder:./cats?"
    assert suggested_source("mnits") == ""
    with pytest.raises(ValueError, match=r"npz:PATH, folder:PATH or tfds:NAME\. Did you mean folder:a/b\?"):
        load_dataset("a/b")
