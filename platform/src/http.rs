//! One request over HTTP/1.1 (RFC 9112), and its answer: as much of the protocol as a revocation list or an OCSP response
//! needs, on a connection of its own.

use std::io;

use peregrine_core::fetch::{Fetch, HttpUrl};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The largest head of an answer, in octets.
const MAX_HEAD: usize = 16 * 1024;
/// The most fields in it.
const MAX_FIELDS: usize = 64;
/// So many interim answers (1xx) may come before the final one.
const MAX_INTERIM: usize = 4;
/// The longest line that tells the size of a chunk, in octets.
const MAX_CHUNK_LINE: usize = 256;

/// What a server answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The content, of at most [`Fetch::MAX_BODY`] octets.
    Body(Vec<u8>),
    /// It is elsewhere: the `Location` field.
    Elsewhere(String),
}

/// Sends a request and reads the answer.
///
/// # Errors
/// The connection failed or ended early, the answer is no HTTP or too large, or the server has nothing for us.
pub(crate) async fn exchange<S>(
    stream: &mut S,
    url: &HttpUrl,
    post: Option<(&str, &[u8])>,
) -> io::Result<Reply>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&request(url, post)).await?;
    let mut input = Input {
        stream,
        octets: Vec::new(),
    };
    for _ in 0..=MAX_INTERIM {
        let head = input.head().await?;
        match head.code {
            100..200 => {}
            200 => return input.body(head.length).await.map(Reply::Body),
            301 | 302 | 307 | 308 => {
                let location = head.location.ok_or_else(|| broken("a redirection to nowhere"))?;
                return Ok(Reply::Elsewhere(location));
            }
            code => return Err(io::Error::other(format!("the server says {code}"))),
        }
    }
    Err(broken("no answer after all"))
}

fn request(url: &HttpUrl, post: Option<(&str, &[u8])>) -> Vec<u8> {
    let method = if post.is_some() { "POST" } else { "GET" };
    let mut request = format!(
        "{method} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: peregrine\r\nAccept: */*\r\nConnection: close\r\n",
        url.target(),
        url.authority()
    );
    let mut body: &[u8] = &[];
    if let Some((kind, octets)) = post {
        body = octets;
        request += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
    }
    [request.as_bytes(), b"\r\n", body].concat()
}

fn broken(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server's answer is no HTTP: {what}"),
    )
}

fn too_large() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("more than {} octets", Fetch::MAX_BODY),
    )
}

/// What we need of the head of an answer.
struct Head {
    code: u16,
    length: Length,
    location: Option<String>,
}

/// How the end of the content is known (RFC 9112, section 6.3).
#[derive(Clone, Copy)]
enum Length {
    Octets(usize),
    Chunked,
    UntilClosed,
}

/// What came in and is not read yet.
struct Input<'s, S> {
    stream: &'s mut S,
    octets: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Input<'_, S> {
    /// Reads some more; false at the end.
    async fn more(&mut self) -> io::Result<bool> {
        self.octets.reserve(4096);
        Ok(self.stream.read_buf(&mut self.octets).await? > 0)
    }

    async fn must_have_more(&mut self) -> io::Result<()> {
        if self.more().await? {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server's answer ends early",
        ))
    }

    /// Takes the first `len` octets off.
    async fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.octets.len() < len {
            self.must_have_more().await?;
        }
        let rest = self.octets.split_off(len);
        Ok(std::mem::replace(&mut self.octets, rest))
    }

    async fn head(&mut self) -> io::Result<Head> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
            let mut response = httparse::Response::new(&mut fields);
            let parsed = response
                .parse(&self.octets)
                .map_err(|error| broken(&error.to_string()))?;
            if let httparse::Status::Complete(len) = parsed {
                let head = read_head(&response)?;
                self.octets.drain(..len);
                return Ok(head);
            }
            if self.octets.len() > MAX_HEAD {
                return Err(broken("its head has no end"));
            }
            self.must_have_more().await?;
        }
    }

    async fn body(&mut self, length: Length) -> io::Result<Vec<u8>> {
        match length {
            Length::Octets(len) => self.take(len).await,
            Length::Chunked => self.chunks().await,
            Length::UntilClosed => {
                while self.octets.len() <= Fetch::MAX_BODY {
                    if !self.more().await? {
                        return Ok(std::mem::take(&mut self.octets));
                    }
                }
                Err(too_large())
            }
        }
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = httparse::parse_chunk_size(&self.octets);
            let (start, len) = match line.map_err(|_| broken("the size of a chunk"))? {
                httparse::Status::Complete(found) => found,
                httparse::Status::Partial if self.octets.len() > MAX_CHUNK_LINE => {
                    return Err(broken("the size of a chunk"));
                }
                httparse::Status::Partial => {
                    self.must_have_more().await?;
                    continue;
                }
            };
            self.octets.drain(..start);
            // What may follow the last one tells nothing about the content.
            if len == 0 {
                return Ok(body);
            }
            let len = usize::try_from(len).map_err(|_| too_large())?;
            if len > Fetch::MAX_BODY.saturating_sub(body.len()) {
                return Err(too_large());
            }
            body.append(&mut self.take(len).await?);
            if self.take(2).await? != *b"\r\n" {
                return Err(broken("a chunk without end"));
            }
        }
    }
}

fn read_head(response: &httparse::Response<'_, '_>) -> io::Result<Head> {
    let mut head = Head {
        code: response.code.ok_or_else(|| broken("no status"))?,
        length: Length::UntilClosed,
        location: None,
    };
    for field in response.headers.iter() {
        let value = std::str::from_utf8(field.value).unwrap_or_default().trim();
        if field.name.eq_ignore_ascii_case("location") {
            head.location = Some(value.to_owned());
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(broken("a transfer coding that was not asked for"));
            }
            head.length = Length::Chunked;
        } else if field.name.eq_ignore_ascii_case("content-length") {
            let len = value
                .bytes()
                .all(|octet| octet.is_ascii_digit())
                .then(|| value.parse::<usize>());
            let len = len.and_then(Result::ok).ok_or_else(|| broken("its length"))?;
            head.length = match head.length {
                // Chunks tell their own lengths.
                Length::Chunked => Length::Chunked,
                Length::Octets(other) if other != len => return Err(broken("two lengths")),
                Length::Octets(_) | Length::UntilClosed if len > Fetch::MAX_BODY => return Err(too_large()),
                Length::Octets(_) | Length::UntilClosed => Length::Octets(len),
            };
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an answer, which comes in pieces of this size; and the request.
    async fn answered(
        answer: &[u8],
        piece: usize,
        post: Option<(&str, &[u8])>,
    ) -> (Result<Reply, String>, String) {
        let (mut ours, theirs) = tokio::io::duplex(piece);
        let (mut read, mut write) = tokio::io::split(theirs);
        let answer = answer.to_vec();
        let url = HttpUrl::parse("http://crl.example.org:8080/a?b").unwrap();
        let serve = async move {
            let mut request = vec![0; 4096];
            let mut len = 0;
            while !request[..len].windows(4).any(|end| end == b"\r\n\r\n") {
                len += read.read(&mut request[len..]).await.unwrap();
            }
            let _closed = write.write_all(&answer).await;
            let _closed = write.shutdown().await;
            // All of the request, however much came with the head.
            while let Ok(more) = read.read(&mut request[len..]).await {
                if more == 0 {
                    break;
                }
                len += more;
            }
            request.truncate(len);
            String::from_utf8(request).unwrap()
        };
        let ask = async {
            let reply = exchange(&mut ours, &url, post)
                .await
                .map_err(|error| error.to_string());
            drop(ours);
            reply
        };
        tokio::join!(ask, serve)
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(work)
    }

    fn reply(answer: &[u8]) -> Result<Reply, String> {
        let whole = run(answered(answer, 1 << 21, None)).0;
        let pieces = run(answered(&answer[..answer.len().min(4096)], 1, None)).0;
        if answer.len() <= 4096 {
            assert_eq!(whole, pieces, "in pieces");
        }
        whole
    }

    fn body(content: &[u8]) -> Result<Reply, String> {
        Ok(Reply::Body(content.to_vec()))
    }

    #[test]
    fn every_way_to_tell_the_end() {
        assert_eq!(
            reply(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd"),
            body(b"abc")
        );
        assert_eq!(reply(b"HTTP/1.0 200 OK\r\n\r\nabcd"), body(b"abcd"));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 9\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nX: y\r\n\r\n";
        assert_eq!(reply(chunked), body(b"abcd"));
        assert_eq!(
            reply(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            body(b"")
        );
    }

    #[test]
    fn another_place_is_told() {
        let elsewhere = Ok(Reply::Elsewhere("http://b/".to_owned()));
        assert_eq!(
            reply(b"HTTP/1.1 302 Found\r\nLocation: http://b/\r\n\r\n"),
            elsewhere
        );
        assert!(reply(b"HTTP/1.1 302 Found\r\n\r\n").is_err());
    }

    #[test]
    fn what_is_no_answer_is_told() {
        assert_eq!(
            reply(b"HTTP/1.1 404 Not Found\r\n\r\n"),
            Err("the server says 404".to_owned())
        );
        for (answer, why) in [
            (&b""[..], "ends early"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", "ends early"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabc",
                "ends early",
            ),
            (b"SSH-2.0-x\r\n\r\n", "no HTTP"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "no HTTP"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
                "no HTTP",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
                "no HTTP",
            ),
            (b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc", "no HTTP"),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 2\r\n\r\nabc",
                "no HTTP",
            ),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n", "more than"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100001\r\n",
                "more than",
            ),
        ] {
            let error = reply(answer).unwrap_err();
            assert!(
                error.contains(why),
                "{error}: {}",
                String::from_utf8_lossy(answer)
            );
        }
    }

    #[test]
    fn nothing_grows_without_bound() {
        let endless = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b'a'; Fetch::MAX_BODY + 1]].concat();
        assert!(reply(&endless).unwrap_err().contains("more than"));
        let just = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b'a'; Fetch::MAX_BODY]].concat();
        assert!(matches!(reply(&just), Ok(Reply::Body(body)) if body.len() == Fetch::MAX_BODY));
        let head = [&b"HTTP/1.1 200 OK\r\nX: "[..], &vec![b'a'; 2 * MAX_HEAD]].concat();
        assert!(reply(&head).unwrap_err().contains("no HTTP"));
        let line = [
            &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"[..],
            &vec![b'a'; 2 * MAX_HEAD],
        ]
        .concat();
        assert!(reply(&line).unwrap_err().contains("no HTTP"));
    }

    #[test]
    fn requests_are_as_servers_want_them() {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let common =
            "Host: crl.example.org:8080\r\nUser-Agent: peregrine\r\nAccept: */*\r\nConnection: close\r\n";
        let (_, get) = run(answered(ok, 4096, None));
        assert_eq!(get, format!("GET /a?b HTTP/1.1\r\n{common}\r\n"));
        let (_, post) = run(answered(ok, 4096, Some(("application/ocsp-request", b"xyz"))));
        let length = "Content-Type: application/ocsp-request\r\nContent-Length: 3\r\n";
        assert_eq!(post, format!("POST /a?b HTTP/1.1\r\n{common}{length}\r\nxyz"));
    }
}
