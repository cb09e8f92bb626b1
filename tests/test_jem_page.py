"""README.md and docs/jem.md promise short examples; these tests count them. The examples run as doctests."""

import ast
import doctest
import re
from functools import partial
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

from jaxebm import fit, from_nnx, jem, learner, persistent, sgld
from jaxebm.energies import refresh_statistics, trainable, training_apply
from jaxebm.types import BATCH_AXIS, LogitsFn

ROOT = Path(__file__).resolve().parents[1]
WIDEST = 120
"""Characters of a line of code: statements are few, and not long instead."""


def example(page: str, mark: str) -> str:
    """The code of the example on a page that holds ``mark``, without prompts and output."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if mark in block]
    assert len(blocks) == 1, f"{page} has {len(blocks)} examples with {mark!r}"
    return "".join(part.source for part in doctest.DocTestParser().get_examples(blocks[0]))


def statements(code: str, *, imports: bool) -> int:
    """How many statements the code has, at any depth."""
    left_out = () if imports else (ast.Import, ast.ImportFrom)
    nodes = ast.walk(ast.parse(code))
    return sum(isinstance(node, ast.stmt) and not isinstance(node, left_out) for node in nodes)


def has_lambda(code: str) -> bool:
    return any(isinstance(node, ast.Lambda) for node in ast.walk(ast.parse(code)))


def test_statements_are_counted_at_any_depth():
    code = "import a\ndef f(x):\n    y = x\n    return y\nf(lambda: 1)\n"
    assert statements(code, imports=True) == 5
    assert statements(code, imports=False) == 4
    assert has_lambda(code)


@pytest.mark.parametrize(
    ("page", "mark", "most", "imports"),
    [
        ("README.md", "likelihood(network.apply", 8, True),
        ("README.md", "jem(network.apply", 10, True),
        ("docs/jem.md", "logits = unbatched(module.apply)", 10, True),
    ],
    ids=["an energy", "a JEM", "a classifier of one's own"],
)
def test_training_takes_few_statements_and_no_lambda(page, mark, most, imports):
    code = example(page, mark)
    assert "fit(" in code
    assert statements(code, imports=imports) <= most
    assert not has_lambda(code)
    assert max(map(len, code.splitlines())) <= WIDEST


def test_nothing_of_the_library_is_in_the_module_that_the_reader_has():
    theirs = example("docs/jem.md", "class Mine(nn.Module)")
    assert "jaxebm" not in theirs


def small_images():
    """Images (96, 2, 2) of three classes: a bright pixel each, and noise."""
    labels = jnp.arange(96) % 3
    noise = 0.1 * jax.random.normal(jax.random.key(0), (96, 2, 2))
    return jnp.clip(2.0 * jax.nn.one_hot(labels, 4).reshape(96, 2, 2) - 1.0 + noise, -1.0, 1.0), labels


def small_chains():
    kernel = partial(sgld, step_size=0.1, state_clamp=(-1.0, 1.0))
    return persistent(kernel, num_steps=5, num_chains=30, capacity=300)


@pytest.mark.usefixtures("cheap_compilation")
def test_an_nnx_model_trains_as_the_page_says():
    class Mine(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, images):
            return self.linear(images.reshape(len(images), -1))

    images, labels = small_images()
    model = Mine(nnx.Rngs(0))
    logits, params = from_nnx(model)
    learn = learner(jem(logits), negatives=small_chains(), optimizer=optax.adam(5e-2))
    result = fit(jax.random.key(1), learn, params, (images, labels), num_steps=100)
    nnx.update(model, result.params)
    assert float(jnp.mean(model(images).argmax(1) == labels)) > 0.95


@pytest.mark.usefixtures("cheap_compilation")
def test_ones_own_module_with_batch_normalisation_trains_as_the_page_says():
    class Mine(nn.Module):
        @nn.compact
        def __call__(self, image, train=False):
            h = nn.Dense(8)(image.reshape(-1))
            h = nn.BatchNorm(use_running_average=not train, axis_name=BATCH_AXIS)(h)
            return nn.Dense(3)(nn.swish(h))

    images, labels = small_images()
    module = Mine()
    logits = cast(LogitsFn, module.apply)
    learn = learner(
        jem(logits, training_logits=training_apply(module)),
        negatives=small_chains(),
        optimizer=trainable(optax.adam(5e-2)),
        refresh=partial(refresh_statistics, module),
    )
    result = fit(jax.random.key(1), learn, module.init, (images, labels), num_steps=100)
    predicted = jax.vmap(logits, (None, 0))(result.params, images).argmax(1)
    assert float(jnp.mean(predicted == labels)) > 0.95
    statistics = result.params["batch_stats"]["BatchNorm_0"]
    assert float(jnp.abs(statistics["mean"]).max()) > 0.1  # it starts at 0
