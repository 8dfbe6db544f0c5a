"""Tiny sentence-transformers models with random weights, made by the real libraries: no download, a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = [
    "my",
    "card",
    "has",
    "not",
    "arrived",
    "where",
    "is",
    "the",
    "transfer",
    "how",
    "do",
    "i",
    "change",
    "pin",
    "a",
    "refund",
    "please",
    "query",
    "passage",
    "document",
    "train",
    "to",
    "coast",
    "leaves",
    "at",
    "half",
    "past",
    "seven",
    "address",
    "on",
    "account",
    "def",
    "area",
    "radius",
    "return",
]


def tokenizer() -> Tokenizer:
    """A lower-casing WordPiece tokenizer over a few words, and over single characters for all others."""
    characters = [chr(code) for code in range(33, 127)]
    vocabulary = dict.fromkeys([*_SPECIAL, *_WORDS, *characters, *(f"##{character}" for character in characters)])
    made = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(
        ("[SEP]", made.token_to_id("[SEP]")), ("[CLS]", made.token_to_id("[CLS]"))
    )
    return made


def transformer_folder(
    folder: Path,
    *,
    seed: int = 0,
    dim: int = 32,
    out: int | None = None,
    max_length: int = 48,
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    pooling: str = "mean",
) -> Path:
    """A two-layer BERT, saved as a model folder.

    `out` adds a dense layer to that many dimensions after the pooling.
    """
    source = folder / "source"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        model_max_length=max_length,
        **{f"{name.strip('[]').lower()}_token": name for name in _SPECIAL},
    )
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * dim,
        max_position_embeddings=max_length,
    )
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = BertModel(config)
            model.save_pretrained(source)
            fast.save_pretrained(source)
            modules: list[torch.nn.Module] = [Transformer(str(source)), Pooling(dim, pooling)]
            if out is not None:
                modules.append(Dense(dim, out))
            if normalize:
                modules.append(Normalize())
        made = SentenceTransformer(
            modules=modules, device="cpu", prompts=prompts, default_prompt_name=default_prompt_name
        )
        made.save(str(folder / "model"), create_model_card=False)
    finally:
        if bars:
            logging.enable_progress_bar()
    return folder / "model"


def static_folder(folder: Path, *, seed: int = 0, dim: int = 24) -> Path:
    """A static model (the mean of token vectors), saved as a model folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = SentenceTransformer(modules=[StaticEmbedding(tokenizer(), embedding_dim=dim)], device="cpu")
    made.save(str(folder), create_model_card=False)
    return folder


def folder_with_own_code(folder: Path) -> Path:
    """A model folder whose module is Python code of its own, which would leave the file `ran` behind if it ran."""
    folder.mkdir(parents=True)
    module = {"idx": 0, "name": "0", "path": "", "type": "evil.Module"}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "config_sentence_transformers.json").write_text("{}")
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\nclass Module: pass\n")
    return folder
