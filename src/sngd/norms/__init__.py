"""The norms by which steps are normalized."""
