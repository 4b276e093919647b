//! A profile and all files that it names as one text, as the service takes it.

use std::collections::BTreeMap;
use std::path::Path;

use base64ct::{Base64, Encoding as _};
use peregrine_core::crypto::Secret;
use peregrine_core::pki::Certificate;
use peregrine_core::profile::{self, DATA, FileRef, Passphrase, Source};
use peregrine_platform::anchors;
use peregrine_platform::ipc::Text;
use toml_edit::{DocumentMut, Item, Value};

use crate::exit::{self, Exit};
use crate::load::{self, LoadFault};

/// Reads files and remembers which key named which.
struct Files<'a> {
    folder: &'a Path,
    read: BTreeMap<(String, String), Secret>,
}

impl Source for Files<'_> {
    fn load(&mut self, file: &FileRef) -> Result<Vec<u8>, String> {
        let octets = load::read(&self.folder.join(&file.path))?;
        let key = (file.key.clone(), file.path.clone());
        self.read.insert(key, Secret::from_slice(&octets));
        Ok(octets)
    }

    fn passphrase(&mut self, _: &str, _: u32) -> Passphrase {
        Passphrase::Later
    }

    fn system_anchors(&mut self) -> Result<Vec<Certificate>, String> {
        anchors::system()
    }
}

/// The text of the profile in this file, with the files that it names.
pub(crate) fn read(path: &Path) -> Result<Text, Exit> {
    let shown = path.display().to_string();
    let text = load::text(path).map_err(|fault| refused(&fault))?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let mut files = Files {
        folder,
        read: BTreeMap::new(),
    };
    profile::parse(text.as_str(), &shown, &mut files, load::now())
        .map_err(|errors| refused(&LoadFault::Profile(errors)))?;
    if files.read.is_empty() {
        return Ok(text);
    }
    let mut document: DocumentMut = text
        .as_str()
        .parse()
        .map_err(|error| exit::unexpected(&format!("{shown}: {error}")))?;
    for ((key, path), octets) in &files.read {
        let inside = format!("{DATA}{}", Base64::encode_string(octets.as_bytes()));
        put(&mut document, key, path, &inside);
    }
    Ok(Text::from(Secret::new(document.to_string().into_bytes())))
}

/// Puts `inside` where `key` (`auth.key`) names `path`.
fn put(document: &mut DocumentMut, key: &str, path: &str, inside: &str) {
    let mut item: &mut Item = document.as_item_mut();
    for part in key.split('.') {
        item = &mut item[part];
    }
    match item {
        Item::Value(Value::Array(array)) => {
            for value in array.iter_mut().filter(|value| value.as_str() == Some(path)) {
                *value = inside.into();
            }
        }
        item => *item = toml_edit::value(inside),
    }
}

fn refused(fault: &LoadFault) -> Exit {
    match fault {
        LoadFault::Profile(errors) => exit::usage(&crate::check::refusal(errors)),
        LoadFault::Other(message) => exit::usage(message),
    }
}
