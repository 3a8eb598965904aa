//! Addresses of the hub and of what it redirects to: `http` and `https` alone, without a user's name in them.

use std::fmt;
use std::net::IpAddr;

use ureq::http::Uri;

/// An address, apart into its origin and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    secure: bool,
    /// Lower case; with the port where that is not the scheme's own.
    authority: String,
    /// From the slash on; nothing, or with no slash at its end for a base.
    path: String,
}

impl Address {
    /// Reads an absolute address; none where it is not of the web.
    pub fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        let host = authority.host().to_ascii_lowercase();
        if host.is_empty() {
            return None;
        }
        let own = if secure { 443 } else { 80 };
        let authority = match authority.port_u16() {
            Some(port) if port != own => format!("{host}:{port}"),
            // What follows the colon may be no port.
            None if authority.as_str().len() > host.len() => return None,
            _ => host,
        };
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        let path = if path == "/" { "" } else { path };
        Some(Self { secure, authority, path: path.to_owned() })
    }

    /// What lies below, `path` beginning with a slash.
    pub fn join(&self, path: &str) -> Self {
        Self { path: format!("{}{path}", self.path), ..self.clone() }
    }

    /// Where a redirect leads.
    pub fn follow(&self, location: &str) -> Option<Self> {
        let location = location.split('#').next()?;
        let scheme = if self.secure { "https" } else { "http" };
        if location.contains("://") && !location.starts_with('/') {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{}{location}", self.origin()));
        }
        let path = self.path.split('?').next().unwrap_or_default();
        let base = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        Self::parse(&format!("{}{base}{location}", self.origin()))
    }

    /// `https://host`, or with a port.
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.secure { "https" } else { "http" }, self.authority)
    }

    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether it is this machine's own.
    pub fn is_loopback(&self) -> bool {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => host,
            _ => &self.authority,
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// An address that was typed, without the name and password that may stand in it: as it may be shown.
pub fn without_credentials(text: &str) -> String {
    let from = text.find("://").map_or(0, |at| at + 3);
    match text.rfind('@').filter(|&at| at >= from) {
        Some(at) => format!("{}{}", &text[..from], &text[at + 1..]),
        None => text.to_owned(),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_as_they_are_meant() {
        for (text, origin) in [
            ("https://Huggingface.co", "https://huggingface.co"),
            ("https://huggingface.co:443/x", "https://huggingface.co"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://h:80/a?b", "http://h"),
        ] {
            assert_eq!(Address::parse(text).unwrap().origin(), origin);
        }
        for text in [
            "",
            "huggingface.co",
            "ftp://x/y",
            "file:///etc/passwd",
            "https://a@b/",
            "https://",
            "http://h:x/",
        ] {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_is_shown_without_its_password() {
        for (text, shown) in [
            ("https://u:p@hub/x", "https://hub/x"),
            ("https://u:p@w/@hub", "https://hub"),
            ("u:p@hub", "hub"),
            ("https://hub/x", "https://hub/x"),
            ("@://", "@://"),
            ("", ""),
        ] {
            assert_eq!(without_credentials(text), shown, "{text}");
        }
    }

    #[test]
    fn redirects_lead_where_they_say() {
        let from = Address::parse("https://h/a/b?c=d").unwrap();
        for (location, to) in [
            ("https://cdn:8/x?y", "https://cdn:8/x?y"),
            ("http://h/x", "http://h/x"),
            ("//cdn/x", "https://cdn/x"),
            ("/x/y?z", "https://h/x/y?z"),
            ("x", "https://h/a/x"),
            ("/x?u=https://other/", "https://h/x?u=https://other/"),
            ("https://h/x#y", "https://h/x"),
        ] {
            assert_eq!(from.follow(location).unwrap().to_string(), to, "{location}");
        }
        for location in ["ftp://x/", "https://u@h/", "javascript://x", "https://h\u{e9} x/"] {
            assert_eq!(from.follow(location), None, "{location}");
        }
    }

    #[test]
    fn loopback_is_this_machine() {
        for (text, is) in [
            ("http://127.0.0.1:1/", true),
            ("http://[::1]:80/", true),
            ("http://localhost/", true),
            ("http://127.0.0.1.evil.com/", false),
            ("http://localhost.evil.com/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(Address::parse(text).unwrap().is_loopback(), is, "{text}");
        }
    }
}
