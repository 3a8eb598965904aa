//! Random weights of real shapes, as Hugging Face or MLX directories or GGUF files: for speed and memory, since no weights
//! can be downloaded everywhere. The same name and type give the same bytes.

mod directory;
mod gguf;
mod mlx;
mod shapes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use backstop::quant::write_floats;
use backstop::tensor::DType;
use backstop::weights::writers::safetensors::{Dtype, SHARD, Shards, Spec};
use backstop::weights::writers::{Output, write_through};
use clap::Parser;
use clap::builder::PossibleValuesParser;
use directory::{Content, Tensor, tensors};
use serde_json::Value;
use shapes::{Form, ModelShape, SHAPES};

/// What a model is written as.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A directory of weights in one type.
    Dense(DType),
    /// A directory as OpenAI has it: experts in MXFP4, the rest in `bf16`.
    OpenAi,
    /// A directory of MLX's, in codes of so many bits.
    Mlx(usize),
    Gguf(gguf::FileType),
}

/// Every kind, by the name that it is asked for with.
fn kinds() -> impl Iterator<Item = (&'static str, Kind)> {
    let dense = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
    let dense = dense.map(|(name, dtype)| (name, Kind::Dense(dtype)));
    let mlx = [("mlx4", 4), ("mlx8", 8)].map(|(name, bits)| (name, Kind::Mlx(bits)));
    let gguf = gguf::FileType::ALL.map(|(name, of)| (name, Kind::Gguf(of)));
    dense.into_iter().chain([("mxfp4", Kind::OpenAi)]).chain(mlx).chain(gguf)
}

/// Random weights of a real shape.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask random-model")]
struct Args {
    #[arg(value_parser = PossibleValuesParser::new(SHAPES.map(|shape| shape.name)))]
    shape: String,
    #[arg(value_name = "TYPE", value_parser = PossibleValuesParser::new(kinds().map(|(name, _)| name)))]
    kind: String,
    /// The directory or the GGUF file; nothing may be there yet
    path: PathBuf,
}

fn main() -> ExitCode {
    let Args { shape, kind, path } = Args::parse();
    let shape = SHAPES.iter().find(|known| known.name == shape);
    let kind = kinds().find(|(name, _)| *name == kind);
    let (Some(shape), Some((_, kind))) = (shape, kind) else { unreachable!("clap takes no other names") };
    match write(shape, kind, &path) {
        Ok((tensors, bytes)) => {
            eprintln!("{}: {tensors} tensors of {:.0} MB", path.display(), bytes as f64 / 1e6);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the model to `path`, where nothing may be yet; the number of its tensors, and their bytes.
fn write(shape: &ModelShape, kind: Kind, path: &Path) -> Result<(usize, u64)> {
    let open_ai = matches!(kind, Kind::OpenAi);
    ensure!(!open_ai || shape.is_gpt_oss(), "mxfp4 is of gpt-oss alone, and {} is another model", shape.name);
    let output = Output::create(path)?;
    let written = match kind {
        Kind::Gguf(of) => gguf::write(shape, of, &output.path())?,
        Kind::Dense(dtype) => dense(shape, dtype, Form::HuggingFace, &output.path())?,
        Kind::OpenAi => dense(shape, DType::BF16, Form::OpenAi, &output.path())?,
        Kind::Mlx(bits) => mlx::write(shape, bits, &output.path())?,
    };
    output.commit()?;
    Ok(written)
}

/// Makes the directory `dir` with its `config.json` and the headers of its weights.
fn begin(dir: &Path, config: &Value, specs: Vec<Spec>) -> Result<Shards> {
    std::fs::create_dir(dir)?;
    write_through(&dir.join("config.json"), format!("{config:#}\n").as_bytes())?;
    Ok(Shards::create(dir, specs, SHARD)?)
}

fn dense(shape: &ModelShape, dtype: DType, form: Form, dir: &Path) -> Result<(usize, u64)> {
    let (stored, long) = match dtype {
        DType::F32 => (Dtype::F32, "float32"),
        DType::F16 => (Dtype::F16, "float16"),
        DType::BF16 => (Dtype::BF16, "bfloat16"),
    };
    let tensors = tensors(shape, form);
    let specs = tensors.iter().map(|tensor| Spec {
        name: tensor.name.clone(),
        dtype: match tensor.content {
            Content::Codes | Content::Scales(_) => Dtype::U8,
            _ => stored,
        },
        shape: tensor.dims.as_slice().into(),
    });
    let mut shards = begin(dir, &shape.config(form, long), specs.collect())?;
    let mut random = Random::new();
    for tensor in &tensors {
        let columns = tensor.columns();
        for row in 0..tensor.dims.iter().product::<usize>() / columns {
            let bytes = row_of(tensor, dtype, &mut random);
            shards.write(&tensor.name, (row * bytes.len()) as u64, &bytes)?;
        }
    }
    let bytes = shards.total();
    shards.finish()?;
    Ok((tensors.len(), bytes))
}

/// The bytes of a row of what is in no codes but MXFP4's.
fn row_of(tensor: &Tensor, dtype: DType, random: &mut Random) -> Vec<u8> {
    let columns = tensor.columns();
    let (mean, spread) = match tensor.content {
        Content::Codes => {
            let mut bytes = vec![0; columns];
            random.fill(&mut bytes);
            return bytes;
        }
        Content::Scales(elements) => return vec![e8m0(elements); columns],
        // Rows of a product keep the size of what they multiply.
        Content::Matrix | Content::Experts => (0.0, 1.0 / (columns as f32).sqrt()),
        Content::Exact => (0.0, 1.0 / (tensor.dims[1..].iter().product::<usize>() as f32).sqrt()),
        Content::Norm => (1.0, 0.1),
        Content::Small => (0.0, 0.01),
    };
    let values: Vec<f32> = (0..columns).map(|_| mean + spread * random.unit()).collect();
    let mut bytes = vec![0; columns * dtype.size()];
    write_floats(dtype, &values, &mut bytes);
    bytes
}

/// The scale of MXFP4's random codes, with which rows of so many elements keep the size of what they multiply: a power of two.
fn e8m0(elements: usize) -> u8 {
    /// The root of the mean square of e2m1's values.
    const VALUES: f32 = 2.926;
    let scale = 1.0 / ((elements as f32).sqrt() * VALUES);
    (127.0 + scale.log2().round()) as u8
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A uniform number of mean 0 and variance 1.
    fn unit(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5) * 12.0_f32.sqrt()
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use backstop::ModelFiles;

    use super::*;

    /// The names and bytes of a file, or of a directory's files.
    fn files(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
        let paths: Vec<PathBuf> = match path.is_dir() {
            true => path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect(),
            false => vec![path.to_owned()],
        };
        paths.iter().map(|path| (path.file_name().unwrap().into(), std::fs::read(path).unwrap())).collect()
    }

    /// Whether the library may not know such a model yet.
    fn is_ahead(shape: &ModelShape, kind: Kind) -> bool {
        shape.delta.is_some() && matches!(kind, Kind::Gguf(_))
    }

    /// Each kind is read back by the library, twice gives the same bytes, and nothing is overwritten.
    #[test]
    fn what_is_written_is_a_checkpoint() {
        let tiny = SHAPES.iter().filter(|shape| shape.name.starts_with("tiny"));
        for (tiny, (name, kind)) in tiny.flat_map(|tiny| kinds().map(move |kind| (tiny, kind))) {
            let name = format!("{} as {name}", tiny.name);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("model.gguf");
            if matches!(kind, Kind::OpenAi) && !tiny.is_gpt_oss() {
                let refused = write(tiny, kind, &path).unwrap_err().to_string();
                assert!(refused.starts_with("mxfp4 is of gpt-oss alone") && !path.exists(), "{refused}");
                continue;
            }
            let written = write(tiny, kind, &path).unwrap();
            match ModelFiles::open(&path) {
                Ok(model) => {
                    if tiny.experts.is_none() && tiny.delta.is_none() {
                        assert_eq!(model.checkpoint.tensors().count(), written.0, "{name}");
                    }
                    assert_eq!(model.config().num_hidden_layers, tiny.layers, "{name}");
                    // Every weight is there.
                    let options =
                        backstop::LoadOptions { threads: Some(1), ..backstop::LoadOptions::default() };
                    let loaded = backstop::Model::load_with(model, options);
                    assert!(loaded.is_ok(), "{name}: {}", loaded.unwrap_err());
                }
                Err(error) if is_ahead(tiny, kind) => {
                    let (error, named) = (error.to_string(), ["model_type", "general.architecture"]);
                    assert!(named.iter().any(|field| error.contains(field)), "{name}: {error}");
                    eprintln!("{name}: not loaded: {error}");
                }
                Err(error) => panic!("{name}: {error}"),
            }
            let one = files(&path);
            let again = write(tiny, kind, &path).unwrap_err().to_string();
            assert!(again.contains("exists"), "{again}");
            match path.is_dir() {
                true => std::fs::remove_dir_all(&path).unwrap(),
                false => std::fs::remove_file(&path).unwrap(),
            }
            assert_eq!(write(tiny, kind, &path).unwrap(), written, "{name}");
            assert!(files(&path) == one, "{name}: other bytes");
        }
    }

    #[test]
    fn scales_of_codes_keep_the_size_of_rows() {
        // 2^-7 times 2.926 is 0.023; a row of 2880 wants 0.0186.
        assert_eq!([e8m0(32), e8m0(2880)], [123, 120]);
    }
}
