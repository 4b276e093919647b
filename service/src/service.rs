//! What the service does for whom. Policy of the connection is the core's; here is who may want what.

use std::cell::RefCell;
use std::rc::Rc;

use peregrine_core::command::{Command, PromptId, State, Status};
use peregrine_core::crypto::Secret;
use peregrine_platform::driver::Notice;
use peregrine_platform::ipc::{self, Code, Imported, Listed, Refusal, Request, Said, Text};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc};

use crate::profile;
use crate::store::{Key, Store, Wanted, is_name};

/// A frame, made once for all who get it.
pub(crate) type Frame = Rc<Secret>;

/// The service.
pub(crate) struct Service {
    store: RefCell<Store>,
    /// None once the service ends.
    commands: RefCell<Option<mpsc::Sender<Command>>>,
    seen: RefCell<Seen>,
    watchers: RefCell<Vec<Watcher>>,
}

/// What the driver last said.
struct Seen {
    status: Box<RawValue>,
    state: State,
    prompt: Option<(PromptId, Frame)>,
    /// What is on, or was when it failed.
    on: Option<Key>,
}

/// Somebody who gets notices.
pub(crate) struct Watcher {
    pub(crate) frames: mpsc::Sender<Frame>,
    /// Told when the frames have no room: somebody who does not read is not waited for.
    pub(crate) is_late: Rc<Notify>,
}

impl Service {
    pub(crate) fn new(store: Store, commands: mpsc::Sender<Command>) -> Self {
        let on = store.wanted().profile.clone();
        Self {
            store: RefCell::new(store),
            commands: RefCell::new(Some(commands)),
            seen: RefCell::new(Seen {
                status: json(&Status::default()),
                state: State::Idle,
                prompt: None,
                on,
            }),
            watchers: RefCell::new(Vec::new()),
        }
    }

    /// Goes on with what was wanted when the service last ended.
    pub(crate) fn resume(&self) {
        let wanted = self.store.borrow().wanted().profile.clone();
        let Some(key) = wanted else { return };
        let profile = self.store.borrow().get(&key).cloned();
        let opened = profile
            .ok_or_else(|| Refusal::new(Code::NoSuchProfile, "it is gone"))
            .and_then(|profile| profile::open(&profile, &[]));
        let begun = opened
            .and_then(|parsed| self.command(Command::Connect(Box::new(parsed.profile), parsed.credentials)));
        match begun {
            Ok(()) => tracing::info!(profile = key.name, "goes on"),
            Err(refusal) => tracing::warn!(profile = key.name, %refusal, "does not go on by itself"),
        }
    }

    /// Begins the end: the tunnel is taken down, and what is locked stays locked.
    pub(crate) fn end(&self) {
        self.commands.replace(None);
    }

    /// Tells everybody what the driver says, until it ends.
    pub(crate) async fn follow(self: Rc<Self>, mut notices: mpsc::Receiver<Notice>) {
        while let Some(notice) = notices.recv().await {
            let text = json(&notice);
            let Ok(frame) = ipc::frame(&Said::Notice(text.clone())) else {
                continue;
            };
            let frame = Rc::new(frame);
            match &notice {
                Notice::Status(status) => self.see(status, json(status.as_ref())),
                Notice::Prompt(prompt) => {
                    self.seen.borrow_mut().prompt = Some((prompt.id, Rc::clone(&frame)));
                }
                Notice::Traffic(_) | Notice::Happened(_) => {}
            }
            self.watchers.borrow_mut().retain(|watcher| {
                let told = watcher.frames.try_send(Rc::clone(&frame));
                if matches!(told, Err(mpsc::error::TrySendError::Full(_))) {
                    watcher.is_late.notify_one();
                }
                told.is_ok()
            });
        }
    }

    fn see(&self, status: &Status, text: Box<RawValue>) {
        let mut seen = self.seen.borrow_mut();
        if status.state != seen.state {
            tracing::info!(
                state = ?status.state,
                profile = status.profile.as_deref().unwrap_or_default(),
                failure = status.failure.as_ref().map(|failure| failure.code()).unwrap_or_default(),
                "status"
            );
        }
        seen.state = status.state;
        seen.status = text;
        if !matches!(
            status.state,
            State::Connecting | State::Reconnecting | State::Connected
        ) {
            seen.prompt = None;
        }
        if status.state == State::Idle {
            seen.on = None;
        }
    }

    /// Does what `user` wants, if they may.
    pub(crate) fn serve(&self, user: u32, request: Request) -> Result<Box<RawValue>, Refusal> {
        match request {
            Request::List => Ok(json(&self.list(user))),
            Request::Import {
                name,
                profile,
                replace,
            } => self.import(user, name, profile, replace).map(|it| json(&it)),
            Request::Export { name } => {
                let (_, profile) = self.own(user, &name)?;
                Ok(json(&profile))
            }
            Request::Remove { name } => self.remove(user, &name).map(|()| json(&())),
            Request::Up { name, secrets } => self.up(user, &name, &secrets).map(|()| json(&())),
            Request::Down => self.down(user).map(|()| json(&())),
            Request::Status => Ok(self.seen.borrow().status.clone()),
            // By the connection, which knows where the notices go.
            Request::Watch => Ok(json(&())),
            Request::Reply { prompt, answer } => {
                self.must_own_what_is_on(user)?;
                let answer = answer.map(|answer| answer.as_secret().clone());
                self.seen.borrow_mut().prompt.take_if(|(id, _)| id.0 == prompt);
                self.command(Command::Reply(PromptId(prompt), answer))
                    .map(|()| json(&()))
            }
        }
    }

    /// From now on this one hears everything; first what is true now.
    pub(crate) fn watch(&self, user: u32, watcher: Watcher) {
        let seen = self.seen.borrow();
        if let Ok(frame) = ipc::frame(&Said::Notice(event(&seen.status))) {
            let _no_room_for_the_first = watcher.frames.try_send(Rc::new(frame));
        }
        // A question that waits is for whoever may answer it.
        if let Some((_, frame)) = seen.prompt.as_ref().filter(|_| self.may_act(user, &seen)) {
            let _no_room_for_the_first = watcher.frames.try_send(Rc::clone(frame));
        }
        self.watchers.borrow_mut().push(watcher);
    }

    fn list(&self, user: u32) -> Vec<Listed> {
        let seen = self.seen.borrow();
        let store = self.store.borrow();
        let listed = store.of(user).map(|(key, profile)| {
            let checked = profile::check(profile);
            let parsed = checked.as_ref().ok().map(|parsed| &parsed.profile);
            Listed {
                name: key.name.clone(),
                gateway: parsed.map_or_else(String::new, |profile| profile.gateway.host.to_string()),
                method: parsed.map_or_else(String::new, |profile| profile.auth.method.name().to_owned()),
                kill_switch: parsed.is_some_and(|profile| profile.network.kill_switch),
                shared: key.owner == 0,
                is_on: seen.on.as_ref() == Some(key),
                broken: checked.err().map(|refusal| refusal.message),
            }
        });
        listed.collect()
    }

    fn import(
        &self,
        user: u32,
        name: Option<String>,
        text: Text,
        replace: bool,
    ) -> Result<Imported, Refusal> {
        let parsed = profile::check(&text)?;
        let name = name.unwrap_or(parsed.profile.name);
        if !is_name(&name) {
            let message =
                "a profile's name is one line of at most 64 characters, without a space at either end";
            return Err(Refusal::new(Code::BadProfile, message));
        }
        let key = Key { owner: user, name };
        let mut store = self.store.borrow_mut();
        let replaced = store.get(&key).is_some();
        if replaced && !replace {
            let message = format!("there is a profile called `{}` already", key.name);
            return Err(Refusal::new(Code::NameTaken, message));
        }
        if !replaced && store.room(user) == 0 {
            return Err(Refusal::new(
                Code::Failed,
                "there are too many profiles; remove some",
            ));
        }
        let warnings = parsed.report.warnings.iter().chain(&parsed.report.not_used);
        let imported = Imported {
            name: key.name.clone(),
            replaced,
            warnings: warnings.map(|it| format!("{}: {}", it.key, it.message)).collect(),
        };
        tracing::info!(user, profile = key.name, replaced, "imported");
        store
            .keep(key, text)
            .map_err(|error| failed("keep the profile", &error))?;
        Ok(imported)
    }

    fn remove(&self, user: u32, name: &str) -> Result<(), Refusal> {
        let (key, _) = self.own(user, name)?;
        if self.seen.borrow().on.as_ref() == Some(&key) {
            return Err(Refusal::new(Code::NotPermitted, "it is on: take it down first"));
        }
        tracing::info!(user, profile = key.name, "removed");
        let removed = self.store.borrow_mut().forget(&key);
        removed.map_err(|error| failed("remove the profile", &error))
    }

    fn up(&self, user: u32, name: &str, secrets: &[Text]) -> Result<(), Refusal> {
        self.must_own_what_is_on(user)?;
        let (key, text) = self.usable(user, name)?;
        let parsed = profile::open(&text, secrets)?;
        let network = &parsed.profile.network;
        let wanted = Wanted {
            profile: Some(key.clone()),
            lock: network.kill_switch.then_some(network.allow_lan),
        };
        self.want(wanted)?;
        tracing::info!(user, profile = key.name, "up");
        self.command(Command::Connect(Box::new(parsed.profile), parsed.credentials))?;
        self.seen.borrow_mut().on = Some(key);
        Ok(())
    }

    fn down(&self, user: u32) -> Result<(), Refusal> {
        self.must_own_what_is_on(user)?;
        tracing::info!(user, "down");
        self.want(Wanted::default())?;
        self.command(Command::Disconnect)
    }

    fn want(&self, wanted: Wanted) -> Result<(), Refusal> {
        let done = self.store.borrow_mut().want(wanted);
        done.map_err(|error| failed("write down what is wanted", &error))
    }

    /// A profile that this user may use.
    fn usable(&self, user: u32, name: &str) -> Result<(Key, Text), Refusal> {
        let store = self.store.borrow();
        let found = store
            .find(user, name)
            .map(|(key, text)| (key.clone(), text.clone()));
        found.ok_or_else(|| {
            Refusal::new(
                Code::NoSuchProfile,
                format!("there is no profile called `{name}`"),
            )
        })
    }

    /// A profile that this user may read and change.
    fn own(&self, user: u32, name: &str) -> Result<(Key, Text), Refusal> {
        let (key, text) = self.usable(user, name)?;
        if key.is_of(user) {
            Ok((key, text))
        } else {
            let message = "it is for everybody to use, and for root to read and change";
            Err(Refusal::new(Code::NotPermitted, message))
        }
    }

    /// Somebody else's tunnel is not another user's to take down or to answer for.
    fn must_own_what_is_on(&self, user: u32) -> Result<(), Refusal> {
        if self.may_act(user, &self.seen.borrow()) {
            Ok(())
        } else {
            Err(Refusal::new(
                Code::NotPermitted,
                "the tunnel that is on is another user's",
            ))
        }
    }

    fn may_act(&self, user: u32, seen: &Seen) -> bool {
        seen.on.as_ref().is_none_or(|key| key.is_for(user))
    }

    fn command(&self, command: Command) -> Result<(), Refusal> {
        let commands = self.commands.borrow();
        let commands = commands
            .as_ref()
            .ok_or_else(|| Refusal::new(Code::Failed, "the service ends"))?;
        let sent = commands.try_send(command);
        sent.map_err(|_| Refusal::new(Code::Failed, "the service is busy; try again"))
    }
}

/// A status as the event that it is: the object with one more key.
fn event(status: &RawValue) -> Box<RawValue> {
    let rest = status.get().strip_prefix('{').unwrap_or("}");
    RawValue::from_string(format!("{{\"event\":\"status\",{rest}")).unwrap_or_default()
}

fn failed(what: &str, error: &std::io::Error) -> Refusal {
    tracing::error!(%error, "cannot {what}");
    Refusal::new(Code::Failed, format!("the service cannot {what}: {error}"))
}

fn json(content: &impl Serialize) -> Box<RawValue> {
    // All of these are made of texts, numbers, lists and maps with texts as keys.
    serde_json::value::to_raw_value(content).unwrap_or_default()
}
