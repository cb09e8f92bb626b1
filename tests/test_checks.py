"""Every check: what passes, what is refused, what the message says, and that traced values pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm import checks
from jaxebm.types import Kernel

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("check", "accepted", "refused", "says"),
    [
        (
            checks.positive,
            [1, 0.1, 1e-30, np.float32(2), np.array([1, 2]), jnp.ones(3), jnp.bfloat16(1.5), [1.0, 2.0]],
            [0, 0.0, -1, NAN, INF, -INF, np.array([1.0, 0.0]), jnp.array([1.0, NAN])],
            "finite and greater than 0",
        ),
        (
            checks.non_negative,
            [0, 0.0, 3, np.zeros(2), jnp.bfloat16(0)],
            [-1e-9, NAN, INF, np.array([0.0, -1.0])],
            "finite and at least 0",
        ),
        (
            lambda name, value: checks.in_range(name, value, -0.5, 1.0),
            [-0.5, 0, 1, np.linspace(-0.5, 1.0, 5), jnp.array(0.3)],
            [-0.6, 1.001, NAN, INF, np.array([0.0, 2.0])],
            "between -0.5 and 1.0",
        ),
        (
            checks.positive_integer,
            [1, 10**12, np.int64(3), np.uint8(1)],
            [0, -2, 1.0, 2.5, True, "3", None, np.float32(2), jnp.array(2)],
            "an integer of at least 1",
        ),
    ],
    ids=["positive", "non_negative", "in_range", "positive_integer"],
)
def test_numbers(check, accepted, refused, says):
    for value in accepted:
        check("alpha", value)
    for value in refused:
        with pytest.raises(ValueError, match=f"^alpha=.*alpha must be {says}") as caught:
            check("alpha", value)
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "value", [None, "0.1", 1j, [], True, {"a": 1.0}, object()], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("name", ["positive", "non_negative"])
def test_what_is_no_number_is_a_type_error_with_a_name(name, value):
    if isinstance(value, list):
        getattr(checks, name)("alpha", value)  # nothing in it is out of range
        return
    with pytest.raises(TypeError, match=r"alpha=.*must be a number"):
        getattr(checks, name)("alpha", value)


@pytest.mark.parametrize(
    "check",
    [
        checks.positive,
        checks.non_negative,
        lambda name, value: checks.in_range(name, value, 0.0, 1.0),
        checks.finite,
        checks.floating,
    ],
)
@pytest.mark.parametrize("transformation", [jax.jit, jax.vmap, jax.grad], ids=["jit", "vmap", "grad"])
def test_traced_values_pass(check, transformation):
    def function(value):
        check("alpha", value)
        return jnp.sum(value)

    transformation(function)(jnp.array(-7.0) if transformation is not jax.vmap else jnp.array([-7.0, NAN]))


@pytest.mark.parametrize("transformation", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_traced_labels_pass_and_their_dtype_does_not(transformation):
    transformation(lambda labels: checks.integer_labels("y", labels, 3))(jnp.array([7, -7]))
    with pytest.raises(TypeError, match="y has dtype float32"):
        transformation(lambda labels: checks.integer_labels("y", labels, 3))(jnp.array([0.0, 1.0]))


def test_known_labels_are_looked_at_inside_a_trace():
    labels = jnp.array([0, 5])
    with pytest.raises(ValueError, match=r"y spans 0\.\.5"):
        jax.jit(lambda x: checks.integer_labels("y", labels, 3))(1.0)


def test_is_traced():
    assert not checks.is_traced(1.0)
    assert not checks.is_traced(jnp.ones(2))
    seen = []
    jax.jit(lambda x: seen.append(checks.is_traced(x)))(1.0)
    assert seen == [True]


def test_a_traced_count_is_refused():
    # It would set a shape or a number of steps, so it cannot wait.
    with pytest.raises(ValueError, match=r"num_steps=.*an integer of at least 1"):
        jax.jit(lambda n: checks.positive_integer("num_steps", n))(3)


@pytest.mark.parametrize("tree", [1.5, np.ones(2), jnp.ones(2, jnp.bfloat16), {"a": jnp.ones(1), "b": [2.0]}])
def test_floating_accepts(tree):
    checks.floating("x", tree)


@pytest.mark.parametrize(
    ("tree", "dtype"),
    [
        (3, "int32"),
        (np.ones(2, np.uint8), "uint8"),
        (jnp.ones(2, bool), "bool"),
        (jnp.ones(2, jnp.complex64), "complex64"),
        ({"a": jnp.ones(1), "b": jnp.arange(2)}, "int32"),
    ],
)
def test_floating_refuses_and_says_how_to_convert(tree, dtype):
    with pytest.raises(TypeError, match=rf"x has dtype {dtype}.*x\.astype\(jnp\.float32\)"):
        checks.floating("x", tree)
    with pytest.raises(TypeError, match="x has dtype"):
        jax.jit(lambda tree: checks.floating("x", tree))(tree)  # a dtype is known while tracing


def test_finite_counts_the_bad_entries():
    checks.finite("images", {"a": np.ones(3), "b": jnp.arange(4)})
    with pytest.raises(ValueError, match=r"images holds 2 non-finite entries .* of 4"):
        checks.finite("images", {"a": np.ones(3), "b": jnp.array([1.0, NAN, -INF, 2.0])})
    with pytest.raises(ValueError, match="images holds 1 non-finite entries"):
        checks.finite("images", jnp.array(INF, jnp.bfloat16))


@pytest.mark.parametrize("labels", [[0, 2], np.array([1], np.uint8), jnp.array(2), np.zeros(0, np.int32)])
def test_labels_pass(labels):
    checks.integer_labels("y", labels, 3)


@pytest.mark.parametrize(
    ("labels", "kind", "says"),
    [
        ([0, 3], ValueError, r"y spans 0\.\.3: labels must lie in 0\.\.2 for 3 classes"),
        (jnp.array([-1, 2]), ValueError, r"y spans -1\.\.2"),
        (np.array([0.0, 1.0]), TypeError, r"y has dtype float.*integer class labels 0\.\.2"),
        (np.array([True]), TypeError, "y has dtype bool"),
    ],
)
def test_labels_are_refused(labels, kind, says):
    with pytest.raises(kind, match=says):
        checks.integer_labels("y", labels, 3)


def test_batch_length():
    assert checks.batch_length("x", np.ones((4, 2))) == 4
    assert checks.batch_length("x", {"a": jnp.ones(3), "b": [jnp.ones((3, 1))]}) == 3
    assert jax.eval_shape(lambda x: jnp.zeros(checks.batch_length("x", x)), jnp.ones((5, 2))).shape == (5,)


@pytest.mark.parametrize(
    "tree", [np.ones((0, 2)), 1.0, {"a": np.ones(2), "b": np.ones(3)}, {"a": np.ones(2), "b": 1.0}, {}, None]
)
def test_what_is_no_batch(tree):
    with pytest.raises(ValueError, match=r"^x has .*: a batch is needed, one leading axis of at least 1"):
        checks.batch_length("x", tree)


def test_what_was_expected_is_named():
    with pytest.raises(ValueError, match=r"^x has leaves of shapes \[\(\)\]: a schedule of steps is needed"):
        checks.batch_length("x", 1.0, "a schedule of steps")


def test_batch_of_a_given_length():
    checks.batch_of("x", {"a": jnp.ones(3), "b": jnp.ones((3, 2))}, 3, "as in y")
    with pytest.raises(ValueError, match=r"^x has a leading axis of 3: 2 is needed, as in y\.$"):
        checks.batch_of("x", jnp.ones(3), 2, "as in y")
    with pytest.raises(ValueError, match=r"^x has .*: a batch is needed"):
        checks.batch_of("x", {}, 2, "as in y")


def test_each_image_needs_one_integer_label():
    checks.one_label_each("y", np.array([4, -1]), 2)
    with pytest.raises(ValueError, match=r"y has shape \(2, 1\): \(2,\) is needed"):
        checks.one_label_each("y", np.zeros((2, 1), int), 2)
    with pytest.raises(TypeError, match="y has dtype float64: integer"):
        checks.one_label_each("y", np.zeros(2), 2)


def test_integers_have_a_range():
    checks.integer("k", np.int32(3), 0, 3)
    for value in (4, -1, 2.0, "3", None, True):
        with pytest.raises(ValueError, match=r"^k=.*k must be an integer from 0 to 3\.$"):
            checks.integer("k", value, 0, 3)


def test_a_seed_is_one_that_jax_tells_from_all_others():
    # jax.random.key(2**32 + 5) is jax.random.key(5).
    checks.seed("seed", 2**32 - 1)
    for value in (2**32, -1, 0.5):
        with pytest.raises(ValueError, match="seed must be an integer from 0 to 4294967295"):
            checks.seed("seed", value)


def test_one_number():
    for value in (0.1, 3, np.float32(2), jnp.zeros(())):
        checks.number("step_size", value)
    for value, says in (
        (jnp.ones(3), r"step_size has shape \(3,\): one number.* Use a schedule"),
        (NAN, "finite"),
    ):
        with pytest.raises(ValueError, match=says):
            checks.number("step_size", value, "Use a schedule.")
    with pytest.raises(TypeError, match=r"step_size='0.1' is no real number"):
        checks.number("step_size", "0.1")
    with pytest.raises(ValueError, match="shape"):
        jax.jit(lambda value: checks.number("step_size", value))(
            jnp.ones(2)
        )  # a shape is known while tracing


def test_choices_booleans_text_and_types():
    checks.one_of("kind", "mean", ("mean", "tail"))
    checks.boolean("denoise", np.bool_(True))
    checks.text("name", "a")
    checks.instance("x", 3, (int, type(None)))
    for value in ("median", None, np.ones(2), {}):
        with pytest.raises(ValueError, match=r"^kind=.*kind must be one of 'mean', 'tail'\.$"):
            checks.one_of("kind", value, ("mean", "tail"))
    with pytest.raises(TypeError, match="denoise=1: denoise must be True or False"):
        checks.boolean("denoise", 1)
    with pytest.raises(TypeError, match="name=3: name must be a string"):
        checks.text("name", 3)
    with pytest.raises(ValueError, match="name must not be empty"):
        checks.text("name", "")
    with pytest.raises(TypeError, match=r"x is of type str: x must be of type int or None\. Make one"):
        checks.instance("x", "3", (int, type(None)), "Make one.")


@pytest.mark.parametrize(
    ("key", "kind", "says"),
    [
        (0, TypeError, r"rng_key=0: rng_key must be a typed key, jax\.random\.key\(seed\)"),
        (None, TypeError, "rng_key=None: rng_key must be a typed key"),
        (jnp.zeros(2), TypeError, "rng_key has dtype float32"),
        (jax.random.PRNGKey(0), TypeError, r"dtype uint32: .*jax\.random\.wrap_key_data\(rng_key\)"),
        (jax.random.split(jax.random.key(0)), ValueError, r"rng_key has shape \(2,\): one key"),
    ],
)
def test_one_rule_for_keys(key, kind, says):
    checks.rng_key("rng_key", jax.random.key(0))
    jax.jit(lambda key: checks.rng_key("rng_key", key))(jax.random.key(0))
    with pytest.raises(kind, match=says):
        checks.rng_key("rng_key", key)


def test_one_key_is_split_and_several_are_counted():
    key = jax.random.key(3)
    assert jnp.array_equal(checks.rng_keys("rng_key", key, 4, "chains"), jax.random.split(key, 4))
    keys = jax.random.split(key, 3)
    assert checks.rng_keys("rng_key", keys, 3, "chains") is keys
    with pytest.raises(ValueError, match=r"rng_key has shape \(3,\): one key, or \(4,\) keys, .* chains"):
        checks.rng_keys("rng_key", keys, 4, "chains")


@pytest.mark.parametrize("value", [None, 3, "energy", lambda x: x, lambda a, b, c: a])
def test_a_function_takes_the_arguments_that_it_is_called_with(value):
    checks.function("energy", lambda params, x: x, "params", "x")
    checks.function("energy", jnp.sum, "x")
    with pytest.raises(TypeError, match=r"^energy.*called as energy\(params, x\)"):
        checks.function("energy", value, "params", "x")


def test_a_module_is_no_function_of_one_example():
    class Network:
        def init(self, rng_key, x):
            raise NotImplementedError

        def apply(self, params, x):
            return x

        def __call__(self, params, x):
            return x

    checks.function_of_example("logits", Network().apply, "params", "x")
    with pytest.raises(TypeError, match=r"logits is the module Network: give .* module\.apply"):
        checks.function_of_example("logits", Network(), "params", "x")
    with pytest.raises(TypeError, match=r"logits.*called as logits\(params, x\)"):
        checks.function_of_example("logits", lambda x: x, "params", "x")


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        (None, TypeError, "The energy f returned None, so a return statement may be missing"),
        ((1.0, 2.0), TypeError, "The energy f returned a value of type tuple"),
        (3, TypeError, "The energy f returned a value of type int"),
        (jnp.zeros((), int), TypeError, "The energy f returned dtype int32"),
        (jnp.zeros((), complex), TypeError, "The energy f returned dtype complex64"),
        (jnp.zeros(1), ValueError, r"The energy f returned shape \(1,\)"),
    ],
)
def test_an_energy_is_one_real_scalar(value, kind, says):
    for good in (0.5, jnp.zeros(()), np.float32(1), jnp.bfloat16(1)):
        checks.scalar_energy("f", good)
    with pytest.raises(kind, match=says):
        checks.scalar_energy("f", value)


def test_kernels_are_bound_and_their_constructors_are_not():
    kernel = Kernel(lambda position, rng_key=None: position, lambda rng_key, state: (state, None))
    checks.bound_kernel("kernel", kernel)
    checks.kernel_constructor("kernel", lambda target: kernel)
    for value in (lambda target: kernel, "sgld", None, 3):
        with pytest.raises(TypeError, match=r"^kernel.*must be a kernel bound to its target"):
            checks.bound_kernel("kernel", value)
    for value in (kernel, "sgld", None, 3):
        with pytest.raises(TypeError, match=r"^kernel.*must be a function that binds a kernel to a target"):
            checks.kernel_constructor("kernel", value)


def test_arrays_are_arrays():
    checks.arrays("x", {"a": jnp.ones(2), "b": 3.0, "key": jax.random.key(0)})
    checks.array("x", [[1.0, 2.0]], (None, 2))
    checks.array("x", jnp.zeros((3, 2), bool), (3, 2))
    with pytest.raises(TypeError, match=r"x\['b'\] is of type str: arrays are needed in x"):
        checks.arrays("x", {"a": jnp.ones(2), "b": "text"})
    for value in (np.array(["a"]), {"a": np.array([None])}):
        with pytest.raises(TypeError, match=r"^x.* has dtype .*: numbers are needed in x"):
            checks.arrays("x", value)
    with pytest.raises(TypeError, match="x has dtype complex64: real numbers"):
        checks.array("x", jnp.zeros(2, complex))
    for value in (None, "text", [[1.0], [1.0, 2.0]], np.array(["a"]), {"a": 1.0}):
        with pytest.raises(TypeError, match="is no real number"):
            checks.array("x", value)
    with pytest.raises(ValueError, match=r"x has shape \(3,\): \(n, 2\), a point in a row, is needed"):
        checks.array("x", jnp.ones(3), (None, 2), "(n, 2), a point in a row,")


def test_two_trees_of_the_same_shapes():
    like = {"a": jnp.ones(2), "b": jnp.ones(())}
    checks.same_shapes("last", {"a": np.zeros(2), "b": 1.0}, "first", like)
    with pytest.raises(
        ValueError, match=r"last\['a'\] has shape \(3,\): that of first\['a'\], \(2,\), is needed"
    ):
        checks.same_shapes("last", {"a": jnp.zeros(3), "b": 1.0}, "first", like)
    with pytest.raises(ValueError, match=r"last has the structure .*: that of first"):
        checks.same_shapes("last", {"a": jnp.zeros(2)}, "first", like)


def test_the_public_names_are_all_of_them():
    functions = {name for name, value in vars(checks).items() if callable(value) and name.islower()}
    assert {name for name in functions if not name.startswith("_")} == set(checks.__all__)


@pytest.mark.parametrize("check", [checks.floating, checks.finite])
def test_arrays_of_text_are_refused_by_name(check):
    with pytest.raises(TypeError, match="images"):
        check("images", {"a": np.array(["1.0", "2.0"])})


@pytest.mark.parametrize(
    ("check", "least"), [(checks.positive_number, 1e-30), (checks.non_negative_number, 0)]
)
def test_one_number_above_a_bound(check, least):
    for value in (least, 2.5, np.float32(2), jnp.array(3.0)):
        check("alpha", value)
    jax.jit(lambda value: check("alpha", value))(-1.0)  # traced: the number is not known
    with pytest.raises(
        ValueError, match=r"^alpha has shape \(2,\): one number, shape \(\), is needed\. Why\.$"
    ):
        check("alpha", jnp.ones(2), "Why.")
    with pytest.raises(ValueError, match=r"alpha has shape \(2,\)"):
        jax.jit(lambda value: check("alpha", value))(jnp.ones(2))
    for value in (least - 1, NAN, INF):
        with pytest.raises(ValueError, match=r"^alpha=.*alpha must be finite and"):
            check("alpha", value)


def test_intervals():
    for value in ((0, 1), [-1.0, 1.0], (-INF, INF), (jnp.float32(0), np.float32(2))):
        checks.interval("ends", value)
    jax.jit(lambda low: checks.interval("ends", (low, 0.0)))(1.0)
    for value in ((1, 0), (1, 1), (NAN, 1), (0, NAN), (INF, INF), 3.0, None, "ab", (1, 2, 3), np.ones(2)):
        with pytest.raises((ValueError, TypeError), match="ends"):
            checks.interval("ends", value)
    with pytest.raises(TypeError, match="ends=1j"):
        checks.interval("ends", (1j, 2.0))
    with pytest.raises(ValueError, match=r"ends has shape \(2,\).*Use box\."):
        checks.interval("ends", (np.zeros(2), 1.0), "Use box.")


def test_stable_steps():
    for value in (1e-9, 1.99, np.float32(1.0)):
        checks.below_two("step_factor", value, "why")
    jax.jit(lambda value: checks.below_two("step_factor", value, "why"))(2.0)
    for value in (0.0, 2, 3.0, np.nan):
        with pytest.raises(ValueError, match="step_factor="):
            checks.below_two("step_factor", value, "why")
    with pytest.raises(ValueError, match=r"above 0 and below 2: why\.$"):
        checks.below_two("step_factor", 2.0, "why")


def test_fractions():
    for value in (0.5, 1e-30, np.float32(0.25), jnp.array(0.9)):
        checks.fraction("alpha", value)
    jax.jit(lambda value: checks.fraction("alpha", value))(2.0)
    for value in (0, 1, -0.5, NAN, INF):
        with pytest.raises(ValueError, match=rf"^alpha={value}.*alpha must be strictly between 0 and 1"):
            checks.fraction("alpha", value)
    with pytest.raises(TypeError, match=r"^alpha='a' is no real number"):
        checks.fraction("alpha", "a")
    with pytest.raises(ValueError, match=r"alpha has shape \(2,\)"):
        checks.fraction("alpha", np.full(2, 0.3))


def test_real_arrays_at_every_leaf():
    checks.real_arrays("x", {"a": np.ones(2), "b": (1, 2.0, jnp.ones(3, jnp.bfloat16), np.array(True))})
    jax.jit(lambda value: checks.real_arrays("x", value))(np.ones(2))
    for leaf in (np.array(["a"]), np.ones(2) * 1j, "text", object(), 1j, jax.random.key(0)):
        with pytest.raises(TypeError, match=r"x\['b'\]"):
            checks.real_arrays("x", {"a": 1.0, "b": leaf})


def test_shapes_are_added_to_an_error_and_nothing_else_happens():
    with checks.shapes_noted(params=1.0):
        pass
    arguments = {"params": {"a": np.ones((2, 3))}, "data": jnp.ones(4)}
    with pytest.raises(KeyError) as caught, checks.shapes_noted(**arguments):
        raise KeyError("own")
    assert caught.value.args == ("own",)
    assert caught.value.__notes__ == ["The shapes were params of {'a': (2, 3)}, data of (4,)."]


def test_what_broadcasts_to_a_shape():
    for value in (1.0, np.ones(3), np.ones((1, 3)), np.ones((2, 1))):
        checks.broadcasts("low", value, (2, 3), "the position")
    for value in (np.ones(2), np.ones((3, 2)), np.ones((1, 2, 3))):
        with pytest.raises(
            ValueError, match=r"low has shape .* broadcasts to \(2, 3\), that of the position"
        ):
            checks.broadcasts("low", value, (2, 3), "the position")


def test_a_function_that_calls_another_by_wraps_shows_its_own_arguments():
    def energy(x):
        return x

    rest = functools.wraps(energy)(lambda x, h: h)
    checks.function("rest", functools.partial(rest, 1.0), "h")
    checks.function("rest", rest, "x", "h")
    handed_on = functools.wraps(energy)(lambda *args: energy(*args))
    checks.function("energy", handed_on, "x")
    for wrong in (handed_on, jax.jit(energy), energy):
        with pytest.raises(TypeError, match=r"energy=energy takes \(x\): .*energy\(params, x\)"):
            checks.function("energy", wrong, "params", "x")


def test_parameters_of_a_kernel():
    def constructor(target, step_size, *, mass=1.0):
        return Kernel(target, step_size)

    checks.kernel_parameters("kernel", constructor, {"step_size": 0.1})
    checks.kernel_parameters("kernel", functools.partial(constructor, mass=2.0), {"step_size": 0.1})
    with pytest.raises(TypeError, match=r"kernel=constructor.*'step_size'.*missing a required argument"):
        checks.kernel_parameters("kernel", constructor, {"mass": 1.0})
    with pytest.raises(TypeError, match=r"kernel=constructor.*\['schedule', 'step_size'\].*unexpected"):
        checks.kernel_parameters("kernel", constructor, {"step_size": 0.1, "schedule": 3})


def test_a_sequence_of_one_kind():
    for value in ((), [], ("a", "b"), ["a"]):
        checks.sequence("names", value, str, "names")
    for value in ("ab", None, 3, ("a", 1), iter("ab"), np.array(["a"])):
        with pytest.raises(TypeError, match=r"names=.*: names must be a tuple or list of names"):
            checks.sequence("names", value, str, "names")
