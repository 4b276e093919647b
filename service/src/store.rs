//! What the service keeps: profiles, and which one is on. Files of root's that nobody else can read, each written as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use peregrine_platform::ipc::Text;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of the files.
const VERSION: u32 = 1;

/// No file of ours is larger, in octets.
const MOST_OCTETS: u64 = 4 << 20;

/// More profiles than this of one user are a mistake.
const MOST_PROFILES: usize = 200;

/// No name is longer, in octets: each may take three in the name of its file.
const MOST_NAME: usize = 64;

/// Which profile: of two users, each may have one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// Whose it is: root's are for all.
    pub(crate) owner: u32,
    /// What it is called.
    pub(crate) name: String,
}

impl Key {
    /// Whether this user may use it.
    pub(crate) const fn is_for(&self, user: u32) -> bool {
        self.owner == 0 || self.owner == user || user == 0
    }

    /// Whether this user may read, change or remove it.
    pub(crate) const fn is_of(&self, user: u32) -> bool {
        self.owner == user || user == 0
    }
}

/// What the user last wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The profile that is on.
    pub(crate) profile: Option<Key>,
    /// It locks the machine, with or without the local network.
    pub(crate) lock: Option<bool>,
}

impl Wanted {
    /// Nothing but that the machine is locked.
    const fn locked() -> Self {
        Self {
            profile: None,
            lock: Some(false),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileFile {
    version: u32,
    key: Key,
    profile: Text,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedFile {
    version: u32,
    profile: Option<Key>,
    lock: Option<bool>,
}

/// The store.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    profiles: BTreeMap<Key, Text>,
    wanted: Wanted,
}

impl Store {
    /// Reads what is kept in `folder`, which is made if it is not there. A file that makes no sense is put aside, and told in
    /// the log; it does not keep the rest from being used.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder.join("profiles"))?;
        for each in [folder.to_owned(), folder.join("profiles")] {
            check(&fs::symlink_metadata(&each)?)
                .map_err(|why| io::Error::other(format!("{}: {why}", each.display())))?;
        }
        let mut store = Self {
            folder: folder.to_owned(),
            profiles: BTreeMap::new(),
            wanted: Wanted::default(),
        };
        let mut files: Vec<PathBuf> = fs::read_dir(folder.join("profiles"))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?;
        files.sort();
        for file in files {
            if file.extension().is_some_and(|end| end == "new") {
                // Of a write that a crash ended.
                fs::remove_file(&file)?;
            } else if file.extension().is_some_and(|end| end == "json")
                && let Some(ProfileFile { key, profile, .. }) =
                    read_or_put_aside(&file, |it: &ProfileFile| {
                        it.version == VERSION && is_name(&it.key.name) && file == store.path(&it.key)
                    })?
            {
                store.profiles.insert(key, profile);
            }
        }
        let file = store.wanted_path();
        if file.exists() {
            let read = read_or_put_aside(&file, |it: &WantedFile| it.version == VERSION)?;
            // Whatever was wanted, it may have been a lock.
            store.wanted = read.map_or_else(Wanted::locked, |WantedFile { profile, lock, .. }| Wanted {
                profile,
                lock,
            });
        }
        Ok(store)
    }

    /// The profiles that this user may use.
    pub(crate) fn of(&self, user: u32) -> impl Iterator<Item = (&Key, &Text)> {
        self.profiles.iter().filter(move |(key, _)| key.is_for(user))
    }

    /// The profile that this user means: their own, or else one that they may use.
    pub(crate) fn find(&self, user: u32, name: &str) -> Option<(&Key, &Text)> {
        let own = |key: &Key| key.owner == user;
        let named = || self.of(user).filter(|(key, _)| key.name == name);
        // Root means root's: another user's of that name may be a trap.
        let shared = |key: &Key| key.owner == 0;
        named()
            .find(|(key, _)| own(key))
            .or_else(|| named().find(|(key, _)| shared(key)))
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Text> {
        self.profiles.get(key)
    }

    pub(crate) const fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// How many more this user may have.
    pub(crate) fn room(&self, user: u32) -> usize {
        let own = self.profiles.keys().filter(|key| key.owner == user).count();
        MOST_PROFILES.saturating_sub(own)
    }

    pub(crate) fn keep(&mut self, key: Key, profile: Text) -> io::Result<()> {
        let file = ProfileFile {
            version: VERSION,
            key: key.clone(),
            profile: profile.clone(),
        };
        write(&self.path(&key), &file)?;
        self.profiles.insert(key, profile);
        Ok(())
    }

    pub(crate) fn forget(&mut self, key: &Key) -> io::Result<()> {
        fs::remove_file(self.path(key))?;
        self.profiles.remove(key);
        sync(&self.folder.join("profiles"))
    }

    pub(crate) fn want(&mut self, wanted: Wanted) -> io::Result<()> {
        if wanted == self.wanted {
            return Ok(());
        }
        let Wanted { profile, lock } = wanted.clone();
        let file = WantedFile {
            version: VERSION,
            profile,
            lock,
        };
        write(&self.wanted_path(), &file)?;
        self.wanted = wanted;
        Ok(())
    }

    fn wanted_path(&self) -> PathBuf {
        self.folder.join("wanted.json")
    }

    /// The user's number and the name, of which octets other than letters, digits, `-` and `_` are written as `%` and two
    /// digits.
    fn path(&self, key: &Key) -> PathBuf {
        let mut file = format!("{}-", key.owner);
        for octet in key.name.bytes() {
            match octet {
                b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => file.push(char::from(octet)),
                other => file.push_str(&format!("%{other:02x}")),
            }
        }
        self.folder.join("profiles").join(file + ".json")
    }
}

/// Whether a profile may be called so: one line that people can read and type.
pub(crate) fn is_name(name: &str) -> bool {
    let is_shown = |character: char| !character.is_control() && !is_direction(character);
    !name.is_empty() && name.trim() == name && name.len() <= MOST_NAME && name.chars().all(is_shown)
}

/// What changes the direction of writing, or separates lines.
const fn is_direction(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Whether only we could have written it.
fn check(file: &fs::Metadata) -> Result<(), &'static str> {
    if file.file_type().is_symlink() {
        Err("it is a link")
    } else if file.uid() != nix::unistd::geteuid().as_raw() {
        Err("it is somebody else's")
    } else if file.mode() & 0o077 != 0 {
        Err("others may read or write it")
    } else {
        Ok(())
    }
}

/// What is in a file, if it makes sense; else the file gets another name.
fn read_or_put_aside<T: DeserializeOwned>(
    path: &Path,
    makes_sense: impl Fn(&T) -> bool,
) -> io::Result<Option<T>> {
    let read = || -> Result<T, String> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| error.to_string())?;
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        check(&metadata)?;
        if !metadata.is_file() || metadata.len() > MOST_OCTETS {
            return Err("it is no file of ours".to_owned());
        }
        let mut octets = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1);
        file.take(MOST_OCTETS)
            .read_to_end(&mut octets)
            .map_err(|error| error.to_string())?;
        let octets = peregrine_core::crypto::Secret::new(octets);
        let content: T = serde_json::from_slice(octets.as_bytes()).map_err(|error| error.to_string())?;
        if makes_sense(&content) {
            Ok(content)
        } else {
            Err("it is of another version or name".to_owned())
        }
    };
    match read() {
        Ok(content) => Ok(Some(content)),
        Err(error) => {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".broken");
            tracing::error!(path = %path.display(), %error, "this file cannot be used; it is put aside as `.broken`");
            fs::rename(path, aside)?;
            Ok(None)
        }
    }
}

/// Writes a file so that at any moment, also after a loss of power, it is the old one or the new one.
fn write(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let done = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        let octets = peregrine_core::crypto::Secret::new(serde_json::to_vec(content)?);
        file.write_all(octets.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    done().inspect_err(|_| {
        let _left = fs::remove_file(&new);
    })?;
    sync(path.parent().unwrap_or(path))
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn key(owner: u32, name: &str) -> Key {
        let name = name.to_owned();
        Key { owner, name }
    }

    #[test]
    fn of_one_name_everybody_has_their_own() {
        let root = tempfile::tempdir().unwrap();
        let mut store = Store::open(&root.path().join("state")).unwrap();
        for (owner, name) in [
            (0, "shared"),
            (0, "office"),
            (7, "office"),
            (8, "office"),
            (8, "secret"),
        ] {
            store.keep(key(owner, name), Text::new("text")).unwrap();
        }
        let found = |user, name| store.find(user, name).map(|(key, _)| key.owner);
        assert_eq!(
            [
                found(0, "office"),
                found(7, "office"),
                found(8, "office"),
                found(9, "office")
            ],
            [Some(0), Some(7), Some(8), Some(0)]
        );
        assert_eq!(
            [found(7, "secret"), found(0, "secret"), found(9, "shared")],
            [None, None, Some(0)]
        );
        assert_eq!(store.of(7).count(), 3);
        assert!(!key(0, "office").is_of(7) && key(7, "office").is_of(7) && key(7, "office").is_of(0));
    }

    #[test]
    fn what_is_kept_is_there_after_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("state");
        let names = ["office", "../../etc/passwd", "Büro №1", "a b", "%61", "a"];
        let mut store = Store::open(&folder).unwrap();
        for name in names {
            store.keep(key(7, name), Text::new(name)).unwrap();
        }
        let wanted = Wanted {
            profile: Some(key(7, "office")),
            lock: Some(true),
        };
        store.want(wanted.clone()).unwrap();
        store.forget(&key(7, "a b")).unwrap();
        let store = Store::open(&folder).unwrap();
        assert_eq!(store.wanted(), &wanted);
        let mut found: Vec<_> = store
            .of(7)
            .map(|(key, profile)| (key.name.as_str(), profile.as_str()))
            .collect();
        found.sort_unstable();
        let mut expected: Vec<_> = names
            .iter()
            .filter(|name| **name != "a b")
            .map(|name| (*name, *name))
            .collect();
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(
            fs::read_dir(root.path()).unwrap().count(),
            1,
            "nothing is written outside"
        );
        for entry in fs::read_dir(folder.join("profiles")).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o7777, 0o600);
        }
    }

    #[test]
    fn what_makes_no_sense_is_put_aside_and_the_rest_is_used() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("state");
        let mut store = Store::open(&folder).unwrap();
        for name in ["good", "cut", "other", "open", "link", "large"] {
            store.keep(key(0, name), Text::new("text")).unwrap();
        }
        let file = |name: &str| folder.join("profiles").join(format!("0-{name}.json"));
        fs::write(file("cut"), "{\"version\":1,").unwrap();
        let text = fs::read_to_string(file("other")).unwrap();
        fs::write(file("other"), text.replace("\"version\":1", "\"version\":2")).unwrap();
        fs::set_permissions(file("open"), fs::Permissions::from_mode(0o666)).unwrap();
        fs::rename(file("link"), root.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(root.path().join("elsewhere"), file("link")).unwrap();
        fs::write(file("large"), " ".repeat(5 << 20)).unwrap();
        fs::write(folder.join("profiles/cut-off.new"), "half").unwrap();
        fs::write(folder.join("wanted.json"), "null").unwrap();

        let store = Store::open(&folder).unwrap();
        assert_eq!(
            store.of(0).map(|(key, _)| key.name.as_str()).collect::<Vec<_>>(),
            ["good"]
        );
        assert_eq!(store.wanted(), &Wanted::locked(), "nobody knows what was wanted");
        let aside = fs::read_dir(folder.join("profiles")).unwrap();
        let aside = aside.filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .path()
                .extension()
                .is_some_and(|end| end == "broken")
        });
        assert_eq!(aside.count(), 5);
        assert!(
            root.path().join("elsewhere").exists(),
            "what the link led to is left alone"
        );
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("state");
        Store::open(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            Store::open(&folder)
                .unwrap_err()
                .to_string()
                .contains("others may")
        );
    }

    #[test]
    fn a_name_is_one_line_that_people_can_read() {
        for name in ["Office", "Büro №1", "東京", "a/b", "..", "x y"] {
            assert!(is_name(name), "{name}");
        }
        let long = "x".repeat(65);
        for name in ["", " a", "a ", "a\nb", "a\u{1b}[31m", "a\u{202e}b", "a\0b", &long] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
