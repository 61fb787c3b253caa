"""Reading: types, headers, files. Writing: layout, shards, atomicity."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file as save_torch

from tensorfact.compress._store import other_files
from tensorfact.compress._types import decode, encode
from tensorfact.compress.checkpoint import Checkpoint, CheckpointError, read_raw, read_weight
from tensorfact.compress.writer import CheckpointWriter, Entry, parse_size


def test_lists_every_tensor_as_safetensors_does(write_checkpoint):
    source = write_checkpoint(shards=3)
    checkpoint = Checkpoint.open(source)
    for file in checkpoint.weight_files:
        with safe_open(file, "np") as handle:
            for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
                expected = handle.get_tensor(name)
                np.testing.assert_array_equal(read_weight(checkpoint.tensors[name]), expected)
    assert checkpoint.size == sum(read_raw(info).size // 4 for info in checkpoint.tensors.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types_round_trip(tmp_path, dtype):
    values = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    (tmp_path / "config.json").write_text("{}")
    save_torch({"a.weight": values}, tmp_path / "model.safetensors")
    info = Checkpoint.open(tmp_path).tensors["a.weight"]
    read = read_weight(info)
    assert read.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    np.testing.assert_array_equal(read, values.to(torch.float64).numpy())
    assert encode(read, info.dtype).tobytes() == read_raw(info).tobytes()


def test_bfloat16_rounds_to_nearest_even_like_torch():
    bits = np.random.default_rng(0).integers(0, 2**32, size=200_000, dtype=np.uint64).astype(np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF, 0x80000000, 0x7F800001], np.uint32)
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(encode(values, "BF16"), expected)
    assert np.isnan(decode(encode(np.array([np.nan], np.float32), "BF16"), "BF16")).all()


def test_other_files(write_checkpoint, tmp_path):
    source = write_checkpoint()
    (source / ".hidden").write_text("x")
    (source / "onnx").mkdir()
    (source / "loop").symlink_to(source)
    (source / "nowhere").symlink_to(source / "missing")
    (source / "onnx" / "model.onnx").write_text("x")
    for folder in ("checkpoint-500", "2_Dense", "3_Dense"):
        (source / folder).mkdir()
    (source / "checkpoint-500" / "optimizer.pt").write_text("x")
    for name in ("2_Dense/config.json", "2_Dense/pytorch_model.bin", "extra/optimizer.pt"):
        (source / name).write_text("x")
    for name in ("3_Dense/config.json", "3_Dense/pytorch_model.bin", "3_Dense/model.safetensors"):
        (source / name).write_text("x")
    (tmp_path / "secret.txt").write_text("x")
    (source / "outside.txt").symlink_to(tmp_path / "secret.txt")
    (source / "inside.txt").symlink_to("tokenizer.json")
    copied, skipped = other_files(Checkpoint.open(source))
    module = {"2_Dense/config.json", "2_Dense/pytorch_model.bin", "3_Dense/config.json", "3_Dense/model.safetensors"}
    assert set(map(str, copied)) == {"config.json", "tokenizer.json", "extra/config.json", "inside.txt"} | module
    left_out = {"pytorch_model.bin", "onnx", "checkpoint-500", "extra/optimizer.pt", "outside.txt"}
    assert set(map(str, skipped)) == left_out | {"3_Dense/pytorch_model.bin"}


def test_links_of_a_hub_cache_are_followed(write_checkpoint, tmp_path):
    source = write_checkpoint()
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, name in enumerate(("config.json", "model.safetensors", "tokenizer.json")):
        (source / name).rename(blobs / str(i))
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    assert tuple(map(list, other_files(Checkpoint.open(snapshot)))) == (
        [PurePosixPath("config.json"), PurePosixPath("tokenizer.json")],
        [],
    )


def test_shards_are_not_copied_whatever_their_name(write_checkpoint):
    source = write_checkpoint(shards=2)
    (source / "model-00001-of-00002.safetensors").rename(source / "first.weights")
    index = source / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of-00002.safetensors", "first.weights"))
    copied, _ = other_files(Checkpoint.open(source))
    assert set(map(str, copied)) == {"config.json", "tokenizer.json", "extra/config.json"}


def test_the_single_file_wins_over_an_index_as_in_transformers(write_checkpoint):
    source = write_checkpoint()
    names = set(Checkpoint.open(source).tensors)
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"stale.weight": "gone.safetensors"}}')
    assert set(Checkpoint.open(source).tensors) == names


def test_other_weights_named_by_the_configuration_are_refused(write_checkpoint):
    source = write_checkpoint()
    for name, refused in (("model.safetensors", False), (None, False), ("other.safetensors", True), ([], True)):
        (source / "config.json").write_text(json.dumps({"model_type": "plain", "transformers_weights": name}))
        if refused:
            with pytest.raises(CheckpointError, match="must not name its own weights file, got transformers_weights"):
                Checkpoint.open(source)
        else:
            assert Checkpoint.open(source).tensors


@pytest.mark.parametrize("limit", [10**9, 300])
def test_writer_makes_files_that_safetensors_reads(tmp_path, limit):
    arrays = {
        "b": np.arange(10, dtype=np.uint8),
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "h": np.ones((50, 3), np.float16),
        "empty": np.empty((0, 4), np.float32),
        "scalar": np.array(2.5, np.float64),
    }
    types = {"b": "U8", "a": "F32", "h": "F16", "empty": "F32", "scalar": "F64"}
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.layout([Entry(n, types[n], v.shape) for n, v in arrays.items()], max_shard_size=limit)
        for name in reversed(arrays):  # any order will do
            writer.write(name, arrays[name])
        writer.finish_tensors()
        writer.write_file("config.json", "{}")
        writer.commit()
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (limit == 300)
    found = Checkpoint.open(tmp_path / "out")
    for name, values in arrays.items():
        with safe_open(found.tensors[name].file, "np") as handle:
            np.testing.assert_array_equal(handle.get_tensor(name), values)
        assert found.tensors[name].offset % values.itemsize == 0
    if limit == 300:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(v.nbytes for v in arrays.values())


def test_writer_refuses_wrong_sizes_and_gaps(tmp_path, leftovers):
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.layout([Entry("a", "F32", (2,)), Entry("b", "F32", (2,))], max_shard_size=10**9)
        writer.write("a", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="'a' must take 8 bytes, got 12"):
            writer.write("a", np.zeros(3, np.float32))
        with pytest.raises(ValueError, match="'b' must take 8 bytes, got 4"):
            writer.write("b", np.zeros(1, np.float32))
        with pytest.raises(RuntimeError, match="not written: b"):
            writer.finish_tensors()
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_overwriting_keeps_the_old_until_the_end(tmp_path, leftovers):
    def write(text, fail):
        with CheckpointWriter(tmp_path / "out", overwrite=True) as writer:
            writer.layout([Entry("a", "F32", (2,))], max_shard_size=10**9)
            writer.write("a", np.zeros(2, np.float32))
            writer.finish_tensors()
            writer.write_file("config.json", json.dumps({"model_type": text}))
            if fail:
                raise KeyboardInterrupt
            writer.commit()

    write("old", fail=False)
    with pytest.raises(KeyboardInterrupt):
        write("new", fail=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "old"}
    write("new", fail=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "new"}
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("500MiB", 500 * 2**20), (123, 123), ("1.5k", 1500)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", 0, -5, "0GB", "1.2.3MB", True])
def test_wrong_sizes(text):
    with pytest.raises(ValueError, match="max_shard_size must be a positive size"):
        parse_size(text)


def test_no_directory(tmp_path):
    with pytest.raises(CheckpointError, match="nothing is downloaded"):
        Checkpoint.open("someone/some-model")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Checkpoint.open(tmp_path)
