"""A model of noise with a chat template that knows tools: what it says, only a grammar decides."""

import json
import os
import random
import shutil
import struct

FIXTURE = os.path.join(os.path.dirname(__file__), "..", "fixtures", "text", "chatml")


def make(path):
    os.makedirs(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(FIXTURE, name), path)
    with open(os.path.join(path, "tokenizer.json")) as file:
        tokenizer = json.load(file)
    vocab = 1 + max([*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])])
    end = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|im_end|>")
    shape = {"model_type": "llama", "vocab_size": vocab, "hidden_size": 32, "intermediate_size": 48}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    shape |= {"max_position_embeddings": 8192, "bos_token_id": None, "eos_token_id": end}
    with open(os.path.join(path, "config.json"), "w") as file:
        json.dump(shape, file)
    layer = "model.layers.0."
    tensors = {"model.embed_tokens": [vocab, 32], "model.norm": [32], "lm_head": [vocab, 32]}
    tensors |= {layer + "input_layernorm": [32], layer + "post_attention_layernorm": [32]}
    tensors |= {layer + "self_attn.q_proj": [32, 32], layer + "self_attn.k_proj": [16, 32]}
    tensors |= {layer + "self_attn.v_proj": [16, 32], layer + "self_attn.o_proj": [32, 32]}
    tensors |= {layer + "mlp.gate_proj": [48, 32], layer + "mlp.up_proj": [48, 32], layer + "mlp.down_proj": [32, 48]}
    header, data, draw = {}, b"", random.Random(1)
    for name, size in tensors.items():
        count = size[0] * (size[1] if len(size) > 1 else 1)
        values = struct.pack(f"<{count}f", *(draw.uniform(-0.5, 0.5) for _ in range(count)))
        header[name + ".weight"] = {"dtype": "F32", "shape": size, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(path, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
    return path
