"""Damaged checkpoints, wrong arguments, interruptions: a clear error, and nothing half written."""

from __future__ import annotations

import json
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tensorfact.compress import CheckpointError, compress, estimate, to_dense
from tensorfact.compress.checkpoint import Checkpoint

# --- the source ---------------------------------------------------------------------------------------------


def rewrite_header(directory, change):
    file = directory / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def drop_bytes(count):
    def damage(directory):
        file = directory / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-count])

    return damage


def tamper(**fields):
    return lambda directory: rewrite_header(directory, lambda header: header["lm_head.weight"].update(fields))


def fill(value):
    def damage(directory):
        tensors = load_file(directory / "model.safetensors")
        tensors["model.layers.1.up_proj.weight"][3, 5] = value
        save_file(tensors, directory / "model.safetensors")

    return damage


def only_pickles(directory):
    (directory / "model.safetensors").unlink()


def overwrite_start(directory):
    file = directory / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def no_json(directory):
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8] = ord("x")
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_bytes(1), r"model\.safetensors is truncated: it must have \d+ bytes, got \d+"),
        (drop_bytes(10**9), r"model\.safetensors is truncated or not safetensors"),
        (overwrite_start, r"model\.safetensors is truncated or not safetensors"),
        (no_json, r"model\.safetensors has a damaged safetensors header"),
        (tamper(shape=[51, 48]), r"tampered header: 'lm_head\.weight', F32 of shape \[51, 48\], cannot take bytes"),
        (tamper(dtype=["F32"]), r"tampered header: tensor 'lm_head\.weight' has unknown type \['F32'\]"),
        (tamper(shape=[50, 48] + [1] * 63), r"tampered header: 'lm_head\.weight'"),
        (tamper(dtype="F4", shape=[19201]), r"tampered header: 'lm_head\.weight', F4 of shape \[19201\], cannot take"),
        (tamper(dtype="F31"), r"tampered header: tensor 'lm_head\.weight' has unknown type 'F31'"),
        (tamper(data_offsets=[4, 9604]), r"tampered header: tensor '.*' begins at"),
        (tamper(data_offsets=[-9600, 0]), r"tampered header: 'lm_head\.weight'"),
        (tamper(data_offsets=None), r"tampered header: entry 'lm_head\.weight' is incomplete"),
        (tamper(shape=[10**30, 0]), r"tampered header: 'lm_head\.weight'"),
        (fill(np.nan), r"tensor 'model\.layers\.1\.up_proj\.weight' in .*model\.safetensors must be finite, got NaN"),
        (fill(-np.inf), r"tensor 'model\.layers\.1\.up_proj\.weight' .* must be finite"),
        (only_pickles, r"must hold model\.safetensors .*, got only pytorch_model\.bin; other formats are not read"),
        (lambda d: (d / "config.json").unlink(), r"config\.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json must be readable JSON"),
        (lambda d: (d / "config.json").write_text("[]"), r"config\.json must be a JSON object, got list"),
        (lambda d: (d / "config.json").write_text("{}"), r"config\.json must name a model_type, got None"),
        (
            lambda d: (d / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}'),
            r"must not be quantised yet \(factor first, quantise after\), got 'gptq'",
        ),
    ],
)
@pytest.mark.parametrize("executor", ["serial", "threads:2"])
def test_damaged_sources(write_checkpoint, tmp_path, leftovers, damage, message, executor):
    source, out = write_checkpoint(), tmp_path / "out"
    damage(source)
    with pytest.raises(CheckpointError, match=message):
        compress(source, out, param_ratio=0.5, executor=executor)
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_missing_shards_are_named(write_checkpoint, tmp_path):
    source = write_checkpoint(shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 3 shards: model-00002-of-00003\.safetensors"):
        compress(source, tmp_path / "out", param_ratio=0.5)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a\\b", ".."])
def test_an_index_may_not_leave_its_directory(write_checkpoint, name):
    source = write_checkpoint(shards=2)
    index = {"weight_map": {"a.weight": name}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="must name files of its own directory"):
        Checkpoint.open(source)


def test_an_index_that_does_not_fit(write_checkpoint):
    source = write_checkpoint(shards=2)
    file = source / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["invented.weight"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"must hold tensor 'invented\.weight' as the index says"):
        Checkpoint.open(source)


def test_a_name_twice_in_a_header(write_checkpoint):
    source = write_checkpoint()
    file = source / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].strip()[:-1] + b',"lm_head.weight":{}}'
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(CheckpointError, match="damaged safetensors header: a name occurs twice"):
        Checkpoint.open(source)


def test_a_source_cut_while_the_run_reads_it(write_checkpoint, tmp_path):
    source = write_checkpoint()
    checkpoint = Checkpoint.open(source)
    drop_bytes(4000)(source)
    last = max(checkpoint.tensors.values(), key=lambda info: info.offset)
    from tensorfact.compress.checkpoint import read_raw, read_weight

    for read in (read_raw, read_weight):
        with pytest.raises(CheckpointError, match="is truncated: tensor"):
            read(last)


def test_compressing_twice_is_refused(write_checkpoint, tmp_path):
    compress(write_checkpoint(), tmp_path / "out", param_ratio=0.5)
    with pytest.raises(CheckpointError, match="must be a dense checkpoint, got one that tensorfact wrote"):
        compress(tmp_path / "out", tmp_path / "again", param_ratio=0.5)


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"param_ratio": 0}, r"param_ratio must be in \(0, 1\]: the share of the parameters that stays, got 0"),
        ({"param_ratio": float("nan")}, r"param_ratio must be in \(0, 1\].*got nan"),
        ({"param_ratio": "half"}, r"param_ratio must be in \(0, 1\].*got 'half'"),
        ({"calibration": ["text"]}, r"calibration needs a model that loads, .* does not: ValueError"),
        ({"rng": -1}, "rng must be None, an integer >= 0, a Generator or a SeedSequence, got -1"),
        ({"rng": "seed"}, "rng must be None"),
        ({"progress": "yes"}, "progress must be False, True or callable, got 'yes'"),
        ({"max_shard_size": "big"}, "max_shard_size must be a positive size"),
        ({"allocation": "fair"}, "allocation must be one of spectrum, uniform, got 'fair'"),
    ],
)
def test_wrong_arguments(write_checkpoint, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        compress(write_checkpoint(), tmp_path / "out", **{"param_ratio": 0.5, **arguments})
    assert not (tmp_path / "out").exists()


def test_neither_a_path_nor_a_model(tmp_path):
    with pytest.raises(ValueError, match="model_or_path must be a directory or a transformers model, got int"):
        estimate(3, param_ratio=0.5)


# --- interruptions ------------------------------------------------------------------------------------------

SLOW = """
import sys, time
import tensorfact.compress.lowrank as lowrank
factor = lowrank.LowRankMethod.factor
def slow(self, weight, rank, /, *, rng):
    time.sleep(0.3)
    return factor(self, weight, rank, rng=rng)
lowrank.LowRankMethod.factor = slow
from tensorfact.compress.cli import main
if __name__ == '__main__':
    print('ready', flush=True)
    sys.exit(main(['compress', {source!r}, {out!r}, '--param-ratio', '0.5', '--no-compare', '--overwrite',
                   '--executor', {executor!r}]))
"""


def start_half_way(start_python, leftovers, tmp_path, source, out, executor="threads:2"):
    process = start_python(SLOW.format(source=str(source), out=str(out), executor=executor))
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not leftovers(tmp_path):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    return process


@pytest.mark.parametrize(
    ("number", "code", "executor"),
    [(signal.SIGINT, 130, "threads:2"), (signal.SIGINT, 130, "serial"), (signal.SIGTERM, 143, "threads:2")],
)
def test_interrupted_half_way(write_checkpoint, tmp_path, start_python, leftovers, number, code, executor):
    source, out = write_checkpoint(blocks=12), tmp_path / "out"
    process = start_half_way(start_python, leftovers, tmp_path, source, out, executor)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert "interrupted, nothing was written" in error
    assert "Traceback" not in error
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_interrupted_processes_end(write_checkpoint, tmp_path, start_python, leftovers):
    source, out = write_checkpoint(blocks=60), tmp_path / "out"
    process = start_half_way(start_python, leftovers, tmp_path, source, out, "processes:2")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)  # returns when the workers have closed the pipes too
    assert process.returncode == 130
    assert "Traceback" not in error
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_killed_leaves_the_target_untouched(write_checkpoint, tmp_path, start_python, leftovers, weights_digest):
    source, out = write_checkpoint(blocks=12), tmp_path / "out"
    compress(source, out, param_ratio=0.9, rng=0)
    before = weights_digest(out)
    process = start_half_way(start_python, leftovers, tmp_path, source, out)
    process.kill()
    process.communicate(timeout=30)
    assert weights_digest(out) == before
    assert len(leftovers(tmp_path)) == 1
    compress(source, out, param_ratio=0.5, overwrite=True)
    assert weights_digest(out) != before
    assert leftovers(tmp_path) == []  # the next run for the same target clears up


def test_a_run_does_not_clear_up_after_one_that_lives(write_checkpoint, tmp_path, start_python, leftovers):
    source, out = write_checkpoint(blocks=12), tmp_path / "out"
    process = start_half_way(start_python, leftovers, tmp_path, source, out)
    compress(source, out, param_ratio=0.9)
    assert process.poll() is None
    assert len(leftovers(tmp_path)) == 1
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert leftovers(tmp_path) == []


def test_to_dense_leaves_nothing_on_failure(write_checkpoint, tmp_path, leftovers):
    out = tmp_path / "out"
    compress(write_checkpoint(), out, param_ratio=0.5)
    tensors = load_file(out / "model.safetensors")
    del tensors["model.layers.0.up_proj.down.weight"]
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"must hold the factors of 'model\.layers\.0\.up_proj'"):
        to_dense(out, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    assert leftovers(tmp_path) == []


def test_to_dense_refuses_a_recipe_before_it_works(write_checkpoint, tmp_path):
    out = tmp_path / "out"
    compress(write_checkpoint(), out, param_ratio=0.5)
    config = json.loads((out / "config.json").read_text())
    for change, message in (
        ({"format_version": 99}, "format_version 99"),
        ({"base_model_type": None}, "base_model_type"),
    ):
        recipe = {k: v for k, v in {**config["tensorfact"], **change}.items() if v is not None}
        (out / "config.json").write_text(json.dumps({**config, "tensorfact": recipe}))
        with pytest.raises(ValueError, match=message):
            to_dense(out, tmp_path / "plain", progress=lambda *step: pytest.fail("it began"))
