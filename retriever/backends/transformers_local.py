"""A causal language model in this process, through transformers, as a backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from retriever.backends.base import BackendSettings, messages_of, refuse_base_url, text_of
from retriever.errors import BackendError, InvalidInput
from retriever.foreign_text import one_line
from retriever.quiet import quiet

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from retriever.prompting.assembler import Form, Prompt

# Tokenizers without a limit of their own report an absurdly large one.
_NO_LIMIT = 10**9
# What is silenced belongs to the process, as do torch's random generators: one thread at a time may hold them.
_LOCK = threading.Lock()


class TransformersLocal:
    """Generates with a local model, on the first CUDA device when there is one, else on the CPU.

    A tokenizer with a chat template gets the messages, any other one `prompt.text`. Only safetensors weights are
    read and no code that comes with a model is run. Of the model's own generation settings its special tokens are
    kept and nothing else: no repetition penalty, top-k or top-p that would make `temperature` mean something else.
    Calls from several threads run one after the other, whichever model they ask.

    How the settings are honoured: `max_tokens` and `temperature` as they say (0 is greedy decoding). `seed` starts
    the sampling of every call afresh, without touching torch's global random state; with None, sampling draws from
    that state. `timeout` is checked after every token, so one step of the model can overrun it; loading is not
    counted. `retries` has no effect, because a local model fails the same way twice. `base_url` is refused.

    An answer that was cut off at `max_tokens` is returned like any other. Messages are data for the template, but a
    tokenizer may still read the spelling of a special token inside them as that token.
    """

    def __init__(self, name: str, *, settings: BackendSettings) -> None:
        """Loads the model.

        Args:
            name: A local folder, or a name on the Hugging Face Hub (downloaded unless it is in the cache or
                `HF_HUB_OFFLINE` is set).
            settings: How to generate.

        Raises:
            InvalidInput: `settings.base_url` is set.
            BackendError: The model or its tokenizer cannot be loaded.
        """
        refuse_base_url(settings, "transformers")
        self._name = name
        self._settings = settings
        with _LOCK, quiet():
            self._tokenizer, self._model = _load(name)
            self._generation = _generation_config(self._model, settings)
        self._limit = _context_length(self._model, self._tokenizer)

    @property
    def reads(self) -> Form:
        """The form of a prompt that the model gets."""
        return "messages" if self._tokenizer.chat_template else "text"

    def __repr__(self) -> str:
        return f"TransformersLocal({self._name!r}, settings={self._settings!r})"

    def __call__(self, prompt: Prompt) -> str:
        """The model's continuation of the prompt, without special tokens and otherwise as it was generated.

        Raises:
            InvalidInput: The prompt cannot be written as UTF-8.
            DelimiterCollision: The text of the prompt is asked for and cannot be had.
            BackendError: The prompt and `max_tokens` do not fit into the model's context, the chat template refuses
                the messages, the timeout passed, the model failed (as for lack of memory), or it generated nothing.
        """
        with _LOCK, quiet():
            prompt_ids = self._encode(prompt)
            self._require_room(len(prompt_ids), self._settings.max_tokens, f"max_tokens {self._settings.max_tokens}")
            answer: str = self._tokenizer.decode(
                self._generate(prompt_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        if not answer:
            raise BackendError(f"the model {self._name!r} generated no text", fix="check the prompt and the model")
        return answer

    def log_likelihood(self, prompt: Prompt, answer: str) -> float:
        """The logarithm of the probability of an answer after the prompt: the sum over its tokens, in nats.

        The answer is split into tokens by itself, as it is where it follows a chat template.

        Args:
            prompt: What comes before.
            answer: The text whose tokens are scored.

        Raises:
            InvalidInput: The answer has no token, or the prompt cannot be written as UTF-8.
            BackendError: Both do not fit into the model's context, or the model failed.
        """
        import torch

        with _LOCK, quiet():
            prompt_ids = self._encode(prompt)
            answer_ids: list[int] = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
            if not answer_ids:
                raise InvalidInput(f"the answer {answer!r}, which has no token", expected="a text to score")
            self._require_room(len(prompt_ids), len(answer_ids), f"an answer of {len(answer_ids)}")
            given = torch.tensor([prompt_ids + answer_ids], dtype=torch.long, device=self._model.device)
            try:
                with torch.inference_mode():
                    logits = self._model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0]
            except (RuntimeError, IndexError, ValueError) as error:
                raise BackendError(f"the model {self._name!r} failed: {one_line(str(error))}") from error
            # The logits at a place are of the token after it.
            logarithms = torch.log_softmax(logits[len(prompt_ids) - 1 : -1].double(), dim=-1)
            return float(logarithms.gather(1, given[0, len(prompt_ids) :, None]).sum())

    def _encode(self, prompt: Prompt) -> list[int]:
        from jinja2 import TemplateError

        if self.reads == "text":
            ids: list[int] = self._tokenizer(text_of(prompt))["input_ids"]
            return ids
        messages = messages_of(prompt)
        try:
            ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
        except TemplateError as error:
            raise BackendError(
                f"the chat template of {self._name!r} refuses the messages: {one_line(str(error))}",
                fix="if it knows no system role, move the instruction into the first user message",
            ) from error
        return ids

    def _require_room(self, prompt_tokens: int, answer_tokens: int, said: str) -> None:
        if prompt_tokens == 0:
            raise BackendError(f"a prompt without a single token of {self._name!r}", expected="at least one token")
        needed = prompt_tokens + answer_tokens
        if self._limit is not None and needed > self._limit:
            raise BackendError(
                f"a prompt of {prompt_tokens} tokens and {said} make {needed}",
                expected=f"at most {self._limit}, the context of {self._name!r}",
                fix="choose fewer demonstrations or lower max_tokens",
            )

    def _generate(self, prompt_ids: list[int]) -> list[int]:
        import torch
        from transformers import StoppingCriteriaList

        deadline = _Deadline(self._settings.timeout)
        given = torch.tensor([prompt_ids], dtype=torch.long, device=self._model.device)
        try:
            with self._randomness():
                generated = self._model.generate(
                    input_ids=given,
                    attention_mask=torch.ones_like(given),
                    generation_config=self._generation,
                    stopping_criteria=StoppingCriteriaList([deadline]),
                )
        # IndexError and ValueError come from models whose configuration and weights disagree.
        except (RuntimeError, IndexError, ValueError) as error:
            raise BackendError(f"the model {self._name!r} failed: {one_line(str(error))}") from error
        if deadline.passed:
            raise BackendError(
                f"the model {self._name!r} did not finish within {self._settings.timeout:g} s",
                fix="raise the timeout or lower max_tokens",
            )
        ids: list[int] = generated[0, len(prompt_ids) :].tolist()
        return ids

    def _randomness(self) -> AbstractContextManager[None]:
        if self._settings.temperature == 0 or self._settings.seed is None:
            return nullcontext()
        return _seeded(self._settings.seed, self._model.device)


class _Deadline:
    """A stopping criterion that ends generation when time is up, and remembers that it did."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.passed = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        import torch

        self.passed = time.monotonic() >= self._end
        return torch.full((input_ids.shape[0],), self.passed, device=input_ids.device, dtype=torch.bool)


def _load(name: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
        return tokenizer, model.to(device).eval()
    # A damaged or foreign model fails in any of the libraries below this call, each with errors of its own.
    except Exception as error:
        raise BackendError(
            f"the model {name!r} cannot be loaded: {one_line(str(error)) or type(error).__name__}",
            expected="a local folder or a Hub name of a causal language model with safetensors weights",
        ) from error


def _generation_config(model: PreTrainedModel, settings: BackendSettings) -> GenerationConfig:
    from transformers import GenerationConfig

    own = model.generation_config
    kept = {"bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id}
    if kept["pad_token_id"] is None:
        # Never used for a single prompt, but generate() picks and announces one when it is missing.
        kept["pad_token_id"] = own.eos_token_id[0] if isinstance(own.eos_token_id, list) else own.eos_token_id
    # generate() fills what is unset from the model's own settings.
    model.generation_config = GenerationConfig(**kept)
    if settings.temperature == 0:
        return GenerationConfig(max_new_tokens=settings.max_tokens, do_sample=False, **kept)
    return GenerationConfig(
        max_new_tokens=settings.max_tokens,
        do_sample=True,
        temperature=float(settings.temperature),
        top_k=0,
        top_p=1.0,
        **kept,
    )


def _context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The most positions that prompt and answer may take; None for a model without such a limit."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    limit = positions if isinstance(positions, int) else tokenizer.model_max_length
    return int(limit) if 0 < limit < _NO_LIMIT else None


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the generators that sampling draws from, and gives them back as they were."""
    import torch

    devices = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would also seed every other device, which nothing gives back.
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
