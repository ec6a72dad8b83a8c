"""The norms that steps are normalized in."""
