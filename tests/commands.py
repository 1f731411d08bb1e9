"""The machine and the files of the command's tests, and what they ask of it."""

import math

from max.driver import DeviceSpec

from max_mistral.command import memory, picks
from max_mistral.weights.safetensors_file import read_tensors

PLENTY = 10**12


def value(command, flag):
    """What a flag is set to, once."""
    assert command.count(flag) == 1, command
    return command[command.index(flag) + 1]


def have_gpus(monkeypatch, count):
    gpus = [DeviceSpec.accelerator(i) for i in range(count)]
    scan = "max.pipelines.lib.device_specs.scan_available_devices"
    monkeypatch.setattr(scan, lambda: gpus)
    monkeypatch.setattr(picks, "accelerator_count", lambda: count)
    monkeypatch.setattr(memory, "_free_on", lambda devices: PLENTY * len(devices))


def in_bfloat16(file):
    """The bytes of a quantized file's weights in bfloat16, which have no scales."""
    tensors = read_tensors([file]).items()
    return 2 * sum(math.prod(t.shape) for name, t in tensors if "scale" not in name)
