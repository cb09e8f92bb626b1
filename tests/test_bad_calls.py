"""Bad calls of every public function end in an error that names the argument (tests/bad_calls.py).

Hypothesis draws the function, the argument and the wrong value. Here each room gets a bounded number of
calls, the same ones every time. The long run, marked ``slow``, draws thousands by a new seed, which it
prints; ``JAXEBM_SEED=n`` repeats it.
"""

import importlib.util
import os
import random
import secrets
import sys
from pathlib import Path

import hypothesis
import jax
import pytest
from hypothesis import strategies as st

_SPEC = importlib.util.spec_from_file_location("bad_calls", Path(__file__).parent / "bad_calls.py")
assert _SPEC is not None
assert _SPEC.loader is not None
bad_calls = importlib.util.module_from_spec(_SPEC)
sys.modules["bad_calls"] = bad_calls  # dataclasses look their module up
_SPEC.loader.exec_module(bad_calls)

EXAMPLES = dict.fromkeys(bad_calls.ROOMS, 78) | {"recipes": 16}
"""Calls drawn for each room, 640 in all: fewer of recipes, some of whose examples train."""
SLOW_EXAMPLES = 600


def check_bad_calls(room: str, num_examples: int, seed: int | None) -> None:
    names = [name for name, _ in bad_calls.public_functions((room,))]

    @hypothesis.settings(
        max_examples=num_examples,
        derandomize=seed is None,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(names), label="function")
        call = bad_calls.valid_call(name)
        if call is None:
            assert bad_calls.reason_to_pass(name, "any", bad_calls.NO_CALL), f"{name}: no call in its example"
            return
        arguments = list(bad_calls.bad_arguments(call))
        if not arguments:
            return
        argument, bad = data.draw(st.sampled_from(arguments), label="argument")
        rng = random.Random(data.draw(st.integers(0, 2**32), label="value"))
        outcome = bad_calls.outcome(call, argument, bad, rng)
        if outcome.verdict == "passed":
            reason = bad_calls.reason_to_pass(name, argument, bad.kind)
            assert reason, f"{name}({argument}: {bad.kind}) was accepted: {outcome.message}"
        else:
            assert outcome.verdict == "named", f"{name}({argument}: {bad.kind}): {outcome.message}"

    with jax.numpy_rank_promotion("allow"):  # as the examples are run
        (check if seed is None else hypothesis.seed(seed)(check))()


@pytest.mark.parametrize("room", bad_calls.ROOMS)
def test_bad_calls_end_in_an_error_that_names_the_argument(room):
    check_bad_calls(room, EXAMPLES[room], seed=None)


@pytest.mark.slow
@pytest.mark.parametrize("room", bad_calls.ROOMS)
def test_many_bad_calls_end_in_an_error_that_names_the_argument(room):
    seed = int(os.environ.get("JAXEBM_SEED", secrets.randbits(32)))
    print(f"JAXEBM_SEED={seed}")
    check_bad_calls(room, SLOW_EXAMPLES, seed)


@pytest.mark.slow
@pytest.mark.parametrize("room", bad_calls.ROOMS)
def test_every_exception_from_the_rule_is_still_needed(room):
    described = []
    for name, _ in bad_calls.public_functions((room,)):
        call = bad_calls.valid_call(name)
        kinds = [("any", bad_calls.NO_CALL)] if call is None else []
        kinds += [(argument, bad.kind) for argument, bad in bad_calls.bad_arguments(call)] if call else []
        described += [f"{name}({argument}: {kind})" for argument, kind in kinds]
    for pattern in bad_calls.let_through(room):
        assert any(bad_calls.matches(one, pattern) for one in described), f"{pattern} matches no bad call"
