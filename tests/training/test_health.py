"""Divergence is found in its own update, in healthy noise nothing is, and what is found is named."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxebm.objectives import classifier, persistent
from jaxebm.samplers import sgld
from jaxebm.training import (
    FAULTS,
    DivergenceError,
    Monitor,
    TrainState,
    check_metrics,
    check_state,
    diagnose,
    init_health,
    learner,
    measure_chains,
    name_faults,
)
from jaxebm.training.health import describe_faults, inspect

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.fixture
def state():
    chains = persistent(
        partial(sgld, step_size=0.1),
        num_steps=1,
        num_chains=2,
        capacity=4,
    )
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    learn = learner(
        classifier(lambda params, x: x), optimizer=optax.adam(0.1), negatives=chains, batch_size=1
    )
    return learn.init(jax.random.key(0), params, jnp.zeros((1, 2)))


def test_finite_numbers_pass(state):
    check_metrics(1, {"loss": -3.0, "gap": 1e30})
    check_state(state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_broken_metric_is_named_and_no_other(value):
    with pytest.raises(DivergenceError, match=rf"step 70: gap={value}, loss={value}\.") as caught:
        check_metrics(70, {"loss": value, "accuracy": 0.5, "gap": value})
    assert "accuracy" not in str(caught.value)
    for advice in ("learning rate", "sampler's step size", "energy_l2=0.1", "another seed"):
        assert advice in str(caught.value)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_one_broken_parameter_is_found(state, value, dtype):
    params = state.params | {"w": jnp.ones((2, 3), dtype).at[1, 2].set(value)}
    with pytest.raises(DivergenceError, match=r"step 0: \['params'\]\['w'\] is not finite"):
        check_state(state._replace(params=params))


def test_broken_averages_and_chains_are_found(state):
    with pytest.raises(DivergenceError, match=r"\['ema_params'\]\['b'\]"):
        check_state(state._replace(ema_params=state.ema_params | {"b": jnp.full(3, jnp.nan)}))
    buffer = state.sampler_state.buffer
    buffer = buffer._replace(positions=buffer.positions.at[3, 1].set(jnp.inf))
    with pytest.raises(DivergenceError, match=r"step 12: \['chains'\]\.positions"):
        check_state(
            state._replace(sampler_state=state.sampler_state._replace(buffer=buffer), step=jnp.array(12))
        )


def test_sampler_states_of_other_kinds_are_looked_over(state):
    """Integers, truth values and typed keys cannot be non-finite, and need not be arrays to NumPy."""
    other = {"key": jax.random.key(1), "count": jnp.arange(3), "on": jnp.array([True]), "none": None}
    check_state(state._replace(sampler_state=other))
    with pytest.raises(DivergenceError, match=r"\['chains'\]\['mine'\]"):
        check_state(state._replace(sampler_state=other | {"mine": jnp.array([0.0, jnp.nan])}))


def test_where_chains_start_is_no_part_of_them(state):
    """Unbounded starts have infinite clamps, and no update changes them: only the buffer is inspected."""
    unbounded = state.sampler_state._replace(initial={"state_clamp": jnp.array([-jnp.inf, jnp.inf])})
    check_state(state._replace(sampler_state=unbounded))
    assert int(jax.jit(inspect)(state._replace(sampler_state=unbounded))) == 0


def judge(monitor, series):
    """Runs `diagnose` over series of metrics; returns the first update each fault was found at."""
    state = TrainState(*[jnp.ones(())] * 7, health=init_health())

    @jax.jit
    def run(series):
        def update(health, metrics):
            return diagnose(monitor, state._replace(health=health), metrics)

        return jax.lax.scan(update, init_health(), series)[1]

    faults = np.asarray(run({name: jnp.asarray(values, jnp.float32) for name, values in series.items()}))
    found = {}
    for step in np.flatnonzero(faults):
        for name in name_faults(int(faults[step])):
            found.setdefault(name, int(step))
    return found


class TestBands:
    noise = np.random.default_rng(0).normal(size=100_000)

    def test_noise_raises_no_alarm(self):
        """100,000 updates of Gaussian noise, 20,000 of Student's t with 10 degrees of freedom."""
        heavy = np.random.default_rng(1).standard_t(10, size=20_000)
        assert judge(Monitor(), {"energy_gap": self.noise}) == {}
        assert judge(Monitor(), {"energy_gap": 0.3 * heavy, "gradient_norm": np.exp(0.3 * heavy)}) == {}

    @pytest.mark.parametrize("sign", [-1, 1])
    @pytest.mark.parametrize("scale", [1.0, 1000.0])
    def test_a_jump_is_found_in_its_own_update(self, sign, scale):
        """In units of the noise, whatever the scale of the energies."""
        gap = scale * self.noise[:2000].copy()
        gap[1500] = sign * 12 * scale
        assert judge(Monitor(), {"energy_gap": gap}) == {"energy_gap": 1500}

    def test_a_slow_divergence_does_not_widen_its_own_band(self):
        """exp(t / 30) on unit noise: found before it is 30 standard deviations."""
        since = np.arange(1000) - 500
        gap = self.noise[:1000] - np.where(since > 0, np.exp(since / 30.0), 0.0)
        step = judge(Monitor(), {"energy_gap": gap})["energy_gap"]
        assert -30 < gap[step] < -8

    def test_norms_are_faulty_when_they_grow_only(self):
        """A cosine schedule ends a hundred times lower; a gradient that vanishes has arrived."""
        norm = np.exp(0.1 * self.noise[:2000]) * np.geomspace(1.0, 1e-2, 2000)
        assert judge(Monitor(), {"gradient_norm": norm, "update_norm": norm}) == {}
        norm[1700] *= 100
        assert judge(Monitor(), {"gradient_norm": norm}) == {"gradient_norm": 1700}

    def test_the_first_update_of_a_warm_up_has_no_logarithm(self):
        norm = np.minimum(np.arange(700) / 100, 1.0)
        norm[600] = 50.0
        assert judge(Monitor(), {"update_norm": norm}) == {"update_norm": 600}

    def test_bands_are_not_used_before_the_warm_up(self):
        gap = self.noise[:200].copy()
        gap[50] = 500.0
        assert judge(Monitor(), {"energy_gap": gap}) == {}
        assert judge(Monitor(warmup=20), {"energy_gap": gap}) == {"energy_gap": 50}

    def test_bands_can_be_left_out(self):
        gap = self.noise[:400].copy()
        gap[300] = 1e4
        assert judge(Monitor(bands=False), {"energy_gap": gap}) == {}


class TestChains:
    def test_are_judged_after_some_patience(self):
        moving = np.zeros(60)
        stuck = np.where((np.arange(60) > 10) & (np.arange(60) < 14) | (np.arange(60) > 30), 1.0, 0.0)
        assert judge(Monitor(), {"frozen_chains": moving, "saturated_chains": 0.9 * stuck}) == {}
        assert judge(Monitor(), {"frozen_chains": stuck}) == {"frozen": 35}
        assert judge(Monitor(patience=2), {"saturated_chains": stuck}) == {"saturated": 12}
        assert judge(Monitor(), {"chain_spread": 1.0 - stuck}) == {"alike": 35}

    def test_measures(self):
        x = jax.random.uniform(jax.random.key(0), (1000, 4), minval=-1.0, maxval=1.0)
        found = measure_chains(x, 0.5 * x, jnp.array([0.0, 0.1] * 500))
        assert float(found["frozen_chains"]) == 0.5
        assert abs(float(found["chain_spread"]) - 0.5) < 1e-6
        clamped = jnp.clip(10.0 * x, -1.0, 1.0)  # a tenth of the entries stays inside
        share = float(measure_chains(x, clamped, None)["saturated_chains"])
        assert abs(share - 0.9) < 5 * np.sqrt(0.09 / 4000)
        # Binary data sit at the ends themselves, and chains that do so, too, are none the worse.
        assert float(measure_chains(jnp.sign(x), jnp.sign(x), None)["saturated_chains"]) == 0.0
        assert measure_chains(None, x, None) == {}

    def test_grain_and_reach(self):
        """White noise of sd s on data constant over space has differences of sd s sqrt(2)."""
        key_data, key_noise = jax.random.split(jax.random.key(0))
        rows = jax.random.normal(key_data, (500, 8, 1, 1)) * jnp.ones((500, 8, 8, 3))
        grain = np.sqrt(np.mean(np.square(np.diff(rows, axis=1))) / 2)  # no differences along axis 2
        noisy = rows + 0.5 * jax.random.normal(key_noise, rows.shape)
        found = measure_chains(rows, noisy, None)
        wanted = np.sqrt((grain**2 + 2 * 0.5**2) / grain**2)
        assert abs(float(found["sample_grain"]) / wanted - 1) < 0.02
        assert float(found["largest_chain"]) == float(jnp.max(jnp.abs(noisy)))
        assert "sample_grain" not in measure_chains(rows[:, :, 0, 0], rows[:, :, 0, 0], None)


def test_faults_have_names_and_sentences():
    everything = name_faults((1 << len(FAULTS)) - 1)
    assert everything == list(FAULTS)
    said = describe_faults(9, ["energy_gap", "chains"], {"energy_gap": -40.0, "loss": 1.0})
    assert said == (
        "step 9: the energy gap has left its running band and the replay buffer holds entries that are not "
        "finite (energy_gap=-40)"
    )


@pytest.mark.parametrize("part", ["params", "ema_params", "optimizer_state", "sampler_state"])
def test_inspection_reads_every_number(state, part):
    assert int(jax.jit(inspect)(state)) == 0
    leaves, structure = jax.tree.flatten(getattr(state, part))
    at = next(i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating))
    leaves[at] = leaves[at].at[(-1,) * leaves[at].ndim].set(jnp.inf)
    sick = state._replace(**{part: jax.tree.unflatten(structure, leaves)})
    name = {"optimizer_state": part, "sampler_state": "chains"}.get(part, "parameters")
    assert name_faults(int(jax.jit(inspect)(sick))) == [name]


class TestLimitsWithoutBands:
    """What no band can see: chains beyond the data at once, and numbers beyond all bounds in the warm-up."""

    def test_chains_far_beyond_the_data_are_found_in_their_own_update(self):
        data = np.linspace(0.5, 3.0, 40)  # the greatest so far counts: 3 at the end
        chains = 2.0 * np.ones(40)
        assert judge(Monitor(), {"largest_chain": chains, "largest_data": data}) == {}
        for step, far in ((0, 21.0), (39, 61.0)):
            escaped = chains.copy()
            escaped[step] = far
            for monitor in (Monitor(), Monitor(bands=False)):
                found = judge(monitor, {"largest_chain": escaped, "largest_data": data})
                assert found == {"escaped": step}
            assert judge(Monitor(reach=np.inf), {"largest_chain": escaped, "largest_data": data}) == {}
        escaped[39] = 59.0
        assert judge(Monitor(), {"largest_chain": escaped, "largest_data": data}) == {}

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_batch_that_is_not_finite_has_a_fault_of_its_own(self, value):
        reach = np.ones(20)
        reach[7] = value
        assert judge(Monitor(bands=False), {"largest_data": reach})["data"] == 7

    def test_the_gap_has_a_floor_in_the_first_updates(self):
        gap, energy = np.zeros(150), 10.0 * np.ones(150)
        gap[0] = 12_000.0
        assert judge(Monitor(), {"energy_gap": gap, "energy_data": energy}) == {"runaway": 0}
        gap[0] = 10_000.0
        assert judge(Monitor(), {"energy_gap": gap, "energy_data": energy}) == {}
        # Energies of pixels in 0..255 are large from the beginning.
        assert judge(Monitor(), {"energy_gap": 1e6 * gap, "energy_data": 1e6 * energy}) == {}
        later = np.zeros(150)
        later[60] = 1e4
        assert judge(Monitor(), {"energy_gap": later}) == {"runaway": 60}

    def test_norms_have_one_too(self):
        norm = np.geomspace(1e-9, 1.0, 90)  # a symmetry that breaks: no fault
        assert judge(Monitor(), {"gradient_norm": norm}) == {}
        norm[50] = 1e7
        assert judge(Monitor(), {"gradient_norm": norm}) == {"runaway": 50}

    def test_the_metrics_that_show_it_are_named(self):
        metrics = {"largest_chain": 7e6, "largest_data": 1.5, "loss": 0.0}
        said = "step 1: the chains have left the range of the data (largest_chain=7e+06, largest_data=1.5)"
        assert describe_faults(1, ["escaped"], metrics) == said


def test_a_scalar_of_infinity_in_an_optimizer_is_no_fault(state):
    """``reduce_on_plateau`` keeps the least loss so far, and begins with infinity; an array may not."""
    best = state._replace(optimizer_state=(jnp.array(jnp.inf), jnp.ones(3)))
    assert int(jax.jit(inspect)(best)) == 0
    assert judge_once(best) == []
    for sick in ((jnp.array(jnp.nan), jnp.ones(3)), (jnp.ones(()), jnp.full(3, jnp.inf))):
        assert name_faults(int(jax.jit(inspect)(state._replace(optimizer_state=sick)))) == ["optimizer_state"]
        assert judge_once(state._replace(optimizer_state=sick)) == ["optimizer_state"]


def judge_once(state):
    return name_faults(int(diagnose(Monitor(bands=False), state, {"loss": jnp.ones(())})[1]))


@pytest.mark.parametrize("value", [0, -1.0, "1", None, np.ones(2), float("nan"), object()])
@pytest.mark.parametrize(
    "name", ["deviations", "smallest_deviation", "window", "warmup", "patience", "reach"]
)
def test_bad_thresholds_are_refused(name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        Monitor(**{name: value})


def test_other_arguments_are_named(state):
    x = jnp.ones((3, 2))
    for call, named in (
        (lambda: Monitor(bands="yes"), "bands"),
        (lambda: Monitor(floor=np.inf), "floor"),
        (lambda: diagnose(None, state, {"loss": 1.0}), "monitor"),
        (lambda: diagnose(Monitor(), None, {"loss": 1.0}), "state"),
        (lambda: diagnose(Monitor(), state, {}), "metrics is empty"),
        (lambda: diagnose(Monitor(), state, None), "metrics"),
        (lambda: diagnose(Monitor(), state, {"loss": jnp.ones(2)}), r"metrics\['loss'\] has shape \(2,\)"),
        (lambda: diagnose(Monitor(), state, {"loss": 1j}), r"metrics\['loss'\]"),
        (lambda: name_faults(1.5), "faults"),
        (lambda: name_faults(-1), "faults"),
        (lambda: name_faults(1 << len(FAULTS)), "faults"),
        (lambda: check_metrics(-1, {"loss": 1.0}), "step"),
        (lambda: check_metrics(1, {"loss": "low"}), "metrics"),
        (lambda: check_state(None), "state"),
        (lambda: measure_chains(x, jnp.ones((3, 4)), None), "x_model"),
        (lambda: measure_chains(x, x, jnp.ones(4)), "displacement"),
        (lambda: measure_chains("x", x, None), "x_data"),
        (lambda: measure_chains(x, 1j * x, None), "x_model"),
    ):
        with pytest.raises((TypeError, ValueError), match=named):
            call()
