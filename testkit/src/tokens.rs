//! Tokens of every kind, right and forged, made without the product's code.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents},
};
use serde_json::{Value, json};

/// What tokens of tests say by default.
pub const ISSUER: &str = "https://issuer.test";
/// For whom they are.
pub const AUDIENCE: &str = "likewise.test";
/// And those for the admin port.
pub const ADMIN_AUDIENCE: &str = "likewise.test/admin";
/// A secret for HS256.
pub const SECRET: &str = "a secret of more than thirty-two bytes";

/// What signs a token.
pub enum Signer {
    /// HS256.
    Secret(Vec<u8>),
    /// EdDSA.
    Ed25519(Ed25519KeyPair),
    /// RS256.
    Rsa(Box<RsaKeyPair>),
}

impl Signer {
    /// The secret that the tests share.
    pub fn secret() -> Self {
        Self::Secret(SECRET.into())
    }

    /// A key pair made from a seed.
    pub fn ed25519(seed: u8) -> Self {
        Self::Ed25519(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a seed of 32 bytes"))
    }

    /// A key pair that serves tests only.
    pub fn rsa() -> Self {
        let pem = include_str!("../keys/rs256_for_tests.pem");
        let lines: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(lines).expect("base64");
        Self::Rsa(Box::new(RsaKeyPair::from_pkcs8(&der).expect("an RSA key")))
    }

    /// The name of its algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Secret(_) => "HS256",
            Self::Ed25519(_) => "EdDSA",
            Self::Rsa(_) => "RS256",
        }
    }

    /// Its public key as a JWK.
    pub fn jwk(&self, id: &str) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Secret(secret) => json!({ "kty": "oct", "k": encode(secret), "kid": id }),
            Self::Ed25519(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref()), "kid": id, "use": "sig" })
            }
            Self::Rsa(pair) => {
                let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({ "kty": "RSA", "n": encode(&n), "e": encode(&e), "kid": id, "alg": "RS256" })
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Secret(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).expect("signed");
                signature
            }
        }
    }

    /// A token with this header and these claims, whatever they are.
    pub fn token(&self, header: &Value, claims: &Value) -> String {
        self.token_of_text(header, &claims.to_string())
    }

    /// A token whose claims are this text.
    pub fn token_of_text(&self, header: &Value, claims: &str) -> String {
        let message = format!("{}.{}", part(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// A right token for the admin port.
    pub fn admin_token(&self) -> String {
        let mut claims = claims(1);
        claims["aud"] = json!(ADMIN_AUDIENCE);
        self.token(&json!({ "alg": self.algorithm() }), &claims)
    }

    /// A right token for a user.
    pub fn token_of(&self, user: i64) -> String {
        self.token(&json!({ "alg": self.algorithm(), "typ": "JWT" }), &claims(user))
    }
}

/// A part of a token as it is sent.
pub fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// Seconds since 1970, so much from now on.
pub fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX).saturating_add(seconds)
}

/// Right claims for a user, for an hour.
pub fn claims(user: i64) -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "exp": seconds_from_now(3600), "sub": user.to_string() })
}
