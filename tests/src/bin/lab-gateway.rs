//! `lab-gateway ADDRESS [gateway|client]` is the gateway of the virtual-time tests on real sockets of ADDRESS, so
//! that implementations that we did not write can say what they think of it.
//!
//! It takes a pre-shared key, and commands on its standard input, one a line; each is answered with one line. The second
//! argument says who loses when both ends rekey at once. That this happens, `slow` lets what comes wait a while. It takes
//! IKE and ESP over TCP port 4500 as well; `reset` ends its connections without a word of IKE.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it is spoken to over its standard input and output"
)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use peregrine_core::command::Path;
use peregrine_core::profile::Identity;
use peregrine_core::timer::Instant;
use peregrine_tests::gateway::{ClientAuth, Gateway, GatewayConfig, Outgoing, Proof, Side};
use peregrine_tests::lab::names;

/// How long what comes waits when it is to be slow.
const SLOW: Duration = Duration::from_millis(400);

enum Input {
    Datagram(Path, Vec<u8>),
    Opened(Path, TcpStream),
    Octets(Path, Vec<u8>),
    Closed(Path),
    Command(String),
    End,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(address) = arguments.first().and_then(|text| text.parse::<IpAddr>().ok()) else {
        eprintln!("usage: lab-gateway ADDRESS [gateway|client]");
        return ExitCode::from(2);
    };
    let loser = arguments.get(1).map(|text| match text.as_str() {
        "gateway" => Side::Gateway,
        _ => Side::Client,
    });
    match serve(address, loser) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn config(address: IpAddr, loser: Option<Side>) -> GatewayConfig {
    let psk = names::PSK.as_bytes().to_vec();
    GatewayConfig {
        pool: vec![[10, 3, 0, 1].into()],
        addresses: vec![address],
        loser,
        ..GatewayConfig::new(
            Identity::Fqdn("psk.vpn.lab".into()),
            Proof::Psk(psk.clone()),
            ClientAuth::Psk(psk),
        )
    }
}

fn serve(address: IpAddr, loser: Option<Side>) -> std::io::Result<()> {
    let (sender, inputs) = mpsc::channel();
    let sockets = [500, 4500].map(|port| UdpSocket::bind(SocketAddr::new(address, port)));
    let [ike, nat_t] = sockets;
    let (ike, nat_t) = (ike?, nat_t?);
    for socket in [&ike, &nat_t] {
        listen(socket.try_clone()?, sender.clone())?;
    }
    accept(TcpListener::bind(SocketAddr::new(address, 4500))?, sender.clone());
    let mut streams: BTreeMap<Path, TcpStream> = BTreeMap::new();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = sender.send(Input::Command(line));
        }
        let _ = sender.send(Input::End);
    });
    let began = std::time::Instant::now();
    let mut gateway = Gateway::new(config(address, loser), 0x4c);
    let send = |streams: &mut BTreeMap<Path, TcpStream>, datagrams: Vec<Outgoing>| {
        for (path, datagram) in datagrams {
            if path.is_tcp() {
                let stream = streams.get_mut(&path);
                let _ = stream.map(|stream| stream.write_all(&datagram));
                continue;
            }
            let socket = if path.local.port() == 500 { &ike } else { &nat_t };
            // What cannot be sent is lost, as anything on the way may be.
            let _ = socket.send_to(&datagram, path.remote);
        }
    };
    println!("ready");
    // The origin is not the beginning, so that nothing is at zero by accident.
    let clock = || Instant::new(Duration::from_secs(1000) + began.elapsed());
    let mut waiting: VecDeque<(Instant, Path, Vec<u8>)> = VecDeque::new();
    let mut delay = Duration::ZERO;
    loop {
        let now = clock();
        while let Some((_, path, datagram)) = waiting.pop_front_if(|(due, ..)| *due <= now) {
            send(&mut streams, gateway.handle(path, &datagram, now));
        }
        let due = waiting
            .front()
            .map(|(due, ..)| *due)
            .into_iter()
            .chain(gateway.poll_timeout())
            .min();
        let wait = due.map_or(Duration::from_secs(1), |due| due.since(now));
        match inputs.recv_timeout(wait) {
            Ok(Input::Opened(path, stream)) => {
                gateway.opened(path);
                streams.insert(path, stream);
            }
            Ok(Input::Octets(path, octets)) => {
                send(&mut streams, gateway.handle_octets(path, &octets, clock()));
                for path in gateway.take_hung_up() {
                    hang_up(&mut streams, path);
                }
            }
            Ok(Input::Closed(path)) => {
                gateway.closed(path);
                hang_up(&mut streams, path);
            }
            Ok(Input::Datagram(path, datagram)) => waiting.push_back((clock() + delay, path, datagram)),
            Ok(Input::Command(line)) => {
                if line == "slow" {
                    delay = SLOW;
                }
                if line == "reset" {
                    let paths: Vec<Path> = streams.keys().copied().collect();
                    for path in paths {
                        gateway.closed(path);
                        hang_up(&mut streams, path);
                    }
                }
                send(&mut streams, command(&mut gateway, &line, clock()));
                println!("{}", tell(&gateway));
            }
            Ok(Input::End) => return Ok(()),
            Err(_) => send(&mut streams, gateway.handle_timeout(clock())),
        }
    }
}

fn listen(socket: UdpSocket, sender: Sender<Input>) -> std::io::Result<()> {
    let local = socket.local_addr()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((len, remote)) = socket.recv_from(&mut buffer) {
            let path = Path::udp(local, remote);
            let datagram = buffer[..len].to_vec();
            if sender.send(Input::Datagram(path, datagram)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Takes connections, each read by a thread of its own.
fn accept(listener: TcpListener, sender: Sender<Input>) {
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sender = sender.clone();
            std::thread::spawn(move || read(stream, &sender));
        }
    });
}

fn read(mut stream: TcpStream, sender: &Sender<Input>) {
    let (Ok(local), Ok(remote), Ok(copy)) = (stream.local_addr(), stream.peer_addr(), stream.try_clone())
    else {
        return;
    };
    let _ = stream.set_nodelay(true);
    let path = Path::tcp(local, remote);
    let mut buffer = [0; 65_536];
    let mut input = Input::Opened(path, copy);
    while sender.send(input).is_ok() {
        input = match stream.read(&mut buffer) {
            Ok(len) if len > 0 => Input::Octets(path, buffer[..len].to_vec()),
            Ok(_) | Err(_) => break,
        };
    }
    let _ = sender.send(Input::Closed(path));
}

fn hang_up(streams: &mut BTreeMap<Path, TcpStream>, path: Path) {
    if let Some(stream) = streams.remove(&path) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn command(gateway: &mut Gateway, line: &str, now: Instant) -> Vec<Outgoing> {
    match line {
        "tell" | "slow" | "reset" => Vec::new(),
        "rekey-child" => gateway.rekey_child(now),
        "new-child" => gateway.new_child(now),
        "rekey-ike" => gateway.rekey_ike(now),
        "delete-child" => gateway.delete_child(now),
        "delete-ike" => gateway.delete_ike(now),
        "liveness" => gateway.ask_liveness(now),
        other => {
            eprintln!("unknown command: {other}");
            Vec::new()
        }
    }
}

/// All in one line: packets that came, answers to the gateway's requests, paths, then every IKE SA as
/// `SPIi/SPIr`, each with its Child SAs as `from-client/to-client`.
fn tell(gateway: &Gateway) -> String {
    let paths: Vec<String> = gateway
        .paths()
        .iter()
        .map(|path| format!("{}:{}", path.transport.name(), path.remote))
        .collect();
    let sas = gateway.sa_set().into_iter().map(|((i, r), children)| {
        let children: Vec<String> = children
            .into_iter()
            .map(|(inbound, outbound)| format!("{inbound}/{outbound}"))
            .collect();
        format!("{i}/{r}[{}]", children.join(","))
    });
    format!(
        "packets={} answers={} paths={} sas={}",
        gateway.received.len(),
        gateway.answers().len(),
        paths.join(","),
        sas.collect::<Vec<_>>().join(";")
    )
}
