//! The auto selector: which backends there are, whether the model fits, and why one was taken.

use std::fmt;
use std::str::FromStr;

use super::cpu::Isa;
use super::kind::LlmBackendKind;
pub use super::machine::MachineMemory;
use super::machine::{available_memory, gpu_memory};
use super::mlx::DeviceInfo;
use crate::error::{Error, Result};

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendRequest {
    /// Whatever fits.
    #[default]
    Auto,
    /// MLX on Apple's GPU, or an error.
    Metal,
    /// MLX on its default device, or an error.
    Mlx,
    /// The CPU kernels.
    Cpu,
}

impl BackendRequest {
    /// Every request, as typed.
    pub const NAMES: [&str; 4] = ["auto", "metal", "mlx", "cpu"];
}

impl FromStr for BackendRequest {
    type Err = Error;

    /// In any case: `CPU` and `Metal` are the names of things.
    fn from_str(name: &str) -> Result<Self> {
        match name.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "metal" => Ok(Self::Metal),
            "mlx" => Ok(Self::Mlx),
            "cpu" => Ok(Self::Cpu),
            _ => Err(Error::Option {
                option: "backend",
                got: name.to_owned(),
                expected: "auto, metal, mlx or cpu",
            }),
        }
    }
}

/// Bytes that running a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryNeed {
    /// The weights, in the form that they will have on the backend.
    pub weights: u64,
    /// K and V at the asked context.
    pub kv: u64,
    /// What the largest step makes on its way: activations and logits, and on MLX masks, scores and widened weights.
    pub activations: u64,
}

impl MemoryNeed {
    /// Kept free beside the model: the system's own, and MLX's cache of buffers.
    pub const RESERVE: u64 = 512 << 20;

    /// That of another model beside it.
    pub fn beside(&self, other: &Self) -> Self {
        Self {
            weights: self.weights.saturating_add(other.weights),
            kv: self.kv.saturating_add(other.kv),
            activations: self.activations.saturating_add(other.activations),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        [self.weights, self.kv, self.activations, Self::RESERVE].iter().fold(0, |a, &b| a.saturating_add(b))
    }
}

impl fmt::Display for MemoryNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (weights {}, KV {}, activations {}, reserve {})",
            Bytes(self.total()),
            Bytes(self.weights),
            Bytes(self.kv),
            Bytes(self.activations),
            Bytes(Self::RESERVE)
        )
    }
}

/// A number of bytes as people read it.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{} B", self.0),
            1_000..1_000_000 => write!(f, "{:.1} kB", bytes / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} MB", bytes / 1e6),
            _ => write!(f, "{:.2} GB", bytes / 1e9),
        }
    }
}

/// An MLX device that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MlxFacts {
    /// Its name for the reason.
    pub name: String,
    /// Whether it is a GPU.
    pub gpu: bool,
    /// Whether it is Apple's.
    pub metal: bool,
    /// Bytes that it recommends to use at most, or has free; of the CPU device, those that the machine has available.
    pub memory: Option<u64>,
}

/// The backend taken, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// What runs the model.
    pub kind: LlmBackendKind,
    /// Why, with the numbers.
    pub reason: String,
}

/// A backend of [`backends`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendStatus {
    /// Its name, as typed.
    pub name: &'static str,
    /// What it runs on here, or why it is not there.
    pub there: Result<String, String>,
}

impl fmt::Display for BackendStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.there {
            Ok(device) => write!(f, "{}: {device}", self.name),
            Err(why) => write!(f, "{}: no, {why}", self.name),
        }
    }
}

/// The backends that there are by name, each with what it runs on in this build and on this machine, or why it does not.
///
/// ```
/// let cpu = backstop::backends().into_iter().find(|backend| backend.name == "cpu").unwrap();
/// assert!(cpu.there.is_ok(), "the CPU kernels run everywhere");
/// ```
pub fn backends() -> [BackendStatus; 3] {
    let mlx = mlx_facts();
    let metal = match &mlx {
        Ok(device) if device.metal => Ok(device.name.clone()),
        other => Err(no_metal(other)),
    };
    let mlx = mlx.map(|device| device.name);
    [
        BackendStatus { name: "metal", there: metal },
        BackendStatus { name: "mlx", there: mlx },
        BackendStatus { name: "cpu", there: Ok(Isa::detect().to_string()) },
    ]
}

/// Why there is no Metal.
fn no_metal(mlx: &Result<MlxFacts, String>) -> String {
    match mlx {
        Ok(device) => format!("MLX's device here is the {}, not Apple's GPU", device.name),
        Err(why) if cfg!(all(target_os = "macos", target_arch = "aarch64")) => why.clone(),
        Err(_) => "it is Apple's GPU, and MLX runs on it on Apple Silicon alone".to_owned(),
    }
}

/// Decides from what is known; `mlx` is the device, or why there is none; `need` is the model's on MLX.
///
/// `auto` takes MLX where it has a GPU and the model fits. MLX's CPU device is never taken by itself: it is there for
/// correctness, and the CPU kernels are faster.
///
/// # Errors
/// Where `metal` or `mlx` was asked for and cannot be had.
pub fn decide(
    request: BackendRequest,
    mlx: &Result<MlxFacts, String>,
    need: &MemoryNeed,
) -> Result<Selection> {
    let cpu = |reason: String| Ok(Selection { kind: LlmBackendKind::Cpu, reason });
    let on_mlx = |reason: String| Ok(Selection { kind: LlmBackendKind::Mlx, reason });
    match (request, mlx) {
        (BackendRequest::Cpu, _) => cpu("asked for".into()),
        (BackendRequest::Metal, Ok(device)) if device.metal => on_mlx("asked for".into()),
        (BackendRequest::Metal, mlx) => {
            let others = if mlx.is_ok() { "mlx, auto or cpu" } else { "auto or cpu" };
            let reason = format!("{}; try --backend {others}", no_metal(mlx));
            Err(Error::Backend { backend: "metal", reason })
        }
        (BackendRequest::Mlx, Ok(_)) => on_mlx("asked for".into()),
        (BackendRequest::Mlx, Err(why)) => {
            Err(Error::Backend { backend: "mlx", reason: format!("{why}; try --backend auto or cpu") })
        }
        (BackendRequest::Auto, Err(why)) => cpu(why.clone()),
        (BackendRequest::Auto, Ok(device)) if !device.gpu => {
            cpu(format!("MLX has only its {} here, which is slower than backstop's kernels", device.name))
        }
        (BackendRequest::Auto, Ok(device)) => match device.memory {
            Some(memory) if need.total() <= memory => {
                on_mlx(format!("the {} has room: {need} of {}", device.name, Bytes(memory)))
            }
            Some(memory) => {
                cpu(format!("the model does not fit the {}: {need} of {}", device.name, Bytes(memory)))
            }
            None => cpu(format!("the {} does not say how much memory it has", device.name)),
        },
    }
}

/// Asks the machine, and decides; `need` is the model's on MLX.
///
/// # Errors
/// As [`decide`].
pub fn select(request: BackendRequest, need: &MemoryNeed) -> Result<Selection> {
    if request == BackendRequest::Cpu {
        return decide(request, &Err(String::new()), need);
    }
    decide(request, &mlx_facts(), need)
}

fn mlx_facts() -> Result<MlxFacts, String> {
    let device = DeviceInfo::query().map_err(|error| match error {
        Error::Backend { reason, .. } => reason,
        other => other.to_string(),
    })?;
    // The memory of a GPU may be its own: what the machine has left says nothing of it.
    let memory = match device.gpu {
        true => device.recommended_bytes.or_else(gpu_memory),
        false => available_memory(),
    };
    let metal = device.gpu && cfg!(target_os = "macos");
    Ok(MlxFacts { name: device.to_string(), gpu: device.gpu, metal, memory })
}

/// Bytes that `kind` has for a model: what a GPU recommends to use at most or has free, else what the machine has available.
pub fn memory_for(kind: LlmBackendKind) -> Option<u64> {
    match kind {
        LlmBackendKind::Cpu => available_memory(),
        LlmBackendKind::Mlx => mlx_facts().ok()?.memory,
    }
}

/// Bytes that the KV cache of all sequences may take where nobody said: what is left of `memory` beside the model and the
/// reserve, and never more than `most`. At least an eighth of it: weights that are mapped give way where memory is scarce.
pub fn kv_memory(need: &MemoryNeed, memory: Option<u64>, most: u64) -> u64 {
    /// Where the machine does not say how much it has.
    const UNKNOWN: u64 = 4 << 30;
    let Some(memory) = memory else { return most.min(UNKNOWN) };
    let model = need.total().saturating_sub(need.kv);
    memory.saturating_sub(model).max(memory / 8).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: MemoryNeed = MemoryNeed { weights: 2_000_000_000, kv: 500_000_000, activations: 100_000_000 };

    fn device(gpu: bool, metal: bool, memory: Option<u64>) -> Result<MlxFacts, String> {
        Ok(MlxFacts { name: "Metal GPU".into(), gpu, metal, memory })
    }

    #[test]
    fn auto_takes_a_gpu_with_room_and_says_the_numbers() {
        let total = NEED.total();
        let fits = decide(BackendRequest::Auto, &device(true, true, Some(total)), &NEED).unwrap();
        assert_eq!(fits.kind, LlmBackendKind::Mlx);
        assert!(fits.reason.contains("weights 2.00 GB, KV 500.0 MB"), "{}", fits.reason);

        let short = decide(BackendRequest::Auto, &device(true, true, Some(total - 1)), &NEED).unwrap();
        assert_eq!(short.kind, LlmBackendKind::Cpu);
        assert!(
            short.reason.contains("does not fit") && short.reason.contains("of 3.14 GB"),
            "{}",
            short.reason
        );

        for other in [device(false, false, Some(u64::MAX)), device(true, false, None), Err("no MLX".into())] {
            assert_eq!(decide(BackendRequest::Auto, &other, &NEED).unwrap().kind, LlmBackendKind::Cpu);
        }
    }

    #[test]
    fn what_is_forced_is_had_or_an_error() {
        let linux = device(false, false, Some(u64::MAX));
        assert_eq!(decide(BackendRequest::Mlx, &linux, &NEED).unwrap().kind, LlmBackendKind::Mlx);
        let error = decide(BackendRequest::Metal, &linux, &NEED).unwrap_err().to_string();
        assert!(error.contains("not Apple's GPU") && error.contains("--backend mlx"), "{error}");
        let none = Err("this build has no MLX".to_owned());
        let error = decide(BackendRequest::Mlx, &none, &NEED).unwrap_err().to_string();
        assert!(error.contains("this build has no MLX"), "{error}");
        let error = decide(BackendRequest::Metal, &none, &NEED).unwrap_err().to_string();
        let apple = cfg!(all(target_os = "macos", target_arch = "aarch64"));
        assert!(
            error.contains(if apple { "this build has no MLX" } else { "Apple Silicon alone" }),
            "{error}"
        );
        assert_eq!(decide(BackendRequest::Cpu, &none, &NEED).unwrap().kind, LlmBackendKind::Cpu);
    }

    #[test]
    fn the_kv_cache_gets_what_the_model_leaves() {
        let model = NEED.weights + NEED.activations + MemoryNeed::RESERVE;
        assert_eq!(kv_memory(&NEED, Some(model + 900), u64::MAX), (model + 900) / 8);
        assert_eq!(kv_memory(&NEED, Some(2 * model), u64::MAX), model);
        assert_eq!(kv_memory(&NEED, Some(2 * model), 70), 70);
        assert_eq!(kv_memory(&NEED, None, u64::MAX), 4 << 30);
        assert_eq!(kv_memory(&NEED, Some(800), u64::MAX), 100);
    }

    #[test]
    fn names_are_read_in_any_case() {
        for (typed, request) in [
            ("CPU", BackendRequest::Cpu),
            ("Metal", BackendRequest::Metal),
            ("mlx", BackendRequest::Mlx),
            ("aUTO", BackendRequest::Auto),
        ] {
            assert_eq!(typed.parse::<BackendRequest>().unwrap(), request);
        }
        let error = "Quantum".parse::<BackendRequest>().unwrap_err().to_string();
        assert!(error.contains("Quantum") && error.contains("auto, metal, mlx or cpu"), "{error}");
    }

    #[test]
    fn every_backend_is_there_or_says_why_not() {
        let all = backends();
        assert_eq!(all.each_ref().map(|backend| backend.name), ["metal", "mlx", "cpu"]);
        let [metal, mlx, cpu] = all;
        assert!(cpu.there.is_ok());
        assert_eq!(mlx.there.is_ok(), DeviceInfo::query().is_ok(), "{mlx}");
        match metal.there {
            // What runs here is what `--backend metal` takes.
            Ok(device) => assert!(device.contains("GPU"), "{device}"),
            Err(why) => {
                let error = select(BackendRequest::Metal, &NEED).unwrap_err().to_string();
                assert!(error.contains(&why), "{error}, but {why}");
            }
        }
    }

    #[test]
    fn a_need_that_overflows_does_not_fit() {
        let need = MemoryNeed { weights: u64::MAX, ..NEED };
        let selection = decide(BackendRequest::Auto, &device(true, true, Some(u64::MAX - 1)), &need).unwrap();
        assert_eq!(selection.kind, LlmBackendKind::Cpu);
    }
}
