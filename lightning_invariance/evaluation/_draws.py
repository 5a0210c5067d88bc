"""The elements that are measured: no training draws them."""

from __future__ import annotations

from lightning_invariance._output_action import OutputActions, OutputMotion
from lightning_invariance._random import seed_of
from lightning_invariance.actions import Action


def for_measuring(action: Action) -> Action:
    """The group with elements that no training uses: drawn anew, where they are drawn, from a stream of their own."""
    if not action.drawn or action.__dict__.get("_for_measuring"):
        return action
    redrawn = action.redrawn(measuring_seed(action))
    redrawn.__dict__["_for_measuring"] = True  # so that what is in a record is measured again as it is
    return redrawn


def measuring_seed(action: Action) -> int:
    """The seed that a group's elements are drawn with to be measured by."""
    return seed_of("measuring", repr(action))


def output_for_measuring(spec: OutputActions, action: Action | None, name: str = "output_action") -> OutputMotion:
    """How the output moves, with the same draws; `action` is what was given, drawn for whatever."""
    if action is None:
        return OutputMotion(spec, action, name)
    motion = OutputMotion(spec, action, name)
    measured = for_measuring(action)
    return motion if measured is action else motion.redrawn(measuring_seed(action), measured)
