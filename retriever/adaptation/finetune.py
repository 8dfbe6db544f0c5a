"""Fine-tuning: a sentence-transformers model learns from texts, by its library's own trainer and losses.

Triplets are learned from by MultipleNegativesRankingLoss (Henderson et al. 2017), scored pairs by CoSENTLoss. On a CPU
one thread multiplies, and dropout and batches come from seeds: on one machine and with one set of versions the same
input gives the same model, whatever number of threads is set. On other devices torch promises less.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from retriever.adaptation.training import FinetuneSettings, Training
from retriever.embedders import Prompts
from retriever.embedders.base import sendable
from retriever.errors import MissingDependency
from retriever.listening import Steps
from retriever.quiet import quiet

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

EXTRA = "finetune"
_PACKAGES = ("accelerate", "datasets")


def check_packages() -> None:
    """Refuses to begin what cannot be done.

    Raises:
        MissingDependency: A package of the extra is not installed.
    """
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise MissingDependency(package, EXTRA, purpose="fine-tuning a model")


def fine_tune(
    model: SentenceTransformer,
    training: Training,
    prompts: Prompts,
    settings: FinetuneSettings,
    progress: Steps,
) -> None:
    """Trains a model in place; nothing is written that stays, and nothing is reported to anybody.

    Args:
        model: The model.
        training: What it learns from; nothing happens where that is empty.
        prompts: What is put before queries and examples, as when they are embedded.
        settings: How.
        progress: Told how many steps are done, and how many there are.

    Raises:
        MissingDependency: A package of the extra is not installed.
    """
    check_packages()
    if not training.batches:
        return
    from sentence_transformers.sentence_transformer import losses
    from transformers import PrinterCallback

    kind = losses.MultipleNegativesRankingLoss if training.scores is None else losses.CoSENTLoss
    with _isolated(settings.seed), quiet(), _no_bars(), tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(
            model, _dataset(training, prompts), kind(model), training.batches, folder, settings, progress
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()


def _dataset(training: Training, prompts: Prompts) -> Dataset:
    from datasets import Dataset

    def prefixed(texts: Sequence[str], prefix: str) -> list[str]:
        return [sendable(prefix + text) for text in texts]

    columns: dict[str, list[str] | list[float]] = {"query": prefixed(training.queries, prompts.query)}
    for number, texts in enumerate(training.examples):
        columns[f"example {number}"] = prefixed(texts, prompts.example)
    if training.scores is not None:
        columns["score"] = list(training.scores)
    return Dataset.from_dict(columns)


def _trainer(
    model: SentenceTransformer,
    dataset: Dataset,
    loss: object,
    batches: Sequence[Sequence[int]],
    folder: str,
    settings: FinetuneSettings,
    progress: Steps,
) -> SentenceTransformerTrainer:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from transformers import TrainerCallback

    class Planned(DefaultBatchSampler):  # type: ignore[misc]
        """The batches as they were planned."""

        def __iter__(self) -> Iterator[list[int]]:
            return iter(list(batch) for batch in batches)

        def __len__(self) -> int:
            return len(batches)

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: object, state: object, control: object, **others: object) -> None:
            progress(int(state.global_step), len(batches))  # type: ignore[attr-defined]

    class Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
        def add_model_card_callback(self, default_args_dict: object) -> None:
            """None: it would ask the Hub about the model."""

    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=1,  # the batches of all epochs are there
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.rate,
        warmup_steps=round(settings.warmup * len(batches)),
        batch_sampler=Planned,
        optim="adamw_torch",
        seed=settings.seed,
        use_cpu=model.device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[Told()])


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Seeds, one thread and deterministic algorithms; afterwards everything is as it was."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  what the trainer seeds
    threads = torch.get_num_threads()
    strict, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with torch.random.fork_rng():
        try:
            torch.manual_seed(seed)
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=only_warns)
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _no_bars() -> Iterator[None]:
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()
