//! Grammars: what compiles gives masks, and what they allow is what was asked for.

use std::sync::OnceLock;

use super::input::{Input, sound};
use super::seeds::fixture;
use crate::json::{ASKED, strict};
use crate::sample::{Grammar, GrammarCompiler};
use crate::text::Tokenizer;

/// Masks of one text.
const MASKS: usize = 50;

/// The input: a kind of grammar, eight choices of tokens, and the grammar.
///
/// What compiles allows a token at each of [`MASKS`] places, and takes each token that it allows. A whole text of a schema is JSON.
pub(super) fn grammar(data: &[u8]) {
    static COMPILER: OnceLock<(GrammarCompiler, Tokenizer)> = OnceLock::new();
    let (compiler, tokenizer) = COMPILER.get_or_init(|| {
        let path = fixture("text/chatml/tokenizer.json");
        let tokenizer = Tokenizer::load(&path, 1 << 16).expect("a fixture");
        let eos = tokenizer.token_id("<|im_end|>").expect("the fixture's end");
        (GrammarCompiler::new(&tokenizer, &[eos]).expect("a fixture"), tokenizer)
    });
    let mut input = Input(data);
    let kind = input.below(3);
    let choices = input.take(8);
    let text = String::from_utf8_lossy(input.0).into_owned();
    let grammar = match kind {
        0 => match strict(&text, ASKED) {
            Ok(schema) => Grammar::JsonSchema(schema),
            Err(_) => return,
        },
        1 => Grammar::Regex(text),
        _ => Grammar::Lark(text),
    };
    let Ok(mut constraint) = compiler.compile(&grammar) else { return };
    let vocab = tokenizer.vocab_size() as u32;
    let mut written = Vec::new();
    for place in 0..MASKS {
        let Some(mask) = sound(constraint.mask()) else { return };
        let allowed: Vec<u32> = (0..vocab).filter(|&token| mask.allows(token)).collect();
        assert!(!allowed.is_empty(), "nothing may follow {:?}", String::from_utf8_lossy(&written));
        let choice = choices.get(place % choices.len().max(1)).copied().unwrap_or_default();
        // Another number of each place, since a byte would choose in one part of a large set alone.
        let token = allowed[(usize::from(choice) + place) * 37 % allowed.len()];
        constraint.accept(token).expect("what the mask allows may come next");
        if !tokenizer.is_special(token) {
            written.extend(sound(tokenizer.token_bytes(token)).flatten().unwrap_or_default());
        }
        if constraint.is_complete() {
            let text = String::from_utf8_lossy(&written);
            if kind == 0 {
                assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
            }
            return;
        }
    }
}
