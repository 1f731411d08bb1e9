"""What the max-mistral command does with the user's flags."""

import json
import shutil
from pathlib import Path

import pytest

from max_mistral.command.checkpoint import read_checkpoint
from max_mistral.command.errors import UsageError
from max_mistral.command.flags import Flags
from tests.commands import value
from tests.unit.test_gguf import write_gguf
from workbench.checkpoints import BASE, write_checkpoint, write_native


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
        (["--lora-paths", "a"], "--lora-paths is for adapters that a server loads"),
        (
            ["--lora-paths=a", "--enable-lora"],
            "by max-mistral prepare BASE NEW_FOLDER",
        ),
        (["--enable-lora"], "--enable-lora is for adapters that a server loads"),
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
