"""Calls with what cannot be used, and what comes of each: an error that names the argument, or a documented result.

The rows are in `bad_input_<room>`. What a shared check says, and all that it refuses, is tested where it is first
used; elsewhere one bad value an argument shows that the check is made.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lightning_invariance as li
from lightning_invariance import baselines, functional, report

NAN, INF = float("nan"), float("inf")
LONG = torch.int64
Function = Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """A call of a public name, and the pattern of its error, or what holds of its result and what it warns of."""

    name: str
    call: Callable[[], Any]
    refused: str | None = None
    error: type[Exception] = ValueError
    holds: Callable[[Any], Any] | None = None
    warns: str | None = None  # "": whatever it likes
    given: str = ""


ROWS: list[Row] = []


def refuse(
    name: str, pattern: str, function: Function, *args: Any, error: type[Exception] = ValueError, **options: Any
) -> None:
    ROWS.append(Row(name, lambda: function(*args, **options), pattern, error, given=f"{args} {options}"))


def refuse_each(
    name: str, pattern: str, function: Function, values: Iterable[Any], argument: str = "", **options: Any
) -> None:
    """Each of the values as that argument, or as the first one."""
    for value in values:
        refuse(
            name,
            pattern,
            function,
            *([] if argument else [value]),
            **({argument: value} if argument else {}),
            **options,
        )


def give(
    name: str, holds: Callable[[Any], Any], function: Function, *args: Any, warns: str | None = None, **options: Any
) -> None:
    row = Row(name, lambda: function(*args, **options), holds=holds, warns=warns, given=f"{args} {options}")
    ROWS.append(row)


class Check:
    """A check that several entries make, of an argument whose name goes into `says`."""

    def __init__(self, says: str, *refused: Any) -> None:
        self.says, self.refused, self.turns = says, refused, itertools.cycle(refused)
        self.used = False

    def of(self, name: str, function: Function, argument: str, **options: Any) -> None:
        """All bad values at the first use; then one, which is another one each time."""
        values, self.used = [next(self.turns)] if self.used else self.refused, True
        refuse_each(name, self.says.replace("{}", argument), function, values, argument, **options)


COUNT = Check("`{}` to be an integer of at least 1 but got", 0, 2.5, "3", -3, True, NAN, 2.0, (4, 4))
NATURAL = Check("`{}` to be an integer of at least 0 but got", -1, 1.5, "3", True)
SEED = Check("`{}` to be an integer of at most 64 bits but got", "a", 2**64, 1.5, -(2**64), True)
CHOICE = Check("`{}` to be one of .* but got", "cosine", ["mean"], 0.5)
ACTION = Check(r"`{}` to be an Action, such as C4\(\), but got", "C4", li.C4, 3)
NETWORK = Check("`{}` to be a module( or a function)? but got", "net", None)
SUBMODULE = Check("`{}` to be the name of a submodule or None but got", 3, nn.Identity(), ["model"])
PLACE = Check("`{}` to be a position, a key or None but got", 1.5, True)
BY_CHECK: dict[Check, str] = {
    COUNT: "order samples max_batch every_n_epochs elements_per_step max_iterations max_trials size steps num_classes "
    "in_channels image_size width depth",
    NATURAL: "saliency_samples sensitivity_samples rounds backward_call",
    SEED: "seed",
    CHOICE: "reduction activation normalize worst_case nan_strategy interpolation padding pool shape layers penalty "
    "group",
    ACTION: "action first second",
    PLACE: "input",
    Check("`{}` to be a Saliency, .* but got", "gradient", 3): "saliency",
    Check("`{}` to be negative .* but got", "x", None, -1.0, 0, 1): "dim",
    Check("`{}` to be a finite number but got", "a", None, torch.zeros(2), NAN, INF): "baseline",
    Check(
        "`{}` to be a finite number of at least 0 but got", -1e-3, "a", None, True, torch.zeros(2), NAN, INF
    ): "dither",
    Check("`{}` to be None .* 'same' .*, an Action, or a dict .* but got", "turned", 3): "output_action target_action",
    Check("`{}` to be an index of at least 0, 'last', 'all' or None .* but got", -1, 1.5, True, "first"): "call",
    Check("`{}` to be a name without slashes at its ends", 1, "", "/a", "a/"): "prefix",
    Check("`{}` to be .* but got", "logits"): "logits",
}
CHECKS = {argument: check for check, arguments in BY_CHECK.items() for argument in arguments.split()}


def entry(function: Function, but: str = "", **valid: Any) -> str:
    """The public name. Its arguments are to make the shared checks; those that it asks for have valid values here."""
    prefixes = {"": li, "functional.": functional, "baselines.": baselines, "report.": report}
    (name,) = (prefix + key for prefix, room in prefixes.items() for key, it in vars(room).items() if it is function)
    for argument, parameter in inspect.signature(function).parameters.items():
        options = {key: value for key, value in valid.items() if key != argument}
        required = parameter.default is parameter.empty
        if argument == "network":
            (NETWORK if required else SUBMODULE).of(name, function, argument, **options)
        elif (
            argument in CHECKS and argument not in but.split() and not (required and argument in ("logits", "saliency"))
        ):
            CHECKS[argument].of(name, function, argument, **options)
    return name


TRIVIAL = r"`action` to have an element besides the identity but got Rotations\(order=1"
SQUARE = r"`x` to have square images in its last two dimensions .* but got 4×6: crop them to 4×4 or pad them to 6×6"
ON_META = "to hold values but got a tensor on the meta device"
INVERSE = "inverse of 'shifted' in .* to undo it, but it does not"


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def network(classes: int = 3, pixels: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


def is_nan(value: Any) -> bool:
    return bool(torch.as_tensor(value).isnan().all())


def close(value: Tensor, expected: Any) -> bool:
    return torch.allclose(value.float(), torch.as_tensor(expected).float(), atol=1e-6, equal_nan=True)


def spoiled(values: Tensor, value: float) -> Tensor:
    values = values.clone()
    values.view(-1)[0] = value
    return values


def of_shape(*shape: int) -> Callable[[Tensor], bool]:
    return lambda value: value.shape == shape


def alone(value: Tensor) -> bool:
    """The first sample is not finite, and the second one is."""
    return bool(not value[0].isfinite().all() and value[1].isfinite().all())


NET = network()
X = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
WIDE = torch.zeros(2, 1, 4, 6)
INTEGERS = torch.arange(32).reshape(2, 1, 4, 4)
SPOILT = [torch.cat([X[:1] * value, X[1:]]) for value in (NAN, INF)]
BASE = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 3.0]])
ORBIT = torch.tensor([[[1.0, 0.5, 2.0], [0.5, 1.0, 2.0]], [[3.0, 0.0, 2.0], [0.5, 4.0, 3.0]]])
LABELS = torch.tensor([0, 2])
NEGATE = (torch.neg, torch.neg)
WRONG_INVERSE = li.FunctionAction([(lambda x: x.roll(1, -1), lambda x: x.roll(1, -1))], labels=["shifted"])
ALTERNATING = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(2, 1, 4, 4)  # a shift by two is no nearer than one by one

#: Labels that are none, and labels of no class.
TARGETS: list[tuple[Any, str]] = [
    ([0, 1], "`target` to hold 2 .*, one a sample, but got .int"),
    (torch.tensor([0.0, 1.0]), r"`target` to hold 2 .* but got a tensor \(2,\) of float32"),
    (torch.zeros(2).cfloat(), r"`target` to hold 2 .* but got a tensor \(2,\) of complex64"),
    (torch.tensor([0, 1, 2]), r"`target` to hold 2 .* but got a tensor \(3,\)"),
    (torch.tensor([[0], [1]]), r"`target` to hold 2 .* but got a tensor \(2, 1\)"),
]
NO_CLASSES: list[tuple[Any, str]] = [
    (torch.tensor([0, 3]), "`target` to hold classes from 0 to 2 but got values from 0 to 3"),
    (torch.tensor([-1, 2]), "`target` to hold classes from 0 to 2 but got values from -1 to 2"),
]
_turns = itertools.cycle(TARGETS), itertools.cycle(NO_CLASSES)


def some_targets() -> list[tuple[Any, str]]:
    return [next(each) for each in _turns]
