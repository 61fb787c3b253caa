"""Linear layers whose weights are one shared basis times sparse codes of their own."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from tensorfact.factor._shared_codes import PATTERNS
from tensorfact.factor._shared_path import shared_path
from tensorfact.torch._mpo_cache import DenseCache
from tensorfact.torch._mpo_op import untrackable
from tensorfact.torch._quantized import QuantizedTensor, check_bits, numbers_of, parts_of
from tensorfact.torch._shared_codes import mask_shape, pack_mask, spread, unpack_mask
from tensorfact.torch._shared_sparse import PlanCache, apply_codes, servable

Path = Literal["auto", "dense", "factored", "sparse"]


class SharedBasisLinear(nn.Module):
    """``y = x W^T + b`` with ``W = basis @ codes`` (out, in), or its transpose, whichever has its short side first.

    The basis (d, rank), d the smaller of both sizes, is one parameter that the members of a group all refer to; it may
    have more columns than rows. The codes (rank, n) are sparse and belong to the layer: the values that are kept, and
    one bit a place. Where ``out_features >= in_features`` the weight is the transposed product.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of the input and of the output.
    rank : int
        Columns of the basis.
    kept : int
        Values of the codes, from 0 to ``rank * max(in_features, out_features)``.
    bias : bool
        Whether a bias (out_features,) is added.
    basis : torch.nn.Parameter, optional
        The parameter to refer to, (min(in_features, out_features), rank); by default a new one. With `bits` it is what
        another layer of as many bits has.
    bits : int, optional
        Store basis and values in so many bits a number, 2 to 8. They are unpacked in every pass that does not use a
        kept weight.
    pattern : {"2:4", "1:4"}, optional
        So many of every four rows of a column of the codes are kept; `kept` must be that number and `rank` a multiple
        of 4.
    path : {"auto", "dense", "factored", "sparse"}
        "dense" multiplies the weight out, "factored" applies basis and codes one after the other, "sparse" does so
        without the zeros of the codes, where there is a kernel for it: in evaluation, without gradients, in float32 or
        float64 on a CPU; elsewhere it is "auto". "auto" takes what needs least time by operations and what was
        measured; `plan` tells which.
    device, dtype
        As in `torch.nn.Linear`.

    Notes
    -----
    State-dict keys: ``basis``; ``values``, the entries of the codes (rank, n) that are kept, row after row; ``mask``,
    uint8 of shape (ceil(rank / 8), n), eight rows of the codes to a byte, the first one lowest, and turned, (n,
    ceil(rank / 8)), where the weight is the transposed product (with a `pattern` two bits for each value instead of one
    for each place); ``bias``. Members of a group list the same basis each
    under its own name, as tied embeddings do; `torch.save`,
    `safetensors.torch.save_model` and `save_pretrained` write it once. `SharedBasisGroup` has it once in its state
    dict.

    With `bits`, ``basis`` and ``values`` are modules, and the keys ``basis.packed``, ``basis.scale``,
    ``values.packed`` and ``values.scale`` of them. Those of the basis are parameters, since only parameters are tied:
    freeze and thaw parts, for ``requires_grad_(True)`` of the layer or of a model that holds it fails at the integers.

    In training the values move and the mask stays; `CodeTrainer` trains dense codes under a mask that is pruned on the
    way. In evaluation mode without gradients, the weight that was multiplied out is kept until a part of it changes.

    A forward pass of T rows takes ``T d n`` multiply-adds with the kept weight, ``T rank (d + n)`` factored and ``T
    (rank d + kept)`` sparse; these last ones take about twice the time each, so it wins where few of the codes are kept
    and the basis is not wider than d. It keeps the packed codes, ``kept (itemsize + 1)`` bytes, and no dense weight.

    Examples
    --------
    >>> import torch
    >>> from tensorfact.torch import SharedBasisLinear
    >>> layer = SharedBasisLinear(16, 64, rank=24, kept=384)
    >>> layer(torch.zeros(2, 16)).shape, layer.basis.shape
    (torch.Size([2, 64]), torch.Size([16, 24]))
    """

    basis: nn.Parameter | QuantizedTensor
    values: nn.Parameter | QuantizedTensor
    mask: Tensor
    bias: nn.Parameter | None
    codes: nn.Parameter | None
    keep: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        kept: int,
        bias: bool = True,
        basis: nn.Parameter | QuantizedTensor | None = None,
        bits: int | None = None,
        pattern: Literal["2:4", "1:4"] | None = None,
        path: Path = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        short, long = sorted((in_features, out_features))
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank must be an integer of at least 1, got {rank!r}")
        if isinstance(kept, bool) or not isinstance(kept, int) or not 0 <= kept <= rank * long:
            raise ValueError(f"kept must be an integer from 0 to rank * {long} = {rank * long}, got {kept!r}")
        if path not in ("auto", "dense", "factored", "sparse"):
            raise ValueError(f'path must be "auto", "dense", "factored" or "sparse", got {path!r}')
        if basis is not None and tuple(basis.shape) != (short, rank):
            raise ValueError(f"basis must be of shape {(short, rank)}, got {tuple(basis.shape)}")
        if pattern is not None and (
            pattern not in PATTERNS or rank % 4 or kept != rank // 4 * PATTERNS[pattern] * long
        ):
            raise ValueError(
                f"pattern must be 2:4 or 1:4, of a rank that is a multiple of 4 and as many values as it keeps, got "
                f"{pattern!r} with rank {rank} and {kept} values"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.pattern = pattern
        self._fours = None if pattern is None else PATTERNS[pattern]
        self.rank = rank
        self.kept = kept
        self.path: Path = path
        self.bits = None if bits is None else check_bits(bits)
        if basis is not None and getattr(basis, "bits", None) != bits:
            raise ValueError(f"basis must be stored in as many bits as the layer, {bits}, got {basis!r}")
        fresh = basis is None
        self.basis = self._numbers((short, rank), device, dtype, shared=True) if basis is None else basis
        self.values = self._numbers((kept,), device, dtype)
        self.register_buffer("mask", torch.empty(self._mask_shape(), device=device, dtype=torch.uint8))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("codes", None)  # dense codes while a CodeTrainer is at work
        self.register_buffer("keep", None, persistent=False)
        self.straight = False  # whether gradients reach the codes that `keep` cuts
        self._dense, self._packed = DenseCache(), PlanCache()
        self.reset_parameters(basis=fresh)

    def _numbers(
        self,
        shape: tuple[int, ...],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        shared: bool = False,
    ) -> nn.Parameter | QuantizedTensor:
        if self.bits is None:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        return QuantizedTensor(shape, self.bits, device=device, dtype=dtype, shared=shared)

    @property
    def transposed(self) -> bool:
        """Whether the weight is the transposed product: the inputs lie on the short side."""
        return self.out_features >= self.in_features

    @property
    def code_shape(self) -> tuple[int, int]:
        """Shape (rank, n) of the codes, n the larger of both sizes."""
        return self.rank, max(self.in_features, self.out_features)

    def reset_parameters(self, *, basis: bool = True) -> None:
        """Draw codes at random places, and a basis unless it is another layer's, for the variance of `nn.Linear`."""
        rows, columns = self.code_shape
        if basis:
            _draw(self.basis, 1 / math.sqrt(self.rank))
        # an entry of the weight is a sum over the kept share of rank products with a basis of variance 1 / rank
        share = max(self.kept, 1) / (rows * columns)
        _draw(self.values, 1 / math.sqrt(3 * self.in_features * share))
        if not self.mask.is_meta:
            at = self.mask.device
            keep = torch.zeros(rows * columns, dtype=torch.bool, device=at)
            if self._fours is None:
                keep[torch.randperm(rows * columns, device=at)[: self.kept]] = True
            else:
                order = torch.rand(rows // 4, 4, columns, device=at).argsort(1)
                keep = order < self._fours
            self.set_places(keep.reshape(rows, columns))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    def _mask_shape(self) -> tuple[int, int]:
        rows, columns = mask_shape(*self.code_shape, self._fours)
        return (columns, rows) if self.transposed else (rows, columns)

    def kept_places(self) -> Tensor:
        """The mask (rank, n) of the codes, true where a value is stored."""
        return unpack_mask(self.mask.T if self.transposed else self.mask, self.rank, self._fours)

    def set_places(self, keep: Tensor) -> None:
        """Take a mask (rank, n) with as many places as there are values."""
        bits = pack_mask(keep, self._fours)
        with torch.no_grad():
            self.mask.copy_(bits.T if self.transposed else bits)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        mask = state.get(f"{prefix}mask")
        if mask is not None and not mask.is_meta and tuple(mask.shape) == self._mask_shape():
            rows, columns = self.code_shape
            bits = mask.T if self.transposed else mask
            count = int(unpack_mask(bits, rows, self._fours).sum())
            if self._fours is None:  # nor may a bit lie beyond the last row
                count = max(count, int(unpack_mask(bits, 8 * bits.shape[0]).sum()))
            if count != self.kept:
                raise ValueError(f"{prefix}mask must keep {self.kept} places of the codes {rows, columns}, got {count}")
        super()._load_from_state_dict(state, prefix, *args)

    def dense_codes(self) -> Tensor:
        """The codes (rank, n) with their zeros; differentiable."""
        if self.codes is not None and self.keep is not None:
            kept = self.codes * self.keep
            # straight through: places that are cut get the gradients of what would stand there
            return kept + (self.codes - self.codes.detach()) * ~self.keep if self.straight else kept
        return spread(numbers_of(self.values), self.kept_places())

    @property
    def weight(self) -> Tensor:
        """The dense weight (out_features, in_features), computed at every access; differentiable."""
        product = numbers_of(self.basis) @ self.dense_codes()
        return product.T if self.transposed else product

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x must have {self.in_features} numbers in its last axis, got shape {tuple(x.shape)}")
        wanted = torch.is_grad_enabled() and x.requires_grad
        if not wanted and self._sparse(x.numel() // self.in_features) and servable(x, self._dtype()):
            return self._without_zeros(x)
        if self._keepable():
            parts = [*parts_of(self.basis), *parts_of(self.values), self.mask]
            return nn.functional.linear(x, self._dense.get(parts, lambda: self.weight.contiguous()), self.bias)
        # what watches the operations may see other numbers of rows later
        rows = None if untrackable() else x.numel() // self.in_features
        if self._choice(rows) == "dense":
            return nn.functional.linear(x, self.weight, self.bias)
        linear, codes, basis = nn.functional.linear, self.dense_codes(), numbers_of(self.basis)
        if self.transposed:
            return linear(linear(x, basis.T), codes.T, self.bias)
        return linear(linear(x, codes), basis, self.bias)

    def _dtype(self) -> torch.dtype:
        return self.basis.dtype

    def _without_zeros(self, x: Tensor) -> Tensor:
        parts = [*parts_of(self.values), self.mask]

        def packed() -> tuple[Tensor, Tensor]:
            codes, keep = self.dense_codes(), self.kept_places()
            return (codes, keep) if self.transposed else (codes.T, keep.T)

        plan, basis = self._packed.get(parts, packed), numbers_of(self.basis)
        if self.transposed:
            product = nn.functional.linear(x, basis.T)
            if self.bias is not None and self.bias.requires_grad and torch.is_grad_enabled():
                return apply_codes(product, plan) + self.bias  # the kernel would drop its gradient
            return apply_codes(product, plan, self.bias)
        return nn.functional.linear(apply_codes(x, plan), basis, self.bias)

    def _sparse(self, rows: int) -> bool:
        """Whether the sparse product serves so many rows."""
        if self.training or self.path not in ("auto", "sparse") or self.codes is not None or untrackable():
            return False
        parts = [*parts_of(self.basis), *parts_of(self.values)]
        if self.mask.device.type != "cpu" or not self._dense.usable(parts):
            return False
        return (
            self.path == "sparse"
            or shared_path(rows, (self.out_features, self.in_features), self.rank, self.kept) == "sparse"
        )

    def _keepable(self) -> bool:
        """Whether the weight may be kept: then it is used, unless factors take fewer operations for any input."""
        if self.training or self.path == "factored" or self.codes is not None or untrackable():
            return False
        d, n = self.basis.shape[0], self.code_shape[1]
        cheaper = self.path in ("auto", "sparse") and self.rank * (d + n) < d * n
        return not cheaper and self._dense.usable([*parts_of(self.basis), *parts_of(self.values)])

    def _choice(self, rows: int | None) -> Literal["dense", "factored"]:
        if self.path in ("dense", "factored"):
            return "dense" if self.path == "dense" else "factored"
        d, n = self.basis.shape[0], self.code_shape[1]
        made = 0.0 if rows is None else self.rank * d * n / max(rows, 1)
        return "factored" if self.rank * (d + n) < d * n + made else "dense"

    def plan(self, rows: int) -> str:
        """How a forward pass of `rows` rows runs now: ``"sparse"``, ``"kept"``, ``"dense"`` or ``"factored"``.

        ``"sparse"`` holds for inputs without gradients on a CPU, of the layer's type.
        """
        if self._sparse(rows) and self._dtype() in (torch.float32, torch.float64):
            return "sparse"
        return "kept" if self._keepable() else self._choice(rows)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; forgets the weight that evaluation kept."""
        self._dense.clear()
        self._packed.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._dense.clear()
        self._packed.clear()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def _replicate_for_data_parallel(self) -> Self:
        replica = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica._dense, replica._packed = DenseCache(), PlanCache()
        return replica  # type: ignore[no-any-return]

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        param_ratio: float,
        sparsity: float | Literal["auto"] = 0.75,
        gram: Any = None,
        sweeps: int = 6,
        rng: Any = None,
    ) -> Self:
        """Factor one trained layer with a basis of its own; see `SharedBasisGroup.from_linears` for several."""
        from tensorfact.torch.shared_group import SharedBasisGroup  # which is made of these layers

        group = SharedBasisGroup.from_linears(
            {"": linear},
            param_ratio=param_ratio,
            sparsity=sparsity,
            grams=None if gram is None else {"": gram},
            sweeps=sweeps,
            rng=rng,
            member=cls,
        )
        return group[""]  # type: ignore[return-value]

    def to_linear(self) -> nn.Linear:
        """Return the dense layer with the same output up to rounding: `weight` multiplied out, bias copied."""
        basis = self.basis
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device=basis.device, dtype=basis.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        parts = (*parts_of(self.basis), *parts_of(self.values))
        linear.weight.requires_grad_(any(part.requires_grad for part in parts))
        if self.bias is not None:
            linear.bias.requires_grad_(self.bias.requires_grad)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """Return the sizes that `repr` shows."""
        density = self.kept / math.prod(self.code_shape)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, kept={self.kept}, "
            f"density={density:.3g}, bias={self.bias is not None}"
            + ("" if self.bits is None else f", bits={self.bits}")
            + ("" if self.pattern is None else f", pattern={self.pattern}")
        )


def _draw(numbers: nn.Parameter | QuantizedTensor, std: float) -> None:
    if isinstance(numbers, nn.Parameter):
        nn.init.normal_(numbers, std=std)
    elif not numbers.packed.is_meta:
        numbers.store(torch.empty(numbers.shape).normal_(std=std))
