"""A linear layer whose weight is stored in few bits."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from tensorfact.torch._mpo_cache import DenseCache
from tensorfact.torch._mpo_op import untrackable
from tensorfact.torch._quantized import QuantizedTensor


class QuantizedLinear(QuantizedTensor):
    """``y = x W^T + b`` with W (out_features, in_features) in 2 to 8 bits a number.

    Groups of 64 inputs of an output share a scale. In evaluation mode without gradients the weight is unpacked once
    and kept, so memory holds it in full beside its codes; in training mode it is unpacked in every pass.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of the input and of the output.
    bits : int
        Bits of a number, 2 to 8.
    bias : bool
        Whether a bias (out_features,) is added.
    device, dtype
        As in `torch.nn.Linear`; `dtype` is that of the unpacked weight.

    Notes
    -----
    State-dict keys: ``packed``, uint8 (ceil(bits out_features / 8), in_features); ``scale``, bfloat16 (out_features,
    ceil(in_features / 64)); ``bias``. The codes cannot be trained; a refinement opens them for the time it takes.

    Examples
    --------
    >>> import torch
    >>> from tensorfact.torch import QuantizedLinear
    >>> layer = QuantizedLinear.from_linear(torch.nn.Linear(128, 32), bits=4)
    >>> layer.packed.shape, layer(torch.zeros(2, 128)).shape
    (torch.Size([16, 128]), torch.Size([2, 32]))
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__((out_features, in_features), bits, device=device, dtype=dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self._dense = DenseCache()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a weight and a bias as `nn.Linear` does."""
        bound = 1 / math.sqrt(self.in_features)
        if not self.packed.is_meta:
            self.store(torch.empty(self.shape).uniform_(-bound, bound))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def weight(self) -> Tensor:
        """The weight (out_features, in_features), unpacked at every access but where it is kept."""
        parts = self.parts()
        keep = not self.training and self.latent is None and not untrackable() and self._dense.usable(parts)
        return self._dense.get(parts, self._unpacked) if keep else self._unpacked()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the tensor alone takes no input
        """Map (..., in_features) to (..., out_features)."""
        return nn.functional.linear(x, self.weight, self.bias)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; forgets the weight that evaluation kept."""
        self._dense.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._dense.clear()
        super()._apply(*args, **kwargs)
        return self

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, bits: int) -> Self:
        """Quantise the weight of a layer, which is left as it is; device, dtype, bias and mode survive.

        Raises
        ------
        ValueError
            If `linear` is no `nn.Linear`, its weight is on the meta device or not finite, or `bits` is out of range.
        """
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        if linear.weight.is_meta:
            raise ValueError("linear must hold values, got a weight on the meta device")
        weight, bias = linear.weight, linear.bias
        layer = cls(
            linear.in_features,
            linear.out_features,
            bits=bits,
            bias=bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        layer.store(weight)
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(bias)
            layer.bias.requires_grad_(bias.requires_grad)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """Return the dense layer with the same output."""
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device=self.device, dtype=self.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(self._unpacked())
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Return the sizes that `repr` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, "
            f"bias={self.bias is not None}"
        )
