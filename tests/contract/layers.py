"""Layers of max.nn that ours extend or call in one way only, and GPUs' matmuls."""

from tests.seams import find, has, says, seam, takes

RAGGED = "max.pipelines.lib.interfaces.batch_processor"
LLAMA = "max.pipelines.architectures.llama3.batch_processor:Llama3BatchProcessorBase"


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
    # Of the last block nothing else may be read; see `Mistral._tokens_read`.
    gathered = r"offsets\[1:\] - 1 for .*\s+last_token_h = \[\s+ops\.gather\(h_device, "
    found = "max.nn.transformer.distributed_transformer:distributed_logits_postprocess"
    says(found, gathered + r"indices.*[\s\S]*lm_head\(_maybe_norm\(last_token_h\)")


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


@seam(
    "`InferenceSession._use_vendor_blas(mode)` acts on what the session loads from "
    "then on, and `configure_session` comes before MAX makes the model",
    "_use_vendor_blas",
    "if MAX's own bfloat16 matmul is right on Hopper by then, drop `gpu_matmul/` and "
    "`gpu_kernels/`",
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
    "`InferenceSession._set_mojo_define(key, value)` with "
    "`MODULAR_DISABLE_VENDOR_FALLBACK` keeps MAX's own matmul off cuBLAS",
    "_set_mojo_define",
    "see how `PipelineConfig.configure_session` does it",
)
def without_vendor_blas():
    takes("max.engine:InferenceSession._set_mojo_define", 3)
    says(
        "max.pipelines.lib:PipelineConfig.configure_session",
        r'_set_mojo_define\("MODULAR_DISABLE_VENDOR_FALLBACK", "true"\)',
    )


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
