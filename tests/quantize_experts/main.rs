//! Experts that `quantize` writes: stacks that hold what each expert alone is encoded to, in models that answer as the source does
//! once its matrices are rounded alike.

mod rounded;

use std::path::{Path, PathBuf};

use backstop::backend::cpu::Activations;
use backstop::backend::kv::KvType;
use backstop::backend::select::BackendRequest;
use backstop::quant::{Format, GgmlType, Matrix, MlxFormat, MlxMode, QuantWeight, write_floats};
use backstop::quantize::{GgufType, to_gguf, to_mlx};
use backstop::tensor::DType;
use backstop::{LoadOptions, Model, ModelFiles};
use rounded::{Case, encoded, rounded, values_of, widened};
use safetensors::SafeTensors;

const AFFINE4: MlxFormat = MlxFormat { mode: MlxMode::Affine, bits: 4, group: 32 };

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Logits after each of a few tokens, computed with exact activations.
fn logits(model: &Path) -> Vec<f32> {
    let files = ModelFiles::open(model).unwrap();
    let options = LoadOptions {
        backend: BackendRequest::Cpu,
        activations: Activations::F32,
        kv_type: Some(KvType::F32),
        ..LoadOptions::default()
    };
    Model::load_with(files, options).unwrap().logits(&[3, 17, 36, 9, 31, 22]).unwrap().concat()
}

/// The root of the mean square difference, in standard deviations of `b`.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mean = b.iter().map(|&x| f64::from(x)).sum::<f64>() / b.len() as f64;
    let sum = |of: &dyn Fn(usize) -> f64| (0..b.len()).map(|i| of(i).powi(2)).sum::<f64>();
    (sum(&|i| f64::from(a[i]) - f64::from(b[i])) / sum(&|i| f64::from(b[i]) - mean)).sqrt()
}

fn mlx(model: &Path, out: &Path) -> ModelFiles {
    let mut last = (0, 1);
    let report = to_mlx(&ModelFiles::open(model).unwrap(), AFFINE4, out, &mut |done, total| {
        last = (done, total);
        true
    });
    assert!(report.unwrap().is_some_and(|report| report.quantized > 0));
    assert_eq!(last.0, last.1, "all is read");
    ModelFiles::open(out).unwrap()
}

fn gguf(model: &Path, of: GgufType, out: &Path) -> ModelFiles {
    assert!(to_gguf(&ModelFiles::open(model).unwrap(), of, out, &mut |_, _| true).unwrap().is_some());
    ModelFiles::open(out).unwrap()
}

/// The values of an expert of a directory that is not quantized, and their type: `layer` is what its name begins with, up to
/// `experts`.
fn expert(
    files: &ModelFiles,
    layer: &str,
    part: &str,
    expert: usize,
    [rows, columns]: [usize; 2],
) -> (DType, Vec<f32>) {
    let letter = match part {
        "gate_proj" => "w1",
        "up_proj" => "w3",
        _ => "w2",
    };
    for name in [part, letter] {
        let name = format!("{layer}.experts.{expert}.{name}.weight");
        if files.checkpoint.find(&name).is_some() {
            let weight = files.checkpoint.get(&name, &[rows, columns]).unwrap();
            return (weight.dtype(), weight.to_f32());
        }
    }
    let name = format!("{layer}.experts.{expert}.gate_up_proj.weight");
    let both = files.checkpoint.get(&name, &[2 * rows, columns]).unwrap();
    let first = if part == "up_proj" { rows * columns } else { 0 };
    (both.dtype(), both.to_f32()[first..][..rows * columns].to_vec())
}

/// Every family, with an expert in a tensor or all, apart or fused, in this order or another.
fn cases() -> Vec<Case> {
    let plain = |name| Case { name, eight_bits: &[], exact: &[] };
    let eight = |name, eight_bits| Case { name, eight_bits, exact: &[] };
    let exact = |name| Case { name, eight_bits: &[], exact: &["mlp.gate.weight"] };
    let granite = &["router.layer.weight", "self_attn.o_proj.weight", "lm_head.weight"];
    vec![
        plain("mixtral-bf16"),
        plain("mixtral-window"),
        plain("qwen2_moe-bf16"),
        plain("qwen2_moe-shared"),
        eight("qwen3_moe-bf16", &["mlp.gate.weight"]),
        eight("qwen3_moe-norm", &["mlp.gate.weight"]),
        eight("qwen3_moe-fused", &["mlp.gate.weight"]),
        eight("qwen3_vl_moe-text", &["mlp.gate.weight"]),
        eight("gpt_oss-bf16", &["mlp.router.weight"]),
        eight("gpt_oss-yarn", &["mlp.router.weight"]),
        plain("olmoe-norms"),
        eight("granitemoe-bf16", granite),
        eight("granitemoe-scales", granite),
        exact("glm4_moe-groups"),
        exact("dots1-window"),
        plain("ernie4_5_moe-interval"),
        eight("minimax_m2-norms", &["block_sparse_moe.gate.weight"]),
        plain("hunyuan_v1_moe-alpha"),
        eight("afmoe-gates", &["router.gate.weight"]),
    ]
}

/// The fixture of a case, or where its rows are no groups of 32, a model of its kind that is wider.
fn source(case: &Case, dir: &Path) -> PathBuf {
    match case.name {
        "afmoe-gates" | "qwen3_vl_moe-text" => widened(case.name, &[(24, 64)], dir),
        "mixtral-window" => widened(case.name, &[(32, 64), (12, 96)], dir),
        name => fixture("models").join(name),
    }
}

/// Each expert's codes, scales and biases are those of this expert alone, wherever its rows lie in the source.
#[test]
fn stacks_of_mlx_hold_each_expert() {
    let dir = tempfile::tempdir().unwrap();
    for case in cases() {
        let name = case.name;
        let from = source(&case, dir.path());
        let out = dir.path().join(format!("{name}-4"));
        mlx(&from, &out);
        let files = ModelFiles::open(&from).unwrap();
        let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut stacks, mut quantized) = (0, 0);
        for (tensor, view) in file.tensors() {
            let Some(module) = tensor.strip_suffix(".weight").filter(|_| view.shape().len() == 3) else {
                continue;
            };
            stacks += 1;
            let (stack, part) = module.rsplit_once('.').unwrap();
            // As mlx-lm has them: the families whose stacks are called otherwise are named.
            let last = match name.split('-').next() {
                Some("gpt_oss" | "dots1" | "afmoe") => ".experts",
                _ => ".switch_mlp",
            };
            let layer = stack.strip_suffix(last).unwrap_or_else(|| panic!("{name}: {tensor}"));
            let layer = layer.replace("language_model.", "");
            let scales = file.tensor(&format!("{module}.scales"));
            let (experts, rows) = (view.shape()[0], view.shape()[1]);
            let columns = match &scales {
                Ok(scales) => scales.shape()[2] * 32,
                Err(_) => view.shape()[2],
            };
            assert_eq!(Some(experts), files.config().experts.map(|experts| experts.count), "{name}");
            for e in 0..experts {
                let (dtype, values) = expert(&files, &layer, part, e, [rows, columns]);
                let Ok(scales) = &scales else {
                    assert!(!columns.is_multiple_of(32), "{name}: {tensor}");
                    let mut wanted = vec![0; values.len() * dtype.size()];
                    write_floats(dtype, &values, &mut wanted);
                    assert_eq!(
                        view.data()[e * wanted.len()..][..wanted.len()],
                        wanted,
                        "{name}: {tensor} {e}"
                    );
                    continue;
                };
                quantized += 1;
                let format = Format::Affine { bits: 4, group: 32, scales: dtype };
                let wanted = encoded(format, dtype, columns, &values);
                let biases = file.tensor(&format!("{module}.biases")).unwrap();
                for (got, wanted) in [view.data(), scales.data(), biases.data()].into_iter().zip(&wanted) {
                    assert_eq!(got.len(), experts * wanted.len(), "{name}: {tensor}");
                    assert_eq!(&got[e * wanted.len()..][..wanted.len()], wanted, "{name}: {tensor} {e}");
                }
            }
        }
        let layers = files.config().num_hidden_layers;
        assert!(stacks % 3 == 0 && (3..=3 * layers).contains(&stacks), "{name}: {stacks} stacks");
        assert!(quantized > 0, "{name}: no stack is quantized");
        assert!(file.names().iter().all(|tensor| !tensor.contains(".experts.0.")), "{name}");
    }
}

/// The model that is written answers as the source does whose matrices are rounded to the same bits where they are: names, routers,
/// biases, sinks and what is beside the experts are right, too.
#[test]
fn models_with_stacks_answer_as_their_rounded_source_does() {
    let dir = tempfile::tempdir().unwrap();
    let mixed = Case { name: "gpt_oss-mxfp4", eight_bits: &["mlp.router.weight"], exact: &[] };
    for case in cases().into_iter().chain([mixed]) {
        let name = case.name;
        let from = source(&case, dir.path());
        let (out, beside) =
            (dir.path().join(format!("{name}-4")), dir.path().join(format!("{name}-rounded")));
        mlx(&from, &out);
        rounded(&case, &from, &beside);
        let (got, wanted) = (logits(&out), logits(&beside));
        let off = apart(&got, &wanted);
        let rounding = apart(&wanted, &logits(&from));
        println!("{name}: {off:.1e} standard deviations; rounding {rounding:.1e}");
        assert!(off < 1e-3, "{name}: {off}");
        // Else the comparison would say nothing.
        assert!(rounding > 5e-3, "{name}: {rounding}");
    }
}

/// OpenAI's experts are what they were trained to be: codes and scales stay, in whatever file.
#[test]
fn experts_in_mxfp4_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let from = fixture("models/gpt_oss-limit");
    let out = dir.path().join("mlx");
    let files = mlx(&from, &out);
    let read = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    let (source, made) = (read(&from), read(&out));
    let source = SafeTensors::deserialize(&source).unwrap();
    let made = SafeTensors::deserialize(&made).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    let mut compared = 0;
    for layer in 0..files.config().num_hidden_layers {
        for (part, first, every, fused) in
            [("gate", 0, 2, "gate_up"), ("up", 1, 2, "gate_up"), ("down", 0, 1, "down")]
        {
            let module = format!("model.layers.{layer}.mlp.experts.{part}_proj");
            let named = serde_json::json!({ "group_size": 32, "bits": 4, "mode": "mxfp4" });
            assert_eq!(config["quantization"][&module], named, "{module}");
            for (leaf, stored) in [("weight", "blocks"), ("scales", "scales"), ("bias", "bias")] {
                let name = format!("model.layers.{layer}.mlp.experts.{fused}_proj_{stored}");
                let (from, got) =
                    (source.tensor(&name).unwrap(), made.tensor(&format!("{module}.{leaf}")).unwrap());
                let rows = from.shape()[0] * from.shape()[1];
                let width = from.data().len() / rows;
                let wanted: Vec<u8> =
                    (from.data().chunks_exact(width).skip(first).step_by(every)).flatten().copied().collect();
                assert_eq!(got.data(), wanted, "{module}.{leaf}");
                compared += wanted.len();
            }
        }
    }
    assert!(compared > 10_000, "{compared} bytes");

    // The `gguf` package's blocks of the same model, and the same file once more.
    let packaged = ModelFiles::open(&fixture("gguf/gpt_oss-limit.gguf")).unwrap();
    let first = dir.path().join("first.gguf");
    for (from, out) in [(&from, first.clone()), (&first, dir.path().join("second.gguf"))] {
        let files = gguf(from, GgufType::Q8_0, &out);
        let mut experts = 0;
        for info in packaged.checkpoint.tensors().filter(|info| info.name().contains(".experts.")) {
            let name = info.name();
            let got = files.checkpoint.find(name).unwrap_or_else(|| panic!("{name}"));
            let Some(module) = name.strip_suffix(".weight") else {
                let values = |files: &ModelFiles| files.checkpoint.get(name, info.shape()).unwrap().to_f32();
                assert_eq!(values(&files), values(&packaged), "{name}");
                continue;
            };
            assert_eq!(got.format(), Some(Format::Ggml(GgmlType::MXFP4)), "{name}");
            let shape = info.shape().try_into().unwrap();
            assert_eq!(blocks(&files, module, shape), blocks(&packaged, module, shape), "{name}");
            experts += 1;
        }
        assert_eq!(experts, 2 * 4 * 3);
    }
}

/// The bytes of a matrix in blocks.
fn blocks(files: &ModelFiles, module: &str, shape: [usize; 2]) -> Vec<u8> {
    match files.checkpoint.matrix(module, shape).unwrap() {
        Matrix::Quantized(weight) => weight.planes()[0].bytes().to_vec(),
        Matrix::Dense(_) => panic!("{module} is in no blocks"),
    }
}

/// Each expert's blocks are those of this expert alone, in every type; routers stay exact.
#[test]
fn stacks_of_gguf_hold_each_expert() {
    let dir = tempfile::tempdir().unwrap();
    let wide = [
        widened("mixtral-window", &[(32, 256), (12, 512)], dir.path()),
        widened("qwen3_moe-bf16", &[(32, 256)], dir.path()),
    ];
    let narrow =
        ["mixtral-bf16", "qwen2_moe-plain", "gpt_oss-pattern"].map(|name| fixture("models").join(name));
    for (model, of) in wide.iter().chain(&narrow).flat_map(|model| GgufType::ALL.map(|of| (model, of))) {
        let source = ModelFiles::open(model).unwrap();
        let name = format!("{} in {}", source.name(), of.name());
        let got = gguf(model, of, &dir.path().join(format!("{}-{}.gguf", source.name(), of.name())));
        let experts = source.config().experts.unwrap();
        let (inner, hidden) = (experts.inner, source.config().hidden_size);
        let (mut in_blocks, mut routers) = (0, 0);
        for info in got.checkpoint.tensors() {
            let tensor = info.name();
            if tensor.ends_with("gate.weight") || tensor.ends_with("router.weight") {
                let wanted = source.checkpoint.get(tensor, info.shape()).unwrap().to_f32();
                let values = got.checkpoint.get(tensor, info.shape()).unwrap();
                assert_eq!((values.dtype(), values.to_f32()), (DType::F32, wanted), "{name}: {tensor}");
                routers += 1;
            }
            let Some(module) = tensor.strip_suffix(".weight").filter(|name| name.contains(".experts."))
            else {
                continue;
            };
            let (layer, rest) = module.split_once(".experts.").unwrap();
            let (number, part) = rest.split_once('.').unwrap();
            let part = match part {
                "w1" => "gate_proj",
                "w3" => "up_proj",
                "w2" => "down_proj",
                part => part,
            };
            let shape = if part == "down_proj" { [hidden, inner] } else { [inner, hidden] };
            let (_, values) = expert(&source, layer, part, number.parse().unwrap(), shape);
            match got.checkpoint.matrix(module, shape).unwrap() {
                Matrix::Dense(weight) => {
                    assert!(of == GgufType::F16 || !shape[1].is_multiple_of(32), "{name}: {tensor}");
                    let narrow = |x: &f32| half::f16::from_f32(*x).to_f32();
                    assert_eq!(weight.dtype(), DType::F16, "{name}: {tensor}");
                    assert_eq!(
                        weight.to_f32(),
                        values.iter().map(narrow).collect::<Vec<f32>>(),
                        "{name}: {tensor}"
                    );
                }
                Matrix::Quantized(weight) => {
                    let mut bytes = vec![0; values.len() * 4];
                    write_floats(DType::F32, &values, &mut bytes);
                    let mut wanted = vec![0; weight.len_bytes()];
                    let planes = [&mut wanted[..], &mut [], &mut []];
                    assert_eq!(weight.format().encode(DType::F32, shape[1], &bytes, planes), None);
                    assert_eq!(weight.planes()[0].bytes(), wanted, "{name}: {tensor}");
                    in_blocks += 1;
                }
            }
        }
        assert!(routers > 0, "{name}");
        assert_eq!(in_blocks > 0, of != GgufType::F16, "{name}: {in_blocks} matrices in blocks");
    }
}

/// What is said of experts is what the conversion scripts of llama.cpp say of the same model.
#[test]
fn metadata_are_those_of_conversion() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["mixtral-bf16", "qwen2_moe-plain", "qwen3_moe-bf16", "gpt_oss-limit", "gpt_oss-pattern"] {
        let out = dir.path().join(format!("{name}.gguf"));
        let got = gguf(&fixture("models").join(name), GgufType::F16, &out);
        let packaged = ModelFiles::open(&fixture("gguf").join(format!("{name}.gguf"))).unwrap();
        let names = |files: &ModelFiles| -> Vec<(String, Vec<usize>)> {
            let tensors = files.checkpoint.tensors();
            tensors.map(|info| (info.name().to_owned(), info.shape().to_vec())).collect()
        };
        assert_eq!(names(&got), names(&packaged), "{name}");
        let [got, packaged] = [got, packaged].map(|files| {
            let mut config = files.config().clone();
            // Of the tokenizer, which there is none of; and of each tensor.
            (config.bos_token_id, config.eos_token_ids, config.dtype) = (None, Vec::new(), None);
            config
        });
        assert_eq!(got, packaged, "{name}");
    }
}

/// A stack without one of its experts is no stack.
#[test]
fn an_expert_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let from = fixture("models/mixtral-bf16");
    std::fs::copy(from.join("config.json"), model.join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let kept = file
        .tensors()
        .into_iter()
        .filter(|(name, _)| !name.contains("layers.1.block_sparse_moe.experts.2.w3"));
    std::fs::write(model.join("model.safetensors"), safetensors::serialize(kept, None).unwrap()).unwrap();
    let files = ModelFiles::open(&model).unwrap();
    let out = dir.path().join("out");
    let errors = [
        to_mlx(&files, AFFINE4, &out, &mut |_, _| true).map(drop),
        to_gguf(&files, GgufType::Q8_0, &out, &mut |_, _| true).map(drop),
    ];
    for error in errors {
        let error = error.unwrap_err().to_string();
        let what =
            "is a part of model.layers.1.block_sparse_moe.switch_mlp.up_proj, of which expert 2 is missing";
        assert!(error.contains(what), "{error}");
        assert!(!out.exists());
    }
}

/// What is quantized already, in stacks or expert by expert, is decoded and written in eight bits, which hold four nearly.
#[test]
fn quantized_experts_are_quantized_anew() {
    let dir = tempfile::tempdir().unwrap();
    for name in
        ["mixtral-affine4", "mixtral-gptq4-order", "mixtral-awq4", "qwen3_moe-affine4", "qwen3_moe-gptq4"]
    {
        let from = fixture("quantized").join(name);
        let out = dir.path().join(name);
        let eight = MlxFormat { bits: 8, ..AFFINE4 };
        to_mlx(&ModelFiles::open(&from).unwrap(), eight, &out, &mut |_, _| true).unwrap().unwrap();
        let off = apart(&logits(&out), &logits(&from));
        println!("{name}: {off:.1e} standard deviations");
        assert!(off < 0.1, "{name}: {off}");
    }
}

/// The values of a tensor of any type that a model computes with.
fn floats(view: &safetensors::tensor::TensorView<'_>) -> Option<(DType, Vec<f32>)> {
    let dtype = match view.dtype() {
        safetensors::Dtype::F32 => DType::F32,
        safetensors::Dtype::F16 => DType::F16,
        safetensors::Dtype::BF16 => DType::BF16,
        _ => return None,
    };
    Some((dtype, values_of(dtype, view.data())))
}

/// A matrix of the values that its planes stand for.
fn decoded(format: Format, columns: usize, planes: [Vec<u8>; 3]) -> Vec<f32> {
    let widths = format.row_bytes(columns);
    let rows = planes[0].len() / widths[0];
    let planes = planes.into_iter().take(widths.len()).map(backstop::quant::Plane::owned);
    QuantWeight::new("w", format, [rows, columns], planes).to_f32()
}
