"""Patterns of a JSON schema: how much they repeat, and that they are searched for."""

import itertools
import json
import random
import re
import time

import pytest
from max import _xgrammar as xgrammar
from max._xgrammar.structural_tag import StructuralTag

from max_mistral.chat.patterns import ANY, repeated, searched
from max_mistral.chat.schemas import _compiler
from max_mistral.chat.tool_grammar import json_format


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
        # The number of a character.
        (r"\u{20000}x{3}\u{61}{2}", 5),
        # As in JavaScript, and to the compiler, this class ends at once.
        ("[^]x{5}[a]", 5),
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


def finds(pattern, texts):
    """The texts of which a grammar takes the JSON, for the pattern as searched for."""
    schema = {"type": "string", "pattern": searched(pattern)}
    tag = StructuralTag(format=json_format(schema))
    compiled = _compiler().compile_structural_tag(tag)

    def takes(text):
        matcher = xgrammar.GrammarMatcher(compiled)
        said = json.dumps(text, ensure_ascii=False).encode()
        return all(map(matcher.accept_token, said)) and matcher.accept_token(256)

    return [text for text in texts if takes(text)]


def python_finds(pattern, texts):
    # Python's "$" is also before a line feed at the end, and its groups have a P.
    pattern = re.sub(r"(?<![\\[])\$", r"\\Z", pattern).replace("(?<", "(?P<")
    return [text for text in texts if re.search(pattern, text)]


TEXTS = [
    *("", "a", "b", "ab", "ba", "cac", "1", "a1", "1a", "éa1", "x", ",x", "x,", "axb"),
    *("https://", "https://x", " https://", "a@b", " a@b", "$", "a$b", "^"),
    *('a"b', '"1"', "b\na", "a\n", "\n1", "\\a", "a\u2028", "a\tb", "1🎉"),
]


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "^", "$", "^$", "()", "a|b", "|a", "[0-9]", r"\d+$", "^[a-z]+$"),
        *("^https?://", "^(a|b)$", "^a|b$", r"^\S+@\S+$", "^(a|b)", "(a|b)$"),
        *("^^a$$", "^a|^b", "a$|b", "(^a|b$)", "(?:^a)", "((^a)|b)$", "(^|)a"),
        *("(^|,)x(,|$)", "(?<n>a$)", r"\$", "[$^]", "a*?$", "(a)(b)", "(|^a$)"),
    ],
)
def test_a_pattern_is_searched_for(pattern):
    assert finds(pattern, TEXTS) == python_finds(pattern, TEXTS)


def test_one_anchored_at_both_ends_is_whole_already():
    for pattern in ("[a-z]+", "(?:a|b)", r"\S+@\S+", "[^$]"):
        assert searched(f"^{pattern}$") == pattern


def made_up(draw, levels):
    """A pattern of few letters, with anchors anywhere."""
    part = draw.random()
    if levels == 0 or part < 0.45:
        return draw.choice(["a", "b", "[ab]", "a*", "b?", "^", "$", "(?:)"])
    one = made_up(draw, levels - 1)
    if part < 0.7:
        return one + made_up(draw, levels - 1)
    if part < 0.85:
        return one + "|" + made_up(draw, levels - 1)
    return draw.choice(["(?:", "("]) + one + ")" + draw.choice(["", "", "", "*", "?"])


def test_made_up_patterns_find_what_python_finds():
    draw, tried = random.Random(5), 0
    texts = ["".join(t) for n in range(4) for t in itertools.product("abc", repeat=n)]
    while tried < 200:
        pattern = made_up(draw, 4)
        try:
            searched(pattern)
            expected = python_finds(pattern, texts)
        except (ValueError, re.error):
            continue
        assert finds(pattern, texts) == expected, pattern
        tried += 1


@pytest.mark.parametrize(
    "pattern",
    [
        *("a^b", "a$b", "x(^a)", "(a$|b)c", "(^a)?b", "(^a)+", "^*a", "$^"),
        "(" * 40 + "^a" + ")" * 40,
    ],
)
def test_an_anchor_in_no_place_of_its_own(pattern):
    with pytest.raises(ValueError, match="anchor"):
        searched(pattern)


def test_what_is_no_pattern_is_left_to_the_compiler():
    """With any text before it, some would be one."""
    for pattern in ("?a", "*a", "{3}", "a|?b", "(?=a)b", "(a", "a)", "[a", "a\\"):
        assert searched(pattern) == pattern


def test_any_text_is_no_count():
    """Nor does it keep a shortest length from being held."""
    assert repeated(searched("[a-z]{7}")) == 7
    assert ANY in searched("a")
    schema = {"type": "string", "pattern": searched("a"), "minLength": 1}
    _compiler().compile_structural_tag(StructuralTag(format=json_format(schema)))


def test_any_text_in_too_many_places():
    """Each place is as long as twenty characters, and a pattern may have 65,536."""
    assert searched("a$|" * 30).count(ANY) == 31
    assert searched("^a$|" * 1000 + "^b$").count(ANY) == 0
    for pattern in ("$|" * 65, "a$|" * 21_000, "(^a|b)|" * 9_000):
        with pytest.raises(ValueError, match="too many places"):
            searched(pattern)


def test_hostile_patterns_are_read_all_the_same():
    for pattern in ("(" * 65_000, "[" * 65_000, "(a" * 20_000 + ")" * 20_000):
        assert searched(pattern).removeprefix(ANY).removesuffix(ANY) == pattern
    for pattern in ("(^" * 20_000 + ")" * 20_000, "((^a)|b)" * 8_000):
        with pytest.raises(ValueError, match="anchor"):
            searched(pattern)
