"""Runs that are alike, trained as one: each run is a row of every matrix, and one operation serves all rows.

The runs are called replicas. They may differ in their seed, their learning rate and the numbers of their method's
parameters. Each of them is an ordinary ``RunState`` whose weights, gradients and buffers are views of rows, so its rows
of metrics, its checkpoint and its resumption are those of a run that is trained by itself. Results are equal to those
of separate runs up to rounding, because sums are added up in another order.
"""
