//! The arguments. They are a stable interface: scripts and tests rely on them.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

const STATUS: &str = "\
Exit status:
  0  done
  1  unexpected, or cancelled before the tunnel was up
  2  wrong usage or bad profile
  3  the gateway cannot be reached
  4  Phase 1 · IKE SA failed
  5  Phase 2 · Child SA failed
  6  authentication failed, on either side
  7  this machine refused (privileges, TUN device, routes)
  8  timed out";

const CONNECT: &str = "\
Brings one tunnel up, in the foreground and without the service, until SIGINT (Ctrl-C) or SIGTERM; then tells the \
gateway and puts routes and name resolution back.

This needs the right to make network devices and routes: run it with sudo, or give it to the program once with \
`sudo setcap cap_net_admin+ep $(command -v peregrine)`.

A password, pre-shared key, passphrase or one-time code that the profile does not hold is asked for on the terminal, or \
read from --password-file or --password-fd: each line answers one question, in the order in which they come, and is read \
when its question comes. With --json, a question of the gateway's is also a \"prompt\" event.";

/// IKEv2 VPN client.
#[derive(Debug, Parser)]
#[command(name = "peregrine", version, about, after_help = STATUS, arg_required_else_help = true)]
pub(crate) struct Args {
    /// Log what happens to the standard error; twice, also why. RUST_LOG overrides this.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring one tunnel up and keep it until Ctrl-C
    #[command(long_about = CONNECT, after_help = STATUS)]
    Connect(ConnectOptions),
    /// Read a profile and tell what is used, defaulted, doubtful, or wrong
    Check(CheckOptions),
    /// Add a profile, with everything that it names, to the service
    Import(ImportOptions),
    /// Print a profile of the service's
    Export(ExportOptions),
    /// Remove a profile from the service
    Remove(RemoveOptions),
    /// List the profiles that the service has for you
    List(ListOptions),
    /// Have the service bring a tunnel up
    #[command(after_help = STATUS)]
    Up(UpOptions),
    /// Have the service take the tunnel down, and open what the kill switch has locked
    Down,
    /// Tell what the service's tunnel does
    Status(StatusOptions),
    /// Print a completion script for a shell
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in troff
    Man {
        /// The page of one command
        command: Option<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ConnectOptions {
    /// The profile
    pub(crate) file: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Give up when the tunnel is not up after this many seconds
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) timeout: Option<u32>,
    /// Do without an offload, to find out whether it is at fault
    #[arg(long, value_name = "OFFLOAD", value_delimiter = ',')]
    pub(crate) without: Vec<Offload>,
    #[command(flatten)]
    pub(crate) secret: SecretOptions,
}

/// What the kernel and the network card may do of the packets' work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Offload {
    /// Programs' packets come to us in large pieces
    Tso,
    /// We give packets to programs in large pieces
    TunGro,
    /// We give datagrams to the network in large pieces
    UdpGso,
    /// Datagrams come from the network in large pieces
    UdpGro,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImportOptions {
    /// The profile
    pub(crate) file: PathBuf,
    /// Call it this, and not what it calls itself
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Take the place of a profile of the same name
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExportOptions {
    /// Which profile
    pub(crate) name: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RemoveOptions {
    /// Which profile
    pub(crate) name: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ListOptions {
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UpOptions {
    /// Which profile
    pub(crate) name: String,
    /// Give up when the tunnel is not up after this many seconds
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) timeout: Option<u32>,
    #[command(flatten)]
    pub(crate) secret: SecretOptions,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusOptions {
    /// Print JSON: one object, or with --watch one event a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Go on until Ctrl-C
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CheckOptions {
    /// The profile
    pub(crate) file: PathBuf,
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) secret: SecretOptions,
}

/// Where a secret comes from that the profile does not hold.
#[derive(Debug, ClapArgs)]
#[group(multiple = false)]
pub(crate) struct SecretOptions {
    /// Read passphrase, password, pre-shared key or codes from this file, one on a line
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Read them from this file descriptor
    #[arg(long, value_name = "N")]
    pub(crate) password_fd: Option<u16>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn documented_command_lines_are_understood() {
        for line in [
            "peregrine connect office.toml",
            "peregrine connect office.toml --json --timeout 30 -vv",
            "peregrine -v connect office.toml --password-file secret",
            "peregrine connect office.toml --password-fd 3",
            "peregrine connect office.toml --without tso,udp-gso --without udp-gro",
            "peregrine check office.toml --json",
            "peregrine import office.toml --name Office --replace",
            "peregrine export Office",
            "peregrine remove Office",
            "peregrine list --json",
            "peregrine up Office --timeout 30 --password-fd 3",
            "peregrine down",
            "peregrine status --json --watch",
            "peregrine completions bash",
            "peregrine man connect",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "peregrine",
            "peregrine connect",
            "peregrine connect office.toml --timeout 0",
            "peregrine connect office.toml --without everything",
            "peregrine connect office.toml --password secret",
            "peregrine connect office.toml --password-fd 3 --password-file x",
            "peregrine completions sh",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
