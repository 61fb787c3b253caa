"""stories260K, a Llama of 260,032 parameters that tells children's stories: its file as a checkpoint, its tokens."""

from __future__ import annotations

import itertools
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BOS = 1
_HEADER = struct.Struct("7i")
_BYTES_FROM = 3  # tokens of single bytes follow <unk>, <s> and </s>


@dataclass(frozen=True, slots=True)
class Sizes:
    """The head of the file: widths, layers, heads, tokens and context."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int


def read(file: Path) -> tuple[Sizes, dict[str, npt.NDArray[np.float32]]]:
    """Sizes and arrays of a llama2.c file (version 0), by the names of its source; one leading axis for the layers."""
    raw = file.read_bytes()
    sizes = Sizes(*_HEADER.unpack_from(raw))
    flat = np.frombuffer(raw, np.float32, offset=_HEADER.size)
    d, h, layers = sizes.width, sizes.hidden, sizes.layers
    narrow = sizes.kv_heads * (d // sizes.heads)
    shapes = {
        "tokens": (sizes.vocabulary, d),
        "attention_norm": (layers, d),
        "wq": (layers, d, d),
        "wk": (layers, narrow, d),
        "wv": (layers, narrow, d),
        "wo": (layers, d, d),
        "mlp_norm": (layers, d),
        "w1": (layers, h, d),
        "w2": (layers, d, h),
        "w3": (layers, h, d),
        "norm": (d,),
    }
    arrays, at = {}, 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        arrays[name] = flat[at : at + count].reshape(shape)
        at += count
    return sizes, arrays


def _halves(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows in the order of transformers, which turns entry i with i + n/2; the file turns 2 i with 2 i + 1."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def convert(file: Path, folder: Path) -> Path:
    """Write the model as a `LlamaForCausalLM` checkpoint of float32 safetensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes, arrays = read(file)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=2,
    )
    state = {"model.embed_tokens.weight": arrays["tokens"], "model.norm.weight": arrays["norm"]}
    state["lm_head.weight"] = arrays["tokens"]
    for i in range(sizes.layers):
        own = {
            "input_layernorm": arrays["attention_norm"][i],
            "post_attention_layernorm": arrays["mlp_norm"][i],
            "self_attn.q_proj": _halves(arrays["wq"][i], sizes.heads),
            "self_attn.k_proj": _halves(arrays["wk"][i], sizes.kv_heads),
            "self_attn.v_proj": arrays["wv"][i],
            "self_attn.o_proj": arrays["wo"][i],
            "mlp.gate_proj": arrays["w1"][i],
            "mlp.down_proj": arrays["w2"][i],
            "mlp.up_proj": arrays["w3"][i],
        }
        state |= {f"model.layers.{i}.{name}.weight": values for name, values in own.items()}
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in state.items()})
    model.save_pretrained(folder)
    return folder


class Vocabulary:
    """The pieces of tok512.bin: byte-pair merges by score, single bytes where no piece fits."""

    def __init__(self, file: Path) -> None:
        raw = file.read_bytes()
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        at = 4
        while at < len(raw):
            score, length = struct.unpack_from("fi", raw, at)
            self.pieces.append(raw[at + 8 : at + 8 + length])
            self.scores.append(score)
            at += 8 + length
        self._ids = {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}
        self._words: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without a mark for its begin. No piece has a space inside, so words merge on their own."""
        ids: list[int] = []
        for word in re.findall(r" ?[^ ]+| ", f" {text}"):
            if word not in self._words:
                self._words[word] = self.merged(word)
            ids += self._words[word]
        return ids

    def merged(self, text: str) -> list[int]:
        """Characters of a text, the adjacent pair of the best score merged again and again."""
        ids: list[int] = []
        for character in text:
            raw = character.encode()
            found = self._ids.get(raw)
            ids += [byte + _BYTES_FROM for byte in raw] if found is None else [found]
        while True:
            pairs = [self._ids.get(self.pieces[a] + self.pieces[b]) for a, b in itertools.pairwise(ids)]
            known = [(-self.scores[new], at) for at, new in enumerate(pairs) if new is not None]
            if not known:
                return ids
            at = min(known)[1]
            new = pairs[at]
            assert new is not None
            ids[at : at + 2] = [new]

    def decode(self, ids: list[int]) -> str:
        """Text of ids; marks of a begin are left out."""
        parts = [
            bytes([i - _BYTES_FROM]) if _BYTES_FROM <= i < _BYTES_FROM + 256 else self.pieces[i]
            for i in ids
            if i >= _BYTES_FROM
        ]
        return b"".join(parts).decode("utf-8", "replace")


@torch.inference_mode()
def tell(model: Any, count: int, length: int, *, seed: int) -> Tensor:
    """Token ids (count, length) that the model samples from its own distribution, story after story.

    Each position is drawn from the softmax as it is; the draws depend on the seed alone.
    """
    rng = torch.Generator().manual_seed(seed)
    ids = torch.full((count, length), BOS)
    cache = None
    for at in range(1, length):
        out = model(input_ids=ids[:, at - 1 : at], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        ids[:, at] = torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=rng)[:, 0]
    return ids
