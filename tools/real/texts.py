"""200 texts that tokenizers part on, by kind."""

import unicodedata

SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>", "<eos>", "<pad>", "<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>",
    "<|fim_prefix|>", "<tool_call>", "<|file_sep|>", "<|im_start|", "<|IM_START|>", "< |im_end|>", "<|im_end|><|im_end|>",
    "a<|im_start|>b", " <|im_end|> ", "\n<|endoftext|>\n", "<bos><bos>x", "x<eos>", "<start_of_turn>user\nhi<end_of_turn>\n",
    "<|im_start|>user\nhi<|im_end|>\n", "<unused7>", "<filename>", "<reponame>a/b", "<0x0A>", "▁x▁▁y", "Ġhello Ċ", "[UNK] [CLS] ##ing",
]

SPACES = [
    " ", "  ", "   ", "    ", " " * 7, " " * 17, " " * 33, " " * 64, "\t", "\t\t", "\t \t ", "\n", "\n\n", "\n\n\n", "\n" * 9, "\r", "\r\n",
    "\r\n\r\n", "\n\r", "a\r\nb\rc\nd", " \n", "\n ", " \n \n ", "x  y   z    w", "  leading", "trailing  ", "\ttab first", "line\n\n\n  indented\n",
    "\u00a0", "a\u00a0b", "\u2003\u2009\u200a", "\u3000全角\u3000", "\u200b", "a\u200bb", "\ufeffmark", "\u2028x\u2029y", "\x0b\x0c", "\x85next",
    "\u202e", "end of line \n  ", "\n\t\n\t",
]

NUMBERS = [
    "0", "12", "123", "1234", "12345", "1234567890", "00042", "3.14159", "-1", "+5", "1,000,000", "1e-10", "6.02E+23", "0xDEADBEEF", "0b1010",
    "192.168.0.1", "2026-11-27T04:48:32Z", "$19.99", "50%", "½ ¾ ²³", "١٢٣٤", "१२३", "𝟙𝟚𝟛", "Ⅻ", "1st 2nd 3rd", "a1b22c333d4444", "1 2 3 4 5",
    "9" * 40, "10^100", "v1.2.3-rc.4+5", "(555) 867-5309",
]

WORDS = [
    "Hello, world!", "hello", " hello", "HELLO", "HeLLo WoRLD", "don't", "DON'T", "it's we'll I'd you've they're I'm", "It’s ’twas", "'S 'T 're",
    "o'clock rock'n'roll", "naïve café résumé", "Straße", "İstanbul ıI", "ǅ ﬁ ﬀ", "antidisestablishmentarianism",
    "Pneumonoultramicroscopicsilicovolcanoconiosis", "Donaudampfschifffahrtsgesellschaftskapitän", "a" * 100, "ab" * 60, "z" * 513,
    "supercalifragilistic" * 4, "e.g. i.e. etc.", "well-known state-of-the-art", "snake_case camelCase PascalCase SCREAMING_CASE",
    "https://example.org/a/b?q=1&r=%20#frag", "user@example.com", "C:\\Users\\x\\file.txt", "/usr/local/bin", "#hashtag @mention",
]

PUNCTUATION = [
    "...", "…", "!!!", "?!?!", "--", "—", "-" * 50, "=" * 80, "*" * 20, "()[]{}<>", "\"quoted\"", "“curly”", "``tex''", "\\", "\\\\n", "/*!*/",
    "~`!@#$%^&*()_+-={}|[]\\:\";'<>?,./", "::=", "=>", "|||", "a,b;c:d", ".,.,.,", "€£¥₹₿", "←↑→↓⇒", "∀x∈ℝ: ∃y", "§¶†‡•", "№ ™ © ®",
]

CODE = [
    "def f(x):\n    return x + 1\n", "fn main() {\n\tprintln!(\"{}\", 1);\n}\n", "for (int i = 0; i < n; ++i) { a[i] <<= 2; }",
    "SELECT * FROM t WHERE a='b' AND c>=1;", "{\"a\": [1, 2.5, null, true], \"b\": {\"c\": \"d\"}}", "<div class=\"x\">&amp;</div>",
    "#include <stdio.h>\n", "x = lambda y: (y, *z)  # comment", "if(a&&b||!c){return;}", "\\frac{a}{b} + \\sum_{i=0}^{n} x_i^2",
    "```python\nprint('hi')\n```", "let v: Vec<Option<&'static str>> = vec![];", "        deep\n            deeper\n                deepest\n", "$ ls -la | grep foo > out.txt 2>&1",
]

SCRIPTS = [
    "你好，世界", "今天天气很好。", "日本語のテキストです。", "カタカナ ひらがな", "한국어 문장입니다.", "한", "Привет, мир!", "Γειά σου Κόσμε",
    "مرحبا بالعالم", "بِسْمِ اللَّهِ", "שלום עולם", "नमस्ते दुनिया", "ক্ষ", "สวัสดีชาวโลก", "မြန်မာ", "ภาษาไทยไม่มีช่องว่าง", "தமிழ்", "ქართული", "Հայերեն",
    "አማርኛ", "ᏣᎳᎩ", "𐍈𐌰", "𠮷野家", "㍿㌀", "ｆｕｌｌｗｉｄｔｈ", "Tiếng Việt có dấu", "mixed 中文 and English 和 日本語",
]

MARKS = [
    "e\u0301", "é", "a\u0308\u0323", "Z̸̡̛͓a̷l̶g̵o̴", "\u0301", "o\u0302\u0301 ố", unicodedata.normalize("NFD", "Việt Nam"), "각", "\u1112\u1161\u11ab", "Å Å Å", "क्\u200dष", "x\u20e3 1\ufe0f\u20e3",
]

EMOJI = [
    "😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "❤", "🙂🙂🙂", "text 🎉 text", "👩🏿‍🚀", "🤷‍♂️", "🧑‍🤝‍🧑", "☺︎", "\U0001f9ff", "\U0001fae8",
]

ODD = [
    "\x00", "a\x00b", "\x07\x1b[0m", "\x7f", "\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\U000e0041\U000e007f", "Ã©", "â€™", "\u0600",
]


def texts():
    every = [*SPECIALS, *SPACES, *NUMBERS, *WORDS, *PUNCTUATION, *CODE, *SCRIPTS, *MARKS, *EMOJI, *ODD]
    return list(dict.fromkeys(every))


if __name__ == "__main__":
    print(len(texts()))
