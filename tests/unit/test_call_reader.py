"""Tool calls in the text of an answer: every form, cut everywhere."""

import json
import time

import pytest

from max_mistral.chat.tool_parser import MistralToolParser, TagToolParser

WEATHER = {"city": "São Paulo ☺", "days": [1, 2.5e-3], "deep": {"a": None, "b": "]}"}}
ADD = {"a": 3, "b": -4}
W, A = json.dumps(WEATHER), json.dumps(ADD, ensure_ascii=False)
TWO = [("get_weather", W), ("add", A)]

# The definitions: mistral-common's instruct tokenizers, one by one.
FORMS = {
    "v2": (
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {W}}}, '
        f'{{"name": "add", "arguments": {A}}}]',
        TWO,
    ),
    "v3": (
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {W}, "id": "abcdefghi"}},'
        f' {{"name": "add", "arguments": {A}, "id": "abcdefghj"}}]',
        TWO,
    ),
    "v3 id first": (
        f'[TOOL_CALLS][{{"id": "abcdefghi", "name": "add", "arguments": {A}}}]',
        [("add", A)],
    ),
    "v11": (
        f"[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{W}"
        f"[TOOL_CALLS]add[CALL_ID]abcdefghj[ARGS]{A}",
        TWO,
    ),
    "v13": (f"[TOOL_CALLS]get_weather[ARGS]{W}[TOOL_CALLS]add[ARGS]{A}", TWO),
    "bare name": (f"[TOOL_CALLS]get_weather{W}[TOOL_CALLS]add {A}", TWO),
    "one object": (f'[TOOL_CALLS]{{"name": "add", "arguments": {A}}}', [("add", A)]),
    "arguments first": (
        f'[TOOL_CALLS][{{"arguments": {A}, "name": "add"}}]',
        [("add", A)],
    ),
    "arguments as a string": (
        f'[TOOL_CALLS][{{"name": "add", "arguments": {json.dumps(A)}}}]',
        [("add", A)],
    ),
    "no arguments": ('[TOOL_CALLS][{"name": "now"}]', [("now", "{}")]),
    "null for arguments": (
        '[TOOL_CALLS][{"name": "now", "arguments": null}]',
        [("now", "{}")],
    ),
    "an empty list": (
        '[TOOL_CALLS]f[ARGS]{"a": [], "b": [[ ]]}',
        [("f", '{"a": [], "b": [[ ]]}')],
    ),
    "a marker within a string": (
        '[TOOL_CALLS]say[ARGS]{"text": "[TOOL_CALLS]x[ARGS]{"}',
        [("say", '{"text": "[TOOL_CALLS]x[ARGS]{"}')],
    ),
    "a marker within a string of a list": (
        '[TOOL_CALLS][{"name": "say", "arguments": {"text": "[TOOL_CALLS]x"}}]',
        [("say", '{"text": "[TOOL_CALLS]x"}')],
    ),
}
TAG_FORMS = {
    "hermes": (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {W}}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "add", "arguments": {A}}}\n</tool_call>',
        TWO,
    ),
    "smollm": (
        f'<tool_call>[{{"name": "get_weather", "arguments": {W}}}, '
        f'{{"name": "add", "arguments": {A}}}]</tool_call>',
        TWO,
    ),
    "a brace missing": (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {W}\n</tool_call>\n'
        f'<tool_call>{{"name": "add", "arguments": {A}</tool_call>',
        TWO,
    ),
    "a brace too many": (
        f'<tool_call>\n{{"name": "get_weather", "arguments": {W}}}}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "add", "arguments": {A}}} ]\n</tool_call>',
        TWO,
    ),
}
# What is no call: the markers go, every other character stays.
TEXTS = {
    "": None,
    "Plain [text] with {braces} and [TOOL.": "Plain [text] with {braces} and [TOOL.",
    "It ends in [TOOL_CALL": "It ends in [TOOL_CALL",
    "[TOOL_CALLS]": None,
    "[TOOL_CALLS]what is this?": "what is this?",
    "[TOOL_CALLS]get_wea": "get_wea",
    "[TOOL_CALLS]add[ARGS]": "add",
    "[TOOL_CALLS]add[ARGS]not json": "addnot json",
    "[TOOL_CALLS][1, 2]": "[1, 2]",
    '[TOOL_CALLS][{"nome": "add"}]': '[{"nome": "add"}]',
    '[TOOL_CALLS][{"name": 3, "arguments": {}}]': '[{"name": 3, "arguments": {}}]',
    '[TOOL_CALLS][{"name": "add", "arguments": [1]}]': (
        '[{"name": "add", "arguments": [1]}]'
    ),
    '[TOOL_CALLS][{"name": "a", "argum': '[{"name": "a", "argum',
    # Arguments that are a string, but not of one whole object.
    r'[TOOL_CALLS][{"name": "f", "arguments": "{\"a\": 1"}]': (
        r'[{"name": "f", "arguments": "{\"a\": 1"}]'
    ),
    '[TOOL_CALLS][{"name": "f", "arguments": "{} x"}]': (
        '[{"name": "f", "arguments": "{} x"}]'
    ),
}
BROKEN = {
    '[TOOL_CALLS]add[ARGS]{"a": nope} sorry': 'add{"a": nope} sorry',
    '[TOOL_CALLS]add[ARGS]{"a": 1': 'add{"a": 1',
    '[TOOL_CALLS]add[ARGS]{"a": 01}': 'add{"a": 01}',
    '[TOOL_CALLS]add[ARGS]{"a": "line\n"}': 'add{"a": "line\n"}',
    r'[TOOL_CALLS]add[ARGS]{"a": "\x"}': r'add{"a": "\x"}',
    r'[TOOL_CALLS]add[ARGS]{"a": "\u00g0"}': r'add{"a": "\u00g0"}',
    '[TOOL_CALLS][{"name": "add", "arguments": {"a": }}]': (
        '[{"name": "add", "arguments": {"a": }}]'
    ),
    '[TOOL_CALLS]add[ARGS]{"a": [TOOL_CALLS]what?': 'add{"a": what?',
}
BEFORE = ["", "Let me see. ", "A [list] and \n\n"]


def streamed(parser, pieces):
    """The content and the calls that a client puts together from the deltas."""
    parser.reset()
    content, calls = "", {}
    for piece in pieces:
        for delta in parser.parse_delta(piece) or []:
            content += delta.content or ""
            if delta.name:
                assert delta.index == len(calls)
                calls[delta.index] = [delta.name, ""]
            if delta.arguments:
                calls[delta.index][1] += delta.arguments
    content += parser.flush() or ""
    return content or None, [tuple(call) for call in calls.values()]


def whole(parser, text):
    parsed = parser.read(text)
    if parsed.tool_calls or parsed.content == (text or None):
        again = parser.parse_complete(text)
        assert again.content == parsed.content
    else:
        with pytest.raises(ValueError, match="no whole call"):
            parser.parse_complete(text)
        assert parser.content_without_calls(text) == (parsed.content or "")
    return parsed.content, [(c.name, c.arguments) for c in parsed.tool_calls]


def cuts(text):
    """The text whole, in characters, in pairs, and cut in two at every place."""
    yield [text]
    yield list(text)
    yield [text[i : i + 2] for i in range(0, len(text), 2)]
    yield from ([text[:i], text[i:]] for i in range(len(text) + 1))


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_wherever_it_is_cut(form, before):
    text, calls = FORMS[form]
    check(MistralToolParser(), before + text, before or None, calls)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("form", TAG_FORMS)
def test_the_form_without_a_vocabulary_of_its_own(form, before):
    text, calls = TAG_FORMS[form]
    check(TagToolParser(), before + text, before or None, calls)


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_call_is_content(text):
    check(MistralToolParser(), text, TEXTS[text], [])


def check(parser, text, content, calls):
    assert whole(parser, text) == (content, calls)
    for pieces in cuts(text):
        assert streamed(parser, pieces) == (content, calls), pieces


@pytest.mark.parametrize("text", BROKEN)
def test_broken_json_is_content(text):
    parser = MistralToolParser()
    assert whole(parser, text) == (BROKEN[text], [])
    for pieces in cuts(text):
        content, ((name, arguments),) = streamed(parser, pieces)
        # What was good is sent by then; no character goes twice or missing.
        assert name == "add"
        assert BROKEN[text].endswith(arguments + (content or ""))
        assert "[TOOL_CALLS]" not in (content or "") + arguments


def test_a_broken_call_leaves_the_others():
    text = '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]add[ARGS]{"a": ?}'
    assert whole(MistralToolParser(), text) == ('add{"a": ?}', [("add", '{"a": 1}')])


def test_text_after_a_call_is_content():
    text = "[TOOL_CALLS]add[ARGS]{}\n"
    check(MistralToolParser(), text, None, [("add", "{}")])
    check(MistralToolParser(), text + "Done.", "\nDone.", [("add", "{}")])


def test_arguments_stream_as_they_come():
    parser = MistralToolParser()
    parser.reset()
    for text in ("[TOOL_CALLS]", "wri", "te", "[ARGS]"):
        assert parser.parse_delta(text) == []
    first = parser.parse_delta('{"path": "')
    assert (first[0].name, first[1].arguments) == ("write", '{"path": "')
    assert [d.arguments for d in parser.parse_delta("a/b")] == ["a/b"]


def test_arguments_of_a_list_stream_as_they_come():
    parser = MistralToolParser()
    parser.reset()
    parser.parse_delta('[TOOL_CALLS][{"name": "write", "arguments": ')
    first = parser.parse_delta('{"path": "')
    assert (first[0].name, first[1].arguments) == ("write", '{"path": "')
    assert [d.arguments for d in parser.parse_delta("a/b")] == ["a/b"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}", ["abcdefghi"]),
        ('[TOOL_CALLS][{"id": "abcdefghi", "name": "f"}]', ["abcdefghi"]),
        ("[TOOL_CALLS]f[CALL_ID]call_1[ARGS]{}", [None]),
        ("[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}" * 2, ["abcdefghi", None]),
        ("[TOOL_CALLS]f[ARGS]{}" * 2, [None, None]),
    ],
)
def test_ids_are_nine_alphanumerics_and_distinct(text, ids):
    got = [call.id for call in MistralToolParser().parse_complete(text).tool_calls]
    assert all(len(i) == 9 and i.isascii() and i.isalnum() for i in got)
    assert len(set(got)) == len(ids)
    assert [g for g, want in zip(got, ids, strict=True) if want] == [
        i for i in ids if i
    ]


def test_a_long_answer_is_read_in_linear_time():
    # A quadratic reader takes minutes for what this one reads in about a second.
    text = json.dumps({"text": "x" * 300_000})
    parser = MistralToolParser()
    pieces = ["[TOOL_CALLS]f[ARGS]", *(text[i : i + 3] for i in range(0, len(text), 3))]
    began = time.process_time()
    assert streamed(parser, pieces) == (None, [("f", text)])
    assert time.process_time() - began < 20


def test_nothing_that_a_model_writes_raises():
    pieces = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "add", " ", "[", "{", '"name"']
    pieces += [":", ",", "}", "]", '"arguments"', '"', "\\", "1", "x", '{"a": 1}']
    state = 1
    for _ in range(3000):
        chosen = []
        for _ in range(12):
            state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
            chosen.append(pieces[(state >> 33) % len(pieces)])
        text = "".join(chosen)
        content, calls = whole(MistralToolParser(), text)
        assert "[TOOL_CALLS]" not in (content or ""), text
        for _, arguments in calls:
            assert isinstance(json.loads(arguments), dict), text
        by_character = streamed(MistralToolParser(), list(text))
        assert by_character == streamed(MistralToolParser(), chosen), text
