"""Streams of samples: shuffled passes or independent draws, cut anywhere, resumed anywhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sngd.training.sampler import SAMPLERS, Independent, Shuffled

CPU = torch.device("cpu")
sizes = st.lists(st.integers(1, 30), min_size=1, max_size=30)


def stream(n, seed=0, kind=Shuffled):
    return kind(n, torch.Generator().manual_seed(seed), CPU)


@given(n=st.integers(1, 20), sizes=sizes)
def test_every_pass_is_a_permutation(n, sizes):
    samples = stream(n)
    batches = [samples.draw(size) for size in sizes]
    assert [len(batch) for batch in batches] == sizes
    drawn = torch.cat(batches)
    assert samples.drawn == len(drawn) == sum(sizes)
    for start in range(0, len(drawn) - n + 1, n):
        assert sorted(drawn[start : start + n].tolist()) == list(range(n))


@pytest.mark.parametrize("kind", SAMPLERS.values())
@given(n=st.integers(1, 20), before=sizes, after=sizes)
def test_how_it_is_cut_does_not_matter_and_it_resumes_anywhere(kind, n, before, after):
    whole = stream(n, kind=kind).draw(sum(before) + sum(after))
    samples = stream(n, kind=kind)
    first = [samples.draw(size) for size in before]
    resumed = stream(n, seed=99, kind=kind)
    resumed.load_state_dict(samples.state_dict())
    rest = [resumed.draw(size) for size in after]
    assert torch.equal(torch.cat(first + rest), whole)


def test_passes_differ():
    samples = stream(50)
    assert samples.draw(50).tolist() != samples.draw(50).tolist()


def test_independent_draws_are_uniform_and_repeat():
    counts = torch.bincount(stream(10, kind=Independent).draw(10_000), minlength=10)
    assert ((counts - 1000).abs() < 5 * 900**0.5).all()  # 5 standard deviations of a binomial count
    assert len(set(stream(1000, kind=Independent).draw(1000).tolist())) < 700  # 632 of 1000 are expected


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (Shuffled, "drawn", "é"),
        (Shuffled, "drawn", torch.zeros(3)),
        (Shuffled, "drawn", -1),
        (Shuffled, "before_pass", torch.full((5056,), 255, dtype=torch.uint8)),
        (Independent, "generator", torch.full((5056,), 255, dtype=torch.uint8)),
        (Independent, "generator", None),
    ],
)
def test_a_state_that_is_none_changes_nothing(kind, key, value):
    samples, twin = stream(7, kind=kind), stream(7, kind=kind)
    with pytest.raises(ValueError, match=f"state_dict's {key} must be"):
        samples.load_state_dict({**samples.state_dict(), key: value})
    lacking = {name: entry for name, entry in samples.state_dict().items() if name != key}
    with pytest.raises(ValueError, match=f"state_dict lacks '{key}'"):
        samples.load_state_dict(lacking)
    assert torch.equal(samples.draw(20), twin.draw(20))
