"""The experiments of \"On genuine invariance learning without weight-tying\", through the package alone."""
