//! Tests of this room against independent implementations: rcgen makes the chains, the `openssl` command (which these
//! tests need) makes the files, and Wycheproof and the RFCs bring signatures.

mod chains;
mod files;
mod keys;
mod revocation;
mod signatures;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that is removed at the end of a test, and the `openssl` command in it.
struct OpenSsl(PathBuf);

impl OpenSsl {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("peregrine-pki-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Runs `openssl` with arguments between spaces; an argument with spaces stands in single quotes.
    fn run(&self, arguments: &str) -> &Self {
        let arguments = arguments
            .split('\'')
            .enumerate()
            .flat_map(|(index, part)| match index % 2 {
                0 => part.split_whitespace().collect(),
                _ => vec![part],
            });
        let output = Command::new("openssl")
            .args(arguments.clone())
            .current_dir(&self.0)
            .output()
            .expect("the openssl command, which these tests need");
        assert!(
            output.status.success(),
            "openssl {}: {}",
            arguments.collect::<Vec<_>>().join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        self
    }

    fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        std::fs::read(self.0.join(name)).unwrap()
    }

    fn write(&self, name: &str, octets: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.0.join(name), octets).unwrap();
        self
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
