//! Status, traffic and failures as text. Pure: the time comes in, lines come out.

use std::time::Duration;

use peregrine_core::command::{
    Failure, Happening, Initiator, Means, Phase, Prompt, PromptKind, RekeyKind, Side, Stage, State, Status,
    Traffic, Why,
};

use crate::screen::Style;

const GREEN: &str = "32";
const RED: &str = "31";
const YELLOW: &str = "33";
const BOLD: &str = "1";
const DIM: &str = "2";

/// Follows one connection.
pub(crate) struct Progress {
    style: Style,
    state: State,
    stage: Option<Stage>,
    /// When the stage began, since the start.
    stage_since: Duration,
    attempt: u32,
    connected_at: Option<Duration>,
    /// Why and for which time a tunnel that was up is built anew, in words.
    again: String,
    /// The last two samples of the counters, each with its time.
    samples: [Option<(Duration, Traffic)>; 2],
}

/// Why nothing goes through the tunnel at present.
const fn interrupted(why: Option<Why>) -> &'static str {
    match why {
        Some(Why::Offline) => "this machine has no network; waiting for one",
        Some(Why::NetworkChanged) => "the network changed; connecting again",
        Some(Why::PeerDead) | None => "the gateway does not answer; connecting again",
        Some(Why::DeletedByGateway) => "the gateway ended the connection; connecting again",
        Some(Why::AuthLifetime) => "the authentication has expired; connecting again",
        Some(Why::RekeyRefused) => "the gateway does not renew the keys; connecting again",
        Some(Why::Expired) => "the keys have expired; connecting again",
        Some(Why::Silent) => "the gateway answers, but nothing comes through; connecting again",
        Some(Why::Redirected) => "the gateway sends us to another one; connecting again",
    }
}

/// What is waited for while a tunnel is built anew.
fn waiting(status: &Status) -> String {
    if status.why == Some(Why::Offline) {
        return "waiting for a network".to_owned();
    }
    match status.retry_at {
        None => format!("connecting again, attempt {}", status.attempt),
        Some(at) => format!("attempt {} at {at}", status.attempt),
    }
}

impl Progress {
    pub(crate) const fn new(style: Style) -> Self {
        Self {
            style,
            state: State::Idle,
            stage: None,
            stage_since: Duration::ZERO,
            attempt: 0,
            connected_at: None,
            again: String::new(),
            samples: [None, None],
        }
    }

    /// Takes a status that became true `at` this time since the start, and gives the lines that stay.
    pub(crate) fn status(&mut self, status: &Status, at: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        if status.state == State::Connecting && status.attempt != self.attempt {
            if self.attempt > 0 {
                lines.push(self.style.shown(&format!("Attempt {}", status.attempt)));
            }
            self.attempt = status.attempt;
            self.stage = None;
        }
        let gone_on = status.state == State::Connecting && status.stage != self.stage;
        let arrived = status.state == State::Connected && self.state != State::Connected;
        let ended = !matches!(
            status.state,
            State::Connecting | State::Connected | State::Reconnecting
        );
        if let Some(stage) = self.stage
            && self.connected_at.is_none()
        {
            if gone_on || arrived {
                lines.push(self.step(stage, true, at));
            } else if ended && status.failure.is_some() {
                lines.push(self.step(stage, false, at));
            }
        }
        if gone_on || arrived || ended && status.failure.is_some() {
            self.stage = status.stage.filter(|_| gone_on);
            self.stage_since = at;
        }
        if arrived && self.connected_at.is_none() {
            self.connected_at = Some(at);
            lines.push(String::new());
            lines.extend(self.summary(status, at));
        }
        if status.state == State::Reconnecting {
            if self.state != State::Reconnecting {
                let line = format!("{}  {}", clock(self.lasted(at)), interrupted(status.why));
                lines.push(self.style.paint(YELLOW, &self.style.shown(&line)));
            }
            self.again = waiting(status);
        }
        if status.state != self.state {
            self.state = status.state;
        }
        lines
    }

    /// How far the attempt has come.
    pub(crate) const fn stage(&self) -> Option<Stage> {
        self.stage
    }

    pub(crate) const fn is_connected(&self) -> bool {
        self.connected_at.is_some()
    }

    /// Takes the counters as they are `at` this time since the start.
    pub(crate) fn traffic(&mut self, traffic: &Traffic, at: Duration) {
        let [_, last] = std::mem::take(&mut self.samples);
        self.samples = [last, Some((at, traffic.clone()))];
    }

    /// The line that changes, `at` this time since the start.
    pub(crate) fn live(&self, at: Duration) -> Option<String> {
        let line = match (self.state, self.connected_at, self.stage) {
            (State::Connected, Some(since), _) => format!(
                "Connected {}  {}",
                clock(at.saturating_sub(since)),
                self.rates(at)
            ),
            (State::Connecting, _, Some(stage)) => format!("… {} {}", place(stage), doing(stage)),
            (State::Disconnecting, ..) => "… disconnecting".to_owned(),
            (State::Reconnecting, ..) => format!("… {}", self.again),
            (State::Blocked, ..) => "Blocked: nothing leaves outside the tunnel".to_owned(),
            _ => return None,
        };
        Some(self.style.shown(&line))
    }

    fn lasted(&self, at: Duration) -> Duration {
        at.saturating_sub(self.connected_at.unwrap_or(at))
    }

    /// The lines about something that happened `at` this time since the start to a connection that stays.
    pub(crate) fn happened(&self, happening: &Happening, at: Duration) -> Vec<String> {
        let text = match happening {
            Happening::Rekey(rekey) => {
                let what = match rekey.kind {
                    RekeyKind::IkeSa => PHASE_1,
                    RekeyKind::ChildSa => PHASE_2,
                };
                let who = match rekey.by {
                    Initiator::Client => "",
                    Initiator::Gateway => " by the gateway",
                };
                format!("{what} rekeyed{who}, {}", rekey.suite)
            }
            Happening::Roam(roam) => {
                let how = match roam.means {
                    Means::Mobike => "moved",
                    Means::NatRebinding => "moved, as a NAT changed its mapping",
                    Means::NewConnection => "opened its TCP connection anew",
                    Means::NewSa => "moved by connecting anew",
                    Means::Resumption => "moved by resuming",
                };
                let (from, to) = (roam.from.local.ip(), roam.to.local.ip());
                let (there, ms) = (roam.to.remote, roam.took.as_millis());
                format!("{how} from {from} to {to} → {there} in {ms} ms")
            }
            Happening::Reconnect(reconnect) => {
                let tries = match reconnect.attempts {
                    1 => String::new(),
                    more => format!(" and {more} attempts"),
                };
                format!("connected anew after {} ms{tries}", reconnect.took.as_millis())
            }
        };
        let time = self.style.paint(DIM, &clock(self.lasted(at)));
        vec![format!("{time}  {}", self.style.shown(&text))]
    }

    /// What to say at the end of a connection that was up.
    pub(crate) fn farewell(&self, at: Duration) -> Option<String> {
        let since = self.connected_at?;
        let totals = self.samples[1].as_ref().map_or_else(
            || "nothing went through".to_owned(),
            |(_, traffic)| format!("↓ {} ↑ {}", octets(traffic.rx_bytes), octets(traffic.tx_bytes)),
        );
        Some(self.style.shown(&format!(
            "Disconnected after {}, {totals}",
            clock(at.saturating_sub(since))
        )))
    }

    fn step(&self, stage: Stage, well: bool, at: Duration) -> String {
        let (mark, code) = if well { ("✓", GREEN) } else { ("✗", RED) };
        let mark = self.style.shown(mark);
        let column = if self.style.unicode { 1 } else { "failed:".len() };
        let mark = self.style.paint(code, &format!("{mark:<column$}"));
        let what = self
            .style
            .shown(&format!("{:<20}  {}", place(stage), doing(stage)));
        let time = format!("{:>6} ms", at.saturating_sub(self.stage_since).as_millis());
        format!("{mark} {what:<52} {}", self.style.paint(DIM, &time))
    }

    fn summary(&self, status: &Status, at: Duration) -> Vec<String> {
        let gateway = status.gateway.as_ref();
        let identity = gateway.map_or("the gateway", |g| g.identity.as_deref().unwrap_or(&g.host));
        let title = format!("Connected to {identity} in {} ms", at.as_millis());
        let mut rows: Vec<(&str, String)> = Vec::new();
        if let Some(sa) = &status.ike_sa {
            rows.push((PHASE_1, sa.suite.clone()));
        }
        for sa in &status.child_sas {
            rows.push((PHASE_2, sa.suite.clone()));
        }
        if let Some(path) = &status.path {
            let nat = match path.nat {
                "none" => "no NAT between",
                "local" => "we are behind a NAT",
                "remote" => "the gateway is behind a NAT",
                _ => "both are behind a NAT",
            };
            let via = path
                .interface
                .as_deref()
                .map_or_else(String::new, |name| format!(" via {name}"));
            rows.push((
                "path",
                format!(
                    "{} → {} over {}{via}, {nat}",
                    path.local,
                    path.remote,
                    path.transport.to_uppercase()
                ),
            ));
        }
        if let Some(sa) = status.child_sas.first() {
            rows.push(("in the tunnel", networks(&sa.remote_ts)));
        }
        rows.push(("addresses", join(&status.addresses)));
        if !status.dns.servers.is_empty() {
            let domains = match status.dns.domains.as_slice() {
                [] => String::new(),
                domains => format!(" for {}", domains.join(", ")),
            };
            rows.push(("name servers", join(&status.dns.servers) + &domains));
        }
        if let Some(mtu) = status.mtu {
            rows.push(("MTU", mtu.to_string()));
        }
        rows.extend(status.notes.iter().map(|note| ("note", note.clone())));
        let mut lines = vec![self.style.paint(BOLD, &self.style.shown(&title))];
        for (label, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
            lines.extend(labelled(self.style, label, &value));
        }
        lines
    }

    /// Octets a second, both ways, and the totals.
    fn rates(&self, at: Duration) -> String {
        let Some((last_at, last)) = &self.samples[1] else {
            return "no traffic yet".to_owned();
        };
        let (before_at, before) = match &self.samples[0] {
            Some((before_at, before)) => (*before_at, before.clone()),
            None => (self.connected_at.unwrap_or_default(), Traffic::default()),
        };
        // Nothing new for two seconds means that nothing flows.
        let stale = at.saturating_sub(*last_at) > Duration::from_secs(2);
        // The driver tells a second after something moved: what came before that second was silence.
        let gap = last_at.saturating_sub(before_at).max(Duration::from_millis(100));
        let span = if gap > Duration::from_millis(1500) {
            Duration::from_secs(1)
        } else {
            gap
        };
        let rate = |new: u64, old: u64| {
            let per_second = u128::from(new.saturating_sub(old)) * 1000 / span.as_millis().max(1);
            if stale {
                0
            } else {
                u64::try_from(per_second).unwrap_or(u64::MAX)
            }
        };
        format!(
            "↓ {}/s ↑ {}/s  total ↓ {} ↑ {}",
            octets(rate(last.rx_bytes, before.rx_bytes)),
            octets(rate(last.tx_bytes, before.tx_bytes)),
            octets(last.rx_bytes),
            octets(last.tx_bytes),
        )
    }
}

/// A failure for people: what happened, where, on whose side, what to do, and the technical word last. `after` is the
/// time since the start.
pub(crate) fn failure(style: Style, failure: &Failure, after: Duration) -> Vec<String> {
    let mut lines = marked(style, (RED, "✗"), BOLD, &failure.message());
    let phase = match failure.phase() {
        Phase::Network => "Network",
        Phase::Phase1 => PHASE_1,
        Phase::Phase2 => PHASE_2,
        Phase::Host => "This machine",
    };
    let place = format!(
        "{phase}, step {}, after {} ms",
        step_name(failure.stage),
        after.as_millis()
    );
    lines.extend(labelled(style, "where", &place));
    let side = match failure.side() {
        Side::Gateway => "the gateway",
        Side::Client => "this machine or its profile",
        Side::Network => "the network in between",
    };
    lines.extend(labelled(style, "whose side", side));
    for (index, advice) in failure.advice().iter().enumerate() {
        lines.extend(labelled(style, if index == 0 { "try this" } else { "" }, advice));
    }
    if let Some(notify) = failure.notify() {
        lines.extend(labelled(style, "technical", &notify));
    }
    lines
}

/// What the gateway says when it asks something, which is not ours.
pub(crate) fn gateway_asks(style: Style, prompt: &Prompt) -> Vec<String> {
    let message = prompt.message.iter();
    let said = message.map(|message| format!("The gateway of {} asks: “{message}”", prompt.profile));
    said.flat_map(|text| marked(style, (YELLOW, "?"), "", &text))
        .collect()
}

/// What is written before the place where the answer is typed.
pub(crate) const fn question(prompt: &Prompt) -> &'static str {
    match (&prompt.message, prompt.kind) {
        (Some(_), _) => "Your answer (it is not shown): ",
        (None, PromptKind::Password) => "Password: ",
        (None, PromptKind::OneTimeCode) => "One-time code: ",
    }
}

/// A warning about a profile.
pub(crate) fn warning(style: Style, text: &str) -> Vec<String> {
    marked(style, (YELLOW, "Warning:"), "", text)
}

/// A mark and a text, wrapped beside it.
fn marked(style: Style, (code, mark): (&str, &str), body: &str, text: &str) -> Vec<String> {
    let mark = style.shown(mark);
    let indent = mark.chars().count() + 1;
    let room = style.width.unwrap_or(usize::MAX).saturating_sub(indent);
    wrap(&style.shown(text), room)
        .into_iter()
        .enumerate()
        .map(|(index, line)| match index {
            0 => format!("{} {}", style.paint(code, &mark), style.paint(body, &line)),
            _ => format!("{:indent$}{}", "", style.paint(body, &line)),
        })
        .collect()
}

const PHASE_1: &str = "Phase 1 · IKE SA";
const PHASE_2: &str = "Phase 2 · Child SA";
/// Columns of a label.
const LABEL: usize = 18;

/// Where a step belongs.
const fn place(stage: Stage) -> &'static str {
    match stage {
        Stage::Resolve | Stage::Reach => "Network",
        Stage::IkeSaInit | Stage::IkeIntermediate | Stage::IkeAuth | Stage::Eap => PHASE_1,
        Stage::ChildSa => PHASE_2,
        Stage::Apply => "This machine",
    }
}

/// What a step does.
const fn doing(stage: Stage) -> &'static str {
    match stage {
        Stage::Resolve => "find the gateway's address",
        Stage::Reach => "reach the gateway",
        Stage::IkeSaInit => "IKE_SA_INIT: agree on keys",
        Stage::IkeIntermediate => "IKE_INTERMEDIATE: more keys",
        Stage::IkeAuth => "IKE_AUTH: prove identities",
        Stage::Eap => "EAP: prove who we are",
        Stage::ChildSa => "ESP suite, networks, addresses",
        Stage::Apply => "device, routes, name servers",
    }
}

/// A step's name in failures: the exchange's own where there is one.
const fn step_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Resolve => "name lookup",
        Stage::Reach => "reaching the gateway",
        Stage::IkeSaInit => "IKE_SA_INIT",
        Stage::IkeIntermediate => "IKE_INTERMEDIATE",
        Stage::IkeAuth => "IKE_AUTH",
        Stage::Eap => "EAP",
        Stage::ChildSa => "Child SA",
        Stage::Apply => "device and routes",
    }
}

/// A label and its value, wrapped under itself.
fn labelled(style: Style, label: &str, value: &str) -> Vec<String> {
    let room = style.width.unwrap_or(usize::MAX).saturating_sub(LABEL + 5);
    wrap(&style.shown(value), room)
        .into_iter()
        .enumerate()
        .map(|(index, line)| {
            let label = if index == 0 {
                style.shown(label)
            } else {
                String::new()
            };
            format!("  {}  {line}", style.paint(DIM, &format!("{label:<LABEL$}")))
        })
        .collect()
}

/// Breaks a text at spaces so that no line is longer than `width` characters, if words allow.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width.max(20) {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// What goes into the tunnel, in words where it is everything.
fn networks(selectors: &[String]) -> String {
    let all = |family: &str| selectors.iter().any(|selector| selector == family);
    match (all("0.0.0.0/0"), all("::/0")) {
        (true, true) => "all traffic".to_owned(),
        (true, false) if selectors.len() == 1 => "all IPv4 traffic".to_owned(),
        (false, true) if selectors.len() == 1 => "all IPv6 traffic".to_owned(),
        _ => selectors.join(", "),
    }
}

fn join(items: &[impl ToString]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Hours, minutes and seconds.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// An amount of octets with three digits and a decimal unit.
fn octets(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            let digits = if unit == "B" || value >= 99.95 {
                0
            } else if value >= 9.995 {
                1
            } else {
                2
            };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.0} PB")
}

#[cfg(test)]
mod tests;
