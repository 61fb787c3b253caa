"""Texts from files, and token ids from texts. transformers is imported inside the functions."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorfact.compress._inputs import has_tokenizer, quiet_loading

__all__ = ["context_of", "read_texts", "tokenize"]

_MOST_TOKENS = 2048
_TEXT_FIELDS = ("text", "sentence", "content", "document")


def read_texts(path: Path, column: Any = None) -> list[str]:
    """Return the texts of a ``.txt``, ``.jsonl``, ``.tsv`` or ``.csv`` file, which may be packed as ``.gz`` or ``.xz``.

    Raises
    ------
    ValueError
        If the file is of another kind, cannot be read, or lacks the column.
    """
    kind = path.with_suffix("").suffix if path.suffix in (".gz", ".xz") else path.suffix
    if not path.is_file() or kind not in (".txt", ".jsonl", ".tsv", ".csv"):
        raise ValueError(
            "calibration must be a .txt, .jsonl, .tsv, .csv (or one of them as .gz or .xz) or .safetensors file, or a "
            f"folder or tar archive of images, got {str(path)!r}"
        )
    try:
        raw = path.read_bytes()
        unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix)
        text = (unpack(raw) if unpack else raw).decode("utf-8")
        if kind in (".tsv", ".csv"):
            return _table(text, "\t" if kind == ".tsv" else ",", column)
        lines = text.split("\n")  # str.splitlines also breaks at control characters inside of a line
        if kind == ".txt":
            return [line.rstrip("\r") for line in lines]
        return [part for line in lines if line.strip() for part in _fields(json.loads(line), column)]
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"calibration must be a readable {kind} file, got {str(path)!r}: {error}") from error


def _fields(item: Any, column: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    if not isinstance(item, dict):
        raise ValueError(f"calibration must have a JSON object or a text in each line, got {type(item).__name__}")
    wanted = _columns(column) or [name for name in _TEXT_FIELDS if isinstance(item.get(name), str)][:1]
    texts = [item.get(name) for name in wanted]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"column must name a field that holds text, got {column!r}; the fields are {', '.join(map(str, item))}"
        )
    return [str(text) for text in texts]


def _table(text: str, delimiter: str, column: Any) -> list[str]:
    # Tab-separated sets have no quoting as a rule, and stray quotes inside of their sentences.
    dialect = {"quoting": csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL}
    lines = io.StringIO(text, newline="")  # a quoted field may hold line breaks, and keeps them
    rows = [row for row in csv.reader(lines, delimiter=delimiter, **dialect) if row]  # type: ignore[arg-type]
    if not rows:
        return []
    names = _columns(column)
    if any(isinstance(name, str) and not name.isdecimal() for name in names):
        header, rows = rows[0], rows[1:]
        missing = [name for name in names if name not in header]
        if missing:
            raise ValueError(f"column must name columns of the table, got {missing}; they are {', '.join(header)}")
        indices = [header.index(name) for name in names]
    else:
        # Without a name, the column with most letters of the first rows: labels and numbers are short.
        width = min(map(len, rows))
        sizes = [sum(len(row[i]) for row in rows[:64]) for i in range(width)]
        indices = [int(name) for name in names] or [sizes.index(max(sizes))]
        if max(indices) >= width:
            raise ValueError(f"column must be below {width}, the width of the table, got {max(indices)}")
    return [row[i] for row in rows for i in indices if i < len(row)]


def _columns(column: Any) -> list[Any]:
    if column is None:
        return []
    return list(column) if isinstance(column, list | tuple) else str(column).split(",")


def context_of(model: Any) -> int:
    """Return the longest sequence of tokens that a model takes."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or _MOST_TOKENS
    offset = 2 if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    return max(1, int(positions) - offset)


def tokenize(
    texts: Sequence[Any], directory: Path, model: Any, *, samples: int, length: int | None
) -> tuple[list[list[int]], str, tuple[str, ...]]:
    """Return rows of token ids, what they are in words, and remarks.

    Raises
    ------
    ValueError
        If there is no text, or the checkpoint has no tokenizer that loads.
    """
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise ValueError(f"calibration must hold texts only, got {type(wrong[0]).__name__}")
    context = context_of(model)
    longest = min(context, _MOST_TOKENS) if length is None else length
    if longest > context:
        raise ValueError(f"length must be at most the model's context of {context} tokens, got {length}")
    causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    filled = list(texts) if causal else [text for text in texts if text.strip()]
    if not any(text.strip() for text in filled):
        raise ValueError("calibration must hold at least one text, got none")
    tokenizer = _tokenizer(directory)
    if causal:
        rows, notes = _windows(filled, tokenizer, longest, samples)
    else:
        rows, notes = _sequences(filled, tokenizer, longest, samples)
    if not rows or max(map(len, rows)) < 2:
        raise ValueError(f"calibration must hold at least two tokens, got {sum(map(len, rows))}")
    tokens = sum(map(len, rows))
    what = f"windows of {longest} tokens" if causal else f"sequences of up to {max(map(len, rows))} tokens"
    return rows, f"{len(rows)} {what}, {tokens} tokens", notes


def _tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        if not has_tokenizer(directory):
            raise OSError("there is none")
        with quiet_loading():
            return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a tokenizer may fail in any way of its own
        raise ValueError(
            f"calibration must be token ids (a .safetensors file or tensors): the tokenizer in {str(directory)!r} "
            f"does not load: {' '.join(str(error).split())[:200]}"
        ) from error


def _windows(texts: list[str], tokenizer: Any, length: int, samples: int) -> tuple[list[list[int]], tuple[str, ...]]:
    """Join all texts and cut windows without overlap; the rest at the end is left out."""
    with quiet_loading():  # "longer than the maximum": it is cut below
        ids = tokenizer("\n".join(texts), add_special_tokens=False)["input_ids"]
    count = len(ids) // length
    if count == 0:
        return [ids], (f"calibration: all texts together have {len(ids)} tokens, less than one window of {length}",)
    wanted = min(samples, count)
    return [ids[(i * count // wanted) * length :][:length] for i in range(wanted)], ()


def _sequences(texts: list[str], tokenizer: Any, length: int, samples: int) -> tuple[list[list[int]], tuple[str, ...]]:
    """Encode each text with its special tokens; what is longer continues in a sequence of its own."""
    wanted = min(samples, len(texts))
    picked = [texts[i * len(texts) // wanted] for i in range(wanted)]
    options: dict[str, Any] = {"truncation": True, "max_length": length}
    if getattr(tokenizer, "is_fast", False):
        options["return_overflowing_tokens"] = True
    rows: list[list[int]] = []
    for text in picked:
        found = tokenizer(text, **options)["input_ids"]
        rows += found if found and isinstance(found[0], list) else [found]
    cut = len(rows) - len(picked)
    notes = (f"calibration: texts longer than {length} tokens were cut, {cut} sequences more",) if cut else ()
    kept = min(samples, len(rows))
    rows = [rows[i * len(rows) // kept] for i in range(kept)]  # of all texts, where cutting made more than asked for
    return [list(row) for row in rows if row], notes
