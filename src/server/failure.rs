//! Errors as HTTP answers: one exhaustive match from the library's error to a status, and each API's own shape.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::Error;

/// Which API's shape an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
    Ollama,
}

impl Dialect {
    /// That of a route.
    pub fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else if path.starts_with("/api/") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }
}

/// Tokens of a prompt that is too long, of the context, and of what the model was trained for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Full {
    prompt: usize,
    /// Whether the prompt was refused before it was encoded, by the least number of tokens that it has.
    at_least: bool,
    context: usize,
    trained: usize,
}

impl Full {
    /// In the words that each API's clients look for.
    fn said(&self, dialect: Dialect) -> String {
        let Self { prompt, at_least, context, trained } = self;
        let more = match trained > context {
            true => format!(" (serve --ctx gives it up to {trained})"),
            false => String::new(),
        };
        // Anthropic's clients read a number behind the colon.
        let (least, noted) = match (at_least, dialect) {
            (false, _) => ("", ""),
            (true, Dialect::OpenAi | Dialect::Ollama) => ("at least ", ""),
            (true, Dialect::Anthropic) => ("", " (at least: it was not encoded)"),
        };
        match dialect {
            Dialect::OpenAi => format!(
                "This model's maximum context length is {context} tokens. However, your messages resulted in {least}{prompt} \
                 tokens. Please reduce the length of the messages{more}."
            ),
            Dialect::Anthropic => {
                format!("prompt is too long: {prompt} tokens > {context} maximum{noted}{more}")
            }
            Dialect::Ollama => format!(
                "the input length exceeds the context length: {least}{prompt} tokens of {context}{more}"
            ),
        }
    }
}

/// Why a request got no answer.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub status: StatusCode,
    pub message: String,
    /// The field concerned.
    pub param: Option<String>,
    /// OpenAI's name of the error, where it has one that clients look for.
    pub code: Option<&'static str>,
    /// Seconds after which it is worth another try.
    pub retry_after: Option<u64>,
    /// Where the prompt is too long.
    pub full: Option<Box<Full>>,
    /// What clients of Anthropic's API read of some errors.
    pub details: Option<Box<Value>>,
}

impl Failure {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
            full: None,
            details: None,
        }
    }

    /// A request that cannot be meant.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field that cannot be meant: `NAME: WHAT`.
    pub fn field(name: &str, what: impl std::fmt::Display) -> Self {
        Self { param: Some(name.to_owned()), ..Self::bad(format!("{name}: {what}")) }
    }

    /// The failure of one of the items of a field.
    pub fn of_item(self, field: &str, index: usize) -> Self {
        let param = format!("{field}[{index}]");
        Self { message: format!("{param}: {}", self.message), param: Some(param), full: None, ..self }
    }

    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// The error as an object of the API's shape.
    pub fn json(&self, dialect: Dialect) -> Value {
        let kind = self.kind(dialect);
        let message = self.full.as_ref().map_or_else(|| self.message.clone(), |full| full.said(dialect));
        match dialect {
            Dialect::OpenAi => json!({ "error": {
                "message": message, "type": kind, "param": self.param, "code": self.code,
            } }),
            Dialect::Anthropic => {
                let mut error = json!({ "type": kind, "message": message });
                if let Some(details) = &self.details {
                    error["details"] = Value::clone(details);
                }
                json!({ "type": "error", "error": error })
            }
            Dialect::Ollama => json!({ "error": message }),
        }
    }

    /// The class of the error, by the names of the API.
    fn kind(&self, dialect: Dialect) -> &'static str {
        let anthropic = dialect == Dialect::Anthropic;
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 if anthropic => "request_too_large",
            429 => "rate_limit_error",
            503 if anthropic => "overloaded_error",
            500.. if anthropic => "api_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    pub fn response(&self, dialect: Dialect) -> Response {
        let mut response = (self.status, json_body(&self.json(dialect))).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Carries the failure outwards, where the request's dialect is known.
impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The one place where an error becomes a status.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Prompt(_) | Error::Template(_) => Self::bad(message),
            Error::ContextFull { prompt, at_least, context, trained } => {
                let failure = Self::bad(message).with_code("context_length_exceeded");
                Self { full: Some(Box::new(Full { prompt, at_least, context, trained })), ..failure }
            }
            Error::Option { option, .. } => Self { param: Some(option.to_owned()), ..Self::bad(message) },
            Error::Context { .. } => Self { param: Some("ctx".to_owned()), ..Self::bad(message) },
            Error::Schema { .. } | Error::Grammar { .. } | Error::Task { .. } => Self::bad(message),
            // What can never fit; what does not fit now waits.
            Error::Memory { .. } => Self::bad(message),
            // Another process, loaded anew, can answer.
            Error::Changed { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, message),
            // Others may have given it back by the next try.
            Error::OutOfMemory { .. } | Error::Thread { .. } | Error::Busy { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(1)
            }
            Error::Io { .. }
            | Error::Format { .. }
            | Error::Config { .. }
            | Error::Weight { .. }
            | Error::Shape { .. }
            | Error::Op { .. }
            | Error::Backend { .. }
            | Error::Tokenizer(_)
            | Error::Sampling(_)
            | Error::Engine(_)
            | Error::Load { .. }
            | Error::Hub { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}

/// A thread of the server's own panicked.
pub(crate) fn thread_failed() -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "a thread of the server failed")
}

/// A JSON answer.
pub(crate) fn json_body(value: &Value) -> Response {
    json_text(value.to_string())
}

/// A JSON answer that is written already.
pub(crate) fn json_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_has_its_own_shape() {
        let failure = Failure::field("top_p", "2 is above 1");
        let openai = json!({ "error": { "message": "top_p: 2 is above 1", "type": "invalid_request_error",
            "param": "top_p", "code": null } });
        assert_eq!(failure.json(Dialect::of("/v1/chat/completions")), openai);
        let anthropic = json!({ "type": "error",
            "error": { "type": "invalid_request_error", "message": "top_p: 2 is above 1" } });
        assert_eq!(failure.json(Dialect::of("/v1/messages")), anthropic);
        assert_eq!(failure.json(Dialect::of("/api/chat")), json!({ "error": "top_p: 2 is above 1" }));
        let busy = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "x");
        assert_eq!(busy.json(Dialect::Anthropic)["error"]["type"], "overloaded_error");
        assert_eq!(busy.json(Dialect::OpenAi)["error"]["type"], "server_error");
    }

    #[test]
    fn memory_that_is_not_there_now_may_be_later() {
        let failure =
            Failure::from(Error::OutOfMemory { what: "activations of a step", bytes: 6_200_000_000 });
        assert_eq!((failure.status.as_u16(), failure.retry_after), (503, Some(1)));
        assert_eq!(failure.message, "cannot take 6.20 GB of memory for activations of a step");
    }

    #[test]
    fn a_full_context_says_both_counts() {
        let failure =
            Failure::from(Error::ContextFull { prompt: 9, at_least: false, context: 8, trained: 8 });
        assert_eq!((failure.status.as_u16(), failure.code), (400, Some("context_length_exceeded")));
        let said = |dialect| failure.json(dialect)["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(
            said(Dialect::OpenAi),
            "This model's maximum context length is 8 tokens. However, your messages resulted in 9 tokens. Please reduce \
             the length of the messages."
        );
        assert_eq!(said(Dialect::Anthropic), "prompt is too long: 9 tokens > 8 maximum");
        let failure =
            Failure::from(Error::ContextFull { prompt: 9, at_least: false, context: 8, trained: 16 });
        assert_eq!(
            failure.json(Dialect::Anthropic)["error"]["message"],
            "prompt is too long: 9 tokens > 8 maximum (serve --ctx gives it up to 16)"
        );
        let failure = Failure::from(Error::ContextFull { prompt: 9, at_least: true, context: 8, trained: 8 });
        let said = |dialect| failure.json(dialect)["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(
            said(Dialect::OpenAi),
            "This model's maximum context length is 8 tokens. However, your messages resulted in at least 9 tokens. Please \
             reduce the length of the messages."
        );
        assert_eq!(
            said(Dialect::Anthropic),
            "prompt is too long: 9 tokens > 8 maximum (at least: it was not encoded)"
        );
        assert_eq!(
            failure.json(Dialect::Ollama),
            json!({ "error": "the input length exceeds the context length: at least 9 tokens of 8" })
        );
    }
}
