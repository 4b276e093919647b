//! Where the user's secrets come from: a terminal, or the lines of a file.

use std::cell::RefCell;
use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use peregrine_core::crypto::Secret;
use tokio::sync::oneshot;

use crate::args::SecretOptions;
use crate::load;

/// No secret is longer, in octets.
const MAX_LINE: usize = 4096;
/// How often the terminal is looked at for an answer.
const LOOK: Duration = Duration::from_millis(30);

/// Who answers.
pub(crate) enum Answers {
    /// The lines of `--password-file` or `--password-fd`, one for each question in their order.
    Given(RefCell<Lines>),
    /// Somebody at the terminal.
    Terminal,
    /// Nobody.
    Nobody,
}

impl Answers {
    /// What the options name, or else the terminal if there is one.
    pub(crate) fn new(options: &SecretOptions) -> Result<Self, String> {
        let path = match (&options.password_file, options.password_fd) {
            (Some(path), _) => path.clone(),
            (None, Some(descriptor)) => PathBuf::from(format!("/dev/fd/{descriptor}")),
            (None, None) if std::io::stdin().is_terminal() => return Ok(Self::Terminal),
            (None, None) => return Ok(Self::Nobody),
        };
        Ok(Self::Given(RefCell::new(Lines::open(&path)?)))
    }

    /// The answer to a question, before anything is connected. None: nobody can be asked.
    pub(crate) fn ask(&self, prompt: &str) -> Result<Option<Secret>, String> {
        match self {
            Self::Given(lines) => lines.borrow_mut().next(),
            Self::Terminal => prompt_for(prompt).map(Some),
            Self::Nobody => Ok(None),
        }
    }

    /// The same while a connection goes on beside it.
    pub(crate) fn beside(self) -> Beside {
        match self {
            Self::Given(lines) => Beside::Given(read_beside(lines.into_inner())),
            Self::Terminal => Beside::Terminal,
            Self::Nobody => Beside::Nobody,
        }
    }
}

/// Who answers while a connection goes on.
pub(crate) enum Beside {
    /// A thread that reads one line for each request.
    Given(Sender<oneshot::Sender<Option<Secret>>>),
    Terminal,
    Nobody,
}

impl Beside {
    /// The answer to a question, if anybody has one. Dropped, it leaves the terminal as it was.
    pub(crate) async fn ask(&self, prompt: &str) -> Option<Secret> {
        match self {
            Self::Given(reader) => {
                let (answer, answered) = oneshot::channel();
                reader.send(answer).ok()?;
                answered.await.ok()?
            }
            Self::Terminal => match Typing::begin(prompt) {
                Ok(typing) => typing.line().await,
                Err(error) => Err(error),
            }
            .inspect_err(|error| tracing::warn!(%error, "the terminal cannot be read"))
            .ok()
            .filter(|secret| !secret.is_empty()),
            Self::Nobody => None,
        }
    }

    /// The terminal is where questions go.
    pub(crate) const fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal)
    }
}

/// A thread of its own, because whoever writes into a pipe may take his time.
fn read_beside(mut lines: Lines) -> Sender<oneshot::Sender<Option<Secret>>> {
    let (requests, queue) = std::sync::mpsc::channel::<oneshot::Sender<Option<Secret>>>();
    std::thread::spawn(move || {
        for answer in queue {
            let line = lines.next().unwrap_or_else(|error| {
                tracing::warn!(%error, "an answer cannot be read");
                None
            });
            // Whoever asked may have gone.
            let _unheard = answer.send(line);
        }
    });
    requests
}

/// Secrets in a file, one on each line.
pub(crate) struct Lines {
    file: File,
    shown: String,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, String> {
        let shown = path.display().to_string();
        let failed = |error| format!("{shown}: {}", load::sentence(&error));
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(format!("{shown}: it is a folder"));
        }
        Ok(Self { file, shown })
    }

    /// The next line, without its end; none when there are no more.
    fn next(&mut self) -> Result<Option<Secret>, String> {
        // Room for all of it at once, so that no copy is left behind by a growing vector. Octet by octet, because what
        // comes after the line is nobody's yet.
        let mut line = Vec::with_capacity(MAX_LINE);
        let mut octet = [0];
        let found = loop {
            match self.file.read(&mut octet) {
                Ok(0) => break !line.is_empty(),
                Ok(_) if octet == *b"\n" => break true,
                Ok(_) if line.len() < MAX_LINE => line.push(octet[0]),
                Ok(_) => return Err(format!("{}: a line is too long", self.shown)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("{}: {}", self.shown, load::sentence(&error))),
            }
        };
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        match Secret::new(line) {
            line if found && line.is_empty() => Err(format!("{}: a line is empty", self.shown)),
            line => Ok(Some(line).filter(|_| found)),
        }
    }
}

fn prompt_for(prompt: &str) -> Result<Secret, String> {
    // Ctrl-C must not end us while the terminal shows no typing: the signal waits until that is put back.
    let interrupt = SigSet::from(Signal::SIGINT);
    let held = interrupt.thread_block().is_ok();
    let answer = rpassword::prompt_password(prompt);
    if held {
        interrupt.thread_unblock().map_err(|error| error.to_string())?;
    }
    let text = answer.map_err(|error| format!("the terminal cannot be read: {error}"))?;
    Ok(Secret::new(text.into_bytes()))
}

/// Somebody types an answer, which is not shown: a code is often typed behind a PIN. The terminal shows typing again
/// when this is dropped.
struct Typing {
    terminal: File,
    before: Termios,
}

impl Typing {
    fn begin(prompt: &str) -> std::io::Result<Self> {
        // Opened anew, so that whoever shares our standard input does not find it without waiting.
        let terminal = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open("/dev/tty")?;
        let before = termios::tcgetattr(terminal.as_fd())?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        silent.local_flags.insert(LocalFlags::ECHONL);
        // What was typed before the question is no answer to it.
        termios::tcsetattr(terminal.as_fd(), SetArg::TCSAFLUSH, &silent)?;
        let mut typing = Self { terminal, before };
        typing.terminal.write_all(prompt.as_bytes())?;
        Ok(typing)
    }

    async fn line(mut self) -> std::io::Result<Secret> {
        let mut line = Vec::with_capacity(MAX_LINE);
        loop {
            let mut octet = [0];
            match self.terminal.read(&mut octet) {
                Ok(0) => break,
                Ok(_) if octet == *b"\n" => break,
                Ok(_) if line.len() < MAX_LINE => line.push(octet[0]),
                Ok(_) => return Err(std::io::Error::other("the answer is too long")),
                // The terminal gives whole lines. Nobody types so fast that this is slow.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Secret::new(line))
    }
}

impl Drop for Typing {
    fn drop(&mut self) {
        if let Err(error) = termios::tcsetattr(self.terminal.as_fd(), SetArg::TCSAFLUSH, &self.before) {
            tracing::warn!(%error, "the terminal may not show what is typed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(octets: &[u8]) -> Lines {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(octets).unwrap();
        Lines::open(file.path()).unwrap()
    }

    fn all(octets: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = lines(octets);
        std::iter::from_fn(|| lines.next().unwrap())
            .map(|secret| secret.as_bytes().to_vec())
            .collect()
    }

    #[test]
    fn every_line_is_a_secret() {
        assert_eq!(all(b"one\ntwo\r\nthree"), [&b"one"[..], b"two", b"three"]);
        assert_eq!(all(b"one\n"), [b"one"]);
        assert_eq!(all(b" with spaces \n"), [b" with spaces "]);
        assert_eq!(all(b""), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn empty_and_endless_lines_are_told() {
        assert!(lines(b"\nx").next().unwrap_err().contains("a line is empty"));
        assert!(lines(b"\r\n").next().unwrap_err().contains("a line is empty"));
        assert!(lines(&[b'x'; 4096]).next().unwrap().is_some());
        assert!(lines(&[b'x'; 4097]).next().unwrap_err().contains("too long"));
    }

    /// A script writes its answer only once it has seen the question.
    #[test]
    fn a_pipe_is_read_line_by_line() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        let mut lines = Lines {
            file,
            shown: "a pipe".to_owned(),
        };
        writer.write_all(b"one\ntw").unwrap();
        assert_eq!(lines.next().unwrap().unwrap().as_bytes(), b"one");
        writer.write_all(b"o\n").unwrap();
        assert_eq!(lines.next().unwrap().unwrap().as_bytes(), b"two");
        drop(writer);
        assert_eq!(lines.next().unwrap(), None);
    }
}
