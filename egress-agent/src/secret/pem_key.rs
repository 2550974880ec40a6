//! Private keys in PEM (RFC 7468), read so that no copy is left in memory: the
//! usual readers keep text and key in buffers that are not wiped.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem::find;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use zeroize::Zeroizing;

/// A private key as it is encoded; wiped when dropped.
pub(super) struct PemKey {
    form: Form,
    der: Zeroizing<Vec<u8>>,
}

#[derive(Clone, Copy)]
enum Form {
    Pkcs8,
    Pkcs1,
    Sec1,
}

const FORMS: [(&[u8], Form); 3] = [
    (b"PRIVATE KEY", Form::Pkcs8),
    (b"RSA PRIVATE KEY", Form::Pkcs1),
    (b"EC PRIVATE KEY", Form::Sec1),
];

impl PemKey {
    /// The first private key of a file, or what is wrong with its text; `None`
    /// when there is none.
    pub(super) fn find(bytes: &[u8]) -> Option<Result<Self, &'static str>> {
        let mut rest = bytes;
        while let Some(section) = Section::next(rest) {
            let form = FORMS.iter().find(|(label, _)| *label == section.label);
            if let Some((_, form)) = form {
                return Some(match section.body {
                    Some(body) => Self::decode(*form, body),
                    None => Err("the line that ends the key is missing"),
                });
            }
            rest = section.rest;
        }
        None
    }

    fn decode(form: Form, body: &[u8]) -> Result<Self, &'static str> {
        // Both of their final size at once: a growing vector leaves copies.
        let mut text = Zeroizing::new(Vec::with_capacity(body.len()));
        text.extend(body.iter().filter(|byte| !byte.is_ascii_whitespace()));
        let mut der = Zeroizing::new(vec![0; text.len().div_ceil(4) * 3]);
        let length = STANDARD
            .decode_slice(&*text, &mut der)
            .map_err(|_| "the text of the key is not base64")?;
        der.truncate(length);
        Ok(Self { form, der })
    }

    /// The key, to be loaded.
    pub(super) fn der(&self) -> PrivateKeyDer<'_> {
        let der: &[u8] = &self.der;
        match self.form {
            Form::Pkcs8 => PrivatePkcs8KeyDer::from(der).into(),
            Form::Pkcs1 => PrivatePkcs1KeyDer::from(der).into(),
            Form::Sec1 => PrivateSec1KeyDer::from(der).into(),
        }
    }
}

/// What a reader of certificates may see of a file that has keys, too.
pub(super) fn without_keys(bytes: &[u8]) -> Cow<'_, [u8]> {
    if find(bytes, b"PRIVATE KEY-----").is_none() {
        return Cow::Borrowed(bytes);
    }
    let mut public = Vec::new();
    let mut rest = bytes;
    while let Some(section) = Section::next(rest) {
        let whole = &rest[..rest.len() - section.rest.len()];
        if !section.label.ends_with(b"PRIVATE KEY") {
            public.extend_from_slice(whole);
        }
        rest = section.rest;
    }
    Cow::Owned(public)
}

/// From one `-----BEGIN LABEL-----` on.
struct Section<'a> {
    label: &'a [u8],
    /// Up to `-----END LABEL-----`; `None`: that is missing.
    body: Option<&'a [u8]>,
    /// What follows.
    rest: &'a [u8],
}

impl<'a> Section<'a> {
    fn next(bytes: &'a [u8]) -> Option<Self> {
        const BEGIN: &[u8] = b"-----BEGIN ";
        let start = &bytes[find(bytes, BEGIN)? + BEGIN.len()..];
        let length = find(start, b"-----")?;
        let (label, content) = (&start[..length], &start[length + 5..]);
        let end = [b"-----END ".as_slice(), label, b"-----"].concat();
        let (body, rest) = match find(content, &end) {
            Some(at) => (Some(&content[..at]), &content[at + end.len()..]),
            None => (None, &[][..]),
        };
        Some(Self { label, body, rest })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const KEY: &str =
        "-----BEGIN EC PRIVATE KEY-----\r\nAQ\r\nID\r\n-----END EC PRIVATE KEY-----\r\n";

    #[test]
    fn finds_the_first_key_wherever_it_stands() {
        let file = ["words\n", CERTIFICATE, KEY].concat();
        let key = PemKey::find(file.as_bytes()).unwrap().unwrap();
        assert_eq!(key.der().secret_der(), [1, 2, 3]);
        assert!(matches!(key.der(), PrivateKeyDer::Sec1(_)));
        assert!(PemKey::find(CERTIFICATE.as_bytes()).is_none());
        assert!(PemKey::find(b"").is_none());
    }

    #[test]
    fn says_what_is_broken() {
        let cut = &KEY[..50];
        assert!(PemKey::find(cut.as_bytes()).unwrap().is_err());
        let wrong = KEY.replace("AQ", "?!");
        assert!(PemKey::find(wrong.as_bytes()).unwrap().is_err());
    }

    #[test]
    fn certificates_are_read_without_the_keys_beside_them() {
        let file = [CERTIFICATE, KEY, CERTIFICATE].concat();
        let public = without_keys(file.as_bytes());
        assert!(find(&public, b"PRIVATE").is_none());
        let public = String::from_utf8(public.into_owned()).unwrap();
        assert_eq!(public.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(matches!(
            without_keys(CERTIFICATE.as_bytes()),
            Cow::Borrowed(_)
        ));
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in "(-----(BEGIN|END) (EC )?(PRIVATE KEY|X)-----|[A-Z=\n]){0,12}") {
            let _ = PemKey::find(bytes.as_bytes());
            let _ = without_keys(bytes.as_bytes());
        }
    }
}
