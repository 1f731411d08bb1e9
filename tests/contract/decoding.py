"""A decode step: sampler, log-probabilities, drafts."""

import inspect
import re

from max_mistral.workarounds.host_scores import TOP
from tests.seams import find, has, says, seam, takes


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
    "what MAX's graph of log-probabilities takes and returns",
    "_logprobs_model _logprobs_device LogProbabilitiesMixin",
    "compare `HostScores` in `workarounds/host_scores.py` with MAX's "
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


@seam(
    "`max generate` decodes each step's tokens by themselves, called back by its "
    "`stream_context`",
    "stream_context",
    "drop `workarounds/console.py` if it prints whole characters by now",
)
def printed_tokens():
    generate = "max._entrypoints.cli.generate"
    takes(f"{generate}:stream_context", 3)
    says(
        f"{generate}:stream_text_to_console",
        r"tokenizer\.decode\(tokens, skip_special_tokens=True\)",
        r"await stream_context\(pipeline, context, print_decoded\)",
    )
    module = "max.serve.pipelines.incremental_detokenizer"
    takes(f"{module}:create_buffered_detokenizer", 2)
