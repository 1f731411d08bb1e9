"""The signature of MistralInputs."""

import numpy as np
import pytest
from max.driver import Buffer
from max.pipelines.lib import ModelInputs

from max_mistral import MistralInputs
from max_mistral.errors import UserError


def buffer(values, dtype):
    return Buffer.from_numpy(np.array(values, dtype=dtype))


TOKENS = buffer([5, 6, 7], np.int64)
OFFSETS = buffer([0, 1, 3], np.uint32)
COUNT = buffer([1], np.int64)


def test_by_position_and_by_keyword():
    by_position = MistralInputs(TOKENS, OFFSETS, [], COUNT)
    by_keyword = MistralInputs(
        tokens=TOKENS,
        input_row_offsets=OFFSETS,
        signal_buffers=[],
        return_n_logits=COUNT,
        kv_cache_inputs=None,
        lora_ids=None,
        lora_ranks=None,
        hidden_states=None,
    )
    for inputs in (by_position, by_keyword):
        assert isinstance(inputs, ModelInputs)
        assert inputs.tokens is TOKENS
        assert inputs.input_row_offsets is OFFSETS
        assert inputs.signal_buffers == []
        assert inputs.return_n_logits is COUNT
        assert inputs.kv_cache_inputs is None
        assert inputs.lora_ids is None
        assert inputs.lora_ranks is None
        assert inputs.hidden_states is None


@pytest.mark.parametrize("name", ["lora_ids", "lora_ranks", "hidden_states"])
def test_what_is_not_supported_raises(name):
    with pytest.raises(UserError, match=name):
        MistralInputs(TOKENS, OFFSETS, [], COUNT, **{name: COUNT})


def test_the_rest_is_keyword_only():
    with pytest.raises(TypeError):
        MistralInputs(TOKENS, OFFSETS, [], COUNT, None)
