"""Operators from functions of images and from deepinv's physics objects."""

# ruff: noqa: N802 - A is the name of the field

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.inverse.operator import LinearOperator, Operator


def tried(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return f(x) for random images; raise ValueError unless it is one real and finite measurement for each."""
    try:
        with torch.no_grad():
            y, alone = function(given := x.clone()), function(x[:1].clone())
    except Exception as error:  # a user's function may raise anything
        raise ValueError(
            f"this operator fails for real images {tuple(x.shape)} {x.dtype} on the CPU: {first_line(error)}. Operators of "
            "complex images take their real and imaginary part as two channels"
        ) from error
    if not isinstance(y, Tensor):
        raise ValueError(
            f"an operator turns images {tuple(x.shape)} into a tensor; this one returned {type(y).__name__}"
        )
    if y.ndim < 2 or len(y) != len(x) or not y.is_floating_point():
        hint = ". Return complex ones as torch.view_as_real" if y.is_complex() else ""
        raise ValueError(
            f"an operator turns images {tuple(x.shape)} into real measurements ({len(x)}, ...), one for each; this one "
            f"returned {y.dtype} {tuple(y.shape)}{hint}"
        )
    if not y.isfinite().all():
        raise ValueError("this operator returned NaN or inf for random images; it must be defined for all values")
    if not torch.equal(given, x):
        raise ValueError("this operator changes its images in place; let it return new tensors, x * 2 for x.mul_(2)")
    if alone.shape != y[:1].shape or not torch.allclose(y[:1], alone, atol=1e-4 * y.abs().max().item(), rtol=1e-3):
        raise ValueError(
            "this operator's measurement of an image depends on the other images of the batch, or changes at each call; make "
            "it a function of its own image alone, and leave noise to the likelihood"
        )
    return y


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def check_differentiable(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the function is differentiable; proximal draws follow its gradient."""
    try:
        with torch.enable_grad():
            x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
            torch.autograd.grad(function(x).square().sum(), x)
    except Exception as error:  # a user's function may raise anything
        raise ValueError(
            f"this operator has no gradient ({first_line(error)}); write it with differentiable functions of PyTorch, or "
            "give an object with the methods A and A_adjoint"
        ) from error


def linear(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> bool:
    """Return whether f(a + 2 b) = f(a) + 2 f(b) for random images of this shape; raise ValueError if f is not an operator."""
    a, b = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    both = tried(function, a) + 2 * tried(function, b)
    return torch.allclose(tried(function, a + 2 * b), both, atol=1e-4 * both.abs().max().item(), rtol=1e-3)


class Function(Operator):
    """Any differentiable function of images as an operator. Use `LinearFunction` for linear ones.

    Args:
        function: images (B, C, H, W) to measurements (B, ...).
        shape: shape of the images (C, H, W).

    Example:
        >>> operator = fs.inverse.Function(torch.tanh, (1, 8, 8))
    """

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.function = function
        self.owner = getattr(
            function, "__self__", None
        )  # the module of a method moves to other devices with the operator

    def A(self, x: Tensor) -> Tensor:
        """Return the measurement (B, ...) of images (B, C, H, W), without noise."""
        return self.function(x)


class LinearFunction(LinearOperator):
    """Any linear function of images as an operator; the adjoint is derived by differentiation.

    Args:
        function: images (B, C, H, W) to measurements (B, ...).
        shape: shape of the images (C, H, W).

    Raises:
        ValueError: the function is not linear or not differentiable, or fails for images of this shape.

    Example:
        >>> operator = fs.inverse.LinearFunction(lambda x: x.cumsum(-1), (1, 8, 8))
    """

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.function = function
        if not linear(function, shape):
            raise ValueError(
                "this function is not linear: A(a + 2 b) is not A(a) + 2 A(b); use fewstep.inverse.Function"
            )
        if type(self).A_adjoint is LinearOperator.A_adjoint:  # derived by differentiation
            check_differentiable(function, shape)

    def A(self, x: Tensor) -> Tensor:
        """Return the measurement (B, ...) of images (B, C, H, W), without noise."""
        return self.function(x)


class Physics(LinearOperator):
    """A linear physics object of deepinv (or anything with its `A` and `A_adjoint`) as an operator.

    Args:
        physics: the object.
        shape: shape of the images (C, H, W).

    Raises:
        ValueError: A_adjoint fails, or is not the adjoint of A, with which every draw would have another distribution.
    """

    def __init__(self, physics: Any, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.physics = physics
        x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        y = tried(physics.A, x)
        v = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        pulled = tried(physics.A_adjoint, v)
        a, b = (y * v).sum().item(), (x * pulled).sum().item() if pulled.shape == x.shape else math.nan
        if not math.isclose(a, b, abs_tol=1e-3 * (y.norm() * v.norm()).item()):
            raise ValueError(
                f"the A_adjoint of this physics object is not the adjoint of its A: <A x, v> = {a:.6g}, <x, A_adjoint v> = "
                f"{b:.6g}, of shape {tuple(pulled.shape)}. Give its A alone, as a function, and the adjoint is derived"
            )

    def A(self, x: Tensor) -> Tensor:
        return self.physics.A(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.physics.A_adjoint(y)


def from_physics(physics: Any, shape: tuple[int, ...]) -> Operator:
    """Return a deepinv physics object as an operator: `Physics` if it is linear and has an adjoint, else a `Function` of its A.

    It is tested on random images on the CPU; `.to` moves it afterwards. The object's own noise is not used; give its level
    to the `Likelihood`. deepinv itself is not imported.

    Args:
        physics: an object with the method `A`, and `A_adjoint` if it is linear.
        shape: shape of the images (C, H, W).

    Returns:
        The operator.

    Raises:
        ValueError: the object has no A, fails for real images of this shape, does not return one real measurement for each
            image, has no gradient though it is not linear, or has a wrong adjoint.

    Example:
        >>> class Halve:
        ...     def A(self, x):
        ...         return x / 2
        >>> operator = fs.inverse.from_physics(Halve(), (1, 8, 8))
    """
    if not callable(getattr(physics, "A", None)):
        raise ValueError(f"expected an object with the method A, as deepinv's physics have; got {physics!r}")
    if linear(physics.A, shape) and callable(getattr(physics, "A_adjoint", None)):  # phase retrieval also has one
        return Physics(physics, shape)
    return tried_function(physics.A, shape)


def tried_function(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Function:
    check_differentiable(function, shape)
    return Function(function, shape)


def operator_of(value: Any, shape: tuple[int, ...]) -> Operator:
    """Return the operator of an object: an `Operator`, a deepinv physics object, or a function of images (B, C, H, W).

    A function is tested for linearity on random images; a linear one gets exact proximal steps.
    """
    if isinstance(value, Operator):
        if value.shape != shape:
            raise ValueError(f"the operator takes images of shape {value.shape}, the model has {shape}")
        return value
    if hasattr(value, "A"):
        return from_physics(value, shape)
    return (LinearFunction if linear(value, shape) else tried_function)(value, shape)
