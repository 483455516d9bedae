//! The settings that decide who is believed, how much each may send, and what is spoken on the wire.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use likewise_command_api::Limits;
use likewise_http::{Audience, Authority, Certificate, Edge, Proxies, TokenKeys, TokenRules};
use likewise_schema::ContentType;
use likewise_storage::requests::Policy;

use crate::{Failure, config::Raw, pages};

/// Of one user: 10 a second, 20 at once.
const LIMIT_USER: Policy = Policy { burst: 20, window: Duration::from_secs(2) };
/// From one address: many may share it.
const LIMIT_ADDRESS: Policy = Policy { burst: 200, window: Duration::from_secs(2) };
/// Longest time that a limit may count over: its bucket lives as long.
const LIMIT_WINDOW_MAX: Duration = Duration::from_secs(24 * 3600);

/// Settings of security, checked.
#[derive(Debug)]
pub(crate) struct Security {
    /// None: no tokens are accepted.
    pub(crate) tokens: Option<Tokens>,
    pub(crate) keys_file: PathBuf,
    has_keys: bool,
    pub(crate) likers: Audience,
    likers_name: String,
    pub(crate) content_types: Vec<ContentType>,
    pub(crate) limits: Limits,
    proxies: Proxies,
    origins: Vec<String>,
    tls: Option<(PathBuf, PathBuf)>,
}

/// How tokens are verified.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) keys: TokenKeys,
    /// Of the APIs.
    pub(crate) rules: TokenRules,
    /// Of the admin port.
    pub(crate) admin_rules: TokenRules,
}

fn list(text: Option<&String>) -> impl Iterator<Item = &str> {
    text.into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

impl Security {
    pub(crate) fn check(raw: &Raw, data_dir: &Path) -> Result<Self, Failure> {
        let tokens = Tokens::check(raw)?;
        let has_keys = raw.keys_file.is_some();
        let is_guarded = tokens.is_some() || has_keys;
        let likers = match raw.likers.as_str() {
            "public" => Audience::Public,
            "signed-in" => Audience::SignedIn,
            "service" => Audience::Service,
            _ => return Err("likers must be public, signed-in or service".into()),
        };
        let content_types = list(raw.content_types.as_ref()).map(str::parse).collect::<Result<_, _>>();
        let networks = list(raw.trusted_proxies.as_ref())
            .map(|network| network.parse().or_else(|_| network.parse::<std::net::IpAddr>().map(Into::into)));
        let networks = networks.collect::<Result<_, _>>();
        let origins: Vec<String> = list(raw.cors_origins.as_ref()).map(str::to_owned).collect();
        if !origins.iter().all(|origin| is_origin(origin)) {
            return Err("cors_origins must be origins such as https://app.example, without a path".into());
        }
        let tls = match (&raw.tls_cert_file, &raw.tls_key_file) {
            (Some(chain), Some(key)) => Some((chain.into(), key.into())),
            (None, None) => None,
            _ => return Err("tls_cert_file and tls_key_file come together".into()),
        };
        let limit = |name: &str, text: Option<&String>, default: Policy| match text.map(String::as_str) {
            None => Ok(is_guarded.then_some(default)),
            Some("off") => Ok(None),
            Some(text) => policy(text)
                .map(Some)
                .ok_or_else(|| Failure::from(format!("{name} must be off, or such as 20/2s: how many in which time"))),
        };
        Ok(Self {
            limits: Limits {
                user: limit("limit_user", raw.limit_user.as_ref(), LIMIT_USER)?,
                address: limit("limit_address", raw.limit_address.as_ref(), LIMIT_ADDRESS)?,
            },
            keys_file: raw.keys_file.as_ref().map_or_else(|| data_dir.join("keys.json"), PathBuf::from),
            content_types: content_types
                .map_err(|_| Failure::from("content_types must be types such as post,comment"))?,
            proxies: Proxies(
                networks.map_err(|_| Failure::from("trusted_proxies must be networks such as 10.0.0.0/8"))?,
            ),
            likers_name: raw.likers.clone(),
            tokens,
            has_keys,
            likers,
            origins,
            tls,
        })
    }

    /// Whether anybody has to prove who they are.
    pub(crate) fn has_authentication(&self) -> bool {
        self.tokens.is_some() || self.has_keys
    }

    pub(crate) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// How the APIs and the admin port meet the world.
    pub(crate) fn edges(&self) -> Result<(Edge, Edge), Failure> {
        let certificate = self.tls.as_ref().map(|(chain, key)| Certificate::open(chain.clone(), key.clone()));
        let tls = certificate.transpose().map_err(|sentence| format!("tls: {sentence}"))?;
        let edge = |rules: fn(&Tokens) -> &TokenRules, is_admin: bool| -> Result<Edge, Failure> {
            let authority = if self.has_authentication() {
                let tokens = self.tokens.as_ref().map(|tokens| (rules(tokens).clone(), &tokens.keys));
                Authority::new(tokens, &self.keys_file)?
            } else {
                Authority::open()
            };
            Ok(Edge {
                authority: Arc::new(authority),
                proxies: self.proxies.clone(),
                // Pages of other sites have no business with the admin port.
                origins: if is_admin { Vec::new() } else { self.origins.clone() },
                tls: tls.clone(),
                admin_but: is_admin.then_some(&pages::CONSOLE_PATHS),
            })
        };
        Ok((edge(|tokens| &tokens.rules, false)?, edge(|tokens| &tokens.admin_rules, true)?))
    }

    /// The settings as TOML.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        let quoted = |text: &dyn std::fmt::Display| format!("{:?}", text.to_string());
        let path = |path: Option<&PathBuf>| format!("{:?}", path.map_or_else(String::new, |p| p.display().to_string()));
        let joined = |items: Vec<String>| format!("{:?}", items.join(","));
        let of_tokens = |what: fn(&Tokens) -> &String| format!("{:?}", self.tokens.as_ref().map_or("", |t| what(t)));
        let limit = |policy: Option<Policy>| match policy {
            Some(Policy { burst, window }) => quoted(&format!("{burst}/{}", humantime::format_duration(window))),
            None => quoted(&"off"),
        };
        let (secret, jwks) = match self.tokens.as_ref().map(|tokens| &tokens.keys) {
            Some(TokenKeys::Secret(file)) => (Some(file), None),
            Some(TokenKeys::Jwks(file)) => (None, Some(file)),
            None => (None, None),
        };
        vec![
            ("auth_secret_file", path(secret)),
            ("auth_jwks_file", path(jwks)),
            ("auth_issuer", of_tokens(|tokens| &tokens.rules.issuer)),
            ("auth_audience", of_tokens(|tokens| &tokens.rules.audience)),
            ("auth_admin_audience", of_tokens(|tokens| &tokens.admin_rules.audience)),
            ("user_claim", of_tokens(|tokens| &tokens.rules.user_claim)),
            ("keys_file", path(Some(&self.keys_file))),
            ("likers", quoted(&self.likers_name)),
            ("content_types", joined(self.content_types.iter().map(ToString::to_string).collect())),
            ("limit_user", limit(self.limits.user)),
            ("limit_address", limit(self.limits.address)),
            ("trusted_proxies", joined(self.proxies.0.iter().map(ToString::to_string).collect())),
            ("cors_origins", joined(self.origins.clone())),
            ("tls_cert_file", path(self.tls.as_ref().map(|(chain, _)| chain))),
            ("tls_key_file", path(self.tls.as_ref().map(|(_, key)| key))),
        ]
    }
}

impl Tokens {
    fn check(raw: &Raw) -> Result<Option<Self>, Failure> {
        let keys = match (&raw.auth_secret_file, &raw.auth_jwks_file) {
            (Some(_), Some(_)) => {
                return Err(
                    "auth_secret_file and auth_jwks_file exclude each other: a token has one kind of key".into()
                );
            }
            (Some(file), None) => TokenKeys::Secret(file.into()),
            (None, Some(file)) => TokenKeys::Jwks(file.into()),
            (None, None) => return Ok(None),
        };
        let needed = |name: &str, value: &Option<String>| match value {
            Some(value) if !value.is_empty() => Ok(value.clone()),
            _ => Err(Failure::from(format!("{name} is needed where tokens are accepted: it is what they must say"))),
        };
        let (issuer, audience) =
            (needed("auth_issuer", &raw.auth_issuer)?, needed("auth_audience", &raw.auth_audience)?);
        let admin_audience = raw.auth_admin_audience.clone().unwrap_or_else(|| format!("{audience}/admin"));
        if admin_audience == audience {
            return Err("auth_admin_audience must be another than auth_audience".into());
        }
        let rules = |audience| TokenRules { issuer: issuer.clone(), audience, user_claim: raw.user_claim.clone() };
        Ok(Some(Self { keys, rules: rules(audience), admin_rules: rules(admin_audience) }))
    }
}

/// `20/2s`: so many in which time.
fn policy(text: &str) -> Option<Policy> {
    let (burst, window) = text.split_once('/')?;
    let policy = Policy { burst: burst.parse().ok()?, window: humantime::parse_duration(window).ok()? };
    let is_sane = (1..=1_000_000).contains(&policy.burst)
        && policy.window <= LIMIT_WINDOW_MAX
        // A token takes a microsecond at least to flow in.
        && policy.window.as_micros() >= u128::from(policy.burst);
    is_sane.then_some(policy)
}

/// `scheme://host[:port]` and nothing more; no wildcard.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-:[]".contains(&b);
        !host.is_empty() && host.bytes().all(allowed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_a_number_in_a_time() {
        assert_eq!(policy("20/2s"), Some(LIMIT_USER));
        assert_eq!(policy("6/1m").map(|policy| policy.window), Some(Duration::from_secs(60)));
        for wrong in ["", "20", "20/", "0/1s", "-1/1s", "x/1s", "20/0s", "20/2days", "20/2", "2000000/1s"] {
            assert_eq!(policy(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn origins_have_no_path_and_no_wildcard() {
        for right in ["https://app.example", "http://localhost:3000", "https://[::1]:8443"] {
            assert!(is_origin(right), "{right}");
        }
        for wrong in
            ["*", "null", "https://", "https://*.example", "https://app.example/", "app.example", "https://App.example"]
        {
            assert!(!is_origin(wrong), "{wrong}");
        }
    }
}
