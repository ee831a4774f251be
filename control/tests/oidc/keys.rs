//! Keys of an issuer, and tokens signed with them, sound or twisted.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_net::crypto;
use serde_json::{Value, json};

/// Bytes in front of the modulus in the DER of a key of 2,048 bits.
const RSA_HEAD_BYTES: usize = 9;
const RSA_BYTES: usize = 256;

/// One key for each algorithm that is taken.
pub struct Keys {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
    /// In front of every kid.
    name: &'static str,
}

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Keys {
    pub fn new(name: &'static str) -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            ed25519: Ed25519KeyPair::generate().unwrap(),
            name,
        }
    }

    /// The DER of the RSA key's public half, as an attacker finds it.
    pub fn rsa_public(&self) -> Vec<u8> {
        self.rsa.public_key().as_ref().to_vec()
    }

    pub fn kid(&self, alg: &str) -> String {
        let kind = match alg {
            "RS256" | "PS256" => "rsa",
            "ES256" => "p256",
            _ => "ed25519",
        };
        format!("{}-{kind}", self.name)
    }

    pub fn jwks(&self) -> Value {
        let rsa = self.rsa_public();
        let modulus = &rsa[RSA_HEAD_BYTES..RSA_HEAD_BYTES + RSA_BYTES];
        let point = self.p256.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "use": "sig", "kid": self.kid("RS256"), "n": b64(modulus), "e": "AQAB"},
            {"kty": "EC", "use": "sig", "kid": self.kid("ES256"), "crv": "P-256",
             "x": b64(&point[1..33]), "y": b64(&point[33..])},
            {"kty": "OKP", "use": "sig", "kid": self.kid("EdDSA"), "crv": "Ed25519",
             "x": b64(self.ed25519.public_key())},
        ]})
    }

    /// A token of these claims.
    pub fn token(&self, alg: &str, claims: &Value) -> String {
        let head = json!({"alg": alg, "typ": "JWT", "kid": self.kid(alg)});
        self.of_texts(alg, &head.to_string(), &claims.to_string())
    }

    /// A token of head and claims to the letter, signed with the key of `alg`.
    pub fn of_texts(&self, alg: &str, head: &str, claims: &str) -> String {
        let text = format!("{}.{}", b64(head), b64(claims));
        format!("{text}.{}", b64(self.sign(alg, text.as_bytes())))
    }

    fn sign(&self, alg: &str, text: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match alg {
            "RS256" | "PS256" => {
                let mut out = vec![0; self.rsa.public_modulus_len()];
                let padding: &'static dyn aws_lc_rs::signature::RsaEncoding = match alg {
                    "RS256" => &RSA_PKCS1_SHA256,
                    _ => &RSA_PSS_SHA256,
                };
                self.rsa.sign(padding, &random, text, &mut out).unwrap();
                out
            }
            "ES256" => self.p256.sign(&random, text).unwrap().as_ref().to_vec(),
            "EdDSA" => self.ed25519.sign(text).as_ref().to_vec(),
            other => panic!("no key for {other}"),
        }
    }
}

/// A token "signed" with a secret.
pub fn hs256(kid: &str, secret: &[u8], claims: &Value) -> String {
    let head = json!({"alg": "HS256", "typ": "JWT", "kid": kid}).to_string();
    let text = format!("{}.{}", b64(head), b64(claims.to_string()));
    format!(
        "{text}.{}",
        b64(crypto::hmac_sha256(secret, text.as_bytes()))
    )
}
