//! What can be refused in a chat template before it is compiled: the compiler folds constants and recurses.

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};
use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// The longest template, in bytes: ten times the longest seen in a model.
pub(super) const MAX_SOURCE: usize = 256 << 10;
/// Tokens in one tag; each may be a level of the syntax tree.
const MAX_TAG_TOKENS: usize = 4096;
/// `elif`s in a template; each nests the syntax tree by one.
const MAX_ELIF: usize = 512;
/// Bytes of a folded constant, and of all constants made while folding.
const MAX_CONSTANT: usize = 64 << 10;
const MAX_FOLDING: usize = 16 << 20;

/// Checks the tokens: how deep the parser and the compiler can get.
pub(super) fn tokens(source: &str, syntax: &SyntaxConfig) -> Result<(), String> {
    if source.len() > MAX_SOURCE {
        return Err(format!("{} bytes, expected at most {MAX_SOURCE}", source.len()));
    }
    let (mut in_tag, mut elifs) = (0, 0);
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token.map_err(|e| e.to_string())?;
        in_tag += 1;
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => in_tag = 0,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        if in_tag > MAX_TAG_TOKENS || elifs > MAX_ELIF {
            return Err(format!("line {}: too long an expression or chain of conditions", span.start_line));
        }
    }
    Ok(())
}

/// Walks the syntax tree: refuses other templates, and constants that would be folded into something large.
#[derive(Default)]
pub(super) struct Screen {
    folding: usize,
}

/// An upper bound of a constant: bytes, whether it can be repeated, its value if it is a whole number.
struct Constant {
    bytes: usize,
    text: bool,
    number: Option<usize>,
    /// What computing it allocates.
    cost: usize,
}

impl Screen {
    pub(super) fn body(&mut self, body: &[Stmt]) -> Result<(), String> {
        body.iter().try_for_each(|s| self.stmt(s))
    }

    pub(super) fn stmt(&mut self, stmt: &Stmt) -> Result<(), String> {
        match stmt {
            Stmt::Template(s) => self.body(&s.children),
            Stmt::EmitExpr(s) => self.expr(&s.expr),
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => Ok(()),
            Stmt::ForLoop(s) => {
                self.expr(&s.iter)?;
                s.filter_expr.iter().try_for_each(|e| self.expr(e))?;
                self.body(&s.body)?;
                self.body(&s.else_body)
            }
            Stmt::IfCond(s) => {
                self.expr(&s.expr)?;
                self.body(&s.true_body)?;
                self.body(&s.false_body)
            }
            Stmt::WithBlock(s) => {
                s.assignments.iter().try_for_each(|(_, e)| self.expr(e))?;
                self.body(&s.body)
            }
            Stmt::Set(s) => self.expr(&s.target).and_then(|()| self.expr(&s.expr)),
            Stmt::SetBlock(s) => {
                s.filter.iter().try_for_each(|e| self.expr(e))?;
                self.body(&s.body)
            }
            Stmt::AutoEscape(_) => Err("autoescape is not supported".into()),
            Stmt::FilterBlock(s) => self.expr(&s.filter).and_then(|()| self.body(&s.body)),
            Stmt::Macro(s) => {
                s.defaults.iter().try_for_each(|e| self.expr(e))?;
                self.body(&s.body)
            }
            Stmt::CallBlock(s) => {
                self.expr(&s.call.expr)?;
                self.args(&s.call.args)?;
                self.body(&s.macro_decl.body)
            }
            Stmt::Do(s) => self.expr(&s.call.expr).and_then(|()| self.args(&s.call.args)),
            Stmt::Block(_) | Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
                Err("include, import, extends and block are not supported".into())
            }
        }
    }

    fn args(&mut self, args: &[CallArg]) -> Result<(), String> {
        args.iter().try_for_each(|arg| match arg {
            CallArg::Pos(e) | CallArg::Kwarg(_, e) | CallArg::PosSplat(e) | CallArg::KwargSplat(e) => {
                self.expr(e)
            }
        })
    }

    fn expr(&mut self, expr: &Expr) -> Result<(), String> {
        self.fold(expr).map(|_| ())
    }

    /// Visits an expression; returns its bound if it is a constant.
    fn fold(&mut self, expr: &Expr) -> Result<Option<Constant>, String> {
        let folded = match expr {
            Expr::Var(_) => None,
            Expr::Const(c) => {
                let bytes = c.value.as_str().map_or(48, str::len);
                let text = c.value.as_str().is_some();
                Some(Constant { bytes, text, number: c.value.as_usize(), cost: bytes })
            }
            Expr::List(s) => self.all(s.items.iter())?,
            Expr::Tuple(s) => self.all(s.items.iter())?,
            Expr::Map(s) => self.all(s.keys.iter().chain(&s.values))?,
            Expr::UnaryOp(s) => self.fold(&s.expr)?.map(|c| Constant { number: None, ..c }),
            Expr::BinOp(s) => {
                let (left, right) = (self.fold(&s.left)?, self.fold(&s.right)?);
                match (left, right) {
                    (Some(a), Some(b)) => Some(binary(s.op, &a, &b)),
                    (Some(a), None) => {
                        self.folding = self.folding.saturating_add(a.cost);
                        None
                    }
                    _ => None,
                }
            }
            Expr::Compare(s) => {
                self.expr(&s.expr)?;
                s.ops.iter().try_for_each(|o| self.expr(&o.expr))?;
                None
            }
            Expr::Slice(s) => {
                self.expr(&s.expr)?;
                let parts = [&s.start, &s.stop, &s.step];
                parts.into_iter().flatten().try_for_each(|e| self.expr(e))?;
                None
            }
            Expr::IfExpr(s) => {
                self.expr(&s.test_expr)?;
                self.expr(&s.true_expr)?;
                s.false_expr.iter().try_for_each(|e| self.expr(e))?;
                None
            }
            Expr::Filter(s) => {
                s.expr.iter().try_for_each(|e| self.expr(e))?;
                self.args(&s.args)?;
                None
            }
            Expr::Test(s) => {
                self.expr(&s.expr)?;
                self.args(&s.args)?;
                None
            }
            Expr::GetAttr(s) => {
                self.expr(&s.expr)?;
                None
            }
            Expr::GetItem(s) => {
                self.expr(&s.expr)?;
                self.expr(&s.subscript_expr)?;
                None
            }
            Expr::Call(s) => {
                self.expr(&s.expr)?;
                self.args(&s.args)?;
                None
            }
        };
        if let Some(constant) = &folded {
            self.folding = self.folding.saturating_add(constant.cost);
            if constant.bytes > MAX_CONSTANT || self.folding > MAX_FOLDING {
                return Err(format!("line {}: too large a constant", expr.span().start_line));
            }
        }
        Ok(folded)
    }

    fn all<'a>(&mut self, items: impl Iterator<Item = &'a Expr<'a>>) -> Result<Option<Constant>, String> {
        let mut sum = Some(Constant { bytes: 48, text: true, number: None, cost: 48 });
        for item in items {
            let item = self.fold(item)?;
            sum = sum.zip(item).map(|(s, i)| Constant {
                bytes: s.bytes.saturating_add(i.bytes),
                cost: s.cost.saturating_add(i.cost),
                ..s
            });
        }
        Ok(sum)
    }
}

fn binary(op: BinOpKind, a: &Constant, b: &Constant) -> Constant {
    let text = a.text || b.text || matches!(op, BinOpKind::Concat);
    let bytes = match op {
        BinOpKind::Mul if text => {
            // A count that is itself computed is taken as without bound.
            let (bytes, count) = if a.text { (a.bytes, b.number) } else { (b.bytes, a.number) };
            bytes.saturating_mul(count.unwrap_or(usize::MAX))
        }
        _ => a.bytes.saturating_add(b.bytes).max(48),
    };
    let cost = a.cost.saturating_add(b.cost).saturating_add(bytes);
    Constant { bytes, text, number: None, cost }
}
