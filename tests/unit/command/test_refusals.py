"""What the max-mistral command refuses before max starts."""

import json
from unittest.mock import Mock

import pytest
from transformers import AutoConfig, PretrainedConfig

from max_mistral import command, hf_config
from max_mistral.command.checkpoint import pick_gguf
from max_mistral.errors import UserError
from tests.commands import value
from tests.unit.test_counts import HOSTILE
from tests.unit.test_gguf import write_gguf


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


@pytest.mark.parametrize(("hostile", "says"), HOSTILE)
def test_a_hostile_config_is_refused_before_transformers_reads_it(
    run, folder, monkeypatch, hostile, says
):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if "text_config" in hostile:
        hostile = hostile | {"text_config": config | hostile["text_config"]}
    path.write_text(json.dumps(config | hostile))
    reads = Mock()
    monkeypatch.setattr(AutoConfig, "from_pretrained", reads)
    monkeypatch.setattr(PretrainedConfig, "get_config_dict", reads)
    status, found, err = run("serve", folder)
    assert (status, found) == (1, [])
    assert says in err
    assert not reads.called


def test_another_model_behind_the_name_of_one_of_ours(run, folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    tower = config | {"model_type": "mistral4"}
    whole = config | {"model_type": "mistral3", "text_config": tower}
    path.write_text(json.dumps(whole))
    status, found, err = run("serve", folder)
    assert (status, found) == (1, [])
    assert "config.json is of Mistral Small 4" in err


@pytest.mark.parametrize(
    ("checked", "says"),
    [
        (True, "model_type = 'own'; expected"),
        (False, "config.json cannot be read by transformers"),
    ],
)
def test_nobody_is_asked_about_a_checkpoints_own_python(
    run, folder, monkeypatch, checked, says
):
    """Not even if transformers comes to read such a config."""
    if not checked:
        monkeypatch.setattr(hf_config, "check_raw", lambda source, raw: None)
    path = folder / "config.json"
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    asks = Mock(side_effect=EOFError)
    monkeypatch.setattr("builtins.input", asks)
    status, found, err = run("serve", folder)
    assert (status, found) == (1, [])
    assert says in err
    assert not asks.called


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
        (["m-00001-of-00001.gguf"], None, "m-00001-of-00001.gguf"),
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
