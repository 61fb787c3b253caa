"""Damage that `verify` finds, and damage to the record that it reads."""

from __future__ import annotations

import json
import shutil

import pytest

import tensorfact.compress as tc
from tensorfact.compress._store import describe, digest_of
from tiny_models import tiny


def damage_byte(out):
    file = out / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def damage_rank(out):
    config = json.loads((out / "config.json").read_text())
    config["tensorfact"]["ranks"]["model.layers.0.up_proj"] += 1
    record = json.loads((out / "tensorfact.json").read_text())
    (out / "config.json").write_text(json.dumps(config))
    record["files"]["config.json"] = describe(out / "config.json")
    record["digest"] = digest_of(record)
    (out / "tensorfact.json").write_text(json.dumps(record))


def damage_version(out):
    record = json.loads((out / "tensorfact.json").read_text())
    record["format_version"] = 99
    (out / "tensorfact.json").write_text(json.dumps({**record, "digest": digest_of(record)}))


def damage_entries(key, value):
    def damage(out):
        record = {**json.loads((out / "tensorfact.json").read_text()), key: value}
        (out / "tensorfact.json").write_text(json.dumps({**record, "digest": digest_of(record)}))

    return damage


def damage_record(out):
    file = out / "tensorfact.json"
    file.write_text(file.read_text().replace('"rank": ', '"rank": 1', 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_byte, "model.safetensors was changed: its SHA-256 does not fit"),
        (damage_version, "format_version 99, this tensorfact reads 1"),
        (damage_record, "tensorfact.json was changed: its digest does not fit"),
        (damage_rank, "config.json and tensorfact.json name different ranks"),
        (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda out: (out / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda out: (out / "tensorfact.json").unlink(), "tensorfact.json is missing"),
        (lambda out: (out / "tensorfact.json").write_text("["), "tensorfact.json is damaged"),
        (lambda out: (out / "report.json").write_text("{}"), "report.json has 2 bytes"),
        *(
            (
                lambda out, name=name: shutil.copy(out / "report.html", out / name),
                f"{name} was not written by tensorfact",
            )
            for name in ("more.safetensors", "adapter_config.json", "pytorch_model.bin", "evil.py", "extra/evil.py")
        ),
        (lambda out: (out / "link").symlink_to("/", target_is_directory=True), "link was not written by tensorfact"),
        (damage_entries("files", {"config.json": 3}), "files must map names to sha256 and bytes"),
        (damage_entries("layers", [{"name": "a", "shape": [3, 4]}]), "layers must have a name, a shape and a rank"),
        (damage_entries("layers", ["a"]), "layers must have a name, a shape and a rank"),
        (damage_entries("method", ["a"]), "layers must have a name, a shape and a rank"),
    ],
)
def test_verify_finds_damage(write_checkpoint, tmp_path, damage, message):
    out = tmp_path / "out"
    tc.compress(write_checkpoint(), out, param_ratio=0.5)
    assert tc.verify(out) == []
    damage(out)
    assert any(message in problem for problem in tc.verify(out))


def test_deep_verify_reports_a_model_that_does_not_fit(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    tiny("llama", source)
    tc.compress(source, out, param_ratio=0.6)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    record = json.loads((out / "tensorfact.json").read_text())
    record["files"]["config.json"] = describe(out / "config.json")
    (out / "tensorfact.json").write_text(json.dumps({**record, "digest": digest_of(record)}))
    assert tc.verify(out) == []
    lost = [problem for problem in tc.verify(out, deep=True) if problem.startswith("missing keys: model.layers.2.")]
    assert len(lost) == 9  # every tensor of the layer that the file has not


def test_a_rank_of_zero_among_others_is_no_damage():
    from tensorfact.compress.verify import _is_layer

    layer = {"name": "a", "shape": [8, 4]}
    assert _is_layer({**layer, "rank": [8, 0, 0, 0]})
    assert _is_layer({**layer, "rank": 3})
    for rank in (0, [], [-1, 2], [2.0], None, True):
        assert not _is_layer({**layer, "rank": rank})
