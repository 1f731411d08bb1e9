"""What the routes do with a client's JSON."""

import asyncio
import dataclasses
import inspect
import re
from types import SimpleNamespace

import pytest
from pydantic import ValidationError, create_model
from pydantic_core import SchemaValidator

from tests.seams import find, has, says, seam, takes

ROUTES = "max.serve.router.openai_routes"
TYPES = "max.pipelines.modeling.types"


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
    "pydantic reads by a schema that is not the model's own with "
    "`_use_prebuilt=False`, and ends a list with `fail_fast` at the first wrong item",
    "_use_prebuilt",
    "a body with millions of wrong items takes memory for each",
)
def wrong_items():
    model = create_model("Model", items=(list[int], ...))
    schema = dict(model.__pydantic_core_schema__)
    fields = schema["schema"]["fields"]["items"]["schema"]
    fields["fail_fast"] = True
    reader = SchemaValidator(schema, _use_prebuilt=False)
    with pytest.raises(ValidationError) as error:
        reader.validate_python({"items": ["a", "b"]})
    assert error.value.error_count() == 1


@seam(
    "a chunk of a streamed chat is a `CreateChatCompletionStreamResponse` of the "
    "module's, dumped without what is null",
    "ChatCompletionStreamResponseChoice CreateChatCompletionStreamResponse "
    "ChatCompletionResponseChoice CreateChatCompletionResponse _drop_unset_token_ids",
    "drop that part of `server/answer_shapes.py` if chunks have a `finish_reason`, and "
    "the first alone a `role`, by now",
)
def stream_chunks():
    stream = f"{ROUTES}:OpenAIChatResponseGenerator._stream"
    says(
        stream,
        r"role=\"assistant\"",
        r"\bChatCompletionStreamResponseChoice\(",
        r"response = CreateChatCompletionStreamResponse\(",
        r"response\.model_dump_json\(exclude_none=True\)",
    )
    for name in ("ChatCompletionResponseChoice", "ChatCompletionStreamResponseChoice"):
        # Its serializer, which a subclass's would replace.
        assert callable(find(f"{ROUTES}:{name}")._drop_unset_token_ids)


@seam(
    "completions are `CompletionResponseChoice`s of a `CreateCompletionResponse`, or "
    "streamed the like, with what `_process_log_probabilities` makes of an output",
    "CompletionResponseChoice CreateCompletionResponse CompletionLogprobs "
    "CompletionResponseStreamChoice CompletionStreamResponse "
    "_process_log_probabilities",
    "`server/answer_shapes.py` puts a null in the first token's place where a prompt "
    "echoes",
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
    assert fields.keys() >= {
        *("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }


@seam(
    "the log-probabilities of chats are what `_process_chat_log_probabilities` makes "
    "of outputs, streamed and whole: with the `bytes` of a token's text, and those of "
    "1 where `top_logprobs` is left out",
    "_process_chat_log_probabilities",
    "drop that part of `server/answer_shapes.py` if MAX gives no alternatives then, "
    "and a token's own bytes",
)
def chat_scores():
    answers = f"{ROUTES}:OpenAIChatResponseGenerator"
    says(
        answers,
        r"_process_chat_log_probabilities\(\[chunk\]\)",
        r"_process_chat_log_probabilities\(completed_outputs\)",
    )
    says(
        f"{ROUTES}:_process_chat_log_probabilities",
        r"top_logprobs=top_logprobs_list",
        r"content=content",
        r"bytes=list\(sampled_token\.encode\(\"utf-8\"\)\)",
    )


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
    "a `seed` of 0 counts as none",
    "seed",
    "drop what we put in its place if 0 is a seed by now",
)
def no_seed():
    for route in ("openai_create_chat_completion", "openai_create_completion"):
        says(f"{ROUTES}:{route}", r"seed=completion_request\.seed or randint\(")


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
