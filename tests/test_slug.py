"""Folder names of labels and problems."""

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sngd.slug import LONGEST, slug

LABELS = st.one_of(st.text(max_size=300), st.text("aAbB/-. =_~α…é", max_size=6))


@pytest.mark.slow
@given(LABELS, LABELS)
@example("a/b", "a-b")
@example("A", "a")
@example("sngd lr=0.1", "sngd-lr=0.1")
@example("sngd lr=0.1", "sngd  lr=0.1")
@example("é", "e\u0301")
@example("ſ", "s")
@example("", "..")
@example("", "e3b0c44298fc")
@example("a" * 300, "a" * 301)
def test_different_texts_have_different_names_even_without_case(one, other):
    assume(one != other)
    assert slug(one).casefold() != slug(other).casefold()


@given(LABELS)
@example("")
@example(".")
@example("..")
@example("~root")
@example("-rf")
@example("\ud800")
@example("../../etc")
@example("α" * 100)
def test_a_name_is_one_that_any_file_system_takes(text):
    name = slug(text)
    assert re.fullmatch(r"[A-Za-z0-9_+=][A-Za-z0-9_.=+~-]*", name)
    assert not name.endswith(".")
    assert len(name) <= LONGEST


@given(LABELS)
def test_no_name_is_told_apart_by_the_name_of_another(text):
    assume("~" in slug(text))
    assert slug(slug(text)) != slug(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("sngd", "sngd"),
        ("s-sngd", "s-sngd"),
        ("sngd lr=0.1", "sngd-lr=0.1"),
        ("s-sngd plan=multistep batch_size=32 lr=1e-05", "s-sngd-plan=multistep-batch_size=32-lr=1e-05"),
        ("digits-mlp", "digits-mlp"),
    ],
)
def test_ordinary_labels_keep_the_name_they_always_had(text, name):
    assert slug(text) == name


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("a/b", "a-b~"),
        ("S-SGD", "S-SGD~"),
        ("SNGD, α=0.1", "SNGD-alpha=0.1~"),
        ("café", "cafe~"),
        ("sngd.broken-1", "sngd.broken-1~"),
        ("...", "_~"),
    ],
)
def test_others_stay_readable(text, start):
    assert re.fullmatch(re.escape(start) + "[0-9a-f]{12}", slug(text))
