"""What to copy: `digits.py` is one file; `paper` runs the experiments of the paper.

`invariant_weights_study` measures what invariant weights are worth. Both make tables with `pages.py` and `aim.py`.
"""
