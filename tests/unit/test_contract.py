"""What max_mistral relies on in MAX 26.7 and others, each by name.

Read top-down when an update of MAX breaks something: each seam that has moved
fails here under its own name, with our files that use it and what to do. The
table in CONTRIBUTING.md is made of them. Nothing is compiled.
"""

import ast
import asyncio
import dataclasses
import inspect
import re
import textwrap
from collections import OrderedDict
from types import SimpleNamespace

import pytest

from max_mistral.host_scores import TOP
from tests.seams import (
    CONTRIBUTING,
    SEAMS,
    contributing,
    find,
    foreign_privates,
    has,
    says,
    seam,
    takes,
)

ROUTES = "max.serve.router.openai_routes"
TEXT_TOKENIZER = "max.pipelines.lib:TextTokenizer"
TYPES = "max.pipelines.modeling.types"
RAGGED = "max.pipelines.lib.interfaces.batch_processor"
LLAMA = "max.pipelines.architectures.llama3.batch_processor:Llama3BatchProcessorBase"
MODEL = "max.pipelines.lib:PipelineModelWithKVCache"


# Registration and configs.


@seam(
    "MAX's first import compiles `max._kv_cache_ops`, for which it needs a C compiler",
    "_kv_cache_ops",
    "if MAX needs none any more, drop `check_max_compiles` from `_compat.py` and the "
    "compiler from README",
)
def a_module_that_max_compiles():
    says("max._kv_cache_ops", "from .kv_cache_ops import")


@seam(
    "`SupportedArchitecture` and its fields",
    "SupportedArchitecture",
    "compare with how MAX's `architectures/llama3/arch.py` declares itself",
)
def architecture():
    fields = "name task example_repo_ids default_encoding supported_encodings"
    fields += " default_weights_format weight_adapters pipeline_model config batching"
    fields += " context_type tokenizer tool_parser reasoning_parser memory_planner"
    fields += " default_structured_output_any_whitespace multi_gpu_supported"
    fields += " supports_overlap_scheduler supports_device_graph_capture pipeline_cls"
    takes("max.pipelines.lib:SupportedArchitecture", 0, fields)


@seam(
    "`--custom-architectures max_mistral` imports the module and registers its "
    "`ARCHITECTURES` over MAX's own",
    "ARCHITECTURES",
    "see `import_custom_architectures` in MAX's `pipelines/lib/arch_lookup.py`",
)
def custom_architectures():
    from max.pipelines.lib.arch_lookup import ArchLookup

    source = inspect.getsource(ArchLookup.import_custom_architectures)
    assert "module.ARCHITECTURES" in source
    assert "allow_override=True" in source


@seam(
    "MAX calls `calculate_max_seq_len(huggingface_config, model_config)` by position",
    "calculate_max_seq_len",
    "find the new call in `_resolve_max_lengths` or beside it; `_max_calls.py` tells "
    "the two orders apart by type",
)
def order_of_max_seq_len():
    has("max.pipelines.lib.interfaces.arch_config:ArchConfig", "calculate_max_seq_len")
    says(
        "max.pipelines.lib.config.config",
        r"calculate_max_seq_len\(\s*model\.huggingface_config, model\s*\)",
    )


@seam(
    "`ArchConfig.initialize(pipeline_config, model_config, max_seq_len=)`",
    "initialize",
    "take the new argument, and derive it where a script gives none",
)
def initialize():
    cls = "max.pipelines.lib.interfaces.arch_config:ArchConfigWithKVCache"
    takes(f"{cls}.initialize", 2, "max_seq_len")
    has(cls, "get_kv_params get_max_seq_len")


@seam(
    "`_select_quantization_encoding(model_config, default_encoding)`",
    "_select_quantization_encoding",
    "MAX's own `ArchConfigWithKVCache` calls it too: do as it does",
)
def select_encoding():
    module = "max.pipelines.lib.config.model_config"
    takes(f"{module}:_select_quantization_encoding", 2)
    takes("max.pipelines.kv_cache:cache_dtype_for_encoding", 2)
    says("max.pipelines.lib.interfaces.arch_config", "_select_quantization_encoding")


@seam(
    "`PipelineConfig` is frozen; structured output is refused on a CPU before a "
    "tokenizer is made",
    "settle_config",
    "if MAX lets an architecture set `sampling` and `runtime`, or serves structured "
    "output on a CPU, drop `settle_config`",
)
def frozen_configs():
    from max.pipelines.lib import PipelineConfig

    assert PipelineConfig.model_config["frozen"]
    assert {"sampling", "runtime", "model"} <= {
        *PipelineConfig.model_fields,
        *vars(PipelineConfig),
    }
    fields = PipelineConfig.model_fields
    assert "enable_structured_output" in fields["sampling"].annotation.model_fields
    assert "tool_parser" in fields["runtime"].annotation.model_fields
    says("max.pipelines.lib.config.config", "output is not currently supported on CPU")


@seam(
    "`MemoryEstimator.plan(pipeline_config, architecture)` and "
    "`planned_max_batch_size`",
    "MemoryEstimator architecture_for_config",
    "see how MAX's registry plans before it makes a model",
)
def memory_plan():
    takes("max.pipelines.lib.memory_estimation:MemoryEstimator.plan", 2)
    takes("max.pipelines.lib:PIPELINE_REGISTRY.architecture_for_config", 1)
    plan = find("max.pipelines.lib.memory_estimation:MemoryPlan")
    assert "planned_max_batch_size" in {f.name for f in dataclasses.fields(plan)}


@seam(
    "MAX takes one request at a time on a CPU, unless a planner's "
    "`infer_max_batch_size(pipeline_config, devices, weights_size)` says how many; "
    "`kv_cache_memory_size` says what they take",
    "infer_max_batch_size kv_cache_memory_size",
    "see `plan` of `MemoryEstimator` for what it asks a planner",
)
def requests_at_a_time():
    planner = "max.pipelines.kv_cache.memory_planner:MemoryPlanner"
    takes(f"{planner}.infer_max_batch_size", 4)
    estimator = "max.pipelines.lib.memory_estimation:MemoryEstimator"
    says(f"{estimator}.plan", r"planner\.infer_max_batch_size\(")
    says(f"{estimator}._infer_optimal_batch_size", r"is_host:[^:]*return 1\n")
    sizes = inspect.signature(
        find("max.pipelines.kv_cache.registry:kv_cache_memory_size")
    )
    asked = "params available_cache_memory max_batch_size max_seq_len is_di_enabled"
    assert {*asked.split(), "model_name"} <= set(sizes.parameters)


# The model: how MAX loads and compiles one.


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


# A step's inputs, in the order in which graph and buffers agree.


@seam(
    "the order and dtypes of `ragged_batch_inputs` and `signal_inputs`",
    "ragged_batch_inputs signal_inputs",
    "`inputs.in_order` states the order once; its names are MAX's",
)
def batch_inputs():
    from max.dtype import DType
    from max.graph import DeviceRef

    cpu = DeviceRef.CPU()
    fields = (
        *("tokens", "row_offsets", "return_n_logits"),
        *("data_parallel_splits", "host_row_offsets"),
    )
    found = find(f"{RAGGED}:ragged_batch_inputs")(cpu, fields, data_parallel_degree=2)
    dtypes = [DType.int64, DType.uint32, DType.int64, DType.int64, DType.uint32]
    assert list(found) == list(fields)
    assert [each.dtype for each in found.values()] == dtypes
    assert int(found["data_parallel_splits"].shape[0]) == 3
    assert list(find(f"{RAGGED}:signal_inputs")([])) == ["signal"]


@seam(
    "`max.tree` keeps an `OrderedDict`'s order, and sorts a plain dict's keys",
    "tree",
    "`inputs.py` and `flat_graph.py` flatten and unflatten by it",
)
def order_of_trees():
    from max import tree

    ordered = OrderedDict(b=[1, 2], a=OrderedDict(z=3, y=()))
    leaves, structure = tree.flatten(ordered)
    assert leaves == tree.leaves(ordered) == [1, 2, 3]
    assert tree.unflatten(structure, leaves) == ordered
    assert tree.leaves({"b": 1, "a": 2}) == [2, 1]
    takes("max.tree:leaves", 1, "leaf")


@seam(
    "`KVCacheInputsPerDevice`: blocks, lengths, lookup table, the two maxima, then "
    "the page stride",
    "KVCacheInputsPerDevice PagedCacheValues page_stride",
    "the kernels `mistral_attention` (Mojo) and `packed_attention` take four of them",
)
def cache_inputs():
    fields = dataclasses.fields(find("max.nn.kv_cache:KVCacheInputsPerDevice"))
    expected = ["kv_blocks", "cache_lengths", "lookup_table"]
    expected += ["max_prompt_length", "max_cache_length", "page_stride"]
    assert [field.name for field in fields][:6] == expected
    # The others are there for GPUs and other attentions only.
    assert all(field.default is None for field in fields[6:])


@seam(
    "a KV cache's blocks are `[pages, 2, layers, page_size, heads, head_dim]`, which "
    "MAX moves as whole pages only; `rope_split_store_ragged` rounds to bfloat16 on a "
    "CPU",
    "kv_blocks",
    "`kernels/kv_cache.mojo` computes a key's place from it, and has an order of its "
    "own within a page",
)
def cache_blocks():
    from max.dtype import DType

    caches = _two_caches()
    blocks = find("max.tree:leaves")(caches.get_symbolic_inputs())[0]
    assert [str(d) for d in blocks.shape][1:] == ["2", "3", "128", "2", "16"]
    assert blocks.dtype == DType.float32


@seam(
    "`KVCacheConfig.to_params(window_size=, allow_kv_head_replication=)`, and "
    "`MultiKVCacheParams.from_params` keeps the order of its children",
    "MultiKVCacheParams to_params",
    "`kv_cache.py` counts on full before sliding: see MAX's gpt_oss and Gemma",
)
def two_caches():
    caches = _two_caches()
    assert list(caches.children) == ["full", "sliding"]
    assert [c.num_layers for c in caches.children.values()] == [3, 1]
    tree = caches.get_symbolic_inputs()
    one = caches.children["full"].get_symbolic_inputs()
    leaves = find("max.tree:leaves")
    assert len(leaves(tree)) == 2 * len(leaves(one))
    layers = [int(x.shape[2]) for x in leaves(tree) if len(x.shape) == 6]
    assert layers == [3, 1]


def _two_caches():
    from max.dtype import DType
    from max.graph import DeviceRef
    from max.nn.kv_cache import MultiKVCacheParams
    from max.pipelines.lib import KVCacheConfig

    def params(layers, window):
        return KVCacheConfig(kv_cache_page_size=128).to_params(
            dtype=DType.float32,
            n_kv_heads=2,
            head_dim=16,
            num_layers=layers,
            devices=[DeviceRef.CPU()],
            data_parallel_degree=1,
            allow_kv_head_replication=True,
            window_size=window,
        )

    both = {"full": params(3, None), "sliding": params(1, 128)}
    return MultiKVCacheParams.from_params(both)


@seam(
    "`Llama3BatchProcessorBase` stages a batch and calls `_make_inputs` with keywords",
    "_make_inputs _stage_ragged_token_inputs Llama3BatchProcessorBase",
    "see MAX's `Llama3BatchProcessor`, and `MistralInputs` for what the graph takes",
)
def make_inputs():
    names = "tokens input_row_offsets return_n_logits signal_buffers kv_cache_inputs"
    names += " data_parallel_splits"
    takes(f"{LLAMA}._make_inputs", 1, names)
    takes(f"{LLAMA}._stage_ragged_token_inputs", 2)
    says(f"{LLAMA}._stage_ragged_token_inputs", r"return .*, host_row_offsets\n")
    called = [rf"\b{name}=" for name in names.split()]
    says(f"{LLAMA}.prepare_initial_token_inputs", r"self\._make_inputs\(", *called)
    has(LLAMA, "process_outputs get_symbolic_inputs runtime")


@seam(
    "`_input_row_offsets_prealloc`: 0, 1, 2 ... for as many requests as a batch has",
    "_input_row_offsets_prealloc",
    "`prepare_next_token_inputs` can make its own row offsets instead",
)
def row_offsets():
    has(f"{RAGGED}:RaggedBatchProcessor", "_input_row_offsets_prealloc")
    says(f"{RAGGED}:RaggedBatchProcessor", r"np\.arange\(runtime\.max_batch_size \+ 1")


# The graph: layers of max.nn that ours extend, or call in one way only.


@seam(
    "`RotaryEmbedding` makes its table in `freqs_cis_base` from `_compute_inv_freqs` "
    "and keeps it in `_freqs_cis`",
    "_compute_inv_freqs _freqs_cis freqs_cis_base",
    "`ScaledRotaryEmbedding` replaces the frequencies and scales the table",
)
def rotary_table():
    cls = "max.nn.rotary_embedding:RotaryEmbedding"
    has(cls, "_compute_inv_freqs freqs_cis_base freqs_cis _freqs_cis head_dim theta")
    made = (r"self\._compute_inv_freqs\(\)", r"self\._freqs_cis =")
    says(f"{cls}.freqs_cis_base", *made)
    names = "dim n_heads theta max_seq_len head_dim interleaved"
    takes(f"{cls}.__init__", 1, names)


@seam(
    "`_postprocess_logits` reads `norm_shards`, `lm_head`, `return_logits` and "
    "`devices`",
    "_postprocess_logits norm_shards",
    "see `DistributedLogitsPostprocessMixin`; the outputs' order is in `Mistral`",
)
def logits():
    cls = "max.nn.transformer.distributed_transformer:DistributedLogitsPostprocessMixin"
    takes(f"{cls}._postprocess_logits", 5)
    read = ("norm_shards", "lm_head", "return_logits", "devices")
    says(cls, *(rf"self\.{name}\b" for name in read))


@seam(
    "outputs are next-token logits, then all logits and their offsets",
    "process_outputs",
    "`process_ragged_kv_outputs` maps what `_postprocess_logits` returns",
)
def outputs():
    function = f"{RAGGED}:process_ragged_kv_outputs"
    order = r"logits=outputs\[1\],\s+next_token_logits=outputs\[0\],"
    says(function, order + r"\s+logit_offsets=outputs\[2\]")
    says(f"{LLAMA}.process_outputs", "process_ragged_kv_outputs")


@seam(
    "`forward_sequential_layers` and `forward_sharded_layers`, with subgraphs",
    "forward_sequential_layers forward_sharded_layers",
    "blocks that are alike share one compiled subgraph: see MAX's "
    "`DistributedTransformer`",
)
def layers():
    names = "inputs_for_layer initial_hidden_states subgraph_layer_groups"
    names += " name_for_subgraph weight_prefix_for_layer"
    takes("max.nn.transformer.transformer:forward_sequential_layers", 1, names)
    module = "max.nn.transformer.distributed_transformer"
    takes(f"{module}:forward_sharded_layers", 2)
    takes("max.graph:default_custom_extensions_scope", 1)


@seam(
    "attention's kernels, and a window that acts only with the mask variant",
    "flash_attention_ragged rope_split_store_ragged MHAMaskVariant",
    "one without the other is silently causal: run `tests/parity` after any change",
)
def attention():
    kernels = "max.nn.kernels"
    names = "input kv_collection layer_idx input_row_offsets mask_variant scale"
    names += " local_window_size output_dtype"
    takes(f"{kernels}:flash_attention_ragged", 1, names)
    names = "kv_params qkv input_row_offsets freqs_cis kv_collection layer_idx n_heads"
    takes(f"{kernels}:rope_split_store_ragged", 0, f"{names} interleaved")
    variants = find("max.nn.attention:MHAMaskVariant")
    assert variants.CAUSAL_MASK
    assert variants.SLIDING_WINDOW_CAUSAL_MASK


@seam(
    "`Linear`, `MLP`, `Embedding`, `RMSNorm` and their kin take what we pass",
    "ColumnParallelLinear VocabParallelEmbedding MLP RMSNorm GPTQLinear StackedLinear",
    "look at the constructor's new argument: a default may change the maths",
)
def constructors():
    linear = "in_dim out_dim dtype device quant_config"
    takes("max.nn.linear:Linear.__init__", 1, linear)
    takes("max.nn.linear:GPTQLinear.__init__", 5, "quantization_encoding")
    takes("max.nn.linear:GPTQLinear.__init__", 5, "quantization_config")
    takes("max.nn.linear:MLP.__init__", 6, "linear_cls quant_config")
    takes("max.nn.linear:ColumnParallelLinear.__init__", 4, "devices tied_weight")
    takes("max.nn.embedding:VocabParallelEmbedding.__init__", 5)
    takes("max.nn.embedding:Embedding.__init__", 5)
    takes("max.nn.norm:RMSNorm.__init__", 4, "multiply_before_cast")
    stacked = "in_dim out_dims names dtype device quant_config"
    takes("max.nn.stacked_linear:StackedLinear.__init__", 1, stacked)


@seam(
    "`StackedLinear._names`, `_child`, `_concat_child_weights` and "
    "`stacked_weight_scale`",
    "_names _child _concat_child_weights stacked_weight_scale",
    "a class of ours stacks scales that `StackedLinear` cannot",
)
def stacked_linear():
    names = "_names _child _concat_child_weights stacked_weight_scale"
    has("max.nn.stacked_linear:StackedLinear", names)
    takes("max.nn.stacked_linear:StackedLinear._child", 2)
    takes("max.nn.quant_ops:quantized_matmul", 5)
    takes("max.nn.float8_scale_stacking:can_use_fused_mlp", 1)


@seam(
    "`GPTQLinear` puts the bytes of `qweight` above those of `scales`, each as wide as "
    "the layer, and `qmatmul` takes them so, with `perm_idx`",
    "qmatmul perm_idx",
    "`formats/gptq_stacked.py` does it for several layers at once: do as MAX does",
)
def gptq_weight():
    linear = "max.nn.linear:GPTQLinear"
    has(linear, "qweight scales perm_idx quantization_config")
    says(
        f"{linear}.__call__",
        r"ops\.gather\(x, perm_idx",
        r"\(qweight, scales\), axis=1",
    )
    takes("max.graph.ops:qmatmul", 5)
    has("max.graph:Weight", "original_dtype_and_shape")
    has("max.nn.linear:MLP", "gate_proj up_proj down_proj activation_function")


@seam(
    "`split_batch_replicated(devices, tokens, row_offsets, host_row_offsets, splits)`",
    "split_batch_replicated",
    "see how MAX's DeepSeek shares a batch among replicas",
)
def split_batch():
    takes("max.nn.data_parallelism:split_batch_replicated", 5)


# Log-probabilities.


@seam(
    "`context._log_probabilities_data` by position, and the marks of a `TokenBuffer`",
    "_log_probabilities_data",
    "what the steps of a prefill score waits there; see `EchoLogProbabilities`",
)
def kept_log_probabilities():
    names = "log_probabilities_echo _log_probabilities_data"
    has("max.pipelines.context:TextContext", names)
    marks = "actively_chunked current_position processed_length"
    has("max.pipelines.context:TokenBuffer", marks)
    parts = inspect.signature(find("max.pipelines.context:LogProbabilities")).parameters
    expected = ["token_log_probabilities", "top_log_probabilities", "sampled_token_ids"]
    assert list(parts) == expected
    mixin = "max.pipelines.lib.log_probabilities:LogProbabilitiesMixin"
    takes(f"{mixin}.compute_log_probabilities", 7)


# The tokenizer: MAX's, whose constructor ours stands in for.


@seam(
    "`TextTokenizer.__init__` sets these: `_chat_template`, "
    "`_custom_template_provided`, `_chat_encoder`, `_chat_encoder_outcomes`, "
    "`_chat_encoder_failed`, `_enable_llama_whitespace_fix`, `_eos_token_ids`, "
    "`_llama_whitespace_fix_dummy_token`, "
    "`_llama_whitespace_fix_dummy_token_id`, `_llama_whitespace_fix_dummy_token_len`",
    "_chat_template _custom_template_provided _chat_encoder _chat_encoder_outcomes "
    "_chat_encoder_failed _enable_llama_whitespace_fix _eos_token_ids "
    "_llama_whitespace_fix_dummy_token _llama_whitespace_fix_dummy_token_id "
    "_llama_whitespace_fix_dummy_token_len _strips_leading_whitespace",
    "`MistralTokenizer.__init__` is in its place: set what it now sets",
)
def tokenizer_constructor():
    source = inspect.getsource(find(f"{TEXT_TOKENIZER}.__init__"))
    stored = {
        node.attr
        for node in ast.walk(ast.parse(textwrap.dedent(source)))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    private = set(SEAMS["tokenizer_constructor"].names)
    assert stored - {"chat_template"} == (
        private - {"_llama_whitespace_fix_dummy_token", "_strips_leading_whitespace"}
        | {"model_path", "delegate", "max_length"}
    )
    has(TEXT_TOKENIZER, "_llama_whitespace_fix_dummy_token _strips_leading_whitespace")
    takes("max.pipelines.lib._chat_encoder:load_chat_encoder", 4)
    takes("max.pipelines.lib.tokenizer:resolve_eos_token_ids", 2)
    assert "tokenizer_impl" in find("max.pipelines.lib:PipelineConfig").model_fields


@seam(
    "`new_context` gets its ids from `_generate_prompt_and_token_ids`, which calls "
    "`apply_chat_template` and `encode`",
    "_generate_prompt_and_token_ids apply_chat_template",
    "the checks of a request's ids and options hang on these three",
)
def prompt_to_ids():
    says(f"{TEXT_TOKENIZER}.new_context", r"self\._generate_prompt_and_token_ids\(")
    method = f"{TEXT_TOKENIZER}._generate_prompt_and_token_ids"
    says(method, r"self\.encode\(prompt", r"self\.apply_chat_template,")
    says(f"{TEXT_TOKENIZER}.new_context", r"vocab_size=self\.tokenizer_vocab_size")
    takes(f"{TEXT_TOKENIZER}.apply_chat_template", 3)
    has(TEXT_TOKENIZER, "__getstate__ tokenizer_vocab_size eos_token_ids")


@seam(
    "the worker stops at a token id beyond the context's `vocab_size`",
    "tokenizer_vocab_size",
    "the model's padding counts as vocabulary for that reason alone",
)
def vocabulary_size():
    module = "max.pipelines.context.context"
    says(module, r"token_id >= self\.vocab_size", "out-of-vocabulary")


@seam(
    "the registry makes a tokenizer of ours with `revision`, `max_length`, "
    "`trust_remote_code` and `chat_template`",
    "enable_llama_whitespace_fix",
    "the whitespace fix it turns on for `TextTokenizer` alone; we do for ourselves",
)
def tokenizer_arguments():
    registry = "max.pipelines.lib.registry"
    says(registry, r"arch\.tokenizer is TextTokenizer", "_retrieve_chat_template")
    says(registry, r"tokenizer = arch\.tokenizer\([^)]*trust_remote_code=")


@seam(
    "`skipped_special_token_ids` is read right after `new_context`, in the same task",
    "skipped_special_token_ids",
    "a context variable says if the request has tools: see "
    "`create_buffered_detokenizer`",
)
def skipped_tokens():
    module = "max.serve.pipelines.incremental_detokenizer"
    says(f"{module}:create_buffered_detokenizer", '"skipped_special_token_ids"')
    order = r"(?s)self\.tokenizer\.new_context\(.*create_buffered_detokenizer\("
    says("max.serve.pipelines.llm:TokenGeneratorPipeline", order)


# Requests: what the routes do with a client's JSON.


@seam(
    "`InputError` is a 400 with its text, any other `ValueError` one without",
    "InputError",
    "every refusal of a request raises it",
)
def input_error():
    assert issubclass(find("max.pipelines.context.exceptions:InputError"), ValueError)
    takes("max.pipelines.context.exceptions:PromptTooLongError", 2)
    refused = r"except InputError as e:[^}]+status_code=400, detail=str\(e\)"
    for route in ("openai_create_chat_completion", "openai_create_completion"):
        says(f"{ROUTES}:{route}", refused, r'detail="Value error\."')


@seam(
    "both routes read the body by the module's `_parse_openai_request_body(request, "
    "request_id, model)`, which calls `model.model_validate`",
    "_parse_openai_request_body",
    "it is replaced to look at each body; another hook is better if MAX has one now",
)
def request_body():
    takes(f"{ROUTES}:_parse_openai_request_body", 3)
    for route in ("openai_create_chat_completion", "openai_create_completion"):
        globals_used = find(f"{ROUTES}:{route}").__code__.co_names
        assert "_parse_openai_request_body" in globals_used
    seen = []

    class Model:
        @classmethod
        def model_validate(cls, body):
            seen.append(body)

    async def body():
        return b'{"tools": [{"function": {"parameters": null}}]}'

    runtime = SimpleNamespace(allow_extra_request_fields=False)
    config = find("max.pipelines.lib:PipelineConfig").model_construct(runtime=runtime)
    app = SimpleNamespace(state=SimpleNamespace(pipeline_config=config))
    request = SimpleNamespace(body=body, app=app)
    # MAX's own, where a server that was started here has replaced it.
    parse = inspect.unwrap(find(f"{ROUTES}:_parse_openai_request_body"))
    asyncio.run(parse(request, "id", Model))
    assert seen == [{"tools": [{"function": {"parameters": {}}}]}]


@seam(
    "a chunk of a streamed chat is a `CreateChatCompletionStreamResponse` of the "
    "module's, dumped without what is null",
    "ChatCompletionStreamResponseChoice CreateChatCompletionStreamResponse",
    "drop that part of `answer_shapes.py` if chunks have a `finish_reason` by now",
)
def stream_chunks():
    stream = f"{ROUTES}:OpenAIChatResponseGenerator._stream"
    says(
        stream,
        r"\bChatCompletionStreamResponseChoice\(",
        r"response = CreateChatCompletionStreamResponse\(",
        r"response\.model_dump_json\(exclude_none=True\)",
    )


@seam(
    "completions are `CompletionResponseChoice`s of a `CreateCompletionResponse`, or "
    "streamed the like, with what `_process_log_probabilities` makes of an output",
    "CompletionResponseChoice CreateCompletionResponse CompletionLogprobs "
    "CompletionResponseStreamChoice CompletionStreamResponse "
    "_process_log_probabilities",
    "`answer_shapes.py` puts a null in the first token's place where a prompt echoes",
)
def completion_scores():
    answers = f"{ROUTES}:OpenAICompletionResponseGenerator"
    says(answers, r"\bCompletionResponseChoice\(", r"= CreateCompletionResponse\(")
    says(
        answers,
        r"\bCompletionResponseStreamChoice\(",
        r"= CompletionStreamResponse\(",
        r"_process_log_probabilities\(\[chunk\]\)",
    )
    fields = find(f"{ROUTES}:CompletionLogprobs").model_fields
    assert fields.keys() >= {"token_logprobs", "top_logprobs"}


@seam(
    "the routes find the model by `get_pipeline(request, name)`, right after the body: "
    "a `ValueError` for another name, without words for the client",
    "_parse_openai_request_body",
    "drop our refusal of unknown models if MAX says as much",
)
def unknown_model():
    pipeline = SimpleNamespace(model_name="m", lora_queue=None)
    app = SimpleNamespace(state=SimpleNamespace(pipeline=pipeline))
    with pytest.raises(ValueError, match="Unknown model"):
        find(f"{ROUTES}:get_pipeline")(SimpleNamespace(app=app), "other")
    for route in ("openai_create_chat_completion", "openai_create_completion"):
        order = r"(?s)_parse_openai_request_body\(.*get_pipeline\(request, "
        says(f"{ROUTES}:{route}", order + r"completion_request\.model\)")


@seam(
    "`/v1/embeddings` is a route of the module's `router`; its handler makes a "
    "`TextGenerationRequest` of each text, which `encode` of the pipeline embeds",
    "record_request_start",
    "compare `embedding_route.py` with MAX's `openai_create_embeddings`; drop ours if "
    "that honours the fields and counts tokens by now",
)
def embeddings_route():
    handler = f"{ROUTES}:openai_create_embeddings"
    says(handler, r"get_prompts_from_openai_request\(embeddings_request\.input\)")
    says(
        f"{ROUTES}:OpenAIEmbeddingsResponseGenerator", r"self\.pipeline\.encode\(req\)"
    )
    takes(f"{ROUTES}:record_request_start", 0)
    takes(f"{ROUTES}:record_request_end", 2)
    has(ROUTES, "HTTPException Response router CancelGroup")
    takes(f"{ROUTES}:raise_on_disconnect", 1)
    fields = find(f"{ROUTES}:CreateEmbeddingRequest").model_fields
    assert fields.keys() == {"model", "input", "dimensions", "encoding_format", "user"}


@seam(
    "`encode` of MAX's pipeline leaves the worker's answer after a chunk, for which "
    "MAX tells the worker to cancel it; the scheduler of embeddings reads no cancels",
    "_ToTheEnd",
    "drop `_ToTheEnd` of `embedding_route.py` if cancels are read by now",
)
def cancelled_embeddings():
    encode = "max.serve.pipelines.llm:TokenGeneratorPipeline.encode"
    says(
        encode, r"self\.model_worker\.stream\(\s*request\.request_id", "return response"
    )
    proxy = "max.serve.worker_interface.zmq_interface:ZmqModelWorkerProxy"
    says(
        f"{proxy}._drain_responses", r"(?s)except BaseException:.*self\.cancel\(req_id"
    )
    scheduler = find("max.serve.scheduler.embeddings_scheduler:EmbeddingsScheduler")
    assert inspect.getsource(scheduler).count("cancel_queue") == 3


@seam(
    "MAX's `EmbeddingsPipeline` makes the model with `memory_plan` and without "
    "`max_batch_size`, gives it no KV cache, and reads a row of `logits` for each text",
    "MistralEmbeddingModel",
    "see how MAX's `architectures/qwen3_embedding` is called now",
)
def embeddings_pipeline():
    pipeline = "max.pipelines.lib.embeddings_pipeline:EmbeddingsPipeline"
    says(pipeline, r"kv_cache_inputs=None", r"model_outputs\.logits\.to_numpy\(\)")
    says(pipeline, r"batch_embeddings\[batch_index\]", r"memory_plan=memory_plan")
    scheduler = "max.serve.scheduler.embeddings_scheduler:EmbeddingsScheduler"
    says(scheduler, r"batches=\[batch_to_execute\]")
    keywords = "max_batch_size max_seq_len session available_cache_memory"
    keywords += " is_di_enabled model_name max_num_input_tokens"
    takes("max.pipelines.kv_cache:load_kv_manager", 1, keywords)
    manager = "max.pipelines.kv_cache.paged_kv_cache.jenga_cache_manager"
    has(f"{manager}:JengaKVCacheManager", "claim alloc release runtime_inputs")


@seam(
    "a `seed` of 0 counts as none",
    "seed",
    "drop what we put in its place if 0 is a seed by now",
)
def no_seed():
    for route in ("openai_create_chat_completion", "openai_create_completion"):
        says(f"{ROUTES}:{route}", r"seed=completion_request\.seed or randint\(")


@seam(
    "of an answer whose calls do not parse, `_content_before_tool_call_marker(parser, "
    "answer)` is kept",
    "_content_before_tool_call_marker",
    "it is replaced by what the parser knows; drop that if MAX asks the parser",
)
def broken_calls():
    cut = inspect.unwrap(find(f"{ROUTES}:_content_before_tool_call_marker"))
    parser = SimpleNamespace(SECTION_BEGIN="", CALL_BEGIN="[TOOL_CALLS]")
    assert cut(parser, "Well [TOOL_CALLS]x") == "Well"
    says(
        f"{ROUTES}:OpenAIChatResponseGenerator",
        r"parsed = self\.parser\.parse_complete\(",
        r"response_message = _content_before_tool_call_marker\(",
    )


@seam(
    "of chats, `_log_tool_call_conformance` and `_log_response_format_conformance` "
    "only hold an answer against the client's schema, for the log",
    "_log_tool_call_conformance _log_response_format_conformance",
    "they are replaced by nothing; drop that if MAX opens no `$ref` any more and runs "
    "no pattern of a client's",
)
def conformance_logs():
    generator = f"{ROUTES}:OpenAIChatResponseGenerator"
    has(generator, "_log_tool_call_conformance _log_response_format_conformance")
    says("max.serve._tool_call_validation", r"It never mutates the response")
    for check in ("check_tool_call_conformance", "check_response_format_conformance"):
        # Nobody else calls them.
        assert inspect.getsource(find(ROUTES)).count(f"{check}(") == 1


@seam(
    "of chats, `complete(requests)` reads a whole answer by `self.pipeline.all_tokens("
    "request)`; where it has no text it takes `decoded_reasoning_tokens` for that, "
    "else it writes these to the message's `_reasoning_field`",
    "all_tokens _reasoning_field",
    "if MAX keeps thinking apart by now, drop `_keeping_thinking` from `routes.py`",
)
def thinking_for_text():
    generator = f"{ROUTES}:OpenAIChatResponseGenerator"
    takes(f"{generator}.complete", 2)
    says(
        generator,
        r"completed_outputs = await self\.pipeline\.all_tokens\(request\)",
        r"response_message = reasoning_message",
        r"setattr\(\s*choice\.message,\s*self\._reasoning_field,",
    )
    chunk = find("max.serve.pipelines.llm:TokenGeneratorOutput")
    names = {field.name for field in dataclasses.fields(chunk)}
    assert {"decoded_tokens", "decoded_reasoning_tokens"} <= names


@seam(
    "a request's context has the tokenizer's `create_eos_tracker(request)`, an "
    "`EOSTracker` that finds the tokens of a stop string by its `eos_sequences`",
    "create_eos_tracker EOSTracker",
    "see where MAX's worker looks for stop strings now: not in thinking",
)
def stop_tokens():
    says(TEXT_TOKENIZER, r"eos_tracker=await self\.create_eos_tracker\(request\)")
    tracker = find("max.pipelines.context.eos_tracking:EOSTracker")
    fields = {"eos_token_ids", "eos_sequences", "eos_stop_strings"}
    assert set(tracker.model_fields) == fields


@seam(
    "both routes read an answer from `TokenGeneratorPipeline.next_token_chunk(request, "
    "parse_reasoning=)`, which takes it from `self.model_worker.stream(id, context)` "
    "and merges chunks where `_min_chunk_tokens` is above 1",
    "next_token_chunk _min_chunk_tokens TokenByToken until_stop",
    "see whether MAX cuts an answer before its stop string by itself now; then drop "
    "`stop_strings.py`",
)
def stopped_answers():
    pipeline = "max.serve.pipelines.llm:TokenGeneratorPipeline"
    takes(f"{pipeline}.next_token_chunk", 2, "parse_reasoning")
    says(
        pipeline,
        r"response_stream = await self\.model_worker\.stream\(",
        r"async for responses, batch_id in response_stream",
        r"if self\._min_chunk_tokens > 1:\s+return _coalesce_chunks",
        r"generator = await self\.next_token_chunk\(\s*request, parse_reasoning=",
    )
    for each in ("OpenAIChatResponseGenerator", "OpenAICompletionResponseGenerator"):
        chunks = r"await self\.pipeline\.next_token_chunk\("
        says(f"{ROUTES}:{each}", chunks, r"self\.pipeline\.all_tokens\(")
    output = find("max.pipelines.context:TextGenerationOutput")
    fields = {field.name for field in dataclasses.fields(output)}
    assert fields >= {"tokens", "final_status", "log_probabilities"}
    chunk = find("max.serve.pipelines.llm:TokenGeneratorOutput")
    fields = {field.name for field in dataclasses.fields(chunk)}
    assert fields >= {"status", "decoded_tokens", "stop_sequence"}


@seam(
    "`get_prompts_from_openai_request([])` returns an empty list, which the route "
    "indexes",
    "get_prompts_from_openai_request check_completion_fields",
    "drop our refusal if an empty list of prompts is a 400 by now",
)
def no_prompts():
    assert find(f"{ROUTES}:get_prompts_from_openai_request")([]) == []
    route = find(f"{ROUTES}:openai_create_completion")
    assert "get_prompts_from_openai_request" in route.__code__.co_names


@seam(
    "MAX takes `parallel_tool_calls`, `n`, `logit_bias` and `suffix` and ignores them",
    "parallel_tool_calls logit_bias",
    "if MAX honours or refuses one, drop our check of it",
)
def ignored_fields():
    chat = find("max.serve.schemas.openai:CreateChatCompletionRequest").model_fields
    text = find("max.serve.schemas.openai:CreateCompletionRequest").model_fields
    assert {"parallel_tool_calls", "n", "logit_bias", "tool_choice"} <= set(chat)
    assert {"n", "logit_bias", "suffix"} <= set(text)
    source = inspect.getsource(find(ROUTES))
    read = r"completion_request\.(n|logit_bias|suffix|parallel_tool_calls)\b"
    assert not re.search(read, source)
    sampling = inspect.signature(find("max.pipelines.context:SamplingParams"))
    assert "logit_bias" not in sampling.parameters


@seam(
    "`SamplingParams`: -1 is no `top_k`, and the other fields that are bounded",
    "SamplingParams bounded_sampling",
    "bound a new field, or a new kind of number, in `bounded_sampling`",
)
def sampling_fields():
    fields = dataclasses.fields(find("max.pipelines.context:SamplingParams"))
    assert fields[0].default == -1
    expected = "top_k top_p min_p temperature thinking_temperature frequency_penalty "
    expected += "presence_penalty repetition_penalty max_new_tokens min_new_tokens "
    expected += "ignore_eos stop stop_token_ids detokenize seed logits_processors"
    assert [field.name for field in fields] == expected.split()


@seam(
    "`TextGenerationRequest` and its messages can be replaced field by field",
    "TextGenerationRequest TextGenerationRequestMessage cache_salt",
    "our tokenizer changes sampling, salt, ids and formats on the way",
)
def generation_request():
    fields = dataclasses.fields(find(f"{TYPES}:TextGenerationRequest"))
    needed = "messages tools response_format sampling_params echo logprobs"
    needed += " chat_template_options cache_salt"
    assert set(needed.split()) <= {field.name for field in fields}
    message = find(f"{TYPES}:TextGenerationRequestMessage")
    needed = {"role", "content", "tool_calls", "tool_call_id", "reasoning_content"}
    assert needed <= set(message.model_fields)
    has(f"{TYPES}:TextGenerationRequestMessage", "model_copy flatten_content")
    module = "max.pipelines.context.context"
    formats = dataclasses.fields(find(f"{module}:TextGenerationResponseFormat"))
    assert {"type", "json_schema", "grammar"} <= {field.name for field in formats}


@seam(
    "MAX adds `enable_thinking`, `thinking` and `reasoning_effort` to a template's "
    "options",
    "enable_thinking",
    "`check_template_options` lets these through whatever the template",
)
def reasoning_options():
    request = find("max.serve.schemas.openai:CreateChatCompletionRequest")
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    found = request.model_validate(body | {"reasoning_effort": "high"})
    options = found.resolved_chat_template_kwargs
    expected = {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}
    assert options == expected


# Tools, thinking, JSON.


@seam(
    "a tool parser's methods, and `_parse_complete_section` and "
    "`_split_tool_call_body` abstract in `StructuralTagToolParser`",
    "StructuralTagToolParser _parse_complete_section _split_tool_call_body",
    "see `pipelines/lib/tool_parsing.py`; ours replaces all but the registry",
)
def tool_parser():
    cls = "max.pipelines.lib.tool_parsing:StructuralTagToolParser"
    abstract = {"_parse_complete_section", "_split_tool_call_body"}
    assert find(cls).__abstractmethods__ == abstract
    has(cls, "reset parse_complete parse_delta flush")
    takes("max.pipelines.lib.tool_parsing:register", 1)
    for method in ("reset", "parse_delta", "flush", "parse_complete"):
        says(ROUTES, rf"self\.parser\.{method}\(")
    says(f"{ROUTES}:get_tool_parser", r"create_tool_parser\(parser_name\)")
    takes(f"{TYPES}:ParsedToolCallDelta", 0, "index id name arguments content")
    takes(f"{TYPES}:ParsedToolCall", 0, "id name arguments")
    takes(f"{TYPES}:ParsedToolResponse", 0, "content tool_calls")


@seam(
    "the chat route asks `generate_tool_call_grammar` with keywords, in the task that "
    "has read the body",
    "generate_tool_call_grammar",
    "compare the keywords, and whether a new one changes what must be enforced",
)
def tool_grammar():
    names = ("response_format_schema", "tools", "tokenizer", "tool_choice")
    called = [rf"generate_tool_call_grammar\([^)]*\b{name}=" for name in names]
    says(ROUTES, *called)


@seam(
    "a reasoning parser is asked by these names; -1 is no token",
    "ReasoningParser reasoning_start_token_id reasoning_end_token_id",
    "see `ReasoningParser` in MAX's `pipelines/modeling/types/reasoning.py`",
)
def reasoning_parser():
    cls = f"{TYPES}:ReasoningParser"
    abstract = {"stream", "from_tokenizer", "reasoning_end_token_id"}
    assert find(cls).__abstractmethods__ == abstract
    has(cls, "will_reason_after_prompt REASONING_START REASONING_END")
    takes("max.pipelines.lib.reasoning:register", 1)
    takes(f"{TYPES}:ParsedReasoningDelta", 3)
    takes(f"{TYPES}:ReasoningSpan", 2)
    overlap = "max.pipelines.lib.pipeline_variants.overlap_text_generation"
    says(overlap, "-1 sentinel", r"tokenizer\.reasoning_start_token_id")


@seam(
    "`max._xgrammar`: structural tags, and a compiler that says what is wrong",
    "_xgrammar xgrammar",
    "MAX carries a copy of xgrammar: compare its `structural_tag.py`",
)
def grammar_engine():
    from max import _xgrammar as xgrammar
    from max._xgrammar.structural_tag import JSONSchemaFormat, StructuralTag

    words = "AnyTokens ConstString Optional Or Plus Regex Sequence Star Token"
    has("max._xgrammar.structural_tag", " ".join(f"{w}Format" for w in words.split()))
    names = "vocab_type vocab_size stop_token_ids"
    takes("max._xgrammar:TokenizerInfo", 1, names)
    takes("max._xgrammar:GrammarCompiler", 1, "max_memory_bytes")
    compiler = xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo(
            [bytes([byte]) for byte in range(256)] + [b"</s>"],
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=257,
            stop_token_ids=[256],
        )
    )

    def compile_schema(schema):
        schema_format = JSONSchemaFormat(
            json_schema=schema,
            any_whitespace=True,
            max_whitespace_cnt=16,
            require_object_root=False,
            reject_unsupported=True,
        )
        compiler.compile_structural_tag(StructuralTag(format=schema_format))

    compile_schema({"type": "integer"})
    with pytest.raises(RuntimeError, match=r"^\[[\d:]+\] \S+:\d+: "):
        compile_schema({"type": "string", "pattern": "(["})


@seam(
    "`STRUCTURED_OUTPUT_MAX_WHITESPACE_RUN` bounds white space in JSON",
    "STRUCTURED_OUTPUT_MAX_WHITESPACE_RUN",
    "any bound will do: without one a model may write spaces for ever",
)
def white_space():
    module = "max.pipelines.lib.pipeline_variants.structured_output_backend"
    assert find(f"{module}:STRUCTURED_OUTPUT_MAX_WHITESPACE_RUN") >= 1


# Others than MAX.


@seam(
    "transformers: `cached_file` with `_raise_exceptions_for_missing_entries`, "
    "`_raise_exceptions_for_gated_repo` and `_raise_exceptions_for_connection_errors`",
    "cached_file _raise_exceptions_for_missing_entries "
    "_raise_exceptions_for_gated_repo _raise_exceptions_for_connection_errors",
    "a file that is not there must be `None`, offline too",
)
def cached_file():
    module = "transformers.utils.hub"
    for name in SEAMS["cached_file"].names[1:]:
        says(f"{module}:cached_files", rf"\b{name}\b")
    found = find("transformers.utils:cached_file")(
        str(CONTRIBUTING.parent / "tests"),
        "no such file",
        **dict.fromkeys(SEAMS["cached_file"].names[1:], False),
    )
    assert found is None


@seam(
    "transformers: a config's `_name_or_path` and `_commit_hash`, and "
    "`get_config_dict`",
    "_name_or_path _commit_hash get_config_dict",
    "they say where a config was read from, and what its file holds",
)
def config_source():
    config = find("transformers:PretrainedConfig")
    assert config(name_or_path="here")._name_or_path == "here"
    says("transformers:PretrainedConfig.from_dict", "_commit_hash")
    takes("transformers:PretrainedConfig.get_config_dict", 1, "revision")


@seam(
    "transformers: `fix_mistral_regex=True` cuts words as tekken does, with the one "
    "pattern",
    "fix_mistral_regex",
    "compare the pattern in transformers with `tekken.PATTERN`",
)
def mistral_regex():
    from max_mistral.tekken import PATTERN

    module = "transformers.tokenization_utils_tokenizers"
    assert PATTERN in inspect.getsource(find(module))
    says(module, r'kwargs\.pop\("fix_mistral_regex"')


@seam(
    "transformers: the parameters of `apply_chat_template`, and jinja2's "
    "`DEFAULT_NAMESPACE`",
    "DEFAULT_NAMESPACE PreTrainedTokenizerBase",
    "a client may set none of them; a new one is refused by itself",
)
def template_names():
    method = "transformers:PreTrainedTokenizerBase.apply_chat_template"
    takes(method, 2, "tools chat_template tokenize add_generation_prompt")
    namespace = find("jinja2.defaults:DEFAULT_NAMESPACE")
    assert {"range", "dict", "namespace"} <= set(namespace)


@seam(
    "mistral-common: `ChatCompletionRequest.from_openai`, the tokenizer's versions and "
    "`instruct_tokenizer.tokenizer`",
    "mistral_common",
    "`MistralChat` is the only one to call it; goldens are in its tests",
)
def mistral_common():
    request = find("mistral_common.protocol.instruct.request:ChatCompletionRequest")
    convert = inspect.signature(request.from_openai).parameters
    assert {"messages", "tools", "continue_final_message"} <= set(convert)
    assert "reasoning_effort" in request.model_fields
    versions = find("mistral_common.tokens.tokenizers.base:TokenizerVersion")
    assert versions.v1 < versions.v3 < versions.v13
    module = "mistral_common.tokens.tokenizers.mistral:MistralTokenizer"
    has(module, "from_file version encode_chat_completion instruct_tokenizer")
    tekken = "mistral_common.tokens.tokenizers.tekken:Tekkenizer"
    takes(f"{tekken}.encode", 2, "bos eos")


@seam(
    "mistral-common writes chat templates, `generate_chat_template`",
    "generate_chat_template",
    "pass the new arguments in `prepare/chat_template.py`; its tests compare ids",
)
def chat_templates():
    module = "mistral_common.integrations.chat_templates.chat_templates"
    keywords = "spm tokenizer_version image_support audio_support thinking_support"
    keywords += " default_system_prompt plain_thinking_support"
    keywords += " use_special_token_variables model_settings_fields"
    keywords += " reasoning_effort_values reasoning_effort_default"
    takes(f"{module}:generate_chat_template", 0, keywords)


@seam(
    "mistral-common fills in: `FIMRequest`, `encode_fim`",
    "FIMRequest",
    "compare `fill_in.py` with its `encode_fim`, whose ids count",
)
def fill_in():
    takes("mistral_common.protocol.fim.request:FIMRequest", 0, "prompt suffix")
    tokenizer = "mistral_common.tokens.tokenizers.mistral:MistralTokenizer"
    has(tokenizer, "encode_fim")


@seam(
    "MAX's pipeline for CPUs ends a step with "
    "`update_context_and_prepare_responses(tokens, flat_batch, ...)`, which moves a "
    "grammar on even where a prompt is read in pieces",
    "update_context_and_prepare_responses",
    "see whether a grammar waits by itself now; then drop `prompt_chunks.py`",
)
def grammars_and_pieces():
    lib = "max.pipelines.lib.pipeline_variants"
    says(f"{lib}.text_generation", r"= update_context_and_prepare_responses\(")
    has("max.pipelines.context:TextContext", "matcher set_matcher")
    end = find(f"{lib}.utils:update_context_and_prepare_responses")
    assert list(inspect.signature(end).parameters)[1] == "flat_batch"


@seam(
    "`InferenceSession._use_vendor_blas(mode)` acts on what the session loads from "
    "then on, and `configure_session` comes before MAX makes the model",
    "_use_vendor_blas",
    "if MAX's own bfloat16 matmul is right on Hopper by then, drop `matmuls.py`, "
    "`self_check.py`, `cublas.py` and `gpu_kernels/`",
)
def vendor_blas():
    takes("max.engine:InferenceSession._use_vendor_blas", 2)
    modes = r'"false", "off", "no", "0"'
    says("max.engine:InferenceSession._use_vendor_blas", modes)
    for name in ("text_generation", "overlap_text_generation"):
        says(
            f"max.pipelines.lib.pipeline_variants.{name}",
            r"(?s)configure_session\(session\).*pipeline_model\(\s*pipeline_config=",
        )
    fields = find("max.pipelines.lib:PipelineRuntimeConfig").model_fields
    assert {"use_vendor_blas", "precompiled_mefs"} <= fields.keys()


@seam(
    "FP8 is multiplied by the ops `mo.matmul_dynamic_scaled_fp8` and "
    "`mo.matmul_static_scaled_float8`, whose place `gpu_kernels/` takes",
    "dynamic_scaled_matmul",
    "give the op of ours the new name or parameters; drop it where MAX's own has "
    "tensor cores",
)
def fp8_matmuls():
    kernels = "max.nn.kernels"
    says(f"{kernels}:dynamic_scaled_matmul", r'"mo\.matmul_dynamic_scaled_fp8"')
    says(f"{kernels}:dynamic_scaled_matmul", r'(?s)"k_scale_granularity": -1')
    says(f"{kernels}:matmul_static_scaled_float8", "mo.matmul_static_scaled_float8")
    quantized = "max.nn.quant_ops:_matmul_float8"
    says(quantized, r"dynamic_scaled_matmul\(")
    says(quantized, r"matmul_static_scaled_float8\(")


@seam(
    "MAX plans memory by `get_kv_params`, and takes the model's `kv_params` for its KV "
    "manager, whose blocks `JengaKVCacheManager._plan_geometry` lays out",
    "_plan_geometry",
    "if MAX plans what a step needs beside a window, drop `kv_room.py`; its tests show "
    "whether it does",
)
def room_for_a_step():
    manager = "max.pipelines.kv_cache.paged_kv_cache.jenga_cache_manager"
    takes(f"{manager}:JengaKVCacheManager._plan_geometry", 2)
    says("max.pipelines.lib.memory_estimation", r"params=arch_config.get_kv_params\(\)")
    for name in ("text_generation", "overlap_text_generation"):
        says(
            f"max.pipelines.lib.pipeline_variants.{name}",
            r"kv_params = self._pipeline_model.kv_params",
        )


@seam(
    'MAX\'s worker is a process of the name "Model Worker"',
    "end_with_the_server",
    "put the new name into `orphans.py`, or drop it if MAX's worker ends by itself",
)
def worker_process():
    says("max.serve.pipelines.model_worker", r'subprocess_manager\("Model Worker"')


@seam(
    "gguf: `dequantize(bytes, type)` for every type, and `GGML_QUANT_SIZES`",
    "GGML_QUANT_SIZES dequantize",
    "a type that it cannot read is refused by name; a new block size is not",
)
def gguf_types():
    import numpy as np

    kind = find("gguf:GGMLQuantizationType").Q8_0
    assert find("gguf:GGML_QUANT_SIZES")[kind] == (32, 34)
    block = np.array([0, 60] + [2] * 32, np.uint8)  # scale 1.0
    assert find("gguf.quants:dequantize")(block, kind).tolist() == [2.0] * 32


@seam(
    "MAX makes a pipeline by the architecture's `pipeline_cls(pipeline_config=, ...)`, "
    "or by what `get_pipeline_for_task(task, config)` returns",
    "pipeline_cls get_pipeline_for_task",
    "see `retrieve_factory` in MAX's `pipelines/lib/registry.py`; `make_pipeline` in "
    "`lookup/choice.py` stands for a class",
)
def pipeline_of_an_architecture():
    registry = "max.pipelines.lib.registry"
    takes(f"{registry}:get_pipeline_for_task", 2)
    says(registry, "pipeline_class = arch.pipeline_cls", r"pipeline_class = get_pipel")
    says(registry, r"partial\(pipeline_class, \*\*factory_kwargs\)")


@seam(
    "a decode step of MAX's pipeline for CPUs, `TextGenerationPipeline._execute`: what "
    "it reads, and in which order it masks, runs, samples, scores and commits",
    "_execute _launch_forward_pass _structured_output _sampler_with_bitmask "
    "_sampler_without_bitmask _sampler_device _kv_manager _pipeline_model "
    "_pipeline_config _devices _record_batch_info FusedSamplingProcessor",
    "compare `_step`, `_sample` and `_commit` in `lookup/pipeline.py` with MAX's "
    "`_execute`",
)
def a_step_of_decoding():
    pipeline = "max.pipelines.lib:TextGenerationPipeline"
    has(pipeline, "_sampler_with_bitmask _sampler_without_bitmask _sampler_device")
    has(pipeline, "_structured_output _kv_manager _pipeline_model _pipeline_config")
    has(pipeline, "_devices session vocab_size batch_info_output_fname")
    takes(f"{pipeline}._record_batch_info", 2)
    takes(f"{pipeline}._launch_forward_pass", 3, "step")
    takes(f"{pipeline}.initialize_bitmask", 2)
    order = "prepare_batch FusedSamplingProcessor _launch_forward_pass "
    order += "logits_for_sampling apply_logits_processors compute_log_probabilities "
    order += "update_context_and_prepare_responses _kv_manager.step"
    calls = r"\(.*".join(map(re.escape, order.split()))
    says(f"{pipeline}._execute", "(?s)" + calls)
    sampling = "max.pipelines.sampling:FusedSamplingProcessor"
    keywords = "sampler pipeline_config context_batch device bitmask vocab_size"
    takes(sampling, 0, keywords + " identity_logit_offsets")
    takes(f"{sampling}.allocate_identity_logit_offsets", 3)
    takes(f"{sampling}.__call__", 2)
    processors = "max.pipelines.context.logit_processors_type"
    takes(f"{processors}:BatchProcessorInputs", 3)
    takes(f"{processors}:ProcessorInputs", 2)
    helper = "max.pipelines.lib.pipeline_variants.utils:StructuredOutputHelper"
    takes(f"{helper}.update_context", 4)
    takes(f"{helper}.fill_bitmask", 4)
    has(
        "max.pipelines.context:TextContext",
        "snapshot_grammar_state restore_grammar_state advance_fsm set_matcher "
        "advance_token_buffer to_generation_output",
    )


@seam(
    "`max generate` counts tokens and the time to the first in a logits processor",
    "_entrypoints TrackMetrics",
    "`only_count` in `lookup/counts.py` lets no other processor have drafts",
)
def what_max_generate_counts():
    counts = "max._entrypoints.cli.generate:TrackMetrics"
    takes(f"{counts}.__call__", 2)
    says(f"{counts}.__call__", r"self\.metrics\.new_token\(\)")
    says("max._entrypoints.cli.generate", r"append\(TrackMetrics\(metrics\)\)")


@seam(
    "what MAX's sampler takes and returns where there are no grammars and penalties",
    "_sampler_without_bitmask",
    "compare `GreedySampler` in `lookup/greedy.py` with `_sample_logits`",
)
def the_plain_sampler():
    module = "max.pipelines.sampling.sampling_logits_processor"
    listed = "top_k max_k temperature top_p min_top_p min_p seed"
    fields = r",\s*".join(f"self.{name}" for name in listed.split())
    says(f"{module}:SamplerInputs.as_list", rf"\[\s*{fields},?\s*\]")
    says(f"{module}:_sample_logits", r"logits,\s*prev_tokens,\s*\*sampler_inputs")
    says(f"{module}:_sample_logits", r"tokens, generated_tokens = sampler_output\[:2\]")
    says(f"{module}:_sample_logits", r"new_seed = sampler_output\[-1\]")


@seam(
    "a pipeline gets its samplers from `load_sampler_graphs`, by their roles",
    "load_sampler_graphs TopKSampler compile_graphs init_graphs",
    "compare `load_samplers` in `lookup/samplers.py` with it",
)
def two_samplers():
    module = "max.pipelines.lib.pipeline_variants.text_generation"
    load = f"{module}:load_sampler_graphs"
    takes(load, 4)
    arguments = ["session", "pipeline_config", "sampler_device_ref", "self.vocab_size"]
    called = r"load_sampler_graphs\(\s*" + r",\s*".join(arguments) + r",?\s*\)"
    says(f"{module}:TextGenerationPipeline", called)
    # What it makes of each, in the order of ours.
    keywords = "device needs_bitmask_input unpadded_vocab_size"
    arguments = [rf"{name}=\w+" for name in keywords.split()]
    made = r"TopKSampler\(\s*pipeline_config\.sampling,\s*" + r",\s*".join(arguments)
    says(load, made, r"sampler\.input_types", "return artifacts, init_graphs")
    says(load, r"if pipeline_config\.needs_bitmask_constraints:")
    takes("max.pipelines.lib.graph_specs:GraphSpec", 3, "group custom_extensions")
    says("max.pipelines.lib.graph_specs:compile_graphs", r"spec\.group")


@seam(
    "`InferenceSession` compiles and finds a graph by its `compile`, and a graph's "
    "module as the graph itself",
    "find_at_once kernel_libraries_paths",
    "time a second start (`python -m benchmarks.start`): if MAX finds a graph as fast "
    "as its module, drop `graph_cache.py`",
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


@seam(
    "what MAX's graph of log-probabilities takes and returns",
    "_logprobs_model _logprobs_device LogProbabilitiesMixin",
    "compare `HostScores` in `host_scores.py` with MAX's "
    "`compute_log_probabilities_ragged`",
)
def the_graph_of_log_probabilities():
    module = "max.pipelines.lib.log_probabilities"
    assert find(module)._MAX_TOP_LOGPROBS == TOP
    has(f"{module}:LogProbabilitiesMixin", "_logprobs_model _logprobs_device")
    listed = "kernel_logits tokens sampled_tokens logit_row_offsets token_row_offsets "
    listed += "output_row_offsets output_row_offsets"
    called = r"(?s)model\.execute\(\s*" + r"\W.*?".join(listed.split())
    ragged = f"{module}:compute_log_probabilities_ragged"
    says(ragged, called, r"lp_logits\[output_index, -1\]", "if token < vocab_size")


@seam(
    "what MAX's sampler reads of a context: `sampling_params`, `min_tokens`, "
    "`get_min_token_logit_mask()`, and of its `tokens` the length, `all` and "
    "`generated`",
    "Row RowTokens",
    "give `Row` in `lookup/rows.py` what the sampler reads now",
)
def what_the_sampler_reads():
    source = inspect.getsource(find("max.pipelines.sampling.sampling_logits_processor"))
    read = set(re.findall(r"\b(?:context|ctx|c|batch\[\w+\])\.(\w+(?:\.\w+)?)", source))
    allowed = {"sampling_params", "min_tokens", "tokens", "tokens.all"}
    allowed |= {"tokens.generated", "get_min_token_logit_mask"}
    stems = {name for name in read if not name.startswith("sampling_params.")}
    assert stems <= allowed, stems - allowed


@seam(
    "MAX's log and metrics ask a pipeline for `batch_spec_decode_metrics()`, a "
    "`_SpeculativeDecodingMetrics`",
    "batch_spec_decode_metrics _SpeculativeDecodingMetrics",
    "see what MAX's `serve/scheduler/utils.py` reads now",
)
def counts_of_drafts():
    says(
        "max.serve.scheduler.text_generation_scheduler",
        r"self\.pipeline\.batch_spec_decode_metrics\(\)",
    )
    metrics = "max.pipelines.speculative.utils:_SpeculativeDecodingMetrics"
    takes(metrics, 1, "num_verifications")
    has(metrics, "draft_tokens_generated output_tokens accepted_per_position")


@pytest.mark.parametrize("name", SEAMS)
def test_seam(name):
    found = SEAMS[name]
    assert found.files, f"no file of ours speaks of {found.names}: drop the seam"
    try:
        found.check()
    except (Exception, pytest.fail.Exception) as error:
        pytest.fail(
            f"moved: {found.what}. {type(error).__name__}: {error}\n"
            f"Our files: {', '.join(found.files)}. To do: {found.mend}."
        )


def test_every_private_name_of_others_has_a_seam():
    known = {name for each in SEAMS.values() for name in each.names}
    missing = {k: v for k, v in foreign_privates().items() if k not in known}
    assert not missing, f"no seam names {missing}: add one, or use a public name"


def test_the_table_in_contributing_is_the_one_of_these_seams():
    text = CONTRIBUTING.read_text()
    assert text == contributing(text), "run: python -m tests.seams"


def test_what_max_leaves_open_is_what_security_md_says():
    fields = find("max.serve.config:Settings").model_fields
    defaults = {
        "host": "0.0.0.0",
        "port": 8000,
        "metrics_port": 8001,
        "max_request_bytes": 100 * 2**20,
        "max_queue_size": None,
        "max_pending_requests": None,
        "use_client_cache_salt": False,
        "disable_telemetry": False,
    }
    found = {name: fields[name].default for name in defaults}
    assert found == defaults, "mend the table in SECURITY.md"
    server = inspect.getsource(find("max.serve.api_server"))
    for absent in ("CORSMiddleware", "TrustedHostMiddleware", "uthorization"):
        assert absent not in server, f"MAX has {absent} now: mend SECURITY.md"
    text = (CONTRIBUTING.parent / "SECURITY.md").read_text()
    for name in ("max_request_bytes", "max_queue_size", "max_pending_requests"):
        assert fields[name].alias in text
    for route in ("/reset_prefix_cache", "/v1/load_lora_adapter", "/invocations"):
        assert route in text
    assert find("max.pipelines.lib:KVCacheConfig")().enable_prefix_caching
