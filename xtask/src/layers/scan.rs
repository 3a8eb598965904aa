//! What a source file says of modules: those that it declares, the names that it defines, and the paths that it writes.
//!
//! It reads tokens, not a syntax tree: a parser leaves the bodies of macros as tokens, and paths in them are imports too.
//! proc-macro2's lexer knows what is a comment, a string or a lifetime.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path in the code, as its segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub segments: Vec<String>,
    /// Its line, counted from 1: that of its last segment.
    pub line: usize,
}

/// A name that a `use` brings in.
#[derive(Debug, PartialEq, Eq)]
pub struct Use {
    pub path: Path,
    /// The name that it has here; none for a glob, which brings in all of them.
    pub name: Option<String>,
}

/// A module that is declared.
#[derive(Debug)]
pub struct Child {
    pub name: String,
    pub body: Body,
}

/// Where the text of a module is.
#[derive(Debug)]
pub enum Body {
    /// In a file; `#[path]`, where it is given, says which.
    File(Option<String>),
    /// In braces behind its name.
    Inline(Module),
}

/// The text of one module, without what only tests have.
#[derive(Debug, Default)]
pub struct Module {
    pub children: Vec<Child>,
    pub uses: Vec<Use>,
    /// Paths of two segments or more outside of `use`, whatever they name.
    pub paths: Vec<Path>,
    /// Names of the items that it defines.
    pub items: BTreeSet<String>,
}

/// Reads the text of a file.
///
/// # Errors
/// A text that is not made of Rust's tokens.
pub fn scan(text: &str) -> Result<Module> {
    let tokens: TokenStream = text.parse().map_err(|error| anyhow!("cannot be read as Rust: {error}"))?;
    let mut module = Module::default();
    module.read(tokens, true);
    Ok(module)
}

/// What the attributes before an item say.
#[derive(Default)]
struct Attributes {
    /// Whether only tests have it.
    test: bool,
    path: Option<String>,
}

impl Module {
    /// Reads tokens of this module; `items` says whether they are its items, and not inside of one.
    fn read(&mut self, tokens: TokenStream, items: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut attributes = Attributes::default();
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            if let Some((attribute, inner, len)) = attribute(rest) {
                attributes.take(&attribute);
                if inner && attributes.test {
                    return;
                }
                at += len;
                continue;
            }
            if std::mem::take(&mut attributes.test) {
                at += item(rest);
            } else if let Some(len) = visibility(rest) {
                at += len;
                // The attributes before it are those of the item behind it.
                continue;
            } else {
                at += self.read_one(rest, items, attributes.path.take());
            }
            attributes = Attributes::default();
        }
    }

    /// Reads what `tokens` begin with, and gives how many of them that is.
    fn read_one(&mut self, tokens: &[TokenTree], items: bool, path: Option<String>) -> usize {
        match &tokens[0] {
            TokenTree::Group(group) => {
                self.read(group.stream(), false);
                1
            }
            // `use<…>` in a type says what it captures.
            TokenTree::Ident(word)
                if word == "use" && !tokens.get(1).is_some_and(|next| is_punct(next, '<')) =>
            {
                let len = tokens.iter().take_while(|token| !is_punct(token, ';')).count();
                read_use(&tokens[1..len], &[], &mut self.uses);
                len
            }
            TokenTree::Ident(word) if word == "mod" => match (tokens.get(1), tokens.get(2)) {
                (Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) if is_braces(body) => {
                    let mut module = Self::default();
                    module.read(body.stream(), true);
                    self.children.push(Child { name: name.to_string(), body: Body::Inline(module) });
                    3
                }
                (Some(TokenTree::Ident(name)), Some(end)) if is_punct(end, ';') => {
                    self.children.push(Child { name: name.to_string(), body: Body::File(path) });
                    3
                }
                _ => 1,
            },
            TokenTree::Ident(word) => {
                if items && let Some(name) = defined(&word.to_string(), &tokens[1..]) {
                    self.items.insert(name);
                }
                let (path, len) = read_path(tokens);
                if path.segments.len() > 1 {
                    self.paths.push(path);
                }
                len
            }
            // A path behind `::` belongs to another crate, or to a type: its first segment is no name of this module.
            TokenTree::Punct(_) if is_colons(tokens) => {
                2 + tokens.get(2).map_or(0, |token| match token {
                    TokenTree::Ident(_) => read_path(&tokens[2..]).1,
                    _ => 0,
                })
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => 1,
        }
    }
}

impl Attributes {
    fn take(&mut self, attribute: &Group) {
        let tokens: Vec<TokenTree> = attribute.stream().into_iter().collect();
        match tokens.as_slice() {
            [TokenTree::Ident(name), TokenTree::Group(condition)] if name == "cfg" => {
                self.test |= only_tests(condition);
            }
            [TokenTree::Ident(name), equals, TokenTree::Literal(file)]
                if name == "path" && is_punct(equals, '=') =>
            {
                self.path = Some(file.to_string().trim_matches('"').to_owned());
            }
            _ => {}
        }
    }
}

/// Whether a condition, `(test)` or `(all(test, …))`, holds in tests alone.
fn only_tests(condition: &Group) -> bool {
    let tokens: Vec<TokenTree> = condition.stream().into_iter().collect();
    match tokens.as_slice() {
        [TokenTree::Ident(word)] => word == "test",
        [TokenTree::Ident(word), TokenTree::Group(all)] if word == "all" => {
            let tokens: Vec<TokenTree> = all.stream().into_iter().collect();
            tokens.split(|token| is_punct(token, ',')).any(|part| match part {
                [TokenTree::Ident(word)] => word == "test",
                _ => false,
            })
        }
        _ => false,
    }
}

/// The attribute that `tokens` begin with, whether it is an inner one, and how many tokens it has.
fn attribute(tokens: &[TokenTree]) -> Option<(Group, bool, usize)> {
    let [hash, rest @ ..] = tokens else { return None };
    let inner = rest.first().is_some_and(|token| is_punct(token, '!'));
    match rest.get(usize::from(inner)) {
        Some(TokenTree::Group(group)) if is_punct(hash, '#') && group.delimiter() == Delimiter::Bracket => {
            Some((group.clone(), inner, 2 + usize::from(inner)))
        }
        _ => None,
    }
}

/// How many tokens of `pub` or `pub(…)` come first: what stands in it is no import.
fn visibility(tokens: &[TokenTree]) -> Option<usize> {
    match tokens {
        [TokenTree::Ident(word), TokenTree::Group(scope), ..]
            if word == "pub" && scope.delimiter() == Delimiter::Parenthesis =>
        {
            Some(2)
        }
        [TokenTree::Ident(word), ..] if word == "pub" => Some(1),
        _ => None,
    }
}

/// How many tokens the item, field, arm or statement has that `tokens` begin with.
fn item(tokens: &[TokenTree]) -> usize {
    const ITEMS: [&str; 13] = [
        "fn",
        "struct",
        "enum",
        "union",
        "impl",
        "trait",
        "type",
        "const",
        "static",
        "unsafe",
        "async",
        "use",
        "macro_rules",
    ];
    let start = visibility(tokens).unwrap_or(0);
    let is_item = match tokens.get(start) {
        Some(TokenTree::Ident(word)) => {
            word == "mod" || word == "extern" || ITEMS.iter().any(|item| word == item)
        }
        _ => false,
    };
    // A comma ends a field, but an item has them between its generic parameters.
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => is_braces(group),
        token => is_punct(token, ';') || (!is_item && is_punct(token, ',')),
    };
    tokens.iter().position(ends).map_or(tokens.len(), |end| end + 1)
}

/// The name of the item that `keyword` begins.
fn defined(keyword: &str, rest: &[TokenTree]) -> Option<String> {
    let name = match keyword {
        "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static" => rest.first(),
        "macro_rules" if rest.first().is_some_and(|token| is_punct(token, '!')) => rest.get(1),
        _ => None,
    };
    match name {
        Some(TokenTree::Ident(name)) => Some(name.to_string()),
        _ => None,
    }
}

/// The path that `tokens`, of which the first is a word, begin with, and how many tokens it has.
fn read_path(tokens: &[TokenTree]) -> (Path, usize) {
    let mut path = Path { segments: Vec::new(), line: 0 };
    let mut len = 0;
    while let Some(TokenTree::Ident(word)) = tokens.get(len) {
        path.segments.push(word.to_string());
        path.line = word.span().start().line;
        len += 1;
        match is_colons(&tokens[len..]) && matches!(tokens.get(len + 2), Some(TokenTree::Ident(_))) {
            true => len += 2,
            false => break,
        }
    }
    (path, len)
}

/// Reads what stands between `use` and `;`, or in braces, behind the segments `before`.
fn read_use(tokens: &[TokenTree], before: &[String], uses: &mut Vec<Use>) {
    for tree in tokens.split(|token| is_punct(token, ',')) {
        let tree = match tree {
            [dollar, TokenTree::Ident(word), ..] if is_punct(dollar, '$') && word == "crate" => &tree[1..],
            tree => tree,
        };
        // `::a` is another crate's whatever this module has.
        let Some(TokenTree::Ident(_)) = tree.first() else {
            match tree {
                // A macro's parameter may be any name.
                [TokenTree::Punct(any), ..] if ['*', '$'].contains(&any.as_char()) => {
                    let path = Path { segments: before.to_vec(), line: any.span().start().line };
                    uses.push(Use { path, name: None });
                }
                [TokenTree::Group(group)] => read_use(&Vec::from_iter(group.stream()), before, uses),
                _ => {}
            }
            continue;
        };
        let (mut path, len) = read_path(tree);
        path.segments.splice(0..0, before.iter().cloned());
        // `a::{self}` is `a`.
        if path.segments.len() > 1 && path.segments.last().is_some_and(|last| last == "self") {
            path.segments.pop();
        }
        match &tree[len..] {
            [] => {
                let name = path.segments.last().cloned();
                uses.push(Use { path, name });
            }
            [TokenTree::Ident(word), TokenTree::Ident(name)] if word == "as" => {
                let name = Some(name.to_string());
                uses.push(Use { path, name });
            }
            [_, _, rest @ ..] if is_colons(&tree[len..]) => read_use(rest, &path.segments, uses),
            _ => {}
        }
    }
}

fn is_punct(token: &TokenTree, punct: char) -> bool {
    matches!(token, TokenTree::Punct(found) if found.as_char() == punct)
}

fn is_colons(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [first, second, ..] if is_punct(first, ':') && is_punct(second, ':'))
}

fn is_braces(group: &Group) -> bool {
    group.delimiter() == Delimiter::Brace
}
