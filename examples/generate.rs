//! The whole of a text at once, from the built-in model: `cargo run --example generate -- "Once upon a time"`.

fn main() -> anyhow::Result<()> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "Once upon a time".to_owned());
    println!("{prompt}{}", backstop::generate(&prompt)?);
    Ok(())
}
