//! Seeded choices, and texts that are drawn from a constraint alone.

use std::path::Path;

use backstop::sample::{Constraint, Grammar, GrammarCompiler};
use backstop::text::Tokenizer;

/// SplitMix64 (Steele et al., 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// A vocabulary and its compiler.
pub struct Vocabulary {
    pub tokenizer: Tokenizer,
    pub eos: u32,
    pub compiler: GrammarCompiler,
}

impl Vocabulary {
    /// The tokenizer of a directory under the repository, whose texts end by `eos`.
    pub fn new(dir: &str, eos: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).join("tokenizer.json");
        Self::of(Tokenizer::load(&path, 1 << 20).unwrap(), eos)
    }

    /// A vocabulary of the size that models have: `tokens` strings of letters, digits, spaces and signs.
    pub fn large(tokens: usize) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text/chatml/tokenizer.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let signs: Vec<char> =
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789ĠĠĠĠĠĠ.,:;{}[]\"\\-_/()"
                .chars()
                .collect();
        let (mut random, mut id) = (Random(1), 300);
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        while id < tokens {
            let word: String = (0..2 + random.below(8)).map(|_| *random.pick(&signs)).collect();
            if !vocab.contains_key(&word) {
                vocab.insert(word, id.into());
                id += 1;
            }
        }
        // Added tokens follow the model's.
        for token in json["added_tokens"].as_array_mut().unwrap() {
            token["id"] = id.into();
            id += 1;
        }
        Self::of(Tokenizer::from_bytes(&path, json.to_string().as_bytes(), 1 << 20).unwrap(), "<|im_end|>")
    }

    fn of(tokenizer: Tokenizer, eos: &str) -> Self {
        let eos = tokenizer.token_id(eos).unwrap();
        let compiler = GrammarCompiler::new(&tokenizer, &[eos]).unwrap();
        Self { tokenizer, eos, compiler }
    }

    pub fn compile(&self, grammar: &Grammar) -> backstop::Result<Constraint> {
        self.compiler.compile(grammar)
    }

    /// A text of at most `most` tokens, each drawn from what is allowed; none where it did not come to its end. Half of the
    /// draws prefer what may close something, so that it does.
    pub fn draw(&self, constraint: &mut Constraint, random: &mut Random, most: usize) -> Option<String> {
        let mut bytes = Vec::new();
        for _ in 0..most {
            if constraint.is_complete() {
                return Some(String::from_utf8(bytes).expect("UTF-8, whatever is drawn"));
            }
            let mask = constraint.mask().unwrap();
            let allowed: Vec<u32> =
                (0..self.tokenizer.vocab_size() as u32).filter(|&t| mask.allows(t)).collect();
            assert!(!allowed.is_empty());
            let closes = |&&t: &&u32| {
                t == self.eos
                    || self.bytes(t).is_ok_and(|b| matches!(b.first(), Some(b'"' | b'}' | b']' | b',')))
            };
            let closing: Vec<u32> = allowed.iter().filter(closes).copied().collect();
            let token = match closing.is_empty() || random.one_in(2) {
                true => *random.pick(&allowed),
                false => *random.pick(&closing),
            };
            if token == self.eos {
                assert!(constraint.is_accepting());
                return Some(String::from_utf8(bytes).expect("UTF-8, whatever is drawn"));
            }
            bytes.extend(self.bytes(token).unwrap());
            constraint.accept(token).unwrap();
        }
        None
    }

    fn bytes(&self, token: u32) -> backstop::Result<Vec<u8>> {
        assert!(!self.tokenizer.is_special(token), "special token {token} within a text");
        Ok(self.tokenizer.token_bytes(token)?.unwrap_or_default())
    }
}
