//! The table of settings: what each is called, means, and may change. The
//! struct, the command line, the environment and the file all come from it.

/// When a changed value takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// At a reload (`SIGHUP`).
    Reload,
    /// At the next start.
    Start,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Key in the file, and long flag.
    pub key: &'static str,
    /// Heading in the help text.
    pub section: &'static str,
    /// What stands for the value in the help text.
    pub value: &'static str,
    /// Default, as it would be written in a flag; `None`: unset.
    pub default: Option<&'static str>,
    /// What separates several values in the environment; `None`: one value.
    pub separator: Option<char>,
    /// When a change takes effect.
    pub when: When,
    /// Documentation as written, one leading space a line.
    doc: &'static str,
}

impl Setting {
    /// The environment variable.
    pub fn variable(&self) -> String {
        format!(
            "{PREFIX}{}",
            self.key.replace('-', "_").to_ascii_uppercase()
        )
    }

    /// Documentation as paragraphs, the lines of each joined.
    pub fn paragraphs(&self) -> Vec<String> {
        let mut paragraphs = vec![String::new()];
        for line in self.doc.lines().map(str::trim) {
            match (line.is_empty(), paragraphs.last_mut()) {
                (false, Some(last)) if last.is_empty() => last.push_str(line),
                (false, Some(last)) => {
                    last.push(' ');
                    last.push_str(line);
                }
                _ => paragraphs.push(String::new()),
            }
        }
        paragraphs.retain(|paragraph| !paragraph.is_empty());
        paragraphs
    }

    pub(super) const fn new(
        key: &'static str,
        section: &'static str,
        value: &'static str,
        when: When,
        doc: &'static str,
    ) -> Self {
        Self {
            key,
            section,
            value,
            default: None,
            separator: None,
            when,
            doc,
        }
    }

    pub(super) const fn with_default(mut self, text: &'static str) -> Self {
        self.default = Some(text);
        self
    }

    pub(super) const fn with_separator(mut self, separator: char) -> Self {
        self.separator = Some(separator);
        self
    }
}

/// Start of every environment variable of ours.
pub const PREFIX: &str = "EGRESS_";

/// Declares the struct of settings and its table from one list. A field is
/// `name: Type { "key" "VALUE" Reload|Start [default "text"] [separator ':'] }`
/// under its doc comment, which is also the help text.
macro_rules! settings {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($section:literal {
                $(
                    $(#[doc = $doc:literal])+
                    $field:ident: $type:ty {
                        $key:literal $value:literal $when:ident
                        $(default $default:literal)?
                        $(separator $separator:literal)?
                    }
                )+
            })+
        }
    ) => {
        $(#[$meta])*
        pub struct $name {
            $($(
                $(#[doc = $doc])+
                pub $field: $type,
            )+)+
        }

        /// Every setting, in the order of the help text.
        pub const TABLE: &[$crate::settings::table::Setting] = &[
            $($(
                $crate::settings::table::Setting::new(
                    $key,
                    $section,
                    $value,
                    $crate::settings::table::When::$when,
                    concat!($($doc, "\n"),+),
                )
                $(.with_default($default))?
                $(.with_separator($separator))?,
            )+)+
        ];

        impl $name {
            /// Reads each setting; every problem goes to `reader`, so that all
            /// are told at once. `None` when there was one.
            fn read(
                reader: &mut $crate::settings::layer::Reader<'_>,
            ) -> Option<Self> {
                // All are read before the first failure ends this.
                $($(let $field = reader.read::<$type>($key);)+)+
                Some(Self { $($($field: $field?,)+)+ })
            }

            /// Takes over from `new` what may change at a reload. Returns the
            /// keys that changed and were taken, and those that need a restart.
            pub fn reload(&mut self, new: &Self) -> $crate::settings::Reloaded {
                let mut outcome = $crate::settings::Reloaded::default();
                $($(
                    if self.$field != new.$field {
                        match $crate::settings::table::When::$when {
                            $crate::settings::table::When::Reload => {
                                self.$field.clone_from(&new.$field);
                                outcome.taken.push($key);
                            }
                            $crate::settings::table::When::Start => {
                                outcome.need_restart.push($key);
                            }
                        }
                    }
                )+)+
                outcome
            }
        }
    };
}

pub(super) use settings;
