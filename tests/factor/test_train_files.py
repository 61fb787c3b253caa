"""Trains and operators as arrays and as safetensors files."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from chains import make
from tensorfact import TensorTrain, TrainInfo, TTMatrix

pytest.importorskip("safetensors")


def an_operator(dtype="float64"):
    rng = np.random.default_rng(0)
    cores = [rng.standard_normal(s).astype(dtype) for s in ((1, 2, 3, 4), (4, 3, 2, 1))]
    return TTMatrix(cores=cores, error=0.5)


def same(first, second):
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(first.cores, second.cores, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_a_file_gives_the_train_back(tmp_path, dtype):
    info = TrainInfo(path="tsqr", site_errors=(0.1, 0.2), norm=3.0, data_reads=2.5, converged=False, notes=("scaled",))
    train = TensorTrain(cores=make((3, 4, 5), dtype=dtype).left().cores, error=0.07, canonical="left", info=info)
    train.save(tmp_path / "train.safetensors")
    for found in (TensorTrain.load(tmp_path / "train.safetensors"), TensorTrain.from_arrays(train.to_arrays())):
        assert same(found, train)
        assert found.dtype == dtype
        assert (found.error, found.canonical, found.info) == (0.07, "left", info)
    assert os.listdir(tmp_path) == ["train.safetensors"]


def test_an_unknown_error_stays_unknown(tmp_path):
    train = TensorTrain(cores=make((3, 4)).cores, error=math.nan)
    train.save(tmp_path / "a")
    assert math.isnan(TensorTrain.load(tmp_path / "a").error)
    assert math.isnan(TensorTrain.from_arrays(train.to_arrays()).error)


def test_more_than_ten_cores_keep_their_order(tmp_path):
    train = make((2,) * 12, rank=2)
    train.save(tmp_path / "a")
    assert same(TensorTrain.load(tmp_path / "a"), train)


def test_operators_have_files_too(tmp_path):
    operator = an_operator("float32")
    operator.save(tmp_path / "a")
    assert same(TTMatrix.load(tmp_path / "a"), operator)
    assert same(TTMatrix.from_arrays(operator.to_arrays()), operator)
    assert TTMatrix.load(tmp_path / "a").error == 0.5
    with pytest.raises(ValueError, match=r"must hold a TensorTrain, got .*: it holds TTMatrix"):
        TensorTrain.load(tmp_path / "a")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex128"])
def test_torch_trains_keep_their_type(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    train = TensorTrain(cores=[torch.from_numpy(core.copy()).to(kind) for core in make((3, 4)).cores])
    train.save(tmp_path / "a")
    found = TensorTrain.load(tmp_path / "a", framework="torch")
    assert found.dtype == kind
    assert all(torch.equal(x, y) for x, y in zip(found.cores, train.cores, strict=True))


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    place = tmp_path / "a.safetensors"
    make((3, 4)).save(place)
    before = place.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        make((5, 6)).save(place)
    assert place.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_broken_files_are_refused_with_their_name(tmp_path):
    place = tmp_path / "a.safetensors"
    make((3, 4)).save(place)
    content = place.read_bytes()
    header = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + header])

    def changed(**metadata):
        text = json.dumps({**about, "__metadata__": {**about["__metadata__"], **metadata}}).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + header :]

    broken = {
        "empty": b"",
        "cut": content[:-5],
        "half a header": content[:20],
        "noise": b"\xff" * 100,
        "no train": changed(tensorfact="something else"),
        "a later version": changed(version="2"),
        "no json": changed(train="{"),
        "a wrong side": changed(train=json.dumps({"error": 0.0, "canonical": "up"})),
        "a strange field": changed(train=json.dumps({"error": 0.0, "canonical": "none", "colour": 1})),
        "no error": changed(train=json.dumps({"canonical": "none"})),
    }
    for bytes_ in broken.values():
        place.write_bytes(bytes_)
        with pytest.raises(ValueError, match=r"path must hold a TensorTrain, got .*a\.safetensors"):
            TensorTrain.load(place)
    with pytest.raises(FileNotFoundError):
        TensorTrain.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="framework must be 'numpy' or 'torch', got 'jax'"):
        TensorTrain.load(place, framework="jax")


def test_a_file_whose_cores_do_not_fit_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    place = tmp_path / "a"
    train = make((3, 4))
    train.save(place)
    arrays = load_file(place)
    known = json.dumps({"error": 0.0, "canonical": "none"})
    about = {"tensorfact": "TensorTrain", "version": "1", "complex": "false", "train": known}
    save_file({"cores.0": arrays["cores.0"], "cores.2": arrays["cores.1"]}, place, about)
    with pytest.raises(ValueError, match="path must hold a TensorTrain"):
        TensorTrain.load(place)
    save_file({"cores.0": arrays["cores.1"], "cores.1": arrays["cores.0"]}, place, about)
    with pytest.raises(ValueError, match="the outer bonds must be 1"):
        TensorTrain.load(place)


def test_arrays_without_a_part_are_refused():
    arrays = make((3, 4)).to_arrays()
    del arrays["cores.0"]
    with pytest.raises(ValueError, match=r"missing \['cores.0'\]"):
        TensorTrain.from_arrays(arrays)
    with pytest.raises(ValueError, match="missing"):
        TensorTrain.from_arrays({})
