//! A text as it comes, from any model: `cargo run --release --example stream -- MODEL "Once upon a time"`.

use std::io::Write;

use anyhow::Context;
use backstop::{Chat, Message, Model, Options};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().context("usage: stream MODEL [PROMPT]")?;
    let prompt = args.next().unwrap_or_else(|| "Once upon a time".to_owned());

    let model = Model::load(&dir)?;
    let options = Options { max_tokens: Some(200), sampling: model.default_sampling(), ..Options::default() };
    let mut generation = match model.has_template() {
        true => model.chat(&Chat::new(vec![Message::new("user", prompt)]), &options)?,
        false => model.generate(&prompt, &options)?,
    };
    let mut out = std::io::stdout().lock();
    for piece in &mut generation {
        out.write_all(piece?.text.as_bytes())?;
        out.flush()?;
    }
    writeln!(out)?;
    let stats = generation.stats().unwrap_or_default();
    eprintln!("{} tokens at {:.1} tok/s", stats.generated_tokens, stats.generation_rate());
    Ok(())
}
