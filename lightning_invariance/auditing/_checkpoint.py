"""Weights from a file, and nothing else: no code in it is run."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

#: How many names of a kind an error lists.
_LISTED = 8

#: How many digits of a file's SHA-256 are given.
_DIGITS = 12

#: How many bytes are read at once.
_CHUNK = 1 << 20

#: What torch.compile puts into names.
_COMPILED = "_orig_mod."


def load_weights(module: nn.Module, path: str | PathLike[str]) -> str:
    """Loads a checkpoint of Lightning, or a state dict, into a network.

    Args:
        module: the network, whose parameters and buffers are those in the file.
        path: the file.

    Returns:
        Which file that was: its name, and the first digits of its SHA-256.

    Raises:
        ValueError: if there is no such file, it holds more than weights, or other ones than the network has.
    """
    if not Path(path).is_file():
        raise ValueError(f"Expected `ckpt_path` to be a file but there is none at {str(path)!r}.")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"Expected `ckpt_path` to hold nothing but weights and plain values but {str(path)!r} needs code to be "
            f"run, or is no checkpoint ({_why(error)}): if you trust the file, load it in a script of your own and "
            "call `lightning_invariance.audit()` there, or save the weights alone, "
            "torch.save(module.state_dict(), path)."
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
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return f"{Path(path).name}, SHA-256 {digest.hexdigest()[:_DIGITS]}"


def _why(error: Exception) -> str:
    """What torch says, in one line without colours; what its kind of error means where it says next to nothing."""
    line = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).strip().split("\n", 1)[0].strip()
    if isinstance(error, EOFError):
        line = "the file is empty, or cut off"
    elif " " not in line:
        line = f"it cannot be read: {type(error).__name__}{f' {line}' if line else ''}"
    return textwrap.shorten(line, 200, placeholder=" …")


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
    elsewhere = (missing or strange) and _elsewhere(own, weights)
    if elsewhere:
        raise ValueError(f"Expected {str(path)!r} to hold the weights of {type(module).__name__} but {elsewhere}.")
    parts = {"lacks": missing, "has besides": strange, "has other shapes:": shapes}
    said = [f"it {what} {_listed(names)}" for what, names in parts.items() if names]
    if said:
        raise ValueError(
            f"Expected {str(path)!r} to hold the weights of {type(module).__name__} but {'; '.join(said)}: give the "
            "model the arguments that it was trained with."
        )


def _elsewhere(own: Collection[str], weights: Mapping[str, Any]) -> str:
    """Where the weights are instead, and what to do; nothing where they are not to be found."""
    for key, value in weights.items():
        inside = value.get("state_dict", value) if isinstance(value, Mapping) else None
        if isinstance(inside, Mapping) and inside and all(isinstance(each, Tensor) for each in inside.values()):
            where = f"[{key!r}]" if inside is value else f"[{key!r}]['state_dict']"
            return f"the weights are under {key!r}: save these alone, torch.save(torch.load(path){where}, path)"
    compiled = {name.replace(_COMPILED, "") for name in weights}
    if any(_COMPILED in name for name in weights) and compiled == set(own):
        return (
            f"its names hold {_COMPILED!r}, which torch.compile puts there: take it out, "
            f"{{name.replace({_COMPILED!r}, ''): value for name, value in state_dict.items()}}"
        )
    rest = "for name, value in state_dict.items()}"
    prefix = _prefix(own, weights)
    if prefix:
        return f"all names in it begin with {prefix!r}: strip it, {{name.removeprefix({prefix!r}): value {rest}"
    prefix = _prefix(weights, own)
    if prefix:
        return f"it lacks {prefix!r} in front of all names: put it there, {{{prefix!r} + name: value {rest}"
    return ""


def _prefix(short: Collection[str], long: Collection[str]) -> str:
    """What all long names have in front of the short ones; nothing where that is not so."""
    first = next(iter(short), "")
    prefixes = {name.removesuffix(first) for name in long if first and name.endswith(f".{first}")}
    return next((each for each in prefixes if {f"{each}{name}" for name in short} == set(long)), "")


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
