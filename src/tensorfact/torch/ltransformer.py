"""Transformer encoders on slices of the embedding: 1/p of the parameters, the interface of PyTorch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorfact.torch._lmixing import SlicePositions, make_mixing, mix, mix_add
from tensorfact.torch._lrun import run_layers
from tensorfact.torch._lslices import SliceAttention, SliceLayerNorm, SliceLinear

__all__ = ["LTransformerEncoder", "LTransformerEncoderLayer"]

Domain = Literal["original", "transform"]


class LTransformerEncoderLayer(nn.Module):
    """An encoder layer whose attention and feed-forward part work on p slices of the embedding in a transform domain.

    It takes the arguments of `torch.nn.TransformerEncoderLayer` and stands where that stood, with 1/p of its weights:
    slice k is the k-th contiguous chunk of ``d_model / p`` features, an invertible p x p transform mixes the slices,
    and each of them has an attention and a feed-forward part of its own width, all in one batched product.

    Parameters
    ----------
    d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias, device, dtype
        As in `torch.nn.TransformerEncoderLayer`; sizes are those of the whole layer and must be multiples of `slices`.
    slices : int
        Number p of slices; 1 is the ordinary layer.
    transform : str, Transform, or matrix (p, p)
        ``"dct"``, ``"identity"``, ``"dst"``, ``"haar"``, ``"hartley"``, ``"random"`` (orthogonal, drawn from torch's
        generator), ``"learned"`` (orthogonal, starts as the DCT), or any real invertible matrix.
    ln_domain : {"original", "transform"}
        Where layer normalisation acts, slice by slice. In the original domain it is what couples the slices. In the
        transform domain the layer needs no transform inside, and slices never meet.
    slice_heads : int, optional
        Attention heads of each slice; default ``max(1, nhead // p)``, as many score maps as the ordinary layer has.
    positions : str or sequence of p float, optional
        Sinusoids added to what attention reads, in every layer, their frequencies scaled by slice k = 1..p:
        ``"standard"`` by 1, ``"linear"`` k / p, ``"exponential"`` 2^((k - 1) / (p - 1)), ``"harmonic"`` k, or by the
        numbers given; ``"learnable"`` is a table instead. None adds nothing, like the ordinary layer.
    max_len : int
        Longest sequence that `positions` serve.

    Raises
    ------
    ValueError
        Sizes that p or the heads do not divide; a singular or complex transform; masks of a wrong shape.

    Notes
    -----
    ``12 d^2 / p + 13 d`` parameters at ``dim_feedforward = 4 d``. Weights are those of the transform domain; with an
    orthogonal transform plain SGD does the same in either. State-dict names are PyTorch's, shapes have p in front.

    NaN and infinity go through, as in `torch.nn.Linear`: to look for them would wait for the device. They stay within
    their sequence of the batch.

    Under the DCT ``"standard"`` positions reach the first slice of the transform domain only, since the other rows of
    the transform sum to zero; the other slices then see order through layer normalisation alone.

    References
    ----------
    El Ichi, Jbilou, El Guide, Dufrenois (2026), arXiv 2603.05727.

    Examples
    --------
    >>> import torch
    >>> from tensorfact.torch import LTransformerEncoderLayer
    >>> layer = LTransformerEncoderLayer(64, 8, 256, batch_first=True, slices=4)
    >>> layer(torch.zeros(2, 10, 64)).shape, sum(x.numel() for x in layer.parameters())
    (torch.Size([2, 10, 64]), 13120)
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = functional.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        slices: int = 4,
        transform: Any = "dct",
        ln_domain: Domain = "original",
        slice_heads: int | None = None,
        positions: str | Sequence[float] | None = None,
        max_len: int = 512,
    ) -> None:
        super().__init__()
        for name, value in (("slices", slices), ("d_model", d_model), ("dim_feedforward", dim_feedforward)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if value % slices:
                raise ValueError(f"{name} must be a multiple of slices={slices}, got {value}")
        width, heads = d_model // slices, max(1, nhead // slices) if slice_heads is None else slice_heads
        if heads < 1 or width % heads:
            raise ValueError(f"the heads of a slice must divide its {width} features, got {heads}")
        if ln_domain not in ("original", "transform"):
            raise ValueError(f"ln_domain must be 'original' or 'transform', got {ln_domain!r}")
        if isinstance(activation, str) and activation not in ("relu", "gelu"):
            raise ValueError(f"activation must be 'relu', 'gelu' or a function, got {activation!r}")
        self.d_model, self.slices, self.slice_heads = d_model, slices, heads
        self.norm_first, self.batch_first, self.ln_domain = norm_first, batch_first, ln_domain
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.mixing = make_mixing(transform, slices, **place)
        self.positions = None if positions is None else SlicePositions(positions, slices, width, max_len, **place)
        self.self_attn = SliceAttention(slices, width, heads, dropout, bias=bias, batch_first=batch_first, **place)
        self.linear1 = SliceLinear(slices, width, dim_feedforward // slices, bias=bias, **place)
        self.linear2 = SliceLinear(slices, dim_feedforward // slices, width, bias=bias, **place)
        self.norm1 = SliceLayerNorm(slices, width, layer_norm_eps, bias=bias, **place)
        self.norm2 = SliceLayerNorm(slices, width, layer_norm_eps, bias=bias, **place)
        self.dropout, self.dropout1, self.dropout2 = (nn.Dropout(dropout) for _ in range(3))
        named: dict[Any, Any] = {"relu": functional.relu, "gelu": functional.gelu}
        self.activation: Callable[[Tensor], Tensor] = named.get(activation, activation)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Map (batch, length, d_model), or (length, batch, d_model) without `batch_first`, or (length, d_model).

        Parameters
        ----------
        src_mask : Tensor (length, length) or (batch * slices * slice_heads, length, length), optional
            bool, True where attention is forbidden, or numbers that are added to the scores.
        src_key_padding_mask : Tensor (batch, length), optional
            bool, True at padding, or numbers that are added to the scores.
        is_causal : bool
            Attention to earlier positions only; `src_mask`, if given too, is taken to say the same.
        """
        return run_layers([self], src, src_mask, src_key_padding_mask, is_causal)

    def run_slices(
        self,
        x: Tensor,
        z: tuple[Tensor | None, Tensor | None],
        where: Tensor | None,
        batch: int,
        mask: Tensor | None,
        causal: bool,
    ) -> Tensor:
        """One layer on slices ``(p, batch * length, features)`` in the domain of its layer normalisation.

        ``z`` holds the matrices between that domain and the transform domain, None where they are the same; ``where``
        is what attention reads besides, (p, length, features), in the transform domain.
        """
        if self.norm_first:
            x = self._add(x, z[1], self._attend(mix(z[0], self.norm1(x)), where, batch, mask, causal), self.dropout1)
            return self._add(x, z[1], self._feed(mix(z[0], self.norm2(x))), self.dropout2)
        x = self.norm1(self._add(x, z[1], self._attend(mix(z[0], x), where, batch, mask, causal), self.dropout1))
        return self.norm2(self._add(x, z[1], self._feed(mix(z[0], x)), self.dropout2))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, where: Tensor | None, batch: int, mask: Tensor | None, causal: bool) -> Tensor:
        if where is not None:
            p, rows, features = x.shape
            x = (x.view(p, batch, -1, features) + where.unsqueeze(1)).view(p, rows, features)
        return self.self_attn(x, batch, mask, causal)  # type: ignore[no-any-return]

    def _feed(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))  # type: ignore[no-any-return]

    def _add(self, x: Tensor, inverse: Tensor | None, y: Tensor, dropout: nn.Module) -> Tensor:
        """The residual and what comes back to its domain; dropout acts in that domain."""
        if self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0:
            return x + dropout(mix(inverse, y))  # type: ignore[no-any-return]
        return mix_add(x, inverse, y)

    @classmethod
    def from_dense(cls, layer: nn.TransformerEncoderLayer, **options: Any) -> Self:
        """The layer whose weights are nearest to those of a dense one in the Frobenius norm; equal where it is one.

        Parameters
        ----------
        layer : torch.nn.TransformerEncoderLayer
            Left as it is; what `to_dense` made comes back exactly. Sizes, activation, dropout, device, dtype are its.
        **options
            ``slices``, ``transform``, ``ln_domain``, ``slice_heads``, ``positions``, ``max_len``.

        Raises
        ------
        ValueError
            `layer` is no encoder layer, its weights are not finite, or p does not divide its heads and `slice_heads` is
            not given.
        """
        from tensorfact.torch._ldense import layer_from_dense

        found: Self = layer_from_dense(cls, layer, options)
        return found

    def to_dense(self) -> nn.TransformerEncoderLayer:
        """An ordinary encoder layer of the same function: dense weights, and norms that normalise slices if p > 1.

        Raises
        ------
        ValueError
            The layer adds positions, which an ordinary one cannot.
        """
        from tensorfact.torch._ldense import layer_to_dense

        return layer_to_dense(self)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return (
            f"d_model={self.d_model}, slices={self.slices}, ln_domain={self.ln_domain!r}, norm_first={self.norm_first}"
        )


class LTransformerEncoder(nn.Module):
    """A stack of `LTransformerEncoderLayer`, with the interface of `torch.nn.TransformerEncoder`.

    The slices stay slices from the first layer to the last, and the residual in the domain in which it is read next;
    transform and positions are shared by all layers.

    Parameters
    ----------
    encoder_layer : LTransformerEncoderLayer
        Copied `num_layers` times.
    num_layers : int
        At least 1.
    norm : Module, optional
        Applied to the output (..., d_model).
    enable_nested_tensor, mask_check
        Taken so that the class name is all that changes; there are no nested tensors here.

    Examples
    --------
    >>> import torch
    >>> from tensorfact.torch import LTransformerEncoder, LTransformerEncoderLayer
    >>> layer = LTransformerEncoderLayer(768, 8, 3072, slices=4, batch_first=True, device="meta")
    >>> sum(x.numel() for x in LTransformerEncoder(layer, 4).parameters())
    7117824
    """

    def __init__(
        self,
        encoder_layer: LTransformerEncoderLayer,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(encoder_layer, LTransformerEncoderLayer):
            raise ValueError(f"encoder_layer must be an LTransformerEncoderLayer, got {type(encoder_layer).__name__}")
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.layers = nn.ModuleList([copy.deepcopy(encoder_layer) for _ in range(num_layers)])
        for layer in self.layers[1:]:
            layer.mixing, layer.positions = self.layers[0].mixing, self.layers[0].positions
        self.num_layers, self.norm = num_layers, norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Run all layers; arguments as in `LTransformerEncoderLayer.forward`."""
        out = run_layers(list(self.layers), src, mask, src_key_padding_mask, bool(is_causal))
        return out if self.norm is None else self.norm(out)

    @classmethod
    def from_dense(cls, encoder: nn.TransformerEncoder, **options: Any) -> Self:
        """The encoder whose weights are nearest to those of a dense one; see `LTransformerEncoderLayer.from_dense`."""
        from tensorfact.torch._ldense import encoder_from_dense

        found: Self = encoder_from_dense(cls, encoder, options)
        return found

    def to_dense(self) -> nn.TransformerEncoder:
        """An ordinary encoder of the same function; see `LTransformerEncoderLayer.to_dense`."""
        from tensorfact.torch._ldense import encoder_to_dense

        return encoder_to_dense(self)
