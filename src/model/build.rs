//! A runtime of opened files: the backend, and the weights in the form that it has them in.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::{LoadOptions, ModelFiles};
use crate::backend::cpu::CpuBackend;
use crate::backend::cpu::pool::Pool;
use crate::backend::kv::KvType;
use crate::backend::ops::{Backend, MatrixOperand};
use crate::backend::{LlmBackendDispatch, LlmBackendKind, PreparedMatrix, Routing};
use crate::config::Config;
use crate::engine::{Company, Runtime};
use crate::error::{Error, Result};
use crate::forward::Loaded;
use crate::tensor::DType;
use crate::weights::Access;

/// The threads of the CPU kernels.
pub(super) fn pool(options: &LoadOptions) -> Arc<Pool> {
    match &options.machine {
        Some(machine) => machine.pool(),
        None => Arc::new(options.threads.map_or_else(Pool::per_core, Pool::new)),
    }
}

/// The type of activations on `backend`.
pub(super) fn activation_dtype(files: &ModelFiles, options: &LoadOptions, backend: LlmBackendKind) -> DType {
    match backend {
        LlmBackendKind::Cpu => DType::F32,
        LlmBackendKind::Mlx => options.dtype.unwrap_or_else(|| files.dtype()),
    }
}

/// The model of `files` on `backend`, in the thread that will run it.
pub(super) fn runtime(
    files: &ModelFiles,
    options: &LoadOptions,
    backend: LlmBackendKind,
    pool: &Arc<Pool>,
) -> Result<Runtime> {
    let cpu = CpuBackend::on(Arc::clone(pool), options.isa).with_activations(options.activations);
    let routing = Routing::new(options.policy, options.faults.clone()).with_cpu_ops(&options.cpu_ops);
    let dtype = activation_dtype(files, options, backend);
    let dispatch = LlmBackendDispatch::of(backend, dtype, cpu, routing)?;
    // What is mapped is read when it is brought into its form.
    let reads = files.checkpoint.access() == Access::Read;
    if reads {
        options.progress.expect(files.checkpoint.total_bytes());
    }
    let with_ahead = options.by_own_layer(backend);
    let ranks = options.ranks.filter(|ranks| !ranks.rank.is_alone());
    let company = ranks.map(|ranks| Company::join(&dispatch, ranks)).transpose()?;
    let loaded = files.architecture.load(&files.checkpoint, &dispatch, with_ahead)?;
    let Loaded { forward, ahead, mut linears, places } = loaded;
    files.checkpoint.advise_willneed();
    // The largest first: beside it there is little in memory yet, while it is there in both forms.
    linears.sort_by_key(|matrix| std::cmp::Reverse(matrix.shape().iter().product::<usize>()));
    let bytes = |matrix: &PreparedMatrix| if reads { 0 } else { matrix.source().len_bytes() as u64 };
    options.progress.expect(linears.iter().map(bytes).sum());
    for matrix in &linears {
        dispatch.ready(matrix)?;
        options.progress.came(bytes(matrix));
    }
    files.checkpoint.check()?;
    let kv_type = options.kv_type.unwrap_or(files.dtype().into());
    let config = Arc::new(files.config().clone());
    let runtime = Runtime::new(config, forward, dispatch, kv_type)?
        .watched(files.checkpoint.watch())
        .with_places(places);
    let runtime = match company {
        Some(company) => {
            company.check_model(runtime.dispatch(), fingerprint(files, (dtype, kv_type))?)?;
            runtime.among(company)
        }
        None => runtime,
    };
    match ahead {
        Some(ahead) => runtime.with_ahead(ahead, kv_type, files.checkpoint.watch()),
        None => Ok(runtime),
    }
}

/// What ranks that compute a model together must have alike: the version, the configuration, the tensors with some bytes of each, and
/// the types of activations, K and V.
fn fingerprint(files: &ModelFiles, types: (DType, KvType)) -> Result<u64> {
    /// Bytes at three places of a tensor.
    const SOME: usize = 64;
    let mut tensors = Vec::new();
    // What is not mapped would be read once more.
    let mapped = files.checkpoint.access() == Access::Map;
    for info in files.checkpoint.tensors() {
        if !mapped {
            tensors.push((
                info.name().to_owned(),
                info.dtype_name().to_string(),
                info.shape().to_vec(),
                [const { Vec::new() }; 3],
            ));
            continue;
        }
        let plane = files.checkpoint.plane(info)?;
        let bytes = plane.bytes();
        let places = [0, bytes.len() / 2, bytes.len().saturating_sub(SOME)];
        let some = places.map(|from| bytes[from..bytes.len().min(from + SOME)].to_vec());
        tensors.push((info.name().to_owned(), info.dtype_name().to_string(), info.shape().to_vec(), some));
    }
    tensors.sort();
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), format!("{:?}", files.config()), tensors).hash(&mut hasher);
    (types.0.to_string(), types.1.to_string()).hash(&mut hasher);
    Ok(hasher.finish())
}

/// `runtime` with the layer ahead that `draft` has, and nothing else.
pub(super) fn with_layer_of(runtime: Runtime, draft: &ModelFiles, kv_type: KvType) -> Result<Runtime> {
    let sizes = |config: &Config| [config.hidden_size, config.vocab_size];
    let [own, other] = [runtime.config(), draft.config()].map(sizes);
    if own != other {
        let got = format!("{}: a layer of width {} for {} tokens", draft.name(), other[0], other[1]);
        let expected = "that of the model";
        return Err(Error::Option { option: "draft", got, expected });
    }
    let dispatch = runtime.dispatch();
    let (ahead, linears) = draft.architecture.load_ahead(&draft.checkpoint, dispatch, runtime.forward())?;
    linears.iter().try_for_each(|matrix| dispatch.ready(matrix))?;
    match ahead {
        Some(ahead) => runtime.with_ahead(ahead, kv_type, draft.checkpoint.watch()),
        None => {
            let got = format!("{}: a layer that guesses further tokens", draft.name());
            Err(Error::Option { option: "draft", got, expected: "a model of a family that has such layers" })
        }
    }
}
