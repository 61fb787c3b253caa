"""Tiny random Hugging Face checkpoints: one per family, with the traits that compression has to survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = ("llama", "qwen2", "gpt2", "bert", "vit")
VOCABULARY = 96

_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_DECODER: dict[str, Any] = {**_TEXT, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# family -> (default architecture, configuration): grouped queries, biases, Conv1D, a pooler and a convolution occur.
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**_DECODER, "num_key_value_heads": 4}),
    "qwen2": ("Qwen2ForCausalLM", {**_DECODER, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "gpt2": (
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    "bert": ("BertModel", _TEXT),
    "vit": (
        "ViTForImageClassification",
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "num_labels": 5,
        },
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {**_DECODER, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}


def tiny(
    family: str,
    directory: str | Path,
    seed: int = 0,
    *,
    architecture: str | None = None,
    dtype: str = "float32",
    max_shard_size: str | int = "50GB",
    tokenizer: bool = False,
    **config_overrides: Any,
) -> Path:
    """Write a tiny random checkpoint with `save_pretrained` and return its directory.

    Every linear weight gets singular values that decay like ``1 / i``, so that a low rank means something. The largest
    tensor has 64 x 192 entries. `architecture` names another class of the family (``"BertForMaskedLM"``), `dtype` the
    stored dtype, `tokenizer=True` adds a word-level fast tokenizer ("w1 w2 ..."; Qwen2's own class ignores it).
    """
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    default, options = _MODELS[family]
    cls = getattr(transformers, architecture or default)
    config = cls.config_class(**{**options, **config_overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, (torch.nn.Linear, Conv1D)):
                    module.weight.copy_(_with_decay(module.weight))
                    if module.bias is not None:  # zero after initialisation: a lost bias would not show
                        module.bias.normal_(std=0.1)
    directory = Path(directory)
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard_size)
    if tokenizer:
        _tokenizer().save_pretrained(directory)
    return directory


def inputs(family: str, batch: int = 2, length: int = 7) -> dict[str, Any]:
    """Keyword arguments of one forward pass (seeded, float32 pixels or int64 token ids)."""
    import torch

    generator = torch.Generator().manual_seed(7)
    if family == "vit":
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _with_decay(weight: Any) -> Any:
    """Keep the singular vectors, make the values decay like 1 / i with the norm of a layer of gain about one."""
    import torch

    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    decayed = 1.0 / torch.arange(1, len(s) + 1)
    return (u * (decayed / decayed.norm() * min(weight.shape) ** 0.5)) @ vh


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    words = {word: i for i, word in enumerate(special + [f"w{i}" for i in range(VOCABULARY - len(special))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    )
