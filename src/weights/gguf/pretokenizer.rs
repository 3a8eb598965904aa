//! Pre-tokenizers: where the names in `tokenizer.ggml.pre` split a text before tokens are merged. llama.cpp knows the same
//! names; a pattern is that of the models' own `tokenizer.json` where they publish one.
//!
//! Patterns keep to what Oniguruma and fancy-regex read alike.

use super::Metadata;
use super::vocabulary::{MODEL, PRE};
use crate::error::Result;
use crate::text::patterns::{GPT2, GPT4O, KIMI, LLAMA3, QWEN2, TEKKEN};

/// How a text becomes the pieces in which tokens are merged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pre {
    /// What `tokenizer.ggml.pre` calls it; the first is written.
    pub names: &'static [&'static str],
    /// Patterns, each of which splits the pieces of the one before: a match is a piece, and so is what lies between two.
    pub splits: &'static [&'static str],
    pub letters: Letters,
    /// Whether texts are composed first.
    pub nfc: bool,
    /// Whether a piece that is a token is taken as it is.
    pub ignore_merges: bool,
    pub bos: Bos,
}

/// What tokens are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Letters {
    /// A character for each byte, as GPT-2 has them.
    Bytes,
    /// The text's own characters, `▁` for a space, `<0x0A>` for the bytes of a character that no token has.
    Text,
}

/// When BOS begins a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bos {
    /// Where the file asks for it.
    Asked,
    /// Unless the file says no.
    Usual,
    /// Whatever the file says.
    Always,
}

impl Pre {
    const fn new(names: &'static [&'static str], splits: &'static [&'static str]) -> Self {
        Self { names, splits, letters: Letters::Bytes, nfc: false, ignore_merges: false, bos: Bos::Asked }
    }

    const fn text(self) -> Self {
        Self { letters: Letters::Text, ..self }
    }

    const fn nfc(self) -> Self {
        Self { nfc: true, ..self }
    }

    const fn ignore_merges(self) -> Self {
        Self { ignore_merges: true, ..self }
    }

    const fn bos(self, bos: Bos) -> Self {
        Self { bos, ..self }
    }

    /// That of a model whose merges the file lists.
    pub fn of(metadata: &Metadata) -> Result<&'static Self> {
        let name = match metadata.string(MODEL)? {
            Some(model @ "gemma4") => model,
            // What llama.cpp does for a file that names none.
            _ => metadata.string(PRE)?.filter(|name| !name.is_empty()).unwrap_or("default"),
        };
        TABLE.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
            metadata.refuse(PRE, "a pre-tokenizer that is known, such as llama-bpe, qwen2 or gpt-2")
        })
    }
}

/// The name in `tokenizer.ggml.pre` of a byte-level tokenizer whose splits have the patterns `splits`; `nfc` says whether
/// texts are composed first, `ignore_merges` whether whole pieces are taken as they are.
pub(crate) fn pre_name(splits: &[&str], nfc: bool, ignore_merges: bool) -> Option<&'static str> {
    let written = |split: &&str| {
        // Some files have line breaks in their patterns as such.
        let split = split.replace('\r', r"\r").replace('\n', r"\n");
        let other = PUBLISHED.iter().find(|(published, _)| *published == split);
        other.map_or(split, |(_, ours)| (*ours).to_owned())
    };
    let splits: Vec<String> = splits.iter().map(written).collect();
    let same = |pre: &&Pre| {
        let flags = (pre.letters, pre.nfc, pre.ignore_merges) == (Letters::Bytes, nfc, ignore_merges);
        flags && pre.splits.iter().eq(&splits)
    };
    TABLE.iter().find(same).map(|pre| pre.names[0])
}

/// Digits one by one.
pub(crate) const DIGIT: &str = r"\p{N}";
/// Digits in runs.
pub(crate) const DIGITS: &str = r"\p{N}+";

const DIGITS_BY_3: &str = r"\p{N}{1,3}";
/// The one or two digits of a piece before whole groups of three. Two steps more split the groups: one pattern for all of
/// them would look ahead to the end of the number at each group.
const DIGITS_BEFORE_GROUPS: &str = r"\A\p{N}{1,2}(?=(?:\p{N}{3})+\z)";
/// The digits of a piece before groups of three, and each group: `\d{1,3}(?=(?:\d{3})*\b)` in the models' files, in steps
/// for the same reason. The pattern after it splits the groups.
const NUMBER: &str = r"(?<!\d)(?>\d+)\b";
const NUMBER_BEFORE_GROUPS: &str = r"\A\d{1,2}(?=(?:\d{3})+\z)";
/// Before each group of three digits, counted from the last; with an end, so that a million digits are not counted at each
/// of them.
const GROUPS: &str = r"(?=(?:\d{3}){1,100}(?!\d))";
/// White space at the end.
const SPACES_AT_END: &str = r"\s+$";
const LINES: &str = r"[^\n]+|[\n]+";
const LINE_BREAK: &str = r"[\r\n]";

const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The models' files have possessive `?+` and `++`, after which nothing is ever given back anyway.
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;

const HAN_AND_KANA: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const HAN_AND_HANGUL: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";
const YOUTU_SCRIPTS: &str =
    "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-\u{303f}\u{fe30}-\u{fe4f}]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+";
/// Scripts of East and South-East Asia, whole blocks of them.
const ASIAN: &str = "[一-\u{9fff}\u{3400}-\u{4dbf}\u{f900}-\u{faff}\u{3040}-ゟ゠-ヿ\u{ff65}-\u{ff9f}\u{2f00}-\u{2fdf}\u{e40}-\u{e7f}\u{e80}-\u{eff}\u{1780}-\u{17ff}\u{1000}-\u{109f}\u{aa60}-\u{aa7f}\u{a9e0}-\u{a9ff}\u{ac00}-\u{d7af}\u{1100}-\u{11ff}]+";
/// Letters that have cases.
const CASED: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+";
const PUNCTUATION: &str = "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+";
const BLOOM: &str = " ?[^(\\s|.,!?…。，、\u{964}\u{6d4}\u{60c})]+";

/// Patterns as models publish them, and those that split alike here.
const PUBLISHED: [(&str, &str); 3] = [
    (r"(?=(\d{3})+(?!\d))", GROUPS),
    (" ?[^(\\s|[.,!?…。，、\u{964}\u{6d4}\u{60c}])]+", BLOOM),
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        BAILING,
    ),
];

/// Every pre-tokenizer. Of those that write alike, the first gives the name.
pub(super) static TABLE: &[Pre] = &[
    Pre::new(
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        &[LLAMA3],
    )
    .ignore_merges()
    .bos(Bos::Usual),
    Pre::new(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    Pre::new(&["glm4", "glm5"], &[LLAMA3]).ignore_merges(),
    Pre::new(&["jais-2"], &[JAIS2]),
    Pre::new(&["minicpm5"], &[DIGITS_BY_3, MINICPM5]).ignore_merges(),
    Pre::new(&["qwen2", "deepseek-r1-qwen", "f2llmv2"], &[QWEN2]).nfc(),
    Pre::new(&["stablelm2", "hunyuan", "megrez", "kormo", "grok-2", "solar-open"], &[QWEN2]),
    Pre::new(&["qwen35"], &[QWEN35]),
    Pre::new(&["laguna"], &[LINES, QWEN2]),
    Pre::new(&["ufakzeka"], &[UFAKZEKA]),
    Pre::new(&["seed-coder"], &[SEED_CODER]),
    Pre::new(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    Pre::new(&["exaone-moe"], &[EXAONE_MOE]),
    Pre::new(&["tekken"], &[TEKKEN]).ignore_merges().bos(Bos::Usual),
    Pre::new(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "granite-embed-multi-97m"], &[GPT4O])
        .ignore_merges(),
    Pre::new(&["tiny_aya", "cohere2moe"], &[NUMBER, NUMBER_BEFORE_GROUPS, GPT4O]),
    Pre::new(&["youtu"], &[YOUTU_SCRIPTS, YOUTU]).ignore_merges(),
    Pre::new(&["kimi-k2"], &[KIMI]),
    Pre::new(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "roberta-bpe",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
        ],
        &[GPT2],
    ),
    Pre::new(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    Pre::new(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    Pre::new(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, DIGITS, "[0-9][0-9][0-9]"]),
    Pre::new(
        &["chameleon"],
        &[
            "<sentinel:[0-9]+>",
            "(?:IMGIMG)(?:[A-I]{1,4})Z",
            r"[\t\n]|    |  ",
            DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
    )
    .bos(Bos::Usual),
    Pre::new(&["deepseek-llm"], &[LINE_BREAK, CASED, PUNCTUATION, SPACES_AT_END, HAN_AND_HANGUL, DIGITS]),
    Pre::new(&["deepseek-coder"], &[LINE_BREAK, r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL, DIGIT]),
    Pre::new(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[DIGITS_BY_3, HAN_AND_KANA, DEEPSEEK3],
    ),
    Pre::new(&["spark2_5"], &[DIGITS_BY_3, HAN_AND_KANA, SPARK, DIGIT]),
    Pre::new(&["afmoe"], &[DIGITS, DIGITS_BEFORE_GROUPS, DIGITS_BY_3, ASIAN, DEEPSEEK3]),
    Pre::new(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    Pre::new(&["viking"], &[BLOOM, DIGIT]),
    Pre::new(&["superbpe"], &[DIGITS, GROUPS]),
    Pre::new(&["gemma4", "granite-embed-multi-311m"], &[LINES]).text().bos(Bos::Always),
    Pre::new(&["sarvam-moe"], &[LINES]).text(),
];
