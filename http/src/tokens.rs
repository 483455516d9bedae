//! Bearer tokens: JWTs of one issuer for one audience, verified by keys that each fix their algorithm (RFC 8725).

use std::{path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use likewise_schema::UserId;
use moka::sync::Cache;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{now, signatures, watched::Watched};

/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 4096;
/// By how much clocks may differ.
const LEEWAY_SECONDS: u64 = 30;
/// Verified tokens that are remembered, so that a signature is not checked again for each request; about 120 bytes each.
const REMEMBERED_MAX: u64 = 100_000;
/// For how long.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// Fewest bytes of a secret that signs (RFC 7518, section 3.2).
const SECRET_BYTES_MIN: usize = 32;
/// Fewest bytes of an RSA modulus: 2048 bits.
const MODULUS_BYTES_MIN: usize = 256;

/// What a token must say.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// Who issued it: `iss`.
    pub issuer: String,
    /// For whom: `aud` is it, or holds it.
    pub audience: String,
    /// The claim that holds the user's number.
    pub user_claim: String,
}

/// Where the keys that verify tokens are.
#[derive(Clone, Debug)]
pub enum TokenKeys {
    /// A JWKS file (RFC 7517) of public Ed25519 and RSA keys.
    Jwks(PathBuf),
    /// A file with a secret of at least 32 bytes.
    Secret(PathBuf),
}

/// A token that was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    /// None where the claim holds no user's number.
    pub(crate) user: Option<UserId>,
    expires: i64,
}

/// Verifies tokens.
pub(crate) struct Tokens {
    rules: TokenRules,
    keys: Watched<KeySet>,
}

/// The keys of a file, and what was verified by them.
struct KeySet {
    keys: Vec<Key>,
    remembered: Cache<[u8; 32], Verified>,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl KeySet {
    fn new(keys: Vec<Key>) -> Self {
        Self { keys, remembered: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED_FOR).build() }
    }

    fn of_secret(bytes: &[u8]) -> Result<Self, String> {
        let key = DecodingKey::from_secret(secret_in(bytes)?);
        Ok(Self::new(vec![Key { id: None, algorithm: Algorithm::HS256, key }]))
    }

    fn of_jwks(bytes: &[u8]) -> Result<Self, String> {
        let set: JwkSet = serde_json::from_slice(bytes).map_err(|_| "must be a JWK set (RFC 7517)".to_owned())?;
        let mut keys = Vec::new();
        for jwk in &set.keys {
            let (algorithm, named) = match &jwk.algorithm {
                AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                    (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
                }
                AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
                AlgorithmParameters::OctetKey(_) => {
                    return Err(
                        "holds a secret key; a JWK set holds public keys, a secret goes into --auth-secret-file".into(),
                    );
                }
                _ => continue,
            };
            let common = &jwk.common;
            let is_for_another = common.key_algorithm.is_some_and(|algorithm| algorithm != named)
                || common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature);
            if is_for_another {
                continue;
            }
            let key = DecodingKey::from_jwk(jwk).map_err(|_| "holds a key that is not valid".to_owned())?;
            if let jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } = key.kind()
                && n.len() < MODULUS_BYTES_MIN
            {
                return Err("holds an RSA key of less than 2048 bits".into());
            }
            keys.push(Key { id: common.key_id.clone(), algorithm, key });
        }
        if keys.is_empty() {
            return Err("holds no Ed25519 key and no RSA key that verifies RS256".into());
        }
        Ok(Self::new(keys))
    }

    /// The one key that a header names; without a name, the only key.
    fn named(&self, id: Option<&str>) -> Option<&Key> {
        let mut found = self.keys.iter().filter(|key| id.is_none() || key.id.as_deref() == id);
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }
}

/// The members of a token's header that are known; what must be understood and is not refuses the token.
#[derive(Deserialize)]
struct KnownHeader {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    jwk: Option<Value>,
    jku: Option<Value>,
    x5u: Option<Value>,
    x5c: Option<Value>,
    crit: Option<Value>,
    b64: Option<Value>,
    zip: Option<Value>,
    enc: Option<Value>,
}

impl KnownHeader {
    fn of(token: &str) -> Option<Self> {
        let header = URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
        let header: Self = serde_json::from_slice(&header).ok()?;
        let is_token = |kind: &String| {
            ["JWT", "at+jwt", "application/at+jwt"].iter().any(|known| kind.eq_ignore_ascii_case(known))
        };
        // Keys and addresses of keys in a token are its sender's word.
        let brings =
            [&header.jwk, &header.jku, &header.x5u, &header.x5c, &header.crit, &header.b64, &header.zip, &header.enc];
        (header.typ.as_ref().is_none_or(is_token) && brings.iter().all(|member| member.is_none())).then_some(header)
    }
}

impl Tokens {
    /// Verifies by `keys`; the error is a sentence about their file.
    pub(crate) fn new(rules: TokenRules, keys: &TokenKeys) -> Result<Self, String> {
        signatures::install();
        let keys = match keys {
            TokenKeys::Jwks(path) => Watched::open(path.clone(), KeySet::of_jwks),
            TokenKeys::Secret(path) => Watched::open(path.clone(), KeySet::of_secret),
        };
        Ok(Self { rules, keys: keys? })
    }

    /// Reads the keys again if their file has changed.
    pub(crate) fn look(&self) {
        self.keys.look();
    }

    /// The token's user; none if it is to be refused, for whatever reason.
    pub(crate) fn verify(&self, token: &str) -> Option<Verified> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let keys = self.keys.get();
        let print: [u8; 32] = Sha256::digest(token).into();
        let now = now().millis() / 1000;
        let is_alive = |verified: &Verified| now <= verified.expires.saturating_add_unsigned(LEEWAY_SECONDS);
        if let Some(known) = keys.remembered.get(&print) {
            return Some(known).filter(is_alive);
        }
        let verified = self.check(&keys, token).filter(is_alive)?;
        keys.remembered.insert(print, verified);
        Some(verified)
    }

    fn check(&self, keys: &KeySet, token: &str) -> Option<Verified> {
        let header = KnownHeader::of(token)?;
        let key = keys.named(header.kid.as_deref())?;
        if header.alg != format!("{:?}", key.algorithm) {
            return None;
        }
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        validation.set_issuer(&[&self.rules.issuer]);
        validation.set_audience(&[&self.rules.audience]);
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation).ok()?.claims;
        // A time is a whole number of seconds, in whatever way the library would read it.
        let expires = claims.get("exp")?.as_i64()?;
        if claims.get("nbf").is_some_and(|time| !time.is_i64()) {
            return None;
        }
        let user = claims.get(&self.rules.user_claim)?;
        let user = match user {
            Value::String(text) => text.parse().ok(),
            Value::Number(number) => number.as_i64().and_then(|number| UserId::new(number).ok()),
            _ => None,
        };
        Some(Verified { user, expires })
    }
}

/// The secret that a file holds; a line's end after it does not belong to it.
fn secret_in(bytes: &[u8]) -> Result<&[u8], String> {
    let secret = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    if secret.len() < SECRET_BYTES_MIN {
        return Err(format!("must hold at least {SECRET_BYTES_MIN} bytes, such as `openssl rand -base64 32` prints"));
    }
    Ok(secret)
}

/// Signs a token for `subject` with a secret of `secret`'s file, for `life`. The error is a sentence.
pub fn sign_token(secret: &[u8], rules: &TokenRules, subject: &str, life: Duration) -> Result<String, String> {
    signatures::install();
    let key = EncodingKey::from_secret(secret_in(secret)?);
    let now = now().millis() / 1000;
    let mut claims = Map::new();
    claims.insert("iss".into(), rules.issuer.clone().into());
    claims.insert("aud".into(), rules.audience.clone().into());
    claims.insert("iat".into(), now.into());
    claims.insert("exp".into(), now.saturating_add_unsigned(life.as_secs()).into());
    claims.insert(rules.user_claim.clone(), subject.into());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens() -> Tokens {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, [7; 32]).unwrap();
        let rules = TokenRules { issuer: "i".into(), audience: "a".into(), user_claim: "sub".into() };
        Tokens::new(rules, &TokenKeys::Secret(file)).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever is sent is refused without a panic.
        #[test]
        fn no_text_is_a_token(text in "\\PC{0,300}", parts in proptest::collection::vec("[A-Za-z0-9_-]{0,80}", 0..6)) {
            let tokens = tokens();
            prop_assert_eq!(tokens.verify(&text), None);
            prop_assert_eq!(tokens.verify(&parts.join(".")), None);
        }

        /// Nor is a right one with one character changed.
        #[test]
        fn a_token_that_was_touched_is_refused(at in 0..200_usize, with in "[A-Za-z0-9_.-]") {
            let tokens = tokens();
            let right = sign_token(&[7; 32], &tokens.rules, "7", Duration::from_secs(60)).unwrap();
            prop_assert!(tokens.verify(&right).is_some_and(|verified| verified.user == UserId::new(7).ok()));
            let mut touched = right.clone();
            let at = at % right.len();
            touched.replace_range(at..=at, &with);
            // The last character of a part holds bits that mean nothing; a decoder that reads them is as strict.
            prop_assert!(touched == right || tokens.verify(&touched).is_none(), "{} at {}", with, at);
        }
    }
}
