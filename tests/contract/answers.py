"""The server around a request: embeddings, thinking, stops, and its worker."""

import dataclasses
import inspect
from types import SimpleNamespace

from tests.seams import find, has, says, seam, takes

ROUTES = "max.serve.router.openai_routes"
TEXT_TOKENIZER = "max.pipelines.lib:TextTokenizer"


@seam(
    "`/v1/embeddings` is a route of the module's `router`; its handler makes a "
    "`TextGenerationRequest` of each text, which `encode` of the pipeline embeds",
    "record_request_start",
    "compare `server/embedding_route.py` with MAX's `openai_create_embeddings`; drop "
    "ours if that honours the fields and counts tokens by now",
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
    "drop `_ToTheEnd` of `server/embedding_route.py` if cancels are read by now",
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
    "if MAX keeps thinking apart by now, drop `_keeping_thinking` from "
    "`server/routes.py`",
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
    "`server/stop_strings.py`",
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
    'MAX\'s worker is a process of the name "Model Worker"',
    "end_with_the_server",
    "put the new name into `workarounds/orphans.py`, or drop it if MAX's worker ends "
    "by itself",
)
def worker_process():
    says("max.serve.pipelines.model_worker", r'subprocess_manager\("Model Worker"')
