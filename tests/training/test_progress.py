"""What a person sees."""

import io
import sys
import time

import pytest

from jaxebm.training import make_progress

METRICS = {
    "loss": 1.2345678,
    "energy_gap": -0.5,
    "gradient_norm": 3.25,
    "updates_per_second": 123456.0,
    "accuracy": 0.75,
}
SHOWN = ("loss=1.235", "energy_gap=-0.5", "gradient_norm=3.25", "updates/second=1.235e+05")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_silent(capsys):
    with make_progress(False, first=0, total=10) as progress:
        progress.update(10, METRICS)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_lines_where_there_is_no_terminal(capsys, clock):
    with make_progress(True, first=100, total=400) as progress:
        clock[0] += 5.0
        progress.update(150, METRICS)  # too soon for a line
        clock[0] += 15.0
        progress.update(200, METRICS)  # 100 updates in 20 s: 200 more take 40 s
        clock[0] += 1.0
        progress.update(210, METRICS)
        clock[0] += 1.0
        progress.update(400, {"loss": 0.5})  # the last one always
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 2
    assert lines[0].startswith("step 200/400 ")
    assert all(part in lines[0] for part in SHOWN)
    assert "accuracy" not in lines[0]
    assert lines[0].endswith("40 s left")
    assert lines[1].startswith("step 400/400  loss=0.5 ")
    assert lines[1].endswith(" 0 s left")


def test_bar_on_a_terminal(monkeypatch):
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    with make_progress(True, first=20, total=100) as progress:
        time.sleep(0.12)  # tqdm draws at most every tenth of a second
        progress.update(60, METRICS)
        time.sleep(0.12)
        progress.update(100, METRICS)
    shown = terminal.getvalue()
    assert "20/100" in shown
    assert "60/100" in shown
    assert "100/100" in shown
    assert all(part in shown for part in SHOWN)
    assert "<00:0" in shown  # tqdm's elapsed<remaining
    assert "step/s" in shown or "s/step" in shown


def test_lines_where_tqdm_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with make_progress(True, first=0, total=10) as progress:
        progress.update(10, METRICS)
    assert terminal.getvalue().startswith("step 10/10  loss=1.235")


def test_bar_closes_when_training_fails(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(RuntimeError), make_progress(True, first=0, total=10):
        raise RuntimeError
    assert terminal.getvalue().endswith("\n")  # what is printed next begins a line of its own
