"""Two Llama models in GGUF that write one text: a model of Llama-3.2-1B's shape in Q4_0, and a small one (SmolLM2-135M's) of its vocabulary;
with --ahead in their place one of Qwen3.5-0.8B's shape, with the layer that guesses the token after the next.

    python tools/peers/agreeing.py DIRECTORY [--agree 0.8] [--vocab 32000] [--ahead NOISE]

Every token has one that follows it, whatever came before: the layers compute as always and add nothing (what attention and the
feed-forward give is multiplied by zeros), and the head has in the row of a token the embedding of the one before it. The small
model knows the right follower of a share of the tokens, `--agree`. Nothing repeats within a text, so that nothing can be copied.
The layer ahead reads the embedding of a token, which is all that it needs, and as much as `--ahead` says of noise made of the token before.
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


def put_vocabulary(out, vocab, pre):
    out.add_vocab_size(vocab)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    tokens, merges = vocabulary(vocab)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types([3 if id >= vocab - 2 else 1 for id in range(vocab)])
    out.add_token_merges(merges)
    out.add_eos_token_id(vocab - 1)


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
    put_vocabulary(out, vocab, "llama-bpe")
    out.add_bos_token_id(vocab - 2)
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


def write_ahead(path, text, vocab, noise, rng):
    """Qwen3.5-0.8B's shape: 24 layers, every fourth with attention, and one more that guesses further tokens."""
    hidden, layers, heads, kv, width, ffn, inner, dim = 1024, 24, 8, 2, 256, 3584, 2048, 128
    out = gguf.GGUFWriter(path, "qwen35")
    out.add_name("ahead")
    out.add_context_length(8192)
    out.add_embedding_length(hidden)
    out.add_block_count(layers + 1)
    out.add_nextn_predict_layers(1)
    out.add_feed_forward_length(ffn)
    out.add_head_count(heads)
    out.add_head_count_kv(kv)
    out.add_key_length(width)
    out.add_value_length(width)
    out.add_rope_dimension_count(width // 4)
    out.add_rope_dimension_sections([11, 11, 10, 0])
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_freq_base(1e7)
    out.add_ssm_conv_kernel(4)
    out.add_ssm_state_size(dim)
    out.add_ssm_group_count(inner // dim)
    out.add_ssm_time_step_rank(inner // dim)
    out.add_ssm_inner_size(inner)
    out.add_uint32("qwen35.full_attention_interval", 4)
    put_vocabulary(out, vocab, "qwen2")
    kinds = gguf.GGMLQuantizationType

    def matrix(name, values, kind=kinds.Q4_0):
        out.add_tensor(f"{name}.weight", quantize(values.astype(np.float32), kind), raw_dtype=kind)

    def random(rows, columns):
        return rng.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)

    def vector(name, values):
        out.add_tensor(name, np.asarray(values, np.float32))

    embeddings = np.where(rng.random((vocab, hidden)) < 0.5, -1.0, 1.0).astype(np.float32)
    head = np.zeros_like(embeddings)
    head[np.roll(text, -1)] = embeddings[text] / np.sqrt(hidden)
    matrix("token_embd", embeddings)
    matrix("output", head)
    vector("output_norm.weight", np.ones(hidden))
    for layer in range(layers + 1):
        part = f"blk.{layer}."
        for norm in ("attn_norm", "post_attention_norm"):
            vector(f"{part}{norm}.weight", np.ones(hidden))
        if (layer + 1) % 4 == 0 or layer == layers:
            matrix(f"{part}attn_q", random(2 * heads * width, hidden))
            matrix(f"{part}attn_k", random(kv * width, hidden))
            matrix(f"{part}attn_v", random(kv * width, hidden))
            matrix(f"{part}attn_output", np.zeros((hidden, heads * width)))
            vector(f"{part}attn_q_norm.weight", np.ones(width))
            vector(f"{part}attn_k_norm.weight", np.ones(width))
        else:
            matrix(f"{part}attn_qkv", random(3 * inner, hidden))
            matrix(f"{part}attn_gate", random(inner, hidden))
            matrix(f"{part}ssm_alpha", random(inner // dim, hidden), kinds.F32)
            matrix(f"{part}ssm_beta", random(inner // dim, hidden), kinds.F32)
            vector(f"{part}ssm_conv1d.weight", random(3 * inner, 4))
            vector(f"{part}ssm_dt.bias", rng.standard_normal(inner // dim))
            vector(f"{part}ssm_a", -np.exp(rng.standard_normal(inner // dim)))
            vector(f"{part}ssm_norm.weight", np.ones(dim))
            matrix(f"{part}ssm_out", np.zeros((hidden, inner)))
        matrix(f"{part}ffn_gate", random(ffn, hidden))
        matrix(f"{part}ffn_up", random(ffn, hidden))
        matrix(f"{part}ffn_down", np.zeros((hidden, ffn)))
    part = f"blk.{layers}.nextn."
    matrix(f"{part}eh_proj", np.concatenate((np.eye(hidden), noise * random(hidden, hidden)), 1), kinds.Q8_0)
    for norm in ("enorm", "hnorm", "shared_head_norm"):
        vector(f"{part}{norm}.weight", np.ones(hidden))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--agree", type=float, default=0.8)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--ahead", type=float, metavar="NOISE")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    vocab = arguments.vocab
    # One cycle of all tokens but the control ones.
    text = rng.permutation(vocab - 2)
    follower = np.arange(vocab)
    follower[text] = np.roll(text, -1)
    if arguments.ahead is not None:
        # As in English, 94 % of the text are among the first 32,768 tokens.
        common, rare = (rng.choice(np.arange(*ends), count, False) for ends, count in [((0, 32_768), 30_080), ((32_768, vocab - 2), 1_920)])
        text = rng.permutation(np.concatenate((common, rare)))
        return write_ahead(arguments.directory / "ahead.gguf", text, vocab, arguments.ahead, rng)
    wrong = text[rng.random(len(text)) >= arguments.agree]
    draft = follower.copy()
    draft[wrong] = np.roll(follower[wrong], 1)
    for name, followers in (("model", follower), ("draft", draft)):
        write(arguments.directory / f"{name}.gguf", name, SHAPES[name], followers, vocab, rng)


if __name__ == "__main__":
    main()
