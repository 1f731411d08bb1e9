"""How MAX loads and compiles a model."""

import inspect
from types import SimpleNamespace

from tests.seams import find, has, says, seam, takes

MODEL = "max.pipelines.lib:PipelineModelWithKVCache"


@seam(
    "`load_graphs` of the pipeline model calls `_load_state_dict`, "
    "`_create_model_config` and `graph_specs`",
    "_load_state_dict _create_model_config graph_specs",
    "follow MAX's `pipelines/lib/interfaces/pipeline_model.py`",
)
def load_graphs():
    hooks = ("_load_state_dict", "_create_model_config", "graph_specs")
    has(MODEL, " ".join(hooks))
    base = "max.pipelines.lib.interfaces.pipeline_model:PipelineModel"
    says(f"{base}.load_graphs", *(rf"self\.{hook}\(" for hook in hooks))
    arguments = "devices kv_cache_config weights adapter return_logits"
    takes(f"{MODEL}.__init__", 3, f"{arguments} memory_plan max_batch_size")
    names = "model_config_cls batch_processor_cls batch_processor arch_config_as"
    names += " kv_params device_refs pipeline_config prepare_initial_token_inputs"
    has(MODEL, names)


@seam(
    "`_bind_graph_inputs(input_tree)` and `GraphSpec(graph, name, types, weights=)`",
    "_bind_graph_inputs GraphSpec",
    "see `graph_specs` of MAX's `architectures/llama3/model.py`",
)
def graph_spec():
    takes(f"{MODEL}._bind_graph_inputs", 2)
    takes("max.pipelines.lib.graph_specs:GraphSpec", 3, "weights")
    assert find("max.pipelines.lib.graph_specs:GraphRole").DECODER


@seam(
    "an adapter gets `huggingface_config` and `pipeline_config` as keywords",
    "parse_state_dict_from_weights",
    "adapt the signatures in `weight_adapters.py`",
)
def adapter_keywords():
    from max.pipelines.lib.utils import parse_state_dict_from_weights

    config = SimpleNamespace(model=SimpleNamespace(huggingface_config="hf"))
    asked = []
    parse_state_dict_from_weights(config, {}, lambda *a, **k: asked.append((a, k)))
    expected = {"huggingface_config": "hf", "pipeline_config": config}
    assert asked == [(({},), expected)]


@seam(
    "`Module.load_state_dict` is strict by default; `state_dict(auto_initialize=)`",
    "load_state_dict",
    "a weight that is not loaded is zeros: find the new way to be strict",
)
def strict_load():
    load = find("max.nn.layer:Module.load_state_dict")
    assert inspect.signature(load).parameters["strict"].default is True
    takes("max.nn.layer:Module.load_state_dict", 2, "weight_alignment")
    takes("max.nn.layer:Module.state_dict", 1, "auto_initialize")


@seam(
    "`_omit_module_attr_name` leaves a module's attribute out of weights' names",
    "_omit_module_attr_name",
    "weights of attention would be called `qkv_proj.q_proj`: find its new name",
)
def omitted_name():
    from max.dtype import DType
    from max.graph import DeviceRef
    from max.nn.layer import Module
    from max.nn.linear import Linear

    class Inner(Module):
        _omit_module_attr_name = True

        def __init__(self):
            super().__init__()
            self.q_proj = Linear(2, 2, DType.float32, DeviceRef.CPU())

        def __call__(self):
            raise NotImplementedError

    class Outer(Inner):
        _omit_module_attr_name = False

        def __init__(self):
            Module.__init__(self)
            self.qkv_proj = Inner()

    assert list(Outer().raw_state_dict()) == ["q_proj.weight"]


@seam(
    "`mojo.run.subprocess_run_mojo(arguments)` runs MAX's own compiler",
    "subprocess_run_mojo",
    "`mojo precompile` must be of the MAX that loads the kernels",
)
def mojo_compiler():
    takes("mojo.run:subprocess_run_mojo", 1, "check capture_output text")


@seam(
    "`InferenceSession` compiles and finds a graph by its `compile`, and a graph's "
    "module as the graph itself",
    "find_at_once kernel_libraries_paths",
    "time a second start (`python -m benchmarks.start`): if MAX finds a graph as fast "
    "as its module, drop `workarounds/graph_cache.py`",
)
def how_graphs_are_found():
    session = "max.engine:InferenceSession"
    takes(f"{session}.compile", 2, "custom_extensions tile_based_fusion")
    says(f"{session}.load", r"self\.load_all\(")
    says(f"{session}.load_all", r"self\.compile_reusing_mefs\(")
    says(f"{session}.compile_reusing_mefs", r"self\.compile\(")
    has("max.graph:Graph", "module kernel_libraries_paths")
    # What takes the time, and is not done for a module.
    says("max.engine.api", "seed_kernel_decls", r"elif isinstance\(model, Module\)")
