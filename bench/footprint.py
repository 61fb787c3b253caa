"""What the library costs to have: import time, a streamed matrix's memory, and the build.

python -m bench.footprint            # import time and streaming (needs 2 GiB of disk)
python -m bench.footprint --install  # also pip install in a clean environment (downloads, a few minutes)
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import timing

STREAM = """
import resource, sys
import numpy as np, tensorfact
a = np.memmap(sys.argv[1], dtype=np.float32, mode="r", shape=(32768, 16384))
result = tensorfact.randomized_svd(a, rank=64, rng=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, result.error, result.info.matrix_reads)
"""


def import_time(rounds: int = 15) -> dict[str, float]:
    """Median seconds of a fresh interpreter, interleaved: ours, and the two imports that it cannot do without."""
    lines = {"tensorfact": "import tensorfact", "numpy, scipy.linalg": "import numpy, scipy.linalg", "nothing": "pass"}
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(rounds):
        for name, line in lines.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", line], check=True)
            seconds[name].append(time.perf_counter() - began)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    base = found["nothing"]
    found["ratio"] = (found["tensorfact"] - base) / (found["numpy, scipy.linalg"] - base)
    return found


def streaming(folder: Path) -> dict[str, float]:
    """Peak resident MiB of a process that factorises 2 GiB of float32 on disk at rank 64."""
    import numpy as np

    path = folder / "matrix.bin"
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((32768, 80), np.float32), rng.standard_normal((80, 16384), np.float32)
    right *= (np.arange(1, 81, dtype=np.float32) ** -0.5)[:, None]
    with path.open("wb") as out:
        for lo in range(0, 32768, 2048):
            noise = rng.standard_normal((2048, 16384), np.float32)
            (left[lo : lo + 2048] @ right + noise).tofile(out)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", STREAM, str(path)], capture_output=True, text=True, check=True)
    peak, error, reads = (float(word) for word in done.stdout.split())
    return {"peak_mib": peak, "seconds": time.perf_counter() - began, "error": error, "reads": reads}


def install(folder: Path) -> dict[str, float]:
    """Seconds of ``pip install .`` with build isolation in a clean environment; a second one has warm downloads."""
    root = Path(__file__).resolve().parent.parent
    seconds = []
    for turn in range(2):
        environment = folder / f"venv{turn}"
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        began = time.perf_counter()
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", str(root)], check=True)
        seconds.append(time.perf_counter() - began)
    return {"first_seconds": seconds[0], "cached_downloads_seconds": seconds[1]}


def main() -> None:
    """Measure and write ``results/footprint.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true")
    arguments = parser.parse_args()
    result: dict[str, Any] = {**timing.load("footprint"), "environment": timing.environment()}
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        folder = Path(temporary)
        result["import"] = import_time()
        result["streaming_2_gib_rank_64"] = streaming(folder)
        if arguments.install:
            result["install"] = install(folder)
    timing.save("footprint", result)
    print(result)


if __name__ == "__main__":
    main()
