"""A linear layer whose weight is a matrix product operator (a tensor train of a matrix)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from tensorfact.factor import balanced_shape, tt_matrix_svd, useful_ranks
from tensorfact.torch._mpo_cache import DenseCache
from tensorfact.torch._mpo_op import mpo_linear, mpo_weights, plan_for, sizes_of, untrackable
from tensorfact.torch._mpo_plan import Path, Plan, plan


class MPOLinear(nn.Module):
    """``y = x W^T + b`` with W (out_features, in_features) stored as a chain of small cores.

    ``W[(i1..iL), (j1..jL)] = A1[0, i1, j1, :] A2[:, i2, j2, :] ... AL[:, iL, jL, 0]``, indices in C order.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of the input and of the output.
    rank : int or tuple of int
        The bonds between neighbouring cores: one for all, or one each (``order - 1``). Bonds above what the neighbours
        can use are clipped, so the layer has no dead parameters; `ranks` tells the bonds in use.
    order : int
        Number of cores; ignored when shapes are given.
    row_shape, col_shape : tuple of int, optional
        Factors of `out_features` and of `in_features`, one for each core; by default as equal as possible.
    bias : bool
        Whether a bias (out_features,) is added.
    init : {"exact", "paper"}
        "exact" draws normal cores whose product has the variance of a fresh `nn.Linear` weight, 1 / (3 in_features),
        for any number of cores. "paper" is the rule of arXiv 2603.28534, which is right for two cores only.
    path : {"auto", "chain", "reconstruct"}
        "chain" contracts the input with one core after another, "reconstruct" multiplies the weight out first, "auto"
        takes what is expected to be faster for the number of tokens at hand; `plan` tells which.
    device, dtype
        As in `torch.nn.Linear`; ``device="meta"`` allocates nothing.

    Notes
    -----
    State-dict keys: ``cores.0``, ``cores.1``, ... of shape (r, m, n, r'), and ``bias``.

    In evaluation mode without gradients of the cores, a weight that was multiplied out is kept until a core changes:
    by an optimiser, `load_state_dict`, ``.to()`` or any other operation on the parameter. Writing into ``core.data`` is
    not noticed (PyTorch does not count it); call ``layer.eval()`` afterwards. The backward pass keeps the input and the
    cores only. In training, `share_rebuilds` multiplies the weights of a model out once for many uses.

    Examples
    --------
    >>> import torch
    >>> from tensorfact.torch import MPOLinear
    >>> layer = MPOLinear(768, 3072, rank=4)
    >>> layer(torch.zeros(2, 768)).shape, sum(p.numel() for p in layer.cores)
    (torch.Size([2, 3072]), 12800)
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int | tuple[int, ...],
        order: int = 2,
        row_shape: Sequence[int] | None = None,
        col_shape: Sequence[int] | None = None,
        bias: bool = True,
        init: Literal["exact", "paper"] = "exact",
        path: Path = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        rows, cols = _shapes(in_features, out_features, order, row_shape, col_shape)
        if init not in ("exact", "paper"):
            raise ValueError(f'init must be "exact" or "paper", got {init!r}')
        if path not in ("auto", "chain", "reconstruct"):
            raise ValueError(f'path must be "auto", "chain" or "reconstruct", got {path!r}')
        self.in_features = in_features
        self.out_features = out_features
        self.row_shape = rows
        self.col_shape = cols
        self.ranks = (1, *useful_ranks([m * n for m, n in zip(rows, cols, strict=True)], rank), 1)
        self.init = init
        self.path: Path = path
        self.cores = nn.ParameterList(
            nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            for shape in zip(self.ranks[:-1], rows, cols, self.ranks[1:], strict=True)
        )
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self._dense = DenseCache()
        self._shared: Tensor | None = None  # set by share_rebuilds
        self.reset_parameters()

    def reset_parameters(self, std: float | None = None) -> None:
        """Draw random cores: the product has standard deviation `std`, by default the one that `init` names."""
        order = len(self.row_shape)
        if std is None:
            std = self.in_features ** (-order / 4) if self.init == "paper" else 1 / math.sqrt(3 * self.in_features)
        # An entry of W is a sum over all bonds of products of one entry a core.
        scale = (std * std / math.prod(self.ranks)) ** (1 / (2 * order))
        for core in self.cores:
            nn.init.normal_(core, std=scale)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        cores: list[Tensor] = list(self.cores)
        bias: Tensor | None = self.bias
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x must have {self.in_features} numbers in its last axis, got shape {tuple(x.shape)}")
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # as nn.Linear: all in the type of the region
            dtype = torch.get_autocast_dtype(x.device.type)
            if x.dtype != torch.float64 and cores[0].dtype != torch.float64:
                x, cores = x.to(dtype), [core.to(dtype) for core in cores]
                bias = None if bias is None else bias.to(dtype)
        if x.dtype != cores[0].dtype:
            raise ValueError(f"x must be of the layer's dtype, {cores[0].dtype}, got {x.dtype}")
        if x.device != cores[0].device:
            raise ValueError(f"x must be on the layer's device, {cores[0].device}, got {x.device}")
        if self._shared is not None:
            return nn.functional.linear(x, self._shared.to(x.dtype), bias)
        if not (self.training or untrackable()) and self.path != "chain":
            parameters = list(self.cores)
            if self._dense.usable(parameters) and plan_for(x, cores, self.path, rebuilt=True).how == "reconstruct":
                weight = self._dense.get(parameters, lambda: mpo_weights([parameters])[0])
                return nn.functional.linear(x, weight.to(x.dtype), bias)
        return mpo_linear(x, cores, bias, self.path)

    def plan(self, tokens: int) -> Plan:
        """How a forward pass of `tokens` rows runs now: through the weight, or as a chain, from which end."""
        first = self.cores[0]
        kept = not (self.training or untrackable()) and self.path != "chain" and self._dense.usable(list(self.cores))
        return plan(
            sizes_of(list(self.cores)),
            tokens,
            itemsize=first.element_size(),
            threads=torch.get_num_threads(),
            path=self.path,
            gpu=first.device.type not in ("cpu", "meta"),
            rebuilt=kept,
        )

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; forgets the weight that evaluation kept."""
        self._dense.clear()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Without the weight of `share_rebuilds`: a copy made inside has its own cores."""
        return {**self.__dict__, "_shared": None}

    def _replicate_for_data_parallel(self) -> Self:
        replica = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._dense, replica._shared = DenseCache(), None
        return replica  # type: ignore[no-any-return]

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._dense.clear()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    @property
    def weight(self) -> Tensor:
        """The dense weight (out_features, in_features), computed at every access; differentiable."""
        return mpo_weights([list(self.cores)])[0]

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        order: int = 2,
        row_shape: Sequence[int] | None = None,
        col_shape: Sequence[int] | None = None,
        rank: int | tuple[int, ...] | None = None,
        tol: float | None = None,
        max_rank: int | None = None,
        balance: bool = True,
        path: Path = "auto",
        rng: Any = None,
    ) -> Self:
        """Decompose a trained layer by TT-SVD of its weight; `linear` is left as it is.

        Parameters
        ----------
        linear : torch.nn.Linear
            float16 and bfloat16 weights are decomposed in float32 and cast back. Device, dtype, bias, training flag and
            ``requires_grad`` survive.
        order, row_shape, col_shape, path
            As in the constructor.
        rank, tol, max_rank
            As in `tensorfact.tt_matrix_svd`: bonds, or the smallest bonds whose relative Frobenius error is at most
            `tol`, none above `max_rank`.
        balance : bool
            Share the singular values of each bond between its two cores, so that all train at one pace.
        rng
            As in `tensorfact.tt_matrix_svd`.

        Raises
        ------
        ValueError
            If `linear` is no `nn.Linear`, its weight is on the meta device or not finite, or arguments do not fit.
        """
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        weight = linear.weight.detach()
        if weight.is_meta:
            raise ValueError("linear must hold values, got a weight on the meta device")
        rows, cols = _shapes(linear.in_features, linear.out_features, order, row_shape, col_shape)
        if weight.dtype in (torch.float16, torch.bfloat16):
            weight = weight.float()
        matrix = tt_matrix_svd(
            weight.numpy() if weight.device.type == "cpu" else weight,
            rows,
            cols,
            rank=rank,
            tol=tol,
            max_rank=max_rank,
            balance=balance,
            rng=rng,
        )
        layer = cls.from_matrix(matrix, linear.bias, path=path, device=linear.weight.device, dtype=linear.weight.dtype)
        for core in layer.cores:
            core.requires_grad_(linear.weight.requires_grad)
        if layer.bias is not None:
            layer.bias.requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    @classmethod
    def from_matrix(
        cls,
        matrix: Any,
        bias: Tensor | None = None,
        *,
        path: Path = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Build the layer of a `tensorfact.TTMatrix` (out_features, in_features); values are copied.

        `device` and `dtype` default to those of the cores.
        """
        cores = [torch.asarray(core, copy=True) for core in matrix.cores]
        useful = useful_ranks([core.shape[1] * core.shape[2] for core in cores], tuple(c.shape[3] for c in cores[:-1]))
        if useful != tuple(core.shape[3] for core in cores[:-1]):
            raise ValueError(f"matrix must have bonds of use, at most {useful}, got {matrix.ranks}; round it first")
        rows, cols = tuple(core.shape[1] for core in cores), tuple(core.shape[2] for core in cores)
        layer = cls(
            math.prod(cols),
            math.prod(rows),
            rank=tuple(core.shape[3] for core in cores[:-1]),
            row_shape=rows,
            col_shape=cols,
            bias=bias is not None,
            path=path,
            device="meta",
            dtype=dtype if dtype is not None else cores[0].dtype,
        ).to_empty(device=device if device is not None else cores[0].device)
        with torch.no_grad():
            for mine, core in zip(layer.cores, cores, strict=True):
                mine.copy_(core)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer

    def to_linear(self) -> nn.Linear:
        """Return the dense layer with the same output up to rounding: `weight` multiplied out, bias copied."""
        first = self.cores[0]
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device=first.device, dtype=first.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        linear.weight.requires_grad_(any(core.requires_grad for core in self.cores))
        if self.bias is not None:
            linear.bias.requires_grad_(self.bias.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Return the sizes that `repr` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, row_shape={self.row_shape}, "
            f"col_shape={self.col_shape}, ranks={self.ranks}, bias={self.bias is not None}"
        )


def _shapes(
    in_features: int,
    out_features: int,
    order: int,
    row_shape: Sequence[int] | None,
    col_shape: Sequence[int] | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Resolve and check the factors of both sides."""
    given = row_shape if row_shape is not None else col_shape
    if given is not None:
        order = len(given)
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"order must be a positive integer, got {order!r}")
    shapes = []
    for name, size, what, shape in (
        ("row_shape", out_features, "out_features", row_shape),
        ("col_shape", in_features, "in_features", col_shape),
    ):
        factors = tuple(int(n) for n in shape) if shape is not None else balanced_shape(size, order)
        if len(factors) != order or any(n < 1 for n in factors) or math.prod(factors) != size:
            raise ValueError(f"{name} must be {order} positive factors of {what} = {size}, got {shape}")
        shapes.append(factors)
    return shapes[0], shapes[1]
