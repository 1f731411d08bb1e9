"""How much a pattern of a JSON schema repeats."""

import time

import pytest

from max_mistral.chat.patterns import repeated


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("", 0),
        ("abc", 0),
        ("^[0-9]{4}-[0-9]{2}$", 6),
        ("a{3,7}b{2,}", 9),
        ("[a-z]{9000}" * 3, 27_000),
        ("(ab{3}){10}", 40),
        ("(?:(x{100}){100}){100}", 10**6),
        ("(?:[a-z]){6000}(?<name>x){2}", 6_002),
        ("(x{9000}y{9000}){0,}", 18_000),
        ("(x{9000}){0}", 9000),
        (r"\d{5}\{7}[{9}\]]{2}", 7),
        ("[]{5}]{2}", 2),
        ("a{x}", 0),
        ("(a{2}", 2),
        ("a{2})b{3}", 5),
        ("a{99999999999999999999}", 10**9),
    ],
)
def test_counts_add_up_and_those_of_groups_multiply(pattern, count):
    assert repeated(pattern) == count


def test_a_long_pattern_takes_no_time():
    for pattern in (
        "(" * 65_000,
        "a{9000}" * 8_000,
        "[" * 65_000,
        "((((a{9}){9}" * 5_000,
    ):
        began = time.perf_counter()
        repeated(pattern)
        assert time.perf_counter() - began < 5
