//! EAP-GTC and EAP-MD5.

use peregrine_core::crypto::md5;

use super::Verdict;

/// An EAP-GTC server with a list of questions and the answers that it expects.
#[derive(Debug)]
pub struct GtcServer {
    questions: Vec<(String, String)>,
    asked: usize,
}

impl GtcServer {
    /// A server that asks these questions, one after the other, and lets in who knows all answers.
    #[must_use]
    pub fn new(questions: &[(&str, &str)]) -> Self {
        Self {
            questions: questions
                .iter()
                .map(|(question, answer)| ((*question).to_owned(), (*answer).to_owned()))
                .collect(),
            asked: 0,
        }
    }

    pub(super) fn question(&self) -> Vec<u8> {
        self.questions[self.asked].0.clone().into_bytes()
    }

    pub(super) fn handle(&mut self, data: &[u8]) -> Verdict {
        if data != self.questions[self.asked].1.as_bytes() {
            return Verdict::Refuse;
        }
        self.asked += 1;
        if self.asked == self.questions.len() {
            Verdict::Accept(None)
        } else {
            Verdict::Continue(self.question())
        }
    }
}

/// An EAP-MD5 server with one user.
#[derive(Debug)]
pub struct Md5Server {
    password: String,
}

impl Md5Server {
    /// A server that lets in who knows this password.
    #[must_use]
    pub fn new(password: &str) -> Self {
        Self {
            password: password.to_owned(),
        }
    }

    pub(super) fn challenge(&self) -> Vec<u8> {
        [&[16][..], &[0x6b; 16], b"server"].concat()
    }

    pub(super) fn handle(&mut self, identifier: u8, data: &[u8]) -> Verdict {
        let expected = md5(&[&[identifier], self.password.as_bytes(), &[0x6b; 16]]);
        if data.get(..17) == Some([&[16], expected.as_slice()].concat().as_slice()) {
            Verdict::Accept(None)
        } else {
            Verdict::Refuse
        }
    }
}
