"""Trains the built-in model: tokenizer and a small Llama on the stories of stories.py, on the CPU.

    python train.py --out ../../assets/stories

Needs torch, tokenizers, safetensors, and transformers for the last check. The same seed gives the same corpus and
order of batches; the stop is by steps, so a slow machine trains as long as a fast one, only later.
"""

import argparse
import json
import math
import os
import random
import tempfile
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import stories
from model import Config, Llama

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
# A turn is a document of the corpus by itself: a request or the beginning of a story.
CHAT = "{{ bos_token + messages[-1]['content'] }}"


def train_tokenizer(texts, vocab_size):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)])
    for text in ("Once upon a time", "naïve café — “quotes”\n\tтекст 中文 🦊\u0000\x7f", "  two  spaces ", ""):
        ids = tok.encode(text).ids
        assert ids[0] == BOS_ID and tok.decode(ids) == text, (text, tok.decode(ids))
    return tok


def rows(docs, length, rng):
    """Packs whole stories, each with BOS and EOS, into rows that begin with a story; the row's end cuts the last one."""
    order = list(range(len(docs)))
    rng.shuffle(order)
    row = []
    for i in order:
        row += docs[i]
        if len(row) >= length + 1:
            yield row[: length + 1]
            row = []


@torch.no_grad()
def held_out_loss(model, docs, texts):
    """Every held-out story alone, from its BOS to its EOS. Returns nats per token and per byte of text."""
    nats, tokens = 0.0, 0
    docs = sorted(docs, key=len)
    for i in range(0, len(docs), 32):
        part = docs[i: i + 32]
        x = torch.full((len(part), len(part[-1])), EOS_ID)
        y = torch.full_like(x, -100)
        for r, d in enumerate(part):
            x[r, : len(d)] = torch.tensor(d)
            y[r, : len(d) - 1] = torch.tensor(d[1:])
        nats += F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum").item()
        tokens += int((y >= 0).sum())
    return nats / tokens, nats / sum(len(t.encode()) for t in texts)


def save(model, cfg, tok, out):
    os.makedirs(out, exist_ok=True)
    weights = {}
    for name, p in model.named_parameters():
        weights["model." + name] = p.detach().to(torch.bfloat16).contiguous()
    save_file(weights, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "vocab_size": cfg.vocab_size, "hidden_size": cfg.hidden_size, "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_hidden_layers, "num_attention_heads": cfg.num_attention_heads,
        "num_key_value_heads": cfg.num_key_value_heads, "head_dim": cfg.head_dim,
        "max_position_embeddings": cfg.max_position_embeddings, "rope_theta": cfg.rope_theta, "rope_scaling": None,
        "rms_norm_eps": cfg.rms_norm_eps, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": True, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "use_cache": True,
    }
    generation = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "do_sample": True, "temperature": 0.5, "top_p": 0.9,
                  "max_new_tokens": 400}
    tok_config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "add_bos_token": True,
                  "add_eos_token": False, "clean_up_tokenization_spaces": False, "model_max_length": cfg.max_position_embeddings,
                  "chat_template": CHAT}
    for name, data in (("config", config), ("generation_config", generation), ("tokenizer_config", tok_config)):
        with open(os.path.join(out, name + ".json"), "w", encoding="utf-8") as f:
            f.write(json.dumps(data, indent=2) + "\n")
    tok.save(os.path.join(out, "tokenizer.json"), pretty=False)


def check_with_transformers(model, out):
    """The directory must load in transformers and give the logits of the model above."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tok = AutoTokenizer.from_pretrained(out)
    text = "Once upon a time, there was a little fox named Pip. He could not sleep."
    ids = tok(text, return_tensors="pt").input_ids
    assert ids[0, 0] == BOS_ID and tok.decode(ids[0], skip_special_tokens=True) == text
    with torch.no_grad():
        diff = (hf(ids).logits - model(ids)).abs().max().item()
    assert diff < 1e-3, diff
    return diff


class Muon:
    """Momentum whose steps are made orthogonal, for the matrices of the layers (Jordan et al. 2024): five Newton-Schulz
    iterations on the Nesterov momentum, with the quintic's published coefficients."""

    def __init__(self, params, momentum=0.95, decay=0.05):
        self.params, self.momentum, self.decay = params, momentum, decay
        self.buffers = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, lr):
        for p, buffer in zip(self.params, self.buffers):
            buffer.lerp_(p.grad, 1 - self.momentum)
            x = p.grad.lerp(buffer, self.momentum)
            wide = x if x.shape[0] <= x.shape[1] else x.T
            wide = wide / (wide.norm() + 1e-7)
            for _ in range(5):
                gram = wide @ wide.T
                wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
            x = wide if x.shape[0] <= x.shape[1] else wide.T
            p.mul_(1 - lr * self.decay).add_(x, alpha=-lr * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def fit(rank, a, cfg, docs, out):
    """One of --workers equal processes: each takes its share of every batch, and gradients are averaged. Two processes
    of one thread keep going on a shared machine, where the threads of one process would wait for each other."""
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    dist.init_process_group("gloo", init_method=f"file://{out}.rendezvous", rank=rank, world_size=a.workers)
    model = Llama(cfg)
    params = list(model.parameters())
    embedding = model.embed_tokens.weight
    opt = torch.optim.AdamW([{"params": [embedding], "weight_decay": 0.1},
                             {"params": [p for p in params if p.dim() == 1], "weight_decay": 0.0}], lr=a.lr, betas=(0.9, 0.95))
    muon = Muon([p for p in params if p.dim() > 1 and p is not embedding])
    rng = random.Random(a.seed)

    def batches():
        while True:
            part = []
            for row in rows(docs, a.length, rng):
                part.append(row)
                if len(part) == a.batch:
                    yield torch.tensor(part[rank:: a.workers])
                    part = []

    source, start, mean = batches(), time.time(), None
    for step in range(a.steps):
        part = min(1.0, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / a.steps)))
        for g in opt.param_groups:
            g["lr"] = a.lr * part
        b = next(source)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(b[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), b[:, 1:].flatten())
        opt.zero_grad(set_to_none=True)
        loss.backward()
        flat = torch.cat([p.grad.flatten() for p in params])
        dist.all_reduce(flat)
        flat /= a.workers
        for p, g in zip(params, flat.split([p.numel() for p in params])):
            p.grad = g.view_as(p)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        muon.step(a.muon_lr * part)
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if rank == 0 and step % 50 == 49:
            print(f"step {step + 1} loss {mean:.4f} {time.time() - start:.0f} s", flush=True)
    if rank == 0:
        torch.save(model.state_dict(), out + ".state")
    dist.destroy_process_group()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True)
    ap.add_argument("--seed", type=int, default=7)
    ap.add_argument("--stories", type=int, default=40000)
    ap.add_argument("--vocab", type=int, default=1024)
    ap.add_argument("--layers", type=int, default=6)
    ap.add_argument("--ffn", type=int, default=384)
    ap.add_argument("--steps", type=int, default=2000)
    ap.add_argument("--batch", type=int, default=8, help="rows of --length tokens")
    ap.add_argument("--length", type=int, default=512)
    ap.add_argument("--lr", type=float, default=4e-3, help="of the embedding and the norms (AdamW)")
    ap.add_argument("--muon-lr", type=float, default=0.02, help="of the other matrices (Muon)")
    ap.add_argument("--workers", type=int, default=2, help="processes of one thread; must divide --batch")
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    began = time.time()

    train, held = stories.corpus(a.seed, a.stories)
    tok = train_tokenizer(train[:10000], a.vocab)
    encode = lambda texts: [e.ids + [EOS_ID] for e in tok.encode_batch(texts)]
    train_docs, held_docs = encode(train), encode(held)
    cfg = Config(vocab_size=tok.get_vocab_size(), num_hidden_layers=a.layers, intermediate_size=a.ffn)
    model = Llama(cfg).eval()
    count = sum(p.numel() for p in model.parameters())
    print(f"{len(train)} training stories, {sum(map(len, train_docs))} tokens, longest {max(map(len, train_docs))}; {len(held)} held out")
    print(f"{count} parameters, {2 * count} bytes; corpus ready after {time.time() - began:.0f} s", flush=True)

    start = time.time()
    with tempfile.TemporaryDirectory() as tmp:
        state = os.path.join(tmp, "model")
        torch.multiprocessing.spawn(fit, (a, cfg, train_docs, state), nprocs=a.workers)
        model.load_state_dict(torch.load(state + ".state"))
    minutes = (time.time() - start) / 60

    per_token, per_byte = held_out_loss(model, held_docs, held)
    print(f"held-out, f32 weights: {per_token:.4f} nats/token, {per_byte:.4f} nats/byte")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16).float())
    per_token, per_byte = held_out_loss(model, held_docs, held)
    print(f"held-out, bf16 weights: {per_token:.4f} nats/token, {per_byte:.4f} nats/byte")
    save(model, cfg, tok, a.out)
    print(f"largest difference from the logits of transformers: {check_with_transformers(model, a.out):.2e}")
    print(f"training {minutes:.1f} min, all {(time.time() - began) / 60:.1f} min, {a.workers} processes of one thread")


if __name__ == "__main__":
    main()
