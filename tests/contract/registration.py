"""Registration, configs, and how MAX plans memory."""

import dataclasses
import inspect

from tests.seams import find, has, says, seam, takes


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
    "infer_max_batch_size kv_cache_memory_size _free_memory",
    "see `plan` of `MemoryEstimator` for what it asks a planner",
)
def requests_at_a_time():
    planner = "max.pipelines.kv_cache.memory_planner:MemoryPlanner"
    takes(f"{planner}.infer_max_batch_size", 4)
    estimator = "max.pipelines.lib.memory_estimation:MemoryEstimator"
    # What it leaves counts as activations, which are asked for after it.
    asked = r"planner\.infer_max_batch_size\([^#]*planner\.estimate_activation_memory\("
    says(f"{estimator}.plan", asked)
    says(f"{estimator}._free_memory", r'd\.stats\["free_memory"\] for d in devices')
    says(f"{estimator}._infer_optimal_batch_size", r"is_host:[^:]*return 1\n")
    sizes = inspect.signature(
        find("max.pipelines.kv_cache.registry:kv_cache_memory_size")
    )
    asked = "params available_cache_memory max_batch_size max_seq_len is_di_enabled"
    assert {*asked.split(), "model_name"} <= set(sizes.parameters)


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
