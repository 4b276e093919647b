//! One run of the real `peregrine connect`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::wait;

/// Within this time a connection is up, or has failed.
const CONNECT: Duration = Duration::from_secs(30);
/// Within this time it is gone after a signal.
const LEAVE: Duration = Duration::from_secs(15);

/// `peregrine connect` while it runs. Killed when dropped.
pub struct Tunnel {
    child: Child,
    events: Receiver<Value>,
    seen: Vec<Value>,
    log: Arc<Mutex<String>>,
    log_reader: Option<JoinHandle<()>>,
}

/// How `peregrine connect` ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The `failure` of the last event that has one.
    pub failure: Option<Value>,
    /// Every event that it printed.
    pub events: Vec<Value>,
    /// What it wrote on its standard error.
    pub log: String,
}

impl Tunnel {
    pub(super) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}"));
        let (sender, events) = channel();
        let stdout = child.stdout.take().expect("the standard output is a pipe");
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, shared) = (
            child.stderr.take().expect("the standard error is a pipe"),
            Arc::clone(&log),
        );
        let log_reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Ok(mut log) = shared.lock() {
                    log.push_str(&line);
                    log.push('\n');
                }
            }
        });
        Self {
            child,
            events,
            seen: Vec::new(),
            log,
            log_reader: Some(log_reader),
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it says that it is connected, and returns that status.
    ///
    /// # Panics
    /// When it ends before, or takes too long.
    pub fn connected(&mut self) -> Value {
        self.event("connected", |event| {
            event["event"] == "status" && event["state"] == "connected"
        })
    }

    /// Waits for an event.
    ///
    /// # Panics
    /// When it does not come within half a minute.
    pub fn event(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + CONNECT;
        loop {
            match self
                .events
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(event) => {
                    self.seen.push(event.clone());
                    if wanted(&event) {
                        return event;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("not {what} within {CONNECT:?}{}", self.story()),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = wait(&mut self.child, LEAVE);
                    panic!("it ended ({status:?}) before it was {what}{}", self.story())
                }
            }
        }
    }

    /// Sends a signal (`INT`, `TERM`, `KILL`) and waits for the end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(mut self, signal: &str) -> Ended {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(
            sent.is_ok_and(|status| status.success()),
            "signal {signal} cannot be sent"
        );
        let status = wait(&mut self.child, LEAVE);
        self.ended(status, LEAVE)
    }

    /// Waits for an end of its own accord, at most `patience`.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn end(mut self, patience: Duration) -> Ended {
        let status = wait(&mut self.child, patience);
        self.ended(status, patience)
    }

    fn ended(&mut self, status: Option<ExitStatus>, patience: Duration) -> Ended {
        let Some(status) = status else {
            panic!("it did not end within {patience:?}{}", self.story());
        };
        while let Ok(event) = self.events.recv_timeout(Duration::from_secs(1)) {
            self.seen.push(event);
        }
        // The last lines may still be in the pipe of a process that has ended.
        if let Some(reader) = self.log_reader.take() {
            let _ = reader.join();
        }
        let failure = self.seen.iter().rev().find_map(|event| {
            let own = (event["event"] == "failure").then(|| {
                if event["failure"].is_object() {
                    event["failure"].clone()
                } else {
                    event.clone()
                }
            });
            own.or_else(|| event["failure"].is_object().then(|| event["failure"].clone()))
        });
        Ended {
            code: status.code(),
            failure,
            events: std::mem::take(&mut self.seen),
            log: self.log_so_far(),
        }
    }

    fn log_so_far(&self) -> String {
        self.log.lock().map(|log| log.clone()).unwrap_or_default()
    }

    fn story(&mut self) -> String {
        self.seen.extend(self.events.try_iter());
        let events: Vec<_> = self.seen.iter().map(ToString::to_string).collect();
        format!("\nevents:\n{}\nlog:\n{}", events.join("\n"), self.log_so_far())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The failure's code, or nothing.
    pub fn failure_code(&self) -> &str {
        self.failure
            .as_ref()
            .and_then(|failure| failure["code"].as_str())
            .unwrap_or("")
    }

    /// Fails unless it ended with this exit status and this failure code.
    ///
    /// # Panics
    /// When it did not.
    pub fn must_be(&self, code: i32, failure: &str) {
        assert!(
            self.code == Some(code) && self.failure_code() == failure,
            "exit {:?} and '{}' instead of {code} and '{failure}': {:?}\n{}",
            self.code,
            self.failure_code(),
            self.failure,
            self.log
        );
        let failure = self
            .failure
            .as_ref()
            .expect("a failure code comes from a failure");
        for key in ["phase", "step", "side", "message"] {
            let text = failure[key].as_str().unwrap_or("");
            assert!(!text.is_empty(), "the failure has no {key}: {failure}");
        }
        assert!(
            failure["advice"]
                .as_array()
                .is_some_and(|advice| !advice.is_empty()),
            "the failure has no advice: {failure}"
        );
    }

    /// Fails unless the failure's message contains `part`.
    ///
    /// # Panics
    /// When it does not.
    pub fn must_say(&self, part: &str) {
        let message = self
            .failure
            .as_ref()
            .and_then(|failure| failure["message"].as_str())
            .unwrap_or("");
        assert!(
            message.contains(part),
            "the failure's message does not say '{part}': {message}"
        );
    }
}
