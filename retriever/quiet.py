"""Loading and running models without what their libraries print."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, log lines below an error, and warnings off the terminal; everything is restored after."""
    import transformers
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = transformers.utils.logging
    transformers_bars, hub_bars = bars.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            bars.disable_progress_bar()
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            _restore_bars(transformers_bars, hub_bars)


def _restore_bars(transformers_bars: bool, hub_bars: bool) -> None:
    import transformers
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    if transformers_bars:
        transformers.utils.logging.enable_progress_bar()  # switches on those of the Hub as well
    if hub_bars:
        enable_progress_bars()
    else:
        disable_progress_bars()
