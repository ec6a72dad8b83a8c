"""Attacks on what the project promises; a package, so that its `studies` is not taken for the tests of that room."""
