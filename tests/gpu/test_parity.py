"""Logits on the GPU against the goldens of ``tests/parity``.

The golden's tokens are fed, not the model's own: a rounding that turns one
choice around would make the rest incomparable.
"""

import numpy as np
import pytest
from max.nn.transformer import ReturnLogits

from tests.harness import relative_error, rounding_error, tolerance
from tests.reference import CASES, Reference
from workbench import check_device
from workbench.checkpoints import CONFIGS, write_checkpoint
from workbench.runner import Runner

# The unit roundoff of what a matrix product's operands are rounded to. In
# float32 of several rows NVIDIA's tensor cores take TF32, of 11 significant bits.
UNITS = {"float32": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """Returns a compiled model for a config and a dtype; compiles each once."""
    made = {}

    def get(name, dtype):
        key = (name, dtype)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{dtype}")
            made[key] = Runner(
                write_checkpoint(folder, CONFIGS[name], dtype=dtype),
                ReturnLogits.ALL,
                {
                    **check_device.flags(dtype),
                    "max_length": CASES[name].max_length,
                    "device_memory_utilization": 0.05,
                },
            )
        return made[key]

    return get


def kept(name, logits):
    """Those rows of each request that the golden has too."""
    return [rows[:: CASES[name].stride] for rows in logits]


def golden(name):
    """Returns the golden, and its logits but those of the last token, which no
    step reads."""
    expected, case = Reference.load(name), CASES[name]
    lengths = [len(row) - 1 for row in expected.tokens]
    wanted = [
        rows[: len(range(0, length, case.stride))]
        for rows, length in zip(expected.logits, lengths, strict=True)
    ]
    return expected, wanted


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_and_decode(runner, name, dtype):
    expected, wanted = golden(name)
    continuations = [
        row[len(prompt) :]
        for prompt, row in zip(expected.prompts, expected.tokens, strict=True)
    ]
    _, logits = runner(name, dtype).generate(
        expected.prompts, CASES[name].steps, continuations
    )
    allowed = rounding_error(CONFIGS[name], UNITS[dtype])
    for got, want in zip(kept(name, logits), wanted, strict=True):
        # A NaN is not below anything.
        assert relative_error(got, want) < allowed


# Not head_dim_128: for that MAX's attention multiplies float32 as TF32 too.
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "head_dim_128"])
def test_one_token_at_a_time_is_as_exact_as_a_cpu(runner, name):
    """A product with one row is computed in float32 proper."""
    expected, wanted = golden(name)
    for tokens, want in zip(expected.tokens, wanted, strict=True):
        steps = len(tokens) - 1
        _, logits = runner(name, "float32").generate([tokens[:1]], steps, [tokens[1:]])
        (got,) = kept(name, logits)
        np.testing.assert_allclose(
            got, want, rtol=0, atol=tolerance(CONFIGS[name], want)
        )
