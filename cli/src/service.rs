//! The commands that ask the service.

use std::path::PathBuf;
use std::time::Duration;

use peregrine_platform::ipc::unix::{CallError, Client, SOCKET};
use peregrine_platform::ipc::{Code, Imported, Listed, Request, Text};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::answers::Answers;
use crate::args::{ExportOptions, ImportOptions, ListOptions, RemoveOptions, StatusOptions, UpOptions};
use crate::exit::{self, Exit};
use crate::screen::Style;
use crate::{bundle, render, screen};

/// How often a wrong passphrase may be typed.
const ATTEMPTS: usize = 6;

/// Runs a conversation with the service.
fn ask<F: Future<Output = Result<Exit, CallError>>>(conversation: impl FnOnce(Client) -> F) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return exit::unexpected(&error.to_string()),
    };
    let program = concat!("peregrine ", env!("CARGO_PKG_VERSION"));
    let done = runtime.block_on(async {
        let client = Client::connect(&socket(), program).await?;
        conversation(client).await
    });
    done.unwrap_or_else(|error| complain(&error))
}

/// Where the service listens; another place for tests and for a service beside the system's own.
fn socket() -> PathBuf {
    std::env::var_os("PEREGRINE_SOCKET").map_or_else(|| SOCKET.into(), PathBuf::from)
}

fn complain(error: &CallError) -> Exit {
    match error {
        CallError::Refused(refusal) => match refusal.code {
            Code::BadProfile | Code::NoSuchProfile | Code::NameTaken | Code::SecretNeeded => {
                exit::usage(&refusal.message)
            }
            Code::NotPermitted => exit::host(&refusal.message),
            Code::NotUnderstood | Code::Failed => exit::unexpected(&refusal.message),
        },
        CallError::NotPermitted | CallError::Absent(_) => exit::host(&error.to_string()),
        CallError::Version { .. } | CallError::Broken(_) => exit::unexpected(&error.to_string()),
    }
}

fn say(line: &str) {
    screen::write(&format!("{line}\n"));
}

pub(crate) fn import(options: &ImportOptions) -> Exit {
    let text = match bundle::read(&options.file) {
        Ok(text) => text,
        Err(refused) => return refused,
    };
    ask(async |mut client| {
        let request = Request::Import {
            name: options.name.clone(),
            profile: text,
            replace: options.replace,
        };
        let imported: Imported = client.call(request).await?;
        for warning in &imported.warnings {
            let lines = render::warning(Style::of(true), warning);
            screen::write_error(&(lines.join("\n") + "\n"));
        }
        let verb = if imported.replaced { "Replaced" } else { "Imported" };
        say(&format!("{verb} {}", imported.name));
        Ok(Exit::Done)
    })
}

pub(crate) fn export(options: &ExportOptions) -> Exit {
    ask(async |mut client| {
        let name = options.name.clone();
        let text: Text = client.call(Request::Export { name }).await?;
        screen::write(text.as_str());
        Ok(Exit::Done)
    })
}

pub(crate) fn remove(options: &RemoveOptions) -> Exit {
    ask(async |mut client| {
        let name = options.name.clone();
        client.call::<()>(Request::Remove { name }).await?;
        say(&format!("Removed {}", options.name));
        Ok(Exit::Done)
    })
}

pub(crate) fn list(options: &ListOptions) -> Exit {
    ask(async |mut client| {
        let listed: Vec<Listed> = client.call(Request::List).await?;
        if options.json {
            for profile in &listed {
                say(&serde_json::to_string(profile).unwrap_or_default());
            }
            return Ok(Exit::Done);
        }
        if listed.is_empty() {
            say("There is no profile yet: `peregrine import FILE` adds one.");
        }
        let style = Style::of(false);
        let width = listed.iter().map(|it| it.name.chars().count()).max().unwrap_or(0);
        for profile in &listed {
            let mark = style.shown(if profile.is_on { "●" } else { "○" });
            let rest = match &profile.broken {
                Some(why) => format!("cannot be used: {}", why.lines().next().unwrap_or_default()),
                None => {
                    let lock = if profile.kill_switch { ", kill switch" } else { "" };
                    let shared = if profile.shared { ", for everybody" } else { "" };
                    format!("{}, {}{lock}{shared}", profile.gateway, profile.method)
                }
            };
            say(&format!(
                "{mark} {:<width$}  {}",
                profile.name,
                style.shown(&rest)
            ));
        }
        Ok(Exit::Done)
    })
}

pub(crate) fn status(options: &StatusOptions) -> Exit {
    ask(async |mut client| {
        if !options.watch {
            let status: Value = client.call(Request::Status).await?;
            show_status(&status, options.json);
            return Ok(Exit::Done);
        }
        client.call::<()>(Request::Watch).await?;
        let mut interrupted = signal(SignalKind::interrupt()).map_err(CallError::Broken)?;
        let mut terminated = signal(SignalKind::terminate()).map_err(CallError::Broken)?;
        let mut shown = Shown::default();
        loop {
            let notice = tokio::select! {
                notice = client.notice() => notice?,
                _ = interrupted.recv() => return Ok(Exit::Done),
                _ = terminated.recv() => return Ok(Exit::Done),
            };
            if options.json {
                say(notice.get());
            } else if let Ok(event) = serde_json::from_str(notice.get()) {
                shown.event(&event);
            }
        }
    })
}

pub(crate) fn down() -> Exit {
    ask(async |mut client| {
        client.call::<()>(Request::Watch).await?;
        client.call::<()>(Request::Down).await?;
        let mut leaves = false;
        loop {
            let event: Value = event(&mut client).await?;
            match event["state"].as_str() {
                Some("idle") => {
                    say("Disconnected");
                    return Ok(Exit::Done);
                }
                Some("disconnecting") => leaves = true,
                // The firewall could not be opened.
                Some("blocked") if leaves => {
                    Shown::default().event(&event);
                    return Ok(Exit::of(&event["failure"]));
                }
                _ => {}
            }
        }
    })
}

async fn event(client: &mut Client) -> Result<Value, CallError> {
    let notice = client.notice().await?;
    serde_json::from_str(notice.get()).map_err(|error| CallError::Broken(error.into()))
}

pub(crate) fn up(options: &UpOptions) -> Exit {
    let answers = match Answers::new(&options.secret) {
        Ok(answers) => answers,
        Err(message) => return exit::usage(&message),
    };
    ask(async |mut client| {
        client.call::<()>(Request::Watch).await?;
        let mut secrets = Vec::new();
        // Which secrets are needed, the service says one by one.
        while let Err(error) = begin(&mut client, &options.name, &secrets).await {
            let CallError::Refused(refusal) = &error else {
                return Err(error);
            };
            if refusal.code != Code::SecretNeeded || secrets.len() >= ATTEMPTS {
                return Err(error);
            }
            if refusal.message.ends_with("(it was wrong)") {
                secrets.pop();
            }
            let mut question = refusal.message.clone();
            if let Some(first) = question.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            match answers.ask(&format!("{question}: ")) {
                Ok(Some(secret)) => secrets.push(Text::from(secret)),
                Ok(None) => return Err(error),
                Err(message) => return Ok(exit::usage(&message)),
            }
        }
        let limit = options
            .timeout
            .map_or(Duration::MAX, |seconds| Duration::from_secs(seconds.into()));
        let beside = answers.beside();
        let follow = follow_up(&mut client, &beside);
        match tokio::time::timeout(limit, follow).await {
            Ok(ended) => ended,
            Err(_late) => {
                client.call::<()>(Request::Down).await?;
                Ok(exit::late("it was not up in time"))
            }
        }
    })
}

async fn begin(client: &mut Client, name: &str, secrets: &[Text]) -> Result<(), CallError> {
    let request = Request::Up {
        name: name.to_owned(),
        secrets: secrets.to_vec(),
    };
    client.call(request).await
}

/// Until the tunnel is up, or is not going to be.
async fn follow_up(client: &mut Client, answers: &crate::answers::Beside) -> Result<Exit, CallError> {
    let mut shown = Shown::default();
    let mut begun = false;
    loop {
        let event = event(client).await?;
        // What was up before is taken down first.
        begun |= event["event"] == "status" && event["state"] == "connecting";
        if event["event"] == "prompt" {
            let message = event["message"].as_str().unwrap_or("Code");
            let answer = answers.ask(&format!("{message}: ")).await.map(Text::from);
            let prompt = event["id"]
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .unwrap_or_default();
            client.call::<()>(Request::Reply { prompt, answer }).await?;
            continue;
        }
        if !begun {
            continue;
        }
        shown.event(&event);
        match event["state"].as_str() {
            Some("connected") => return Ok(Exit::Done),
            Some("idle" | "blocked") => return Ok(Exit::of(&event["failure"])),
            _ => {}
        }
    }
}

/// What was shown last, of what goes on.
#[derive(Default)]
struct Shown {
    line: String,
}

impl Shown {
    fn event(&mut self, event: &Value) {
        let line = match event["event"].as_str() {
            Some("status") => headline(event),
            Some("rekey") => format!("rekeyed, {}", text(&event["suite"])),
            Some("roam") => format!(
                "moved to {} in {} ms",
                text(&event["to"]["local"]),
                event["took_ms"]
            ),
            Some("reconnect") => format!("connected anew after {} ms", event["took_ms"]),
            _ => return,
        };
        if line == self.line {
            return;
        }
        say(&Style::of(false).shown(&line));
        self.line = line;
        if event["failure"].is_object() && matches!(event["state"].as_str(), Some("idle" | "blocked")) {
            for line in failure(&event["failure"]) {
                say(&Style::of(false).shown(&line));
            }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The state in a line.
fn headline(status: &Value) -> String {
    let profile = text(&status["profile"]);
    let host = text(&status["gateway"]["host"]);
    match status["state"].as_str() {
        Some("connecting") => format!("Connecting {profile} ({host}): {}", text(&status["stage"])),
        Some("connected") => format!("Connected {profile} ({host})"),
        Some("reconnecting") => format!("Reconnecting {profile} ({host}): {}", text(&status["why"])),
        Some("disconnecting") => format!("Disconnecting {profile}"),
        Some("blocked") => {
            "Blocked: nothing leaves this machine until `peregrine up` or `peregrine down`".to_owned()
        }
        _ => "Not connected".to_owned(),
    }
}

fn failure(failure: &Value) -> Vec<String> {
    let mut lines = vec![format!("✗ {}", text(&failure["message"]))];
    let place = format!(
        "{}, step {}, side {}",
        text(&failure["phase"]),
        text(&failure["step"]),
        text(&failure["side"])
    );
    lines.push(format!("  where  {place}"));
    for advice in failure["advice"].as_array().into_iter().flatten() {
        lines.push(format!("  try    {}", text(advice)));
    }
    lines
}

fn show_status(status: &Value, json: bool) {
    if json {
        return say(&status.to_string());
    }
    let style = Style::of(false);
    let mut lines = vec![headline(status)];
    let list = |value: &Value| {
        let items = value.as_array().into_iter().flatten();
        items
            .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut row = |label: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {label:<20} {value}"));
        }
    };
    row("since", text(&status["since"]).to_owned());
    row("gateway", text(&status["gateway"]["identity"]).to_owned());
    row("Phase 1 · IKE SA", text(&status["ike_sa"]["suite"]).to_owned());
    for child in status["child_sas"].as_array().into_iter().flatten() {
        row("Phase 2 · Child SA", text(&child["suite"]).to_owned());
        row("in the tunnel", list(&child["remote_ts"]));
    }
    if status["path"].is_object() {
        let path = &status["path"];
        let words = format!(
            "{} → {} over {}",
            text(&path["local"]),
            text(&path["remote"]),
            text(&path["transport"])
        );
        row("path", words);
    }
    row("addresses", list(&status["addresses"]));
    row("name servers", list(&status["dns"]["servers"]));
    let traffic = &status["traffic"];
    if status["state"] == "connected" {
        row(
            "traffic",
            format!("↓ {} ↑ {} octets", traffic["rx_bytes"], traffic["tx_bytes"]),
        );
    }
    row("note", list(&status["notes"]));
    if status["failure"].is_object() {
        lines.extend(failure(&status["failure"]));
    }
    for line in lines {
        say(&style.shown(&line));
    }
}
