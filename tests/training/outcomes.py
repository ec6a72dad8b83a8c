"""What a run leaves in its folder, and whether two runs left the same."""

import json
from pathlib import Path

import torch


def outcome(folder: Path):
    """Weights and all state, and the rows but for the wall clock."""
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    del checkpoint["seconds"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return checkpoint, [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_bitwise_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_bitwise_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_bitwise_equal(one, other)
    else:
        assert a == b


def assert_equal_to_rounding(a, b, tolerance=1e-12):
    """Numbers up to ``tolerance`` relative to the largest of their tensor, or to 1; everything else alike."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor) and a.is_floating_point():
        assert a.shape == b.shape
        error, size = (a - b).abs().amax() if a.numel() else 0, a.abs().amax() if a.numel() else 0
        assert error <= tolerance * max(1, size)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_to_rounding(a[key], b[key], tolerance)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal_to_rounding(one, other, tolerance)
    elif isinstance(a, float):
        assert a == b or abs(a - b) <= tolerance * max(1, abs(a))
    else:
        assert a == b
