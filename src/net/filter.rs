//! Which addresses may be dialled.
//!
//! Hints in signed files are written by publishers, not by the reader's admin, so a hint must not be able to reach into
//! the reader's own machine or network. The check is on the address that is dialled, after the name has been resolved,
//! so a name that points inwards is no way around. Only the user's own configuration opens an inward address, and only
//! for the host it names: an allowed `127.0.0.1` does not let `evil.example` resolve to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use reqwest::Url;
use url::Host;

/// Why a host may not be dialled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The address is not one of the public internet.
    #[error("{host} is {what}, and the configuration does not name it")]
    Inward {
        /// The host as it was given, or the address it resolved to.
        host: String,
        /// Which kind of address, with its article.
        what: &'static str,
    },
    /// The URL is of a kind that is never dialled.
    #[error("{what}")]
    Url {
        /// What is wrong with it.
        what: &'static str,
    },
}

/// How a URL that passed may be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The configuration names the host, and it is a machine like others: any address, through the proxy if there is one.
    Configured,
    /// The configuration names the host and it is this machine or network: any address, never through a proxy.
    ConfiguredInward,
    /// Nobody vouches for it: each address is checked when it is dialled, never through a proxy.
    Guarded,
}

/// One entry of the allow list: a host by name, by address or by network, at one port or at all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    host: AllowedHost,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum AllowedHost {
    Name(String),
    Network(IpAddr, u8),
}

/// Not a host, `host:port`, address or `address/prefix`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host, host:port, address or address/prefix")]
pub struct AllowSyntax(String);

impl FromStr for Allow {
    type Err = AllowSyntax;

    fn from_str(text: &str) -> Result<Self, AllowSyntax> {
        let wrong = || AllowSyntax(text.to_owned());
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Allow::address(address, None));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Allow::address(address.ip(), Some(address.port())));
        }
        if let Some((address, prefix)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
            if prefix > width(address) {
                return Err(wrong());
            }
            return Ok(Allow {
                host: AllowedHost::Network(address, prefix),
                port: None,
            });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        match Host::parse(name).map_err(|_| wrong())? {
            Host::Domain(name) => Ok(Allow {
                host: AllowedHost::Name(canonical(&name)),
                port,
            }),
            Host::Ipv4(address) => Ok(Allow::address(address.into(), port)),
            Host::Ipv6(address) => Ok(Allow::address(address.into(), port)),
        }
    }
}

impl Allow {
    /// Allows the host and port of `url`, which the user's configuration holds. `None` for a URL without a host.
    pub fn url(url: &Url) -> Option<Self> {
        let port = url.port_or_known_default();
        Some(match url.host()? {
            Host::Domain(name) => Allow {
                host: AllowedHost::Name(canonical(name)),
                port,
            },
            Host::Ipv4(address) => Allow::address(address.into(), port),
            Host::Ipv6(address) => Allow::address(address.into(), port),
        })
    }

    fn address(address: IpAddr, port: Option<u16>) -> Self {
        Allow {
            host: AllowedHost::Network(address, width(address)),
            port,
        }
    }

    fn covers(&self, host: &Host<&str>, port: u16) -> bool {
        let host = match (&self.host, host) {
            (AllowedHost::Name(allowed), Host::Domain(name)) => *allowed == canonical(name),
            (AllowedHost::Network(network, prefix), Host::Ipv4(address)) => {
                within((*address).into(), *network, *prefix)
            }
            (AllowedHost::Network(network, prefix), Host::Ipv6(address)) => {
                within((*address).into(), *network, *prefix)
            }
            _ => false,
        };
        host && self.port.is_none_or(|allowed| allowed == port)
    }
}

fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            a.to_bits() & mask == n.to_bits() & mask
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            a.to_bits() & mask == n.to_bits() & mask
        }
        _ => false,
    }
}

/// The filter: the public internet, and what the configuration names.
#[derive(Clone, Debug, Default)]
pub struct AddressFilter {
    allow: Vec<Allow>,
}

impl AddressFilter {
    /// A filter that lets `allow` through besides the public internet.
    pub fn new(allow: Vec<Allow>) -> Self {
        AddressFilter { allow }
    }

    /// Judges a URL before anything is dialled.
    ///
    /// # Errors
    /// [`FilterError`] when its scheme is neither `http` nor `https`, it holds a password, or its host is the literal of
    /// an inward address that is not allowed. A name that is not allowed passes as [`Route::Guarded`]: its addresses are
    /// judged by [`AddressFilter::dial`].
    pub fn judge(&self, url: &Url) -> Result<Route, FilterError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(FilterError::Url {
                what: "only http and https are dialled",
            });
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(FilterError::Url {
                what: "a user or password in a URL is not sent",
            });
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(FilterError::Url {
                what: "the URL has no host",
            });
        };
        let inward = match &host {
            Host::Domain(name) => {
                let name = canonical(name);
                (name == "localhost" || name.ends_with(".localhost")).then_some("this machine")
            }
            Host::Ipv4(address) => inward((*address).into()),
            Host::Ipv6(address) => inward((*address).into()),
        };
        let allowed = self.allow.iter().any(|allow| allow.covers(&host, port));
        match (allowed, inward) {
            (true, None) => Ok(Route::Configured),
            (true, Some(_)) => Ok(Route::ConfiguredInward),
            (false, None) => Ok(Route::Guarded),
            (false, Some(what)) => Err(FilterError::Inward {
                host: host.to_string(),
                what,
            }),
        }
    }

    /// Judges an address that is about to be dialled: a peer, a tracker, what a name that nobody vouches for resolved to.
    ///
    /// # Errors
    /// [`FilterError::Inward`] for an inward address that the configuration does not name.
    pub fn dial(&self, address: SocketAddr) -> Result<(), FilterError> {
        let host = match address.ip() {
            IpAddr::V4(ip) => Host::Ipv4(ip),
            IpAddr::V6(ip) => Host::Ipv6(ip),
        };
        match inward(address.ip()) {
            Some(what)
                if !self
                    .allow
                    .iter()
                    .any(|allow| allow.covers(&host, address.port())) =>
            {
                Err(FilterError::Inward {
                    host: host.to_string(),
                    what,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Returns what an address is when it does not belong to the public internet (IANA's special-purpose registries).
pub fn inward(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => inward_v4(address),
        IpAddr::V6(address) => inward_v6(address),
    }
}

fn inward_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    Some(match (a, b, c) {
        (0, ..) => "an unspecified address",
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => "a private address",
        (100, 64..=127, _) => "a carrier's shared address",
        (127, ..) => "a loopback address",
        (169, 254, _) => "a link-local address",
        (192, 0, 0) | (192, 88, 99) => "an address for protocols",
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => "an address for documentation",
        (198, 18..=19, _) => "an address for benchmarks",
        (224..=239, ..) => "a multicast address",
        (240..=255, ..) => "a reserved address",
        _ => return None,
    })
}

fn inward_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    Some(match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => "an unspecified address",
        [0, 0, 0, 0, 0, 0, 0, 1] => "a loopback address",
        [0, 0, 0, 0, 0, 0xffff, ..] => "a mapped IPv4 address",
        [0, 0, 0, 0, 0, 0, ..] => "a compatible IPv4 address",
        [0, 0, 0, 0, 0xffff, 0, ..] => "a translated IPv4 address",
        [0x64, 0xff9b, ..] => "a NAT64 address",
        [0xfc00..=0xfdff, ..] => "a private address",
        [0xfe80..=0xfebf, ..] => "a link-local address",
        [0xfec0..=0xfeff, ..] => "a site-local address",
        [0xff00..=0xffff, ..] => "a multicast address",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "an address for documentation",
        // Teredo, ORCHID, benchmarks, and the rest of 2001::/23.
        [0x2001, 0..=0x1ff, ..] => "an address for protocols",
        [0x2002, ..] => "a 6to4 address",
        // Only 2000::/3 is global unicast.
        [0x2000..=0x3fff, ..] => return None,
        _ => "a reserved address",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn filter(allow: &[&str]) -> AddressFilter {
        AddressFilter::new(allow.iter().map(|entry| entry.parse().unwrap()).collect())
    }

    #[test]
    fn inward_addresses_are_refused_at_both_ends_of_every_range() {
        for address in "0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.0 127.0.0.1 \
             127.255.255.255 169.254.0.0 169.254.169.254 169.254.255.255 172.16.0.0 172.31.255.255 192.0.0.1 \
             192.0.2.1 192.88.99.1 192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.7 \
             203.0.113.7 224.0.0.0 239.255.255.255 240.0.0.0 255.255.255.255 :: ::1 ::2 ::7f00:1 \
             ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 \
             100::1 2001::1 2001:0:7f00:1:: 2001:20::1 2001:1ff:ffff::1 2001:db8::1 2002:7f00:1::1 3fff::1 \
             3fff:fff::1 5f00::1 fc00:: fdff:ffff::1 fe80:: febf::1 fec0::1 ff00:: ff02::1 ffff::1 1fff::1 \
             4000::1"
            .split_whitespace()
        {
            let ip: IpAddr = address.parse().unwrap();
            assert!(inward(ip).is_some(), "{address}");
            assert!(filter(&[]).dial(SocketAddr::new(ip, 443)).is_err(), "{address}");
        }
    }

    #[test]
    fn public_addresses_pass_next_to_every_range() {
        for address in "1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 \
             169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0 192.167.255.255 \
             192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 2000::1 2001:200::1 2001:4860:4860::8888 \
             2606:4700::1111 2003::1 3ffe::1"
            .split_whitespace()
        {
            let ip: IpAddr = address.parse().unwrap();
            assert_eq!(inward(ip), None, "{address}");
            assert!(filter(&[]).dial(SocketAddr::new(ip, 443)).is_ok(), "{address}");
        }
    }

    #[test]
    fn literals_in_urls_are_judged_whatever_their_spelling() {
        for text in "http://127.0.0.1/ http://127.1/ http://2130706433/ http://0x7f.0.0.1:80/ http://017700000001/ \
             http://[::1]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[0:0:0:0:0:0:0:1]/ \
             http://localhost/ http://LOCALHOST./ http://a.localhost/ http://0/ http://[fe80::1]/ \
             http://169.254.169.254/latest/meta-data/ https://10.0.0.1/"
            .split_whitespace()
        {
            assert!(
                matches!(filter(&[]).judge(&url(text)), Err(FilterError::Inward { .. })),
                "{text}"
            );
        }
        assert_eq!(
            filter(&[]).judge(&url("https://ipfs.example/")),
            Ok(Route::Guarded)
        );
        assert_eq!(
            filter(&[]).judge(&url("https://9.9.9.9/")),
            Ok(Route::Guarded)
        );
    }

    #[test]
    fn only_plain_http_urls_are_dialled() {
        for text in "ftp://example.org/ file:///etc/passwd unix:/run/x data:,x".split_whitespace() {
            assert!(
                matches!(
                    filter(&["example.org"]).judge(&url(text)),
                    Err(FilterError::Url { .. })
                ),
                "{text}"
            );
        }
        assert!(
            filter(&["example.org"])
                .judge(&url("http://user:word@example.org/"))
                .is_err()
        );
        assert!(
            filter(&["example.org"])
                .judge(&url("http://user@example.org/"))
                .is_err()
        );
    }

    #[test]
    fn an_allowed_host_opens_itself_and_nothing_else() {
        let open = filter(&[
            "127.0.0.1",
            "Intra.Example.",
            "kubo.lan:5001",
            "[fd00::1]:80",
            "10.1.0.0/16",
        ]);
        for text in "http://127.0.0.1/ http://127.0.0.1:8420/ http://10.1.2.3/ http://[fd00::1]/"
            .split_whitespace()
        {
            assert_eq!(
                open.judge(&url(text)),
                Ok(Route::ConfiguredInward),
                "{text}"
            );
        }
        for text in "http://intra.example/ https://INTRA.example./x http://kubo.lan:5001/api"
            .split_whitespace()
        {
            assert_eq!(open.judge(&url(text)), Ok(Route::Configured), "{text}");
        }
        for text in "http://kubo.lan/ http://kubo.lan:5002/ http://x.intra.example/ http://localtest.example/"
            .split_whitespace()
        {
            assert_eq!(open.judge(&url(text)), Ok(Route::Guarded), "{text}");
        }
        for text in "http://127.0.0.2/ http://[::1]/ http://localhost/ http://[fd00::1]:81/ http://10.2.0.1/"
            .split_whitespace()
        {
            assert!(open.judge(&url(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn an_allowed_localhost_is_the_name_only() {
        let open = filter(&["localhost:8420"]);
        assert_eq!(
            open.judge(&url("http://localhost:8420/")),
            Ok(Route::ConfiguredInward)
        );
        assert!(open.judge(&url("http://localhost/")).is_err());
        assert!(open.judge(&url("http://127.0.0.1:8420/")).is_err());
        assert!(open.dial("127.0.0.1:8420".parse().unwrap()).is_err());
    }

    #[test]
    fn a_configured_url_allows_its_host_at_its_port() {
        let open = AddressFilter::new(vec![Allow::url(&url("http://127.0.0.1:8420/x")).unwrap()]);
        assert!(open.judge(&url("http://127.0.0.1:8420/ipfs/y")).is_ok());
        assert!(open.judge(&url("http://127.0.0.1:5001/api")).is_err());
        assert!(open.dial("127.0.0.1:8420".parse().unwrap()).is_ok());
        let https = AddressFilter::new(vec![Allow::url(&url("https://10.0.0.7/")).unwrap()]);
        assert!(https.judge(&url("https://10.0.0.7:443/")).is_ok());
        assert!(https.judge(&url("http://10.0.0.7/")).is_err());
    }

    #[test]
    fn nonsense_in_the_allow_list_is_an_error() {
        for text in [
            "",
            ":80",
            "a b",
            "10.0.0.0/33",
            "::/129",
            "host:99999",
            "host:x",
            "x/8",
            "http://x/",
        ] {
            assert!(text.parse::<Allow>().is_err(), "{text}");
        }
        assert!("0.0.0.0/0".parse::<Allow>().is_ok());
        assert!(
            filter(&["0.0.0.0/0"])
                .dial("10.0.0.1:1".parse().unwrap())
                .is_ok()
        );
        assert!(
            filter(&["0.0.0.0/0"])
                .dial("[::1]:1".parse().unwrap())
                .is_err()
        );
    }
}
