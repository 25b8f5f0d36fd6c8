//! Whom a request was sent to.
//!
//! A web page of a stranger can make a browser ask this machine under the stranger's own name (DNS rebinding); then the
//! page may read the answer. So only names that cannot be a stranger's are answered.

use std::net::{IpAddr, Ipv6Addr};

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{Version, header};

/// Returns a host name in the form in which names are compared.
pub(super) fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Returns whether a request names this gateway, in its `Host` header and, if it is there, in its URL.
pub(super) fn allowed(request: &Request, hosts: &[String]) -> bool {
    let mut named = request.headers().get_all(header::HOST).iter();
    let first = named.next();
    if named.next().is_some() {
        return false;
    }
    let in_header = match first {
        Some(value) => value.to_str().is_ok_and(|value| is_ours(value, hosts)),
        // Older than the header; no browser speaks it.
        None => request.version() == Version::HTTP_10,
    };
    in_header
        && request
            .uri()
            .authority()
            .is_none_or(|authority| is_ours(authority.as_str(), hosts))
}

fn is_ours(text: &str, hosts: &[String]) -> bool {
    let Ok(authority) = text.parse::<Authority>() else {
        return false;
    };
    // A user name in front is no host, and nobody needs one here.
    if text.contains('@') {
        return false;
    }
    let host = authority.host();
    if let Some(literal) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        return literal.parse::<Ipv6Addr>().is_ok();
    }
    if host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = canonical(host);
    name == "localhost" || hosts.contains(&name)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn ask(uri: &str, hosts: &[&str]) -> bool {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        allowed(
            &request.body(Body::empty()).unwrap(),
            &[canonical("Share.Example.")],
        )
    }

    #[test]
    fn addresses_localhost_and_configured_names_whatever_the_port() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8420",
            "192.168.1.7:80",
            "[::1]",
            "[::1]:8420",
            "localhost",
            "LOCALHOST:1",
            "localhost.:8420",
            "share.example",
            "SHARE.example:8420",
        ] {
            assert!(ask("/", &[host]), "{host}");
        }
    }

    #[test]
    fn nobody_elses_name() {
        for host in [
            "",
            "evil.example",
            "evil.example:8420",
            "localhost.evil.example",
            "evil-localhost",
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f.1",
            "share.example.evil",
            "evil.example@127.0.0.1",
            "[::1",
            "[evil]",
            "a b",
            "localhost/",
        ] {
            assert!(!ask("/", &[host]), "{host}");
        }
        assert!(!ask("/", &[]), "HTTP/1.1 names a host");
        assert!(!ask("/", &["localhost", "localhost"]));
        assert!(!ask("http://evil.example/", &["localhost"]));
        assert!(!ask("http://localhost/", &["evil.example"]));
        assert!(ask("http://localhost/", &["localhost"]));
    }
}
