"""MAX's tokenizer, whose constructor ours stands in for."""

import ast
import inspect
import textwrap

from tests.seams import SEAMS, find, has, says, seam, takes

TEXT_TOKENIZER = "max.pipelines.lib:TextTokenizer"


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
