//! `peregrined`: the service. It owns the tunnel of this machine; user interfaces ask it, by `platform::ipc`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use clap::{Parser, Subcommand};
use peregrine_core::command::{Command as Wish, HostFault};
use peregrine_core::plan::{Closed, Lock, Plan};
use peregrine_platform::driver::{self, Locking, Notice};
use peregrine_platform::host::Host as _;
use peregrine_platform::ipc::unix;
use peregrine_platform::linux::{self, LinuxHost};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

mod profile;
mod server;
mod service;
mod store;

use service::Service;
use store::Store;

/// The Peregrine service: owns the tunnel, routes, name resolution and firewall of this machine.
#[derive(Debug, Parser)]
#[command(name = "peregrined", version, about, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGTERM; a machine that is locked stays locked then
    Run(RunOptions),
}

#[derive(Debug, clap::Args)]
struct RunOptions {
    /// Where it listens; `peregrine` is told of another place by PEREGRINE_SOCKET
    #[arg(long, value_name = "PATH", default_value = unix::SOCKET)]
    socket: PathBuf,
    /// Where it keeps profiles
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/peregrined")]
    state: PathBuf,
    /// Whose members may command it, besides root
    #[arg(long, value_name = "NAME", default_value = unix::GROUP)]
    group: String,
}

fn main() -> ExitCode {
    let Command::Run(options) = Args::parse().command;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the service ends");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &RunOptions) -> Result<(), Box<dyn std::error::Error>> {
    // Keys are in this process: no core file, and no debugger of another user.
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    // Nothing that it makes is for others.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let store = Store::open(&options.state)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = {
        let _inside = runtime.enter();
        LocalSet::new().block_on(&runtime, serve(options, store))
    };
    // A profile that takes long to read is not waited for.
    runtime.shutdown_background();
    ended
}

async fn serve(options: &RunOptions, store: Store) -> Result<(), Box<dyn std::error::Error>> {
    let group = unix::group(&options.group)?;
    if group.is_none() {
        tracing::warn!(
            group = options.group,
            "there is no such group: only root may command the service"
        );
    }
    let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let locking = Locking {
        at_begin: store.wanted().lock.map_or(Lock::Open, |lan| {
            Lock::Closed(Closed {
                lan,
                ..Closed::default()
            })
        }),
        stays: true,
    };
    let (commands, command_queue) = mpsc::channel(8);
    let (notices, notice_queue) = mpsc::channel(64);
    let Tunnel { ready, mut ended } = Tunnel::start(locking, command_queue, notices)?;
    if ready.await.is_err() {
        return ended.await?.map_err(Into::into);
    }
    let service = Rc::new(Service::new(store, commands));
    let listener = unix::listen(&options.socket, group)?;
    tokio::task::spawn_local(Rc::clone(&service).follow(notice_queue));
    tokio::task::spawn_local(server::accept(listener, group, Rc::clone(&service)));
    let resuming = Rc::clone(&service);
    tokio::task::spawn_local(async move { resuming.resume().await });
    let _not_under_systemd = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %options.socket.display(), "ready");
    let [terminate, interrupt] = &mut ends;
    let ended = tokio::select! {
        ended = &mut ended => ended,
        _ = async { tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} } } => {
            let _not_under_systemd = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
            service.end();
            ended.await
        }
    };
    let _left = std::fs::remove_file(&options.socket);
    // Without a word it has ended by a panic: what is locked is locked, and whoever watches us starts us again.
    ended?.map_err(Into::into)
}

/// The thread that has the tunnel: packets do not wait for what user interfaces ask.
struct Tunnel {
    /// The machine is locked, if it is to be, and what a crash left is taken back.
    ready: oneshot::Receiver<()>,
    ended: oneshot::Receiver<Result<(), String>>,
}

impl Tunnel {
    fn start(
        locking: Locking,
        commands: mpsc::Receiver<Wish>,
        notices: mpsc::Sender<Notice>,
    ) -> io::Result<Self> {
        let (is_ready, ready) = oneshot::channel();
        let (has_ended, ended) = oneshot::channel();
        let work = move || {
            let _nobody_waits = has_ended.send(drive(locking, is_ready, commands, notices));
        };
        std::thread::Builder::new()
            .name("peregrine-tunnel".to_owned())
            .spawn(work)?;
        Ok(Self { ready, ended })
    }
}

fn drive(
    locking: Locking,
    is_ready: oneshot::Sender<()>,
    commands: mpsc::Receiver<Wish>,
    notices: mpsc::Sender<Notice>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    // The host's devices and sockets belong to the runtime.
    let _inside = runtime.enter();
    let said = |fault: HostFault| fault.to_string();
    let host = LinuxHost::new(linux::Config::system()).map_err(said)?;
    runtime.block_on(async {
        let first = Plan {
            tunnel: None,
            lock: locking.at_begin.clone(),
        };
        host.apply(first).await.map_err(said)?;
        let _nobody_waits = is_ready.send(());
        driver::run(&host, locking, commands, notices).await.map_err(said)
    })
}
