"""The max-mistral command: what it picks, passes on and refuses. Nothing compiles."""

import contextlib
import errno
import importlib
import json
import math
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from max.driver import DeviceSpec

from max_mistral import command, host_memory, own_folders
from max_mistral.command import memory, model_cache, plan
from max_mistral.command.checkpoint import pick_gguf, read_checkpoint
from max_mistral.command.errors import UsageError
from max_mistral.command.flags import Flags
from max_mistral.command.memory import gigabytes
from max_mistral.errors import UserError
from max_mistral.weights.safetensors_file import read_tensors
from tests.unit.test_gguf import write_gguf
from workbench.checkpoints import (
    BASE,
    write_checkpoint,
    write_headless,
    write_native,
)
from workbench.demo import ROOT
from workbench.quantized import LAYOUTS, write_quantized

PLENTY = 10**12


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine with memory and no GPU, and a cache that is no one's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MAX_MISTRAL_KERNELS", raising=False)
    monkeypatch.setattr(plan, "accelerator_count", lambda: 0)
    monkeypatch.setattr(memory, "free_memory", lambda: PLENTY)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command; returns its status, the command of max, and stderr."""

    def run(*arguments):
        executed = []

        def execve(program, command, environment):
            executed.append(command)
            raise SystemExit(0)

        monkeypatch.setattr(os, "execve", execve)
        with pytest.raises(SystemExit) as ended:
            command.main([str(argument) for argument in arguments])
        return ended.value.code, (executed or [[]])[0], capsys.readouterr().err

    return run


def value(command, flag):
    """What a flag is set to, once."""
    assert command.count(flag) == 1, command
    return command[command.index(flag) + 1]


def have_gpus(monkeypatch, count):
    gpus = [DeviceSpec.accelerator(i) for i in range(count)]
    scan = "max.pipelines.lib.device_specs.scan_available_devices"
    monkeypatch.setattr(scan, lambda: gpus)
    monkeypatch.setattr(plan, "accelerator_count", lambda: count)
    monkeypatch.setattr(memory, "_free_on", lambda devices: PLENTY * len(devices))


@pytest.fixture
def gguf(tmp_path):
    return write_gguf(tmp_path / "model.Q4_K_M.gguf")


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "hf", BASE, dtype="bfloat16")


# ---- what is picked


def test_a_gguf_file_is_prepared_once(run, gguf, tmp_path):
    status, first, err = run("generate", gguf, "--prompt", "it's")
    assert status == 0
    assert Path(first[0]).name == "max"
    prepared = Path(value(first, "--model"))
    assert prepared.parent == tmp_path / "cache" / "max_mistral" / "models"
    assert json.loads((prepared / "config.json").read_text())["hidden_size"] == 8
    assert value(first, "--weight-path") == str(gguf)
    assert value(first, "--devices") == "cpu"
    assert value(first, "--max-length") == "64"
    assert value(first, "--custom-architectures") == "max_mistral"
    assert "--quantization-encoding" not in first
    assert "--served-model-name" not in first
    assert first[-2:] == ["--prompt", "it's"]
    preparing, summary, line = err.splitlines()
    assert preparing.startswith(f"Preparing {gguf}")
    assert "context 64 (its limit" in summary
    assert shlex.split(line) == first
    _, second, err = run("generate", gguf, "--prompt", "it's")
    assert second == first
    assert "Preparing" not in err


def test_replicas_have_a_part_of_the_memory_each(run, folder, monkeypatch):
    have_gpus(monkeypatch, 4)
    _, found, _ = run("serve", folder, "--devices", "gpu:0,1,2,3")
    assert value(found, "--max-length") == "512"
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    monkeypatch.setattr(memory, "_free_on", lambda devices: 8 * weights)
    flags = ["--devices", "gpu:0,1,2,3", "--data-parallel-degree"]
    assert run("serve", folder, *flags, "1")[0] == 0
    # Each of eight times the weights has a quarter; of four replicas, two weights.
    for degree, more, status in (
        ("4", [], 0),
        ("4", ["--device-memory-utilization", "0.5"], 1),
        ("x", [], 0),
    ):
        assert bool(run("serve", folder, *flags, degree, *more)[0]) == bool(status)


def test_a_model_that_embeds_does_not_generate(run, folder, tmp_path):
    headless = write_headless(tmp_path / "headless", BASE)
    for model, more in ((headless, []), (folder, ["--task", "embeddings_generation"])):
        status, command, err = run("generate", model, "--prompt", "a", *more)
        assert status != 0
        assert not command
        assert "serve" in err
        assert "--task embeddings_generation" in err
        assert run("serve", model, *more)[0] == 0


def test_huggingfaces_format_is_taken_as_it_is(run, folder, tmp_path):
    _, found, _ = run("serve", folder)
    assert value(found, "--model") == str(folder)
    assert value(found, "--quantization-encoding") == "float32"
    assert value(found, "--max-length") == "512"
    assert value(found, "--served-model-name") == str(folder)
    assert "--weight-path" not in found
    assert not (tmp_path / "cache").exists()


def test_a_float16_checkpoint_has_its_files_named(run, tmp_path):
    folder = write_checkpoint(tmp_path / "half", BASE, dtype="float16", shards=2)
    _, found, _ = run("generate", folder)
    named = [found[i + 1] for i, flag in enumerate(found) if flag == "--weight-path"]
    assert named == [str(path) for path in sorted(folder.glob("*.safetensors"))]
    assert len(named) == 2


def test_mistrals_format_is_prepared(run, tmp_path):
    source = write_native(tmp_path / "native", BASE, dtype="bfloat16")
    _, found, err = run("generate", source)
    prepared = Path(value(found, "--model"))
    assert (prepared / "model.safetensors").resolve().parent == source
    assert value(found, "--quantization-encoding") == "float32"
    assert "Preparing" in err
    _, again, err = run("generate", source)
    assert again == found
    assert "Preparing" not in err


def test_a_folder_with_one_gguf_file(run, gguf):
    (gguf.parent / "mmproj-model-f16.gguf").write_bytes(b"a vision tower")
    _, found, _ = run("generate", gguf.parent)
    assert value(found, "--weight-path") == str(gguf)


def test_a_gpu_is_taken_where_there_is_one(run, folder, gguf, monkeypatch):
    have_gpus(monkeypatch, 2)
    _, found, _ = run("serve", folder)
    assert value(found, "--devices") == "gpu:0"
    # MAX reads it off the checkpoint.
    assert "--quantization-encoding" not in found
    _, found, _ = run("serve", gguf)
    assert value(found, "--devices") == "cpu"
    _, found, _ = run("serve", folder, "--weight-path", gguf)
    assert value(found, "--devices") == "cpu"
    _, found, _ = run("serve", folder, "--devices", "cpu")
    assert value(found, "--devices") == "cpu"
    assert value(found, "--quantization-encoding") == "float32"


def test_a_models_memory_is_that_of_all_its_gpus(run, folder, monkeypatch):
    have_gpus(monkeypatch, 2)
    # Half of 90 % of a TiB holds 460 tokens of a GiB.
    monkeypatch.setattr(memory, "_token_bytes", lambda *_: 2**30)
    monkeypatch.setattr(memory, "_free_on", lambda devices: 2**40 * len(devices))
    contexts = [
        value(run("serve", folder, "--devices", devices)[1], "--max-length")
        for devices in ("gpu:0", "gpu:0,1", "gpu:all")
    ]
    assert contexts == ["256", "512", "512"]


def in_bfloat16(file):
    """The bytes of a quantized file's weights in bfloat16, which have no scales."""
    tensors = read_tensors([file]).items()
    return 2 * sum(math.prod(t.shape) for name, t in tensors if "scale" not in name)


def test_a_quantized_checkpoint_needs_a_gpu(run, tmp_path, monkeypatch):
    for name in ("static", "gptq"):
        folder = tmp_path / name
        write_checkpoint(folder, BASE)
        write_quantized(folder, LAYOUTS[name])
    status, _, err = run("serve", tmp_path / "gptq")
    assert status == 1
    assert "runs on GPUs only" in err
    # FP8 becomes bfloat16 on a CPU.
    _, found, err = run("serve", tmp_path / "static")
    assert value(found, "--quantization-encoding") == "float32"
    file = tmp_path / "static" / "model.safetensors"
    assert value(found, "--weight-path") == str(file)
    assert f"{gigabytes(in_bfloat16(file))} of weights" in err
    have_gpus(monkeypatch, 1)
    _, found, _ = run("serve", tmp_path / "static")
    assert "--quantization-encoding" not in found
    _, found, _ = run("serve", tmp_path / "gptq")
    assert value(found, "--quantization-encoding") == "gptq"


# ---- the context


@pytest.mark.parametrize(("mode", "number"), [("on", 2), ("exact", 4)])
def test_the_context_is_a_power_of_two_that_fits(
    run, folder, monkeypatch, mode, number
):
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", mode)
    config = json.loads((folder / "config.json").read_text())
    width = config["num_hidden_layers"] * config["num_key_value_heads"]
    token = 2 * width * config["head_dim"] * number
    weights = (folder / "model.safetensors").stat().st_size

    def free(tokens):
        """Such that half of what is left of 90 % holds this many tokens."""
        return int((weights + 2 * tokens * token) / 0.9) + 8

    for tokens, context in ((600, 512), (512, 512), (511, 256), (256, 256)):
        monkeypatch.setattr(memory, "free_memory", lambda t=tokens: free(t))
        _, found, err = run("generate", folder)
        assert value(found, "--max-length") == str(context)
    assert "context 256 (its limit is 512;" in err
    # Too few tokens, and a memory that the weights alone exceed.
    for size in (free(255), 0):
        monkeypatch.setattr(memory, "free_memory", lambda size=size: size)
        status, _, err = run("generate", folder)
        assert status == 1
        assert "leaves no room for a context" in err
    # The user may know better.
    _, found, _ = run("generate", folder, "--max-length", "512")
    assert value(found, "--max-length") == "512"


@pytest.mark.parametrize(("keep", "doubled"), [("bfloat16", True), ("keep", False)])
def test_fp8_that_a_gpu_does_not_keep_counts_twice(
    run, tmp_path, monkeypatch, keep, doubled
):
    folder = write_checkpoint(tmp_path / "static", BASE)
    write_quantized(folder, LAYOUTS["static"])
    file = folder / "model.safetensors"
    have_gpus(monkeypatch, 1)
    monkeypatch.setattr("max_mistral.gpu.gpu_architecture", lambda: "sm_90a")
    monkeypatch.setenv("MAX_MISTRAL_FP8", keep)
    _, _, err = run("serve", folder)
    sizes = [gigabytes(file.stat().st_size), gigabytes(in_bfloat16(file))]
    assert sizes[0] != sizes[1]
    assert f"{sizes[doubled]} of weights" in err


def test_the_format_of_the_cache_counts(run, folder, monkeypatch):
    weights = (folder / "model.safetensors").stat().st_size
    config = plan._read_config(folder)
    token = memory._token_bytes(config, plan._read_devices("cpu"), "bfloat16")
    free = int((weights + 2 * 256 * token) / 0.9) + 8
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    _, found, _ = run("generate", folder, "--kv-cache-format", "bfloat16")
    assert value(found, "--max-length") == "256"
    # Of twice the size half as many would fit, which is too few.
    status, _, err = run("generate", folder, "--kv-cache-format", "float32")
    assert status == 1
    assert "leaves no room for a context" in err


def test_without_the_kernels_weights_are_float32(folder, monkeypatch):
    checkpoint = read_checkpoint(folder)
    config = plan._read_config(folder)
    devices = plan._read_devices("cpu")
    packed = memory.fit_context(checkpoint, config, devices, "float32").weights
    monkeypatch.setenv("MAX_MISTRAL_KERNELS", "off")
    wide = memory.fit_context(checkpoint, config, devices, "float32").weights
    # The file is bfloat16 and has a header.
    assert wide < 2 * packed < wide + 20_000


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.undo()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(host_memory, "CONTAINER_LIMIT", limit)
    free = memory.free_memory()
    assert free > 10**6
    limit.write_text("1000000\n")
    assert memory.free_memory() == 10**6
    # More than the machine has is no promise of it.
    limit.write_text(f"{2**60}\n")
    assert 10**6 < memory.free_memory() < 2**60
    limit.write_text("max\n")
    assert memory.free_memory() > 10**6


def test_sizes_as_people_say_them():
    assert gigabytes(14_483_498_224) == "14.5 GB"
    assert gigabytes(98_400_000) == "98.4 MB"


# ---- the user's flags


def test_other_flags_go_through_unchanged(run, folder):
    given = ["--port", "8001", "--no-enable-prefix-caching", "--a=b c", "--x", "-1"]
    _, found, _ = run("serve", folder, *given)
    assert found[-len(given) :] == given


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MistralForSequenceClassification", "a reward model or a classifier"),
        ("LlamaForCausalLM", "max_mistral runs MistralForCausalLM"),
    ],
)
def test_another_architecture_is_refused_by_name(run, folder, name, words):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"architectures": [name]}
    path.write_text(json.dumps(config))
    status, found, err = run("serve", folder)
    assert (status, found) == (1, [])
    assert name in err
    assert words in err


def test_what_the_user_picks_is_not_picked(run, folder):
    given = [
        *("--devices=cpu", "--max-length=64", "--quantization-encoding", "float32"),
        *("--served-model-name", "mine", "--custom-architectures", "max_mistral"),
    ]
    _, found, err = run("serve", folder, *given)
    assert found[1:] == ["serve", "--model", str(folder), *given]
    assert "context 64" in err


def test_another_plugin_beside_ours(run, folder):
    _, found, _ = run("serve", folder, "--custom-architectures", "other")
    assert found.count("--custom-architectures") == 2


def test_weights_of_the_users_own(run, gguf, folder, monkeypatch):
    (folder / "model.safetensors").unlink()
    _, found, _ = run("generate", folder, "--weight-path", gguf)
    assert value(found, "--model") == str(folder)
    assert value(found, "--weight-path") == str(gguf)
    # MAX would look for a relative path in the folder.
    monkeypatch.chdir(gguf.parent)
    for model in (folder, gguf.name):
        for flag in ([f"--weight-path={gguf.name}"], ["--weight-path", gguf.name]):
            _, found, _ = run("generate", model, *flag, "--prompt", "x")
            assert value(found, "--weight-path") == str(gguf)
            assert found[-2:] == ["--prompt", "x"]
    shutil.move(gguf, folder)
    _, found, _ = run("generate", folder, "--weight-path", gguf.name)
    assert value(found, "--weight-path") == str(folder / gguf.name)
    status, _, err = run("generate", folder, "--weight-path", "no.gguf")
    assert status == 1
    assert "--weight-path is no.gguf, but there is no such file" in err


def test_weights_of_a_folder_without_a_config(run, gguf, tmp_path):
    ggufs = [gguf, write_gguf(gguf.with_name("model.Q8_0.gguf"))]
    _, found, _ = run("generate", gguf.parent, "--weight-path", gguf)
    assert value(found, "--weight-path") == str(gguf)
    assert (Path(value(found, "--model")) / "config.json").exists()
    _, alone, _ = run("generate", gguf)
    assert found == alone
    source = write_native(tmp_path / "native", BASE, shards=2)
    shards = sorted(source.glob("consolidated*"))
    flags = [part for path in shards for part in ("--weight-path", path.name)]
    _, found, _ = run("generate", source, *flags)
    assert (Path(value(found, "--model")) / "config.json").exists()
    named = [found[i + 1] for i, flag in enumerate(found) if flag == "--weight-path"]
    assert named == [str(path) for path in shards]
    # Of two GGUF files neither config is that of both.
    both = [part for path in ggufs for part in ("--weight-path", path)]
    for model, given, first in (
        (source, flags[:2], shards[0]),
        (gguf.parent, both, gguf),
    ):
        status, found, err = run("generate", model, *given)
        assert (status, found) == (1, [])
        assert f"{model} has no config.json, which --weight-path {first}" in err


def test_a_folder_that_is_given_twice(run, folder, tmp_path):
    _, found, _ = run("generate", folder, "--model", folder)
    assert value(found, "--model") == str(folder)
    native = write_native(tmp_path / "native", BASE)
    other = write_checkpoint(tmp_path / "other", BASE)
    for model, given in ((native, native), (folder, other)):
        status, found, err = run("generate", model, "--model", given)
        assert (status, found) == (2, [])
        assert f"--model is {given}, beside MODEL" in err


def test_an_adapter_beside_the_weights_is_none_of_them(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"an adapter")
    (file,) = read_checkpoint(folder).weights
    assert file.name == "model.safetensors"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_cache_that_is_full(gguf, monkeypatch, number):
    def fail(source, folder):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(model_cache, "prepare", fail)
    full = number == errno.ENOSPC
    with pytest.raises(UserError if full else OSError, match=r"no folder|error"):
        model_cache.prepared(gguf, print)


def test_a_tokenizer_of_the_users_own(run, gguf, folder, tmp_path):
    _, found, _ = run("generate", gguf, "--model", folder)
    assert value(found, "--model") == str(folder)
    assert value(found, "--weight-path") == str(gguf)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "other/one"], "--model is other/one, beside MODEL"),
        (["--model-path=other/one"], "--model is other/one, beside MODEL"),
        (["--model", "."], "--model is ., which has no config.json"),
        (["--kv-cache-format", "int3"], "--kv-cache-format is 'int3'"),
        (["--weight-path", "other.gguf"], "Leave --weight-path out, or give as MODEL"),
        (["--models", "{}"], "says itself which model"),
        (["--config-file", "c.yaml"], "says itself which model"),
        (["--devices", "tpu"], "--devices is 'tpu'"),
        (["--devices", "gpu:0"], "--devices is 'gpu:0'"),
        (["--devices"], "--devices has no value"),
    ],
)
def test_flags_that_contradict_are_refused(run, gguf, flags, message):
    status, found, err = run("serve", gguf, *flags)
    assert (status, found) == (2, [])
    assert message in err
    assert err.splitlines()[-1].startswith("Error: ")


def test_the_last_of_a_flag_counts():
    flags = Flags(("--a", "1", "--a=2", "--b"))
    assert flags.value("--a") == "2"
    assert flags.values("--a") == ["1", "2"]
    assert flags.value("--c") is None
    assert not flags.has("--aa")
    assert flags.without("--a") == ("--b",)
    assert flags.without("--b") == ("--a", "1", "--a=2")
    with pytest.raises(UsageError, match="--b has no value"):
        flags.value("--b")


# ---- running it


def test_a_dry_run_prints_the_command_only(run, gguf, capsys):
    command.main(["serve", str(gguf), "--dry-run", "--port", "1"])
    printed = shlex.split(capsys.readouterr().out)
    _, found, _ = run("serve", gguf, "--port", "1")
    assert printed == found


def test_a_path_that_is_no_text(gguf, tmp_path, capfdbinary):
    odd = gguf.rename(os.fsdecode(os.fsencode(gguf.with_name("caf")) + b"\xe9.gguf"))
    for arguments in (
        ["serve", str(odd), "--dry-run"],
        ["prepare", str(odd), str(tmp_path / "new")],
    ):
        # As Python has it: pytest's own stdout takes all.
        with (
            open(1, "w", encoding="utf-8", errors="strict", closefd=False) as stdout,
            contextlib.redirect_stdout(stdout),
        ):
            command.main(arguments)
        assert os.fsencode(odd) in capfdbinary.readouterr().out


def test_it_becomes_max(tmp_path, folder):
    """A process of its own, with another program in the place of max."""
    stub = tmp_path / "bin" / "max"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONWARNINGS" "$@"\nexit 7\n')
    stub.chmod(0o755)
    code = (
        f"import sys; sys.executable = {str(stub.with_name('python'))!r}\n"
        "from max_mistral.command import main; main()"
    )
    arguments = ["generate", str(folder), "--devices", "cpu", "--prompt", "a 'b'\n$c"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=dict(os.environ) | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 7, result.stderr
    assert result.stdout.startswith("ignore\ngenerate\n--custom-architectures\n")
    assert result.stdout.endswith("--prompt\na 'b'\n$c\n")


def test_the_installed_script_is_this_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["max-mistral"].split(":")
    assert getattr(importlib.import_module(module), name) is command.main


def test_max_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="no max command"):
        command._find_max()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "max").touch(mode=0o755)
    assert command._find_max() == str(tmp_path / "bin" / "max")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: max-mistral serve"),
        (["server"], "'server' is no subcommand"),
        (["a b.gguf"], "Did you mean max-mistral generate 'a b.gguf'?"),
        (["user/repo"], "Did you mean max-mistral generate user/repo?"),
        (["serve"], "MODEL comes first"),
        (["serve", "--port", "1", "model"], "MODEL comes first"),
        (["serve", ""], "MODEL comes first"),
        (["doctor", "--verbose"], "--check only"),
        (["prepare", "one"], "usage: max-mistral prepare"),
        (["prepare", "one"], "required: DESTINATION"),
    ],
)
def test_usage_errors_exit_with_2(run, arguments, message):
    status, _, err = run(*arguments)
    assert status == 2
    assert message in err


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "-h"], ["doctor", "-h"]])
def test_help(arguments, capsys):
    command.main(arguments)
    assert capsys.readouterr().out.startswith("usage: max-mistral serve MODEL")


def test_prepare_is_the_modules(gguf, tmp_path, capsys):
    command.main(["prepare", str(gguf), str(tmp_path / "new")])
    assert (tmp_path / "new" / "config.json").exists()
    assert "--weight-path" in capsys.readouterr().out


# ---- models that are not there or not ours


@pytest.mark.parametrize("name", ["no.gguf", "./no/such", "~/no", "/no/such", "a/b/c"])
def test_a_path_that_does_not_exist(run, name):
    status, _, err = run("serve", name)
    assert status == 1
    assert f"{name} does not exist" in err


def test_a_file_that_is_no_gguf(run, folder):
    status, _, err = run("serve", folder / "config.json")
    assert status == 1
    assert "is no GGUF file" in err
    (folder / "x.gguf").write_bytes(b"GGUFnot")
    status, _, err = run("serve", folder / "x.gguf")
    assert status == 1
    assert "not a complete GGUF file" in err


def test_a_suffix_that_max_does_not_know(run, gguf, folder):
    path = gguf.rename(gguf.with_name("big.GGUF"))
    for arguments in ([path], [path.parent], [folder, "--weight-path", path]):
        status, found, err = run("serve", *arguments)
        assert (status, found) == (1, [])
        assert "big.GGUF ends in .GGUF" in err
        assert "Rename it to big.gguf." in err


@pytest.mark.parametrize(
    "wrong",
    [
        {"head_dim": "x"},
        {"max_position_embeddings": "x"},
        {"layer_types": [1]},
        {"dtype": "x"},
        {"rope_parameters": 1},
    ],
)
def test_a_config_of_wrong_types(run, folder, wrong):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    status, found, err = run("serve", folder)
    assert (status, found) == (1, [])
    assert "config.json" in err
    assert "Traceback" not in err


def test_folders_without_a_model(run, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, err = run("serve", tmp_path / "empty")
    assert status == 1
    assert "has no weights (*.safetensors or one .gguf). Give" in err
    (tmp_path / "empty" / "pytorch_model.bin").touch()
    assert "; it has pytorch_model.bin. Give" in run("serve", tmp_path / "empty")[2]
    (tmp_path / "empty" / "model.safetensors").touch()
    assert "has no config.json" in run("serve", tmp_path / "empty")[2]


def test_a_folder_with_several_gguf_files_lists_them(run, gguf):
    write_gguf(gguf.with_name("model.Q8_0.gguf"))
    status, _, err = run("serve", gguf.parent)
    assert status == 1
    assert "2 GGUF files: model.Q4_K_M.gguf, model.Q8_0.gguf. Give the" in err


def test_what_prepare_made_of_a_gguf_file(run, gguf, tmp_path):
    command.main(["prepare", str(gguf), str(tmp_path / "new")])
    status, _, err = run("generate", tmp_path / "new")
    assert status == 1
    assert "it has config.json. If prepare made it from a GGUF file, give that" in err
    _, found, _ = run("generate", tmp_path / "new", "--weight-path", gguf)
    assert value(found, "--model") == str(tmp_path / "new")
    assert value(found, "--weight-path") == str(gguf)


def test_parts_of_a_gguf_file(run, tmp_path):
    for i in (1, 2):
        (tmp_path / f"m-0000{i}-of-00002.gguf").touch()
    for path in (tmp_path, tmp_path / "m-00001-of-00002.gguf"):
        status, _, err = run("serve", path)
        assert status == 1
        assert "m-00001-of-00002.gguf is one part of a split GGUF file" in err


def test_architectures_that_are_not_ours(run, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlavaForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(config))
    status, _, err = run("serve", folder)
    assert status == 1
    assert "architectures = ['LlavaForConditionalGeneration']" in err
    source = write_gguf(tmp_path / "g.gguf", architecture="gemma")
    status, _, err = run("serve", source)
    assert status == 1
    assert "'gemma'" in err


def test_a_damaged_checkpoint_is_refused_before_max_starts(run, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    status, found, err = run("serve", folder)
    assert (status, found) == (1, [])
    assert "is not a complete safetensors file" in err


@pytest.mark.parametrize(
    ("names", "tag", "found"),
    [
        (["m.Q4_K_M.gguf", "m.Q4_K_S.gguf"], "q4_k_m", "m.Q4_K_M.gguf"),
        (["m-Q8_0.gguf", "mmproj-Q8_0.gguf"], "Q8_0", "m-Q8_0.gguf"),
        (["sub/m-BF16.gguf", "m-Q8_0.gguf"], "BF16", "sub/m-BF16.gguf"),
        (["m-IQ4_XS.gguf", "m.IQ4_XS.imatrix"], None, "m-IQ4_XS.gguf"),
    ],
)
def test_an_encodings_file(names, tag, found):
    assert pick_gguf(names, "repo", tag) == found


@pytest.mark.parametrize(
    ("names", "tag", "message"),
    [
        (["m.Q4_K_M.gguf"], "Q4_K", "whose name ends in Q4_K; it has m.Q4_K_M.gguf"),
        (["README.md"], None, "no GGUF file of a model"),
        (
            ["a.Q8_0.gguf", "b.Q8_0.gguf"],
            "Q8_0",
            "2 GGUF files whose name ends in Q8_0",
        ),
        (["m-Q8_0-00001-of-00002.gguf"], "Q8_0", "one part of a split"),
        ([f"m{i}.gguf" for i in range(40)], None, "and 10 more"),
    ],
)
def test_an_encoding_that_is_not_one_file(names, tag, message):
    with pytest.raises(UserError, match=message):
        pick_gguf(names, "repo", tag)


# ---- the cache


def test_a_changed_file_is_prepared_anew(run, gguf):
    _, first, _ = run("generate", gguf)
    write_gguf(gguf, eos=1)
    os.utime(gguf, ns=(1, 1))
    _, second, _ = run("generate", gguf)
    assert value(second, "--model") != value(first, "--model")
    assert prepared_config(second)["eos_token_id"] == 1


def test_a_changed_file_of_a_folder_is_prepared_anew(run, tmp_path):
    source = write_native(tmp_path / "native", BASE)
    run("generate", source)
    params = json.loads((source / "params.json").read_text())
    (source / "params.json").write_text(json.dumps(params | {"norm_eps": 2e-5}))
    _, second, err = run("generate", source)
    assert "Preparing" in err
    assert prepared_config(second)["rms_norm_eps"] == 2e-5


def prepared_config(command):
    """The config.json of the folder that a command names."""
    return json.loads((Path(value(command, "--model")) / "config.json").read_text())


@pytest.fixture
def copied_code(tmp_path, monkeypatch):
    """A copy of this package's sources, which count in the place of them."""
    sources = tmp_path / "sources"
    shutil.copytree(model_cache._SOURCES, sources)
    monkeypatch.setattr(model_cache, "_SOURCES", sources)
    yield sources
    model_cache._code.cache_clear()


@pytest.mark.parametrize(
    "name", ["prepare/gguf_config.py", "prepare/lora/gguf.py", "fields.py"]
)
def test_other_code_prepares_anew(run, gguf, copied_code, name):
    _, first, _ = run("generate", gguf)
    with (copied_code / name).open("a") as file:
        file.write("# mended")
    model_cache._code.cache_clear()
    _, second, _ = run("generate", gguf)
    assert value(second, "--model") != value(first, "--model")


def test_another_version_of_a_library_prepares_anew(run, gguf, monkeypatch):
    def another(name):
        # It has a version only where it is installed.
        assert name != "max_mistral"
        return "0.0"

    _, first, _ = run("generate", gguf)
    monkeypatch.setattr(own_folders, "version", another)
    model_cache._code.cache_clear()
    _, second, _ = run("generate", gguf)
    model_cache._code.cache_clear()
    assert value(second, "--model") != value(first, "--model")


def test_what_a_group_may_write_to_is_prepared_once(run, tmp_path):
    source = write_native(tmp_path / "native", BASE, dtype="bfloat16")
    for path in source.iterdir():
        path.chmod(0o664)
    assert (source / "tekken.json").exists()
    assert "Preparing" in run("generate", source)[2]
    assert "Preparing" not in run("generate", source)[2]


def test_a_source_that_cannot_be_read_is_not_the_caches_fault(run, gguf, monkeypatch):
    def unreadable(source, folder):
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(model_cache, "prepare", unreadable)
    status, found, err = run("generate", gguf)
    assert (status, found) == (1, [])
    assert err.splitlines()[1:] == [f"Error: {gguf}: Permission denied."]


def test_no_other_user_can_write_to_it(run, gguf):
    before = os.umask(0)
    try:
        _, found, _ = run("generate", gguf)
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    folder = Path(value(found, "--model"))
    for path in (folder.parent.parent, folder.parent, folder, *folder.iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_may_have_written_is_made_anew(run, gguf, what):
    folder = Path(value(run("generate", gguf)[1], "--model"))
    config = folder / "config.json"
    good = config.read_text()
    config.write_text("{}")
    (folder if what == "folder" else config).chmod(0o777)
    assert value(run("generate", gguf)[1], "--model") == str(folder)
    assert config.read_text() == good
    assert not stat.S_IMODE(folder.stat().st_mode) & 0o077


def test_a_cache_that_cannot_be_written(run, gguf, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    _, found, err = run("generate", gguf)
    assert Path(value(found, "--model")).is_relative_to(tmp_path / "tmp")
    assert "Nothing can be kept in" in err
    shutil.rmtree(tmp_path / "tmp")
    (tmp_path / "tmp").touch()
    status, _, err = run("generate", gguf)
    assert status == 1
    assert "no folder to prepare the model in" in err


def test_a_failure_leaves_nothing(run, tmp_path):
    source = write_gguf(tmp_path / "g.gguf", architecture="gemma")
    assert run("serve", source)[0] == 1
    models = tmp_path / "cache" / "max_mistral" / "models"
    assert [path.name for path in models.iterdir()] == ["lock"]
