"""Settings about devices and processes: what they mean, and what a wrong one is told."""

import jax
import pytest

from jaxebm.recipes import ParallelConfig
from jaxebm.recipes.devices import choose_generator, join_processes, place


def test_one_device_needs_no_placement():
    assert place(None, ParallelConfig()) is None
    assert place(1, ParallelConfig(strata=1)) is None


def test_strata_of_one_device_are_a_placement():
    placement = place(None, ParallelConfig(strata=4, shard_parameters=True))
    assert placement is not None
    assert (placement.num_devices, placement.num_strata, placement.shard_parameters) == (1, 4, True)


def test_as_many_strata_as_devices():
    placement = place(2, ParallelConfig())
    assert placement is not None
    assert (placement.num_devices, placement.num_strata) == (2, 2)


def test_generators():
    assert choose_generator(ParallelConfig()) == "threefry2x32"  # on a CPU
    rbg = choose_generator(ParallelConfig(generator="rbg"))
    assert str(jax.random.key_impl(jax.random.key(0, impl=rbg))) == "rbg"
    with pytest.raises(ValueError, match=r"parallel.generator='philox'.*threefry2x32"):
        choose_generator(ParallelConfig(generator="philox"))


def test_processes_are_joined_on_demand_only():
    join_processes(ParallelConfig())
    with pytest.raises(ValueError, match=r"are for parallel\.distributed=True"):
        join_processes(ParallelConfig(processes=2))
    with pytest.raises(ValueError, match="process_id"):
        join_processes(ParallelConfig(distributed=True, coordinator="localhost:1234", processes=2))


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match=r"num_devices=4096.*XLA_FLAGS"):
        place(4096, ParallelConfig())
