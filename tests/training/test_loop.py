"""The loop: however a run ends, going on gives the run that never stopped, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.objectives import contrastive_divergence, likelihood
from jaxebm.samplers import sgld
from jaxebm.training import (
    DEFAULT_RECOVERY,
    Checkpointing,
    CheckpointMismatchError,
    Checkpoints,
    Dispatch,
    DivergenceError,
    Learner,
    Report,
    RunFolder,
    TrainingInterrupted,
    fit,
    learner,
    loop,
    open_run,
)

pytestmark = pytest.mark.usefixtures("cheap_compilation", "compile_once")

TIMES = ("seconds", "updates_per_second")


def timeless(records):
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


class Reference:
    """A run that never stopped, and the means to make others that do."""

    def __init__(self, tiny, folder, bits):
        self.problem = dict(zip(("learn", "params", "data"), tiny["problem"](), strict=True))
        self.train = partial(tiny["train"], **self.problem)
        self.key = tiny["KEY"]
        self.config = tiny["CONFIG"]
        self.num_steps = tiny["NUM_STEPS"]
        self.bits = bits
        self.final = bits(self.train(folder).state)
        self.records = timeless(RunFolder(folder).read_metrics())

    def assert_same(self, folder, result):
        assert self.bits(result.state) == self.final
        records = RunFolder(folder).read_metrics()
        assert timeless(records) == self.records
        assert result.history == tuple(records)
        assert saved_steps(folder)[-1] == self.num_steps
        with Checkpoints(folder / "checkpoints") as checkpoints:
            restored = checkpoints.restore(self.problem["learn"].init(self.key, *self.inputs))
            assert self.bits(restored) == self.final

    @property
    def inputs(self):
        return self.problem["params"], self.problem["data"]


def saved_steps(folder):
    entries = (folder / "checkpoints").iterdir()
    return sorted(int(entry.name) for entry in entries if entry.name.isdigit())


@pytest.fixture(scope="module")
def reference(tiny, bits, tmp_path_factory, compile_once):
    return Reference(tiny, tmp_path_factory.mktemp("reference"), bits)


@pytest.fixture
def after_record(monkeypatch):
    """``after_record(step, action)``: does something right after the record of a step was written."""

    def install(step, action):
        append = RunFolder.append_metrics

        def append_and_act(self, record):
            append(self, record)
            if record["step"] == step:
                monkeypatch.setattr(RunFolder, "append_metrics", append)
                action()

        monkeypatch.setattr(RunFolder, "append_metrics", append_and_act)

    return install


def energy(params, x):
    return 0.5 * jnp.sum((x - params) ** 2)


def quadratic(num_examples=16):
    """A learner of E(x; t) = |x - t|^2 / 2 of which a batch is all of the data."""
    chains = contrastive_divergence(partial(sgld, step_size=0.5), num_steps=4)
    return learner(likelihood(energy), optimizer=optax.sgd(0.1), negatives=chains, batch_size=num_examples)


QUADRATIC = quadratic()
DATA = 3.0 + jax.random.normal(jax.random.key(5), (16, 1))
KEY = jax.random.key(3)


def train(learn=QUADRATIC, data=DATA, rng_key=KEY, **options):
    return fit(rng_key, learn, jnp.zeros(1), data, **({"num_steps": 4, "steps_per_dispatch": 4} | options))


NEVER = Learner(lambda *_: pytest.fail("begun"), lambda *_: pytest.fail("traced"))


class TestNumbers:
    def test_the_reference_run(self, reference, tmp_path):
        assert [record["step"] for record in reference.records] == [4, 8, 12, 16, 20, 24, 28, 32, 33]
        assert {"loss", "energy_gap", "gradient_norm", "update_norm"} <= reference.records[0].keys()
        assert all(np.isfinite(list(record.values())).all() for record in reference.records)
        # And the same seed again gives the same run.
        reference.assert_same(tmp_path, reference.train(tmp_path))

    def test_contrastive_divergence_finds_the_mean_of_a_gaussian(self):
        """Within 5 standard deviations of its own stationary law.

        A chain of k steps h from x ends at t + q (x - t), q = (1 - h)^k, plus noise of variance
        v = 2 h (1 - q^2) / (1 - (1 - h)^2). So t - mean goes as an AR(1) process with factor
        a = 1 - r (1 - q) and noise r sqrt(v / n).
        """
        data = 3.0 + 2.0 * jax.random.normal(jax.random.key(5), (512, 1))
        result = train(quadratic(512), data, num_steps=300, steps_per_dispatch=100)
        h, q, rate = 0.5, 0.5**4, 0.1
        v = 2 * h * (1 - q**2) / (1 - (1 - h) ** 2)
        a = 1 - rate * (1 - q)
        sigma = rate * np.sqrt(v / 512 / (1 - a**2))
        assert sigma < 0.02  # the bound says something: the data's own mean is 4 standard errors of 0.09 wide
        assert abs(float(result.state.params[0]) - float(jnp.mean(data))) < 5 * sigma

    def test_result_and_rate(self, tmp_path):
        run = open_run(tmp_path, {})
        result = train(num_steps=9, checkpointing=Checkpointing(run))
        assert int(result.state.step) == 9
        assert 0 < result.compile_seconds <= result.seconds
        records = run.read_metrics()
        assert all(record["updates_per_second"] > 0 for record in records)
        seconds = [record["seconds"] for record in records]
        assert seconds == sorted(seconds)
        # A dispatch cannot take longer than the time since the one before.
        for before, record in zip([0.0, *seconds], records, strict=False):
            count = record["step"] % 4 or 4
            assert record["updates_per_second"] >= count / (record["seconds"] - before) * 0.99

    def test_without_a_run_nothing_is_written(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert int(train().state.step) == 4
        assert list(tmp_path.iterdir()) == []

    def test_a_finished_run_is_only_read(self, reference, tmp_path):
        reference.train(tmp_path)
        written = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
        reference.assert_same(tmp_path, reference.train(tmp_path))
        assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}

    @pytest.mark.parametrize("checkpoint_every", [1, 4, 10, 1000])
    def test_checkpoints_come_as_often_as_asked(self, tmp_path, monkeypatch, checkpoint_every):
        written = []
        monkeypatch.setattr(Checkpoints, "save", lambda self, state, _: written.append(int(state.step)))
        train(num_steps=33, checkpointing=Checkpointing(open_run(tmp_path, {}), every=checkpoint_every))
        expected = {1: [4, 8, 12, 16, 20, 24, 28, 32, 33], 10: [12, 20, 32, 33], 1000: [33]}
        assert written == expected.get(checkpoint_every, expected[1])

    @pytest.mark.parametrize("name", ["num_steps", "steps_per_dispatch", "observe_every"])
    @pytest.mark.parametrize("value", [0, -5, 2.5, True])
    def test_bad_counts_are_refused(self, name, value):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            train(NEVER, **{name: value})

    @pytest.mark.parametrize(
        ("options", "kind", "named"),
        [
            ({"rng_key": 0}, TypeError, r"rng_key=0: .*jax\.random\.key"),
            ({"learn": quadratic}, TypeError, "learner is a function: a Learner is needed"),
            ({"recovery": 3}, TypeError, "recovery is a int"),
            (
                {"checkpointing": RunFolder(Path("run"))},
                TypeError,
                r"checkpointing is a RunFolder: Checkpointing\(",
            ),
            ({"observe": 3}, TypeError, r"observe must be a function, called as observe\(state\)"),
            ({"observe": lambda state, other: {}}, TypeError, "observe"),
            ({"on_metrics": []}, TypeError, r"on_metrics must be a function, called as on_metrics\(record\)"),
            ({"progress": "bar"}, TypeError, "progress='bar'"),
            (
                {"checkpointing": Checkpointing(RunFolder(Path("run")), best_metric="fid")},
                ValueError,
                "best_metric='fid' is not observed: observe is None",
            ),
        ],
    )
    def test_bad_arguments_are_refused_before_anything_is_made(self, options, kind, named):
        with pytest.raises(kind, match=named):
            train(**({"learn": NEVER} | options))

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"every": 0}, "every=0"),
            ({"run": "run"}, "run .*open_run"),
            ({"resume_step": -1}, "resume_step=-1"),
            ({"best_metric": 3}, "best_metric"),
            ({"best_mode": "least"}, "best_mode='least'"),
            ({"fingerprint": b"1"}, "fingerprint"),
        ],
    )
    def test_checkpointing_is_checked_where_it_is_made(self, settings, named):
        with pytest.raises((TypeError, ValueError), match=named):
            Checkpointing(**({"run": RunFolder(Path("run"))} | settings))

    def test_the_history_and_the_callback_have_a_record_a_dispatch(self):
        heard = []

        def hear(record):
            heard.append(dict(record))
            record.clear()  # it is the listener's own

        result = train(num_steps=10, on_metrics=hear)
        assert [record["step"] for record in result.history] == [4, 8, 10]
        assert tuple(heard) == result.history
        for record in heard:
            assert {"loss", "energy_gap", "seconds", "updates_per_second"} <= record.keys()
            assert all(type(value) in (int, float) for value in record.values())

    @pytest.mark.parametrize(("mode", "best"), [("min", 12), ("max", 20)])
    def test_the_parameters_are_the_average_of_the_best_checkpoint(self, tmp_path, bits, mode, best):
        """Scores of 0 after 12 updates, of 5 and 1 after 20 and 24; resumed, the best one is the same."""
        scores = {12: 0.0, 20: 5.0, 24: 1.0}

        def observe(state):
            return {"score": jnp.array(scores[int(state.step)])}

        def run(num_steps, folder):
            kept = Checkpointing(folder, every=10, best_metric="score", best_mode=mode)
            return train(num_steps=num_steps, checkpointing=kept, observe=observe)

        run(20, open_run(tmp_path, {}))
        result = run(24, open_run(tmp_path, {}, resume=True))
        assert int(result.state.step) == 24
        assert int(result.best_state.step) == best
        expected = train(num_steps=best)
        assert bits(result.params) == bits(result.best_state.ema_params) == bits(expected.params)
        assert bits(expected.params) == bits(expected.state.ema_params)
        assert bits(result.params) != bits(result.state.ema_params)

    def test_data_may_be_drawn_by_a_function(self, tmp_path):
        """Of a run that is resumed, the function is taken on trust: it has no bytes to compare."""

        def draw(rng_key, batch_size):
            return 3.0 + jax.random.normal(rng_key, (batch_size, 1))

        kept = Checkpointing(open_run(tmp_path, {}), every=10)
        first = train(data=draw, num_steps=8, checkpointing=kept)
        resumed = train(data=draw, num_steps=24, checkpointing=kept)
        assert resumed.history[:2] == first.history
        np.testing.assert_array_equal(resumed.params, train(data=draw, num_steps=24).params)

    def test_progress_is_shown(self, capsys):
        train(progress=True)
        shown = capsys.readouterr().err
        for name in ("step 4/4", "loss=", "energy_gap=", "gradient_norm=", "updates/second=", "s left"):
            assert name in shown


class TestResuming:
    @pytest.mark.parametrize("step", [4, 12, 16, 32, 33])
    def test_an_exception_at_any_point(self, reference, tmp_path, after_record, step):
        """Before any checkpoint, at one, between two, at the last dispatch."""

        def fail():
            raise RuntimeError("the disk is full")

        after_record(step, fail)
        with pytest.raises(RuntimeError, match="disk is full"):
            reference.train(tmp_path)
        assert RunFolder(tmp_path).read_metrics()[-1]["step"] == step
        reference.assert_same(tmp_path, reference.train(tmp_path))

    def test_stopping_again_and_again(self, reference, tmp_path, after_record):
        for step in (8, 12, 20, 24, 28):
            after_record(step, partial(signal.raise_signal, signal.SIGINT))
            with pytest.raises(TrainingInterrupted, match=f"stopped at step {step} of 33"):
                reference.train(tmp_path)
            assert saved_steps(tmp_path)[-1] == step
        reference.assert_same(tmp_path, reference.train(tmp_path))

    def test_a_line_cut_short_and_records_past_the_checkpoint(self, reference, tmp_path, after_record):
        def die():
            with (tmp_path / "metrics.jsonl").open("a") as file:
                file.write('{"step": 20, "seconds": 1.5, "ener')
            raise RuntimeError

        after_record(16, die)  # the checkpoint is of step 12
        with pytest.raises(RuntimeError):
            reference.train(tmp_path)
        reference.assert_same(tmp_path, reference.train(tmp_path))

    def test_a_shorter_run_made_longer(self, reference, tmp_path):
        """Ended at a multiple of the dispatch, a run goes on as if asked for more from the start."""
        reference.train(tmp_path, num_steps=16)
        reference.assert_same(tmp_path, reference.train(tmp_path))

    def test_another_state_is_refused(self, reference, tmp_path):
        reference.train(tmp_path, num_steps=4)
        kept = Checkpointing(open_run(tmp_path, reference.config, resume=True))
        with pytest.raises(CheckpointMismatchError, match="arrays differ"):
            train(data=reference.problem["data"], num_steps=8, checkpointing=kept)


class TestSignals:
    @pytest.fixture(autouse=True)
    def _heard(self):
        """A shell's background jobs ignore SIGINT, and would ignore it here."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("step", [16, 33])
    def test_the_first_stops_cleanly(self, reference, tmp_path, after_record, number, step):
        """Also in the last dispatch: whoever asked to stop does not want the evaluation that follows."""
        before = signal.getsignal(number)
        after_record(step, partial(signal.raise_signal, number))
        with pytest.raises(TrainingInterrupted, match=f"step {step} of 33; the checkpoint.*resume=True"):
            reference.train(tmp_path)
        assert signal.getsignal(number) is before
        assert saved_steps(tmp_path)[-1] == step
        reference.assert_same(tmp_path, reference.train(tmp_path))

    def test_the_second_acts_at_once(self, reference, tmp_path, after_record):
        def twice():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        after_record(16, twice)
        with pytest.raises(KeyboardInterrupt) as caught:
            reference.train(tmp_path)
        assert caught.type is KeyboardInterrupt
        assert saved_steps(tmp_path)[-1] == 12
        reference.assert_same(tmp_path, reference.train(tmp_path))

    def test_the_second_acts_at_once_inside_a_long_dispatch(self, monkeypatch):
        class Endless:
            """A metric of a dispatch that does not end; after a minute it does, and the test fails."""

            deadline = time.monotonic() + 60

            def is_ready(self):
                return time.monotonic() > self.deadline

        dispatched = threading.Event()

        class EndlessDispatch(Dispatch):
            def compile(self, state, data):
                pass

            def __call__(self, state, data, num_steps):
                dispatched.set()
                return state, Report({"loss": Endless()}, (), (), {})

        monkeypatch.setattr(loop, "Dispatch", EndlessDispatch)
        handler = signal.getsignal(signal.SIGINT)

        def press_twice():
            dispatched.wait()
            os.kill(os.getpid(), signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is not handler:  # until the first was heard
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press_twice, daemon=True).start()
        with pytest.raises(KeyboardInterrupt) as caught:
            train(num_steps=1)
        assert caught.type is KeyboardInterrupt

    def test_without_a_run_nothing_is_promised(self, monkeypatch):
        class Interrupting:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

            def update(self, step, metrics):
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(loop, "make_progress", lambda *_, **__: Interrupting())
        with pytest.raises(TrainingInterrupted, match=r"stopped at step 4 of 33\.$"):
            train(num_steps=33)

    def test_other_threads_may_train(self):
        done = []
        worker = threading.Thread(target=lambda: done.append(train()))
        worker.start()
        worker.join()
        assert int(done[0].state.step) == 4


def broken(state, value, leaf):
    """The leaf, not finite in update 23 alone."""
    return jnp.where(state.step == 22, value, 1.0) * leaf


class TestDivergence:
    @pytest.mark.parametrize("recovery", [None, DEFAULT_RECOVERY])
    def test_a_batch_that_is_not_finite_is_not_blamed_on_the_rate(self, recovery):
        """No recovery can mend the data, and none is tried."""

        def breaking(state, data):
            return QUADRATIC.step(state, data._replace(x=broken(state, jnp.nan, data.x)))

        with pytest.raises(
            ValueError, match="step 23: the batch holds entries that are not finite"
        ) as caught:
            train(QUADRATIC._replace(step=breaking), num_steps=40, recovery=recovery)
        assert "rate" not in str(caught.value)
        assert "No checkpoint was written, because checkpointing is None." in str(caught.value)

    def test_it_says_so_where_there_is_no_checkpoint_yet(self, tmp_path):
        def breaking(state, data):
            return QUADRATIC.step(state._replace(params=broken(state, jnp.nan, state.params)), data)

        kept = Checkpointing(open_run(tmp_path, {}), every=1000)
        with pytest.raises(DivergenceError, match=r"No checkpoint had been written before\.$"):
            train(QUADRATIC._replace(step=breaking), num_steps=40, checkpointing=kept, recovery=None)

    @pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
    def test_is_named_and_keeps_the_last_good_checkpoint(self, tmp_path, bits, value):
        """Update 23 is bad, the third of its dispatch; the checkpoint is of step 20."""

        def breaking(state, data):
            return QUADRATIC.step(state._replace(params=broken(state, value, state.params)), data)

        learn = QUADRATIC._replace(step=breaking)
        run = open_run(tmp_path, {})
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(DivergenceError, match=r"step 23: .*loss=nan.*Lower the learning rate") as caught:
            train(learn, num_steps=40, checkpointing=Checkpointing(run, every=10), recovery=None)
        assert "The checkpoint of step 20 is kept. That of step 12 lies further" in str(caught.value)
        assert signal.getsignal(signal.SIGINT) is before
        assert [record["step"] for record in run.read_metrics()] == [4, 8, 12, 16, 20]
        with Checkpoints(run.checkpoints) as checkpoints:
            restored = checkpoints.restore(learn.init(KEY, jnp.zeros(1), DATA))
        assert bits(restored) == bits(train(learn, num_steps=20, recovery=None).state)

    def test_of_parameters_behind_a_finite_loss(self, tmp_path):
        """A refresh breaks the average only: no metric shows it, but the end of the dispatch does."""

        def breaking(state, data):
            state, metrics = QUADRATIC.step(state, data)
            return state._replace(ema_params=jnp.where(state.step >= 14, jnp.nan, state.ema_params)), metrics

        kept = Checkpointing(open_run(tmp_path, {}), every=10)
        with pytest.raises(DivergenceError, match=r"step 16: a parameter or its average is not finite"):
            train(QUADRATIC._replace(step=breaking), num_steps=40, checkpointing=kept, recovery=None)
        assert saved_steps(tmp_path) == [12]


class TestProcesses:
    """Real kills of real processes; what they leave is resumed here, by another process than wrote it."""

    @staticmethod
    def start(program, folder, seconds_between):
        return subprocess.Popen(
            [sys.executable, str(program), str(folder), str(seconds_between)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Its arithmetic must be that of this process, bit for bit: compiled as `cheap_compilation` does.
            env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        )

    @staticmethod
    def wait_for_lines(process, folder, count, timeout=120.0):
        deadline = time.monotonic() + timeout
        path = folder / "metrics.jsonl"
        while not path.exists() or path.read_text().count("\n") < count:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "the process writes no metrics"
            time.sleep(0.005)

    def test_killed(self, reference, program, tmp_path):
        process = self.start(program, tmp_path, 0.2)
        self.wait_for_lines(process, tmp_path, 6)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert len(RunFolder(tmp_path).read_metrics()) < len(reference.records)
        reference.assert_same(tmp_path, reference.train(tmp_path))

    def test_interrupted(self, reference, program, tmp_path):
        process = self.start(program, tmp_path, 0.2)
        self.wait_for_lines(process, tmp_path, 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "TrainingInterrupted: stopped at step" in errors
        records = RunFolder(tmp_path).read_metrics()
        assert 2 <= len(records) < len(reference.records)
        assert saved_steps(tmp_path)[-1] == records[-1]["step"]
        reference.assert_same(tmp_path, reference.train(tmp_path))

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(12))
    def test_killed_at_any_moment(self, reference, program, tmp_path, seed):
        """Twice, at a random moment after a dispatch: also in the middle of a checkpoint."""
        moments = random.Random(seed)
        for _ in range(2):
            lines = len(RunFolder(tmp_path).read_metrics())
            process = self.start(program, tmp_path, 0.0)
            self.wait_for_change(process, tmp_path, lines)
            time.sleep(moments.uniform(0.0, 0.4))
            process.kill()
            process.communicate()
        reference.assert_same(tmp_path, reference.train(tmp_path))

    @staticmethod
    def wait_for_change(process, folder, lines):
        """Until the number of records differs (a resumed run drops some first), or the run has ended."""
        path = folder / "metrics.jsonl"
        while process.poll() is None and (not path.exists() or path.read_text().count("\n") == lines):
            time.sleep(0.002)
