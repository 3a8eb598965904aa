//! `cargo xtask …`: the project's own chores.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("usage: cargo xtask <mlx|with-mlx|test>")
}
