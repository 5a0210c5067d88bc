"""What invariant weights are worth: against augmentation, regularization, pooling over the orbit and tied layers."""
