//! Lines of the access log. They look like the rest of the log but are made here: two lines for each stream on each
//! host, made and written one by one by `tracing-subscriber`, cost more than a quarter of the stream's CPU time.
//!
//! A worker gathers its lines and hands them over when it has nothing else to do.

use std::{
    cell::RefCell,
    fmt::{self, Write as _},
    net::SocketAddr,
    sync::OnceLock,
};

use tracing::Level;
use tracing_subscriber::fmt::{
    format::Writer,
    time::{FormatTime, SystemTime},
};

use super::access::{Caller, Direction, Parties};
use crate::{log_writer, policy::Verdict, workload::Credentials};

/// The target that filters know it by.
const TARGET: &str = "access";

/// Bytes after which lines are handed over even by a worker that always has something else to do.
const MAX_GATHERED: usize = 16 * 1024;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `None` where the filter leaves the access log out.
static FORM: OnceLock<Option<Form>> = OnceLock::new();

thread_local! {
    static GATHERED: RefCell<Gathered> = const { RefCell::new(Gathered(String::new())) };
}

/// Whole lines. Those of a thread that panics are handed over when it ends.
struct Gathered(String);

impl Gathered {
    fn hand_over(&mut self) {
        if !self.0.is_empty() {
            log_writer::add(self.0.as_bytes());
            self.0.clear();
        }
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.hand_over();
    }
}

/// One line: what happened to a stream.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Which half of it this host has.
    pub direction: Direction,
    /// The client's address.
    pub client: SocketAddr,
    /// The original destination.
    pub destination: SocketAddr,
    /// Who is connected.
    pub parties: &'a Parties,
    /// The process that connected, where that is known.
    pub caller: Option<Caller>,
    /// What the rules say of it.
    pub verdict: Verdict,
    /// Set when it has ended.
    pub close: Option<Close<'a>>,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy)]
pub struct Close<'a> {
    /// Bytes from the application.
    pub sent: u64,
    /// Bytes to the application.
    pub received: u64,
    /// From open to close.
    pub duration_us: u128,
    /// "ended", or what went wrong.
    pub reason: &'a str,
    /// The instance that got it, if it is not the one that was dialled.
    pub instance: Option<SocketAddr>,
}

/// Lets lines be written, where the log's filter has them. Call it once, after the log has been
/// started; without it there is no access log.
pub fn start(form: Form) {
    let wanted = tracing::enabled!(target: TARGET, Level::INFO);
    FORM.get_or_init(|| wanted.then_some(form));
}

/// Adds a line.
pub fn add(line: &Line<'_>) {
    let Some(Some(form)) = FORM.get() else { return };
    // A thread that ends has no list of lines any more.
    let _ = GATHERED.try_with(|gathered| {
        let mut gathered = gathered.borrow_mut();
        line.write(*form, &mut gathered.0);
        if gathered.0.len() > MAX_GATHERED {
            gathered.hand_over();
        }
    });
}

/// Hands over what this thread has gathered.
pub fn flush() {
    let _ = GATHERED.try_with(|gathered| gathered.borrow_mut().hand_over());
}

impl Line<'_> {
    /// Writing into a string does not fail.
    fn write(&self, form: Form, into: &mut String) {
        let _ = match form {
            Form::Text => self.text(into),
            Form::Json => self.json(into),
        };
    }

    fn message(&self) -> &'static str {
        if self.close.is_some() { "close" } else { "open" }
    }

    fn text(&self, into: &mut String) -> fmt::Result {
        SystemTime.format_time(&mut Writer::new(into))?;
        let Self { direction, client, destination, parties, caller, verdict, close } = self;
        write!(into, "  INFO {TARGET}: {} direction=\"{}\" ", self.message(), direction.name())?;
        write!(into, "client={client} destination={destination} peer={}", parties.peer)?;
        if let Some(local) = &parties.local {
            write!(into, " local={local}")?;
        }
        if let Some(Caller { pid, credentials: Credentials { uid, .. } }) = caller {
            write!(into, " pid={pid} uid={uid}")?;
        }
        match verdict.rule {
            Some(rule) => write!(into, " rule={rule}")?,
            None => into.write_str(" rule=default")?,
        }
        if let Some(rule) = verdict.dry_run {
            write!(into, " dry_run={rule}")?;
        }
        if let Some(Close { sent, received, duration_us, reason, instance }) = close {
            if let Some(instance) = instance {
                write!(into, " instance={instance}")?;
            }
            write!(into, " sent={sent} received={received} duration_us={duration_us} reason={reason:?}")?;
        }
        into.write_char('\n')
    }

    fn json(&self, into: &mut String) -> fmt::Result {
        into.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut Writer::new(into))?;
        let Self { direction, client, destination, parties, caller, verdict, close } = self;
        write!(into, "\",\"level\":\"INFO\",\"fields\":{{\"message\":\"{}\"", self.message())?;
        write!(into, ",\"direction\":\"{}\",\"client\":\"{client}\"", direction.name())?;
        write!(into, ",\"destination\":\"{destination}\",\"peer\":\"{}\"", parties.peer)?;
        if let Some(local) = &parties.local {
            write!(into, ",\"local\":\"{local}\"")?;
        }
        if let Some(Caller { pid, credentials: Credentials { uid, .. } }) = caller {
            write!(into, ",\"pid\":{pid},\"uid\":{uid}")?;
        }
        match verdict.rule {
            Some(rule) => write!(into, ",\"rule\":{rule}")?,
            None => into.write_str(",\"rule\":null")?,
        }
        if let Some(rule) = verdict.dry_run {
            write!(into, ",\"dry_run\":{rule}")?;
        }
        if let Some(Close { sent, received, duration_us, reason, instance }) = close {
            if let Some(instance) = instance {
                write!(into, ",\"instance\":\"{instance}\"")?;
            }
            // The one text that may need escaping.
            let reason = serde_json::Value::from(*reason);
            write!(into, ",\"sent\":{sent},\"received\":{received},\"duration_us\":{duration_us}")?;
            write!(into, ",\"reason\":{reason}")?;
        }
        writeln!(into, "}},\"target\":\"{TARGET}\"}}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        identity::{SpiffeId, TrustDomain},
        policy::{Action, RuleId},
    };

    fn written(form: Form, close: Option<Close<'_>>) -> String {
        let trust_domain: TrustDomain = "mesh.test".parse().expect("a trust domain");
        let line = Line {
            direction: Direction::Outbound,
            client: ([10, 0, 0, 1], 40000).into(),
            destination: ([10, 0, 0, 2], 80).into(),
            parties: &Parties {
                local: "spiffe://mesh.test/host/fcc00/user-root".parse().ok().map(Arc::new),
                peer: SpiffeId::host(trust_domain, "fcs00".parse().expect("a name")).into(),
            },
            caller: Some(Caller { pid: 7, credentials: Credentials { cgroup: 9, uid: 8, gid: Some(8) } }),
            verdict: Verdict { action: Action::Allow, rule: RuleId::new(3), dry_run: None },
            close,
        };
        let mut text = String::new();
        line.write(form, &mut text);
        text
    }

    const CLOSE: Close<'_> =
        Close { sent: 1, received: 2, duration_us: 3, reason: "said \"no\"\n", instance: None };

    #[test]
    fn a_line_of_text_has_a_time_and_every_field_and_ends_once() {
        let open = written(Form::Text, None);
        let (time, rest) = open.split_at(27);
        assert!(time.ends_with('Z') && time.contains('T'), "{time}");
        assert_eq!(
            rest,
            "  INFO access: open direction=\"outbound\" client=10.0.0.1:40000 destination=10.0.0.2:80 \
             peer=spiffe://mesh.test/host/fcs00 local=spiffe://mesh.test/host/fcc00/user-root pid=7 uid=8 rule=3\n"
        );
        let close = written(Form::Text, Some(CLOSE));
        assert!(close.contains("INFO access: close "), "{close}");
        assert!(
            close.ends_with(
                " pid=7 uid=8 rule=3 sent=1 received=2 duration_us=3 reason=\"said \\\"no\\\"\\n\"\n"
            ),
            "{close}"
        );
    }

    #[test]
    fn a_line_of_json_is_one_object_shaped_like_the_others() {
        let line = written(Form::Json, Some(CLOSE));
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&value["level"], &value["target"]), (&"INFO".into(), &"access".into()));
        let fields = &value["fields"];
        assert_eq!(
            (&fields["message"], &fields["pid"], &fields["sent"]),
            (&"close".into(), &7.into(), &1.into())
        );
        assert_eq!(fields["reason"], CLOSE.reason);
    }
}
