//! What running a model takes of memory on each backend, from headers alone.

use super::{LoadOptions, ModelFiles};
use crate::backend::LlmBackendKind;
use crate::backend::cpu::kernels::quant::PackedMatrix;
use crate::backend::kv::{KvType, MLX_GROWTH};
use crate::backend::ops::StateSpec;
use crate::backend::select::MemoryNeed;
use crate::engine::EngineOptions;
use crate::forward::{FIRST, Split};
use crate::tensor::DType;
use crate::weights::Stored;

/// The context that a model gets where memory is scarce, or the machine does not say how much it has.
pub const LEAST_CONTEXT: usize = 4096;

/// What a need of memory depends on beside the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySetting {
    /// Where the model runs.
    pub backend: LlmBackendKind,
    /// Tokens of context.
    pub context: usize,
    /// What K and V are kept in.
    pub kv_type: KvType,
    /// The type of activations on MLX; the CPU's are `f32`.
    pub dtype: DType,
    /// Most tokens of one sequence in one step.
    pub prefill_chunk: usize,
    /// Whether a layer of its own guesses further tokens, where it has one.
    pub ahead: bool,
}

impl ModelFiles {
    /// How `options` would have the model run on `backend`.
    pub fn memory_setting(&self, backend: LlmBackendKind, options: &LoadOptions) -> MemorySetting {
        let dtype = self.dtype();
        MemorySetting {
            backend,
            context: options.context.unwrap_or_else(|| self.config().max_context().min(LEAST_CONTEXT)),
            kv_type: options.kv_type.unwrap_or(dtype.into()),
            dtype: options.dtype.unwrap_or(dtype),
            prefill_chunk: options.prefill_chunk.unwrap_or(EngineOptions::default().prefill_chunk),
            ahead: options.by_own_layer(backend),
        }
    }

    /// Bytes that running the model takes: weights in the form that they will have, and what a step makes on its way.
    pub fn memory_need(&self, setting: MemorySetting) -> MemoryNeed {
        MemoryNeed {
            weights: self.weight_memory(setting),
            kv: self.context_memory(setting),
            activations: self.step_memory(setting),
        }
    }

    /// Tokens of context where nobody said: what the model was trained for, as far as its keys and values fit into `memory`
    /// beside the weights, and into `options.kv_memory`; at least [`LEAST_CONTEXT`], where it was trained for that.
    pub fn fitting_context(
        &self,
        backend: LlmBackendKind,
        options: &LoadOptions,
        memory: Option<u64>,
    ) -> usize {
        let trained = self.config().max_context();
        let least = trained.min(LEAST_CONTEXT);
        let weights = self.weight_memory(self.memory_setting(backend, options));
        let fits = |context: usize| {
            let setting = MemorySetting { context, ..self.memory_setting(backend, options) };
            let (kv, activations) = (self.context_memory(setting), self.step_memory(setting));
            let need = MemoryNeed { weights, kv, activations };
            memory.is_some_and(|memory| need.total() <= memory)
                && options.kv_memory.is_none_or(|budget| need.kv <= budget)
        };
        // Whole steps of the cache's growth: the first that does not fit lies above `low`, and at or below `high`.
        let (mut low, mut high) = (least / MLX_GROWTH, trained / MLX_GROWTH + 1);
        while low + 1 < high {
            let middle = low.midpoint(high);
            if fits(middle * MLX_GROWTH) { low = middle } else { high = middle }
        }
        let last = low * MLX_GROWTH;
        if fits(trained) { trained } else { last.clamp(least, trained) }
    }

    fn weight_memory(&self, setting: MemorySetting) -> u64 {
        let list = self.architecture.weights();
        let bytes = |tensor: &Stored| match setting.backend {
            LlmBackendKind::Cpu => on_cpu(tensor),
            // A table stays where its file has it.
            LlmBackendKind::Mlx if list.is_of_table(&tensor.name) => 0,
            LlmBackendKind::Mlx => on_mlx(tensor, setting.dtype),
        };
        let ranks = self.architecture.rank().of() as u64;
        let of_rank = |tensor: &Stored| match list.of_tensor(&tensor.name) {
            Some(module) => match list.split_of(&module.name).filter(|_| ranks > 1) {
                None => bytes(tensor),
                // Columns that are no bytes of the file are copied, and stay beside what the backend makes of them.
                Some(Split::Columns) if tensor.format.is_none() => 2 * bytes(tensor).div_ceil(ranks),
                Some(_) => bytes(tensor).div_ceil(ranks),
            },
            _ => bytes(tensor),
        };
        // What the forward pass has no use for stays in its file.
        let alone = self.is_layer_ahead();
        let mut tensors = if setting.ahead || alone { self.used_tensors() } else { self.own_tensors() };
        let ahead = self.architecture.ahead().filter(|_| setting.ahead || alone);
        if let Some(ahead) = ahead.as_ref().filter(|_| alone) {
            tensors.retain(|tensor| ahead.list.of_tensor(&tensor.name).is_some());
        }
        let own = tensors.iter().map(of_rank).fold(0, u64::saturating_add);
        // The layer has a part of the model's head once more, in blocks.
        let head = tensors.iter().find(|tensor| tensor.format.is_some() && self.is_head(tensor)).map(bytes);
        let vocabulary = (self.config().vocab_size as u64).max(1);
        let part = |head: u64| head / vocabulary * (FIRST as u64).min(vocabulary);
        own.saturating_add(head.filter(|_| ahead.is_some()).map_or(0, part))
    }

    /// Whether a tensor is the head, or the embedding that is it.
    fn is_head(&self, tensor: &Stored) -> bool {
        tensor.name
            == if self.config().tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// Those of [`tensors`](Self::tensors) that the forward pass has a use for: without the part that sees pictures, say.
    pub fn used_tensors(&self) -> Vec<Stored> {
        let list = self.architecture.weights();
        let mut tensors = self.tensors();
        tensors.retain(|tensor| list.of_tensor(&tensor.name).is_some());
        tensors
    }

    /// Those of them that every token is computed with: without those of a layer that guesses further tokens.
    pub fn own_tensors(&self) -> Vec<Stored> {
        let mut tensors = self.used_tensors();
        if let Some(ahead) = self.architecture.ahead() {
            tensors.retain(|tensor| ahead.list.of_tensor(&tensor.name).is_none());
        }
        tensors
    }

    /// Whether a layer behind its last guesses the token after the next.
    pub fn guesses_ahead(&self) -> bool {
        self.architecture.ahead().is_some()
    }

    /// For each layer the bytes that it reads of each token's K and V, and how many tokens it reads at most, where it has a window. A
    /// state of fixed size is as one token's.
    pub fn kv_layers(&self, kind: KvType) -> Vec<(u64, Option<usize>)> {
        let states = self.architecture.states();
        let read = |state: &StateSpec| {
            let own = match *state {
                StateSpec::SharedWith(other) => states.get(other).unwrap_or(state),
                _ => state,
            };
            let bytes = own.token_bytes(kind, LlmBackendKind::Cpu);
            match *own {
                StateSpec::Kv { window, .. } => (bytes, window),
                StateSpec::Recurrent(shape) => (shape.bytes_on(LlmBackendKind::Cpu), Some(1)),
                StateSpec::Latent { .. } | StateSpec::SharedWith(_) => (bytes, None),
            }
        };
        states.iter().map(read).collect()
    }

    /// Bytes that layers keep of a sequence on `backend` however long it is: recurrent states, also those before the last step.
    pub fn recurrent_bytes(&self, backend: LlmBackendKind) -> u64 {
        let states = self.architecture.states();
        let recurrent = states.iter().filter(|state| matches!(state, StateSpec::Recurrent(_)));
        recurrent.map(|state| state.bytes(0, 0, KvType::F32, backend)).fold(0, u64::saturating_add)
    }

    /// Bytes of a tensor in the form in which the CPU's kernels read it.
    pub fn cpu_bytes(tensor: &Stored) -> u64 {
        on_cpu(tensor)
    }

    fn context_memory(&self, setting: MemorySetting) -> u64 {
        let MemorySetting { backend, context, kv_type, prefill_chunk, .. } = setting;
        let alone = self.is_layer_ahead();
        let mut states = if alone { Vec::new() } else { self.architecture.states() };
        let ahead = self.architecture.ahead().filter(|_| alone || setting.ahead);
        states.extend(ahead.into_iter().flat_map(|ahead| ahead.states));
        let bytes = states.iter().map(|state| state.bytes(context, prefill_chunk, kv_type, backend));
        bytes.fold(0, u64::saturating_add)
    }

    fn step_memory(&self, setting: MemorySetting) -> u64 {
        let config = self.config();
        let most = EngineOptions::default().step_tokens;
        let rows = match config.bidirectional {
            // A text is computed whole, however long.
            true => most.max(setting.context),
            false => most.min(setting.context.max(1)),
        } as u64;
        // Queries and what attention gives, of latent attention.
        let latent = config.latent.map_or(0, |of| config.num_attention_heads * (2 * of.rank + of.rope_dim));
        let heads = config.most_heads();
        let attention = |state: &StateSpec| match *state {
            StateSpec::Kv { heads: of_kv, k_dim, v_dim, .. } => (heads + of_kv) * (k_dim + v_dim),
            StateSpec::Latent { .. } => 2 * (heads + config.num_key_value_heads) * config.head_dim,
            // A recurrent layer's own is below.
            StateSpec::Recurrent(_) | StateSpec::SharedWith(_) => 0,
        };
        let attention = self.architecture.states().iter().map(attention).max().unwrap_or(0);
        // Live at once: the residual stream, its norm, Q, K, V, the attention's output, and the feed-forward's three.
        let width = 4 * config.hidden_size
            + attention
            + 3 * config.intermediate_size
            + 3 * config.mixer_width
            + latent
            + self.architecture.more_activations();
        // Of each expert that a row goes to: its row, gate and up, and what it gives.
        let experts = config.experts.map_or(0, |of| of.used * (2 * of.inner + 2 * config.hidden_size));
        let activations = 4 * (rows * (width + experts) as u64 + 2 * config.vocab_size as u64);
        match setting.backend {
            LlmBackendKind::Cpu => activations,
            LlmBackendKind::Mlx => activations
                .saturating_add(self.attention_memory(setting))
                .saturating_add(self.widened(setting)),
        }
    }

    /// Masks of a chunk, and its scores `[H, T, S]` in `f32` where a GPU has no kernel that keeps them to itself. A node that
    /// makes scores of others holds both.
    ///
    /// MLX's CPU device has no such kernel at all; what it takes more is not counted, since `auto` never takes it.
    fn attention_memory(&self, setting: MemorySetting) -> u64 {
        /// Widths of heads that every version of MLX has a kernel of chunks for.
        const FUSED: [usize; 3] = [64, 80, 128];
        let config = self.config();
        let context = setting.context as u64;
        // A text whose tokens see those behind them is one chunk.
        let chunk = if config.bidirectional { context } else { (setting.prefill_chunk as u64).min(context) };
        let pairs = chunk.saturating_mul(context);
        let mut windows = config.windows.clone();
        windows.sort_unstable();
        windows.dedup();
        let masks = pairs.saturating_mul(windows.len().max(1) as u64);
        let other =
            |state: &StateSpec| matches!(state, StateSpec::Kv { k_dim, .. } if !FUSED.contains(k_dim));
        let composed = config.attn_logit_softcapping.is_some()
            || setting.kv_type.bits().is_some()
            || config.latent.is_some()
            || self.architecture.states().iter().any(other);
        let scores = if composed { 2 * 4 * config.most_heads() as u64 } else { 0 };
        masks.saturating_add(pairs.saturating_mul(scores))
    }

    /// The largest matrix in `f32`: MLX widens a half matrix for each product with activations of another type.
    fn widened(&self, setting: MemorySetting) -> u64 {
        let list = self.architecture.weights();
        let others = self.checkpoint.tensors().filter(|tensor| {
            tensor.shape().len() == 2
                && !list.is_of_table(tensor.name())
                && tensor.dtype().is_some_and(|dtype| dtype != DType::F32 && dtype != setting.dtype)
        });
        let elements = |bytes: usize| (bytes / DType::F16.size()) as u64;
        others.map(|tensor| elements(tensor.bytes()).saturating_mul(4)).max().unwrap_or(0)
    }
}

/// Rows and columns of a matrix in blocks that holds anything.
fn matrix(tensor: &Stored) -> Option<[usize; 2]> {
    tensor.shape.as_slice().try_into().ok().filter(|[rows, columns]: &[usize; 2]| *rows > 0 && *columns > 0)
}

/// Dense weights stay in their file; blocks are packed for the kernels.
fn on_cpu(tensor: &Stored) -> u64 {
    match (tensor.format, matrix(tensor)) {
        (Some(format), Some(shape)) if PackedMatrix::supports(format) => {
            PackedMatrix::bytes_of(format, shape) as u64
        }
        _ => tensor.loaded,
    }
}

/// Every weight is uploaded; blocks that MLX has no kernel for in a form that it has one for. What it has no form for stays
/// with the CPU.
fn on_mlx(tensor: &Stored, dtype: DType) -> u64 {
    let kept = tensor.format.zip(matrix(tensor)).and_then(|(format, [rows, columns])| {
        let kept = format.kept_on_mlx(columns, dtype == DType::F16)?;
        let row = kept.row_bytes(columns).iter().map(|&bytes| bytes as u64).sum::<u64>();
        Some(row.saturating_mul(rows as u64))
    });
    let copy = if tensor.copied { tensor.loaded } else { 0 };
    kept.unwrap_or(tensor.loaded).saturating_add(copy)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engine::Drafts;

    fn files(name: &str) -> ModelFiles {
        ModelFiles::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
    }

    fn need(files: &ModelFiles, backend: LlmBackendKind, options: LoadOptions) -> MemoryNeed {
        files.memory_need(files.memory_setting(backend, &options))
    }

    /// A layer that guesses is counted where it is loaded: on the CPU unless drafts are off, and on MLX where they are asked for.
    #[test]
    fn a_layer_ahead_is_counted_where_it_is_loaded() {
        let files = files("ahead/qwen3_5-nested");
        let of = |backend, drafts| need(&files, backend, LoadOptions { drafts, ..LoadOptions::default() });
        let mut layer = files.used_tensors();
        layer.retain(|tensor| tensor.name.starts_with("mtp."));
        let of_cpu: u64 = layer.iter().map(on_cpu).sum();
        // What is reordered is copied there.
        let of_mlx: u64 = layer.iter().map(|tensor| on_mlx(tensor, DType::F32)).sum();
        let [cpu, off] = [Drafts::Auto, Drafts::Off].map(|drafts| of(LlmBackendKind::Cpu, drafts));
        assert!(of_cpu > 0 && cpu.weights == off.weights + of_cpu && cpu.kv > off.kv, "{cpu} {off}");
        let [on, auto, off] =
            [Drafts::On, Drafts::Auto, Drafts::Off].map(|drafts| of(LlmBackendKind::Mlx, drafts));
        assert!(auto == off && on.weights == off.weights + of_mlx && on.kv > off.kv, "{on} {off}");
    }

    #[test]
    fn blocks_count_in_the_form_that_each_backend_has_them_in() {
        let files = files("quantized/llama-affine4");
        let [cpu, mlx] =
            [LlmBackendKind::Cpu, LlmBackendKind::Mlx].map(|kind| need(&files, kind, LoadOptions::default()));
        // MLX has them as the file does; the CPU in panels of 16 rows, whole cache lines each.
        assert_eq!(mlx.weights, files.checkpoint.total_bytes());
        assert!(cpu.weights >= mlx.weights && cpu.weights < mlx.weights * 5 / 4, "{cpu} {mlx}");
    }

    #[test]
    fn a_table_of_which_rows_are_looked_up_is_never_uploaded() {
        let files = files("models/gemma4-shared");
        let [cpu, mlx] = [LlmBackendKind::Cpu, LlmBackendKind::Mlx]
            .map(|kind| need(&files, kind, LoadOptions::default()).weights);
        let table = files.checkpoint.find("model.embed_tokens_per_layer.weight").unwrap();
        assert_eq!(cpu - mlx, table.bytes() as u64);
    }

    #[test]
    fn the_context_is_what_memory_allows() {
        let mut files = files("models/llama-bf16");
        files.architecture.config_mut().max_position_embeddings = 40_000;
        let options = LoadOptions::default();
        let need = |context: usize| {
            let options = LoadOptions { context: Some(context), ..LoadOptions::default() };
            need(&files, LlmBackendKind::Cpu, options).total()
        };
        let fitting = |memory: Option<u64>| files.fitting_context(LlmBackendKind::Cpu, &options, memory);
        assert_eq!(fitting(Some(need(40_000))), 40_000);
        assert_eq!(fitting(Some(need(40_000) - 1)), 40_000 / MLX_GROWTH * MLX_GROWTH);
        assert_eq!(fitting(Some(need(9 * 1024))), 9 * 1024);
        assert_eq!(fitting(Some(need(9 * 1024) - 1)), 9 * 1024 - MLX_GROWTH);
        assert_eq!((fitting(Some(1)), fitting(None)), (LEAST_CONTEXT, LEAST_CONTEXT));
        let budget = LoadOptions { kv_memory: Some(files.kv_token_bytes(KvType::BF16) * 5000), ..options };
        let within = files.fitting_context(LlmBackendKind::Cpu, &budget, Some(u64::MAX));
        assert_eq!(within, 5000 / MLX_GROWTH * MLX_GROWTH);
        files.architecture.config_mut().max_position_embeddings = 100;
        assert_eq!(files.fitting_context(LlmBackendKind::Cpu, &LoadOptions::default(), None), 100);
    }

    #[test]
    fn scores_count_where_mlx_composes_attention() {
        let files = files("models/gemma2-caps");
        let config = files.config();
        let (heads, windows) = (config.num_attention_heads as u64, 2);
        let at = |context: usize, backend: LlmBackendKind, kv_type: Option<KvType>| {
            let options = LoadOptions {
                context: Some(context),
                kv_type,
                prefill_chunk: Some(8),
                ..LoadOptions::default()
            };
            need(&files, backend, options).activations
        };
        let [cpu, mlx] = [LlmBackendKind::Cpu, LlmBackendKind::Mlx].map(|kind| at(32, kind, None));
        assert_eq!(mlx - cpu, 8 * 32 * (windows + 8 * heads));
        // Their number is that of the chunk's tokens times the keys.
        assert_eq!(
            at(64, LlmBackendKind::Mlx, Some(KvType::Q8)) - at(64, LlmBackendKind::Cpu, None),
            8 * 64 * (windows + 8 * heads)
        );
    }

    #[test]
    fn texts_of_encoders_count_whole() {
        let files = files("encoders/bert-mean");
        let heads = files.config().num_attention_heads as u64;
        let options = LoadOptions { context: Some(400), prefill_chunk: Some(8), ..LoadOptions::default() };
        let [cpu, mlx] = [LlmBackendKind::Cpu, LlmBackendKind::Mlx]
            .map(|kind| files.memory_need(files.memory_setting(kind, &options)).activations);
        assert_eq!(mlx - cpu, 400 * 400 * (1 + 8 * heads));
    }

    #[test]
    fn weights_of_another_type_than_the_activations_are_widened_one_by_one() {
        let files = files("models/llama-bf16");
        let of = |dtype: Option<DType>| {
            need(&files, LlmBackendKind::Mlx, LoadOptions { dtype, ..LoadOptions::default() }).activations
        };
        let largest = files.checkpoint.tensors().filter(|tensor| tensor.shape().len() == 2);
        let largest = largest.map(|tensor| tensor.bytes() as u64).max().unwrap();
        assert_eq!(of(Some(DType::F32)) - of(None), 2 * largest);
        assert_eq!(of(Some(DType::BF16)), of(None));
    }
}
