"""The chat templates that ``prepare`` writes, against mistral-common itself."""

import copy
import json

import pytest
from max.pipelines.context.exceptions import InputError
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers import PreTrainedTokenizerFast

from max_mistral.errors import UserError
from max_mistral.prepare.chat_template import chat_template
from max_mistral.server.request_limits import check_template_options, with_effort
from tests.chats import CHATS, HI, SUNNY, TOOLS, expected
from tests.routes import Routes
from workbench.tokenizers import KINDS

# A template writes text, and text spells control tokens.
SPELT = "spelt control tokens"
# It begins with a user's message, where mistral-common puts an empty one first.
STRICTER = "starts with an answer"
# It checks no schemas, ends anywhere, and leaves out what a version cannot have.
LAXER = {"not a schema", "ends with an answer", "thoughts"}
# There a result is part of JSON, into which mistral-common puts JSON as it is,
# and a template, which cannot read it, as a string.
JSON_IN_JSON = {"v2", "v3"}
DULL = SUNNY | {"content": 'It is "dull".'}


# Two of them have one template: images are refused.
VERSIONS = [kind for kind in KINDS if kind != "v3 tekken, images"]


@pytest.fixture(scope="module", params=VERSIONS)
def model(request, real_model):
    """transformers' tokenizer and mistral-common's."""
    file = real_model(request.param)
    loaded = PreTrainedTokenizerFast.from_pretrained(file.parent)
    return loaded, MistralTokenizer.from_file(file)


def parsed(messages):
    """Messages as servers give them to a template: with arguments as objects."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for call in message.get("tool_calls") or []:
            function = call["function"]
            function["arguments"] = json.loads(function["arguments"])
    return messages


def render(tokenizer, body, **options):
    return tokenizer.apply_chat_template(
        parsed(body["messages"]),
        tools=body.get("tools"),
        tokenize=True,
        return_dict=False,
        **options,
    )


@pytest.mark.parametrize("chat", [c for c in CHATS if c not in (SPELT, STRICTER)])
def test_ids_are_those_of_mistral_common(model, chat):
    tokenizer, own = model
    body = CHATS[chat]
    if own.version in JSON_IN_JSON:
        body = json.loads(json.dumps(body).replace(json.dumps(SUNNY), json.dumps(DULL)))
    want = expected(own, body)
    if own.version == "v1" and "tools" in body:
        want = ValueError("mistral-common leaves them out")
    if not isinstance(want, Exception):
        assert render(tokenizer, body) == want
    elif chat not in LAXER:
        with pytest.raises(Exception, match=r"."):
            render(tokenizer, body)


def test_what_it_does_otherwise(model):
    tokenizer, own = model
    with pytest.raises(Exception, match="must start with a user"):
        render(tokenizer, CHATS[STRICTER])
    assert render(tokenizer, CHATS[SPELT]) != expected(own, CHATS[SPELT])


def test_a_reasoning_effort(model):
    tokenizer, own = model
    if own.version != "v15":
        pytest.skip("has no settings")
    body = {"messages": [HI], "tools": TOOLS}
    for effort in ("high", "none"):
        want = expected(own, body, reasoning_effort=effort)
        assert render(tokenizer, body, reasoning_effort=effort) == want
    with pytest.raises(Exception, match="must be either"):
        render(tokenizer, body, reasoning_effort="low")


def test_a_switch_for_thinking(model):
    """They all speak of parts of the type "thinking"; v15 has an effort besides."""
    tokenizer, own = model
    template = tokenizer.chat_template
    options = {"enable_thinking": True, "thinking": True}
    if own.version == "v15":
        check_template_options(options, template, ())
        assert with_effort(options, template)["reasoning_effort"] == "high"
        off = dict.fromkeys(options, False)
        assert with_effort(off, template)["reasoning_effort"] == "none"
    else:
        with pytest.raises(InputError, match="thinking is asked for"):
            check_template_options(options, template, ())
        assert with_effort(options, template) == options


@pytest.fixture(scope="module", params=["v3", "v3 tekken", "v13 tekken"])
def server(request, real_model, tmp_path_factory):
    """Routes that encode with the template, and mistral-common's tokenizer."""
    file = real_model(request.param)
    config = json.loads((file.parent / "tokenizer_config.json").read_text())
    template = tmp_path_factory.mktemp("template") / "t.jinja"
    template.write_text(config["chat_template"])
    routes = Routes(file.parent, chat_template=template, max_length=512)
    return routes, MistralTokenizer.from_file(file)


@pytest.mark.parametrize("chat", ["system", "tools", "thoughts", "two calls"])
def test_a_server_that_encodes_with_it(server, chat):
    """MAX adds keys to tools, and passes on fewer of a message."""
    routes, own = server
    body = json.loads(
        json.dumps(CHATS[chat]).replace(json.dumps(SUNNY), json.dumps(DULL))
    )
    want = expected(own, body)
    if isinstance(want, Exception):
        return
    response = routes.post("chat/completions", **body)
    assert response.status_code == 200, response.text
    assert routes.prompt_ids == want


@pytest.mark.parametrize(
    ("version", "sentencepiece", "settings"),
    [
        (14, False, None),
        (99, False, None),
        (13, True, None),
        (15, False, None),
        (15, False, {"reasoning_effort": {}}),
        (15, False, {"reasoning_effort": {"values": ["fast"], "default": "fast"}}),
        (15, False, {"reasoning_effort": {"values": 3, "default": "none"}}),
        (15, False, {"other": {"values": ["none"]}}),
        (15, False, {"reasoning_effort": 7}),
        (15, False, [1]),
    ],
)
def test_an_unknown_tokenizer_is_refused(version, sentencepiece, settings):
    with pytest.raises(UserError, match=f"no tokenizer of version {version}"):
        chat_template(version, (), sentencepiece=sentencepiece, settings=settings)
