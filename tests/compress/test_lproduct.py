"""The lproduct method: arrays, errors, budgets against Kronecker products, numpy.linalg, counting; checkpoints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tensorfact import Transform
from tensorfact.compress._method import Layer, create, owner, stored_size
from tensorfact.compress.checkpoint import TensorInfo
from tensorfact.compress.lproduct import LProductMethod

RNG = np.random.default_rng(0)
KINDS = ["truncation", "projection"]


def layer(name, shape):
    return Layer(name, "linear", shape, TensorInfo(f"{name}.weight", "F32", shape, "", 0, 4 * shape[0] * shape[1]))


def mixed(z, width):
    """Z x I: the mixing of contiguous slices of `width`, as a matrix."""
    return np.kron(z, np.eye(width))


def multiplied_out(arrays):
    """The definition, by Kronecker products, in float64."""
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    name = next(name for name in arrays if name.startswith("mixing"))
    z = arrays[name]
    p = len(z)
    if name == "mixing":
        _, inner, outer = arrays["faces"].shape
        middle = np.zeros((p * outer, p * inner))
        for u, face in enumerate(arrays["faces"]):
            middle[u * outer : (u + 1) * outer, u * inner : (u + 1) * inner] = face.T
        return mixed(z, outer).T @ middle @ mixed(z, inner)
    made = {int(key[5:]): arrays[key] @ arrays["right." + key[5:]] for key in arrays if key.startswith("left.")}
    shape = next(iter(made.values())).shape
    faces = [made.get(u, np.zeros(shape)) for u in range(p)]
    if name == "mixing_out":
        return mixed(z, shape[0]).T @ np.vstack(faces)
    return np.hstack(faces) @ mixed(z, shape[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("transform", ["dct", "identity", "hartley"])
@pytest.mark.parametrize(("shape", "rank"), [
    ((24, 36), (3, 5, 0, 9)), ((36, 24), (2, 2, 2)), ((24, 24), (0, 4)), ((7, 12), (1, 0, 2, 3)), ((12, 7), (3, 3)),
    ((24, 36), 4), ((12, 12), 3), ((8, 24), 2),
])  # fmt: skip
def test_a_weight_becomes_arrays_with_the_error_that_is_told(shape, rank, transform, dtype):
    w = RNG.standard_normal(shape).astype(dtype)
    kind, p = ("projection", rank) if isinstance(rank, int) else ("truncation", len(rank))
    method = LProductMethod(kind=kind, slices=p, transform=transform)
    made = method.factor(w, rank, rng=np.random.default_rng(0))
    layout = method.layout(shape, rank)
    assert {name: array.shape for name, array in made.arrays.items()} == layout
    assert {array.dtype for array in made.arrays.values()} == {np.dtype(dtype)}
    assert LProductMethod().dense_shape(layout) == shape  # whatever the options of the reader
    assert all(owner(method, f"a.b.{name}") == ("a.b", name) for name in layout)
    eps, size = np.finfo(dtype).eps, np.linalg.norm(w)
    dense = multiplied_out(made.arrays)
    np.testing.assert_allclose(LProductMethod().expand(made.arrays), dense, rtol=0, atol=100 * eps * size)
    true = np.linalg.norm(w - dense) / size
    assert abs(made.error - true) <= 1e-3 * true + 10 * eps
    assert method.residual(w, made.arrays) == made.error
    assert not np.shares_memory(w, next(iter(made.arrays.values())))
    # the smallest error: what orthogonal rotation of one or both sides leaves outside of the structure
    z = Transform(transform, p).matrix
    if kind == "projection":
        turned = mixed(z, shape[0] // p) @ w @ mixed(z, shape[1] // p).T
        rows, cols = shape[0] // p, shape[1] // p
        kept = sum(np.sum(turned[u * rows : (u + 1) * rows, u * cols : (u + 1) * cols] ** 2) for u in range(p))
        best = math.sqrt(max(0.0, 1 - kept / size**2))
    else:
        out = "mixing_out" in layout
        turned = mixed(z, shape[0] // p) @ w if out else w @ mixed(z, shape[1] // p).T
        faces = np.split(turned, p, axis=0 if out else 1)
        tails = [np.linalg.svd(face, compute_uv=False)[r:] for face, r in zip(faces, rank, strict=True)]
        best = math.sqrt(sum(np.sum(tail**2) for tail in tails)) / size
        analysis = method.analyse(w)
        assert method.predicted_error(analysis, rank) == pytest.approx(best, rel=1e-4)
        assert method.optimal_error(analysis, rank) == pytest.approx(best, rel=1e-4)
    assert best * (1 - 1e-4) - 10 * eps <= true <= best * 1.05 + 10 * eps


def test_full_ranks_are_the_weight_and_structured_weights_are_met():
    for shape in ((24, 12), (12, 24), (16, 16)):
        w = RNG.standard_normal(shape)
        method = LProductMethod()
        full = (min(shape[0] // 4, shape[1]),) * 4 if shape[0] >= shape[1] else (min(shape[0], shape[1] // 4),) * 4
        assert method.full_rank(shape) == sum(full)
        assert method.factor(w, full, rng=np.random.default_rng(0)).error < 1e-12
        block = LProductMethod(kind="projection")
        structured = block.expand(block.factor(w, 4, rng=np.random.default_rng(0)).arrays)
        assert block.factor(structured, 4, rng=np.random.default_rng(0)).error < 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_weight_is_met(kind):
    method = LProductMethod(kind=kind)
    for dtype in (np.float32, np.float64):
        made = method.factor(np.zeros((16, 16), dtype), 4 if kind == "projection" else (2, 0, 1, 3),
                             rng=np.random.default_rng(0))  # fmt: skip
        assert made.error == 0.0
        assert all(np.isfinite(array).all() for array in made.arrays.values())


def test_the_largest_values_of_all_faces_stay():
    w = RNG.standard_normal((32, 16))
    method = LProductMethod(rank_multiple=1, min_saving=0.0)
    values = method.analyse(w)
    faces = np.split(mixed(Transform.dct(4).matrix, 8) @ w, 4)
    np.testing.assert_allclose(values, [np.linalg.svd(face, compute_uv=False) for face in faces], atol=1e-12)
    found = method.allocate([layer("a", w.shape)], 0.7, {"a": values}).ranks["a"]
    pooled = np.sort(values.ravel())[::-1]
    kept = np.sort(np.concatenate([row[:r] for row, r in zip(values, found, strict=True)]))[::-1]
    np.testing.assert_array_equal(kept, pooled[: sum(found)])
    np.testing.assert_array_equal(method.spectrum(values), pooled)
    assert stored_size(method, w.shape, found) <= 0.7 * w.size
    assert stored_size(method, w.shape, found) + 8 + 16 > 0.7 * w.size


shapes = st.lists(st.tuples(st.integers(2, 90), st.integers(2, 90)), min_size=1, max_size=5)
methods = st.builds(
    LProductMethod,
    kind=st.sampled_from(KINDS),
    slices=st.sampled_from([None, 2, 3, 8]),
    allocation=st.sampled_from(["spectrum", "uniform"]),
    rank_multiple=st.sampled_from([1, 8]),
    min_saving=st.sampled_from([0.0, 0.1, 0.45]),
)


@given(shapes, st.floats(0.05, 1.0), methods, st.integers(0, 99))
def test_budget_counts_what_is_stored(sizes, ratio, method, seed):
    layers = [layer(f"l{i}", shape) for i, shape in enumerate(sizes)]
    rng = np.random.default_rng(seed)
    values = {item.name: method.analyse(rng.standard_normal(item.shape)) for item in layers}
    try:
        found = method.allocate(layers, ratio, values)
    except ValueError as refusal:
        assert "param_ratio must be at least" in str(refusal)  # noqa: PT017
        assume(False)
    by_name = {item.name: item for item in layers}
    assert set(by_name) == set(found.ranks) | set(found.dense)
    cost = sum(by_name[name].size for name in found.dense)
    for name, rank in found.ranks.items():
        made = stored_size(method, by_name[name].shape, rank)
        assert made <= (1 - method.min_saving) * by_name[name].size * (1 + 1e-9)
        assert made < by_name[name].size
        cost += made
    assert cost <= ratio * sum(item.size for item in layers) + 1e-6
    assert all(("would save less than" in why) or ("do not divide" in why) for why in found.dense.values())


def test_weights_that_slices_do_not_divide_stay_dense_and_say_so():
    layers = [layer("a", (32, 32)), layer("b", (31, 33)), layer("c", (31, 32))]
    found = LProductMethod(allocation="uniform").allocate(layers, 0.8, {})
    assert set(found.ranks) == {"a", "c"}
    assert found.dense["b"] == "4 slices do not divide a side evenly"
    found = LProductMethod(kind="projection", allocation="uniform").allocate(layers, 0.9, {})
    assert set(found.ranks) == {"a"}
    assert found.dense["c"] == "none of 2, 4, 8, 16 slices do not divide both sides evenly"


def test_rank_pattern_gives_sums_of_ranks_or_slices():
    layers = [layer(f"m.{i}.{part}", (96, 96)) for i in range(2) for part in ("q", "v")]
    method = LProductMethod(rank_pattern={"m.1.q": 10, "q": 21, "v": 400}, allocation="uniform")
    found = method.allocate(layers, 0.9, {})
    assert found.ranks == {"m.0.q": (6, 5, 5, 5), "m.1.q": (3, 3, 2, 2)}
    assert "past break-even (" in found.dense["m.0.v"]
    slices = LProductMethod(kind="projection", rank_pattern={"q": 3}, allocation="uniform").allocate(layers, 0.6, {})
    assert slices.ranks["m.0.q"] == slices.ranks["m.1.q"] == 3
    with pytest.raises(ValueError, match=r"rank_pattern must name slices that divide m\.0\.q \(96, 96\), got 5"):
        LProductMethod(kind="projection", rank_pattern={"q": 5}, allocation="uniform").allocate(layers, 0.6, {})
    with pytest.raises(ValueError, match=r"must not match b \(31, 33\): 4 divides no side"):
        LProductMethod(rank_pattern={"b": 5}, allocation="uniform").allocate([layer("b", (31, 33))], 0.9, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "magic"}, "kind must be truncation or projection, got 'magic'"),
        ({"slices": 1}, "slices must be an integer >= 2, got 1"),
        ({"transform": "dft"}, "transform must be one of dct, identity, dst, haar, hartley, got 'dft'"),
        ({"transform": "haar", "slices": 6}, "p must be a power of two for the Haar wavelet, got 6"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern must map names to integers >= 1, got 'q': 0"),
        ({"order": 2}, "options of 'lproduct' must be among .*, got 'order'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        create("lproduct", options)


def test_arrays_and_ranks_that_do_not_fit_are_refused():
    method = LProductMethod()
    for bad, message in [
        ({"faces": (4, 2, 2)}, "one square mixing matrix must be there"),
        ({"mixing": (4, 3), "faces": (4, 2, 2)}, "one square mixing matrix must be there"),
        ({"mixing": (4, 4), "faces": (3, 2, 2)}, r"mixing must come with faces of shape \(4,"),
        ({"mixing_in": (4, 4), "left.0": (3, 2), "right.0": (1, 3)}, "must fit together and be alike"),
        ({"mixing_in": (4, 4), "left.0": (3, 2)}, "must fit together and be alike"),
        ({"mixing_in": (4, 4)}, "must fit together and be alike"),
        ({"mixing_in": (4, 4), "left.4": (3, 2), "right.4": (2, 3)}, "must have a row for each face"),
    ]:
        with pytest.raises(ValueError, match=message):
            method.dense_shape(bad)
    for shape, rank in [((8, 8), (1, 2, 3, 4)), ((8, 8), (0, 0)), ((7, 9), (1, 1)), ((8, 8), ())]:
        with pytest.raises(ValueError, match="rank must be one rank for each face"):
            method.layout(shape, rank)
    with pytest.raises(ValueError, match="slices must divide both sides"):
        method.layout((8, 9), 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_checkpoint_loads_as_what_it_stores_and_goes_back(kind: str, family: str, tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import tensorfact.compress as tc
    import tiny_models
    from compressed_models import compress, config_of, outputs, tensors
    from tensorfact.compress import huggingface as hf
    from tensorfact.torch import LProductLinear

    dense = tiny_models.tiny(family, tmp_path / "dense")
    small = compress(dense, tmp_path / "small", method="lproduct", options={"kind": kind})
    assert tc.verify(small, deep=True) == []
    stored, source = tensors(small), tensors(dense)
    report = tc.Report.read(small)
    assert report.layers
    assert report.targeted_after <= 0.5 * report.targeted_before
    assert tc.Report.from_json(report.to_json()) == report
    for record in report.layers:
        mine = {k[len(record.name) + 1 :]: v for k, v in stored.items() if k.startswith(f"{record.name}.")}
        mine.pop("bias", None)
        assert record.params_after == sum(array.numel() for array in mine.values()) < record.params_before
        w = source[f"{record.name}.weight"].double().numpy()
        w = w.T if record.kind == "conv1d" else w
        true = np.linalg.norm(multiplied_out({k: v.numpy() for k, v in mine.items()}) - w) / np.linalg.norm(w)
        assert record.error == pytest.approx(true, rel=1e-3)
    model = hf.load_model(small)
    assert sum(isinstance(module, LProductLinear) for module in model.modules()) == len(report.layers)
    out = outputs(model, family)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(outputs(hf.load_model(tmp_path / "again"), family), out)
    assert config_of(tmp_path / "again")["tensorfact"] == config_of(small)["tensorfact"]
    tc.to_dense(small, tmp_path / "plain")
    twin = outputs(type(model).__base__.from_pretrained(tmp_path / "plain"), family)
    # float32 rounding of one order of products against another, through two layers
    torch.testing.assert_close(out, twin, rtol=0, atol=2e-5 * twin.abs().max().item())
    model.train()
    loss = model(**tiny_models.inputs(family), labels=tiny_models.inputs(family)["input_ids"]).loss
    loss.backward()
    layers = [module for module in model.modules() if isinstance(module, LProductLinear)]
    assert all(float(p.grad.abs().max()) > 0 for module in layers for p in module.parameters())


def test_the_command_line(write_checkpoint: Any, tmp_path: Any, capsys: Any) -> None:
    from tensorfact.compress.cli import main

    source, out = str(write_checkpoint()), str(tmp_path / "out")
    common = ["--param-ratio", "0.5", "--method", "lproduct", "--no-progress"]
    for kind in KINDS:
        chosen = [*common, "--option", f"kind={kind}"]
        assert main(["estimate", source, *chosen]) == 0
        assert main(["compress", source, out, *chosen, "--no-compare", "--overwrite"]) == 0
        assert "method lproduct" in capsys.readouterr().out
        assert main(["verify", out]) == 0
        assert main(["report", out, "--html", str(tmp_path / "page.html")]) == 0
        assert main(["to-dense", out, str(tmp_path / f"plain-{kind}"), "--no-progress"]) == 0
    capsys.readouterr()
    assert main(["compress", source, str(tmp_path / "bad"), *common, "--option", "kind=magic"]) == 2
    assert "kind must be truncation or projection" in capsys.readouterr().err
