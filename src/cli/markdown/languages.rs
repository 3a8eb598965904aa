//! What is told apart in code, language by language.

/// A language, or several that are alike.
#[derive(Debug)]
pub struct Language {
    /// As they are named after a fence, in lower case.
    names: &'static [&'static str],
    pub line_comments: &'static [&'static str],
    pub comment: Option<(&'static str, &'static str)>,
    pub quotes: &'static [Quote],
    /// `'x'` is a character, and `'a` by itself something else.
    pub characters: bool,
    /// Separated by spaces.
    pub keywords: &'static str,
    /// Whether keywords are written in any case; they stand here in lower case.
    pub any_case: bool,
    /// Whether the name behind `<` is a tag's.
    pub tags: bool,
    /// Whether the first character of a line tells what it is.
    pub diff: bool,
}

/// Quoted text.
#[derive(Debug)]
pub struct Quote {
    pub start: &'static str,
    pub end: &'static str,
    /// Whether a backslash takes the next character in.
    pub escapes: bool,
    /// Whether a line's end ends it.
    pub one_line: bool,
}

impl Quote {
    /// A character whose backslash is known.
    pub const CHARACTER: Self = line("'");
}

/// In one line, with backslashes.
const fn line(mark: &'static str) -> Quote {
    Quote { start: mark, end: mark, escapes: true, one_line: true }
}

/// Over lines, with backslashes.
const fn lines(mark: &'static str) -> Quote {
    Quote { start: mark, end: mark, escapes: true, one_line: false }
}

/// Over lines, each character as it is.
const fn raw(start: &'static str, end: &'static str) -> Quote {
    Quote { start, end, escapes: false, one_line: false }
}

const DOUBLE: &[Quote] = &[line("\"")];
const BOTH: &[Quote] = &[line("\""), line("'")];
const SLASHES: &[&str] = &["//"];
const STARS: Option<(&str, &str)> = Some(("/*", "*/"));

const NONE: Language = Language {
    names: &[],
    line_comments: &[],
    comment: None,
    quotes: BOTH,
    characters: false,
    keywords: "",
    any_case: false,
    tags: false,
    diff: false,
};

const LIKE_C: Language = Language { line_comments: SLASHES, comment: STARS, ..NONE };
const LIKE_SHELL: Language = Language { line_comments: &["#"], ..NONE };

static LANGUAGES: [Language; 25] = [
    Language {
        names: &["python", "py", "python3", "pycon", "starlark"],
        quotes: &[lines("\"\"\""), lines("'''"), line("\""), line("'")],
        keywords: "False None True and as assert async await break case class continue def del elif else except finally for \
                   from global if import in is lambda match nonlocal not or pass raise return try while with yield",
        ..LIKE_SHELL
    },
    Language {
        names: &["rust", "rs"],
        quotes: &[raw("r##\"", "\"##"), raw("r#\"", "\"#"), raw("r\"", "\""), lines("\"")],
        characters: true,
        keywords: "Self as async await break const continue crate dyn else enum extern false fn for if impl in let loop match \
                   mod move mut pub ref return self static struct super trait true type union unsafe use where while",
        ..LIKE_C
    },
    Language {
        names: &["javascript", "js", "jsx", "mjs", "node", "typescript", "ts", "tsx"],
        quotes: &[line("\""), line("'"), lines("`")],
        keywords: "abstract any as async await boolean break case catch class const continue debugger declare default delete \
                   do else enum export extends false finally for from function get if implements import in infer instanceof \
                   interface keyof let namespace never new null number of private protected public readonly return set \
                   static string super switch this throw true try type typeof undefined unknown var void while with yield",
        ..LIKE_C
    },
    Language {
        names: &[
            "c", "h", "cpp", "c++", "cc", "cxx", "hpp", "cuda", "cu", "objc", "metal", "glsl", "hlsl",
            "arduino",
        ],
        keywords: "alignas auto bool break case catch char class const constexpr continue decltype default define delete do \
                   double elif else endif enum explicit extern false final float for friend if ifdef ifndef include inline \
                   int long mutable namespace new noexcept nullptr operator override pragma private protected public \
                   register return short signed sizeof static struct switch template this throw true try typedef typename \
                   undef union unsigned using virtual void volatile while",
        ..LIKE_C
    },
    Language {
        names: &["java", "kotlin", "kt", "scala", "groovy", "gradle"],
        quotes: &[raw("\"\"\"", "\"\"\""), line("\""), line("'")],
        keywords: "abstract as assert boolean break byte case catch char class companion const continue data def default do \
                   double else enum extends false final finally float for fun given if implements import in instanceof int \
                   interface internal is lateinit lazy long match native new null object open override package private \
                   protected public record return sealed short static super suspend switch synchronized this throw throws \
                   trait transient true try type val var void volatile when while with yield",
        ..LIKE_C
    },
    Language {
        names: &["csharp", "cs", "c#"],
        quotes: &[raw("@\"", "\""), line("\""), line("'")],
        keywords: "abstract as async await base bool break byte case catch char class const continue decimal default delegate \
                   do double else enum event explicit extern false finally fixed float for foreach get goto if implicit in \
                   init int interface internal is lock long namespace new null object operator out override params private \
                   protected public readonly record ref return sealed set short sizeof static string struct switch this \
                   throw true try typeof uint ulong unsafe using var virtual void volatile where while yield",
        ..LIKE_C
    },
    Language {
        names: &["go", "golang"],
        quotes: &[line("\""), line("'"), raw("`", "`")],
        keywords: "any bool break byte case chan const continue default defer else error fallthrough false float32 float64 for \
                   func go goto if import int int32 int64 interface iota map nil package range return rune select string \
                   struct switch true type uint uint32 uint64 var",
        ..LIKE_C
    },
    Language {
        names: &["swift"],
        quotes: &[lines("\"\"\""), line("\"")],
        keywords: "Any Self actor as associatedtype async await break case catch class continue default defer do else enum \
                   extension fallthrough false fileprivate for func guard if import in init inout internal is let mutating \
                   nil open operator override private protocol public repeat rethrows return self some static struct super \
                   switch throw throws true try typealias var where while",
        ..LIKE_C
    },
    Language {
        names: &["zig"],
        quotes: BOTH,
        keywords: "and anytype bool break catch comptime const continue defer else enum errdefer error export extern false fn \
                   for if inline null or orelse packed pub return struct switch test true try undefined union unreachable \
                   usize var void while",
        ..LIKE_C
    },
    Language {
        names: &["php"],
        line_comments: &["//", "#"],
        keywords: "abstract and array as break case catch class clone const continue declare default do echo else elseif empty \
                   enum extends false final finally fn for foreach function global if implements include instanceof \
                   interface isset match namespace new null or print private protected public readonly require return static \
                   switch throw trait true try use var while yield",
        ..LIKE_C
    },
    Language {
        names: &["dart"],
        quotes: &[lines("\"\"\""), lines("'''"), line("\""), line("'")],
        keywords: "abstract as assert async await bool break case catch class const continue default do double dynamic else \
                   enum extends extension factory false final finally for get if implements import in int is late library \
                   mixin new null on required return set static super switch this throw true try typedef var void while with \
                   yield",
        ..LIKE_C
    },
    Language {
        names: &["bash", "sh", "shell", "zsh", "console", "fish", "ksh"],
        quotes: &[lines("\""), raw("'", "'")],
        keywords: "case do done elif else esac exit export fi for function if in local readonly return select set shift source \
                   then trap unset until while",
        ..LIKE_SHELL
    },
    Language {
        names: &["powershell", "ps1", "pwsh"],
        comment: Some(("<#", "#>")),
        quotes: &[raw("\"", "\""), raw("'", "'")],
        keywords: "begin break catch continue do else elseif end exit finally for foreach function if in param process return \
                   switch throw try until while",
        any_case: true,
        ..LIKE_SHELL
    },
    Language {
        names: &["ruby", "rb"],
        keywords: "alias and begin break case class def defined do else elsif end ensure false for if in module next nil not or \
                   redo require rescue retry return self super then true undef unless until when while yield",
        ..LIKE_SHELL
    },
    Language {
        names: &["perl", "pl"],
        keywords: "and bless default do each else elsif eq for foreach given if keys last local my ne next not or our package \
                   print return shift sub undef unless until use while",
        ..LIKE_SHELL
    },
    Language {
        names: &["r", "julia", "jl", "elixir", "ex", "nim"],
        quotes: &[lines("\"\"\""), line("\"")],
        keywords: "FALSE NULL TRUE abstract and begin break case cond const def defmodule defp discard do else elseif end export \
                   false finally fn for function global if import in let library local macro module mutable next nil or \
                   proc quote repeat return struct then true try type using var when where while with yield",
        ..LIKE_SHELL
    },
    Language {
        names: &["yaml", "yml", "toml", "ini", "conf", "properties", "env", "dotenv", "cfg"],
        quotes: &[lines("\"\"\""), raw("'''", "'''"), line("\""), Quote { escapes: false, ..line("'") }],
        line_comments: &["#", ";"],
        keywords: "false no null off on true yes",
        ..NONE
    },
    Language {
        names: &["dockerfile", "docker", "makefile", "make", "cmake", "nix", "terraform", "hcl", "tf"],
        keywords: "add arg cmd copy data define else elseif endfunction endif entrypoint env export expose false for from \
                   function healthcheck if ifeq in include inherit label let locals module output provider resource run set \
                   shell then true user variable volume with workdir",
        any_case: true,
        ..LIKE_SHELL
    },
    Language {
        names: &["json", "jsonc", "json5", "jsonl", "ndjson"],
        quotes: DOUBLE,
        keywords: "false null true",
        ..LIKE_C
    },
    Language {
        names: &["sql", "mysql", "postgresql", "postgres", "sqlite", "plsql"],
        line_comments: &["--"],
        comment: STARS,
        quotes: &[raw("'", "'"), raw("\"", "\"")],
        keywords: "add all alter and any as asc begin between bigint boolean by cascade case check column commit constraint \
                   count create cross database date default delete desc distinct drop else end except exists false foreign \
                   from full function group having if in index inner insert int integer intersect into is join key left \
                   like limit not null numeric offset on or order outer over partition primary references returning right \
                   rollback select serial set table text then timestamp transaction trigger true union unique update using \
                   values varchar view when where with",
        any_case: true,
        ..NONE
    },
    Language {
        names: &["lua", "haskell", "hs", "elm"],
        line_comments: &["--"],
        quotes: DOUBLE,
        keywords: "and break case class data deriving do else elseif end false for foreign function if import in infix instance \
                   let local module newtype nil not of or repeat return then true type until where while",
        ..NONE
    },
    Language {
        names: &["html", "xml", "svg", "vue", "svelte", "xhtml"],
        comment: Some(("<!--", "-->")),
        quotes: &[raw("\"", "\"")],
        tags: true,
        ..NONE
    },
    Language {
        names: &["css", "scss", "sass", "less"],
        comment: STARS,
        keywords: "auto block flex grid important inherit initial media none unset var",
        ..NONE
    },
    Language {
        names: &["lisp", "clojure", "clj", "scheme", "elisp", "racket"],
        line_comments: &[";"],
        quotes: &[lines("\"")],
        keywords: "and cond def define defmacro defn defun do else fn if lambda let loop nil not or quote recur require set \
                   setq t true when",
        ..NONE
    },
    Language { names: &["diff", "patch"], quotes: &[], diff: true, ..NONE },
];

/// The language of a name, in any case.
pub fn language(name: &str) -> Option<&'static Language> {
    let name = name.to_ascii_lowercase();
    LANGUAGES.iter().find(|language| language.names.contains(&&*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_form() {
        let mut names: Vec<&str> = LANGUAGES.iter().flat_map(|language| language.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a name stands twice");
        for language in &LANGUAGES {
            let lower = |text: &str| text.chars().all(|c| !c.is_ascii_uppercase());
            assert!(language.names.iter().all(|name| lower(name)), "{:?}", language.names);
            assert!(!language.any_case || lower(language.keywords), "{:?}", language.names);
            assert!(
                language.keywords.is_empty() || language.keywords.split(' ').all(|word| !word.is_empty())
            );
            // A quote that begins with another one is found first.
            for (i, quote) in language.quotes.iter().enumerate() {
                let before = &language.quotes[..i];
                assert!(before.iter().all(|other| !quote.start.starts_with(other.start)), "{quote:?}");
            }
        }
    }
}
