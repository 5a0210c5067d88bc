"""Random streams of the package's own: torch's, the module's and the data's are left alone."""

from __future__ import annotations

from hashlib import blake2b

import torch


def seed_of(*parts: object) -> int:
    """A seed of 63 bits that depends on all of `parts` together."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(*parts: object) -> torch.Generator:
    """A generator seeded by all of `parts` together.

    A stream that depends on (seed, epoch, batch, process) alone has no state to be saved: a run resumed in the middle
    of an epoch draws what the uninterrupted one drew.
    """
    return torch.Generator().manual_seed(seed_of(*parts))
