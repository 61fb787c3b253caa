"""The command line: output, exit codes, one clear line for an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tensorfact.compress import Report, compress, verify
from tensorfact.compress.cli import main


@pytest.fixture
def small(write_checkpoint, tmp_path):
    source, out = write_checkpoint(), tmp_path / "small"
    compress(source, out, param_ratio=0.5, rng=0)
    return out


def test_compress_report_verify_info_and_back(write_checkpoint, tmp_path, capsys):
    source, out = write_checkpoint(), tmp_path / "out"
    command = ["compress", str(source), str(out), "--param-ratio", "0.5", "--rng", "0", "--no-compare"]
    command += [
        "--target",
        "up_proj",
        "--target",
        "down_proj",
        "--exclude",
        "re:layers.1.down",
        "--rank",
        "0.up_proj=9",
    ]
    command += ["--option", "floor=0.4", "--option", "solver=krylov", "--executor", "threads:2", "--rank-multiple", "4"]
    assert main(command) == 0
    assert "0.up_proj" in capsys.readouterr().out
    report = Report.read(out)
    assert {layer.name: layer.rank for layer in report.layers}["model.layers.0.up_proj"] == 9
    assert report.options["floor"] == 0.4
    assert report.options["solver"] == "krylov"
    assert report.options["rng"] == 0
    assert [r.name for r in report.dense if r.reason.startswith("excluded")] == ["model.layers.1.down_proj"]

    assert main(["report", str(out), "--json"]) == 0
    assert Report.from_json(capsys.readouterr().out) == report
    assert main(["report", str(out), "--html", str(tmp_path / "page.html")]) == 0
    assert "<html" in (tmp_path / "page.html").read_text()
    assert main(["report", str(out)]) == 0
    assert "param_ratio 0.5" in capsys.readouterr().out

    assert main(["verify", str(out)]) == 0
    assert "as it was written" in capsys.readouterr().out
    assert main(["info", str(out)]) == 0
    text = capsys.readouterr().out
    assert "lowrank, 3 layers" in text
    assert f"{report.targeted_after:,} of {report.targeted_before:,}" in text
    assert main(["info", str(source)]) == 0
    assert "compressed" not in capsys.readouterr().out

    assert main(["to-dense", str(out), str(tmp_path / "plain")]) == 0
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "plain"


def test_estimate_writes_nothing(write_checkpoint, tmp_path, capsys):
    source = write_checkpoint()
    before = sorted(os.listdir(tmp_path))
    assert main(["estimate", str(source), "--param-ratio", "0.4", "--json", "--allocation", "uniform"]) == 0
    assert Report.from_json(capsys.readouterr().out).dry_run
    assert main(["estimate", str(source), "--param-ratio", "0.4"]) == 0
    assert "up_proj" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == before


def test_shards(write_checkpoint, tmp_path):
    out = tmp_path / "out"
    command = ["compress", str(write_checkpoint()), str(out), "--param-ratio", "0.5", "--no-compare"]
    assert main([*command, "--max-shard-size", "20KB"]) == 0
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert main([*command, "--overwrite"]) == 0
    assert [p.name for p in out.glob("*.safetensors")] == ["model.safetensors"]


def test_verify_fails_with_one(small, capsys):
    (small / "tokenizer.json").unlink()
    assert main(["verify", str(small)]) == 1
    found = capsys.readouterr()
    assert "tokenizer.json is missing" in found.err
    assert "1 problem\n" in found.out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["info", "no/such/model"],
            "model must be a local checkpoint directory (nothing is downloaded), got 'no/such/model'",
        ),
        (["report", "no/such/model"], "path must hold a report.json, got 'no/such/model'"),
        (["verify", "no/such/model"], "path must be a directory written by tensorfact, got 'no/such/model'"),
        (["to-dense", "SOURCE", "OUT"], "must be a checkpoint written by tensorfact, got a plain one"),
        (["compress", "SOURCE", "OUT", "--param-ratio", "1.5"], "param_ratio must be in (0, 1]"),
        (
            ["compress", "SOURCE", "OUT", "--param-ratio", "0.0001"],
            "param_ratio must be at least 0.0278 for these weights",
        ),
        (["compress", "SOURCE", "SOURCE", "--param-ratio", "0.5"], "out must lie apart from the source directory"),
        (["compress", "SOURCE", "FILE", "--param-ratio", "0.5"], "out already exists (pass overwrite to replace it)"),
        (
            ["compress", "SOURCE", "OUT", "--param-ratio", "0.5", "--method", "x"],
            "method must be one of decouple, fips, lowrank",
        ),
        (
            ["compress", "SOURCE", "OUT", "--param-ratio", "0.5", "--option", "x=1"],
            "options of 'lowrank' must be among",
        ),
        (
            ["compress", "SOURCE", "OUT", "--param-ratio", "0.5", "--target", "x"],
            "target_modules must match a linear weight",
        ),
        (["compress", "SOURCE", "OUT/a/b", "--param-ratio", "0.5"], "the directory that out goes into does not exist"),
    ],
)
def test_errors_are_one_line_and_exit_two(write_checkpoint, tmp_path, capsys, command, message):
    places = {"SOURCE": str(write_checkpoint()), "OUT": str(tmp_path / "out"), "OUT/a/b": str(tmp_path / "out/a/b")}
    places["FILE"] = str(tmp_path / "file")
    (tmp_path / "file").write_text("mine")
    assert main([places.get(word, word) for word in command]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("tensorfact: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(capsys):
    assert main(["info", "no/such/model", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--rank=q_proj", "--rank=q=x", "--option=x"])
def test_malformed_words(capsys, word):
    with pytest.raises(SystemExit, match="2"):
        main(["compress", "a", "b", "--param-ratio", "0.5", word])
    assert "must look like" in capsys.readouterr().err


def test_the_program_itself(small):
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "tensorfact.compress", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert run("--version").stdout.startswith("tensorfact ")
    assert run("verify", str(small)).returncode == 0
    (small / "config.json").write_text("{}")
    assert run("verify", str(small)).returncode == 1
    failed = run("info", "no/such/model")
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


def test_neither_torch_nor_transformers_is_imported_without_need(small):
    code = (
        "import sys\nfrom tensorfact.compress.cli import main\n"
        f"assert main(['verify', {str(small)!r}]) == 0 and main(['info', {str(small)!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'numba', 'tqdm'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_does_not_hide_the_damage(small):
    (small / "tokenizer.json").unlink()
    code = f"import sys; from tensorfact.compress.cli import main; sys.exit(main(['verify', {str(small)!r}]))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(writer)
    assert done.returncode == 1
    assert "tokenizer.json is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_page_is_replaced_whole(small, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text("old")
    link = tmp_path / "link.html"
    link.symlink_to(page)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *places: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert main(["report", str(small), "--html", str(page)]) == 2
    assert page.read_text() == "old"
    assert main(["report", str(small), "--html", str(link)]) == 0
    assert link.is_symlink()
    assert "<html" in page.read_text()
    assert sorted(os.listdir(tmp_path)) == ["link.html", "page.html", "small", "source"]


def test_an_interrupt_after_the_end_says_that_the_checkpoint_is_there(write_checkpoint, tmp_path, run_python):
    code = f"""
import sys, tensorfact.compress.fidelity as fidelity
def interrupted(*arguments):
    raise KeyboardInterrupt
fidelity.evaluate = interrupted
from tensorfact.compress.cli import main
sys.exit(main(['compress', {str(write_checkpoint())!r}, {str(tmp_path / "out")!r}, '--param-ratio', '0.5']))
"""
    done = run_python(code)
    assert done.returncode == 130
    assert "interrupted, " in done.stderr
    assert "out is complete" in done.stderr
    assert "nothing was written" not in done.stderr
    assert verify(tmp_path / "out") == []
