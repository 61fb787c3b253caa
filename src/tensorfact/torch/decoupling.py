"""A two-layer network whose hidden units have learned activations: few of them do the work of many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from tensorfact.factor import Decoupling, decouple_mlp
from tensorfact.factor.sampling import ACTIVATIONS
from tensorfact.torch.splines import SplineActivation

__all__ = ["DecoupledMLP", "SplineHidden", "SplineOutput", "activation_of"]

Activation = str | nn.Module | Callable[[Tensor], Tensor]


class SplineHidden(nn.Module):
    """The first half of a decoupled MLP, ``splines(down(x))``: stands for a linear layer and its activation.

    State-dict keys: ``down.weight`` (rank, in_features), ``splines.coefficients`` (rank, n_basis), ``splines.ends``.
    """

    def __init__(
        self, in_features: int, rank: int, *, n_basis: int, degree: int, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, rank
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.splines = SplineActivation(rank, n_basis=n_basis, degree=degree, uniform=True, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., rank)."""
        return self.splines(self.down(x))  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """The projection (rank, in_features), for model code that looks at dtype or device."""
        return self.down.weight


class SplineOutput(nn.Module):
    """The second half of a decoupled MLP, a linear layer from `rank` splines; keys ``up.weight`` and ``up.bias``."""

    def __init__(self, rank: int, out_features: int, *, bias: bool, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.in_features, self.out_features = rank, out_features
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., rank) to (..., out_features)."""
        return self.up(x)  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """The weight (out_features, rank)."""
        return self.up.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, or None."""
        return self.up.bias


class DecoupledMLP(nn.Module):
    """``up(splines(down(x)))``: `rank` hidden units, each with its own spline, in place of a wide hidden layer.

    The model of `tensorfact.decouple`: ``f(x) ~ w g(v^T x) + bias`` with ``down.weight = v^T`` (it has no bias: the
    knots take the shift) and ``up`` holding w and the bias. A pass costs ``rank * (in_features + out_features)``
    multiply-adds a row and the splines.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of the input and of the output.
    rank : int
        Hidden units; it may exceed both sizes.
    n_basis, degree : int
        Of each spline, see `SplineActivation`.
    bias : bool
        Whether ``up`` carries a bias.
    device, dtype
        As in `torch.nn.Linear`.

    Notes
    -----
    State-dict keys: ``down.weight`` (rank, in_features), ``splines.knots``, ``splines.coefficients``, ``up.weight``
    (out_features, rank), ``up.bias``. Parameters: ``rank (in + out + n_basis) + out``, knots not counted.

    References
    ----------
    De Jonghe, Pham, Ishteva, arXiv 2605.18794.

    Examples
    --------
    >>> import torch
    >>> DecoupledMLP(6, 3, rank=4)(torch.zeros(2, 6)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        n_basis: int = 12,
        degree: int = 3,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.splines = SplineActivation(rank, n_basis=n_basis, degree=degree, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self.up(self.splines(self.down(x)))  # type: ignore[no-any-return]

    @property
    def rank(self) -> int:
        """Number of hidden units."""
        return self.splines.features

    def freeze_splines(self, frozen: bool = True) -> Self:
        """Train the weights only, or let the splines go free again; the knots never move. Returns the layer."""
        self.splines.coefficients.requires_grad_(not frozen)
        return self

    @classmethod
    def from_decoupling(
        cls,
        result: Decoupling,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Build the layer of a decoupling; values are copied. `dtype` defaults to that of `result`."""
        n, m = result.shape
        kind = dtype if dtype is not None else torch.from_numpy(np.empty(0, result.dtype)).dtype
        layer = cls(m, n, rank=result.rank, n_basis=result.n_basis, degree=result.degree, device=device, dtype=kind)
        layer.splines = SplineActivation.from_splines(
            np.array(result.knots), np.array(result.coefficients), result.degree, device=device, dtype=kind
        )
        with torch.no_grad():
            layer.down.weight.copy_(torch.from_numpy(np.array(result.v.T)))
            layer.up.weight.copy_(torch.from_numpy(np.array(result.w)))
            layer.up.bias.copy_(torch.from_numpy(np.array(result.bias)))
        return layer

    @classmethod
    def from_dense(
        cls, fc1: nn.Linear, activation: Activation, fc2: nn.Linear, samples: Tensor, *, rank: int, **options: Any
    ) -> Self:
        """Fit ``fc2(activation(fc1(x)))`` at `samples` by `tensorfact.decouple_mlp`.

        Parameters
        ----------
        fc1, fc2 : torch.nn.Linear
            Left as they are. Device and dtype of `fc1` are those of the layer; the fit runs on the CPU in float64.
        activation : str, torch.nn.Module or callable
            A name that `decouple_mlp` knows, or what maps a tensor number by number and has a gradient.
        samples : Tensor, shape (..., in_features)
            Inputs at which values and Jacobians are to be met: what the network sees in use.
        rank : int
            Hidden units.
        **options
            Of `decouple_mlp`, for example ``n_basis``, ``weight``, ``max_iter``, ``rng``.

        Raises
        ------
        ValueError
            As `decouple_mlp`, or if `activation` does not act number by number.
        """
        for name, layer in (("fc1", fc1), ("fc2", fc2)):
            if not isinstance(layer, nn.Linear):
                raise ValueError(f"{name} must be a torch.nn.Linear, got {type(layer).__name__}")
        if samples.shape[-1:] != (fc1.in_features,):
            raise ValueError(f"samples must have {fc1.in_features} features, got shape {tuple(samples.shape)}")
        (w1, b1), (w2, b2) = (
            (_numbers(at.weight), np.zeros(at.out_features) if at.bias is None else _numbers(at.bias))
            for at in (fc1, fc2)
        )
        x = _numbers(samples.reshape(-1, fc1.in_features))
        found = decouple_mlp(w1, b1, w2, b2, activation_of(activation), x, rank=rank, **options)
        return cls.from_decoupling(found, device=fc1.weight.device, dtype=fc1.weight.dtype).train(fc1.training)

    def to_dense(self) -> nn.Sequential:
        """Return the same function as a ReLU network ``Linear, ReLU, Linear``; only splines of degree 1 have one.

        A continuous piecewise linear spline is a sum of ``n_basis`` hinges, tails included, so the hidden layer has
        ``rank * n_basis`` units. Splines of another degree raise ``ValueError``: no network with a fixed activation
        equals them.
        """
        if self.splines.degree != 1:
            raise ValueError(f"splines must have degree 1 to be a ReLU network, got degree {self.splines.degree}")
        t = self.splines.grid().detach().double()[:, 1:-1]  # the breaks, one for each coefficient
        c = self.splines.coefficients.detach().double()
        lengths = t.diff(dim=1)
        if not bool((lengths > 0).all()):
            raise ValueError("knots must be distinct inside: a spline that jumps is no ReLU network")
        slopes = c.diff(dim=1) / lengths  # (rank, n_basis - 1)
        # Left tail and first piece are one line, which takes a pair of hinges; each inner break bends by one more.
        hinges = torch.cat([slopes[:, :1], slopes.diff(dim=1), -slopes[:, :1]], dim=1)
        places = torch.cat([t[:, :-1], t[:, :1]], dim=1)
        signs = torch.ones_like(places)
        signs[:, -1] = -1
        weight = self.up.weight
        down, up = self.down.weight.detach().double(), weight.detach().double()
        bias = self.up.bias.detach().double() if self.up.bias is not None else up.new_zeros(up.shape[0])
        first = nn.Linear(self.down.in_features, hinges.numel(), device=weight.device, dtype=weight.dtype)
        second = nn.Linear(hinges.numel(), self.up.out_features, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            first.weight.copy_((signs[:, :, None] * down[:, None, :]).flatten(0, 1))
            first.bias.copy_((-signs * places).flatten())
            second.weight.copy_((up[:, :, None] * hinges).flatten(1))
            second.bias.copy_(bias + up @ c[:, 0])
        return nn.Sequential(first, nn.ReLU(), second).train(self.training)


def activation_of(activation: Activation) -> Any:
    """Turn a torch activation into the pair (function, derivative) that `decouple_mlp` takes; names pass through."""
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)} or a callable, got {activation!r}")
        return activation
    if not callable(activation):
        raise ValueError(f"activation must be a name or a callable, got {activation!r}")
    run = activation
    if isinstance(run, nn.Module) and list(run.parameters()):  # what it learned, in the precision of the fit
        import copy

        run = copy.deepcopy(run).double().cpu()

    def value(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return np.asarray(run(torch.from_numpy(np.array(a, order="C"))).numpy())  # it may work in place

    def slope(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.enable_grad():
            x = torch.from_numpy(np.ascontiguousarray(a)).requires_grad_()
            (found,) = torch.autograd.grad(run(x.clone()).sum(), x)
        return found.numpy()

    probe = np.linspace(-4, 4, 24).reshape(4, 6)
    try:
        made, other = value(probe), value(probe.reshape(6, 4)[::-1])[::-1].reshape(probe.shape)
    except Exception as error:  # whatever a foreign callable raises
        raise ValueError(f"activation must map a tensor number by number, it raised {error!r}") from error
    if made.shape != probe.shape or not np.allclose(made, other, rtol=1e-12, atol=1e-12):
        raise ValueError("activation must map a tensor number by number, it mixes them")
    return value, slope


def _numbers(a: Tensor) -> np.ndarray[Any, Any]:
    """Values as NumPy holds them; float32 stays what it is, so that the result is float32."""
    plain = a.detach().cpu()
    return (plain.float() if plain.dtype in (torch.float16, torch.bfloat16) else plain).numpy()
