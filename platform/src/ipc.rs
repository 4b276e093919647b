//! What user interfaces say to the service, and it to them: frames of JSON on a local stream.
//!
//! A frame is its length, four octets with the highest first, and so many octets of JSON. Both sides begin with a
//! [`Hello`]. A caller then sends [`Call`]s, each with a number of its own choosing, and gets one answer or refusal with the
//! same number; whoever has called [`Request::Watch`] also gets [`Said::Notice`]s.
//!
//! The service takes profiles as text with everything in them, never paths, commands or scripts. Whatever a caller does
//! wrong ends that caller's connection alone.

#[cfg(target_os = "linux")]
pub mod unix;

use std::fmt;
use std::io;

use peregrine_core::crypto::Secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The version of all of this. Another one is not understood.
pub const VERSION: u32 = 1;

/// No frame is longer, in octets of JSON: a profile with its certificates and keys is far below.
pub const MAX_FRAME: usize = 1 << 20;

/// The first frame of either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// The program, for people.
    pub program: String,
}

/// What a caller wants.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// A number that the reply repeats.
    pub id: u64,
    /// What.
    pub request: Request,
}

/// What can be wanted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The profiles that the caller may use. Answered with a list of [`Listed`].
    List,
    /// Keep a profile. Answered with [`Imported`].
    Import {
        /// What it shall be called; else what it calls itself.
        name: Option<String>,
        /// In the format of files, with all other files in it as `data:` URLs.
        profile: Text,
        /// Take the place of one of the caller's that has the same name.
        replace: bool,
    },
    /// The text of a profile of the caller's. Answered with a string.
    Export {
        /// Which.
        name: String,
    },
    /// Forget a profile of the caller's. Answered with null.
    Remove {
        /// Which.
        name: String,
    },
    /// Bring a profile's tunnel up; whatever is up ends. Answered with null when it has begun.
    Up {
        /// Which.
        name: String,
        /// Passphrase, password or key that the profile does not hold, in the order in which they are needed.
        secrets: Vec<Text>,
    },
    /// Take the tunnel down and open what is locked. Answered with null when it has begun.
    Down,
    /// Answered with the status.
    Status,
    /// Notices from now on, beginning with the status. Answered with null.
    Watch,
    /// The answer to a question that was told as a notice, or that there will be none. Answered with null.
    Reply {
        /// Which question.
        prompt: u32,
        /// The answer.
        answer: Option<Text>,
    },
}

/// A text that may be a secret, or hold one: it is wiped when dropped and not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(Secret);

impl Text {
    /// A text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Secret::from_slice(text.as_bytes()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.0.as_bytes()).unwrap_or_default()
    }

    /// As a secret.
    #[must_use]
    pub const fn as_secret(&self) -> &Secret {
        &self.0
    }
}

impl From<Secret> for Text {
    /// Octets that are no UTF-8 are no text: then it is empty.
    fn from(secret: Secret) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Text(..)")
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Secret::new(text.into_bytes())))
    }
}

/// A profile that the service keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// The gateway's host name or address.
    pub gateway: String,
    /// How the user is authenticated.
    pub method: String,
    /// It locks the machine.
    pub kill_switch: bool,
    /// It is for every user of this machine, because root has imported it; else the caller's own.
    pub shared: bool,
    /// What is on.
    pub is_on: bool,
    /// Why it cannot be used any more, if so.
    pub broken: Option<String>,
}

/// A profile is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Under this name.
    pub name: String,
    /// It took the place of another one.
    pub replaced: bool,
    /// What to know of it, a sentence each.
    pub warnings: Vec<String>,
}

/// What the service says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// First of all.
    Hello(Hello),
    /// To a call.
    Answer {
        /// The call's number.
        id: u64,
        /// What was asked for.
        answer: Box<RawValue>,
    },
    /// To a call that was in vain.
    Refusal {
        /// The call's number; 0 when it was not understood.
        id: u64,
        /// Why.
        refusal: Refusal,
    },
    /// To who watches: an event, as `peregrine connect --json` prints it.
    Notice(Box<RawValue>),
}

impl Said {
    /// What came of a call.
    #[must_use]
    pub fn reply(id: u64, result: Result<Box<RawValue>, Refusal>) -> Self {
        match result {
            Ok(answer) => Self::Answer { id, answer },
            Err(refusal) => Self::Refusal { id, refusal },
        }
    }
}

/// Why a call was in vain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people: a sentence, or more than one.
    pub message: String,
}

/// For programs: why a call was in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The frame is no call of this version.
    NotUnderstood,
    /// The caller may not.
    NotPermitted,
    /// There is no such profile that the caller may use.
    NoSuchProfile,
    /// There is one of this name already.
    NameTaken,
    /// The profile is not good; the message says where and why.
    BadProfile,
    /// A passphrase, password or key is needed, or was wrong; the message says which.
    SecretNeeded,
    /// The service's own trouble: the disk, for example.
    Failed,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// A frame with this in it.
///
/// # Errors
/// It cannot be JSON, or would be too long.
pub fn frame(content: &impl Serialize) -> io::Result<Secret> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "it is too long for a frame");
    // Its length first: a vector that grows would leave secrets behind.
    let mut count = Count(0);
    serde_json::to_writer(&mut count, content)?;
    if count.0 > MAX_FRAME {
        return Err(too_long());
    }
    let header = u32::try_from(count.0).map_err(|_| too_long())?.to_be_bytes();
    let mut octets = Vec::with_capacity(header.len() + count.0);
    octets.extend(header);
    serde_json::to_writer(&mut octets, content)?;
    Ok(Secret::new(octets))
}

/// Counts octets.
struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0 += octets.len();
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a frame; none at the end of the stream.
///
/// # Errors
/// `InvalidData` when it is too long or not what was expected, `UnexpectedEof` when it is not whole; the stream cannot be
/// used any further then.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut header = [0; 4];
    match stream.read_exact(&mut header[..1]).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        first => first?,
    };
    read_begun(stream, header).await.map(Some)
}

/// Reads the rest of a frame whose first octet is there.
///
/// # Errors
/// As [`read`].
pub async fn read_begun<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    mut header: [u8; 4],
) -> io::Result<T> {
    stream.read_exact(&mut header[1..]).await?;
    let len = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if len > MAX_FRAME {
        return Err(invalid(format!("a frame of {len} octets")));
    }
    // A vector that grows would leave secrets behind. Memory that nothing is written to costs nothing.
    let mut octets = Vec::with_capacity(len);
    stream.take(len as u64).read_to_end(&mut octets).await?;
    let octets = Secret::new(octets);
    if octets.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(octets.as_bytes()).map_err(|error| invalid(error.to_string()))
}

/// Writes a frame.
///
/// # Errors
/// Those of [`frame`] and of the stream.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), content: &impl Serialize) -> io::Result<()> {
    let frame = frame(content)?;
    stream.write_all(frame.as_bytes()).await?;
    stream.flush().await
}
