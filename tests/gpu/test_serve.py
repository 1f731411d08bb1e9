"""``max serve`` on a GPU: the demo's model in bfloat16, MAX's defaults.

Those are the overlap scheduler and captured device graphs. This file needs a
pytest of its own, as ``make check-gpu`` starts it: a process that has run a
model keeps most of the GPU's memory.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import BadRequestError

from tests.e2e import test_serve as on_cpu
from tests.e2e.conftest import serve

# The same tests as on a CPU, on the server below. Left out: log-probabilities,
# which MAX refuses here, and answers that are equal to the letter alone and in
# a batch, for on a GPU the rounding depends on the batch.
from tests.e2e.test_serve import (  # noqa: F401
    QUESTION,
    test_a_prompt_beyond_the_context_is_refused,
    test_a_stop_string,
    test_a_stream_says_the_same,
    test_an_answer,
    test_an_image_is_refused,
    test_max_tokens,
    test_no_messages_are_refused,
    test_the_chat_client_example,
)
from workbench import check_device
from workbench.demo import write_bfloat16
from workbench.runner import make_pipeline_config

ask, client = on_cpu.ask, on_cpu.client
DEVICE = ["--devices", "gpu:0", "--enable-structured-output"]
if check_device.is_dry():
    # There MAX refuses the flag, and this package needs none.
    DEVICE = ["--devices", "cpu", "--quantization-encoding", "float32"]
only_a_gpu = pytest.mark.skipif(
    check_device.is_dry(), reason="a CPU has no overlap scheduler, nor device graphs"
)

SCHEMA = {
    "type": "object",
    "properties": {
        "colour_of_night": {"enum": ["ultramarine", "vermilion"]},
        "weighs": {"type": "boolean"},
    },
    "required": ["colour_of_night", "weighs"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bfloat16(tmp_path_factory.mktemp("smollm2-bfloat16"))


@pytest.fixture(scope="module")
def url(folder):
    with serve(
        *("--custom-architectures", "max_mistral", "--model", folder),
        *(*DEVICE, "--max-length", "2048", "--max-batch-size", "8"),
    ) as url:
        yield url


@only_a_gpu
def test_overlap_and_device_graphs_are_on(folder):
    config = make_pipeline_config(
        folder,
        device_specs=check_device.specs(),
        quantization_encoding=None,
        enable_structured_output=True,
    )
    assert config.model.quantization_encoding == "bfloat16"
    assert config.runtime.enable_overlap_scheduler
    assert config.runtime.device_graph_capture


def test_several_at_a_time(ask):
    questions = [QUESTION, "What is two plus two?"] * 4
    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(lambda q: ask(q).choices[0].message.content, questions))
    assert all("Paris" in answer for answer in answers[::2]), answers
    assert all("4" in a or "four" in a for a in answers[1::2]), answers


def test_an_answer_follows_a_json_schema(ask):
    """One that the model would not give by itself."""
    wanted = {"name": "night", "schema": SCHEMA, "strict": True}
    (choice,) = ask(
        max_tokens=100,
        response_format={"type": "json_schema", "json_schema": wanted},
    ).choices
    assert choice.finish_reason == "stop"
    answer = json.loads(choice.message.content)
    assert answer.keys() == SCHEMA["properties"].keys()
    assert answer["colour_of_night"] in ("ultramarine", "vermilion")
    assert answer["weighs"] in (True, False)


@only_a_gpu
def test_log_probabilities_are_refused(ask):
    with pytest.raises(BadRequestError, match="no-enable-overlap-scheduler"):
        ask(logprobs=True)
