"""The last step of a run, and what is left when a process ends in the middle of it."""

from __future__ import annotations

import os
import shutil
import types

import pytest

from tensorfact.compress import _atomic, compress, verify


@pytest.fixture
def without_exchange(monkeypatch):
    """A system that cannot swap two directories in one step."""
    monkeypatch.setattr(_atomic, "ctypes", types.SimpleNamespace(CDLL=lambda name: types.SimpleNamespace()))


@pytest.fixture
def places(write_checkpoint, tmp_path):
    source, out = write_checkpoint(), tmp_path / "out"
    compress(source, out, param_ratio=0.9, rng=0)
    return source, out


@pytest.mark.usefixtures("without_exchange")
def test_overwriting_in_two_renames(places, leftovers, weights_digest):
    source, out = places
    before = weights_digest(out)
    compress(source, out, param_ratio=0.5, rng=0, overwrite=True)
    assert weights_digest(out) != before
    assert verify(out) == []
    assert leftovers(out.parent) == []


@pytest.mark.usefixtures("without_exchange")
def test_a_second_rename_that_fails_is_undone(places, leftovers, weights_digest, monkeypatch):
    source, out = places
    before, rename = weights_digest(out), os.rename

    def fail(old, new):
        if os.fspath(new) == os.fspath(out) and not os.fspath(old).endswith("-old"):
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"):
        compress(source, out, param_ratio=0.5, overwrite=True)
    assert weights_digest(out) == before
    assert leftovers(out.parent) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_between_two_renames(places, leftovers, weights_digest, overwrite):
    source, out = places
    before = weights_digest(out)
    half = out.with_name(".out.tensorfact-01234567")
    half.mkdir()
    out.rename(out.with_name(half.name + "-old"))
    if overwrite:
        with pytest.raises(ZeroDivisionError):
            compress(source, out, param_ratio=0.5, overwrite=True, progress=lambda *step: 1 // 0)
    else:
        with pytest.raises(FileExistsError, match="out already exists"):
            compress(source, out, param_ratio=0.5)
    assert weights_digest(out) == before
    compress(source, out, param_ratio=0.5, overwrite=True)
    assert leftovers(out.parent) == []


def test_a_run_in_the_middle_of_its_renames_is_left_alone(places):
    _, out = places
    hidden, descriptor = _atomic.make_hidden(out)
    aside = out.with_name(hidden.name + "-old")
    out.rename(aside)
    _atomic.check_target(out, overwrite=True, source=None)
    _atomic.remove_abandoned(out)
    assert aside.is_dir()
    assert hidden.is_dir()
    os.close(descriptor)
    _atomic.check_target(out, overwrite=True, source=None)
    assert out.is_dir()


def test_only_names_of_ours_are_removed(tmp_path):
    kept = [
        ".out.tensorfact-notes",
        ".out.tensorfact-0123456",
        ".out.tensorfact-01234567-old",
        ".other.tensorfact-01234567",
    ]
    for name in (*kept, ".out.tensorfact-89abcdef"):
        (tmp_path / name).mkdir()
    _atomic.remove_abandoned(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_a_new_directory_has_its_name_only_when_it_is_locked(tmp_path, monkeypatch):
    out, lock = tmp_path / "out", _atomic.lock

    def lock_late(directory):
        monkeypatch.setattr(_atomic, "lock", lock)
        _atomic.remove_abandoned(out)  # another run for the same target, at the worst moment
        return lock(directory)

    monkeypatch.setattr(_atomic, "lock", lock_late)
    hidden, descriptor = _atomic.make_hidden(out)
    _atomic.remove_abandoned(out)
    assert hidden.is_dir()
    os.close(descriptor)
    _atomic.remove_abandoned(out)
    assert not hidden.exists()


def test_a_model_in_memory_that_was_saved_by_a_killed_run_goes(places, leftovers):
    source, out = places

    class Model:
        def save_pretrained(self, folder):
            shutil.copytree(source, folder, dirs_exist_ok=True)
            assert all(_atomic.lock(out.with_name(name)) is None for name in leftovers(out.parent))

    shutil.copytree(source, out.with_name(".out.tensorfact-01234567"))
    compress(Model(), out, param_ratio=0.5, overwrite=True)
    assert leftovers(out.parent) == []
