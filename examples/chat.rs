//! A conversation with any model, a line a turn: `cargo run --release --example chat -- MODEL`.

use std::io::{Write, stdin, stdout};

use anyhow::Context;
use backstop::{Chat, Message, Model, Options};

fn main() -> anyhow::Result<()> {
    let model = std::env::args().nth(1).context("usage: chat MODEL")?;
    let model = Model::load(&model)?;
    let options = Options { sampling: model.default_sampling(), ..Options::default() };
    let mut chat = Chat::default();
    for line in stdin().lines() {
        chat.messages.push(Message::new("user", line?));
        let mut answer = model.chat(&chat, &options)?;
        for piece in &mut answer {
            print!("{}", piece?.text);
            stdout().flush()?;
        }
        println!();
        chat.messages.push(answer.reply().to_message());
    }
    Ok(())
}
