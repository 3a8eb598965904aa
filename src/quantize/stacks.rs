//! What is written of a model's tensors: each by itself, and the projections of a layer's experts as one.

use std::collections::HashMap;
use std::ops::Range;

use super::source::Source;
use crate::error::Result;
use crate::forward::{StackSpec, WeightList};
use crate::quant::{Format, GgmlType};
use crate::tensor::Shape;
use crate::weights::Form;

/// A tensor that is written.
pub(super) struct Joined<'s> {
    /// The stack that it is, if any.
    pub stack: Option<&'s StackSpec>,
    /// What its name ends with, behind the module's: `weight`, `bias`.
    pub leaf: &'s str,
    /// Dimensions, outermost first.
    pub shape: Shape,
    /// What it is made of, in its order.
    pub pieces: Vec<Piece<'s>>,
}

/// Rows of a source.
pub(super) struct Piece<'s> {
    pub source: &'s Source<'s>,
    /// Which, in the order of the model.
    pub rows: Range<usize>,
    /// All rows of the source, and how they lie there.
    all: usize,
    form: Form,
}

impl<'s> Piece<'s> {
    fn whole(source: &'s Source<'s>) -> Self {
        let all = source.shape.first().copied().unwrap_or(1);
        Self { source, rows: 0..all, all, form: Form::Plain }
    }

    /// The row of the source that is row `row` of the piece.
    pub fn source_row(&self, row: usize) -> usize {
        self.form.stored_row(self.rows.start + row, self.all)
    }

    /// The bytes of the piece, of a source whose bytes are `plain`; `None` where they do not lie in its order.
    pub fn plain<'b>(&self, plain: Option<&'b [u8]>) -> Option<&'b [u8]> {
        let bytes = plain?;
        let stride = bytes.len().checked_div(self.all).unwrap_or(0);
        (self.form == Form::Plain).then(|| &bytes[self.rows.start * stride..self.rows.end * stride])
    }

    /// Bytes of some of its rows in the files.
    pub fn bytes_of(&self, rows: Range<usize>) -> u64 {
        self.source.bytes_of(self.rows.start + rows.start..self.rows.start + rows.end)
    }
}

impl<'s> Joined<'s> {
    fn alone(source: &'s Source<'s>, leaf: &'s str) -> Self {
        Self { stack: None, leaf, shape: source.shape.clone(), pieces: vec![Piece::whole(source)] }
    }

    /// The first of the sources, all of which are alike.
    pub fn source(&self) -> &'s Source<'s> {
        self.pieces[0].source
    }

    /// The columns of a matrix, or of each matrix of a stack.
    pub fn columns(&self) -> Option<usize> {
        match self.source().shape[..] {
            [_, columns] => Some(columns),
            _ => None,
        }
    }

    /// The dimensions in the file, where those of 1 are left out of its own.
    pub fn stored_shape(&self) -> Option<&'s [usize]> {
        if self.stack.is_none() { self.source().stored_shape() } else { None }
    }

    /// Bytes in the files.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes_of(0..piece.rows.len())).sum()
    }

    /// The format that it has and keeps, whatever the rest gets: that in which the family's experts are published.
    pub fn kept(&self) -> Option<Format> {
        let published = self.stack?.published?;
        let format = self.source().format()?;
        let is_published =
            format == published || published == Format::Mxfp4 && format == Format::Ggml(GgmlType::MXFP4);
        let alike = self.pieces.iter().all(|piece| piece.source.format() == Some(format));
        (is_published && alike).then_some(format)
    }

    /// Whether values of it are decoded, to be rounded anew.
    pub fn is_decoded(&self) -> bool {
        self.kept().is_none() && self.pieces.iter().any(|piece| piece.source.format().is_some())
    }
}

/// A module's place in a stack: the expert, the first of its rows, and whether it holds others, too.
struct Member<'s> {
    stack: &'s StackSpec,
    expert: usize,
    first: usize,
    is_fused: bool,
}

/// What is written of `sources`, in their order; a stack comes where the first of its experts does.
///
/// # Errors
/// [`Error::Weight`](crate::Error::Weight) for a stack that lacks an expert, has one twice, or one of another shape.
pub(super) fn joined<'s>(list: &'s WeightList, sources: &'s [Source<'s>]) -> Result<Vec<Joined<'s>>> {
    let mut members: HashMap<&str, Vec<Member<'s>>> = HashMap::new();
    for stack in list.stacks() {
        let each = stack.each.iter().enumerate().map(|(expert, module)| (module, expert, 0, false));
        let fused = stack.fused.iter().flat_map(|(each, first)| {
            each.iter().enumerate().map(move |(expert, module)| (module, expert, *first, true))
        });
        for (module, expert, first, is_fused) in each.chain(fused) {
            members.entry(module).or_default().push(Member { stack, expert, first, is_fused });
        }
    }
    let mut all: Vec<(Joined<'s>, Vec<Option<Piece<'s>>>)> = Vec::new();
    let mut begun: HashMap<(&str, &str), usize> = HashMap::new();
    for source in sources {
        let (module, leaf) = source.name.rsplit_once('.').unwrap_or((source.name.as_str(), ""));
        let Some(members) = members.get(module) else {
            all.push((Joined::alone(source, leaf), Vec::new()));
            continue;
        };
        for member in members {
            let at = *begun.entry((member.stack.mlx.as_str(), leaf)).or_insert_with(|| {
                let experts = member.stack.each.len();
                let (stack, shape) = (Some(member.stack), Shape::from_slice(&[experts]));
                let pieces = std::iter::repeat_with(|| None).take(experts).collect();
                all.push((Joined { stack, leaf, shape, pieces: Vec::new() }, pieces));
                all.len() - 1
            });
            let piece = member.piece(list, source, leaf)?;
            if all[at].1[member.expert].replace(piece).is_some() {
                let what = format!("is expert {} of {}, as another is", member.expert, member.stack.mlx);
                return Err(source.fail(what));
            }
        }
    }
    all.into_iter().map(|(joined, pieces)| finished(joined, pieces)).collect()
}

impl<'s> Member<'s> {
    /// What the stack gets of a source.
    fn piece(&self, list: &WeightList, source: &'s Source<'s>, leaf: &str) -> Result<Piece<'s>> {
        let [rows, columns] = self.stack.shape;
        let all = if self.is_fused { 2 * rows } else { rows };
        let expected =
            if leaf == "weight" { Shape::from_slice(&[all, columns]) } else { Shape::from_slice(&[all]) };
        if source.shape != expected {
            let (got, expected) = (&source.shape[..], &expected[..]);
            return Err(source.fail(format!("shape is {got:?}, expected {expected:?}")));
        }
        let module = source.name.rsplit_once('.').and_then(|(module, _)| list.get(module));
        let form = match module {
            // Dense matrices come in the model's order.
            Some(module) if self.is_fused && (leaf != "weight" || source.format().is_some()) => module.form,
            _ => Form::Plain,
        };
        Ok(Piece { source, rows: self.first..self.first + rows, all, form })
    }
}

/// A tensor with its pieces: of a stack, all experts'.
fn finished<'s>(mut joined: Joined<'s>, pieces: Vec<Option<Piece<'s>>>) -> Result<Joined<'s>> {
    let Some(stack) = joined.stack else { return Ok(joined) };
    let missing = pieces.iter().position(Option::is_none);
    joined.pieces = pieces.into_iter().flatten().collect();
    if let Some(expert) = missing {
        let what = format!("is a part of {}, of which expert {expert} is missing", stack.mlx);
        return Err(joined.source().fail(what));
    }
    let dtype = joined.source().dtype();
    if let Some(other) = joined.pieces.iter().find(|piece| piece.source.dtype() != dtype) {
        let what = format!("is of another type than the other experts of {}", stack.mlx);
        return Err(other.source.fail(what));
    }
    let columns = joined.columns();
    joined.shape.push(stack.shape[0]);
    joined.shape.extend(columns);
    Ok(joined)
}
