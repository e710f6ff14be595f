//! The signatures of JWTs are checked by ring, which rustls has brought along anyway. Nothing is
//! signed here.

use std::sync::Once;

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result},
    signature::{self, Verifier},
};
use ring::{
    hmac,
    signature::{self as ring_signature, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey},
};

static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes it what `jsonwebtoken` checks with, once.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Nobody else in this process installs one.
        let _ = RING.install_default();
    });
}

/// One algorithm with one key that is of its kind.
struct Ring {
    algorithm: Algorithm,
    key: DecodingKey,
}

/// A key of another family than the algorithm's is none: an RSA key's bytes are no HMAC secret.
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    Ok(Box::new(Ring { algorithm: *algorithm, key: key.clone() }))
}

impl JwtVerifier for Ring {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for Ring {
    fn verify(
        &self,
        message: &[u8],
        signed: &Vec<u8>,
    ) -> std::result::Result<(), signature::Error> {
        let key = self.key.kind();
        let ok = match self.algorithm {
            Algorithm::HS256 => mac(hmac::HMAC_SHA256, key, message, signed),
            Algorithm::HS384 => mac(hmac::HMAC_SHA384, key, message, signed),
            Algorithm::HS512 => mac(hmac::HMAC_SHA512, key, message, signed),
            Algorithm::RS256 => {
                rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA256, key, message, signed)
            }
            Algorithm::RS384 => {
                rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA384, key, message, signed)
            }
            Algorithm::RS512 => {
                rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA512, key, message, signed)
            }
            Algorithm::PS256 => {
                rsa(&ring_signature::RSA_PSS_2048_8192_SHA256, key, message, signed)
            }
            Algorithm::PS384 => {
                rsa(&ring_signature::RSA_PSS_2048_8192_SHA384, key, message, signed)
            }
            Algorithm::PS512 => {
                rsa(&ring_signature::RSA_PSS_2048_8192_SHA512, key, message, signed)
            }
            Algorithm::ES256 => raw(&ring_signature::ECDSA_P256_SHA256_FIXED, key, message, signed),
            Algorithm::ES384 => raw(&ring_signature::ECDSA_P384_SHA384_FIXED, key, message, signed),
            Algorithm::EdDSA => raw(&ring_signature::ED25519, key, message, signed),
            _ => false,
        };
        if ok { Ok(()) } else { Err(signature::Error::new()) }
    }
}

fn mac(algorithm: hmac::Algorithm, key: &DecodingKeyKind, message: &[u8], signed: &[u8]) -> bool {
    let DecodingKeyKind::SecretOrDer(secret) = key else { return false };
    hmac::verify(&hmac::Key::new(algorithm, secret), message, signed).is_ok()
}

fn rsa(parameters: &RsaParameters, key: &DecodingKeyKind, message: &[u8], signed: &[u8]) -> bool {
    // From a key set there is no other form.
    let DecodingKeyKind::RsaModulusExponent { n, e } = key else { return false };
    RsaPublicKeyComponents { n, e }.verify(parameters, message, signed).is_ok()
}

fn raw(
    algorithm: &'static dyn ring_signature::VerificationAlgorithm,
    key: &DecodingKeyKind,
    message: &[u8],
    signed: &[u8],
) -> bool {
    let DecodingKeyKind::SecretOrDer(point) = key else { return false };
    UnparsedPublicKey::new(algorithm, point).verify(message, signed).is_ok()
}
