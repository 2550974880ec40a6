//! Rules of `tls` of a DestinationRule.

use crate::policy::schema::Text;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::tls::{Mode, Tls};

/// Reports what is wrong with a `tls`.
pub fn check_tls(reader: &mut Reader<'_>, tls: &Tls) {
    let mode = tls.mode();
    let set = |text: &Option<Text>| text.as_ref().is_some_and(|text| !text.is_empty());
    let span = |text: &Option<Text>| text.as_ref().map_or(tls.span, |text| text.span);
    if let Some(name) = &tls.credential_name
        && let Some(map) = name.strip_prefix("configmap://")
    {
        reader.within("credentialName", |reader| {
            check_config_map(reader, name, map);
        });
    }
    let skip = tls.insecure_skip_verify.filter(|skip| skip.value);
    if let Some(skip) = skip {
        let clash = match mode {
            Mode::Simple => {
                set(&tls.ca_certificates)
                    || set(&tls.credential_name)
                    || !tls.subject_alt_names.is_empty()
            }
            Mode::Mutual => set(&tls.ca_certificates) || !tls.subject_alt_names.is_empty(),
            Mode::Disable | Mode::IstioMutual => false,
        };
        if clash {
            let message = "`insecureSkipVerify` beside settings that say how to verify";
            reader.error(
                "tls-skip-verify",
                skip.span,
                message,
                "remove one or the other",
            );
        } else {
            let message = "`insecureSkipVerify` takes any certificate: whoever is on the path can read and change the traffic";
            reader.warn(
                "tls-insecure",
                skip.span,
                message,
                "name the CA in `caCertificates` or `credentialName`",
            );
        }
    }
    if matches!(mode, Mode::Simple | Mode::Mutual) && set(&tls.credential_name) {
        let files = [
            &tls.client_certificate,
            &tls.private_key,
            &tls.ca_certificates,
            &tls.ca_crl,
        ];
        if let Some(file) = files.into_iter().find(|file| set(file)) {
            let message = "a file beside `credentialName`: the credential holds all of them";
            reader.error(
                "tls-credential",
                span(file),
                message,
                "remove the file, or `credentialName`",
            );
        }
        return;
    }
    if mode == Mode::Mutual {
        for (name, file) in [
            ("clientCertificate", &tls.client_certificate),
            ("privateKey", &tls.private_key),
        ] {
            if !set(file) {
                let message = format!("mode MUTUAL needs `{name}`, or `credentialName`");
                reader.error("tls-mutual", span(file), message, format!("add `{name}`"));
            }
        }
    }
    if mode == Mode::Disable
        && (set(&tls.credential_name) || set(&tls.ca_certificates) || set(&tls.sni))
    {
        let message = "TLS settings without a `mode` do nothing: the traffic leaves as it came";
        reader.warn(
            "tls-disabled",
            tls.span,
            message,
            "add `mode: SIMPLE` or `mode: MUTUAL`",
        );
    }
}

/// `configmap://NAMESPACE/NAME`, in the namespace of the rule.
fn check_config_map(reader: &mut Reader<'_>, name: &Text, map: &str) {
    let own = reader.namespace.clone();
    let mut parts = map.split('/');
    let (namespace, object) = (parts.next().unwrap_or_default(), parts.next());
    if namespace.is_empty() || object.is_none_or(str::is_empty) {
        let message = format!("{:?} does not name a ConfigMap", &***name);
        let help = format!("write configmap://{own}/NAME");
        reader.error("tls-configmap", name.span, message, help);
    } else if namespace != &*own {
        let message = format!("{:?} is in another namespace than the rule", &***name);
        let help = format!("write configmap://{own}/NAME");
        reader.error("tls-configmap", name.span, message, help);
    } else {
        let message = "a ConfigMap can only hold the CA; it is looked for as a secret of that name";
        reader.warn("tls-configmap", name.span, message, "use a Secret");
    }
}
