//! The one error type: what went wrong in one line, an optional hint, and the exit code it stands for.

use std::fmt::Display;
use std::path::Path;

/// Every fallible function of the library returns this.
pub type Result<T> = std::result::Result<T, Error>;

/// Which exit code an error ends the process with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The work failed: exit 1.
    Failed,
    /// Something panicked, which is a bug: exit 1, or 3 if there are several ranks.
    Panicked,
    /// The command line asked for something that cannot be: exit 2.
    Usage,
    /// A rank was lost, refused or silent: exit 3.
    Cluster,
    /// The user ended it: exit 130, and nothing to say.
    Interrupted,
}

/// An error chain printed on one line, outermost cause first, with a hint on what to do.
pub struct Error {
    kind: Kind,
    hint: Option<String>,
    chain: anyhow::Error,
    shown: bool,
}

impl Error {
    /// Returns a failure (exit 1) that says `message`.
    pub fn msg(message: impl Display) -> Self {
        Self { kind: Kind::Failed, hint: None, chain: anyhow::anyhow!("{message}"), shown: false }
    }

    /// Returns a usage error (exit 2) that says `message`.
    pub fn usage(message: impl Display) -> Self {
        Self { kind: Kind::Usage, ..Self::msg(message) }
    }

    /// Returns a failure of the ranks together (exit 3) that says `message`.
    pub fn cluster(message: impl Display) -> Self {
        Self { kind: Kind::Cluster, ..Self::msg(message) }
    }

    /// Returns what ends work that the user interrupted.
    pub fn interrupted() -> Self {
        Self { kind: Kind::Interrupted, ..Self::msg("interrupted") }
    }

    /// Makes it a failure of the ranks together (exit 3).
    #[must_use]
    pub fn into_cluster(self) -> Self {
        Self { kind: Kind::Cluster, ..self }
    }

    /// Returns what a panic becomes that said `message`.
    pub fn panicked(message: impl Display) -> Self {
        let error = Self { kind: Kind::Panicked, ..Self::msg(format_args!("tbshard panicked: {message}")) };
        error.hint("this is a bug, please report it with what is printed above")
    }

    /// Wraps a foreign error, keeping its own causes.
    pub fn from_std(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { kind: Kind::Failed, hint: None, chain: anyhow::Error::new(error), shown: false }
    }

    /// Wraps an I/O error with the path it happened on and a hint that fits its kind.
    pub fn io(path: &Path, error: std::io::Error) -> Self {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => Some("check the path"),
            std::io::ErrorKind::PermissionDenied => Some("check who may read the file"),
            std::io::ErrorKind::StorageFull => Some("free some space on that disk or write elsewhere"),
            _ => None,
        };
        let mut wrapped = Self::from_std(error).context(format_args!("`{}`", path.display()));
        wrapped.hint = hint.map(str::to_owned);
        wrapped
    }

    /// Adds what to do about it; an inner hint is kept because it is closer to the cause.
    #[must_use]
    pub fn hint(mut self, hint: impl Display) -> Self {
        self.hint.get_or_insert_with(|| hint.to_string());
        self
    }

    /// Puts `context` in front of the chain.
    #[must_use]
    pub fn context(mut self, context: impl Display) -> Self {
        self.chain = self.chain.context(context.to_string());
        self
    }

    /// The same error, which the user has read already.
    #[must_use]
    pub fn shown(self) -> Self {
        Self { shown: true, ..self }
    }

    /// Whether the user has read it already.
    pub fn is_shown(&self) -> bool {
        self.shown
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The exit code class.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// The whole chain on one line.
impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = format!("{:#}", self.chain);
        f.write_str(&line.replace('\n', " "))
    }
}

impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")?;
        self.hint.iter().try_for_each(|hint| write!(f, " (hint: {hint})"))
    }
}

impl std::error::Error for Error {}

/// Adds context to any result.
pub trait Context<T> {
    /// Puts `context` in front of the error.
    fn context(self, context: impl Display) -> Result<T>;
    /// Puts a context in front of the error that is only built when there is one.
    fn with_context<C: Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, context: impl Display) -> Self {
        self.map_err(|error| error.context(context))
    }
    fn with_context<C: Display>(self, context: impl FnOnce() -> C) -> Self {
        self.map_err(|error| error.context(context()))
    }
}
