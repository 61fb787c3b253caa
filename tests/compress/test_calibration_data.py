"""Calibration data: every kind of source becomes checked batches, and what cannot be served is named."""

from __future__ import annotations

import gzip
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from tensorfact.compress import Calibration

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from tensorfact.compress._inputs import load_dense  # noqa: E402
from tensorfact.compress.calibration import Batches, open_calibration  # noqa: E402

WORDS = [f"w{i} w{i + 1} w{i + 2} w{(3 * i) % 80}" + " w7" * (i % 5) for i in range(40)]


class Opener:
    """Loads each tiny model once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models: dict[str, tuple[Path, Any]] = {}

    def model(self, family: str) -> tuple[Path, Any]:
        if family not in self.models:
            directory = tiny_models.tiny(family, self.root / family, tokenizer=family != "vit")
            self.models[family] = directory, load_dense(directory)
        return self.models[family]

    def __call__(self, data: Any, family: str = "bert") -> Batches:
        return open_calibration(data, *self.model(family))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opener:
    return Opener(tmp_path_factory.mktemp("models"))


def lengths(batches: Batches) -> list[int]:
    masks = [batch["attention_mask"].sum(1) for batch in batches.inputs]
    return sorted(int(n) for mask in masks for n in mask)


def test_texts_become_sequences_of_an_encoder(opened: Opener) -> None:
    found = opened(WORDS)
    assert lengths(found) == sorted(len(text.split()) for text in WORDS)
    assert found.samples == 40
    assert found.positions == sum(len(text.split()) for text in WORDS)
    assert 8 <= len(found.inputs) <= 10  # enough batches that some can be held out
    for batch, mask in zip(found.inputs, found.masks, strict=True):
        assert mask is None or torch.equal(mask, batch["attention_mask"].bool())
        assert batch["attention_mask"][:, 0].all()
    assert len(opened(Calibration(WORDS, samples=7)).inputs) == 7
    assert opened(WORDS).digest() == found.digest() != opened(WORDS[:-1]).digest()


def test_a_long_text_is_cut_into_windows_of_the_context(opened: Opener) -> None:
    long = " ".join(f"w{i % 80}" for i in range(150))  # the context has 64 tokens
    found = opened([long, "w1 w2"])
    assert lengths(found) == [2, 64, 64] or lengths(found) == [2, 22, 64, 64]
    assert "longer than 64 tokens were cut" in found.notes[0]
    assert max(lengths(opened(Calibration([long], length=10)))) == 10


def test_windows_of_long_texts_come_from_all_of_them(opened: Opener) -> None:
    long = [" ".join([f"w{k}"] * 300) for k in range(4)]  # each would fill the samples alone
    found = opened(Calibration(long, samples=4))
    ids = torch.cat([batch["input_ids"].reshape(-1) for batch in found.inputs])
    words = opened([f"w{k} w{k}" for k in range(4)])
    wanted = torch.cat([batch["input_ids"].reshape(-1) for batch in words.inputs])
    assert set(wanted.tolist()) <= set(ids.tolist())


def test_line_breaks_inside_of_quotes_are_kept(opened: Opener, tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text('id,text\n1,"w1 w2\nw3 w4"\n2,w5 w6\n')
    assert lengths(opened(Calibration(file, column="text"))) == [2, 4]


def test_a_language_model_gets_full_windows(opened: Opener) -> None:
    found = opened(Calibration([" ".join(WORDS)] * 3, length=16, samples=9), "llama")
    assert lengths(found) == [16] * 9
    assert all(mask is None for mask in found.masks)
    assert opened(Calibration(WORDS, samples=100), "llama").inputs[0]["input_ids"].shape[1] == 64
    short = opened(["w1 w2 w3"], "llama")
    assert lengths(short) == [3]
    assert "less than one window of 64" in short.notes[0]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "tsv", "csv"])
@pytest.mark.parametrize("packed", ["", ".gz", ".xz"])
def test_files_give_the_same_as_their_texts(opened: Opener, tmp_path: Path, kind: str, packed: str) -> None:
    text = {
        "txt": "\n".join(WORDS),
        "jsonl": "\n".join(json.dumps({"id": i, "text": words}) for i, words in enumerate(WORDS)),
        "tsv": "\n".join(f"{i}\t{words}\tx" for i, words in enumerate(WORDS)),
        "csv": "\n".join(f'{i},"{words}",x' for i, words in enumerate(WORDS)),
    }[kind]
    file = tmp_path / f"data.{kind}{packed}"
    raw = (text + "\n").encode()
    file.write_bytes({"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[packed](raw))
    assert opened(file).digest() == opened(WORDS).digest()
    assert opened(str(file)).digest() == opened(WORDS).digest()


def test_columns_are_named_or_numbered(opened: Opener, tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("score\ta\tb\n" + "\n".join(f"1.5\t{w}\t{w} w1" for w in WORDS))
    both = opened(Calibration(file, column=["a", "b"]))
    assert both.samples == 80
    assert opened(Calibration(file, column="b")).positions == sum(len(w.split()) + 1 for w in WORDS)
    assert opened(Calibration(file, column="1,2")).samples == 82  # numbers: the first row is data
    with pytest.raises(ValueError, match=r"column must name columns .* got \['c'\]; they are score, a, b"):
        opened(Calibration(file, column="c"))
    with pytest.raises(ValueError, match="column must be below 3"):
        opened(Calibration(file, column=3))
    lines = tmp_path / "data.jsonl"
    lines.write_text(json.dumps({"body": WORDS[0], "n": 3}))
    assert opened(Calibration(lines, column="body")).samples == 1
    with pytest.raises(ValueError, match="column must name a field that holds text, got None; the fields are body, n"):
        opened(lines)


def test_tensors_tables_and_batches(opened: Opener, tmp_path: Path) -> None:
    ids = torch.arange(60).view(12, 5) + 3
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    table = opened(tmp_path / "ids.safetensors")
    assert table.samples == 12
    assert table.positions == 60
    assert torch.equal(torch.cat([batch["input_ids"] for batch in table.inputs]), ids)
    assert opened(ids).digest() == opened({"input_ids": ids}).digest() == table.digest()
    mask = torch.ones(2, 5, dtype=torch.int64)
    mask[0, 3:] = 0
    given = opened(iter([{"input_ids": ids[:2], "attention_mask": mask}, {"input_ids": ids[2:4].tolist()}]))
    assert [len(batch["input_ids"]) for batch in given.inputs] == [2, 2]
    assert given.masks[0] is not None
    assert given.masks[1] is None
    assert given.positions == 18
    assert opened(Calibration([ids[:4], ids[4:8]], samples=6)).samples == 6


def test_images_go_through_the_processor(opened: Opener, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    directory, _ = opened.model("vit")
    config = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (directory / "preprocessor_config.json").write_text(json.dumps(config))
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(10):
        image.new("RGB" if i else "L", (40 + i, 30), i * 20).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("not an image")
    found = opened(folder, "vit")
    assert found.samples == 10
    pixels = torch.cat([batch["pixel_values"] for batch in found.inputs])
    assert pixels.shape == (10, 3, 32, 32)
    means = pixels.mean(dim=(1, 2, 3))
    assert bool((means.diff() > 0).all())  # in the order of their names
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        for file in sorted(folder.iterdir(), reverse=True):
            archive.add(file, arcname=f"set/{file.name}")
    assert opened(tmp_path / "images.tar.xz", "vit").digest() == found.digest()
    assert opened(Calibration(folder, samples=3), "vit").samples == 3
    (folder / "5.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"readable images, got .*5\.png"):
        opened(folder, "vit")


@pytest.mark.parametrize(
    ("data", "family", "message"),
    [
        ([], "bert", "at least one sample, got none"),
        (["", "  "], "bert", "at least one text, got none"),
        (["w1"], "bert", "at least two tokens, got 1"),
        (["w1 w2", 3], "bert", "texts only, got int"),
        ("no such file", "bert", "existing file or folder, or a list of texts, got 'no such file'"),
        (Path("nowhere"), "bert", "existing file or folder, got 'nowhere'"),
        (3, "bert", "path, texts, a mapping of inputs, or an iterable of batches, got int"),
        ([3], "bert", "mappings or tensors, got int"),
        (Calibration(WORDS, length=65), "bert", "length must be at most the model's context of 64 tokens, got 65"),
        (["w1 w2"], "vit", "must give pixel_values for this model, got text"),
        ([{"labels": [1]}], "bert", "must give input_ids for this model, got labels"),
        ([{"input_ids": [[1, 2, 99]]}], "bert", "from 0 to 95, got 1 to 99"),
        ([{"input_ids": [[1] * 65]}], "bert", "not be longer than the model's context of 64 tokens, got 65"),
        ([{"input_ids": [[1.0, 2.0]]}], "bert", r"integers \(samples, tokens\), got torch.float32"),
        ([{"pixel_values": [[[[float("nan")]]]]}], "vit", "must be finite, got NaN or infinity in pixel_values"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1], [1, 1]]}, "bert", "one first axis"),
        ([{"input_ids": 3}], "bert", "first axis of samples"),
    ],
)
def test_bad_data_is_named(opened: Opener, data: Any, family: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(data, family)


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": None}, {"length": -1}, {"batch": 1.5}])
def test_sizes_are_checked_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} of the calibration must be an integer >= 1"):
        Calibration(WORDS, **options)


def test_damaged_and_strange_files(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    (tmp_path / "broken.txt.xz").write_bytes(b"nonsense")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "model.pdf").write_bytes(b"")
    (tmp_path / "empty.txt").write_text("\n\n")
    for name, message in {
        "broken.jsonl": "readable .jsonl file",
        "broken.txt.xz": "readable .txt file",
        "broken.safetensors": "readable safetensors file",
        "latin.txt": "readable .txt file",
        "model.pdf": "must be a .txt, .jsonl",
        "empty.txt": "at least one text",
    }.items():
        with pytest.raises(ValueError, match=message):
            opened(tmp_path / name)


def test_a_checkpoint_without_tokenizer_or_processor_says_what_to_give(tmp_path: Path) -> None:
    directory = tiny_models.tiny("bert", tmp_path / "bert")
    with pytest.raises(ValueError, match=r"must be token ids .* the tokenizer in"):
        open_calibration(WORDS, directory, load_dense(directory))
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    directory = tiny_models.tiny("vit", tmp_path / "vit")
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "one.png").rename(folder / "one.png")
    with pytest.raises(ValueError, match=r"must be pixel_values .* the image processor in"):
        open_calibration(folder, directory, load_dense(directory))
