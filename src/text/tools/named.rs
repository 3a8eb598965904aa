//! Formats of calls that templates do not show, for they write none or refuse to: told by a mark.

use super::{CallFormat, INDEX, ToolFormat};

/// The format of the model that `has` a mark, in its template or its vocabulary.
pub(in crate::text) fn of(has: impl Fn(&str) -> bool) -> Option<ToolFormat> {
    const KIMI: &str = "<|tool_calls_section_begin|>";
    const LFM2: [&str; 2] = ["<|tool_call_start|>", "<|tool_list_start|>"];
    if has(KIMI) {
        return Some(ToolFormat {
            open: KIMI.to_owned(),
            begin: "<|tool_call_begin|>functions.".to_owned(),
            call: CallFormat::Named(format!(":{INDEX}<|tool_call_argument_begin|>")),
            end: "<|tool_call_end|>".to_owned(),
            separator: Some(String::new()),
            close: "<|tool_calls_section_end|>".to_owned(),
        });
    }
    LFM2.into_iter().any(has).then(|| ToolFormat {
        open: format!("{}[", LFM2[0]),
        begin: String::new(),
        call: CallFormat::Python,
        end: String::new(),
        separator: Some(", ".to_owned()),
        close: "]<|tool_call_end|>".to_owned(),
    })
}
