"""Samples stories from the built-in model through transformers, as Markdown.

    python sample.py ../../assets/stories --seed 1 --temperature 0.5 --top-p 0.9
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["Once upon a time"] * 5 + ["One day, a little girl named Lily", "There was a boy who", "The little dog",
                                      "In a small house by the sea", "Once upon a time, there was a dragon"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--seed", type=int, default=1, help="of the first story; the next has the next seed")
    ap.add_argument("--temperature", type=float, default=0.5)
    ap.add_argument("--top-p", type=float, default=0.9)
    ap.add_argument("--prompt", action="append", help="instead of the ten; may be given again")
    a = ap.parse_args()
    tok = AutoTokenizer.from_pretrained(a.model)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    for i, prompt in enumerate(a.prompt or PROMPTS):
        torch.manual_seed(a.seed + i)
        ids = tok(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=a.temperature, top_p=a.top_p, top_k=0,
                             max_new_tokens=400, pad_token_id=tok.eos_token_id)[0]
        end = "" if out[-1] == tok.eos_token_id else ", cut at the limit of tokens"
        text = tok.decode(out, skip_special_tokens=True)
        print(f"### {i + 1}. “{prompt}” (seed {a.seed + i}{end})\n")
        print("\n".join("> " + line if line else ">" for line in text.split("\n")) + "\n")


if __name__ == "__main__":
    main()
