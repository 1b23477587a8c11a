"""Devices: their names, and whether this machine has them."""

import pytest
import torch

from bpgo.devices import check_device, check_device_name


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:12", "mps", "xpu", "xpu:1", None])
def test_names_that_torch_knows_are_accepted(name):
    assert check_device_name(name) == name
    if name is not None:
        assert torch.device(name).type == name.partition(":")[0]


@pytest.mark.parametrize("name", ["", "cuda:", "cuda:x", "cuda:-1", "gpu", "cpu:1", "CPU", 0, True])
def test_other_names_are_refused_with_what_to_write(name):
    with pytest.raises(ValueError, match=r"unknown device .*(did you mean|write)"):
        check_device_name(name)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("cuda:0", "no cuda device that torch can use"),
        ("cuda", "no cuda device that torch can use"),
        ("mps", "no mps device"),
        ("xpu:1", "no xpu device"),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_the_setting(monkeypatch, name, there):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    expected = rf"^reward\.device={name}: this machine has {there}.*: set reward\.device=null"
    with pytest.raises(ValueError, match=expected):
        check_device(name, "reward.device")


def test_an_index_beyond_the_devices_is_refused_with_those_that_exist(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1", "reward.device")
    with pytest.raises(ValueError, match=r"cuda:7: this machine has cuda:0, cuda:1: set"):
        check_device("cuda:7", "evaluation.held_out.1.device")


def test_the_cpu_and_the_policy_s_device_are_always_there():
    check_device("cpu", "reward.device")
    check_device(None, "reward.device")
