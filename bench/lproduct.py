"""lproduct and t-SVD against what one writes without them; L-Transformer encoders against PyTorch's.

    python -m bench.lproduct                        # all of it; finished cells are kept, so it resumes
    python -m bench.lproduct --fresh --only product --only tsvd
    python -m bench.lproduct --fresh --cell "product p=16" --cell "encoder d=128" --rounds 5

Answers are compared before anything is timed. ``product`` multiplies 4096 tokens of width 768, cut into p slices, with
p weights of a slice's width, tubes in the last axis of all three tensors: the faces alone as one batched product, of
NumPy's BLAS or of torch's, into memory that is there, are the floor (ours and the peers take new memory at every call;
one row of each shows what that costs): a peer's time over the faster of the two is how many times faster than this peer
anything could be that multiplies faces. The dense 768 x 768 product is what the slices save.
``torch-dct + bmm`` and ``scipy.fft + matmul`` are the usual ways: an FFT along the tubes where they lie, a
product over strided faces, an inverse FFT. ``layer`` times `LProductLinear` against `nn.Linear`, forward, and forward
with backward. ``encoder`` times a training step, forward and backward. torch-dct and mprod-package take part where
they are installed (the former is otherwise written out here).
"""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import fft

import tensorfact
from bench import timing

TOKENS, WIDTH = 4096, 768
SLICES = (2, 4, 8, 16)
TSVD = ((512, 512, 8), (256, 256, 32), (2048, 96, 8))
ENCODERS = ((128, 32), (256, 32), (768, 8))  # width, sequences of 128 tokens
FLOORS = ("faces alone", "faces alone, torch.bmm")
SLOW = ("mprod-package",)  # seconds a product: a few rounds of its own
Routine = Callable[[], Any]


def torch_dct(x: Any, inverse: bool = False) -> Any:
    """Orthonormal DCT-II along the last axis, or its inverse, by one complex FFT; for lack of torch-dct."""
    import torch

    n = x.shape[-1]
    k = torch.arange(n, dtype=x.dtype, device=x.device)
    scale = torch.full_like(k, (n / 2) ** 0.5)
    scale[0] = n**0.5
    turn = torch.exp(-1j * np.pi * k / (2 * n))
    if not inverse:
        v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
        return (torch.fft.fft(v) * turn).real / scale
    y = x * scale
    mirrored = torch.cat([torch.zeros_like(y[..., :1]), -y[..., 1:].flip(-1)], dim=-1)
    v = torch.fft.ifft(torch.complex(y, mirrored) * turn.conj()).real
    out = torch.empty_like(x)
    out[..., ::2], out[..., 1::2] = v[..., : (n + 1) // 2], v[..., (n + 1) // 2 :].flip(-1)
    return out


def product_routines(p: int) -> tuple[dict[str, Routine], dict[str, Routine]]:
    """Routines whose answers must agree, and products that only set the scale."""
    import torch

    rng, width = np.random.default_rng(0), WIDTH // p
    a = rng.standard_normal((TOKENS, width, p)).astype(np.float32)
    b = rng.standard_normal((width, width, p)).astype(np.float32)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    faces = [np.ascontiguousarray(np.moveaxis(x, -1, 0)) for x in (a, b)]
    out = np.empty((p, TOKENS, width), np.float32)
    tokens, weight = np.ones((TOKENS, WIDTH), np.float32), np.ones((WIDTH, WIDTH), np.float32)
    dense = np.empty_like(tokens)

    def by_torch() -> Any:
        package = peer("torch_dct")
        there: Any = torch_dct if package is None else functools.partial(package.dct, norm="ortho")
        back: Any = functools.partial(torch_dct, inverse=True)
        back = back if package is None else functools.partial(package.idct, norm="ortho")
        x, y = (there(t).movedim(-1, 0) for t in (ta, tb))
        return back(torch.bmm(x, y).movedim(0, -1)).numpy()

    def by_scipy() -> Any:
        x, y = (np.moveaxis(fft.dct(t, norm="ortho"), -1, 0) for t in (a, b))
        return fft.idct(np.moveaxis(x @ y, 0, -1), norm="ortho")

    routines = {
        "tensorfact": lambda: tensorfact.lproduct(a, b, "dct"),
        "tensorfact.torch": lambda: tensorfact_torch().lproduct(ta, tb, "dct").numpy(),
        "torch-dct + bmm": by_torch,
        "scipy.fft + matmul": by_scipy,
    }
    if (mprod := peer("mprod")) is not None:
        there, back = mprod.generate_dct(p)
        routines["mprod-package"] = lambda: mprod.m_prod(a, b, there, back)
    tfaces = [torch.from_numpy(face) for face in faces]
    tout = torch.empty(p, TOKENS, width)
    z = tensorfact.Transform.dct(p).matrix
    ready = np.empty((TOKENS, WIDTH), np.float32)

    def given() -> None:
        weights, _ = tensorfact.kernels.tube_faces(b.reshape(width, -1), z)
        tensorfact.kernels.facewise_product(a.reshape(TOKENS, -1), weights, z, z.T, out=ready)

    scales = {
        "tensorfact, into memory that is there": given,
        "faces alone": lambda: np.matmul(faces[0], faces[1], out=out),
        "faces alone, into new memory": lambda: np.matmul(faces[0], faces[1]),
        "faces alone, torch.bmm": lambda: torch.bmm(tfaces[0], tfaces[1], out=tout),
        "dense product": lambda: np.matmul(tokens, weight, out=dense),
    }
    return routines, scales


def layer_routines(p: int) -> tuple[dict[str, Routine], dict[str, Routine]]:
    """`LProductLinear` and the dense layer of the same function: forward without gradients, and a training step."""
    import torch

    torch.manual_seed(0)
    ours = tensorfact_torch().LProductLinear(WIDTH, WIDTH, slices=p)
    dense = ours.to_linear()
    x = torch.randn(TOKENS, WIDTH)
    grown = x.clone().requires_grad_()

    def forward(layer: Any) -> Routine:
        def run() -> Any:
            with torch.no_grad():
                return layer(x).numpy()

        return run

    def step(layer: Any) -> Routine:
        def run() -> None:
            layer.zero_grad(set_to_none=True)
            grown.grad = None
            layer(grown).square().mean().backward()

        return run

    routines = {"tensorfact": forward(ours), "nn.Linear": forward(dense)}
    return routines, {"tensorfact, step": step(ours), "nn.Linear, step": step(dense)}


def peer(name: str) -> Any:
    """A peer's module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def tensorfact_torch() -> Any:
    """The adapter, imported where it is needed."""
    import tensorfact.torch

    return tensorfact.torch


def tsvd_routines(m: int, l: int, p: int) -> tuple[dict[str, Routine], dict[str, Routine]]:
    """Reconstructions from a thin t-SVD of half the rank: ours, and scipy.fft with one SVD after the other."""
    a = np.random.default_rng(0).standard_normal((m, l, p)).astype(np.float32)
    rank = min(m, l) // 2
    faces = np.ascontiguousarray(np.moveaxis(fft.dct(a, norm="ortho"), -1, 0))

    def by_scipy() -> Any:
        hat = fft.dct(a, norm="ortho")
        out = np.empty_like(hat)
        for k in range(p):
            u, s, vh = np.linalg.svd(hat[:, :, k], full_matrices=False)
            out[:, :, k] = (u[:, :rank] * s[:rank]) @ vh[:rank]
        return fft.idct(out, norm="ortho")

    routines = {
        "tensorfact": lambda: tensorfact.lsvd_truncate(a, "dct", rank=rank).reconstruct(),
        "scipy.fft + svd of each face": by_scipy,
    }
    if (decompositions := peer("mprod.decompositions")) is not None:
        there, back = importlib.import_module("mprod").generate_dct(p)

        def by_mprod() -> Any:
            u, s, v = decompositions.svdm(a, there, back, hats=True)
            low = np.matmul((u[:, :rank] * s[:rank]).transpose(2, 0, 1), v[:, :rank].transpose(2, 1, 0))
            return back(low.transpose(1, 2, 0))

        routines["mprod-package"] = by_mprod
    return routines, {"svd of the faces alone": lambda: np.linalg.svd(faces, full_matrices=False)}


def encoder_routines(
    width: int, batch: int, slices: int, layers: int = 2
) -> tuple[dict[str, Routine], dict[str, Routine]]:
    """A training step of ours, of PyTorch's encoder of equal width, and of a loop over slices."""
    import torch
    from torch import nn

    from tensorfact.torch import LTransformerEncoder, LTransformerEncoderLayer

    torch.manual_seed(0)
    heads = max(4, width // 96)
    common: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
    ours = LTransformerEncoder(LTransformerEncoderLayer(width, heads, 4 * width, slices=slices, **common), layers)
    spectral = LTransformerEncoderLayer(width, heads, 4 * width, slices=slices, ln_domain="transform", **common)
    narrow = nn.TransformerEncoderLayer(width // slices, max(1, heads // slices), 4 * width // slices, **common)
    modules = {
        "tensorfact": ours,
        "tensorfact, norm in the transform domain": LTransformerEncoder(spectral, layers),
        "torch.nn": nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, heads, 4 * width, **common), layers, enable_nested_tensor=False
        ),
        "loop over slices": Loop(
            [nn.TransformerEncoder(narrow, layers, enable_nested_tensor=False) for _ in range(slices)]
        ),
    }
    x = torch.randn(batch, 128, width)
    twin = ours.to_dense()  # an ordinary encoder of the same function
    with torch.no_grad():
        assert torch.allclose(ours(x[:2]), twin(x[:2]), atol=1e-4), "the encoder differs from its dense twin"

    def step(module: Any) -> Routine:
        def run() -> None:
            module.zero_grad(set_to_none=True)
            module(x).square().mean().backward()

        return run

    return {}, {name: step(module) for name, module in modules.items()}


def Loop(encoders: list[Any]) -> Any:  # noqa: N802 - it stands for a module
    """Narrow encoders one after the other, without any transform between them: fewer operations than ours."""
    import torch
    from torch import nn

    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoders = nn.ModuleList(encoders)

        def forward(self, x: Any) -> Any:
            parts = x.chunk(len(self.encoders), dim=-1)
            return torch.cat([encoder(part) for encoder, part in zip(self.encoders, parts, strict=True)], dim=-1)

    return Slices()


def measure(
    kind: str, routines: dict[str, Routine], scales: dict[str, Routine], rounds: int, budget: float
) -> dict[str, Any]:
    """Compare answers, then time everything side by side."""
    answers = {name: np.asarray(routine(), dtype=np.float64) for name, routine in routines.items()}
    reference = next(iter(answers.values()), None)
    rows: dict[str, Any] = {}
    for name, answer in answers.items():
        distance = float(np.linalg.norm(answer - reference) / np.linalg.norm(reference))
        assert distance < 1e-4, f"{name} differs by {distance:.2g}"
        rows[name] = {"distance": distance}
    quick = {name: routine for name, routine in {**routines, **scales}.items() if name not in SLOW or "tsvd" in kind}
    times_of = timing.interleaved(quick, rounds, budget)
    for name in {**routines, **scales}.keys() - quick.keys():  # a few rounds, beside ours
        beside = timing.interleaved({"tensorfact": routines["tensorfact"], name: routines[name]}, 3, budget / 4)
        rows[name] |= {
            "seconds": float(np.median(beside[name])),
            "best": min(beside[name]),
            "rounds": len(beside[name]),
        }
        rows[name]["times_slower"] = round_ratio(beside[name], beside["tensorfact"])
    for name, times in times_of.items():
        rows.setdefault(name, {})
        rows[name] |= {"seconds": float(np.median(times)), "best": min(times), "rounds": len(times)}
    ours = times_of["tensorfact"]
    faster = {name: round_ratio(times, ours) for name, times in times_of.items() if name != "tensorfact"}
    faster |= {name: row["times_slower"] for name, row in rows.items() if "times_slower" in row}
    cell = {"rows": rows, "times_slower_than_ours": faster}
    if "product" in kind:
        floor = min(FLOORS, key=lambda name: rows[name]["seconds"])
        bounds = {name: round_ratio(times, times_of[floor]) for name, times in times_of.items() if name != floor}
        cell |= {"floor": floor, "times_slower_than_floor": bounds}
    return cell


def round_ratio(times: list[float], ours: list[float]) -> float:
    """Median over the rounds of the ratio within a round: what slows the whole machine down cancels."""
    return float(np.median(np.array(times) / np.array(ours)))


def main() -> None:
    """Measure what is missing and write ``results/lproduct.json`` after each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="forget stored cells")
    parser.add_argument("--only", action="append", choices=("product", "layer", "tsvd", "encoder"), help="repeatable")
    parser.add_argument("--cell", action="append", help='only this cell, such as "product p=2" (repeatable)')
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of timing a cell")
    args = parser.parse_args()
    result: dict[str, Any] = timing.load("lproduct")
    cells = result.setdefault("cells", {})
    result["environment"] = timing.environment("torch", "torch-dct", "mprod-package")
    jobs: dict[str, Callable[[], tuple[dict[str, Routine], dict[str, Routine]]]] = {}
    jobs |= {f"product p={p}": lambda p=p: product_routines(p) for p in SLICES}  # type: ignore[misc]
    jobs |= {f"layer p={p}": lambda p=p: layer_routines(p) for p in SLICES}  # type: ignore[misc]
    jobs |= {f"tsvd {m}x{l}x{p}": lambda m=m, l=l, p=p: tsvd_routines(m, l, p) for m, l, p in TSVD}  # type: ignore[misc]
    for width, batch in ENCODERS:
        jobs[f"encoder d={width}"] = lambda width=width, batch=batch: encoder_routines(width, batch, 4)  # type: ignore[misc]
    unknown = set(args.cell or ()) - jobs.keys()
    if unknown:
        parser.error(f"--cell must be one of {', '.join(jobs)}, got {', '.join(sorted(unknown))}")
    for key, job in jobs.items():
        left_out = (args.only and key.split()[0] not in args.only) or (args.cell and key not in args.cell)
        if left_out or (key in cells and not args.fresh):
            continue
        cells[key] = measure(key, *job(), args.rounds, args.budget)
        timing.save("lproduct", result)
        print(key, {name: round(ratio, 2) for name, ratio in cells[key]["times_slower_than_ours"].items()}, flush=True)


if __name__ == "__main__":
    main()
