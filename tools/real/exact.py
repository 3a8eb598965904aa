"""Logits without rounding: transformers with the weights of a GGUF file in f32."""

import torch
from transformers import AutoModelForCausalLM


def pairs(path, chats):
    """For each step of each chat, the logits of the two tokens that `top` names."""
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()
    for chat in chats:
        with torch.no_grad():
            rows = model(torch.tensor([chat["prompt"] + chat["ids"][:-1]])).logits[0, len(chat["prompt"]) - 1:]
        yield [(row[step[0]].item(), row[step[2]].item()) for row, step in zip(rows, chat["top"], strict=True)]
