//! What MLX says of its default device.

use std::ffi::CStr;
use std::fmt;

use mlx_rs::{Device, DeviceType};

use crate::error::{Error, Result};

/// MLX's default device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Whether it is a GPU: Metal on Apple's machines, CUDA elsewhere.
    pub gpu: bool,
    /// Bytes that a GPU recommends to use at most (Metal), or has free (CUDA), where it says so.
    pub recommended_bytes: Option<u64>,
}

impl DeviceInfo {
    /// Asks MLX, and has it add two numbers, so that a device that does not answer is found out here.
    ///
    /// # Errors
    /// Where there is no device, or it does not compute.
    pub fn query() -> Result<Self> {
        let refuse = |reason: String| Error::Backend { backend: "mlx", reason };
        let device = Device::try_default().map_err(|error| refuse(error.what().to_owned()))?;
        let kind = device.get_type().map_err(|error| refuse(error.what().to_owned()))?;
        let sum = mlx_rs::ops::add(mlx_rs::Array::from_f32(1.0), mlx_rs::Array::from_f32(2.0))
            .map(|sum| sum.try_item_cast::<f32>().ok())
            .map_err(|error| refuse(format!("the device does not answer: {}", error.what())))?;
        if sum != Some(3.0) {
            return Err(refuse(format!("the device computes 1 + 2 = {sum:?}")));
        }
        let gpu = matches!(kind, DeviceType::Gpu);
        Ok(Self { gpu, recommended_bytes: if gpu { recommended() } else { None } })
    }
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.gpu, cfg!(target_os = "macos")) {
            (true, true) => "Metal GPU",
            (true, false) => "GPU",
            (false, _) => "CPU device",
        })
    }
}

/// What MLX says of a GPU's memory, by the first key that its backend has.
fn recommended() -> Option<u64> {
    /// Metal's, and CUDA's: the memory of its own that no process has taken.
    const KEYS: [&CStr; 2] = [c"max_recommended_working_set_size", c"free_memory"];
    // SAFETY: every handle is made by the call before, checked by its status and freed once; the keys are NUL-terminated.
    unsafe {
        let mut device = mlx_sys::mlx_device_new();
        let mut info = mlx_sys::mlx_device_info_new();
        let known = mlx_sys::mlx_get_default_device(&mut device) == 0
            && mlx_sys::mlx_device_info_get(&mut info, device) == 0;
        let size = |key: &&CStr| {
            let mut bytes = 0_usize;
            let found = mlx_sys::mlx_device_info_get_size(&mut bytes, info, key.as_ptr()) == 0;
            found.then_some(bytes as u64)
        };
        let bytes = if known { KEYS.iter().find_map(size) } else { None };
        mlx_sys::mlx_device_info_free(info);
        mlx_sys::mlx_device_free(device);
        bytes
    }
}
