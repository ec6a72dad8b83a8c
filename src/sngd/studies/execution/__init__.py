"""Doing many runs: in processes here or on a cluster, and how far they are."""
