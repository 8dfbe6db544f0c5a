"""From demonstrations to a prompt: templates, token counting, assembly and batch requests."""

from retriever.prompting.assembler import Prompt, Skipped, assemble
from retriever.prompting.batch import BatchSettings, anthropic_batch, anthropic_id, openai_batch
from retriever.prompting.delimiters import Delimiters, delimiters_of
from retriever.prompting.template import TEMPLATES, Template, load_template
from retriever.prompting.tokens import Estimate, TokenCounter, load_counter

__all__ = [
    "TEMPLATES",
    "BatchSettings",
    "Delimiters",
    "Estimate",
    "Prompt",
    "Skipped",
    "Template",
    "TokenCounter",
    "anthropic_batch",
    "anthropic_id",
    "assemble",
    "delimiters_of",
    "load_counter",
    "load_template",
    "openai_batch",
]
