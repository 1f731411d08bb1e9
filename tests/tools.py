"""Tools, what calls of them look like in each tokenizer version, and grammars."""

from max.pipelines.lib.pipeline_variants.structured_output_backend import (
    make_grammar_backend,
)

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "strict": True, "parameters": CITY},
    },
    {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": {}},
    },
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALLS = {
    "v3": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Åre ☺"}}, '
    '{"name": "add", "arguments": {"a": 1}}]',
    "v11": '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Åre ☺"}'
    '[TOOL_CALLS]add[CALL_ID]abcdefghj[ARGS]{"a": 1}',
    "v13": '[TOOL_CALLS]get_weather[ARGS]{"city": "Åre ☺"}'
    '[TOOL_CALLS]add[ARGS]{"a": 1}',
    "none": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Åre ☺"}}\n'
    '</tool_call>\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
}
FIRST = {
    "v3": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Åre ☺"}}]',
    "v11": '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Åre ☺"}',
    "v13": '[TOOL_CALLS]get_weather[ARGS]{"city": "Åre ☺"}',
    "none": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Åre ☺"}}\n'
    "</tool_call>",
}
VERSIONS = list(CALLS)
MARKERS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<tool_call>", "[THINK]", "[/THINK]")


def calls_of(choice):
    return [
        (c["function"]["name"], c["function"]["arguments"])
        for c in choice["message"].get("tool_calls") or []
    ]


TWO = [("get_weather", '{"city": "Åre ☺"}'), ("add", '{"a": 1}')]


def matcher(server, grammar):
    delegate = server.tokenizer.delegate
    backend = make_grammar_backend(
        "xgrammar",
        delegate,
        len(delegate),
        tool_parser_name=server.config.runtime.tool_parser,
        stop_token_ids={2},
        any_whitespace=True,
    )
    return backend.create_matcher(grammar)


def accepts(server, grammar, text):
    """Whether the text is a whole answer: 'yes', 'unfinished' or 'no'."""
    ids, m = server.ids(text), matcher(server, grammar)
    if m.try_consume_tokens(ids) < len(ids):
        return "no"
    return "yes" if m.try_consume_tokens([2]) == 1 else "unfinished"


def grammar_of(server, **body):
    server.ask("x", **body)
    return server.context.grammar
