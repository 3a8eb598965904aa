//! `xtask-bindings MLX_C INCLUDE OUT`: writes the Rust declarations of every header in `MLX_C/mlx/c` to `OUT`, as
//! mlx-sys's own build script would. `INCLUDE` holds the compiler's `stddef.h`, which PyPI's libclang comes without.

use std::error::Error;
use std::path::{Path, PathBuf};

/// mlx-c's half.h is left out on every architecture (xtask defines its guard): its types are compiler extensions that
/// exist on some targets only. mlx-rs needs these shapes; `mlx_shim.cpp` defines the functions.
const HALF_TYPES: &str = r#"
#[repr(transparent)]
#[derive(Default, Clone, Copy, Debug)]
pub struct float16_t(pub u16);
pub type bfloat16_t = u16;
extern "C" {
    pub fn mlx_array_item_float16(res: *mut float16_t, arr: mlx_array) -> ::std::os::raw::c_int;
    pub fn mlx_array_item_bfloat16(res: *mut bfloat16_t, arr: mlx_array) -> ::std::os::raw::c_int;
    pub fn mlx_array_data_float16(arr: mlx_array) -> *const float16_t;
    pub fn mlx_array_data_bfloat16(arr: mlx_array) -> *const bfloat16_t;
}
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [mlx_c, include, out] = &args[..] else {
        return Err("usage: xtask-bindings MLX_C INCLUDE OUT".into());
    };
    let mut builder = bindgen::builder()
        .rust_target("1.73".parse()?)
        .clang_args(["-DMLX_HALF_H", "-isystem", utf8(include)?])
        .clang_arg(format!("-I{}", utf8(mlx_c)?))
        .blocklist_function("malloc")
        .blocklist_function("realloc")
        .raw_line(HALF_TYPES);
    for header in headers(&mlx_c.join("mlx/c"))? {
        builder = builder.header(utf8(&header)?);
    }
    builder.generate()?.write_to_file(out)?;
    Ok(())
}

fn headers(dir: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut headers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "h") {
            headers.push(path);
        }
    }
    headers.sort();
    Ok(headers)
}

fn utf8(path: &Path) -> Result<&str, Box<dyn Error>> {
    path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()).into())
}
