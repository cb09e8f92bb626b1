"""Nothing in a run's folder is lost without asking."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from jaxebm.training import CheckpointMismatchError, RunFolder, open_run, write_atomically
from jaxebm.training import run_folder as module
from jaxebm.training.run_folder import CONFIG, CONTENTS, METRICS, read_run

SETTINGS = {"seed": 0, "widths": (8, 8), "optimizer": {"learning_rate": 0.1, "schedule": {"floor": 0.01}}}
RESULTS = ("card.json", "card.md", "pictures/samples.png")


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def finished_run(path, settings=SETTINGS):
    """A run's folder with a checkpoint, metrics, a recovery and results."""
    run = open_run(path, settings)
    run.append_metrics({"step": 10, "loss": 0.5})
    run.append_recovery({"step": 5})
    (run.checkpoints / "10").mkdir(parents=True)
    run.claim("pictures")
    (path / "pictures").mkdir()
    for name in RESULTS:
        run.write(name, "result")
    return run


class TestOpening:
    def test_new_folder_with_its_parents(self, tmp_path):
        run = open_run(tmp_path / "a" / "b", SETTINGS)
        assert json.loads((run.path / CONFIG).read_text()) == SETTINGS | {"widths": [8, 8]}
        assert run.read_metrics() == []

    def test_empty_folder(self, tmp_path):
        assert open_run(tmp_path, SETTINGS).path == tmp_path

    @pytest.mark.parametrize("resume", [False, True])
    def test_resuming_nothing_starts_a_run(self, tmp_path, resume):
        path = tmp_path / "new"
        open_run(path, SETTINGS, resume=resume)
        open_run(path, SETTINGS, resume=True)
        assert names(path) == [CONFIG, CONTENTS, METRICS]

    def test_occupied_folder_is_refused_and_untouched(self, tmp_path):
        finished_run(tmp_path)
        before = {entry: entry.stat().st_mtime_ns for entry in tmp_path.rglob("*")}
        with pytest.raises(
            FileExistsError,
            match=r"output=.* is not empty\. Continue with resume=True, replace .*overwrite=True",
        ):
            open_run(tmp_path, SETTINGS)
        with pytest.raises(FileExistsError, match=r"not empty\. Replace the run with overwrite=True"):
            open_run(tmp_path, SETTINGS, resumable=False)
        assert before == {entry: entry.stat().st_mtime_ns for entry in tmp_path.rglob("*")}

    def test_both_flags_are_refused(self, tmp_path):
        finished_run(tmp_path)
        before = names(tmp_path)
        with pytest.raises(ValueError, match="resume=True and overwrite=True exclude each other"):
            open_run(tmp_path, SETTINGS, resume=True, overwrite=True)
        assert names(tmp_path) == before

    def test_output_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="is a file"):
            open_run(tmp_path / "file", SETTINGS, overwrite=True)
        assert (tmp_path / "file").read_text() == "mine"

    def test_unwritable_places(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        for path in (tmp_path / "file" / "run", Path("/proc/jaxebm-run")):
            with pytest.raises(PermissionError, match=f"output={path} cannot be written"):
                open_run(path, SETTINGS)

    @pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
    def test_folder_without_permission(self, tmp_path):
        tmp_path.chmod(0o500)
        try:
            for path in (tmp_path, tmp_path / "run"):
                with pytest.raises(PermissionError, match="cannot be written"):
                    open_run(path, SETTINGS)
        finally:
            tmp_path.chmod(0o700)


class TestResuming:
    def test_same_settings(self, tmp_path):
        finished_run(tmp_path)
        before = names(tmp_path)
        run = open_run(tmp_path, SETTINGS, resume=True)
        assert run.read_metrics() == [{"step": 10, "loss": 0.5}]
        assert names(tmp_path) == before

    def test_other_settings_are_listed_and_no_others(self, tmp_path):
        finished_run(tmp_path)
        other = {"seed": 1, "widths": (8, 8), "optimizer": {"schedule": {"floor": 0.5}}, "temperature": 2.0}
        with pytest.raises(CheckpointMismatchError) as caught:
            open_run(tmp_path, other, resume=True)
        message = str(caught.value)
        assert "resume=True" in message
        assert "optimizer.learning_rate: saved 0.1, now None" in message
        assert "optimizer.schedule.floor: saved 0.01, now 0.5" in message
        assert "seed: saved 0, now 1" in message
        assert "temperature: saved None, now 2.0" in message
        assert "widths" not in message
        assert json.loads((tmp_path / CONFIG).read_text())["seed"] == 0

    def test_settings_of_the_call_may_differ(self, tmp_path):
        settings = SETTINGS | {"run": {"output": "here", "epochs": 3}, "devices": {"count": 1}}
        finished_run(tmp_path, settings)
        moved = settings | {"run": {"output": "there", "epochs": 3}, "devices": {"count": 2}}
        run = open_run(tmp_path, moved, resume=True, uncompared={"run.output", "devices"})
        assert run.uncompared == {"run.output", "devices"}
        with pytest.raises(CheckpointMismatchError, match=r"\(run.output: saved 'here', now 'there'\)"):
            open_run(tmp_path, moved, resume=True, uncompared={"devices"})

    @pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"[1, 2]", b"\xff\xfe"])
    def test_corrupted_settings(self, tmp_path, content):
        finished_run(tmp_path)
        (tmp_path / CONFIG).write_bytes(content)
        with pytest.raises(CheckpointMismatchError, match=r"config.json is not a readable configuration"):
            open_run(tmp_path, SETTINGS, resume=True)
        assert (tmp_path / "card.json").exists()
        open_run(tmp_path, SETTINGS, overwrite=True)  # the way out that the message names
        assert names(tmp_path) == [CONFIG, CONTENTS, METRICS]


class TestOverwriting:
    def test_a_new_or_empty_folder_may_be_overwritten(self, tmp_path):
        open_run(tmp_path, SETTINGS, overwrite=True)
        open_run(tmp_path / "new", SETTINGS, overwrite=True)

    def test_only_what_a_run_wrote_goes(self, tmp_path):
        finished_run(tmp_path)
        (tmp_path / "subfolder").mkdir()
        own = ["notes.txt", "photo.png", "samples_best.png", "data.npz", "subfolder/samples.png"]
        for name in own:
            (tmp_path / name).write_text("mine")
        run = open_run(tmp_path, SETTINGS | {"seed": 5}, overwrite=True)
        expected = {name.split("/")[0] for name in own} | {CONFIG, METRICS, CONTENTS}
        assert names(tmp_path) == sorted(expected)
        assert all((tmp_path / name).read_text() == "mine" for name in own)
        assert run.read_metrics() == []
        assert json.loads((tmp_path / CONFIG).read_text())["seed"] == 5
        assert run.claimed() == ["checkpoints", CONFIG, METRICS]

    @pytest.mark.parametrize("moment", range(4))
    def test_a_removal_that_was_killed_is_done_again(self, tmp_path, monkeypatch, moment):
        """The folder is still known as a run, and by what it wrote."""
        finished_run(tmp_path)
        (tmp_path / "notes.txt").write_text("mine")
        removals = []

        def act_or_die(remove):
            def act(path, *args, **kwargs):
                removals.append(path)
                if len(removals) > moment:
                    raise KeyboardInterrupt
                return remove(path, *args, **kwargs)

            return act

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", act_or_die(shutil.rmtree))
            patch.setattr(module.os, "replace", act_or_die(os.replace))
            with pytest.raises(KeyboardInterrupt):
                open_run(tmp_path, {"seed": 5}, overwrite=True)
        open_run(tmp_path, {"seed": 5}, overwrite=True)
        assert names(tmp_path) == [CONFIG, CONTENTS, METRICS, "notes.txt"]
        assert json.loads((tmp_path / CONFIG).read_text()) == {"seed": 5}

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path):
        """Not even one with a config.json and pictures: many programs write those."""
        for name in (CONFIG, METRICS, "samples.png", "thesis.tex"):
            (tmp_path / name).write_text("{}")
        with pytest.raises(FileExistsError, match=r"overwrite=True: .* no run .*contents\.json"):
            open_run(tmp_path, SETTINGS, overwrite=True)
        assert names(tmp_path) == sorted([CONFIG, METRICS, "samples.png", "thesis.tex"])

    def test_settings_that_cannot_be_written_cost_nothing(self, tmp_path):
        finished_run(tmp_path)
        before = names(tmp_path)
        with pytest.raises(ValueError, match="JSON"):
            open_run(tmp_path, {"learning_rate": float("nan")}, overwrite=True)
        with pytest.raises(TypeError):
            open_run(tmp_path, {"optimizer": object()}, overwrite=True)
        assert names(tmp_path) == before


class TestClaiming:
    def test_claims_are_kept_and_written_once(self, tmp_path):
        run = open_run(tmp_path, SETTINGS)
        assert run.claimed() == ["checkpoints", CONFIG, METRICS]
        run.claim("samples.png", "evaluation/card.json")
        written = (tmp_path / CONTENTS).stat().st_mtime_ns
        run.claim("samples.png")
        run.claim()
        assert (tmp_path / CONTENTS).stat().st_mtime_ns == written
        expected = ["checkpoints", CONFIG, "evaluation/card.json", METRICS, "samples.png"]
        assert open_run(tmp_path, SETTINGS, resume=True).claimed() == expected
        assert RunFolder(tmp_path).claimed() == expected

    def test_a_name_is_recorded_before_its_file_is_written(self, tmp_path, monkeypatch):
        """A kill in between costs nothing: the file is known, and there is none."""
        run, written = open_run(tmp_path, SETTINGS), []

        def killed(path, content):
            if path.name != CONTENTS:
                written.append(path.name)
                raise KeyboardInterrupt
            write_atomically(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_atomically", killed)
            for name, write in (
                ("card.json", lambda: run.write_json("card.json", {})),
                ("card.md", lambda: run.write("card.md", "text")),
            ):
                with pytest.raises(KeyboardInterrupt):
                    write()
                assert name in run.claimed()
                assert not (tmp_path / name).exists()
        assert written == ["card.json", "card.md"]
        assert run.file("samples.png") == tmp_path / "samples.png"
        assert "samples.png" in run.claimed()
        open_run(tmp_path, SETTINGS, overwrite=True)

    def test_a_claim_cut_short_leaves_the_record_before_it(self, tmp_path, monkeypatch):
        run = open_run(tmp_path, SETTINGS)

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                run.claim("samples.png")
        assert RunFolder(tmp_path).claimed() == ["checkpoints", CONFIG, METRICS]

    @pytest.mark.parametrize("name", ["/etc/passwd", "..", "../other", "a/../../other", "", ".", 3, None])
    def test_nothing_outside_the_folder(self, tmp_path, name):
        """Neither claimed, nor removed where somebody has written it into the record."""
        path, other = tmp_path / "run", tmp_path / "other"
        run = open_run(path, SETTINGS)
        other.write_text("mine")
        before = (path / CONTENTS).read_bytes()
        with pytest.raises(ValueError, match="not the name of a file or folder inside"):
            run.claim("fine.png", name)
        assert (path / CONTENTS).read_bytes() == before
        (path / CONTENTS).write_text(json.dumps([METRICS, name]))
        with pytest.raises(FileExistsError, match=r"contents\.json.* cannot be used .*choose another output"):
            open_run(path, SETTINGS, overwrite=True)
        assert other.read_text() == "mine"
        assert names(path) == [CONFIG, CONTENTS, METRICS]

    def test_an_absolute_name_is_refused_even_of_the_folder_itself(self, tmp_path):
        with pytest.raises(ValueError, match="not the name"):
            open_run(tmp_path, SETTINGS).claim(str(tmp_path / "a.png"))

    def test_links_are_not_followed(self, tmp_path):
        path, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
        run = open_run(path, SETTINGS)
        elsewhere.mkdir()
        (elsewhere / "a.txt").write_text("mine")
        run.claim("evaluation")
        (path / "evaluation").symlink_to(elsewhere)
        with pytest.raises(ValueError, match="not the name"):
            run.claim("evaluation/a.txt")
        open_run(path, SETTINGS, overwrite=True)
        assert names(path) == [CONFIG, CONTENTS, METRICS]  # the link, and not what it leads to
        assert (elsewhere / "a.txt").read_text() == "mine"

    @pytest.mark.parametrize("content", [b"", b'["a"', b'{"a": 1}', b"\xff\xfe"])
    def test_a_record_that_cannot_be_read_is_not_guessed(self, tmp_path, content):
        finished_run(tmp_path)
        (tmp_path / CONTENTS).write_bytes(content)
        before = names(tmp_path)
        with pytest.raises(FileExistsError, match=r"contents\.json.* cannot be used"):
            open_run(tmp_path, SETTINGS, overwrite=True)
        assert names(tmp_path) == before


class TestReading:
    def test_a_run_stopped_midway(self, tmp_path):
        finished_run(tmp_path)
        before = {entry: entry.stat().st_mtime_ns for entry in tmp_path.rglob("*")}
        run = read_run(str(tmp_path))
        assert run.config == SETTINGS | {"widths": [8, 8]}
        assert run.read_metrics() == [{"step": 10, "loss": 0.5}]
        assert run.checkpoints == tmp_path / "checkpoints"
        assert before == {entry: entry.stat().st_mtime_ns for entry in tmp_path.rglob("*")}

    def test_what_is_no_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere holds no run"):
            read_run(tmp_path / "nowhere")
        run = open_run(tmp_path, SETTINGS)
        with pytest.raises(FileNotFoundError, match="a run without a checkpoint yet"):
            read_run(tmp_path)
        (run.checkpoints / "10.orbax-checkpoint-tmp").mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match="a run without a checkpoint"):
            read_run(tmp_path)

    @pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"[1, 2]", b"\xff\xfe"])
    def test_corrupted_settings(self, tmp_path, content):
        finished_run(tmp_path)
        (tmp_path / CONFIG).write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json is not a readable configuration"):
            read_run(tmp_path)


class TestMetrics:
    def test_lines_are_appended(self, tmp_path):
        run = open_run(tmp_path, SETTINGS)
        records = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
        for record in records:
            run.append_metrics(record)
        assert run.read_metrics() == records  # repr of a float is read back exactly
        assert open_run(tmp_path, SETTINGS, resume=True).read_metrics() == records

    @pytest.mark.parametrize("cut", ["{", '{"step": 30, "lo', '{"step": 30, "loss": 0.5'])
    def test_a_line_cut_short_is_dropped(self, tmp_path, cut):
        run = open_run(tmp_path, SETTINGS)
        for step in (10, 20):
            run.append_metrics({"step": step})
        with (tmp_path / METRICS).open("a") as file:
            file.write(cut)
        assert run.read_metrics() == [{"step": 10}, {"step": 20}]
        run.truncate_metrics(20)
        run.append_metrics({"step": 30})
        assert (tmp_path / METRICS).read_text() == '{"step": 10}\n{"step": 20}\n{"step": 30}\n'

    def test_records_after_the_checkpoint_are_dropped(self, tmp_path):
        run = open_run(tmp_path, SETTINGS)
        for step in (10, 20, 30):
            run.append_metrics({"step": step})
        run.truncate_metrics(20)
        assert [record["step"] for record in run.read_metrics()] == [10, 20]
        run.truncate_metrics(0)
        assert run.read_metrics() == []

    def test_json_refuses_numbers_that_json_has_not(self, tmp_path):
        run = open_run(tmp_path, SETTINGS)
        run.write_json("card.json", {"a": [1, 2]})
        with pytest.raises(ValueError, match="JSON"):
            run.write_json("card.json", {"a": float("inf")})
        assert json.loads((tmp_path / "card.json").read_text()) == {"a": [1, 2]}


class TestWritingAtomically:
    def test_text_and_bytes(self, tmp_path):
        write_atomically(tmp_path / "text", "Grüße")
        write_atomically(str(tmp_path / "bytes"), b"\x00\xff")
        assert (tmp_path / "text").read_text(encoding="utf-8") == "Grüße"
        assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
        assert names(tmp_path) == ["bytes", "text"]

    @pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
    def test_permissions_follow_the_umask(self, tmp_path, mask):
        before = os.umask(mask)
        try:
            write_atomically(tmp_path / "file", "x")
            assert os.umask(mask) == mask  # left as it was
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask

    @pytest.mark.parametrize("failing", ["fsync", "replace"])
    def test_a_failure_leaves_the_old_file_and_no_litter(self, tmp_path, monkeypatch, failing):
        write_atomically(tmp_path / "file", "old")

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr(os, failing, fail)
        with pytest.raises(OSError, match="disk full"):
            write_atomically(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "old"
        assert names(tmp_path) == ["file"]


def test_checkpoints_without_a_configuration_are_not_resumed(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointMismatchError, match=r"no config\.json"):
        open_run(tmp_path, {"seed": 0}, resume=True)
    assert not (tmp_path / "config.json").exists()


class TestRecoveries:
    def test_lines_are_appended_and_read(self, tmp_path):
        run = open_run(tmp_path, SETTINGS)
        assert run.read_recoveries() == []
        assert not (tmp_path / "recoveries.jsonl").exists()  # a run that never recovered has none
        records = [{"step": step, "faults": ["energy_gap"]} for step in (7, 40, 41)]
        for record in records:
            run.append_recovery(record)
        assert open_run(tmp_path, SETTINGS, resume=True).read_recoveries() == records
        with (tmp_path / "recoveries.jsonl").open("a") as file:
            file.write('{"step": 9')  # a kill
        assert run.read_recoveries() == records

    @pytest.mark.parametrize("count", [0, 1, 3, 9])
    def test_those_after_the_checkpoint_are_dropped(self, tmp_path, count):
        run = open_run(tmp_path, SETTINGS)
        run.truncate_recoveries(count)
        for step in (1, 2, 3):
            run.append_recovery({"step": step})
        run.truncate_recoveries(count)
        assert [record["step"] for record in run.read_recoveries()] == [1, 2, 3][:count]
        assert (tmp_path / "recoveries.jsonl").exists() == (count > 0)

    def test_overwriting_removes_them(self, tmp_path):
        run = open_run(tmp_path, SETTINGS)
        run.append_recovery({"step": 1})
        assert open_run(tmp_path, SETTINGS, overwrite=True).read_recoveries() == []
        assert names(tmp_path) == [CONFIG, CONTENTS, METRICS]


def test_the_configuration_is_at_hand_as_it_would_be_read_back(tmp_path):
    assert open_run(tmp_path, SETTINGS).config == SETTINGS | {"widths": [8, 8]}
    assert open_run(tmp_path, SETTINGS, resume=True).config == json.loads((tmp_path / CONFIG).read_text())
