"""How much of a task's loss is due to broken symmetry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_invariance._checks import check_choice, check_finite, check_same_device, check_tensor
from lightning_invariance._containers import describe_value
from lightning_invariance._messages import warn
from lightning_invariance.functional._orbit_accuracy import check_labels_of
from lightning_invariance.functional._orbit_values import (
    REDUCTIONS,
    Reduction,
    check_classes,
    check_orbit,
    check_outputs,
    check_valid,
    check_values_finite,
    flat_samples,
    is_single,
    warn_undefined,
)

LossName = Literal["cross_entropy", "mse", "mae"]

#: A loss by its name, or a function ``(outputs, target) -> (B,)`` that gives one value a sample.
Loss = LossName | Callable[[Tensor, Tensor], Tensor]

LOSSES: tuple[LossName, ...] = ("cross_entropy", "mse", "mae")


class OrbitLosses(NamedTuple):
    """A batch's losses, float64, shape ``(B,)``. NaN where nothing is there to compare with.

    Attributes:
        poses: the mean over all poses, x among them.
        excess: how much more that is than the loss of the outputs' mean over the orbit.
        by_element: how much more the loss of each pose but x is, ``(|G| - 1, B)``.
    """

    poses: Tensor
    excess: Tensor
    by_element: Tensor


def check_loss(loss: object) -> None:
    """Raises a `ValueError` unless `loss` names one, or can be called."""
    if loss is not None and not callable(loss) and loss not in LOSSES:
        raise ValueError(
            f"Expected `loss` to be one of {list(LOSSES)}, a function (outputs, target) that gives one value a sample, "
            f"or None but got {loss!r}."
        )


def loss_for(logits: Tensor, target: Tensor, loss: Loss | None) -> Loss:
    """The loss that is meant, where none is named.

    Raises:
        ValueError: if several could be.
    """
    check_tensor("target", target)
    if loss is not None:
        return loss
    if target.is_complex() or target.dtype == torch.bool:
        raise ValueError(f"Expected `loss` to be named for such a target but got {describe_value(target)}.")
    if not target.is_floating_point():
        return "cross_entropy"
    if logits.ndim == 2 and target.shape == logits.shape and logits.shape[1] > 1 and _are_shares(target):
        raise ValueError(
            "Expected `loss` to be named for a target whose rows add up to 1, which may be probabilities "
            "('cross_entropy') or numbers ('mse', 'mae'), but got None."
        )
    return "mse"


def _are_shares(target: Tensor) -> bool:
    rows = target.detach().double()
    return len(rows) > 0 and bool((rows >= 0).all()) and bool(((rows.sum(dim=1) - 1).abs() < 1e-3).all())


def check_loss_inputs(
    logits: Tensor, orbit_logits: Tensor, target: Tensor, loss: Loss, valid: Tensor | None = None
) -> Tensor:
    """Raises where shapes or types do not match; the target, of the outputs' shape where it is one number a sample."""
    check_orbit(logits, orbit_logits)
    check_outputs(logits)
    check_valid(valid, orbit_logits)
    check_same_device("target", target, logits.device, "`logits`")
    if loss == "cross_entropy" and not target.is_floating_point():
        check_classes(logits, 2)
        check_labels_of(target, logits)
        return target
    if callable(loss):
        if valid is not None:
            raise ValueError(
                f"Expected `loss` to be one of {list(LOSSES)}, of which each place's part is known, as some places of "
                f"the outputs are not valid, but got {loss!r}."
            )
        if target.ndim == 0 or len(target) != len(logits):
            raise ValueError(f"Expected `target` to have {len(logits)} rows but got {describe_value(target)}.")
        return target
    if loss == "cross_entropy":
        check_classes(logits, 2)
    if is_single(logits) and target.numel() == len(logits) and is_single(target):
        target = target.reshape(logits.shape)
    if target.shape != logits.shape or target.is_complex():
        raise ValueError(
            f"Expected `target` to have the shape {tuple(logits.shape)} of `logits` for loss={loss!r} but got "
            f"{describe_value(target)}."
        )
    return target


def orbit_losses(
    logits: Tensor, orbit_logits: Tensor, target: Tensor, loss: Loss, valid: Tensor | None = None
) -> OrbitLosses:
    """Each sample's loss over its orbit, and the part of it that its orbit's mean output does not have."""
    orbit = torch.cat([logits.double()[None], orbit_logits.double()])
    seen = None
    if valid is not None:
        # Each place is compared in the poses that see it, x among them.
        seen = torch.cat([torch.ones_like(valid[:1]), valid]).expand(orbit.shape)
        if loss == "cross_entropy":
            seen = seen.all(dim=2, keepdim=True).expand(orbit.shape)
    pooled = orbit.mean(dim=0) if seen is None else torch.where(seen, orbit, 0.0).sum(dim=0) / seen.sum(dim=0)
    each = torch.stack([_place_losses(outputs, target, loss) for outputs in orbit])
    best = _place_losses(pooled, target, loss)
    if seen is None:
        poses = each.mean(dim=0)
    else:
        places = flat_samples(seen[:, :, 0] if loss == "cross_entropy" else seen, before=2)
        poses = torch.where(places, each, 0.0).sum(dim=0) / places.sum(dim=0)
    # Sums of differences: an exactly invariant network's are 0, which differences of sums need not be.
    excess, moved = poses - best, each[1:] - best
    if seen is not None:
        moved = moved.masked_fill(~places[1:], torch.nan)
    poses, excess, moved = poses.nanmean(dim=1), excess.nanmean(dim=1), moved.nanmean(dim=2)
    # A convex loss of a mean is no larger than the mean of the losses (Jensen), but for rounding.
    return OrbitLosses(poses, excess if callable(loss) else excess.clamp_min(0.0), moved)


def _place_losses(outputs: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """The loss of each place, ``(B, N)``; NaN where a label names no class."""
    if callable(loss):
        values = loss(outputs, target)
        if not isinstance(values, Tensor) or values.shape != (len(outputs),) or not values.is_floating_point():
            raise ValueError(
                f"Expected `loss` to give one value for each of {len(outputs)} samples but got "
                f"{describe_value(values)}: with `reduction='none'`, say."
            )
        return values.double()[:, None]
    if loss != "cross_entropy":
        gaps = outputs - target.double()
        return flat_samples(gaps.square() if loss == "mse" else gaps.abs())
    log_probabilities = outputs.log_softmax(dim=1)
    if target.is_floating_point():
        return flat_samples(-(target.double() * log_probabilities).sum(dim=1))
    named = (target >= 0) & (target < outputs.shape[1])
    chosen = log_probabilities.gather(1, torch.where(named, target, 0).long().unsqueeze(1)).squeeze(1)
    return flat_samples((-chosen).masked_fill(~named, torch.nan))


def share_of(excess: Tensor, poses: Tensor) -> Tensor:
    """In per cent; NaN where there is no loss."""
    return 100 * torch.where(poses > 0, excess / poses, torch.nan)


def warn_no_loss() -> None:
    """Warns that the share is undefined."""
    warn("The loss share is undefined: the loss is 0 (or, of a function, negative), so NaN is returned.")


def loss_share(
    logits: Tensor,
    orbit_logits: Tensor,
    target: Tensor,
    *,
    loss: Loss | None = None,
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""The part of the task's loss that is due to broken symmetry, in per cent.

    .. math::
        S = 100 \, \frac{\mathbb{E}_x \big[ \tfrac{1}{|G|} \sum_{g \in G} L(\rho(g)^{-1} f(gx), y)
        - L(\bar f(x), y) \big]}{\mathbb{E}_x \tfrac{1}{|G|} \sum_{g \in G} L(\rho(g)^{-1} f(gx), y)}, \qquad
        \bar f(x) = \frac{1}{|G|} \sum_{g \in G} \rho(g)^{-1} f(gx)

    The loss over all poses, split into that of the output averaged over the orbit, which no pose changes, and the
    rest. The identity is one of the poses here. For a convex loss (all that have names) the share is in [0, 100] by
    Jensen's inequality, lower is more invariant; 0 is invariance. Of a squared error the rest is the variance of the
    outputs over the orbit.

    After Shen, Nowara, Maser and Cho, "Training Dynamics of Learning 3D-Rotational Equivariance" (TMLR 2025), whose
    "percent of loss" takes the mean over a whole continuous group. Here it is over the elements that are listed: of n
    of them, the identity and drawn ones (``len(action)``), the squared error's part is, in expectation,
    :math:`(n - 1) / n` of that of the whole group.

    Args:
        logits: :math:`f(x)`, shape ``(B, ...)``: any output.
        orbit_logits: :math:`\rho(g)^{-1} f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``, as
            `evaluate_orbit` gives it.
        target: :math:`y`, that of x: for ``"cross_entropy"`` the class of each sample ``(B,)`` or place ``(B, H, W)``,
            those that name none left out, or probabilities of the logits' shape; otherwise numbers of their shape.
        loss: ``"cross_entropy"``, ``"mse"``, ``"mae"`` (means over a sample's values), or a function ``(outputs,
            target)`` that gives one value a sample; by default cross-entropy of integer targets, squared error of
            floating-point ones.
        valid: which places both poses see, bool, broadcastable to `orbit_logits`; see `OrbitOutputs`. Each place is
            averaged over the poses that see it.
        reduction: ``"mean"`` for the ratio; ``"element"`` for how much more than :math:`\bar f`'s the loss of each
            pose but x is, over the same mean loss ``(|G| - 1,)``, where a lucky pose has less than 0; ``"none"`` for
            one value a sample ``(B,)``, its own part over the batch's mean loss.

    Returns:
        The share, in float32 or better. NaN, with a warning, where there is no loss at all.

    Raises:
        ValueError: if shapes do not match, an input is not finite, an option is unknown, or several losses could be
            meant.

    Example:
        Forces that are right on average, and turned a little in each pose:

        >>> import torch
        >>> from lightning_invariance.functional import loss_share
        >>> target = torch.tensor([[2.0, 0.0]])
        >>> logits, orbit_logits = torch.tensor([[2.0, 0.3]]), torch.tensor([[[2.0, -0.1]]])
        >>> loss_share(logits, orbit_logits, target)  # means (0.09 + 0.01) / 2, of which 0.1² are left
        tensor(80.)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_loss(loss)
    check_orbit(logits, orbit_logits)
    loss = loss_for(logits, target, loss)
    target = check_loss_inputs(logits, orbit_logits, target, loss, valid)
    check_values_finite(logits, orbit_logits)
    if target.is_floating_point():
        check_finite("target", target)
    losses = orbit_losses(logits, orbit_logits, target, loss, valid)
    defined = ~losses.poses.isnan()
    kept = int(defined.sum())
    warn_undefined("The loss share", len(defined) - kept, len(defined))
    total = torch.where(defined, losses.poses, 0.0).sum()
    if kept and not total > 0:
        warn_no_loss()
    if reduction == "none":
        share = share_of(losses.excess, (total / kept).expand(len(defined)))
    else:
        columns = losses.excess if reduction == "mean" else losses.by_element
        share = share_of(torch.where(defined, columns.nan_to_num(), 0.0).sum(dim=-1), total)
    precision = torch.promote_types(logits.dtype, orbit_logits.dtype)
    return share.to(torch.promote_types(precision, torch.float32))
