//! The real driver between the real client and a machine in memory, in virtual time.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use peregrine_core::command::{Cause, Command, HostFault, State, Status, Traffic};
use peregrine_core::crypto::Secret;
use peregrine_core::plan::{Closed, Lock, Plan};
use peregrine_core::profile::{AuthKind, Credentials};
use peregrine_platform::driver::{self, Locking, Notice};
use peregrine_platform::host::Change;
use peregrine_tests::cast::{Cast, packet};
use peregrine_tests::eap_server::{EapServer, GtcServer, ServerMethod};
use peregrine_tests::fake_host::{FakeHost, way};
use peregrine_tests::gateway::{ClientAuth, Gateway};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A running driver and what it said.
struct Scene {
    host: FakeHost,
    commands: Option<mpsc::Sender<Command>>,
    heard: Rc<RefCell<Vec<(Instant, Notice)>>>,
    running: tokio::task::JoinHandle<Result<(), HostFault>>,
    cast: Cast,
}

impl Scene {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(prepare: impl FnOnce(&FakeHost)) -> Self {
        Self::locking(Locking::default(), prepare)
    }

    fn locking(locking: Locking, prepare: impl FnOnce(&FakeHost)) -> Self {
        let cast = Cast::default();
        let host = FakeHost::new(Gateway::new(cast.gateway(AuthKind::Psk), 0x47));
        prepare(&host);
        let (commands, from_user) = mpsc::channel(8);
        let (notices, mut to_user) = mpsc::channel(64);
        let heard = Rc::new(RefCell::new(Vec::new()));
        let log = Rc::clone(&heard);
        tokio::task::spawn_local(async move {
            while let Some(notice) = to_user.recv().await {
                log.borrow_mut().push((Instant::now(), notice));
            }
        });
        let of_driver = host.clone();
        let running =
            tokio::task::spawn_local(
                async move { driver::run(&of_driver, locking, from_user, notices).await },
            );
        Self {
            host,
            commands: Some(commands),
            heard,
            running,
            cast,
        }
    }

    async fn command(&self, command: Command) {
        self.commands.as_ref().unwrap().send(command).await.unwrap();
    }

    async fn connect(&self) {
        let profile = Box::new(self.cast.profile(AuthKind::Psk));
        self.command(Command::Connect(profile, self.cast.credentials()))
            .await;
    }

    async fn connect_and_wait(&self) {
        self.connect().await;
        assert!(self.reaches(State::Connected).await, "{:?}", self.status());
    }

    async fn reaches(&self, state: State) -> bool {
        self.host.until(|_| self.status().state == state).await
    }

    fn status(&self) -> Status {
        let heard = self.heard.borrow();
        let statuses = heard.iter().rev().filter_map(|(_, notice)| match notice {
            Notice::Status(status) => Some(Status::clone(status)),
            Notice::Traffic(_) | Notice::Happened(_) | Notice::Prompt(_) => None,
        });
        statuses.into_iter().next().unwrap_or_default()
    }

    fn states(&self) -> Vec<State> {
        let heard = self.heard.borrow();
        let mut states: Vec<State> = heard
            .iter()
            .filter_map(|(_, notice)| match notice {
                Notice::Status(status) => Some(status.state),
                Notice::Traffic(_) | Notice::Happened(_) | Notice::Prompt(_) => None,
            })
            .collect();
        states.dedup();
        states
    }

    fn traffic(&self) -> Vec<(Instant, Traffic)> {
        let heard = self.heard.borrow();
        let reports = heard.iter().filter_map(|(at, notice)| match notice {
            Notice::Traffic(traffic) => Some((*at, traffic.clone())),
            Notice::Status(_) | Notice::Happened(_) | Notice::Prompt(_) => None,
        });
        reports.collect()
    }

    /// A packet there and back.
    async fn carries(&self) -> bool {
        let before = self.host.machine().received.len();
        self.host.send(packet("10.3.0.1", "10.9.9.9", 300));
        let came_back = self.host.until(|machine| machine.received.len() > before).await;
        came_back && self.host.machine().received.last() == Some(&packet("10.9.9.9", "10.3.0.1", 300))
    }

    /// Closes the commands; what the driver returned, within the time that it may take.
    async fn end(&mut self) -> Result<(), HostFault> {
        self.commands = None;
        let ended = tokio::time::timeout(Duration::from_secs(20), &mut self.running).await;
        ended.expect("the driver ends").unwrap()
    }

    fn plans(&self) -> Vec<bool> {
        let machine = self.host.machine();
        machine.plans.iter().map(|plan| plan.tunnel.is_some()).collect()
    }
}

fn scene<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn fault() -> HostFault {
    HostFault {
        action: "do it".to_owned(),
        reason: "no".to_owned(),
        permission: false,
    }
}

#[test]
fn connects_carries_both_ways_and_leaves_nothing() {
    scene(async {
        let mut scene = Scene::new();
        scene.connect_and_wait().await;
        assert!(scene.carries().await);
        assert_eq!(scene.host.sockets(), 1);
        assert_eq!(scene.end().await, Ok(()));
        assert_eq!(scene.host.machine().gateway.sas(), 0, "the gateway was told");
        assert_eq!(scene.plans(), [false, true, false]);
        assert_eq!(scene.host.sockets(), 0);
        assert_eq!(
            scene.states(),
            [
                State::Connecting,
                State::Connected,
                State::Disconnecting,
                State::Idle
            ]
        );
    });
}

#[test]
fn a_command_to_disconnect_leaves_room_for_the_next() {
    scene(async {
        let mut scene = Scene::new();
        for _ in 0..2 {
            scene.connect_and_wait().await;
            assert!(scene.carries().await);
            scene.command(Command::Disconnect).await;
            assert!(scene.reaches(State::Idle).await);
            assert_eq!(
                scene.host.sockets(),
                0,
                "a connection begins with sockets of its own"
            );
        }
        assert_eq!(scene.end().await, Ok(()));
    });
}

#[test]
fn a_slow_plan_does_not_stall_packets() {
    scene(async {
        let mut scene = Scene::with(|host| host.machine().gateway.echo = false);
        scene.host.until(|machine| !machine.plans.is_empty()).await;
        scene.host.machine().apply_takes = Duration::from_secs(5);
        scene.connect().await;
        assert!(
            scene
                .host
                .until(|machine| machine.gateway.established() == 1)
                .await
        );
        let asked = Instant::now();
        scene.host.gateway_does(|gateway, now| gateway.ask_liveness(now));
        assert!(
            scene
                .host
                .until(|machine| !machine.gateway.answers().is_empty())
                .await
        );
        assert!(
            asked.elapsed() < Duration::from_secs(1),
            "answered after {:?}",
            asked.elapsed()
        );
        assert_eq!(scene.plans(), [false], "the tunnel's plan is still being applied");
        assert!(scene.reaches(State::Connected).await);
        assert_eq!(scene.end().await, Ok(()));
    });
}

#[test]
fn the_latest_plan_wins() {
    scene(async {
        let mut scene = Scene::new();
        scene.host.until(|machine| !machine.plans.is_empty()).await;
        scene.host.machine().apply_takes = Duration::from_secs(3);
        scene.connect().await;
        assert!(
            scene
                .host
                .until(|machine| machine.gateway.established() == 1)
                .await
        );
        scene.command(Command::Disconnect).await;
        assert!(scene.reaches(State::Idle).await);
        assert_eq!(scene.plans(), [false, true, false]);
        assert!(
            !scene.states().contains(&State::Connected),
            "a plan that was given up is no news"
        );
        assert_eq!(scene.end().await, Ok(()));
        assert_eq!(scene.plans().last(), Some(&false));
    });
}

#[test]
fn a_full_socket_slows_the_device_and_loses_nothing() {
    scene(async {
        let mut scene = Scene::with(|host| host.machine().gateway.echo = false);
        scene.connect_and_wait().await;
        scene.host.make_room(0);
        let sent: Vec<_> = (100..400)
            .map(|len| packet("10.3.0.1", "10.9.9.9", len))
            .collect();
        for packet in &sent {
            scene.host.send(packet.clone());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(
            scene.host.machine().device_queue.len() > 200,
            "they wait where they are"
        );
        while scene.host.machine().gateway.received.len() < sent.len() {
            let before = scene.host.machine().gateway.received.len();
            scene.host.make_room(7);
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(
                scene.host.machine().gateway.received.len() > before,
                "stuck after {before}"
            );
        }
        assert_eq!(scene.host.machine().gateway.received, sent);
        scene.host.make_room(usize::MAX);
        assert_eq!(scene.end().await, Ok(()));
    });
}

#[test]
fn a_lost_device_is_made_again() {
    scene(async {
        let mut scene = Scene::new();
        scene.connect_and_wait().await;
        scene.host.delete_device();
        assert!(scene.host.until(|machine| machine.devices == 2).await);
        assert!(scene.carries().await);
        assert_eq!(scene.end().await, Ok(()));
    });
}

#[test]
fn a_plan_that_fails_ends_the_connection() {
    scene(async {
        let mut scene = Scene::with(|host| host.machine().apply_fault = Some(fault()));
        scene.connect().await;
        assert!(scene.host.until(|_| scene.status().failure.is_some()).await);
        assert_eq!(scene.status().failure.unwrap().cause, Cause::Host(fault()));
        assert!(scene.reaches(State::Idle).await);
        assert_eq!(scene.host.machine().gateway.sas(), 0, "the gateway was told");
        assert_eq!(scene.end().await, Ok(()));
    });
}

#[test]
fn nothing_begins_on_a_machine_that_cannot_be_repaired() {
    scene(async {
        let mut scene = Scene::with(|host| host.machine().repair_fault = Some(fault()));
        assert_eq!(scene.end().await, Err(fault()));
        assert!(scene.heard.borrow().is_empty());
        assert_eq!(scene.host.machine().plans, [Plan::default()]);
    });
}

#[test]
fn at_its_end_a_locked_machine_is_opened_or_stays_locked() {
    for stays in [false, true] {
        scene(async move {
            let locked = || Lock::Closed(Closed::default());
            let at_begin = locked();
            let mut scene = Scene::locking(Locking { at_begin, stays }, |_| ());
            let mut profile = scene.cast.profile(AuthKind::Psk);
            profile.network.kill_switch = true;
            let credentials = scene.cast.credentials();
            scene
                .command(Command::Connect(Box::new(profile), credentials))
                .await;
            assert!(scene.reaches(State::Connected).await);
            assert_eq!(scene.end().await, Ok(()));
            assert_eq!(scene.host.machine().gateway.sas(), 0, "the gateway was told");
            let plans = scene.host.machine().plans.clone();
            let (last, before) = plans.split_last().unwrap();
            let lock = if stays { locked() } else { Lock::Open };
            assert_eq!(*last, Plan { tunnel: None, lock });
            assert!(before.iter().all(|plan| plan.lock != Lock::Open), "{before:?}");
        });
    }
}

#[test]
fn a_gateway_that_does_not_answer_the_farewell_holds_nobody_up() {
    scene(async {
        let mut scene = Scene::new();
        scene.connect_and_wait().await;
        scene.host.machine().gateway.silent = true;
        let asked = Instant::now();
        assert_eq!(scene.end().await, Ok(()));
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        assert_eq!(scene.plans(), [false, true, false]);
    });
}

#[test]
fn traffic_is_told_once_a_second_while_there_is_some() {
    scene(async {
        let mut scene = Scene::new();
        scene.connect_and_wait().await;
        for _ in 0..40 {
            assert!(scene.carries().await);
            tokio::time::sleep(Duration::from_millis(90)).await;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let reports = scene.traffic();
        assert!(
            (4..=7).contains(&reports.len()),
            "{} reports in 4 s and a silent minute",
            reports.len()
        );
        assert!(
            reports
                .windows(2)
                .all(|pair| pair[1].0 - pair[0].0 >= Duration::from_secs(1))
        );
        let [.., before, last] = reports.as_slice() else {
            panic!("too few")
        };
        assert_eq!(last.1.tx_packets, 40);
        assert_eq!(before.1, last.1, "the last one says that it has stopped");
        assert_eq!(scene.end().await, Ok(()));
    });
}

/// A TCP SYN of 48 octets that announces a maximum segment size of 1460.
fn syn() -> Vec<u8> {
    let mut syn = packet("10.3.0.1", "10.9.9.9", 48);
    syn[9] = 6;
    let tcp = [
        0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 0x05, 0xb4,
    ];
    syn[20..44].copy_from_slice(&tcp);
    syn[3] = 44;
    syn.truncate(44);
    syn
}

#[test]
fn tcp_learns_the_size_of_the_tunnel_in_both_directions() {
    scene(async {
        let mut scene = Scene::with(|host| host.machine().gateway.echo = false);
        scene.connect_and_wait().await;
        let largest = scene.status().mtu.unwrap() - 40;
        let announced = |packet: &[u8]| u16::from_be_bytes([packet[42], packet[43]]);
        assert_eq!(announced(&syn()), 1460);

        scene.host.send(syn());
        assert!(
            scene
                .host
                .until(|machine| !machine.gateway.received.is_empty())
                .await
        );
        assert_eq!(announced(&scene.host.machine().gateway.received[0]), largest);

        let mut from_there = syn();
        from_there[12..20].rotate_left(4); // the other way round
        scene.host.gateway_does(|gateway, _| gateway.send(&from_there));
        assert!(scene.host.until(|machine| !machine.received.is_empty()).await);
        assert_eq!(announced(&scene.host.machine().received[0]), largest);
        assert_eq!(scene.end().await, Ok(()));
    });
}

/// A driver whose gateway asks for a code, and whose reader has room for one notice.
async fn asks_for_a_code(read: bool) {
    let cast = Cast::default();
    let mut config = cast.gateway(AuthKind::EapGtc);
    config.client = ClientAuth::Eap(Box::new(|| {
        let questions = GtcServer::new(&[("Code: ", "123456")]);
        EapServer::new(ServerMethod::Gtc(questions), true)
    }));
    let host = FakeHost::new(Gateway::new(config, 0x47));
    let (commands, from_user) = mpsc::channel(8);
    let (notices, mut to_user) = mpsc::channel(1);
    let of_driver = host.clone();
    let running = tokio::task::spawn_local(async move {
        driver::run(&of_driver, Locking::default(), from_user, notices).await
    });
    let credentials = Credentials::default();
    let connect = Command::Connect(Box::new(cast.profile(AuthKind::EapGtc)), credentials);
    commands.send(connect).await.unwrap();
    if !read {
        // The first notice fills the queue, and the question has to wait.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let mut prompts = 0;
    while let Ok(Some(notice)) = tokio::time::timeout(Duration::from_secs(5), to_user.recv()).await {
        if let Notice::Prompt(prompt) = notice {
            prompts += 1;
            assert_eq!(prompt.message.as_deref(), Some("Code:"));
            let answer = Some(Secret::from_slice(b"123456"));
            commands.send(Command::Reply(prompt.id, answer)).await.unwrap();
        }
    }
    assert_eq!(prompts, 1);
    assert_eq!(host.machine().gateway.established(), 1);
    drop(commands);
    running.await.unwrap().unwrap();
}

#[test]
fn a_question_is_handed_out_and_its_answer_taken() {
    scene(asks_for_a_code(true));
}

#[test]
fn a_question_waits_for_a_reader_that_sleeps() {
    scene(asks_for_a_code(false));
}

#[test]
fn a_reader_that_sleeps_still_hears_how_it_ended() {
    scene(async {
        let cast = Cast::default();
        let host = FakeHost::new(Gateway::new(cast.gateway(AuthKind::Psk), 0x47));
        let (commands, from_user) = mpsc::channel(8);
        let (notices, mut to_user) = mpsc::channel(1);
        let of_driver = host.clone();
        let running = tokio::task::spawn_local(async move {
            driver::run(&of_driver, Locking::default(), from_user, notices).await
        });
        let connect = Command::Connect(Box::new(cast.profile(AuthKind::Psk)), cast.credentials());
        commands.send(connect).await.unwrap();
        assert!(host.until(|machine| machine.plans.len() == 2).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut last = State::Idle;
        while let Ok(Some(notice)) = tokio::time::timeout(Duration::from_secs(1), to_user.recv()).await {
            if let Notice::Status(status) = notice {
                last = status.state;
            }
        }
        assert_eq!(last, State::Connected);
        drop(commands);
        running.await.unwrap().unwrap();
    });
}

#[test]
fn a_connection_goes_by_the_way_of_its_time() {
    scene(async {
        let mut scene = Scene::new();
        for source in ["10.0.0.2", "192.0.2.7"] {
            scene.host.machine().ways[0] = Some(way(source, 3));
            scene.connect_and_wait().await;
            assert!(scene.carries().await);
            let path = scene.status().path.unwrap();
            assert_eq!(path.local.ip().to_string(), source);
            assert_eq!(path.interface.as_deref(), Some("eth3"));
            assert_eq!(scene.host.machine().sockets, [path.local]);
            let stray = scene
                .host
                .machine()
                .sent
                .iter()
                .any(|sent| sent.local != path.local);
            assert!(!stray, "everything leaves by the one socket");
            scene.command(Command::Disconnect).await;
            assert!(scene.reaches(State::Idle).await);
            scene.host.machine().sent.clear();
        }
        assert_eq!(scene.end().await, Ok(()));
    });
}

#[test]
fn what_others_break_is_put_back_at_once_but_not_again_and_again() {
    scene(async {
        let mut scene = Scene::new();
        scene.connect_and_wait().await;
        let plans = || scene.host.machine().plans.len() - 2;
        assert_eq!(plans(), 0);
        scene.host.change(Change::Plan);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(plans(), 1, "at once");
        // Somebody who does it twice a second.
        for _ in 0..240 {
            scene.host.change(Change::Plan);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert!((7..=9).contains(&plans()), "{} repairs in two minutes", plans());
        tokio::time::sleep(Duration::from_secs(60)).await;
        let repairs = plans();
        assert!(
            (8..=9).contains(&repairs),
            "the last damage is mended too, and then nothing"
        );
        assert!(scene.carries().await);
        assert_eq!(scene.states().last(), Some(&State::Connected));
        assert_eq!(scene.host.machine().devices, 1, "the device is kept");
        scene.command(Command::Disconnect).await;
        assert!(scene.reaches(State::Idle).await);
        let before = scene.host.machine().plans.len();
        scene.host.change(Change::Plan);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(
            scene.host.machine().plans.len(),
            before,
            "there is nothing to put back"
        );
        assert_eq!(scene.end().await, Ok(()));
    });
}

/// How often the client asked for its ways since `since`.
fn asked(scene: &Scene, since: &mut usize) -> usize {
    let all = scene.host.machine().asked;
    all - std::mem::replace(since, all)
}

#[test]
fn whatever_tells_of_other_networks_lets_the_client_ask_for_its_ways() {
    scene(async {
        let mut scene = Scene::new();
        scene.connect_and_wait().await;
        let since = &mut scene.host.machine().asked.clone();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(asked(&scene, since), 0, "for nothing it does not ask");
        for change in [Change::Networks, Change::Woke] {
            scene.host.change(change);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(asked(&scene, since) > 0, "{change:?}");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let _more = asked(&scene, since);
        assert_eq!(scene.end().await, Ok(()));
    });
}

#[test]
fn an_alarm_that_is_late_is_a_sleep_and_a_short_one_is_nothing() {
    scene(async {
        let mut scene = Scene::new();
        scene.connect_and_wait().await;
        let since = &mut scene.host.machine().asked.clone();
        scene.host.stop(Duration::from_millis(500));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(asked(&scene, since), 0);
        scene.host.stop(Duration::from_secs(3600)); // longer than any timer of an idle client
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(asked(&scene, since) > 0, "stopped");
        tokio::time::sleep(Duration::from_secs(5)).await;
        let _more = asked(&scene, since);
        // A sleep that no alarm fell into is noticed with the next thing that happens.
        scene.host.sleep(Duration::from_secs(2));
        scene.host.send(packet("10.3.0.1", "10.9.9.9", 300));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(asked(&scene, since) > 0, "slept");
        assert_eq!(scene.end().await, Ok(()));
    });
}

#[test]
fn errors_of_a_socket_are_a_hint_once_a_second_and_end_nothing() {
    scene(async {
        let mut scene = Scene::new();
        scene.connect_and_wait().await;
        let since = &mut scene.host.machine().asked.clone();
        let local = scene.host.machine().sockets[0];
        scene
            .host
            .machine()
            .broken
            .insert(local, std::io::ErrorKind::NetworkUnreachable);
        for _ in 0..100 {
            scene.host.send(packet("10.3.0.1", "10.9.9.9", 300));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let hints = asked(&scene, since);
        assert!((4..=24).contains(&hints), "asked {hints} times in 5 s");
        assert_eq!(scene.status().state, State::Connected);
        scene.host.machine().broken.clear();
        assert!(scene.carries().await);
        assert_eq!(scene.end().await, Ok(()));
    });
}

#[test]
fn where_udp_is_blocked_tcp_carries_it_through_a_reset_and_ends_with_it() {
    scene(async {
        let mut scene = Scene::with(|host| host.machine().no_udp = true);
        scene.connect_and_wait().await;
        let transport = || scene.status().path.map(|path| path.transport);
        assert_eq!(transport(), Some("tcp"));
        assert!(scene.carries().await);
        for _ in 0..3 {
            scene.host.reset_connections();
            assert!(scene.host.until(|machine| machine.streams.len() == 1).await);
            assert!(scene.carries().await);
        }
        // Back to UDP when that gets through.
        scene.host.machine().no_udp = false;
        scene.host.change(Change::Networks);
        assert!(scene.host.until(|_| transport() == Some("udp")).await);
        assert!(scene.carries().await);
        assert!(
            scene.host.until(|machine| machine.streams.is_empty()).await,
            "nobody needs it"
        );
        assert_eq!(scene.end().await, Ok(()));
        assert_eq!(scene.host.machine().gateway.sas(), 0, "the gateway was told");
        assert_eq!(scene.host.sockets(), 0);
    });
}

#[test]
fn a_gateway_that_refuses_tcp_is_told_of() {
    scene(async {
        let scene = Scene::with(|host| {
            let mut machine = host.machine();
            machine.no_udp = true;
            machine.refuses_tcp = true;
        });
        scene.connect().await;
        assert!(scene.host.until(|_| scene.status().failure.is_some()).await);
        let failure = scene.status().failure.unwrap();
        assert_eq!(failure.cause, Cause::NoAnswerOverTcp("Connection refused".into()));
    });
}
