"""A wrong body of many items: a sentence that names one, and not an error for each."""

from types import SimpleNamespace

import pytest
from max.pipelines.context.exceptions import InputError

from max_mistral.server.request_json import RequestModel, first_words
from tests.chats import HI
from tests.routes import EOS, Routes

MANY = 20_000
ANY = "a text, a token id or a list of token ids"


class Unasked:
    """What stands for a pydantic model that is not to read a body."""

    model_fields = dict.fromkeys(("messages", "tools", "prompt", "input"))

    @staticmethod
    def model_validate(body):
        raise AssertionError("it was asked")


@pytest.fixture(scope="module")
def plain(checkpoint):
    routes = Routes(checkpoint)
    routes.worker.answer = [70, 71, EOS]
    return routes


WRONG = [
    ("messages", [5] * MANY, "messages[0] is 5, not an object."),
    ("messages", [HI, HI, None], "messages[2] is None, not an object."),
    ("messages", [[HI]], "messages[0] is [{"),
    ("tools", [{}, "f"], "tools[1] is 'f', not an object."),
    ("prompt", ["a"] * MANY + [5], f"prompt[{MANY}] is 5, not a text."),
    ("prompt", ["a", ["b"]], "prompt[1] is ['b'], not a text."),
    ("prompt", ["5", None], "prompt[1] is None, not a text."),
    ("prompt", [5, 6, "a"], "prompt[2] is 'a', not a token id."),
    ("prompt", [5, 6.5], "prompt[1] is 6.5, not a token id."),
    ("prompt", [5, [6]], "prompt[1] is [6], not a token id."),
    ("prompt", [[5], 6], "prompt[1] is 6, not a list of token ids."),
    ("prompt", [[5], [], [6, None]], "prompt[2][1] is None, not a token id."),
    ("prompt", [["a"] * MANY], "prompt[0][0] is 'a', not a token id."),
    ("prompt", [1.5] * MANY, f"prompt[0] is 1.5, not {ANY}."),
    ("prompt", [float("nan")], f"prompt[0] is nan, not {ANY}."),
    ("input", [None] * MANY, f"input[0] is None, not {ANY}."),
    ("input", [{}], f"input[0] is {{}}, not {ANY}."),
    ("input", ["a", {}], "input[1] is {}, not a text."),
]


@pytest.mark.parametrize(("field", "items", "said"), WRONG, ids=range(len(WRONG)))
def test_the_first_wrong_item_is_named_before_pydantic_reads_any(field, items, said):
    with pytest.raises(InputError) as error:
        RequestModel(Unasked).model_validate({field: items})
    assert str(error.value).startswith(said)


def test_a_wrong_item_is_not_sent_back_whole():
    deep = "b" * 10**5
    for _ in range(4):
        deep = [deep] * 8
    with pytest.raises(InputError) as error:
        RequestModel(Unasked).model_validate({"prompt": [5, deep]})
    assert len(str(error.value)) < 1000


def test_a_list_of_another_kind_of_request_is_left_to_pydantic():
    class Model:
        model_fields = dict.fromkeys(["prompt"])

        @staticmethod
        def model_validate(body):
            return body

    for body in ({"messages": [5]}, {"input": [None]}, {"prompt": {}}, [5]):
        assert RequestModel(Model).model_validate(body) == body


def test_over_the_routes(plain):
    refused = plain.complete([None] * MANY)
    assert refused.status_code == 400
    assert refused.json()["detail"] == f"prompt[0] is None, not {ANY}."
    refused = plain.chat(messages=[HI, 5])
    assert refused.status_code == 400
    assert refused.json()["detail"] == "messages[1] is 5, not an object."


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ([5, 6], [5, 6]),
        ([5.0, True, 6], [5, 1, 6]),
        (["5", 6], [5, 6]),
        ([[5, "6"]], [5, 6]),
    ],
)
def test_what_pydantic_takes_for_ids_is_taken(plain, prompt, ids):
    answer = plain.complete(prompt)
    assert answer.status_code == 200, answer.text
    assert plain.prompt_ids == ids


def test_errors_beyond_a_hundred_are_only_counted(plain):
    def errors(**_):
        raise AssertionError("there is an object for each")

    said = first_words(SimpleNamespace(error_count=lambda: 10**6, errors=errors))
    assert "1000000 errors" in said
    # Objects, but each without a role.
    for count, words in ((60, "and 55 more like these."), (1000, "has 1000 errors")):
        refused = plain.chat(messages=[{}] * count)
        assert refused.status_code == 400
        assert words in refused.json()["detail"]
        assert len(refused.text) < 4000
