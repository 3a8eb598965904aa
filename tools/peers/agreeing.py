"""Two Llama models in GGUF that write one text: a model of Llama-3.2-1B's shape in Q4_0, and a small one (SmolLM2-135M's) of its vocabulary.

    python tools/peers/agreeing.py DIRECTORY [--agree 0.8] [--vocab 32000]

Every token has one that follows it, whatever came before: the layers compute as always and add nothing (what attention and the
feed-forward give is multiplied by zeros), and the head has in the row of a token the embedding of the one before it. The small
model knows the right follower of a share of the tokens, `--agree`. Nothing repeats within a text, so that nothing can be copied.
"""

import argparse
import pathlib

import gguf
import numpy as np
from gguf.quants import quantize

SHAPES = {
    "model": dict(hidden=2048, layers=16, heads=32, kv=8, ffn=8192),
    "draft": dict(hidden=576, layers=30, heads=9, kv=3, ffn=1536),
}


def vocabulary(size):
    """Bytes, merges of what is there, two control tokens: as `cargo xtask random-model` has them."""
    tokens, more = [], 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            tokens.append(chr(byte))
        else:
            tokens.append(chr(more))
            more += 1
    merges, letters = [], list(range(0x21, 0x7F))
    while len(tokens) < size - 2:
        first, second = divmod(len(merges), len(letters))
        first = letters[first] if first < len(letters) else 256 + first - len(letters)
        merges.append(f"{tokens[first]} {tokens[letters[second]]}")
        tokens.append(tokens[first] + tokens[letters[second]])
    return [*tokens, "<|begin|>", "<|end|>"], merges


def write(path, name, shape, follower, vocab, rng):
    out = gguf.GGUFWriter(path, "llama")
    hidden, heads, kv, ffn = (shape[key] for key in ("hidden", "heads", "kv", "ffn"))
    out.add_name(name)
    out.add_context_length(8192)
    out.add_embedding_length(hidden)
    out.add_block_count(shape["layers"])
    out.add_feed_forward_length(ffn)
    out.add_head_count(heads)
    out.add_head_count_kv(kv)
    out.add_key_length(64)
    out.add_value_length(64)
    out.add_rope_dimension_count(64)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(500_000.0)
    out.add_vocab_size(vocab)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    tokens, merges = vocabulary(vocab)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("llama-bpe")
    out.add_token_list(tokens)
    out.add_token_types([3 if id >= vocab - 2 else 1 for id in range(vocab)])
    out.add_token_merges(merges)
    out.add_bos_token_id(vocab - 2)
    out.add_eos_token_id(vocab - 1)
    kinds = gguf.GGMLQuantizationType

    def matrix(name, values, kind=kinds.Q4_0):
        out.add_tensor(name, quantize(values.astype(np.float32), kind), raw_dtype=kind)

    def random(rows, columns):
        return rng.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)

    # Signs: far apart, and exact in every type.
    embeddings = np.where(rng.random((vocab, hidden)) < 0.5, -1.0, 1.0).astype(np.float32)
    head = np.empty_like(embeddings)
    head[follower] = embeddings / np.sqrt(hidden)
    # Never the end.
    head[vocab - 2 :] = 0
    matrix("token_embd.weight", embeddings, kinds.Q8_0)
    matrix("output.weight", head, kinds.Q8_0)
    out.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(shape["layers"]):
        part = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"{part}{norm}.weight", np.ones(hidden, np.float32))
        matrix(f"{part}attn_q.weight", random(heads * 64, hidden))
        matrix(f"{part}attn_k.weight", random(kv * 64, hidden))
        matrix(f"{part}attn_v.weight", random(kv * 64, hidden))
        matrix(f"{part}attn_output.weight", np.zeros((hidden, heads * 64)))
        matrix(f"{part}ffn_gate.weight", random(ffn, hidden))
        matrix(f"{part}ffn_up.weight", random(ffn, hidden))
        matrix(f"{part}ffn_down.weight", np.zeros((hidden, ffn)))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--agree", type=float, default=0.8)
    parser.add_argument("--vocab", type=int, default=32_000)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    vocab = arguments.vocab
    # One cycle of all tokens but the control ones.
    text = rng.permutation(vocab - 2)
    follower = np.arange(vocab)
    follower[text] = np.roll(text, -1)
    wrong = text[rng.random(len(text)) >= arguments.agree]
    draft = follower.copy()
    draft[wrong] = np.roll(follower[wrong], 1)
    for name, followers in (("model", follower), ("draft", draft)):
        write(arguments.directory / f"{name}.gguf", name, SHAPES[name], followers, vocab, rng)


if __name__ == "__main__":
    main()
