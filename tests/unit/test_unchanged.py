"""A weight file that changes while a model is loaded is noticed to the end."""

from functools import partial
from unittest.mock import MagicMock, Mock

import pytest
from max.pipelines.lib.graph_specs import GraphRole

from max_mistral import model as model_module
from max_mistral import switches, weight_adapters
from max_mistral.errors import UserError
from max_mistral.prepare import prepare
from max_mistral.weights import gguf_file
from tests.harness import load_safetensors
from tests.unit.test_gguf import write_gguf
from workbench.checkpoints import BASE, write_checkpoint
from workbench.runner import make_pipeline_config

CHANGED = "changed while the weights were loaded"


def replace_after(monkeypatch, where, name, path):
    """Has another file in a file's place each time that a function has run."""
    function = getattr(where, name)

    def replacing(*arguments):
        result = function(*arguments)
        other = path.with_suffix(".new")
        other.write_bytes(path.read_bytes())
        other.replace(path)
        return result

    monkeypatch.setattr(where, name, replacing)


@pytest.mark.parametrize(
    ("switch", "function"),
    [(switches.KEEP_PACKED, "pack_matrix"), (switches.KERNELS, "cast")],
)
def test_one_that_changes_is_refused_if_nothing_is_kept(
    tmp_path, monkeypatch, switch, function
):
    """Nor packed, with the kernels off, as on a GPU."""
    monkeypatch.setenv(switch, "off")
    path = write_checkpoint(tmp_path / "m", BASE) / "model.safetensors"
    on_cpu = make_pipeline_config(path.parent)
    assert load_safetensors(on_cpu)
    replace_after(monkeypatch, weight_adapters, function, path)
    with pytest.raises(UserError, match=CHANGED):
        load_safetensors(on_cpu)


@pytest.mark.parametrize(
    ("switch", "function"),
    [(switches.KEEP_PACKED, "pack_matrix"), (switches.KERNELS, "dequantize_rows")],
)
def test_so_is_a_gguf_file_that_changes(tmp_path, monkeypatch, switch, function):
    monkeypatch.setenv(switch, "off")
    path = write_gguf(tmp_path / "m.gguf")
    prepare(path, tmp_path / "model")
    flags = {"weight_path": [path], "max_length": 64}
    on_cpu = make_pipeline_config(tmp_path / "model", **flags)
    load = partial(
        weight_adapters.convert_gguf_state_dict,
        {},
        on_cpu.model.huggingface_config,
        on_cpu,
    )
    assert load()
    replace_after(monkeypatch, gguf_file, function, path)
    with pytest.raises(UserError, match=CHANGED):
        load()


def test_one_that_changes_while_graphs_load_is_refused(tmp_path, monkeypatch):
    """As weights that MAX has mapped are copied to a GPU."""
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(b"weights")
    monkeypatch.setattr(model_module, "use_right_matmul", lambda *_: ())
    model, changes = MagicMock(), []
    of_max = model.pipeline_config.model
    of_max.resolved_weight_paths, of_max.force_download = lambda: [checkpoint], False

    def load_graphs(_):
        for text in changes:
            checkpoint.write_bytes(text)
        return {GraphRole.DECODER: "graph"}

    model.load_graphs = load_graphs
    load = partial(model_module.MistralModel.load_model, model, Mock())
    assert load() == "graph"
    changes.append(b"another one")
    with pytest.raises(UserError, match=CHANGED):
        load()
    # Where MAX itself fetches the file again at each look.
    checkpoint.write_bytes(b"weights")
    of_max.force_download = True
    assert load() == "graph"
