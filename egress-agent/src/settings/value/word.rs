//! Settings that are one of a few words.

use std::fmt;

use rustix::io::Errno;

use super::{Fault, Scalar, nearest};

/// Declares an enum that is written as one of a few words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal $(| $also:literal)*,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl $name {
            /// As written in settings.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Scalar for $name {
            fn parse(text: &str) -> Result<Self, Fault> {
                match text {
                    $($word $(| $also)* => Ok(Self::$variant),)+
                    _ => Err(not_a_word(text, &[$($word),+])),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

fn not_a_word(text: &str, words: &[&str]) -> Fault {
    let listed = words
        .iter()
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ");
    let meant = nearest(text, words.iter().copied())
        .map(|word| format!("; did you mean `{word}`?"))
        .unwrap_or_default();
    Fault::new(format!("`{text}` is not one of {listed}{meant}"))
}

words! {
    /// On or off.
    Switch {
        /// `on`; TOML's `true` is taken too.
        On = "on" | "true",
        /// `off`; TOML's `false` is taken too.
        Off = "off" | "false",
    }
}

impl Switch {
    /// Whether it is on.
    pub const fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}

words! {
    /// What an unknown field in a policy document is.
    UnknownFields {
        /// The document is rejected.
        Error = "error",
        /// The document is loaded without the field.
        Warn = "warn",
    }
}

words! {
    /// What happens to connections to unregistered destinations.
    Outbound {
        /// They pass untouched.
        AllowAny = "allow-any" | "ALLOW_ANY",
        /// They are refused.
        RegistryOnly = "registry-only" | "REGISTRY_ONLY",
    }
}

words! {
    /// Form of log lines.
    LogFormat {
        /// For people.
        Text = "text",
        /// One object a line.
        Json = "json",
    }
}

words! {
    /// Error of a refused `connect` or `sendmsg`.
    RefusalErrno {
        /// As if nothing listened there; clients give up at once.
        ConnectionRefused = "ECONNREFUSED",
        /// Operation not permitted, as a firewall gives.
        NotPermitted = "EPERM",
        /// Permission denied.
        AccessDenied = "EACCES",
        /// No route to host.
        HostUnreachable = "EHOSTUNREACH",
        /// Network unreachable; clients try another address family.
        NetworkUnreachable = "ENETUNREACH",
    }
}

impl RefusalErrno {
    /// The kernel's number.
    pub const fn errno(self) -> Errno {
        match self {
            Self::ConnectionRefused => Errno::CONNREFUSED,
            Self::NotPermitted => Errno::PERM,
            Self::AccessDenied => Errno::ACCESS,
            Self::HostUnreachable => Errno::HOSTUNREACH,
            Self::NetworkUnreachable => Errno::NETUNREACH,
        }
    }
}
