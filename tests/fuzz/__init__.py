"""Bytes of an enemy for every parser: what is a target (`targets`), what it starts from (`seeds`), what it may cost.

`make fuzz` runs all of it guided by coverage; `test_targets.py` runs a little of it in every suite.
"""
