"""The command: ``lightning-invariance audit --config audit.yaml``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from lightning_invariance._requirements import require
from lightning_invariance.actions import Action, Flow
from lightning_invariance.auditing._audit import audit
from lightning_invariance.auditing._checkpoint import load_weights
from lightning_invariance.auditing._result import Audit
from lightning_invariance.saliency import Saliency

#: What the command ends with.
PASSED, FAILED, REFUSED, STOPPED = 0, 1, 2, 130

_DESCRIPTION = (
    "Audits what a checkpoint is invariant to, and where it breaks: one page with pictures, and JSON beside it."
)
_EPILOG = (
    "Ends with 0 if all conditions hold, 1 if one does not, 2 if it cannot be done, 130 if it was stopped (what was "
    "done until then is saved)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: its arguments; those of the process if None.

    Returns:
        The exit code: 0 if all conditions hold, 1 if one does not, 2 if the audit cannot be done, 130 if it was
        stopped.

    Raises:
        SystemExit: for arguments that cannot be used, with code 2, and after ``--help`` and ``--print_config``, with 0.
    """
    try:
        parser = _parser()
    except ModuleNotFoundError as error:
        return _refused(error)
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # the user's own modules, as `python -m` finds them
    given = parser.parse_args(None if argv is None else list(argv))
    try:
        _check_out(given.audit.out, [*(given.audit.config or []), given.audit.ckpt_path])
        # `instantiate_classes` until version 4.49 of jsonargparse.
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        return _audit(instantiate(given).audit)
    except KeyboardInterrupt:
        print("Stopped; there is nothing to report.", file=sys.stderr)
        return STOPPED
    except Exception as error:
        return _refused(error)


def _refused(error: Exception) -> int:
    """Says what went wrong: in a sentence where it is one of ours, with the lines that led there where it is not."""
    if not isinstance(error, ModuleNotFoundError) and "xpected" not in str(error):
        traceback.print_exception(error)
    print(f"error: {str(error).replace('`module=`', '`model`')}", file=sys.stderr)
    return REFUSED


def _parser() -> Any:
    jsonargparse = require("jsonargparse", "The command")
    parser = jsonargparse.ArgumentParser(prog="lightning-invariance", description="What a network is invariant to.")
    command = jsonargparse.ArgumentParser(description=_DESCRIPTION, epilog=_EPILOG)
    command.add_argument("--config", action="config", help="a YAML file with any of these options")
    command.add_argument("--model", type=nn.Module, required=True, help="the network, by class_path and init_args")
    command.add_argument("--data", type=LightningDataModule, required=True, help="the data module")
    command.add_argument("--actions", type=dict[str, Action | Flow], required=True, help="the groups, by names")
    command.add_argument("--ckpt_path", type=str | None, default=None, help="a checkpoint of Lightning or a state dict")
    command.add_argument("--conditions", type=list[str], default=[], help='such as "orbit_share < 0.01"')
    command.add_argument("--out", type=str, default="audit.html", help="the page; the JSON is written beside it")
    command.add_argument("--measures", type=list[str], default=[], help="measures besides those that make sense anyway")
    command.add_argument("--samples", type=int, default=64, help="how many samples are looked at closer")
    command.add_argument(
        "--output_action",
        type=Literal["same"] | Action | dict[str, Literal["same"] | Action | None] | None,
        default=None,
        help="how the output moves; of several outputs, by their names",
    )
    command.add_argument("--saliency", type=Saliency | None, default=None, help="how maps are computed")
    command.add_argument("--input", type=int | str | list[int | str] | None, default=None, help="where the input is")
    command.add_argument("--target", type=int | str | None, default=None, help="where the labels are")
    command.add_argument(
        "--logits", type=Callable[[Any], Tensor] | None, default=None, help="a function from the output to its logits"
    )
    command.add_argument("--per_class", type=bool | list[str] | None, default=None, help="names of classes, or false")
    command.add_argument("--max_batch", type=int | None, default=None, help="the most samples in one forward")
    command.add_argument("--device", type=str, default="auto", help="where the network runs: cpu, cuda, cuda:1, ...")
    command.add_argument("--progress", type=bool, default=True, help="whether progress bars are shown")
    parser.add_subcommands().add_subcommand("audit", command, help=_DESCRIPTION)
    return parser


def _audit(options: Any) -> int:
    page = Path(options.out)
    if options.ckpt_path is not None:
        weights = load_weights(options.model, options.ckpt_path)
    else:
        weights = "as constructed"
        print("warning: no `ckpt_path` is given: the weights are audited as the model is constructed.", file=sys.stderr)
    options.model.to(_device(options.device))
    result = audit(
        options.model,
        options.data,
        options.actions,
        conditions=options.conditions,
        measures=options.measures,
        samples=options.samples,
        output_action=options.output_action,
        saliency=options.saliency,
        input=options.input,
        target=options.target,
        logits=options.logits,
        per_class=options.per_class,
        max_batch=options.max_batch,
        progress=options.progress,
    )
    result = replace(result, weights=weights)
    for path in _outputs(page):
        print(f"{result.save(path)}")
    print(result)
    return _exit_code(result)


def _outputs(page: Path) -> tuple[Path, Path]:
    return page.with_suffix(".json"), page


def _check_out(out: str, inputs: Iterable[Any]) -> None:
    """Raises a `ValueError` where the page or the JSON cannot be written, or would be written over what is read."""
    page = Path(out)
    if page.suffix != ".html" or not page.parent.is_dir():
        raise ValueError(f"Expected `out` to be a file in a folder that there is, ending in .html, but got {out!r}.")
    read = {Path(str(each)).resolve() for each in inputs if each is not None}
    for path in _outputs(page):
        if path.resolve() in read:
            raise ValueError(f"Expected `out` to leave what is read but {out!r} would write over {str(path)!r}.")
        target = path if path.exists() else path.parent
        if path.is_dir() or not os.access(target, os.W_OK):
            raise ValueError(f"Expected `out` to be a file that can be written but {str(path)!r} cannot be.")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"Expected `device` to be 'auto' or a device of torch but got {name!r}.") from None


def _exit_code(result: Audit) -> int:
    if not result.complete:
        return STOPPED
    return PASSED if result.passed else FAILED
