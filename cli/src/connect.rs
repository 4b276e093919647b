//! `peregrine connect`: one tunnel in the foreground.

use std::future::pending;
use std::io::IsTerminal as _;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use peregrine_core::command::{
    Cause, Command, Failure, Happening, HostFault, Prompt, PromptId, Stage, State, Status, Traffic,
};
use peregrine_core::crypto::Secret;
use peregrine_core::plan::{Closed, Lock};
use peregrine_core::profile::{Credentials, MissingSecret, Profile, WEAK_PSK_WARNING, is_weak_psk};
use peregrine_platform::driver::{self, Locking, Notice, Report};
use peregrine_platform::linux::{self, LinuxHost, Offloads};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::answers::{Answers, Beside};
use crate::args::{ConnectOptions, Offload};
use crate::exit::{self, Exit};
use crate::load::{self, LoadFault, Secrets};
use crate::render::{self, Progress};
use crate::screen::{self, Screen, Style};

pub(crate) fn run(options: &ConnectOptions, verbose: u8) -> Exit {
    let (profile, credentials, answers) = match prepare(options) {
        Ok(prepared) => prepared,
        Err(ended) => return ended,
    };
    let started = Instant::now();
    let log_is_on_screen =
        (verbose > 0 || std::env::var_os("RUST_LOG").is_some()) && std::io::stderr().is_terminal();
    let mut output = Output::new(options.json, log_is_on_screen, started);
    if !linux::can_manage_network() {
        let fault = HostFault {
            action: "make network devices and routes".to_owned(),
            reason: "that needs root or CAP_NET_ADMIN".to_owned(),
            permission: true,
        };
        return output.fail(&Failure {
            stage: Stage::Apply,
            cause: Cause::Host(fault),
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        // The host's devices and sockets belong to the runtime.
        let _inside = runtime.enter();
        let config = linux::Config {
            offloads: offloads(&options.without),
            ..linux::Config::system()
        };
        // A failure leaves the machine as it was: also locked.
        let was_locked = linux::is_left_locked(&config).unwrap_or(true);
        let host = match LinuxHost::new(config) {
            Ok(host) => host,
            Err(fault) => {
                return Ok(output.fail(&Failure {
                    stage: Stage::Apply,
                    cause: Cause::Host(fault),
                }));
            }
        };
        let timeout = options.timeout.map(|seconds| Duration::from_secs(seconds.into()));
        runtime
            .block_on(follow(
                host,
                profile,
                credentials,
                &answers.beside(),
                timeout,
                was_locked,
                &mut output,
            ))
            .map_err(|error| error.to_string())
    });
    ended.unwrap_or_else(|error| exit::unexpected(&error))
}

fn offloads(without: &[Offload]) -> Offloads {
    let has = |offload| !without.contains(&offload);
    Offloads {
        tso: has(Offload::Tso),
        tun_gro: has(Offload::TunGro),
        udp_gso: has(Offload::UdpGso),
        udp_gro: has(Offload::UdpGro),
    }
}

/// The profile with all its secrets, and who answers what is asked later.
fn prepare(options: &ConnectOptions) -> Result<(Profile, Credentials, Answers), Exit> {
    let secrets = Secrets::new(&options.secret, false).map_err(|message| exit::usage(&message))?;
    let mut parsed = load::load(&options.file, &secrets).map_err(|fault| match fault {
        LoadFault::Profile(errors) => exit::usage(&crate::check::refusal(&errors)),
        LoadFault::Other(message) => exit::usage(&message),
    })?;
    for remark in parsed.report.warnings.iter().chain(&parsed.report.not_used) {
        let line = remark
            .line
            .map_or_else(String::new, |line| format!("line {line}, "));
        warn(&format!("{line}{}: {}", remark.key, remark.message));
    }
    // A password typed for nothing is a nuisance: without privileges nothing will come of it.
    if let Some(missing) = parsed.missing_secret().filter(|_| linux::can_manage_network()) {
        let secret = secrets
            .ask(missing, &parsed.profile)
            .map_err(|message| exit::usage(&message))?;
        match missing {
            MissingSecret::Password => parsed.credentials.password = Some(secret),
            MissingSecret::Psk => {
                if is_weak_psk(secret.as_bytes()) {
                    warn(&format!("the pre-shared key is {WEAK_PSK_WARNING}"));
                }
                parsed.credentials.psk = Some(secret);
            }
        }
    }
    Ok((parsed.profile, parsed.credentials, secrets.into_answers()))
}

fn warn(text: &str) {
    let lines = render::warning(Style::of(true), text);
    screen::write_error(&(lines.join("\n") + "\n"));
}

/// Why the connection is being taken down by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// A signal asked for it.
    Asked,
    /// It was not up in time.
    TooLate,
}

/// A question that the user has not answered yet.
type Asking<'a> = Pin<Box<dyn Future<Output = (PromptId, Option<Secret>)> + 'a>>;

async fn answered(asking: &mut Option<Asking<'_>>) -> (PromptId, Option<Secret>) {
    match asking {
        Some(asking) => asking.await,
        None => pending().await,
    }
}

/// Runs the tunnel until it ends, and shows it.
async fn follow(
    host: LinuxHost,
    profile: Profile,
    credentials: Credentials,
    answers: &Beside,
    timeout: Option<Duration>,
    was_locked: bool,
    output: &mut Output,
) -> std::io::Result<Exit> {
    let mut interrupts = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ];
    let (commands, command_queue) = mpsc::channel(4);
    let (notices, mut notice_queue) = mpsc::channel(64);
    // What a crashed run left locked stays so, if this run locks too.
    let locking = Locking {
        at_begin: lock(&profile),
        stays: false,
    };
    // The queue is new and has room.
    let _queued = commands.try_send(Command::Connect(Box::new(profile), credentials));
    let mut driver = pin!(driver::run(&host, locking, command_queue, notices));
    let mut deadline = pin!(tokio::time::sleep(timeout.unwrap_or(Duration::MAX)));
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut commands = Some(commands);
    let mut asking: Option<Asking<'_>> = None;
    let mut ending = None;
    let mut failure = None;
    let mut begun = false;
    let mut blocked = None;
    let driven = loop {
        let [interrupt, terminate, hangup] = &mut interrupts;
        tokio::select! {
            biased;
            ended = &mut driver => break ended,
            Some(notice) = notice_queue.recv() => match notice {
                Notice::Status(status) => {
                    output.status(&status);
                    begun |= !matches!(status.state, State::Idle | State::Blocked) || status.failure.is_some();
                    let is_over = match status.state {
                        State::Idle => begun,
                        // Whoever asked for a tunnel sees that there is none, and the machine is as it was. But what was
                        // in a tunnel does not go beside it before somebody has seen that it is gone.
                        State::Blocked => begun && !was_locked && !output.progress.is_connected(),
                        _ => false,
                    };
                    if is_over {
                        failure = status.failure.or(failure);
                        commands = None; // ends the driver
                    } else if status.state == State::Blocked && begun && blocked.is_none() {
                        blocked = status.failure.map(|failure| output.block(&failure));
                    }
                }
                Notice::Traffic(traffic) => output.traffic(&traffic),
                Notice::Happened(happening) => output.happened(&happening),
                Notice::Prompt(prompt) => {
                    output.prompt(&prompt, answers.is_terminal());
                    let (id, question) = (prompt.id, render::question(&prompt));
                    asking = Some(Box::pin(async move { (id, answers.ask(question).await) }));
                }
            },
            (id, answer) = answered(&mut asking) => {
                asking = None;
                output.answered();
                if let Some(commands) = &commands {
                    // There is room: the driver takes one command at a time, and this is one for each question.
                    let _queued = commands.try_send(Command::Reply(id, answer));
                }
            }
            _ = interrupt.recv() => commands = end(commands, &mut ending, Ending::Asked)?,
            _ = terminate.recv() => commands = end(commands, &mut ending, Ending::Asked)?,
            _ = hangup.recv() => commands = end(commands, &mut ending, Ending::Asked)?,
            () = &mut deadline, if timeout.is_some() && ending.is_none() && !output.progress.is_connected() => {
                commands = end(commands, &mut ending, Ending::TooLate)?;
            }
            _ = tick.tick(), if output.is_live() => output.tick(),
        }
    };
    if asking.take().is_some() {
        output.nobody_answered(answers.is_terminal());
    }
    while let Ok(notice) = notice_queue.try_recv() {
        match notice {
            Notice::Status(status) => {
                output.status(&status);
                failure = status.failure.or(failure);
            }
            Notice::Traffic(traffic) => output.traffic(&traffic),
            Notice::Happened(happening) => output.happened(&happening),
            Notice::Prompt(_) => {}
        }
    }
    if let (Ok(()), Some(exit)) = (&driven, blocked) {
        return Ok(exit);
    }
    let stage = output.progress.stage().unwrap_or(Stage::Resolve);
    let failure = match (driven, ending, failure) {
        // Whatever became of the connection, a machine that is not as before comes first.
        (Err(fault), ..) => Some(Failure {
            stage: Stage::Apply,
            cause: Cause::Host(fault),
        }),
        (Ok(()), Some(Ending::TooLate), _) => Some(Failure {
            stage,
            cause: Cause::TimedOut,
        }),
        (Ok(()), Some(Ending::Asked), _) if output.progress.is_connected() => None,
        (Ok(()), Some(Ending::Asked), _) => Some(Failure {
            stage,
            cause: Cause::Cancelled,
        }),
        (Ok(()), None, failure) => failure,
    };
    Ok(match failure {
        Some(failure) => output.fail(&failure),
        None => output.done(),
    })
}

/// What is locked from the first moment.
fn lock(profile: &Profile) -> Lock {
    if profile.network.kill_switch {
        Lock::Closed(Closed {
            lan: profile.network.allow_lan,
            ..Closed::default()
        })
    } else {
        Lock::Open
    }
}

/// Begins the end: closing the commands takes everything down. Being asked twice does not wait for the gateway.
fn end(
    commands: Option<mpsc::Sender<Command>>,
    ending: &mut Option<Ending>,
    why: Ending,
) -> std::io::Result<Option<mpsc::Sender<Command>>> {
    match (commands, *ending) {
        (Some(_), _) => *ending = Some(why),
        (None, Some(Ending::Asked)) => {
            return Err(std::io::Error::other("stopped at once; the gateway may not know"));
        }
        (None, _) => {}
    }
    Ok(None)
}

/// Where events are shown.
struct Output {
    json: bool,
    started: Instant,
    screen: Screen,
    progress: Progress,
    /// Somebody types, so that no line may change.
    asking: bool,
}

impl Output {
    fn new(json: bool, still: bool, started: Instant) -> Self {
        let screen = Screen::new(json || still);
        let progress = Progress::new(screen.style());
        Self {
            json,
            started,
            screen,
            progress,
            asking: false,
        }
    }

    fn prompt(&mut self, prompt: &Prompt, on_terminal: bool) {
        if self.json {
            print(&Report::Prompt(prompt));
        }
        self.screen.clear();
        self.asking = true;
        if on_terminal {
            let lines = render::gateway_asks(Style::of(true), prompt);
            screen::write_error(
                &lines
                    .iter()
                    .flat_map(|line| [line.as_str(), "\n"])
                    .collect::<String>(),
            );
        }
    }

    fn answered(&mut self) {
        self.asking = false;
    }

    /// The connection ended before the answer came.
    fn nobody_answered(&mut self, on_terminal: bool) {
        self.asking = false;
        if on_terminal {
            screen::write_error("\n");
        }
    }

    fn status(&mut self, status: &Status) {
        let lines = self.progress.status(status, self.started.elapsed());
        if self.json {
            return print(&Report::Status(status));
        }
        self.screen.lines(&lines);
        self.tick();
    }

    fn traffic(&mut self, traffic: &Traffic) {
        self.progress.traffic(traffic, self.started.elapsed());
        if self.json {
            print(&Report::Traffic(traffic));
        }
    }

    fn happened(&mut self, happening: &Happening) {
        if self.json {
            return print(happening);
        }
        let lines = self.progress.happened(happening, self.started.elapsed());
        self.screen.lines(&lines);
        self.tick();
    }

    /// A line on the terminal changes with time alone. Without it nothing is to be done while nothing happens.
    const fn is_live(&self) -> bool {
        self.screen.is_live() && !self.asking
    }

    fn tick(&mut self) {
        let line = self
            .progress
            .live(self.started.elapsed())
            .filter(|_| self.is_live());
        self.screen.live(line);
    }

    fn fail(&mut self, failure: &Failure) -> Exit {
        self.screen.clear();
        if self.json {
            print(&Report::Failure(failure));
        } else {
            let lines = render::failure(Style::of(true), failure, self.started.elapsed());
            screen::write_error(&(lines.join("\n") + "\n"));
        }
        Exit::from(failure)
    }

    /// The tunnel is gone for good, and nothing leaves this machine until somebody ends this.
    fn block(&mut self, failure: &Failure) -> Exit {
        let exit = self.fail(failure);
        if !self.json {
            warn("everything else stays blocked until you end this, with Ctrl-C or SIGTERM (`kill_switch`)");
        }
        exit
    }

    fn done(&mut self) -> Exit {
        let line = self
            .progress
            .farewell(self.started.elapsed())
            .filter(|_| !self.json);
        self.screen.lines(&line.into_iter().collect::<Vec<_>>());
        Exit::Done
    }
}

fn print(event: &impl Serialize) {
    match serde_json::to_string(event) {
        Ok(line) => screen::write(&(line + "\n")),
        Err(error) => tracing::error!(%error, "an event could not be written"),
    }
}
