"""Numbers in few bits, in torch: from packed codes to numbers, and rounding that lets gradients through.

The format is that of `tensorfact.factor._quantized`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from tensorfact.factor._quantized import (
    GROUP,
    check_bits,
    pack_codes,
    packed_shape,
    quantize,
    round_scale,
    scale_shape,
)

__all__ = ["QuantizedTensor", "check_bits", "numbers_of", "parts_of", "unpack"]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Codes (count, ...), int8, of packed ones (ceil(bits count / 8), ...)."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device).reshape(1, 8, *[1] * (packed.ndim - 1))
    split = ((packed[:, None] >> places) & 1).reshape(-1, *packed.shape[1:])[: count * bits]
    split = split.reshape(count, bits, *packed.shape[1:])
    found = split[:, 0]
    for place in range(1, bits):
        found = found | (split[:, place] << place)
    return (found.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def spread_scale(scale: Tensor, n: int) -> Tensor:
    """One scale a number: (..., groups) to (..., n)."""
    return scale.repeat_interleave(GROUP, dim=-1)[..., :n]


class QuantizedTensor(nn.Module):
    """Numbers of a shape in 2 to 8 bits each; calling it gives them.

    The state dict has ``packed``, uint8 (ceil(bits m / 8), ...) for numbers (m, ...), and ``scale``, bfloat16
    (..., ceil(n / 64)). While it is `open` it holds floating numbers ``latent`` and the logarithms ``log_scale``
    instead, and calling it rounds: gradients reach the latent numbers as if nothing had been rounded, except where the
    range cuts them off, and the scales by the slope of the rounding error (LSQ, Esser et al., 2020, eq. 3 to 5).

    Both are buffers, or with `shared` parameters, which is what transformers ties: then ``requires_grad_(True)`` of a
    model that holds it fails, as for every model with integer parameters. Unpacking takes a byte for every bit for a
    moment.
    """

    packed: Tensor
    scale: Tensor
    latent: nn.Parameter | None
    log_scale: nn.Parameter | None

    def __init__(
        self, shape: Sequence[int], bits: int, *, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, shared: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape = torch.Size(shape)
        self.bits = check_bits(bits)
        self.dtype = dtype or torch.get_default_dtype()
        packed = torch.zeros(packed_shape(shape, bits), dtype=torch.uint8, device=device)
        scale = torch.zeros(scale_shape(shape), dtype=torch.bfloat16, device=device)
        for name, part in (("packed", packed), ("scale", scale)):
            if shared:
                self.register_parameter(name, nn.Parameter(part, requires_grad=False))
            else:
                self.register_buffer(name, part)
        self.register_parameter("latent", None)
        self.register_parameter("log_scale", None)

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.packed.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.numel() + self.scale.numel() * self.scale.element_size()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = self.scale.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=before.device)).dtype
        if self.scale.dtype != before.dtype:  # the numbers change their type, not the scales
            kept = before.to(self.scale.device)
            if isinstance(self.scale, nn.Parameter):
                self.scale.data = kept  # other modules may hold the same parameter
            else:
                self.scale = kept
        return self

    def parts(self) -> list[Tensor]:
        """The tensors that the numbers are made of."""
        found = [self.packed, self.scale] if self.latent is None else [self.latent, self.log_scale]
        return [part for part in found if part is not None]

    def forward(self) -> Tensor:
        """Return the numbers; differentiable while it is open."""
        return self._unpacked()

    def _unpacked(self) -> Tensor:
        if self.latent is not None and self.log_scale is not None:
            return self._rounded(self.latent, self.log_scale)
        codes = unpack(self.packed, self.bits, self.shape[0])
        # both factors are exact in float32, and so is the product in it
        return (codes.float() * spread_scale(self.scale.float(), self.shape[-1])).to(self.dtype)

    def _rounded(self, latent: Tensor, log_scale: Tensor) -> Tensor:
        scale = spread_scale(log_scale.exp() * self.scale.detach().sign().to(log_scale.dtype), self.shape[-1])
        safe = torch.where(scale == 0, torch.ones_like(scale), scale)
        limit = 1 << (self.bits - 1)
        ratio = (latent / safe).clamp(-limit, limit - 1)
        return (ratio + (ratio.round() - ratio).detach()) * scale

    @torch.no_grad()
    def store(self, values: Tensor) -> None:
        """Quantise numbers of this shape and keep them."""
        if tuple(values.shape) != tuple(self.shape):
            raise ValueError(f"values must be of shape {tuple(self.shape)}, got {tuple(values.shape)}")
        codes, scale = quantize(values.detach().float().cpu().numpy(), self.bits)
        self.packed.copy_(torch.from_numpy(pack_codes(codes, self.bits)))
        self.scale.copy_(torch.from_numpy(scale))

    @torch.no_grad()
    def open(self, latent: Tensor | None = None) -> None:
        """Go on with floating numbers that are rounded at every call: `latent`, or those that are stored."""
        values = self._unpacked() if latent is None else latent
        if tuple(values.shape) != tuple(self.shape):
            raise ValueError(f"latent must be of shape {tuple(self.shape)}, got {tuple(values.shape)}")
        self.latent = nn.Parameter(values.detach().to(device=self.device, dtype=self.dtype, copy=True))
        scale = self.scale.to(self.dtype).abs()
        self.log_scale = nn.Parameter(torch.where(scale == 0, torch.ones_like(scale), scale).log())

    @torch.no_grad()
    def close(self) -> None:
        """Store what an open one gives, up to the rounding of its scales."""
        if self.latent is None or self.log_scale is None:
            return
        size = torch.from_numpy(round_scale(self.log_scale.float().exp().cpu().numpy())).to(self.device)
        self.scale.copy_(size * self.scale.sign().float())
        scale = spread_scale(self.scale.float(), self.shape[-1])
        limit = 1 << (self.bits - 1)
        ratio = torch.where(scale == 0, torch.zeros_like(scale), self.latent.float() / scale)
        codes = ratio.round().clamp(-limit, limit - 1).to(torch.int8)
        self.packed.copy_(torch.from_numpy(pack_codes(codes.cpu().numpy(), self.bits)))
        self.latent = None
        self.log_scale = None

    def extra_repr(self) -> str:
        """Return what `repr` shows."""
        return f"{tuple(self.shape)}, bits={self.bits}"


def numbers_of(part: Tensor | QuantizedTensor) -> Tensor:
    """A tensor, or the numbers of a quantised one."""
    found: Tensor = part() if isinstance(part, QuantizedTensor) else part
    return found


def parts_of(part: Tensor | QuantizedTensor) -> list[Tensor]:
    """The tensors that hold the numbers."""
    return part.parts() if isinstance(part, QuantizedTensor) else [part]
