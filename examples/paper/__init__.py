"""The experiments of the paper "On genuine invariance learning without weight-tying", through the package alone."""
