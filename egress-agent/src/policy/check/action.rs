//! Rules of what an HTTP route does besides forwarding: redirect, answer, rewrite.

use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::GeneralPurposeConfig;
use base64::{DecodeError, Engine, alphabet};

use super::header::is_authority;
use super::names::check_port;
use super::regexp;
use super::route::set;
use crate::policy::diagnostic::Span;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::route::{Body, HttpRoute, Redirect, Rewrite, StringMatch};

pub(super) fn check_redirect(reader: &mut Reader<'_>, redirect: &Redirect, route: &HttpRoute) {
    let port = redirect.port.is_some() || redirect.derive_port.is_some();
    let target = [
        &redirect.uri,
        &redirect.prefix_rewrite,
        &redirect.authority,
        &redirect.scheme,
    ];
    if !port && !target.into_iter().any(set) {
        let message = "`redirect` does not say where to";
        reader.error(
            "required",
            redirect.span,
            message,
            "add uri, prefixRewrite, authority, scheme or port",
        );
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        let message = "`port` and `derivePort` exclude each other";
        reader.error("one-of", redirect.span, message, "keep one of them");
    }
    if let Some(prefix) = redirect
        .prefix_rewrite
        .as_ref()
        .filter(|text| !text.is_empty())
    {
        if set(&redirect.uri) {
            let message = "`uri` and `prefixRewrite` exclude each other";
            reader.error("one-of", prefix.span, message, "keep one of them");
        }
        let other = |uri: &&StringMatch| uri.prefix.is_none();
        let uris = route.matches.iter().filter_map(|rule| rule.uri.as_ref());
        if let Some(uri) = uris.into_iter().find(other) {
            let message =
                "`prefixRewrite` needs matches by `prefix`, so that there is one to replace";
            reader.error(
                "redirect-prefix",
                uri.span,
                message,
                "match by `prefix`, or redirect to a `uri`",
            );
        }
    }
    if let Some(code) = redirect.redirect_code
        && code.value != 0
    {
        if !(300..=399).contains(&code.value) {
            let message = format!("{} is not the status of a redirect", code.value);
            reader.error(
                "http-status",
                code.span,
                message,
                "write 301, 302, 303, 307 or 308",
            );
        } else if !matches!(code.value, 301 | 302 | 303 | 307 | 308) {
            let message = format!("{} makes no client go elsewhere", code.value);
            reader.warn(
                "http-status",
                code.span,
                message,
                "write 301, 302, 303, 307 or 308",
            );
        }
    }
    if let Some(scheme) = &redirect.scheme
        && !matches!(&***scheme, "" | "http" | "https")
    {
        let message = format!("{:?} is not a scheme to redirect to", &***scheme);
        reader.error("enum", scheme.span, message, "write http or https");
    }
    if let Some(port) = redirect.port
        && port.value > 0
    {
        check_port(reader, port);
    }
}

pub(super) fn check_status(reader: &mut Reader<'_>, status: i64, span: Span) {
    if !(200..=600).contains(&status) {
        let message = format!("{status} is not the status of an answer");
        reader.error("http-status", span, message, "write 200 to 599");
    }
}

/// Decodes base64 as Go does: line breaks are passed over, and so are bits
/// behind the last byte.
pub fn base64(text: &str) -> Result<Vec<u8>, DecodeError> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
    );
    let plain: Vec<u8> = text
        .bytes()
        .filter(|b| !matches!(b, b'\r' | b'\n'))
        .collect();
    LENIENT.decode(plain)
}

pub(super) fn check_body(reader: &mut Reader<'_>, body: &Body) {
    const KILO: usize = 1024;
    if body.string.is_some() && body.bytes.is_some() {
        let message = "`string` and `bytes` exclude each other";
        reader.error("one-of", body.span, message, "keep one of them");
    }
    let (size, span) = match (&body.string, &body.bytes) {
        (Some(text), _) => (text.len(), text.span),
        (None, Some(encoded)) => match base64(encoded) {
            Ok(bytes) => (bytes.len(), encoded.span),
            Err(error) => {
                let message = format!("`bytes` is not base64: {error}");
                reader.error(
                    "base64",
                    encoded.span,
                    message,
                    "encode it, or use `string`",
                );
                return;
            }
        },
        (None, None) => return,
    };
    if size > KILO * KILO {
        let message = format!("the body has {size} bytes; at most 1 MiB is allowed");
        reader.error("body-size", span, message, "serve it from somewhere else");
    } else if size > 100 * KILO {
        let message = format!("the body has {size} bytes and is held in memory");
        reader.warn("body-size", span, message, "keep it below 100 KiB");
    }
}

pub(super) fn check_rewrite(reader: &mut Reader<'_>, rewrite: &Rewrite) {
    let regex = rewrite.uri_regex_rewrite.as_ref();
    if set(&rewrite.uri) && regex.is_some() {
        let message = "`uri` and `uriRegexRewrite` exclude each other";
        reader.error("one-of", rewrite.span, message, "keep one of them");
    }
    if !set(&rewrite.uri) && regex.is_none() && !set(&rewrite.authority) {
        let message = "`rewrite` changes nothing";
        reader.error(
            "required",
            rewrite.span,
            message,
            "add uri, uriRegexRewrite or authority",
        );
    }
    let Some(regex) = regex else { return };
    reader.within("uriRegexRewrite", |reader| {
        if !set(&regex.pattern) {
            reader.required(regex.span, "match");
        }
        if !set(&regex.rewrite) {
            reader.required(regex.span, "rewrite");
        }
        if let Some(pattern) = regex.pattern.as_ref().filter(|text| !text.is_empty())
            && let Err(problem) = regexp::compile_search(pattern)
        {
            reader.error(
                "regex",
                pattern.span,
                problem,
                "write it in RE2's syntax: github.com/google/re2/wiki/Syntax",
            );
        }
    });
}

/// The authority may be rewritten in one place only.
pub(super) fn check_authority_once(reader: &mut Reader<'_>, route: &HttpRoute) {
    let rewrite = route
        .rewrite
        .as_deref()
        .and_then(|rewrite| rewrite.authority.as_ref());
    let request = route
        .headers
        .as_deref()
        .and_then(|headers| headers.request.as_deref());
    let operations = request.into_iter().flat_map(|r| r.set.iter().chain(&r.add));
    let values = operations.filter(|(name, _)| is_authority(name));
    let mut current = rewrite;
    for (_, next) in values {
        // An empty value before does not count; an empty one after does.
        if let Some(current) = current.filter(|text| !text.is_empty()) {
            let message = format!(
                "the authority is rewritten twice: to {:?} and to {:?}",
                &***current, &***next
            );
            reader.error("authority-twice", next.span, message, "keep one of them");
            return;
        }
        current = Some(next);
    }
}
