"""Weights from a file, and nothing else: no code in it is run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

#: How many names of a kind an error lists.
_LISTED = 8


def load_weights(module: nn.Module, path: str | PathLike[str]) -> None:
    """Loads a checkpoint of Lightning, or a state dict, into a network.

    Args:
        module: the network, whose parameters and buffers are those in the file.
        path: the file.

    Raises:
        ValueError: if there is no such file, it holds more than weights, or other ones than the network has.
    """
    if not Path(path).is_file():
        raise ValueError(f"Expected `ckpt_path` to be a file but there is none at {str(path)!r}.")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = textwrap.shorten(str(error).split("\n", 1)[0] or type(error).__name__, 200, placeholder=" …")
        raise ValueError(
            f"Expected `ckpt_path` to hold nothing but weights and plain values but {str(path)!r} needs code to be "
            f"run, or is no checkpoint ({why}): if you trust the file, load it in a script of your own and call "
            "`lightning_invariance.audit()` there, or save the weights alone, torch.save(module.state_dict(), path)."
        ) from error
    of_lightning = isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping)
    weights = content["state_dict"] if of_lightning else content
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise ValueError(
            f"Expected `ckpt_path` to hold a state dict, or a checkpoint of Lightning with one, but {str(path)!r} "
            f"holds {type(weights).__name__}."
        )
    if of_lightning and isinstance(module, LightningModule):
        module.on_load_checkpoint(content)
        weights = content["state_dict"]
    _check_names(module, weights, path)
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ValueError(
            f"Expected {str(path)!r} to hold the weights of {type(module).__name__} but {error}"
        ) from error


def _check_names(module: nn.Module, weights: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Raises where names or shapes differ, with a list of them."""
    own = module.state_dict()
    missing = [name for name in own if name not in weights]
    strange = [name for name in weights if name not in own]
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(value.shape)}"
        for name, value in own.items()
        if isinstance(value, Tensor) and not nn.parameter.is_lazy(value) and isinstance(weights.get(name), Tensor)
        if weights[name].shape != value.shape
    ]
    parts = {"lacks": missing, "has besides": strange, "has other shapes:": shapes}
    said = [f"it {what} {_listed(names)}" for what, names in parts.items() if names]
    if said:
        raise ValueError(
            f"Expected {str(path)!r} to hold the weights of {type(module).__name__} but {'; '.join(said)}: give the "
            "model the arguments that it was trained with."
        )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
