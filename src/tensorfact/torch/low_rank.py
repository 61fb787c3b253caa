"""A linear layer whose weight is a product of two thin matrices."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from tensorfact.factor import LowRank, randomized_svd
from tensorfact.torch.quantized import QuantizedLinear


class LowRankLinear(nn.Module):
    """``y = up(down(x))``: a linear layer with weight ``up.weight @ down.weight`` of shape (out_features, in_features).

    The factors are two real `torch.nn.Linear` children, so what attaches to, quantises or shards linear layers works on
    them: PEFT's LoRA (``"all-linear"``, or ``NAME.up`` and ``NAME.down``), torchao's `quantize_`, `torch.export`.
    A forward pass costs ``rank * (in_features + out_features)`` multiply-adds a row.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of the input and of the output.
    rank : int
        Columns of ``up.weight``; from 1 to ``min(in_features, out_features)``.
    bias : bool
        Whether ``up`` carries a bias.
    bits : int, optional
        Store both factors in so many bits a number, 2 to 8: the children are `QuantizedLinear`. In evaluation mode they
        keep their unpacked weights, so memory holds both.
    device, dtype
        As in `torch.nn.Linear`; ``device="meta"`` allocates nothing.

    Notes
    -----
    State-dict keys: ``down.weight`` (rank, in_features), ``up.weight`` (out_features, rank), ``up.bias``; with `bits`
    ``packed`` and ``scale`` instead of ``weight``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        bias: bool = True,
        bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(
                f"rank must be from 1 to min(in_features, out_features) = {min(in_features, out_features)}, got {rank}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.bits = bits
        self.down: nn.Linear | QuantizedLinear
        self.up: nn.Linear | QuantizedLinear
        if bits is None:
            self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
            self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)
        else:
            self.down = QuantizedLinear(in_features, rank, bits=bits, bias=False, device=device, dtype=dtype)
            self.up = QuantizedLinear(rank, out_features, bits=bits, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw random factors whose product has the variance of a fresh `nn.Linear` weight, 1 / (3 in_features)."""
        self.down.reset_parameters()
        bound = math.sqrt(3 / self.rank)
        if isinstance(self.up, nn.Linear):
            nn.init.uniform_(self.up.weight, -bound, bound)
        elif not self.up.packed.is_meta:
            self.up.store(torch.empty(self.up.shape).uniform_(-bound, bound))
        if self.up.bias is not None:
            nn.init.uniform_(self.up.bias, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self.up(self.down(x))  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """The dense weight (out_features, in_features), computed at every access; differentiable."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias (out_features,) of `up`, or None."""
        return self.up.bias

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        rank: int | None = None,
        tol: float | None = None,
        max_rank: int | None = None,
        bits: int | None = None,
        rng: Any = None,
    ) -> Self:
        """Factorise a trained layer with `tensorfact.factor.randomized_svd`; `linear` is left as it is.

        Parameters
        ----------
        linear : torch.nn.Linear
            float16 and bfloat16 weights are factorised in float32 and cast back. Device, dtype, bias, training flag and
            ``requires_grad`` survive. A weight that is not on the CPU is factorised where it is.
        rank, tol, max_rank, rng
            As in `randomized_svd`: an exact rank, or the smallest rank whose relative Frobenius error is at most `tol`.
        bits : int, optional
            As in the constructor.

        Raises
        ------
        ValueError
            If `linear` is no `nn.Linear`, its weight is on the meta device, or `randomized_svd` refuses its arguments.
        """
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        weight = linear.weight.detach()
        if weight.is_meta:
            raise ValueError("linear must hold values, got a weight on the meta device")
        if weight.dtype in (torch.float16, torch.bfloat16):
            weight = weight.float()
        result = randomized_svd(
            weight.numpy() if weight.device.type == "cpu" else weight, rank=rank, tol=tol, max_rank=max_rank, rng=rng
        )
        layer = cls.from_factors(result, linear.bias, bits=bits, device=linear.weight.device, dtype=linear.weight.dtype)
        for part in (layer.down, layer.up):
            if isinstance(part, nn.Linear):
                part.weight.requires_grad_(linear.weight.requires_grad)
        if linear.bias is not None:
            layer.up.bias.requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    @classmethod
    def from_factors(
        cls,
        result: LowRank,
        bias: Tensor | None = None,
        split: Literal["sqrt", "left", "right"] = "sqrt",
        *,
        bits: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Build the layer of a factorisation of its weight (out_features, in_features); values are copied.

        `split` says where the singular values go: half to each side ("sqrt"), to `up` ("left") or to `down` ("right").
        `device` and `dtype` default to those of the factors.
        """
        up, down = (torch.asarray(factor, copy=True) for factor in result.factors(split))
        layer = cls(
            down.shape[1],
            up.shape[0],
            rank=up.shape[1],
            bias=bias is not None,
            bits=bits,
            device=device if device is not None else up.device,
            dtype=dtype if dtype is not None else up.dtype,
        )
        with torch.no_grad():
            for part, factor in ((layer.down, down), (layer.up, up)):
                if isinstance(part, nn.Linear):
                    part.weight.copy_(factor)
                else:
                    part.store(factor)
            if bias is not None:
                layer.up.bias.copy_(bias)
        return layer

    def to_linear(self) -> nn.Linear:
        """Return the dense layer with the same output up to rounding: `weight` multiplied out, bias copied."""
        weight = self.weight
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device=weight.device, dtype=weight.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        linear.weight.requires_grad_(weight.requires_grad)
        if self.bias is not None:
            linear.bias.requires_grad_(self.bias.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Return the sizes that `repr` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}" + ("" if self.bits is None else f", bits={self.bits}")
        )
