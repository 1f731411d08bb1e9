"""Tools, thinking, JSON."""

import inspect

import pytest

from tests.seams import find, has, says, seam, takes

ROUTES = "max.serve.router.openai_routes"
TYPES = "max.pipelines.modeling.types"


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
        return compiler.compile_structural_tag(StructuralTag(format=schema_format))

    compile_schema({"type": "integer"})
    # Where a pattern is searched for, `patterns.searched` can go.
    matcher = xgrammar.GrammarMatcher(compile_schema({"pattern": "a"}))
    assert [matcher.accept_token(byte) for byte in b'"x'] == [True, False]
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


@seam(
    "MAX's pipeline for CPUs ends a step with "
    "`update_context_and_prepare_responses(tokens, flat_batch, ...)`, which moves a "
    "grammar on even where a prompt is read in pieces",
    "update_context_and_prepare_responses",
    "see whether a grammar waits by itself now; then drop "
    "`workarounds/prompt_chunks.py`",
)
def grammars_and_pieces():
    lib = "max.pipelines.lib.pipeline_variants"
    says(f"{lib}.text_generation", r"= update_context_and_prepare_responses\(")
    has("max.pipelines.context:TextContext", "matcher set_matcher")
    end = find(f"{lib}.utils:update_context_and_prepare_responses")
    assert list(inspect.signature(end).parameters)[1] == "flat_batch"
