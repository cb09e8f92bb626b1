"""Flags about devices and processes: what they mean, and what a wrong one is told."""

import jax
import pytest

from devices import DeviceFlags, choose_generator, join_processes, place


def test_one_device_needs_no_placement():
    assert place(DeviceFlags()) is None
    assert place(DeviceFlags(devices=1, strata=1)) is None


def test_strata_of_one_device_are_a_placement():
    placement = place(DeviceFlags(strata=4, shard_parameters=True))
    assert placement is not None
    assert (placement.num_devices, placement.num_strata, placement.shard_parameters) == (1, 4, True)


def test_generators():
    assert choose_generator(DeviceFlags()) == "threefry2x32"  # on a CPU
    assert (
        str(jax.random.key_impl(jax.random.key(0, impl=choose_generator(DeviceFlags(generator="rbg")))))
        == "rbg"
    )
    with pytest.raises(ValueError, match=r"generator='philox'.*threefry2x32"):
        choose_generator(DeviceFlags(generator="philox"))


def test_processes_are_joined_on_demand_only():
    join_processes(DeviceFlags())
    with pytest.raises(ValueError, match="need --distributed"):
        join_processes(DeviceFlags(processes=2))
    with pytest.raises(ValueError, match="process_id"):
        join_processes(DeviceFlags(distributed=True, coordinator="localhost:1234", processes=2))


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match=r"num_devices=4096.*XLA_FLAGS"):
        place(DeviceFlags(devices=4096))
