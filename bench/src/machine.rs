//! What the figures were taken on, and with.

use std::process::Command;

/// Today, in UTC.
pub(crate) fn date() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// Kernel, processor, cores and memory.
pub(crate) fn describe() -> String {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let processor = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(
            || "unknown processor".to_owned(),
            |(_, name)| name.to_owned(),
        );
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!(
        "Linux {}, {cores} cores of {processor}",
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// The versions of everything that was compared.
pub(crate) fn versions() -> Vec<String> {
    let envoy = std::env::var("EGRESS_BENCH_ENVOY").unwrap_or_else(|_| "envoy".to_owned());
    let programs: [(&str, &[&str]); 4] = [
        (&envoy, &["--version"]),
        ("haproxy", &["-v"]),
        ("nginx", &["-v"]),
        ("dnsmasq", &["--version"]),
    ];
    let mut versions = vec![format!("egress {}", env!("CARGO_PKG_VERSION"))];
    for (program, arguments) in programs {
        let Ok(output) = Command::new(program).args(arguments).output() else {
            continue;
        };
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if let Some(line) = text
            .lines()
            .find(|line| line.chars().any(|c| c.is_ascii_digit()))
        {
            versions.push(brief(line));
        }
    }
    versions
}

/// The words up to the version, which is the first with a digit and a dot.
fn brief(line: &str) -> String {
    // envoy  version: HASH/1.40.0/Clean/RELEASE/BoringSSL
    if let Some((_, version)) = line.split_once("version: ")
        && line.contains("BoringSSL")
        && let Some(version) = version.split('/').nth(1)
    {
        return format!("Envoy {version}");
    }
    let mut words = Vec::new();
    for word in line.split_whitespace() {
        words.push(word);
        if word.contains('.') && word.chars().any(|c| c.is_ascii_digit()) {
            break;
        }
    }
    words
        .join(" ")
        .replace(" version", "")
        .replace("nginx: nginx", "nginx")
}

#[cfg(test)]
mod tests {
    use super::brief;

    #[test]
    fn versions_are_brief() {
        assert_eq!(
            brief("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/"),
            "HAProxy 2.6.12-1+deb12u4"
        );
        assert_eq!(
            brief("/a/b/envoy  version: abc/1.40.0/Clean/RELEASE/BoringSSL"),
            "Envoy 1.40.0"
        );
        assert_eq!(brief("nginx version: nginx/1.22.1"), "nginx/1.22.1");
    }
}
