"""Targets that must not be replaced or cannot be written: a clear error, and nothing half written."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tensorfact.compress import compress, verify
from tensorfact.compress.checkpoint import Checkpoint


def test_a_target_that_is_no_checkpoint_is_never_replaced(write_checkpoint, tmp_path):
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="out already exists"):
        compress(write_checkpoint(), out, param_ratio=0.5)
    with pytest.raises(ValueError, match=r"must be a checkpoint directory to be overwritten, got .* no config\.json"):
        compress(tmp_path / "source", out, param_ratio=0.5, overwrite=True)
    assert (out / "thesis.txt").read_text() == "years"


def test_a_config_alone_does_not_make_a_checkpoint(write_checkpoint, tmp_path):
    source, out = write_checkpoint(), tmp_path / "proj"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match=r"has no config\.json with a model_type beside a safetensors file"):
        compress(source, out, param_ratio=0.5, overwrite=True)
    shutil.copytree(source, out, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"which also holds thesis\.tex"):
        compress(source, out, param_ratio=0.5, overwrite=True)
    assert (out / "thesis.tex").read_text() == "years"
    (out / "thesis.tex").unlink()
    compress(source, out, param_ratio=0.5, overwrite=True)
    assert verify(out) == []


def test_what_appears_in_the_target_meanwhile_is_not_replaced(write_checkpoint, tmp_path, leftovers):
    source, out = write_checkpoint(), tmp_path / "out"

    def arrive(phase, done, total, name):
        out.mkdir(exist_ok=True)
        (out / "thesis.tex").write_text("years")

    with pytest.raises(ValueError, match="out must be a checkpoint directory to be overwritten"):
        compress(source, out, param_ratio=0.5, overwrite=True, progress=arrive)
    assert (out / "thesis.tex").read_text() == "years"
    assert leftovers(tmp_path) == []


def test_a_source_that_links_into_the_target(write_checkpoint, tmp_path):
    source, out = write_checkpoint(), tmp_path / "out"
    shutil.copytree(source, out)
    (source / "model.safetensors").unlink()
    (source / "model.safetensors").symlink_to(out / "model.safetensors")
    with pytest.raises(ValueError, match=r"out must lie apart from the source directory .* what its links lead to"):
        compress(source, out, param_ratio=0.5, overwrite=True)
    assert Checkpoint.open(source).tensors


@pytest.mark.parametrize("place", ["source", "source/inside", "."])
def test_source_and_target_must_be_apart(write_checkpoint, tmp_path, place):
    source = write_checkpoint()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="out must lie apart from the source directory"):
        compress(source, tmp_path / place, param_ratio=0.5, overwrite=True)
    assert Checkpoint.open(source).tensors


def test_a_parent_that_cannot_be_written(write_checkpoint, tmp_path):
    source = write_checkpoint()
    with pytest.raises(OSError, match=r"out cannot be created|not writable"):
        compress(source, "/proc/out", param_ratio=0.5)
    with pytest.raises(FileNotFoundError, match="the directory that out goes into does not exist"):
        compress(source, tmp_path / "no" / "out", param_ratio=0.5)


DISK = """
import resource, sys
from tensorfact.compress.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main(['compress', {source!r}, {out!r}, '--param-ratio', '0.5', '--no-compare', '--executor', 'serial']))
"""


@pytest.mark.parametrize("limit", [100, 30_000])
def test_a_file_that_may_not_grow(write_checkpoint, tmp_path, run_python, leftovers, limit):
    done = run_python(DISK.format(limit=limit, source=str(write_checkpoint()), out=str(tmp_path / "out")))
    assert done.returncode == 2
    assert "out cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def mount(directory, size):
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("a small file system can be mounted by root only")


@pytest.mark.parametrize("size", ["64k", "192k"])
def test_a_full_disk(write_checkpoint, tmp_path, leftovers, size):
    disk = tmp_path / "disk"
    source = write_checkpoint(width=96)
    (source / "vocab.txt").write_bytes(b"x" * 100_000)
    mount(disk, size)
    try:
        with pytest.raises(OSError, match="out cannot be written: No space left on device"):
            compress(source, disk / "out", param_ratio=0.3)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
