"""Values quoted in error messages."""

import pytest
import torch

from sngd.checks import check_one_of, cut, shown, suggestion


def test_short_values_are_shown_as_they_are():
    assert [shown(value) for value in ("a", 1.5, None, [1, 2], (0.1, 10), {"a": 1})] == [
        "'a'", "1.5", "None", "[1, 2]", "(0.1, 10)", "{'a': 1}",
    ]  # fmt: skip


def test_any_value_is_shown_in_one_short_line():
    doubled = []
    for _ in range(200):  # written out it would fill the universe
        doubled = [doubled, doubled]
    for value in ("x" * 100_000, "a\nb", 10**5000, list(range(10**6)), doubled, torch.zeros(9, 9), "\ud800"):
        text = shown(value)
        assert len(text.splitlines()) == 1
        assert 0 < len(text) <= 200
        text.encode()


def test_the_middle_is_cut():
    assert cut("x" * 200) == "x" * 200
    assert cut("a" * 150 + "b" * 150) == "a" * 98 + " … " + "b" * 99
    assert cut("two\nlines") == "two lines"


def test_a_long_name_is_refused_shortly():
    for name in ("x" * 100_000, "spidder"):
        with pytest.raises(ValueError, match="method must be one of spider, got") as error:
            check_one_of("method", name, ["spider"])
        assert len(str(error.value)) < 300
        assert suggestion(name, ["spider"]) == (", did you mean 'spider'?" if len(name) < 100 else "")
