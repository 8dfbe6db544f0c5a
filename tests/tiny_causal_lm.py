"""A causal language model of a few kilobytes whose every answer can be written down beforehand.

It is a real Llama with its attention and feed-forward outputs set to zero, one-hot embeddings and a head that maps
every word to a successor: after the word `a` comes `successors["a"]`, whatever stood before, and after a word without
a successor comes the end of the text. With d words, a normalised one-hot has length sqrt(d), so that the successor's
logit is `CERTAINTY * sqrt(d)` and every other logit is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CERTAINTY = 5.0
CONTEXT = 64
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ("<pad>", "<unk>", "</s>", "<system>", "<user>", "<assistant>")


def save_causal_lm(folder: Path, successors: Mapping[str, str], *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Writes the model and its tokenizer, which splits at white space, to a folder; returns the folder."""
    import torch
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = list(dict.fromkeys([*SPECIAL, *successors.keys(), *successors.values()]))
    words += [f"<unused{i}>" for i in range(len(words) % 2)]  # rotary embeddings need an even width
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=CONTEXT
    )
    wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)

    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=len(words),
        intermediate_size=4,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(words)))
        model.lm_head.weight.zero_()
        for word in words:
            model.lm_head.weight[ids[successors.get(word, "</s>")], ids[word]] = CERTAINTY
    model.save_pretrained(folder)
    return folder
