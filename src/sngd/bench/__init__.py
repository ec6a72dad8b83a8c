"""What a step and a pass over the data cost: ratios to what else a user would write, measured on this machine."""

from sngd.bench.result import Comparison, Result, read_results, write_result
from sngd.bench.step import bench_step
from sngd.bench.train import bench_train

__all__ = ["Comparison", "Result", "bench_step", "bench_train", "read_results", "write_result"]
