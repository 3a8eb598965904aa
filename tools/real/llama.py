"""llama.cpp v0.4.0 through ctypes: the prebuilt library that `cargo xtask real-models llama-cpp` puts under `target/real-models`.

Only what the oracle needs. The structs are those of `include/llama.h` of that release; sizes of others differ.
"""

import ctypes
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p

import numpy as np

RELEASE = "v0.4.0"


def fields(text):
    """`name:type` pairs, the types by their initial letter."""
    kinds = {"p": c_void_p, "i": c_int32, "u": c_uint32, "f": c_float, "b": c_bool, "z": c_size_t}
    return [(name, kinds[kind]) for name, kind in (word.split(":") for word in text.split())]


class ModelParams(Structure):
    _fields_ = fields(
        "devices:p overrides:p n_gpu_layers:i split_mode:i load_mode:i lazy_mode:i main_gpu:i tensor_split:p progress:p progress_data:p "
        "kv_overrides:p vocab_only:b check_tensors:b use_extra_bufts:b no_host:b no_alloc:b load_mtp:b"
    )


class ContextParams(Structure):
    _fields_ = fields(
        "n_ctx:u n_batch:u n_ubatch:u n_seq_max:u n_rs_seq:u n_outputs_max:u n_outputs_max_per_seq:u n_threads:i n_threads_batch:i "
        "ctx_type:i rope_scaling_type:i pooling_type:i attention_type:i flash_attn_type:i rope_freq_base:f rope_freq_scale:f "
        "yarn_ext_factor:f yarn_attn_factor:f yarn_beta_fast:f yarn_beta_slow:f yarn_orig_ctx:u defrag_thold:f cb_eval:p cb_eval_data:p "
        "type_k:i type_v:i abort:p abort_data:p embeddings:b offload_kqv:b no_perf:b op_offload:b swa_full:b kv_unified:b samplers:p "
        "n_samplers:z ctx_other:p"
    )


class Batch(Structure):
    _fields_ = [("n_tokens", c_int32), ("token", POINTER(c_int32)), ("embd", c_void_p), ("pos", POINTER(c_int32)),
                ("n_seq_id", POINTER(c_int32)), ("seq_id", POINTER(POINTER(c_int32))), ("logits", POINTER(c_int8))]


LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


@LOG
def silent(*_):
    pass


class Library:
    """The library in `folder`, on the CPU kernels of `cpu`: AVX2's, which give the same values on any x86-64 machine of today."""

    def __init__(self, folder, cpu="haswell"):
        base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        ggml = ctypes.CDLL(str(folder / f"libggml.{RELEASE}.so"), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(folder / f"libllama.{RELEASE}.so"))
        self.lib.llama_log_set(silent, None)
        base.ggml_log_set(silent, None)
        ggml.ggml_backend_load.restype = c_void_p
        assert ggml.ggml_backend_load(str(folder / f"libggml-cpu-{cpu}.so").encode()), f"this machine has no {cpu} instructions"
        self.lib.llama_backend_init()
        for name, result, arguments in [
            ("llama_model_default_params", ModelParams, []),
            ("llama_context_default_params", ContextParams, []),
            ("llama_model_load_from_file", c_void_p, [c_char_p, ModelParams]),
            ("llama_init_from_model", c_void_p, [c_void_p, ContextParams]),
            ("llama_model_get_vocab", c_void_p, [c_void_p]),
            ("llama_vocab_n_tokens", c_int32, [c_void_p]),
            ("llama_vocab_is_eog", c_bool, [c_void_p, c_int32]),
            ("llama_vocab_get_add_bos", c_bool, [c_void_p]),
            ("llama_vocab_bos", c_int32, [c_void_p]),
            ("llama_vocab_get_text", c_char_p, [c_void_p, c_int32]),
            ("llama_model_chat_template", c_char_p, [c_void_p, c_char_p]),
            ("llama_tokenize", c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
            ("llama_batch_init", Batch, [c_int32, c_int32, c_int32]),
            ("llama_batch_free", None, [Batch]),
            ("llama_decode", c_int32, [c_void_p, Batch]),
            ("llama_get_logits_ith", POINTER(c_float), [c_void_p, c_int32]),
            ("llama_free", None, [c_void_p]),
            ("llama_model_free", None, [c_void_p]),
        ]:
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments


class Model:
    """A GGUF file. K and V are kept in f32, attention is not fused, and weights are not repacked: what is left of rounding is
    that activations get eight bits in front of each quantized matrix."""

    def __init__(self, library, path, threads=1):
        self.lib, self.threads = library.lib, threads
        params = self.lib.llama_model_default_params()
        params.use_extra_bufts = False
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, f"llama.cpp cannot load {path}"
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.size = self.lib.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text, add=False, parse=True):
        data = text.encode()
        room = (c_int32 * (len(data) + 8))()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), room, len(room), add, parse)
        assert count >= 0, (text, count)
        return list(room[:count])

    def text(self, token):
        return self.lib.llama_vocab_get_text(self.vocab, token).decode()

    def bos(self):
        """What begins every text: one token, or none."""
        return [self.lib.llama_vocab_bos(self.vocab)] if self.lib.llama_vocab_get_add_bos(self.vocab) else []

    def template(self):
        text = self.lib.llama_model_chat_template(self.model, None)
        return text and text.decode()

    def is_end(self, token):
        return self.lib.llama_vocab_is_eog(self.vocab, token)

    def session(self, context):
        return Session(self, context)

    def free(self):
        self.lib.llama_model_free(self.model)


class Session:
    """One sequence of at most `context` tokens."""

    CHUNK = 256

    def __init__(self, model, context):
        self.lib, self.size, self.at = model.lib, model.size, 0
        params = self.lib.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = params.n_ubatch = self.CHUNK
        params.n_threads = params.n_threads_batch = model.threads
        params.flash_attn_type = 0
        params.type_k = params.type_v = 0  # GGML_TYPE_F32
        params.swa_full = True
        self.context = self.lib.llama_init_from_model(model.model, params)
        assert self.context, "llama.cpp makes no context"

    def rows(self, tokens):
        """The logits after each of `tokens`, f32 `[V]` each."""
        for start in range(0, len(tokens), self.CHUNK):
            chunk = tokens[start : start + self.CHUNK]
            batch = self.lib.llama_batch_init(len(chunk), 0, 1)
            batch.n_tokens = len(chunk)
            for i, token in enumerate(chunk):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, self.at + i, 1, 0, 1
            code = self.lib.llama_decode(self.context, batch)
            self.lib.llama_batch_free(batch)
            assert code == 0, f"llama_decode: {code}"
            self.at += len(chunk)
            for i in range(len(chunk)):
                yield np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), shape=(self.size,)).copy()

    def free(self):
        self.lib.llama_free(self.context)
