//! `peregrined`: the service. It owns the tunnel of this machine; user interfaces ask it, by `platform::ipc`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use clap::{Parser, Subcommand};
use peregrine_core::plan::{Closed, Lock};
use peregrine_platform::driver::{self, Locking};
use peregrine_platform::ipc::unix;
use peregrine_platform::linux::{self, LinuxHost};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
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
    /// Where it listens
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
    let _inside = runtime.enter();
    LocalSet::new().block_on(&runtime, serve(options, store))
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
    let host = LinuxHost::new(linux::Config::system()).map_err(|fault| fault.to_string())?;
    let (commands, command_queue) = mpsc::channel(8);
    let (notices, notice_queue) = mpsc::channel(64);
    let service = Rc::new(Service::new(store, commands));
    let listener = unix::listen(&options.socket, group)?;
    let mut driver = std::pin::pin!(driver::run(&host, locking, command_queue, notices));
    tokio::task::spawn_local(Rc::clone(&service).follow(notice_queue));
    tokio::task::spawn_local(server::accept(listener, group, Rc::clone(&service)));
    service.resume();
    let _not_under_systemd = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %options.socket.display(), "ready");
    let [terminate, interrupt] = &mut ends;
    let ended = tokio::select! {
        ended = &mut driver => ended,
        _ = async { tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} } } => {
            let _not_under_systemd = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
            service.end();
            driver.await
        }
    };
    let _left = std::fs::remove_file(&options.socket);
    ended.map_err(|fault| fault.to_string().into())
}
