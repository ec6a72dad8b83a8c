"""Many runs: comparisons, their tables, figures and reports."""
