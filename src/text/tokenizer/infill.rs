//! Filling in the middle: what stands between two texts, by the marks that models of code are trained with.

use super::{Specials, Tokenizer};
use crate::alloc;
use crate::error::{Error, Result};

/// A place in a text that is to be filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Infill {
    /// What stands before it.
    pub prefix: String,
    /// What stands behind it.
    pub suffix: String,
    /// Other files, or parts of some, with their names; those that matter most come last.
    pub others: Vec<(String, String)>,
}

/// How one family of models marks the parts.
struct Known {
    prefix: &'static str,
    suffix: &'static str,
    /// Behind which the answer begins; empty where that is the end of the prefix.
    middle: &'static str,
    /// Whether the suffix comes before the prefix.
    suffix_first: bool,
    /// Whether the prefix begins as a text does, with a space where the tokenizer puts one before a text.
    begins: bool,
    /// Before the name of a repository, and of a file in it: the first that a vocabulary has.
    repository: &'static [&'static str],
    file: &'static [&'static str],
    /// Whether names end with a line, and the hole's file has its own before the marks.
    lines: bool,
    /// What ends an answer beside the marks themselves.
    ends: &'static [&'static str],
}

/// The parts in the order of most models, and no marks of files.
const PLAIN: Known = Known {
    prefix: "",
    suffix: "",
    middle: "",
    suffix_first: false,
    begins: false,
    repository: &[],
    file: &[],
    lines: true,
    ends: &["<|endoftext|>"],
};

/// Those that are known, each as its models' cards, or what its authors publish to run them, have it.
const KNOWN: [Known; 9] = [
    // Qwen2.5-Coder, Qwen3-Coder; CodeGemma; Granite 4, with other marks of files.
    Known {
        prefix: "<|fim_prefix|>",
        suffix: "<|fim_suffix|>",
        middle: "<|fim_middle|>",
        repository: &["<|repo_name|>", "<|reponame|>"],
        file: &["<|file_sep|>", "<|filename|>"],
        ends: &["<|endoftext|>", "<|fim_pad|>", "<|file_separator|>", "<|end_of_text|>"],
        ..PLAIN
    },
    // StarCoder2, Stable Code; Granite 3 and Mellum, with other marks of files.
    Known {
        prefix: "<fim_prefix>",
        suffix: "<fim_suffix>",
        middle: "<fim_middle>",
        repository: &["<repo_name>", "<reponame>"],
        file: &["<file_sep>", "<filename>"],
        lines: false,
        ends: &["<|endoftext|>", "<fim_pad>", "<|end_of_text|>"],
        ..PLAIN
    },
    // SantaCoder.
    Known { prefix: "<fim-prefix>", suffix: "<fim-suffix>", middle: "<fim-middle>", ..PLAIN },
    // DeepSeek-Coder: the second mark is the hole.
    Known {
        prefix: "<｜fim▁begin｜>",
        suffix: "<｜fim▁hole｜>",
        middle: "<｜fim▁end｜>",
        ends: &["<|EOT|>", "<｜end▁of▁sentence｜>"],
        ..PLAIN
    },
    // Code Llama.
    Known {
        prefix: "▁<PRE>", suffix: "▁<SUF>", middle: "▁<MID>", begins: true, ends: &["▁<EOT>"], ..PLAIN
    },
    // GLM, and CodeGeeX.
    Known { prefix: "<|code_prefix|>", suffix: "<|code_suffix|>", middle: "<|code_middle|>", ..PLAIN },
    // Seed-Coder.
    Known {
        prefix: "<[fim-prefix]>",
        suffix: "<[fim-suffix]>",
        middle: "<[fim-middle]>",
        suffix_first: true,
        ends: &["<[end▁of▁sentence]>"],
        ..PLAIN
    },
    // Codestral.
    Known {
        prefix: "[PREFIX]",
        suffix: "[SUFFIX]",
        suffix_first: true,
        begins: true,
        ends: &["</s>"],
        ..PLAIN
    },
    // Falcon-H1's coders.
    Known { prefix: "<|prefix|>", suffix: "<|suffix|>", middle: "<|middle|>", ..PLAIN },
];

/// Models whose vocabulary is another's and whose suffix comes first, by a part of their names.
const SUFFIX_FIRST: [&str; 2] = ["mellum", "codegeex"];

/// What stands between others' texts where a model has no mark of files.
const SNIPPET: &str = "\n\n--- snippet ---\n\n";
/// What a repository and a file are called whose names are not told.
const UNNAMED: [&str; 2] = ["project", "file"];

/// The marks of one vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfillMarks {
    prefix: u32,
    suffix: u32,
    middle: Option<u32>,
    suffix_first: bool,
    begins: bool,
    repository: Option<u32>,
    file: Option<u32>,
    lines: bool,
    ends: Vec<u32>,
}

impl InfillMarks {
    fn of(tokenizer: &Tokenizer, known: &Known) -> Option<Self> {
        let id = |text: &str| tokenizer.token_id(text).filter(|_| !text.is_empty());
        let (prefix, suffix, middle) = (id(known.prefix)?, id(known.suffix)?, id(known.middle));
        if middle.is_none() && !known.middle.is_empty() {
            return None;
        }
        let all = |texts: &[&str]| texts.iter().filter_map(|text| id(text)).collect::<Vec<u32>>();
        let (repository, file) = (all(known.repository), all(known.file));
        let mut ends = all(known.ends);
        ends.extend([prefix, suffix].into_iter().chain(middle));
        ends.extend(repository.iter().chain(&file));
        let &Known { suffix_first, begins, lines, .. } = known;
        let (repository, file) = (repository.first().copied(), file.first().copied());
        Some(Self { prefix, suffix, middle, suffix_first, begins, repository, file, lines, ends })
    }

    /// As a model of this name has them, where others with its vocabulary have another order.
    #[must_use]
    pub fn of_model(self, name: &str) -> Self {
        let name = name.to_lowercase();
        let first = SUFFIX_FIRST.iter().any(|part| name.contains(part));
        Self { suffix_first: self.suffix_first || first, ..self }
    }

    /// The tokens with which an answer ends: it goes no further than to the next part.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The tokens behind which a model fills in: at most `most` of them. Where there are more, the others' files go first, each as a
    /// whole, then the beginning of the prefix and the end of the suffix, which keeps a quarter at least.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`]; [`Error::Prompt`] where the marks alone are more.
    pub fn encode(&self, tokenizer: &Tokenizer, infill: &Infill, most: usize) -> Result<Vec<u32>> {
        let begin = tokenizer.encode_with("", Specials { add: true, parse: false })?;
        let marks = begin.len() + 2 + usize::from(self.middle.is_some());
        let Some(room) = most.checked_sub(marks) else {
            return Err(Error::Prompt(format!("{marks} tokens to fill in by, and {most} are left")));
        };
        let before = tokenizer.last_of(&infill.prefix, room);
        let prefix = match self.begins {
            true => tokenizer.encode_with(before, Specials { add: false, parse: false })?,
            false => tokenizer.encode_behind(before)?,
        };
        let suffix = tokenizer.encode_behind(tokenizer.first_of(&infill.suffix, room))?;
        let of_suffix = suffix.len().min((room / 4).max(room.saturating_sub(prefix.len())));
        let of_prefix = prefix.len().min(room - of_suffix);
        let others = self.others(tokenizer, &infill.others, room - of_suffix - of_prefix)?;

        let (prefix, suffix) = (&prefix[prefix.len() - of_prefix..], &suffix[..of_suffix]);
        let [prefix, suffix] = [(self.prefix, prefix), (self.suffix, suffix)];
        let parts = if self.suffix_first { [suffix, prefix] } else { [prefix, suffix] };
        let mut ids = Vec::new();
        alloc::reserve(&mut ids, marks + others.len() + of_prefix + of_suffix, "the tokens of a text")?;
        ids.extend(begin);
        ids.extend(others);
        for (mark, tokens) in parts {
            ids.push(mark);
            ids.extend(tokens);
        }
        ids.extend(self.middle);
        Ok(ids)
    }

    /// Other files, of which the last ones are taken that are at most `room` tokens, and what is said of the one with the hole; nothing
    /// where none fits.
    fn others(&self, tokenizer: &Tokenizer, others: &[(String, String)], room: usize) -> Result<Vec<u32>> {
        let named = |mark: u32, name: &str, line: &str| -> Result<Vec<u32>> {
            let mut ids = tokenizer.encode_behind(&format!("{name}{line}"))?;
            ids.insert(0, mark);
            Ok(ids)
        };
        let [repository, own] = UNNAMED;
        let (own, line) = if self.lines { (own, "\n") } else { ("", "") };
        let head = self.repository.map_or(Ok(Vec::new()), |mark| named(mark, repository, line))?;
        let tail = self.file.map_or(Ok(Vec::new()), |mark| named(mark, own, line))?;
        let mut left = room.saturating_sub(head.len() + tail.len());
        let mut files: Vec<Vec<u32>> = Vec::new();
        for (name, text) in others.iter().rev() {
            if tokenizer.least_tokens(text.len().saturating_add(name.len())) > left {
                break;
            }
            let mut ids = match self.file {
                Some(mark) => named(mark, name, "\n")?,
                None => tokenizer.encode_behind(SNIPPET)?,
            };
            ids.extend(tokenizer.encode_behind(text)?);
            let Some(rest) = left.checked_sub(ids.len()) else { break };
            left = rest;
            files.push(ids);
        }
        if files.is_empty() {
            return Ok(Vec::new());
        }
        Ok([head].into_iter().chain(files.into_iter().rev()).chain([tail]).flatten().collect())
    }
}

impl Tokenizer {
    /// The marks by which models of this vocabulary fill in the middle of a text; none where it has none that are known.
    pub fn infill_marks(&self) -> Option<InfillMarks> {
        KNOWN.iter().find_map(|known| InfillMarks::of(self, known))
    }

    /// The tokens of a text that stands behind a special token; the texts of special tokens in it stay text.
    fn encode_behind(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        self.check_length(text)?;
        let owned = alloc::text_of(text, super::TEXT)?;
        self.patiently(text.len(), move |this| this.run(this.following()?, &owned, false))
    }

    /// The bytes at the end of a text that its last `tokens` tokens have at most.
    fn last_of<'a>(&self, text: &'a str, tokens: usize) -> &'a str {
        let least = text.len().saturating_sub(self.most_bytes(tokens));
        let start = (least..text.len()).find(|&start| text.is_char_boundary(start)).unwrap_or(text.len());
        &text[start..]
    }

    /// The bytes at the beginning of a text that its first `tokens` tokens have at most.
    fn first_of<'a>(&self, text: &'a str, tokens: usize) -> &'a str {
        let most = self.most_bytes(tokens).min(text.len());
        let end = (0..=most).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        &text[..end]
    }

    fn most_bytes(&self, tokens: usize) -> usize {
        self.0.longest.map_or(usize::MAX, |longest| tokens.saturating_mul(longest))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    /// A vocabulary with these tokens more.
    fn with(marks: &[&str]) -> Tokenizer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text/chatml/tokenizer.json");
        let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let added = file["added_tokens"].as_array_mut().unwrap();
        let known = |mark: &str| added.iter().any(|token| token["content"] == mark);
        let marks: Vec<&&str> = marks.iter().filter(|mark| !mark.is_empty() && !known(mark)).collect();
        for (id, mark) in (305..).zip(marks) {
            added.push(
                json!({ "id": id, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": id % 2 == 0 }),
            );
        }
        Tokenizer::from_bytes(&path, file.to_string().as_bytes(), 400).unwrap()
    }

    fn infill(prefix: &str, suffix: &str) -> Infill {
        Infill { prefix: prefix.into(), suffix: suffix.into(), others: Vec::new() }
    }

    /// What is given to a model of each name, as its authors have it; `P` and `S` are the texts.
    #[test]
    fn each_model_has_its_own_marks_and_order() {
        for (name, parts, end) in [
            (
                "Qwen2.5-Coder",
                &["<|fim_prefix|>", "P", "<|fim_suffix|>", "S", "<|fim_middle|>"][..],
                "<|fim_pad|>",
            ),
            (
                "codegemma",
                &["<|fim_prefix|>", "P", "<|fim_suffix|>", "S", "<|fim_middle|>"],
                "<|file_separator|>",
            ),
            ("starcoder2", &["<fim_prefix>", "P", "<fim_suffix>", "S", "<fim_middle>"], "<file_sep>"),
            ("granite-3.3", &["<fim_prefix>", "P", "<fim_suffix>", "S", "<fim_middle>"], "<|end_of_text|>"),
            ("Mellum-4b", &["<fim_suffix>", "S", "<fim_prefix>", "P", "<fim_middle>"], "<filename>"),
            ("santacoder", &["<fim-prefix>", "P", "<fim-suffix>", "S", "<fim-middle>"], "<|endoftext|>"),
            (
                "deepseek-coder",
                &["<｜fim▁begin｜>", "P", "<｜fim▁hole｜>", "S", "<｜fim▁end｜>"],
                "<｜end▁of▁sentence｜>",
            ),
            ("CodeLlama", &["▁<PRE>", "P", "▁<SUF>", "S", "▁<MID>"], "▁<EOT>"),
            (
                "GLM-4.5",
                &["<|code_prefix|>", "P", "<|code_suffix|>", "S", "<|code_middle|>"],
                "<|endoftext|>",
            ),
            (
                "codegeex4",
                &["<|code_suffix|>", "S", "<|code_prefix|>", "P", "<|code_middle|>"],
                "<|endoftext|>",
            ),
            (
                "Seed-Coder",
                &["<[fim-suffix]>", "S", "<[fim-prefix]>", "P", "<[fim-middle]>"],
                "<[end▁of▁sentence]>",
            ),
            ("Codestral", &["[SUFFIX]", "S", "[PREFIX]", "P"], "</s>"),
            ("Falcon-H1-Coder", &["<|prefix|>", "P", "<|suffix|>", "S", "<|middle|>"], "<|endoftext|>"),
        ] {
            let mut marks: Vec<&str> =
                parts.iter().copied().filter(|part| !["P", "S"].contains(part)).collect();
            marks.push(end);
            let tokenizer = with(&marks);
            let infill = infill("def f(", "):\n  pass");
            let text: String = (parts.iter())
                .map(|part| match *part {
                    "P" => &infill.prefix,
                    "S" => &infill.suffix,
                    mark => mark,
                })
                .collect();
            let found = tokenizer.infill_marks().unwrap_or_else(|| panic!("{name}")).of_model(name);
            let ids = found.encode(&tokenizer, &infill, usize::MAX).unwrap();
            assert_eq!(ids, tokenizer.encode(&text).unwrap(), "{name}");
            let ends = found.ends();
            assert!(marks.iter().all(|mark| ends.contains(&tokenizer.token_id(mark).unwrap())), "{name}");
            // Not by a part of them.
            assert_eq!(with(&marks[..1]).infill_marks(), None, "{name}");
        }
        assert_eq!(with(&[]).infill_marks(), None);
    }

    /// As its paper has it: names do not end with a line, and the hole's own file begins with its mark alone.
    #[test]
    fn starcoder_has_its_own_way_with_files() {
        let marks = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<repo_name>", "<file_sep>"];
        let tokenizer = with(&marks);
        let infill = Infill { others: vec![("a.py".into(), "x\n".into())], ..infill("p", "s") };
        let ids = tokenizer.infill_marks().unwrap().encode(&tokenizer, &infill, usize::MAX).unwrap();
        let text = "<repo_name>project<file_sep>a.py\nx\n<file_sep><fim_prefix>p<fim_suffix>s<fim_middle>";
        assert_eq!(ids, tokenizer.encode(text).unwrap());
    }

    const QWEN: [&str; 5] =
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"];

    #[test]
    fn a_special_tokens_text_stays_text() {
        let tokenizer = with(&QWEN);
        let marks = tokenizer.infill_marks().unwrap();
        let ids = marks.encode(&tokenizer, &infill("a<|im_end|>", "<|im_start|>"), usize::MAX).unwrap();
        let specials = ["<|im_end|>", "<|im_start|>"].map(|text| tokenizer.token_id(text).unwrap());
        assert!(ids.iter().all(|id| !specials.contains(id)), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids[1..ids.len() - 1]).unwrap().matches("<|im_").count(), 2);
    }

    #[test]
    fn what_is_furthest_goes_first() {
        let tokenizer = with(&QWEN);
        let marks = tokenizer.infill_marks().unwrap();
        let others = vec![("a.py".into(), "first\n".into()), ("b.py".into(), "second\n".into())];
        let whole = Infill { others, ..infill(&"p ".repeat(40), &"s ".repeat(40)) };
        let encoded = |most: usize| marks.encode(&tokenizer, &whole, most).unwrap();
        let all = encoded(usize::MAX);
        let text =
            "<|repo_name|>project\n<|file_sep|>a.py\nfirst\n<|file_sep|>b.py\nsecond\n<|file_sep|>file\n"
                .to_owned();
        let text =
            format!("{text}<|fim_prefix|>{}<|fim_suffix|>{}<|fim_middle|>", whole.prefix, whole.suffix);
        assert_eq!(all, tokenizer.encode(&text).unwrap());
        assert_eq!(encoded(all.len()), all);

        // The first file goes, then the other one with all that is said of files.
        let one = encoded(all.len() - 1);
        let at =
            |ids: &[u32], mark: &str| ids.iter().filter(|&&id| Some(id) == tokenizer.token_id(mark)).count();
        assert_eq!((at(&all, QWEN[4]), at(&one, QWEN[4]), at(&one, QWEN[3])), (3, 2, 1));
        let bare = marks.encode(&tokenizer, &infill(&whole.prefix, &whole.suffix), usize::MAX).unwrap();
        assert_eq!(encoded(bare.len() + 3), bare);

        // Then the beginning of the prefix, and the end of the suffix down to a quarter.
        let cut = encoded(43);
        let hole = cut.iter().position(|&id| id == marks.suffix).unwrap();
        assert_eq!((cut.len(), hole, cut.len() - hole), (43, 31, 12));
        let between = bare.iter().position(|&id| id == marks.suffix).unwrap();
        assert_eq!(cut[1..hole], bare[between - 30..between]);
        assert_eq!(cut[hole..cut.len() - 1], bare[between..between + 11]);
        // A short prefix leaves its room to the suffix.
        let short = marks.encode(&tokenizer, &infill("p", &whole.suffix), 43).unwrap();
        assert_eq!((short.len(), short[2]), (43, marks.suffix));
        assert!(marks.encode(&tokenizer, &whole, 2).is_err());
        assert_eq!(encoded(3), [marks.prefix, marks.suffix, marks.middle.unwrap()]);
    }
}
