"""The examples of README.md and docs/ write their runs into a temporary folder."""

import pytest


@pytest.fixture(autouse=True)
def _temporary_folder(request, monkeypatch, tmp_path_factory):
    if request.node.path.suffix == ".md":
        monkeypatch.chdir(tmp_path_factory.mktemp("example"))
