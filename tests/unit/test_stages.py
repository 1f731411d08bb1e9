"""How rows of activations are interleaved by several threads."""

from pathlib import Path

from tests.programs import printed_by

PROGRAM = Path(__file__).with_name("stages.mojo")


def test_any_number_of_threads_leaves_the_same_bytes():
    lines = printed_by(PROGRAM)
    assert len(lines) == 5 * (3 * 4 + 2 * 3 + 1) * 3
    assert [line for line in lines if not line.endswith("True")] == []
