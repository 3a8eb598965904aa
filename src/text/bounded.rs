//! minijinja with every allocation bounded. Its fuel counts instructions, but one instruction can double a string or
//! repeat a list; so the compiled instructions are rewritten: what makes a value is followed by a check of that value,
//! and what can make a huge one at once (`*`, `~`, some filters and methods) is replaced.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, Output, State, Value};

use super::budget::{Budget, Limited, MAX_BYTES, MAX_EMITTED, MAX_NODES, refuse};
use super::python;

// Names that no template can write.
const OWN: &str = "\u{1}own";
const PLAIN: &str = "\u{1}plain";
const MUL: &str = "\u{1}mul";
const CONCAT: &str = "\u{1}concat";
const TIME: &str = "\u{1}time";
const MAP: &str = "\u{1}map";

fn text(values: &[&Value]) -> Result<String, Error> {
    let mut out = Limited(String::new());
    for value in values {
        python::write_str(&mut out, value).map_err(|_| refuse("the template made too large a string"))?;
    }
    Ok(out.0)
}

fn multiply(a: &Value, b: &Value) -> Result<Value, Error> {
    let number = |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool);
    if number(a) && number(b) {
        if let (Ok(x), Ok(y)) = (i128::try_from(a.clone()), i128::try_from(b.clone()))
            && (a.is_integer() || a.kind() == ValueKind::Bool)
            && (b.is_integer() || b.kind() == ValueKind::Bool)
        {
            let product = x.checked_mul(y).ok_or_else(|| refuse("integer overflow"))?;
            return Ok(i64::try_from(product).map_or_else(|_| Value::from(product), Value::from));
        }
        return Ok(Value::from(f64::try_from(a.clone())? * f64::try_from(b.clone())?));
    }
    let (what, count) = if number(b) { (a, b) } else { (b, a) };
    if !count.is_integer() {
        return Err(refuse(format!("{} * {} is not supported", a.kind(), b.kind())));
    }
    // As in Python, a negative count gives nothing.
    let count = usize::try_from(i128::try_from(count.clone())?.max(0)).unwrap_or(usize::MAX);
    if let Some(s) = what.as_str() {
        if s.len().saturating_mul(count) > MAX_BYTES {
            return Err(refuse("the template made too large a string"));
        }
        return Ok(Value::from(s.repeat(count)));
    }
    if !matches!(what.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(refuse(format!("{} * {} is not supported", a.kind(), b.kind())));
    }
    let items: Vec<Value> = what.try_iter()?.checked().collect::<Result<_, _>>()?;
    if items.len().saturating_mul(count) > MAX_NODES {
        return Err(refuse("the template made too large or too deep a value"));
    }
    let items: Vec<Value> = (0..count).flat_map(|_| items.iter().cloned()).collect();
    Ok(if what.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) })
}

/// An upper bound of what a filter or method makes from its arguments, in bytes or items.
fn bound(name: &str, args: &[Value]) -> Result<usize, Error> {
    let str_at = |i: usize| args.get(i).and_then(Value::as_str).unwrap_or("");
    let subject = str_at(0);
    Ok(match name {
        "replace" => {
            let old = text(&args.get(1).into_iter().collect::<Vec<_>>())?;
            let new = text(&args.get(2).into_iter().collect::<Vec<_>>())?;
            subject.len().saturating_add(subject.matches(&old).count().saturating_mul(new.len()))
        }
        // The filter has the sequence first, the method the separator; either way every pair is bounded.
        "join" => {
            let filter = !subject.is_empty() || args.first().is_some_and(|v| v.as_str().is_none());
            let (items, other) = if args[0].as_str().is_some() && args.len() > 1 {
                (args.get(1), args.first())
            } else {
                (args.first(), args.get(1).filter(|_| filter))
            };
            let Some(items) = items else { return Ok(0) };
            let separator = other.and_then(Value::as_str).map_or(0, str::len);
            let mut total = 0usize;
            for item in items.try_iter()?.checked() {
                let item = item?;
                let len = match item.as_str() {
                    Some(s) => s.len(),
                    None => text(&[&item])?.len(),
                };
                total = total.saturating_add(len).saturating_add(separator);
                if total > MAX_BYTES {
                    break;
                }
            }
            total
        }
        "indent" => {
            let widths = args[1..].iter().map(|v| v.as_str().map_or(0, str::len) + width(v));
            subject.len().saturating_add((subject.lines().count() + 1).saturating_mul(widths.sum()))
        }
        "format" => {
            let digits = subject.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > 3);
            if digits || subject.contains('*') {
                return Err(refuse("a width of over 999 in a format is not supported"));
            }
            let specs = subject.matches(['%', '{']).count();
            let longest =
                args[1..].iter().map(|v| text(&[v]).map(|t| t.len())).try_fold(0, |m, n| n.map(|n| m.max(n)));
            let widths = args[1..].iter().map(width).max().unwrap_or(0);
            subject
                .len()
                .saturating_add(specs.saturating_mul(longest?.saturating_add(1000).saturating_add(widths)))
        }
        "batch" | "slice" => args.get(1).map_or(0, width).saturating_mul(64),
        "split" | "rsplit" | "splitlines" | "list" => subject.len().saturating_mul(16),
        "sum" => {
            if args[0].try_iter()?.any(|v| v.kind() != ValueKind::Number) || args.len() > 2 {
                return Err(refuse("sum of anything but numbers is not supported"));
            }
            0
        }
        _ => 0,
    })
}

/// A number given as an argument, by position or by name.
fn width(value: &Value) -> usize {
    if let Some(n) = value.as_usize() {
        return n;
    }
    let Ok(kwargs) = Kwargs::try_from(value.clone()) else { return 0 };
    kwargs.args().filter_map(|k| kwargs.peek::<Value>(k).ok()?.as_usize()).max().unwrap_or(0)
}

fn check(name: &str, args: &[Value]) -> Result<(), Error> {
    // 16 bytes stand for an item of a list.
    let limit =
        if matches!(name, "split" | "rsplit" | "splitlines" | "list") { 16 * MAX_BYTES } else { MAX_BYTES };
    if !args.is_empty() && bound(name, args)? > limit {
        return Err(refuse(format!("{name} makes too large a value")));
    }
    Ok(())
}

/// Adds the guards to an environment.
pub(super) fn install(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    let b = budget.clone();
    env.add_function(OWN, move |v: Value| b.own(&v));
    let b = budget.clone();
    env.add_function(PLAIN, move |v: Value| {
        if v.as_object().is_some_and(|o| o.type_name().contains("Namespace")) {
            return Err(refuse("a namespace inside another value is not supported"));
        }
        b.own(&v)
    });
    let b = budget.clone();
    env.add_function(MUL, move |x: Value, y: Value| b.own(&multiply(&x, &y)?));
    let b = budget.clone();
    env.add_function(CONCAT, move |x: Value, y: Value| b.own(&Value::from(text(&[&x, &y])?)));
    let b = budget.clone();
    env.set_formatter(move |out: &mut Output, _: &mut State, value: &Value| {
        b.time()?;
        let made;
        let s = match value.as_str() {
            Some(s) => s,
            None => {
                made = match value.kind() {
                    ValueKind::Number => super::json::number(value),
                    _ => text(&[value])?,
                };
                &made
            }
        };
        if b.emitted.fetch_add(s.len(), Relaxed) + s.len() > MAX_EMITTED {
            return Err(refuse("the template wrote too much"));
        }
        out.write_str(s).map_err(Error::from)
    });
    let guarded: [(&'static str, &'static str); 4] =
        [("batch", "\u{1}batch"), ("slice", "\u{1}slice"), ("split", "\u{1}split"), ("sum", "\u{1}sum")];
    use minijinja::filters as f;
    env.add_filter(guarded[0].1, f::batch);
    env.add_filter(guarded[1].1, f::slice);
    env.add_filter(guarded[2].1, f::split);
    env.add_filter(guarded[3].1, f::sum);
    for (name, inner) in guarded {
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            check(name, &args)?;
            state.apply_filter(inner, &args)
        });
    }
    each(env, budget);
    for name in ["lines", "chain", "zip", "pprint"] {
        env.remove_filter(name);
    }
    env.remove_global("debug");
    env.set_unknown_method_callback(|state, value, method, args| {
        let mut all = vec![value.clone()];
        all.extend_from_slice(args);
        check(method, &all)?;
        if let Some(made) = python::method(value, method, args)? {
            return Ok(made);
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
    python::install(env, budget);
}

/// What does many steps in one instruction, with no value that is looked at in between.
fn each(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    use minijinja::{filters, tests};
    let b = budget.clone();
    env.add_function(TIME, move |value: Option<Value>| b.time().map(|()| value.unwrap_or_default()));
    env.add_filter(MAP, filters::map);
    let b = budget.clone();
    env.add_filter("map", move |state: &mut State, value: Value, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        let filter = args.first().and_then(Value::as_str).filter(|_| !value.is_undefined());
        let Some(filter) = filter else {
            return state.apply_filter(MAP, &[&[value][..], &args].concat());
        };
        let mut made = Vec::new();
        for item in value.try_iter()?.checked() {
            let all = [&[item?][..], &args[1..]].concat();
            made.push(b.own(&state.apply_filter(filter, &all)?)?);
        }
        Ok(Value::from(made))
    });
    for name in ["eq", "equalto", "=="] {
        let b = budget.clone();
        env.add_test(name, move |x: &Value, y: &Value| b.time().map(|()| tests::is_eq(x, y)));
    }
    for name in ["ne", "!="] {
        let b = budget.clone();
        env.add_test(name, move |x: &Value, y: &Value| b.time().map(|()| tests::is_ne(x, y)));
    }
    let b = budget.clone();
    env.add_test("in", move |state: &mut State, x: &Value, y: &Value| {
        b.time()?;
        tests::is_in(state, x, y)
    });
}

/// The instructions with the checks in them.
pub(super) fn rewrite<'a>(old: &Instructions<'a>) -> Instructions<'a> {
    use Instruction as I;
    let call = |name: &'static str, n: u16| I::CallFunction(name, Some(n));
    let expand = |instruction: &I<'a>| -> Vec<I<'a>> {
        match instruction {
            I::EmitRaw(raw) => vec![I::LoadConst(Value::from(*raw)), I::Emit],
            I::Mul => vec![call(MUL, 2)],
            I::Add => vec![call(python::ADD, 2), call(OWN, 1)],
            I::Rem => vec![call(python::REM, 2), call(OWN, 1)],
            I::Slice => vec![call(python::SLICE, 4), call(OWN, 1)],
            I::Lt => vec![call(python::LT, 2)],
            I::Lte => vec![call(python::LTE, 2)],
            I::Gt => vec![call(python::GT, 2)],
            I::Gte => vec![call(python::GTE, 2)],
            I::PushLoop(_) | I::UnpackList(_) => vec![call(python::ITERABLE, 1), instruction.clone()],
            I::Iterate(_) => vec![call(TIME, 0), I::DiscardTop, instruction.clone()],
            I::Eq | I::Ne | I::In | I::PerformTest(..) => vec![instruction.clone(), call(TIME, 1)],
            I::StringConcat => vec![call(CONCAT, 2)],
            // The namespace is on top of the value.
            I::SetAttr(_) => vec![I::Swap, call(PLAIN, 1), I::Swap, instruction.clone()],
            I::BuildList(_)
            | I::BuildTuple(_)
            | I::BuildMap(_)
            | I::EndCapture
            | I::ApplyFilter(..)
            | I::CallFunction(..)
            | I::CallMethod(..)
            | I::CallObject(_) => vec![instruction.clone(), call(OWN, 1)],
            other => vec![other.clone()],
        }
    };
    let all: Vec<Vec<I<'a>>> = (0..).map_while(|i| old.get(i)).map(expand).collect();
    // Where each old instruction begins, and the end.
    let mut starts = vec![0u32];
    for group in &all {
        starts.push(starts[starts.len() - 1] + group.len() as u32);
    }
    let to = |target: u32| starts.get(target as usize).copied().unwrap_or(u32::MAX);
    let mut new = Instructions::new(old.name(), old.source());
    for (index, group) in (0u32..).zip(all) {
        for instruction in group {
            let instruction = match instruction {
                I::Iterate(t) => I::Iterate(to(t)),
                I::Jump(t) => I::Jump(to(t)),
                I::JumpIfFalse(t) => I::JumpIfFalse(to(t)),
                I::JumpIfFalseOrPop(t) => I::JumpIfFalseOrPop(to(t)),
                I::JumpIfTrueOrPop(t) => I::JumpIfTrueOrPop(to(t)),
                I::BuildMacro(name, t, flags) => I::BuildMacro(name, to(t), flags),
                other => other,
            };
            match old.get_span(index) {
                Some(span) => new.add_with_span(instruction, span),
                None => new.add_with_line(instruction, old.get_line(index).unwrap_or(0).min(65_535) as u16),
            };
        }
    }
    new
}
