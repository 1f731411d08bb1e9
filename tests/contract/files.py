"""Others' readers of files: of configs, tokenizers, chat templates and GGUF."""

import inspect

from tests.seams import CONTRIBUTING, SEAMS, find, has, says, seam, takes


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
    "mistral-common: a tokenizer's `_chat_completion_request_validator` checks each "
    "tool by `_validate_function(function)`, its schema by jsonschema and its name",
    "_chat_completion_request_validator _validate_function",
    "`MistralChat` has the name alone checked: see that it does, or drop it if schemas "
    "are not checked any more",
)
def tool_schemas():
    tokenizer = "mistral_common.tokens.tokenizers.mistral:MistralTokenizer"
    has(tokenizer, "_chat_completion_request_validator")
    validator = "mistral_common.protocol.instruct.validator:MistralRequestValidator"
    says(f"{validator}._validate_tools", r"self\._validate_function\(tool\.function\)")
    check = f"{validator}._validate_function"
    takes(check, 2)
    says(check, r"draft7\(value=function\.parameters\)", r"re\.match\(.*function\.name")


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
