//! What can happen to a write, and to a process's view of the cluster.

use crate::plan::{Action, Kinds, View};

/// A fault that a write can meet.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Its name in the table.
    pub name: &'static str,
    /// What is done to the request.
    pub action: Action,
    /// The component of the control plane that is killed when the request comes, and started again.
    pub component: Option<&'static str>,
    /// How the process that follows is shown the cluster.
    pub then: View,
}

impl Fault {
    const fn new(name: &'static str, action: Action) -> Self {
        Self { name, action, component: None, then: View::AS_IT_IS }
    }
}

/// What is tried with a workflow.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Each at each write.
    pub at_writes: Vec<Fault>,
    /// Each from the first request to the last.
    pub throughout: Vec<(&'static str, View)>,
    /// Whether each write is refused throughout.
    pub refused: bool,
    /// Whether they need a second API server.
    pub second_server: bool,
    /// Whether they leave the process alive, so that many tenants can meet them at once, and each of them several.
    pub together: bool,
}

impl From<Vec<Fault>> for Faults {
    fn from(at_writes: Vec<Fault>) -> Self {
        Self { at_writes, ..Self::default() }
    }
}

/// The moments at which a process can die.
pub fn kills() -> Vec<Fault> {
    vec![
        Fault::new("killed before it is sent", Action::KillBefore),
        Fault::new("killed when committed, answer lost", Action::KillUnanswered),
        Fault::new("killed after the answer", Action::KillAfter),
    ]
}

/// The process sees what has been, not what is: of all kinds, of what is wanted, or of what there is.
pub fn stale() -> Faults {
    /// Longer than any step of a workflow takes.
    const MILLIS: u64 = 3_000;
    const VIEWS: [(Kinds, &str, &str); 3] = [
        (Kinds::All, "killed after the answer, then all of before", "all watches late"),
        (Kinds::Wishes, "killed after the answer, then the wishes of before", "wishes late"),
        (Kinds::Rest, "killed after the answer, then the objects of before", "objects late"),
    ];
    let late = |kinds| View { late: kinds, millis: MILLIS, ..View::default() };
    let at_writes = VIEWS.map(|(kinds, name, _)| Fault {
        then: View { old_lists: kinds, ..late(kinds) },
        ..Fault::new(name, Action::KillAfter)
    });
    let missed = ("only the newest of each object, late", View { newest_only: true, ..late(Kinds::All) });
    let throughout = VIEWS.map(|(kinds, _, name)| (name, late(kinds)));
    Faults {
        at_writes: at_writes.into(),
        throughout: throughout.into_iter().chain([missed]).collect(),
        ..Faults::default()
    }
}

/// The process is led to two API servers, one of which hears late of what is stored: a write through that one takes several times as long.
pub fn servers() -> Faults {
    let behind = |millis| View { second_behind: millis, ..View::AS_IT_IS };
    let then = |name, action| Fault { then: behind(1_000), ..Fault::new(name, action) };
    let at_writes = vec![
        then("killed when committed, answer lost, then two API servers", Action::KillUnanswered),
        then("killed after the answer, then two API servers", Action::KillAfter),
    ];
    let throughout = vec![("one of two API servers behind", behind(1_000))];
    Faults { at_writes, throughout, second_server: true, ..Faults::default() }
}

/// Each kind of write is refused for as long as the workflow takes.
pub fn refusals() -> Faults {
    Faults { refused: true, ..Faults::default() }
}

/// What else can become of a request.
pub fn errors() -> Faults {
    let fault = Fault::new;
    let answer = |name, code, reason: &str, retry_after| {
        fault(name, Action::Answer { code, reason: reason.to_owned(), retry_after })
    };
    let at_writes = vec![
        answer("409", 409, "Conflict", None),
        answer("422", 422, "Invalid", None),
        answer("429, Retry-After 2", 429, "TooManyRequests", Some(2)),
        answer("500", 500, "InternalError", None),
        answer("503", 503, "ServiceUnavailable", None),
        fault("504 after commit", Action::CommitThenAnswer { code: 504, reason: "Timeout".to_owned() }),
        fault("reset", Action::Cut),
        fault("reset after commit", Action::CommitThenCut),
        fault("30 s silence", Action::Silence { millis: 30_000 }),
    ];
    Faults { at_writes, together: true, ..Faults::default() }
}

/// What Torpor and its tenants stand on, killed while the request is on its way.
pub fn components() -> Vec<Fault> {
    let killed =
        |name, component| Fault { component: Some(component), ..Fault::new(name, Action::Delay { millis: 1 }) };
    vec![
        killed("etcd killed", "etcd"),
        killed("API server killed", "kube-apiserver"),
        killed("controller manager killed", "kube-controller-manager"),
        killed("scheduler killed", "kube-scheduler"),
    ]
}
