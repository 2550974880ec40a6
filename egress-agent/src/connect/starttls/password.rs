//! The key pair for applications that send a password to a MySQL server over
//! what they take for a connection in the clear.
//!
//! `caching_sha2_password` sends the password itself when the server has not
//! seen it lately: as it is within TLS, else encrypted with the server's RSA
//! key, which the application asks for. The server, which sees TLS, expects
//! the former, so the key that the application gets is ours.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Made when first needed, and known to this process alone.
#[derive(Debug)]
pub(super) struct PasswordKey {
    private: OaepPrivateDecryptingKey,
    /// PEM, as servers send it.
    pub(super) public: String,
}

/// The key of this process. Making it takes a tenth of a second or more, which
/// no worker waits for.
pub(super) async fn password_key() -> Option<Arc<PasswordKey>> {
    static KEY: OnceLock<Option<Arc<PasswordKey>>> = OnceLock::new();
    if let Some(made) = KEY.get() {
        return made.clone();
    }
    tokio::task::spawn_blocking(|| KEY.get_or_init(|| make().map(Arc::new)).clone())
        .await
        .ok()
        .flatten()
}

fn make() -> Option<PasswordKey> {
    let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).ok()?;
    let der = private.public_key().as_der().ok()?;
    let text = STANDARD.encode(der.as_ref());
    let mut public = String::from("-----BEGIN PUBLIC KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        public.push_str(&String::from_utf8_lossy(line));
        public.push('\n');
    }
    public.push_str("-----END PUBLIC KEY-----\n");
    Some(PasswordKey {
        private: OaepPrivateDecryptingKey::new(private).ok()?,
        public,
    })
}

impl PasswordKey {
    /// Length of what an application sends.
    pub(super) fn size(&self) -> usize {
        self.private.key_size_bytes()
    }

    /// The password with its closing zero byte: decrypted, then freed of the
    /// server's nonce, which the application has laid over it.
    pub(super) fn decrypt(&self, encrypted: &[u8], nonce: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let mut room = Zeroizing::new(vec![0; self.private.min_output_size()]);
        let plain = self
            .private
            .decrypt(&OAEP_SHA1_MGF1SHA1, encrypted, &mut room, None)
            .ok()?;
        let mut password = Zeroizing::new(plain.to_vec());
        for (byte, mask) in password.iter_mut().zip(nonce.iter().cycle()) {
            *byte ^= mask;
        }
        (password.last() == Some(&0)).then_some(password)
    }
}
