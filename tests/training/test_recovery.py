"""Recovery: faults put into a running program are found at once, undone, and told of; nothing else
changes."""

import random
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.data import Examples
from jaxebm.objectives import Objective, contrastive_loss, dual_score_matching, ignore_label, persistent
from jaxebm.samplers import UniformInitial, sgld
from jaxebm.training import (
    REMEDIES,
    Checkpointing,
    Checkpoints,
    DivergenceError,
    Learner,
    Monitor,
    Recovery,
    Remedy,
    Snapshots,
    TrainingInterrupted,
    fit,
    init_health,
    learner,
    open_run,
    remedies_in_force,
    roll_back,
)
from jaxebm.training.state import TrainState

pytestmark = [
    pytest.mark.usefixtures("cheap_compilation", "compile_once"),
    pytest.mark.filterwarnings("ignore:step:RuntimeWarning"),
]

NONE, GRADIENT, BUFFER, OPTIMIZER, PARAMETER, AVERAGE, JUMP, RATE, RATE_FOR_A_WHILE = range(9)
NUM_STEPS, DISPATCH = 160, 10
SETTINGS = {"num_steps": NUM_STEPS, "steps_per_dispatch": DISPATCH}
RECOVERY = Recovery(snapshot_every=20, lookback=5, probation=90, monitor=Monitor(warmup=40))


@jax.custom_vjp
def poisoned(x, hit):
    """x itself, whose gradient is not a number where ``hit``: the loss shows nothing."""
    del hit
    return x


poisoned.defvjp(lambda x, hit: (x, hit), lambda hit, cotangent: (jnp.where(hit, jnp.nan, cotangent), None))


def energy(params, x):
    return 0.5 * jnp.sum((x - params) ** 2)


NEGATIVES = persistent(
    partial(sgld, step_size=0.2), num_steps=2, num_chains=32, capacity=64,
    initial=UniformInitial(-3.0, 3.0, shape=(2,)),
)  # fmt: skip


def loss(params, rng_key, batch, samples):
    """The contrast of the data; labels above 0 say that its gradient is to be poisoned."""
    del rng_key
    hit = jnp.any(batch.labels > 0)
    return contrastive_loss(energy, poisoned(params, hit), batch.x_data, samples.positions)


HEALTHY = learner(
    Objective(ignore_label(energy), loss),
    optimizer=optax.adam(0.02),
    negatives=NEGATIVES,
    batch_size=32,  # all that there are
    ema_decay=0.9,
)


def faulty_step(state, data):
    """An update into which the data put a fault: of which kind, when, and in how many lives."""
    once = (state.step == data["at"]) & (state.health.recoveries < data["lives"])
    late = (state.step >= data["at"]) & (data["kind"] == RATE)
    late |= (abs(state.step - data["at"]) < 10) & (data["kind"] == RATE_FOR_A_WHILE)
    too_fast = late & (state.health.learning_rate_factor > 0.3)

    def hit(kind):
        return once & (data["kind"] == kind)

    def where(condition, value, tree):
        return jax.tree.map(lambda leaf: jnp.where(condition, jnp.asarray(value, leaf.dtype), leaf), tree)

    buffer = state.sampler_state.buffer
    broken = buffer.positions.at[7, 1].set(jnp.where(hit(BUFFER), jnp.inf, buffer.positions[7, 1]))
    state = state._replace(
        params=where(hit(PARAMETER), jnp.nan, state.params),
        ema_params=where(hit(AVERAGE), jnp.inf, state.ema_params),
        optimizer_state=where(hit(OPTIMIZER), 0, state.optimizer_state),
        sampler_state=state.sampler_state._replace(buffer=buffer._replace(positions=broken)),
    )
    x = data["x"] + 40.0 * (hit(JUMP) | too_fast)
    return HEALTHY.step(state, Examples(x, jnp.full(32, hit(GRADIENT), jnp.int32)))


def faulty_state(rng_key, params, data):
    return HEALTHY.init(rng_key, params, (data["x"], jnp.zeros(32, jnp.int32)))


# A learner of one's own, of data of its own kind.
FAULTY = Learner(faulty_state, faulty_step)


def make_state():
    return FAULTY.init(jax.random.key(3), jnp.zeros(2), data())


def data(kind=NONE, at=0, lives=1):
    x = jnp.array([[1.0, -2.0]]) + jax.random.normal(jax.random.key(5), (32, 2))
    return {"x": x, "kind": jnp.array(kind), "at": jnp.array(at), "lives": jnp.array(lives)}


def train(kind=NONE, at=0, lives=1, recovery=RECOVERY, run=None, **options):
    return fit(
        jax.random.key(3),
        FAULTY,
        jnp.zeros(2),
        data(kind, at, lives),
        recovery=recovery,
        checkpointing=Checkpointing(run, every=60) if run is not None else None,
        **SETTINGS,
        **options,
    )


@pytest.fixture(scope="module")
def healthy(compile_once):
    return train()


class TestFaults:
    @pytest.mark.parametrize(
        ("kind", "fault"),
        [
            (GRADIENT, "metrics"),
            (BUFFER, "chains"),
            (OPTIMIZER, "optimizer_lost"),
            (PARAMETER, "metrics"),
            (JUMP, "energy_gap"),
        ],
    )
    @pytest.mark.parametrize("seed", range(3))
    def test_is_found_in_its_own_update_and_undone(self, healthy, kind, fault, seed):
        at = random.Random(100 * kind + seed).randrange(60, NUM_STEPS)
        result = train(kind, at)
        (record,) = result.recoveries
        assert record["step"] == at + 1
        assert fault in record["faults"]
        assert record["remedy"] == "fresh noise"
        assert at - 25 < record["back_to"] <= at + 1 - RECOVERY.lookback
        assert int(result.state.step) == NUM_STEPS
        assert int(result.state.health.recoveries) == 1
        # Fresh noise from there on: another run, but of the same law, near the data's mean.
        assert bits_differ(result.state.params, healthy.state.params)
        np.testing.assert_allclose(result.state.ema_params, healthy.state.ema_params, atol=0.25)

    def test_of_what_no_update_reads_is_found_at_the_end_of_the_dispatch(self):
        result = train(AVERAGE, 73)
        (record,) = result.recoveries
        assert record["step"] == 80
        assert record["faults"] == ["parameters"]
        assert bool(jnp.isfinite(result.state.ema_params).all())

    def test_a_healthy_run_is_the_one_without_recovery_bit_for_bit(self, healthy, bits):
        unprotected = train(recovery=None)
        assert healthy.recoveries == ()
        without = bits(healthy.state._replace(health=())), bits(unprotected.state._replace(health=()))
        assert without[0] == without[1]

    def test_without_recovery_the_first_non_finite_number_ends_the_run(self):
        with pytest.raises(
            DivergenceError, match=r"step 74: .*not finite \(gradient_norm=nan.*energy_l2=0.1"
        ):
            train(GRADIENT, 73, recovery=None)
        # What is finite is nobody's business then.
        assert int(train(JUMP, 73, recovery=None).state.step) == NUM_STEPS


def energy_at(params, x, level):
    """-log p of N(params, I) with noise of a level."""
    variance = 1 + level**2
    return 0.5 * jnp.sum((x - params) ** 2) / variance + jnp.log(variance)


PLAIN = dual_score_matching(energy_at, lowest=0.1, highest=8.0)


def poisoned_scores(params, rng_key, batch, samples):
    """Dual score matching; labels above 0 say that its gradient is to be poisoned."""
    return PLAIN.loss(poisoned(params, jnp.any(batch.labels > 0)), rng_key, batch, samples)


WITHOUT_CHAINS = learner(
    Objective(PLAIN.energy, poisoned_scores), optimizer=optax.adam(0.05), batch_size=32, ema_decay=0.9
)


def test_an_objective_without_chains_recovers_too():
    def step(state, data):
        hit = (state.step == data["at"]) & (state.health.recoveries < data["lives"])
        return WITHOUT_CHAINS.step(state, Examples(data["x"], jnp.full(32, hit, jnp.int32)))

    def init(rng_key, params, data):
        return WITHOUT_CHAINS.init(rng_key, params, (data["x"], jnp.zeros(32, jnp.int32)))

    def trained(at, lives):
        given = data(GRADIENT, at, lives)
        return fit(jax.random.key(3), Learner(init, step), jnp.zeros(2), given, recovery=RECOVERY, **SETTINGS)

    healthy = trained(73, 0)
    assert healthy.recoveries == ()
    for lives, remedies in ((1, ["fresh noise"]), (2, ["fresh noise", "smaller rate"])):
        result = trained(73, lives)
        assert [record["remedy"] for record in result.recoveries] == remedies
        assert {record["step"] for record in result.recoveries} == {74}
        assert all("metrics" in record["faults"] for record in result.recoveries)
        assert int(result.state.step) == NUM_STEPS
        assert float(result.state.health.learning_rate_factor) == 0.5 ** (lives - 1)
        np.testing.assert_allclose(result.state.ema_params, healthy.state.ema_params, atol=0.3)


def bits_differ(a, b):
    return np.asarray(a).tobytes() != np.asarray(b).tobytes()


class TestRemedies:
    def test_remedies_come_in_force_one_after_another_and_stay(self):
        """Updates beyond 80 fail until the rate has been quartered; the run ends before any is lifted."""
        made = []

        def remake(remedy):
            made.append(remedy)
            return FAULTY

        recovery = Recovery(**(vars(RECOVERY) | {"remake": remake}))
        result = train(RATE, 80, recovery=recovery)
        assert [record["remedy"] for record in result.recoveries] == [
            "fresh noise", "more, smaller steps", "smaller rate", "energy-L2", "smaller rate",
        ]  # fmt: skip
        assert [record["in_force"] for record in result.recoveries][-1] == (
            "more, smaller steps; smaller rate; energy-L2; smaller rate"
        )
        assert made == [remedies_in_force(REMEDIES, count) for count in (1, 2, 3, 4)]
        assert made[-1][1:] == (2, 0.25, 0.1)
        # Each further back, as far as there are snapshots.
        assert [record["back_to"] for record in result.recoveries] == [60, 40, 40, 40, 40]
        assert float(result.state.health.learning_rate_factor) == 0.25
        assert int(result.state.step) == NUM_STEPS

    def test_without_a_way_to_make_the_step_anew_only_rates_fall(self):
        heard = []
        result = train(RATE, 80, on_metrics=heard.append)
        assert [record["remedy"] for record in result.recoveries] == [
            "fresh noise", "smaller rate", "smaller rate",
        ]  # fmt: skip
        # Records of what was undone are in the history no longer, but were heard when they were made.
        back = [record["back_to"] for record in result.recoveries]
        steps = [record["step"] for record in result.history]
        assert steps == list(range(DISPATCH, NUM_STEPS + 1, DISPATCH))
        undone = [step for start in back for step in range(start + DISPATCH, 81, DISPATCH)]
        assert sorted(record["step"] for record in heard) == sorted(steps + undone)

    def test_when_nothing_is_left_to_try_the_run_ends_with_a_diagnosis(self, tmp_path):
        run = open_run(tmp_path, {})
        with pytest.raises(DivergenceError) as caught:
            train(BUFFER, 80, lives=100, run=run)
        for said in ("step 81", "replay buffer", "5 faults in a row", "4 recoveries", "noise, smaller rate"):
            assert said in str(caught.value)
        assert [record["recovery"] for record in run.read_recoveries()] == [1, 2, 3, 4]
        with Checkpoints(run.checkpoints, manifest=None) as checkpoints:
            assert checkpoints.latest_step() == 60

    def test_faults_far_apart_need_no_more_than_fresh_noise(self):
        """The last update that belongs to the fault at 40 is 130; both are second faults of a run."""
        snapshots = Snapshots(RECOVERY)
        state = make_state()
        snapshots.offer(state, 0)
        sick = state._replace(step=jnp.array(40))
        state, first = roll_back(RECOVERY, snapshots, sick, ["metrics"], {"loss": float("nan")})
        assert first["metrics"] == {"loss": "nan"}
        for fault, remedy in ((130, "smaller rate"), (131, "fresh noise")):
            sick = state._replace(step=jnp.array(fault))
            _, record = roll_back(RECOVERY, snapshots, sick, ["metrics"], {})
            assert record["recovery"] == 2
            assert record["remedy"] == remedy

    def test_remedies_are_lifted_one_by_one_after_a_healthy_stretch(self):
        """Two rates halved at the fault of update 72; each probation of 20 lifts one, and tells of it."""
        recovery = Recovery(**(vars(RECOVERY) | {"probation": 20}))
        with pytest.warns(RuntimeWarning, match="step 100: healthy again, the remedy 'smaller rate'"):
            result = train(RATE_FOR_A_WHILE, 80, recovery=recovery)
        assert [record["remedy"] for record in result.recoveries][-1] == "smaller rate"
        assert float(result.state.health.learning_rate_factor) == 1.0
        assert int(result.state.health.remedies) == 0
        assert int(result.state.step) == NUM_STEPS


class TestSnapshots:
    @staticmethod
    def filled(recovery=RECOVERY, steps=range(0, 100, 10)):
        snapshots = Snapshots(recovery)
        for step in steps:
            snapshots.offer(TrainState(jnp.array(step), *[()] * 6, health=init_health()), step)
        return snapshots

    def test_the_newest_are_kept(self):
        assert self.filled().steps == [40, 60, 80]

    @pytest.mark.parametrize(
        ("fault", "in_a_row", "expected"),
        [
            (96, 1, 80),
            (85, 1, 80),
            (84, 1, 60),
            (96, 2, 60),
            (96, 3, 40),
            (96, 9, 40),
            (44, 1, 40),
            (3, 1, 40),
        ],
    )
    def test_which_one_is_chosen(self, fault, in_a_row, expected):
        snapshots = self.filled()
        step, state = snapshots.choose(fault, in_a_row)
        assert step == int(state.step) == expected
        assert snapshots.steps == [kept for kept in (40, 60, 80) if kept <= expected]

    @pytest.mark.parametrize("keep_on", ["device", "host"])
    def test_copies_survive_the_dispatch_that_consumes_the_state(self, bits, keep_on):
        state = make_state()
        expected = bits(state)
        snapshots = Snapshots(Recovery(keep_on=keep_on))
        snapshots.offer(state, 0)
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(snapshots._kept[0][1])}
        assert (kinds == {"pinned_host"}) == (keep_on == "host")
        jax.tree.map(lambda leaf: leaf.delete(), state)
        for _ in range(2):
            _, copy = snapshots.choose(0, 1)
            assert bits(copy) == expected
            jax.tree.map(lambda leaf: leaf.delete(), copy)

    def test_a_recovery_draws_other_numbers_each_time(self):
        keys = []
        state = make_state()
        for count in range(3):
            snapshots = Snapshots(RECOVERY)
            snapshots.offer(state, 0)
            health = state.health._replace(recoveries=jnp.array(count))
            sick = state._replace(step=jnp.array(50), health=health)
            keys.append(jax.random.key_data(roll_back(RECOVERY, snapshots, sick, [], {})[0].rng_key).tolist())
        keys.append(jax.random.key_data(state.rng_key).tolist())
        assert len({tuple(key) for key in keys}) == 4


class TestRuns:
    def test_everything_is_told(self, tmp_path):
        run = open_run(tmp_path, {})
        with pytest.warns(RuntimeWarning, match=r"step 101: .*replay buffer.*: back to step 80 with fresh"):
            result = train(BUFFER, 100, run=run, recovery=RECOVERY)
        assert tuple(run.read_recoveries()) == result.recoveries
        records = run.read_metrics()
        assert tuple(records) == result.history  # what was undone is in neither
        assert [record["step"] for record in records] == list(range(DISPATCH, NUM_STEPS + 1, DISPATCH))
        assert [record["recoveries"] for record in records] == [0] * 8 + [1] * 8
        assert all(np.isfinite(list(record.values())).all() for record in records)

    @pytest.mark.parametrize("stop_after", [90, 120])
    def test_a_stopped_run_recovers_to_the_same_state(self, tmp_path, bits, monkeypatch, stop_after):
        """Stopped after the fault or before it, and resumed from the last regular checkpoint."""
        expected = train(BUFFER, 100)
        run = open_run(tmp_path, {})
        append = type(run).append_metrics

        def append_and_die(self, record):
            append(self, record)
            if record["step"] == stop_after:
                raise RuntimeError("killed")

        monkeypatch.setattr(type(run), "append_metrics", append_and_die)
        with pytest.raises(RuntimeError, match="killed"):
            train(BUFFER, 100, run=run)
        monkeypatch.setattr(type(run), "append_metrics", append)
        resumed = train(BUFFER, 100, run=open_run(tmp_path, {}, resume=True))
        reference = train(BUFFER, 100, run=open_run(tmp_path / "whole", {}))
        assert bits(resumed.state) == bits(reference.state)
        assert resumed.recoveries == reference.recoveries
        assert int(expected.state.health.recoveries) == 1

    def test_an_interrupt_while_recovering_is_heard(self, tmp_path, monkeypatch):
        run = open_run(tmp_path, {})
        append = type(run).append_recovery

        def append_and_interrupt(self, record):

            append(self, record)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(type(run), "append_recovery", append_and_interrupt)
        with pytest.raises(TrainingInterrupted, match="stopped at step 80"):
            train(BUFFER, 100, run=run)


@pytest.mark.parametrize(
    ("make", "settings", "named"),
    [
        (Recovery, {"snapshot_every": 0}, "snapshot_every"),
        (Recovery, {"num_snapshots": 1.5}, "num_snapshots"),
        (Recovery, {"probation": 0}, "probation"),
        (Recovery, {"lookback": -1}, "lookback"),
        (Recovery, {"lookback": 0.5}, "lookback"),
        (Recovery, {"keep_on": "disk"}, "keep_on"),
        (Recovery, {"keep_on": ["device"]}, "keep_on"),
        (Recovery, {"monitor": None}, "monitor"),
        (Recovery, {"remake": lambda: None}, "remake"),
        (Recovery, {"remedies": Remedy("one")}, "remedies"),
        (Recovery, {"remedies": ("smaller rate",)}, r"remedies\[0\]"),
        (Recovery, {"remedies": (Remedy("none", learning_rate_factor=0.0),)}, "learning_rate_factor"),
        (Recovery, {"remedies": (Remedy("none", sampler_steps_factor=1.5),)}, "sampler_steps_factor"),  # type: ignore[arg-type]
        (Recovery, {"remedies": (Remedy("none", energy_l2=np.ones(2)),)}, "energy_l2"),  # type: ignore[arg-type]
        (Recovery, {"remedies": (Remedy(None),)}, "name"),  # type: ignore[arg-type]
        (remedies_in_force, {"remedies": REMEDIES, "count": 9}, "count"),
        (Snapshots, {"recovery": None}, "recovery"),
    ],
)
def test_bad_settings_are_refused_where_they_are_made(make, settings, named):
    with pytest.raises((TypeError, ValueError), match=named):
        make(**settings)
