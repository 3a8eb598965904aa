//! Sets `has_mlx` where the MLX backend is compiled in: on Apple Silicon always, elsewhere by the feature `mlx`, and
//! then lets the executables find the libmlx.so that `cargo xtask mlx` made (it sets `DEP_MLX_RPATH`).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |key: &str| std::env::var(key).unwrap_or_default();
    let apple_silicon =
        target("CARGO_CFG_TARGET_OS") == "macos" && target("CARGO_CFG_TARGET_ARCH") == "aarch64";
    if apple_silicon || std::env::var_os("CARGO_FEATURE_MLX").is_some() {
        println!("cargo::rustc-cfg=has_mlx");
        if let Ok(dir) = std::env::var("DEP_MLX_RPATH") {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{dir}");
        }
    }
}
