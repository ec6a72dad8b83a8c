"""Zhao, Xie and Li 2021: each of the paper's claims, C1 to C15, is measured, drawn and judged in this room.

``sngd reproduce`` calls ``reproduce`` for a figure and ``claims`` for verdicts. ``verdicts`` says what a verdict is.

| claim | what it says | file |
|---|---|---|
| C1 | SNGD with large α beats SPIDER-SFO | ``trained/judges.py`` |
| C2 | with small α SPIDER-SFO converges faster | ``trained/judges.py`` |
| C3 | SPIDER-SFO's curves vary, SNGD's are smooth | ``trained/variation.py`` |
| C4 | S-SNGD beats SNGD and SPIDER-SFO | ``trained/judges.py`` |
| C5 | S-SNGD v2 equals SNGD until the milestone | ``trained/judges.py`` |
| C6 | with large batches S-SNGD beats S-SGD | ``trained/judges.py`` |
| C7 | the bounds of Theorems 1 to 4 hold | ``closed_form/conformance.py`` |
| C8 | SNGD leaves saddles and sharp minima faster | ``closed_form/escape.py``, ``escape_map.py`` |
| C9 | SNGD handles (L0, L1)-smooth objectives | ``closed_form/relaxed.py`` |
| C10 | SPIDER's variance grows with α, SNGD's does not | ``closed_form/variance.py`` |
| C11 | with other B and M SNGD beats SPIDER-SFO too | ``trained/spider_sizes.py`` |
| C12 | S-SNGD beats S-SGD with large batches, to the end | ``trained/large_batches.py`` |
| C13 | the larger the batch, the larger its advantage | ``trained/large_batches.py`` |
| C14 | it ends in flatter minima | ``trained/large_batches.py``, ``sharpness.py`` |
| C15 | SPIDER is the best that reduces variance | ``trained/reduced_variance.py`` |

The claims about trained networks share their runs: ``trained/experiments.py`` lists these, ``trained/runs.py`` does
and measures them, ``trained/pictures.py`` draws them. Where the paper is ambiguous, ``trained/alternatives.py`` repeats
them under other readings.
"""
