//! `backstop bench`: a model's speed and memory beside what this machine can do at most.

mod measure;
mod report;

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, ensure};
use backstop::ModelFiles;
use backstop::backend::LlmBackendKind;
use backstop::backend::cpu::{self, Activations, Isa, limits};
use backstop::backend::kv::KvType;
use backstop::config::LatentDims;
use backstop::engine::Runtime;
use backstop::quant::Format;
use backstop::weights::Stored;
use serde_json::{Value, json};

use super::args::{BenchArgs, ModelArgs, SessionArgs};
use super::progress::Progress;
use super::stream::print;
use super::{Loaded, Usage, child, names, ranks, summary};
use measure::{Case, Phase, Sequences};
use report::{Report, Row, Spread};

pub fn bench(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    if let Some(threads) = args.limits {
        print(&format!("{}\n", Limits::of(threads, isa(&args.model)?).json()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.prompt == 0 && args.generate == 0 {
        return Err(Usage("--prompt and --generate are 0: there is nothing to measure".to_owned()).into());
    }
    let from = names::replace(&args.model, args.path.as_deref());
    let files = super::open_as(&from)?;
    let context = context(args, files.config().max_context())?;
    let kv_type = from.kv_type.unwrap_or(files.dtype().into());
    let work = BenchWork::of(&files, from.activations, kv_type);
    drop(files);
    let threads = match &args.threads[..] {
        [] => vec![std::thread::available_parallelism().map_or(1, |n| n.get())],
        given => given.to_vec(),
    };
    if threads.len() > 1 {
        ranks::one_model("--threads with several numbers")?;
    }
    let mut report = Report::new(args, work);
    for threads in threads {
        let session = SessionArgs { ctx: Some(context), threads: Some(threads), ..SessionArgs::default() };
        let loaded = super::load(&from, &session, false)?;
        cpu::settle(Duration::from_secs(60));
        report.loaded(&loaded);
        for &depth in &args.depth {
            for &batch in &args.batch {
                let case = Case { depth, batch, prompt: args.prompt, generate: args.generate };
                let row = measured(&loaded, args, case, threads)?;
                report.rows.push(row);
            }
        }
    }
    print(&if args.json { format!("{}\n", report.json()) } else { report.table() })?;
    Ok(ExitCode::SUCCESS)
}

/// Tokens that a sequence must hold.
fn context(args: &BenchArgs, most: usize) -> anyhow::Result<usize> {
    let deepest = args.depth.iter().copied().max().unwrap_or(0);
    let context = deepest.saturating_add(args.prompt.max(args.generate));
    if context > most {
        let what = format!("--depth and --prompt or --generate ask for a context of {context} tokens");
        return Err(Usage(format!("{what}, expected at most {most}, what the model was trained for")).into());
    }
    Ok(context)
}

/// What a token needs of the machine.
#[derive(Debug, Clone)]
struct BenchWork {
    /// Bytes of weights that every step reads, in the form that the CPU's kernels have them in, but for a row of the embedding for
    /// each token.
    weight_bytes: u64,
    /// Bytes of all experts, and the part of them that a token goes to.
    experts: (u64, f64),
    /// Of each layer, the bytes that it reads of each token's keys and values, and its window.
    kv_layers: Vec<(u64, Option<usize>)>,
    /// Elements of the matrices that each token of a prompt is multiplied with: as floats, and as bytes.
    layer_elements: [u64; 2],
    /// Elements of the output head, which the last token alone is.
    head_elements: [u64; 2],
}

impl BenchWork {
    fn of(files: &ModelFiles, activations: Activations, kv_type: KvType) -> Self {
        let config = files.config();
        let (tied, mut weight_bytes, mut expert_bytes) = (config.tie_word_embeddings, 0, 0);
        let part = config.experts.map_or(1.0, |experts| experts.used as f64 / experts.count as f64);
        let (mut layer_elements, mut head_elements) = ([0; 2], [0; 2]);
        let tables = ["model.embed_tokens_per_layer", "per_layer_token_embd"];
        for tensor in files.own_tensors() {
            // Of these, too, a row for each token.
            if tables.iter().any(|name| tensor.name.starts_with(name)) {
                continue;
            }
            let embedding =
                ["model.embed_tokens", "token_embd"].iter().any(|name| tensor.name.starts_with(name));
            let head = ["lm_head", "output."].iter().any(|name| tensor.name.starts_with(name));
            // Of an embedding and a head, the one that is the head is read whole.
            if if tied { head } else { embedding } {
                continue;
            }
            let expert = is_expert(&tensor.name);
            let turned = turned(&tensor, config.latent.as_ref());
            let bytes = match ModelFiles::cpu_bytes(&tensor) {
                bytes if turned == 0 => bytes,
                bytes => bytes * (elements(&tensor) - turned) / elements(&tensor) + 4 * turned,
            };
            *(if expert { &mut expert_bytes } else { &mut weight_bytes }) += bytes;
            let integers =
                activations == Activations::Int8 && tensor.format.is_some_and(Format::has_integers);
            if tensor.shape.len() > 1 {
                let counts = if embedding || head { &mut head_elements } else { &mut layer_elements };
                let all = elements(&tensor) - turned;
                counts[usize::from(integers)] += if expert { (all as f64 * part) as u64 } else { all };
                counts[0] += turned;
            }
        }
        let (experts, kv_layers) = ((expert_bytes, part), files.kv_layers(kv_type));
        Self { weight_bytes, experts, kv_layers, layer_elements, head_elements }
    }

    /// Operations on matrices for the prompts of `case`, two for each element: on floats, and on bytes.
    fn prompt_operations(&self, case: Case) -> [f64; 2] {
        [0, 1].map(|kind| {
            2.0 * case.batch as f64
                * (case.prompt as f64 * self.layer_elements[kind] as f64 + self.head_elements[kind] as f64)
        })
    }

    /// Bytes of weights that a step of `batch` tokens reads: of experts, those that it goes to where each is as likely.
    fn step_bytes(&self, batch: usize) -> f64 {
        let (experts, part) = self.experts;
        self.weight_bytes as f64 + experts as f64 * (1.0 - (1.0 - part).powf(batch as f64))
    }

    /// Bytes of weights and of keys and values that a generated token of `case` takes, on average.
    fn token_bytes(&self, case: Case) -> (f64, f64) {
        let tokens = case.generate.max(1);
        let read = |cached: usize| -> u64 {
            let layers = self.kv_layers.iter();
            layers.map(|&(bytes, window)| bytes * window.unwrap_or(cached).min(cached) as u64).sum()
        };
        // The token's own keys and values are among them.
        let all: u64 = (1..=tokens).map(|token| read(case.depth + token)).sum();
        (self.step_bytes(case.batch) / case.batch as f64, all as f64 / tokens as f64)
    }
}

fn elements(tensor: &Stored) -> u64 {
    tensor.shape.iter().map(|&dim| dim as u64).product()
}

/// Elements that are in `f32` once loaded, though the file has them in blocks: those that make keys of latent vectors, beside those
/// that make values, and whose rows are what the file has as columns.
fn turned(tensor: &Stored, latent: Option<&LatentDims>) -> u64 {
    match latent {
        Some(latent) if tensor.format.is_some() && tensor.name.contains(".self_attn.kv_b_proj") => {
            elements(tensor) / (latent.nope_dim + latent.value_dim) as u64 * latent.nope_dim as u64
        }
        _ => 0,
    }
}

/// Whether a tensor is one of an expert: `….experts.12.up_proj.weight`.
fn is_expert(name: &str) -> bool {
    let behind = name.split_once(".experts.").map(|(_, rest)| rest);
    behind.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// What the machine can do at most, per second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes read from memory.
    pub read_bandwidth: f64,
    /// `f32` operations.
    pub fma_peak: f64,
    /// Operations on bytes.
    pub int8_peak: f64,
}

impl Limits {
    fn of(threads: usize, isa: Isa) -> Self {
        Self {
            read_bandwidth: limits::read_bandwidth(threads),
            fma_peak: limits::fma_peak(threads, isa),
            int8_peak: limits::int8_peak(threads, isa),
        }
    }

    pub fn json(self) -> Value {
        json!({ "read_bandwidth": self.read_bandwidth, "fma_peak": self.fma_peak, "int8_peak": self.int8_peak })
    }

    /// As another process of this program measures them within `most`: what it reads from memory would count as this one's.
    pub fn elsewhere(threads: usize, isa: Isa, most: Duration) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot measure this machine's limits")?;
        let mut command = Command::new(program);
        command.args(["bench", "--limits", &threads.to_string(), "--isa", isa.name()]);
        let output = child::output(command, most).context("cannot measure this machine's limits")?;
        ensure!(output.status.success(), "measuring this machine's limits failed: {}", output.status);
        let limits: Value = serde_json::from_slice(&output.stdout)?;
        let limit = |name: &str| limits[name].as_f64().with_context(|| format!("no {name} was measured"));
        Ok(Self {
            read_bandwidth: limit("read_bandwidth")?,
            fma_peak: limit("fma_peak")?,
            int8_peak: limit("int8_peak")?,
        })
    }
}

fn isa(args: &ModelArgs) -> anyhow::Result<Isa> {
    Ok(args.isa.as_deref().map(super::isa).transpose()?.unwrap_or_else(Isa::detect))
}

/// How long measuring the machine's limits may take, which takes a second or two.
const MEASURED: Duration = Duration::from_secs(120);

/// Tokens of a prompt that touches pages and fills caches, before the first that counts.
const WARM_UP: usize = 64;

/// All repetitions of one case.
fn measured(loaded: &Loaded, args: &BenchArgs, case: Case, threads: usize) -> anyhow::Result<Row> {
    let engine = loaded.model.engine();
    let Case { depth, batch, .. } = case;
    let progress = Progress::start(move || format!("measuring {batch} sequences after {depth} tokens"));
    let adapter = loaded.model.adapter().cloned();
    let mut sequences = engine.with(move |runtime| {
        let mut sequences = measure::prepare(runtime, case, adapter.as_ref())?;
        let short = Case { prompt: case.prompt.min(WARM_UP), generate: case.generate.min(1), ..case };
        measure::prompt(runtime, &mut sequences, short, false)?;
        measure::generate(runtime, &mut sequences, short, false)?;
        Ok::<_, backstop::Error>(sequences)
    })??;
    let isa = isa(&args.model)?;
    let (mut limits, mut prompts, mut generations) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.reps {
        limits.push(Limits::elsewhere(threads, isa, MEASURED)?);
        let times;
        (sequences, times) = repetition(engine, sequences, case, false)?;
        prompts.push(times.0.time.as_secs_f64());
        generations.push(times.1.time.as_secs_f64());
    }
    let peak_memory = summary::peak_memory();
    let profile = match args.profile {
        true => Some(repetition(engine, sequences, case, true)?.1),
        false => None,
    };
    drop(progress);
    let rate = |tokens: usize, times: &[f64]| {
        let tokens = (case.batch * tokens) as f64;
        (tokens > 0.0).then(|| Spread::of(times.iter().map(|time| tokens / time)))
    };
    Ok(Row {
        threads,
        device: engine.backend().to_owned(),
        load: loaded.time.as_secs_f64(),
        case,
        prompt: rate(case.prompt, &prompts),
        generation: rate(case.generate, &generations),
        first_token: (case.prompt > 0).then(|| Spread::of(prompts.iter().copied())),
        peak_memory,
        read_bandwidth: Spread::of(limits.iter().map(|limits| limits.read_bandwidth)),
        fma_peak: Spread::of(limits.iter().map(|limits| limits.fma_peak)),
        int8_peak: Spread::of(limits.iter().map(|limits| limits.int8_peak)),
        on_cpu: loaded.model.info().selection.kind == LlmBackendKind::Cpu,
        fallen_back: summary::fallen_back(engine.report()),
        profile,
    })
}

/// Prompts and generation once.
fn repetition(
    engine: &backstop::engine::Engine,
    mut sequences: Sequences,
    case: Case,
    profile: bool,
) -> anyhow::Result<(Sequences, (Phase, Phase))> {
    let phases = engine.with(move |runtime: &Runtime| {
        let prompt = measure::prompt(runtime, &mut sequences, case, profile)?;
        let generation = measure::generate(runtime, &mut sequences, case, profile)?;
        Ok::<_, backstop::Error>((sequences, (prompt, generation)))
    })??;
    Ok(phases)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use backstop::backend::ops::PANEL;
    use backstop::quant::GgmlType;

    use super::*;

    fn work(fixture: &str, kv_type: KvType) -> BenchWork {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        BenchWork::of(&ModelFiles::open(&path).unwrap(), Activations::Int8, kv_type)
    }

    /// Experts in MXFP4 beside bf16: 4, of which a token goes to 2, in each of 2 layers, of which the first has a window of 7.
    #[test]
    fn experts_in_mxfp4_and_windows_are_counted() {
        let work = work("models/gpt_oss-mxfp4", KvType::BF16);
        let (attention, biases) = (2 * 48 * 32 + 2 * 16 * 32, 48 + 2 * 16 + 32 + 3);
        let (router, norms, head) = (4 * 32, 2 * 32, 101 * 32);
        assert_eq!(work.weight_bytes, 2 * (2 * (attention + biases + router + 4 + norms) + 32 + head));
        // Panels of 16 rows of 32: 256 bytes of codes and 16 scales in bf16, in whole cache lines.
        let (gate_up, down) = (4 * 320, 2 * 320);
        assert_eq!(work.experts, (2 * 4 * (gate_up + down + 2 * (64 + 32)), 0.5));
        assert_eq!(work.step_bytes(1), work.weight_bytes as f64 + work.experts.0 as f64 / 2.0);
        assert_eq!(work.step_bytes(2), work.weight_bytes as f64 + work.experts.0 as f64 * 0.75);
        assert_eq!(work.layer_elements, [2 * (attention + router), 2 * 2 * 3 * 32 * 32]);
        assert_eq!(work.head_elements, [head, 0]);
        // 64 bytes of a token in each layer.
        assert_eq!(work.kv_layers, [(64, Some(7)), (64, None)]);
        let kv = |depth, generate| work.token_bytes(Case { depth, batch: 1, prompt: 0, generate }).1;
        assert_eq!(kv(10, 2), 64.0 * (7.0 + 11.5));
        assert_eq!(kv(5, 3), 64.0 * 41.0 / 3.0);
    }

    /// Latent attention in 2 layers, and behind a dense one 6 experts, of which a token goes to 2 and to one that all go to.
    #[test]
    fn latent_attention_and_shared_experts_are_counted() {
        let work = work("models/glm4_moe_lite-flash", KvType::F32);
        let (query, kv, output) = (12 * 24 + 28 * 12, 22 * 24 + 32 * 14, 24 * 20);
        let (dense, shared, router) = (3 * 12 * 24, 3 * 6 * 24, 6 * 24);
        let vectors = 2 * (2 * 24 + 12 + 14) + 6 + 24;
        let matrices = 2 * (query + kv + output) + dense + shared + router;
        assert_eq!(work.weight_bytes, 4 * (matrices + vectors + 73 * 24));
        assert_eq!(work.experts, (4 * 6 * shared, 2.0 / 6.0));
        assert_eq!(work.layer_elements, [matrices + 2 * shared, 0]);
        // One latent vector, and what rotates of the keys.
        assert_eq!(work.kv_layers, [(4 * (14 + 8), None); 2]);
    }

    /// A gated delta net's 2 matrices of 8 rows and 3 rows of its convolution, and behind it attention.
    #[test]
    fn states_of_fixed_size_are_counted_once() {
        let work = work("models/qwen3_5-bf16", KvType::BF16);
        let columns = 8_u64.next_multiple_of(PANEL as u64);
        let state = 4 * (3 * 48 + 2 * 8 * columns);
        assert_eq!(work.kv_layers, [(state, Some(1)), (64, None)]);
        let (_, kv) = work.token_bytes(Case { depth: 10, batch: 1, prompt: 0, generate: 1 });
        assert_eq!(kv, (state + 64 * 11) as f64);
    }

    #[test]
    fn what_makes_keys_is_in_f32_where_it_was_in_blocks() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/glm4_moe_lite-flash");
        let files = ModelFiles::open(&path).unwrap();
        let latent = files.config().latent.as_ref();
        let mut tensor = Stored {
            name: "model.layers.0.self_attn.kv_b_proj.weight".to_owned(),
            kind: "Q4_0".to_owned(),
            format: Some(Format::Ggml(GgmlType::Q4_0)),
            shape: [2 * (6 + 10), 14_usize].as_slice().into(),
            bytes: 0,
            loaded: 0,
            copied: false,
        };
        assert_eq!(turned(&tensor, latent), 2 * 6 * 14);
        assert_eq!(turned(&tensor, None), 0);
        tensor.format = None;
        assert_eq!(turned(&tensor, latent), 0);
    }
}
