"""What to copy: `digits.py` is one file; `paper` runs the experiments of the paper."""
