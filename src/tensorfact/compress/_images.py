"""Images from a folder or a tar archive, through the image processor of a checkpoint."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorfact.compress._inputs import quiet_loading

if TYPE_CHECKING:
    import torch

__all__ = ["is_images", "read_images"]

_KINDS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz")
_AT_ONCE = 16


def is_images(path: Path) -> bool:
    """Return whether a path is a folder or a tar archive."""
    return path.is_dir() or path.name.endswith(_ARCHIVES)


def read_images(path: Path, directory: Path, samples: int) -> torch.Tensor:
    """Return up to `samples` images (images, channels, height, width), at even distances of their sorted names.

    Raises
    ------
    ValueError
        If there are no images, one cannot be read, or the checkpoint has no image processor that loads.
    """
    import torch

    process = _processor(directory)
    parts = []
    raw = _folder(path, samples) if path.is_dir() else _archive(path, samples)
    for start in range(0, len(raw), _AT_ONCE):
        images = [_decode(name, data) for name, data in raw[start : start + _AT_ONCE]]
        parts.append(process(images=images, return_tensors="pt")["pixel_values"])
    if len({part.shape[1:] for part in parts}) != 1:
        raise ValueError("calibration must give images of one size after the image processor, got several")
    return torch.cat(parts)


def _folder(path: Path, samples: int) -> list[tuple[str, bytes]]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _KINDS and file.is_file())
    return [(str(file), file.read_bytes()) for file in _some(files, samples, path)]


def _archive(path: Path, samples: int) -> list[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and Path(m.name).suffix.lower() in _KINDS]
            picked = {member.name for member in _some(sorted(members, key=lambda m: m.name), samples, path)}
            # In the order of the archive: a packed one cannot go back.
            found = [
                (m.name, stream.read()) for m in members if m.name in picked and (stream := archive.extractfile(m))
            ]
        return sorted(found)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ValueError(f"calibration must be a readable tar archive, got {str(path)!r}: {error}") from error


def _some(items: list[Any], samples: int, path: Path) -> list[Any]:
    if not items:
        raise ValueError(f"calibration must hold images ({', '.join(_KINDS)}), got none in {str(path)!r}")
    wanted = min(samples, len(items))
    return [items[i * len(items) // wanted] for i in range(wanted)]


def _decode(name: str, data: bytes) -> Any:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        raise ValueError(f"calibration must hold readable images, got {name!r}: {error}") from error


def _processor(directory: Path) -> Any:
    try:
        import transformers

        auto: Any = transformers.AutoImageProcessor
        with quiet_loading():
            return auto.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # missing packages, missing files, code of its own
        raise ValueError(
            f"calibration must be pixel_values (a .safetensors file or tensors): the image processor in "
            f"{str(directory)!r} does not load: {' '.join(str(error).split())[:200]}"
        ) from error
