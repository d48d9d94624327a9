"""The benchmark suite behind `atu bench`: ops, one training step, a whole unlearning, each against peers and limits.

`case.py` says what a case is, `measure.py` times it, `limits.py` measures what the machine can do, `micro/` holds one
file an op, `step.py` and `job.py` the larger pieces, `growth.py` the fits, `output.py` tables, files and pictures.
"""
