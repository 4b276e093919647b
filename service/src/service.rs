//! What the service does for whom. Policy of the connection is the core's; here is who may want what.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use peregrine_core::command::{Command, PromptId, State, Status};
use peregrine_core::crypto::Secret;
use peregrine_core::profile::Parsed;
use peregrine_platform::driver::Notice;
use peregrine_platform::ipc::{self, Code, Imported, Listed, Refusal, Request, Said, Text};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::profile;
use crate::store::{Key, Store, Wanted, is_name};

/// A profile is no longer, in octets: certificates and keys are some thousands each.
const MOST_OCTETS: usize = 256 << 10;

/// How long a command may wait until the driver takes it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A frame, made once for all who get it.
pub(crate) type Frame = Rc<Secret>;

/// The service.
pub(crate) struct Service {
    store: RefCell<Store>,
    /// None once the service ends.
    commands: RefCell<Option<mpsc::Sender<Command>>>,
    /// How many tunnels were wanted.
    connections: Cell<u64>,
    seen: RefCell<Seen>,
    watchers: RefCell<Vec<Watcher>>,
    /// One for each user who has had a profile read: that takes long when a key is encrypted.
    readers: RefCell<BTreeMap<u32, Arc<Semaphore>>>,
}

/// What the driver last said.
struct Seen {
    status: Box<RawValue>,
    state: State,
    prompt: Option<(PromptId, Frame)>,
    /// What is on, or was when it failed.
    on: Option<On>,
}

/// A tunnel that somebody has wanted.
struct On {
    key: Key,
    /// Who has: questions are theirs.
    by: u32,
    /// How many had been wanted, with this one: what the status calls `connection`.
    connection: u64,
}

/// Somebody who gets notices.
pub(crate) struct Watcher {
    pub(crate) user: u32,
    pub(crate) frames: mpsc::Sender<Frame>,
    /// Told when the frames have no room: somebody who does not read is not waited for.
    pub(crate) is_late: Rc<Notify>,
}

impl Service {
    pub(crate) fn new(store: Store, commands: mpsc::Sender<Command>) -> Self {
        let on = store.wanted().profile.clone().map(|key| On {
            by: key.owner,
            key,
            connection: 0,
        });
        Self {
            store: RefCell::new(store),
            commands: RefCell::new(Some(commands)),
            connections: Cell::new(0),
            seen: RefCell::new(Seen {
                status: json(&Status::default()),
                state: State::Idle,
                prompt: None,
                on,
            }),
            watchers: RefCell::new(Vec::new()),
            readers: RefCell::new(BTreeMap::new()),
        }
    }

    /// Goes on with what was wanted when the service last ended.
    pub(crate) async fn resume(&self) {
        let wanted = self.store.borrow().wanted().clone();
        let Some(key) = wanted.profile.clone() else { return };
        let profile = self.store.borrow().get(&key).cloned();
        let opened = match profile {
            Some(profile) => self.read(key.owner, move || profile::open(&profile, &[])).await,
            None => Err(Refusal::new(Code::NoSuchProfile, "it is gone")),
        };
        // Whoever was quicker wanted something else.
        if *self.store.borrow().wanted() != wanted {
            return;
        }
        let begun = match opened {
            Ok(parsed) => self.connect(key.clone(), key.owner, parsed, || Ok(())).await,
            Err(refusal) => Err(refusal),
        };
        match begun {
            Ok(()) => tracing::info!(profile = key.name, "goes on"),
            Err(refusal) => {
                tracing::warn!(profile = key.name, %refusal, "does not go on by itself");
                if wanted.lock.is_none() {
                    self.seen.borrow_mut().on = None;
                }
            }
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
            let seen = self.seen.borrow();
            let is_question = matches!(notice, Notice::Prompt(_));
            self.watchers.borrow_mut().retain(|watcher| {
                // Whoever may not answer a question is not asked.
                if is_question && !Self::may_answer(watcher.user, &seen) {
                    return !watcher.frames.is_closed();
                }
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
        // What is said of an earlier one does not count.
        if status.state == State::Idle
            && seen
                .on
                .as_ref()
                .is_some_and(|on| on.connection <= status.connection)
        {
            seen.on = None;
        }
    }

    /// Does what `user` wants, if they may.
    pub(crate) async fn serve(&self, user: u32, request: Request) -> Result<Box<RawValue>, Refusal> {
        match request {
            Request::List => Ok(json(&self.list(user).await?)),
            Request::Import {
                name,
                profile,
                replace,
            } => self
                .import(user, name, profile, replace)
                .await
                .map(|it| json(&it)),
            Request::Export { name } => {
                let (_, profile) = self.own(user, &name)?;
                Ok(json(&profile))
            }
            Request::Remove { name } => self.remove(user, &name).map(|()| json(&())),
            Request::Up { name, secrets } => self.up(user, &name, secrets).await.map(|()| json(&())),
            Request::Down => self.down(user).await.map(|()| json(&())),
            Request::Status => Ok(self.seen.borrow().status.clone()),
            // By the connection, which knows where the notices go.
            Request::Watch => Ok(json(&())),
            Request::Reply { prompt, answer } => {
                let is_asked = {
                    let mut seen = self.seen.borrow_mut();
                    if !Self::may_answer(user, &seen) {
                        let message = "the question is another user's";
                        return Err(Refusal::new(Code::NotPermitted, message));
                    }
                    seen.prompt.take_if(|(id, _)| id.0 == prompt).is_some()
                };
                // One that nobody waits for any more is ignored.
                if is_asked {
                    let answer = answer.map(|answer| answer.as_secret().clone());
                    self.room().await?.send(Command::Reply(PromptId(prompt), answer));
                }
                Ok(json(&()))
            }
        }
    }

    /// From now on this one hears everything; first what is true now.
    pub(crate) fn watch(&self, watcher: Watcher) {
        let seen = self.seen.borrow();
        if let Ok(frame) = ipc::frame(&Said::Notice(event(&seen.status))) {
            let _no_room_for_the_first = watcher.frames.try_send(Rc::new(frame));
        }
        // A question that waits is for whoever may answer it.
        if let Some((_, frame)) = seen
            .prompt
            .as_ref()
            .filter(|_| Self::may_answer(watcher.user, &seen))
        {
            let _no_room_for_the_first = watcher.frames.try_send(Rc::clone(frame));
        }
        self.watchers.borrow_mut().push(watcher);
    }

    /// Has a profile read on a thread of its own, one at a time for each user.
    async fn read<T: Send + 'static>(
        &self,
        user: u32,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = self.turn(user).await?;
        Self::read_in(turn, work).await
    }

    async fn turn(&self, user: u32) -> Result<OwnedSemaphorePermit, Refusal> {
        let one = || Arc::new(Semaphore::new(1));
        let turn = Arc::clone(self.readers.borrow_mut().entry(user).or_insert_with(one));
        turn.acquire_owned().await.map_err(|_| unread())
    }

    /// The turn lasts until the work is done, also when nobody waits for it any more.
    async fn read_in<T: Send + 'static>(
        turn: OwnedSemaphorePermit,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| unread())?
    }

    async fn list(&self, user: u32) -> Result<Vec<Listed>, Refusal> {
        let turn = self.turn(user).await?;
        let all = self.texts(user);
        let describe = |(key, profile): (Key, Text)| {
            let checked = profile::check(&profile);
            let parsed = checked.as_ref().ok().map(|parsed| &parsed.profile);
            let listed = Listed {
                name: key.name.clone(),
                gateway: parsed.map_or_else(String::new, |profile| profile.gateway.host.to_string()),
                method: parsed.map_or_else(String::new, |profile| profile.auth.method.name().to_owned()),
                kill_switch: parsed.is_some_and(|profile| profile.network.kill_switch),
                shared: key.owner == 0,
                is_on: false,
                broken: checked.err().map(|refusal| refusal.message),
            };
            (key, listed)
        };
        let described: Vec<(Key, Listed)> =
            Self::read_in(turn, move || Ok(all.into_iter().map(describe).collect())).await?;
        let seen = self.seen.borrow();
        let is_on = |key: &Key| seen.on.as_ref().is_some_and(|on| on.key == *key);
        let listed = described.into_iter().map(|(key, listed)| Listed {
            is_on: is_on(&key),
            ..listed
        });
        Ok(listed.collect())
    }

    /// The profiles that this user may use, whole.
    fn texts(&self, user: u32) -> Vec<(Key, Text)> {
        let store = self.store.borrow();
        store
            .of(user)
            .map(|(key, text)| (key.clone(), text.clone()))
            .collect()
    }

    async fn import(
        &self,
        user: u32,
        name: Option<String>,
        text: Text,
        replace: bool,
    ) -> Result<Imported, Refusal> {
        if text.as_str().len() > MOST_OCTETS {
            let message = format!("a profile has at most {} KiB, with its files", MOST_OCTETS >> 10);
            return Err(Refusal::new(Code::BadProfile, message));
        }
        let checked = text.clone();
        let parsed = self.read(user, move || profile::check(&checked)).await?;
        let name = name.unwrap_or(parsed.profile.name);
        if !is_name(&name) {
            let message = "a profile's name is one line of at most 64 octets, without a space at either end";
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
        if self.seen.borrow().on.as_ref().is_some_and(|on| on.key == key) {
            return Err(Refusal::new(Code::NotPermitted, "it is on: take it down first"));
        }
        tracing::info!(user, profile = key.name, "removed");
        let removed = self.store.borrow_mut().forget(&key);
        removed.map_err(|error| failed("remove the profile", &error))
    }

    async fn up(&self, user: u32, name: &str, secrets: Vec<Text>) -> Result<(), Refusal> {
        self.must_own_what_is_on(user)?;
        let (key, text) = self.usable(user, name)?;
        let parsed = self.read(user, move || profile::open(&text, &secrets)).await?;
        let network = &parsed.profile.network;
        let wanted = Wanted {
            profile: Some(key.clone()),
            lock: network.kill_switch.then_some(network.allow_lan),
        };
        tracing::info!(user, profile = key.name, "up");
        self.connect(key, user, parsed, || self.want(wanted)).await
    }

    /// Has the driver connect, after `first`, which is not begun when the driver takes nothing.
    async fn connect(
        &self,
        key: Key,
        by: u32,
        parsed: Parsed,
        first: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let room = self.room().await?;
        // Somebody may have been quicker.
        self.must_own_what_is_on(by)?;
        first()?;
        let connection = self.connections.get() + 1;
        self.connections.set(connection);
        room.send(Command::Connect(Box::new(parsed.profile), parsed.credentials));
        self.seen.borrow_mut().on = Some(On { key, by, connection });
        Ok(())
    }

    async fn down(&self, user: u32) -> Result<(), Refusal> {
        let room = self.room().await?;
        self.must_own_what_is_on(user)?;
        self.want(Wanted::default())?;
        let seen = self.seen.borrow();
        if seen.on.is_some() || seen.state != State::Idle {
            tracing::info!(user, "down");
            room.send(Command::Disconnect);
        }
        Ok(())
    }

    /// A place in the driver's queue.
    async fn room(&self) -> Result<mpsc::OwnedPermit<Command>, Refusal> {
        let commands = self.commands.borrow().clone();
        let ends = || Refusal::new(Code::Failed, "the service ends");
        let waiting = commands.ok_or_else(ends)?.reserve_owned();
        let room = tokio::time::timeout(PATIENCE, waiting).await;
        let busy = |_| Refusal::new(Code::Failed, "the service is busy; try again");
        room.map_err(busy)?.map_err(|_| ends())
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
        if Self::may_act(user, &self.seen.borrow()) {
            Ok(())
        } else {
            Err(Refusal::new(
                Code::NotPermitted,
                "the tunnel that is on is another user's",
            ))
        }
    }

    fn may_act(user: u32, seen: &Seen) -> bool {
        seen.on.as_ref().is_none_or(|on| on.key.is_for(user))
    }

    /// Questions are for who has wanted the tunnel.
    fn may_answer(user: u32, seen: &Seen) -> bool {
        user == 0 || seen.on.as_ref().is_some_and(|on| on.by == user)
    }
}

/// A status as the event that it is: the object with one more key.
fn event(status: &RawValue) -> Box<RawValue> {
    let rest = status.get().strip_prefix('{').unwrap_or("}");
    RawValue::from_string(format!("{{\"event\":\"status\",{rest}")).unwrap_or_default()
}

fn unread() -> Refusal {
    Refusal::new(Code::Failed, "the profile could not be read")
}

fn failed(what: &str, error: &std::io::Error) -> Refusal {
    tracing::error!(%error, "cannot {what}");
    Refusal::new(Code::Failed, format!("the service cannot {what}: {error}"))
}

fn json(content: &impl Serialize) -> Box<RawValue> {
    // All of these are made of texts, numbers, lists and maps with texts as keys.
    serde_json::value::to_raw_value(content).unwrap_or_default()
}
